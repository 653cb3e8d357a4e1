//! The patches: which ones a series of Xen gets, in order.
//!
//! `patches/xen-fixes/` and `patches/lacuna/` are for the newest series. For an older one, the folder below
//! `patches/` with that one's name holds patches under the same names that replace these, a list `skip` of
//! those that it does not need, and `build/`, which is applied first: what later series have, and the rest
//! relies on.

use std::fs;
use std::path::{Path, PathBuf};

use super::series::{SUPPORTED, Series};
use crate::error::{Error, IoContext, Result};

/// The parts of the product's patches, in order.
const PARTS: &[&str] = &["xen-fixes", "lacuna"];

/// Patches for the lab alone: ways round mistakes of the emulator, and allocations that fail on purpose
/// (docs/lab.md). What they add is off in what a real host installs.
const LAB_ONLY: &[&str] = &[
    "emulated-svm.patch",
    "emulated-pae.patch",
    "alloc-failure.patch",
    "writable-logdirty.patch",
    "memory-errors.patch",
];

/// Where those are.
const LAB_FOLDER: &str = "tests/lab/xen";

/// One patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Its name, as in `lacuna/0003-x86-….patch`.
    pub(crate) name: String,
    /// The file that is applied.
    pub(crate) file: PathBuf,
}

/// Lists the product's patches for `series`.
pub(crate) fn product(repository: &Path, series: Series) -> Result<Vec<Patch>> {
    let top = repository.join("patches");
    let own = (series != SUPPORTED[0]).then(|| top.join(series.name()));
    let mut found = Vec::new();
    if let Some(own) = &own {
        for name in optional_lines(&own.join("build/series"))? {
            found.push(patch(
                &format!("{}/build/{name}", series.name()),
                own.join("build").join(&name),
            )?);
        }
    }
    let skipped = match &own {
        Some(own) => optional_lines(&own.join("skip"))?,
        None => Vec::new(),
    };
    let mut unused: Vec<&str> = skipped.iter().map(String::as_str).collect();
    for part in PARTS {
        for name in lines(&top.join(part).join("series"))? {
            let name = format!("{part}/{name}");
            if skipped.contains(&name) {
                unused.retain(|unused| *unused != name);
                continue;
            }
            let replacing = own
                .as_ref()
                .map(|own| own.join(&name))
                .filter(|file| file.exists());
            found.push(patch(&name, replacing.unwrap_or_else(|| top.join(&name)))?);
        }
    }
    if let Some(stale) = unused.first() {
        return Err(Error::Unexpected {
            what: format!("patches/{}/skip", series.name()),
            expected: "names of patches that the series files list".to_owned(),
            seen: (*stale).to_owned(),
        });
    }
    Ok(found)
}

/// Lists the patches for the lab's own hypervisors, which go on top.
pub(crate) fn lab_only(repository: &Path, series: Series) -> Result<Vec<Patch>> {
    let folder = repository.join(LAB_FOLDER);
    LAB_ONLY
        .iter()
        .map(|name| {
            let own = folder.join(series.name()).join(name);
            let file = if own.exists() { own } else { folder.join(name) };
            patch(&format!("lab/{name}"), file)
        })
        .collect()
}

fn patch(name: &str, file: PathBuf) -> Result<Patch> {
    fs::metadata(&file).on("find the patch", &file)?;
    Ok(Patch {
        name: name.to_owned(),
        file,
    })
}

fn optional_lines(path: &Path) -> Result<Vec<String>> {
    if path.exists() {
        lines(path)
    } else {
        Ok(Vec::new())
    }
}

/// The lines of a quilt series, without comments.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).on("read", path)?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(Into::into)
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::*;

    fn place(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let top = std::env::temp_dir().join(format!("lacuna-lab-patches-{name}-{}", std::process::id()));
        for (name, text) in files {
            let file = top.join("patches").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        top
    }

    #[test]
    fn an_older_series_replaces_skips_and_adds() {
        let top = place(
            "older",
            &[
                ("xen-fixes/series", "0001-a.patch\n0002-b.patch\n"),
                ("xen-fixes/0001-a.patch", ""),
                ("xen-fixes/0002-b.patch", ""),
                ("lacuna/series", "# a comment\n0001-c.patch\n"),
                ("lacuna/0001-c.patch", ""),
                ("4.17/skip", "xen-fixes/0002-b.patch\n"),
                ("4.17/lacuna/0001-c.patch", ""),
                ("4.17/build/series", "0001-d.patch\n"),
                ("4.17/build/0001-d.patch", ""),
            ],
        );
        let names = |series| -> Vec<String> {
            let found = product(&top, series).unwrap();
            let relative = |patch: &Patch| {
                let file = patch.file.strip_prefix(top.join("patches")).unwrap();
                file.to_string_lossy().into_owned()
            };
            found.iter().map(relative).collect()
        };
        assert_eq!(
            names(Series::V4_20),
            [
                "xen-fixes/0001-a.patch",
                "xen-fixes/0002-b.patch",
                "lacuna/0001-c.patch"
            ]
        );
        assert_eq!(
            names(Series::V4_17),
            [
                "4.17/build/0001-d.patch",
                "xen-fixes/0001-a.patch",
                "4.17/lacuna/0001-c.patch"
            ]
        );
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn a_patch_to_skip_that_does_not_exist_is_named() {
        let top = place(
            "stale",
            &[
                ("xen-fixes/series", ""),
                ("lacuna/series", ""),
                ("4.17/skip", "lacuna/0009-gone.patch\n"),
            ],
        );
        let told = product(&top, Series::V4_17).unwrap_err().to_string();
        assert!(told.contains("0009-gone"), "{told}");
        fs::remove_dir_all(top).unwrap();
    }
}
