//! Brings a build tree in line with a source tree and leaves alone what did not change, so that make rebuilds
//! little.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::context::remove;
use crate::error::{IoContext, Result};
use crate::key::files_below;

/// The list, inside the build tree, of the files that came from the source tree last time.
const MANIFEST: &str = ".lab-manifest";

/// Makes `build` hold the files of `source`: copies those whose content differs, removes those that went
/// away.
///
/// Files with equal content keep their modification time. Whatever else is in `build`, such as objects,
/// stays.
pub(crate) fn mirror(source: &Path, build: &Path) -> Result<()> {
    fs::create_dir_all(build).on("create", build)?;
    let manifest = build.join(MANIFEST);
    let wanted = files_below(source)?;
    let present: BTreeSet<PathBuf> = fs::read_to_string(&manifest)
        .unwrap_or_default()
        .lines()
        .map(PathBuf::from)
        .collect();
    for relative in present.iter().filter(|path| wanted.binary_search(path).is_err()) {
        remove(&build.join(relative))?;
    }
    // Before the copying: were it interrupted, a file copied but not listed would never be removed again.
    let listing: Vec<_> = wanted.iter().map(|path| path.to_string_lossy()).collect();
    fs::write(&manifest, listing.join("\n")).on("write", &manifest)?;
    for relative in &wanted {
        copy_if_different(&source.join(relative), &build.join(relative))?;
    }
    Ok(())
}

/// Copies the files of `source` whose path relative to it passes `wanted` into the directory `to`.
pub(crate) fn copy_source(source: &Path, to: &Path, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    for relative in files_below(source)?.iter().filter(|path| wanted(path)) {
        copy_if_different(&source.join(relative), &to.join(relative))?;
    }
    Ok(())
}

fn copy_if_different(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).on("create", parent)?;
    }
    if from.is_symlink() {
        let target = fs::read_link(from).on("read", from)?;
        if fs::read_link(to).ok().as_ref() == Some(&target) {
            return Ok(());
        }
        remove(to)?;
        return std::os::unix::fs::symlink(&target, to).on("link", to);
    }
    let content = fs::read(from).on("read", from)?;
    let mode = fs::metadata(from).on("look at", from)?.permissions();
    if !to.is_symlink() && fs::read(to).is_ok_and(|seen| seen == content) {
        return fs::set_permissions(to, mode).on("set the mode of", to);
    }
    remove(to)?;
    fs::write(to, content).on("write", to)?;
    fs::set_permissions(to, mode).on("set the mode of", to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::mirror;

    #[test]
    fn only_changed_files_are_touched_and_vanished_ones_go() {
        let top = std::env::temp_dir().join(format!("lacuna-lab-mirror-{}", std::process::id()));
        let (source, build) = (top.join("source"), top.join("build"));
        fs::create_dir_all(source.join("a")).unwrap();
        for (name, text) in [("a/same", "1"), ("a/changes", "1"), ("goes", "1")] {
            fs::write(source.join(name), text).unwrap();
        }
        mirror(&source, &build).unwrap();
        fs::write(build.join("a/object"), "built").unwrap();
        let before = fs::metadata(build.join("a/same")).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(source.join("a/changes"), "2").unwrap();
        fs::write(source.join("a/same"), "1").unwrap();
        fs::remove_file(source.join("goes")).unwrap();
        mirror(&source, &build).unwrap();
        assert_eq!(
            fs::metadata(build.join("a/same")).unwrap().modified().unwrap(),
            before
        );
        assert_eq!(fs::read_to_string(build.join("a/changes")).unwrap(), "2");
        assert_eq!(fs::read_to_string(build.join("a/object")).unwrap(), "built");
        assert!(!build.join("goes").exists());
        fs::remove_dir_all(top).unwrap();
    }
}
