//! Which source of Xen is built: what the user gives, what the cache holds, or what the archive serves.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::given::{Given, OPTION, untar};
use super::place;
use super::series::{SUPPORTED, Series, supported, tree_version};
use crate::archive::{Archive, Kind, Limits, PassedOver, Runner, SUITES, entries};
use crate::context::{Context, Staged, remove};
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder};
use crate::progress::{Progress, say};
use crate::sysroot::Sysroot;

/// What to do where no source can be had.
pub(crate) const REMEDY: &str = "give the lab a source: `--xen-source FILE|DIR|GITDIR@REVISION` or LACUNA_XEN_SOURCE, \
    with Xen's own release tarball, an unpacked tree, or a clone of Xen's git (such as DIR@RELEASE-4.20.4)";

/// Where a pristine tree came from; kept beside it in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The release series' name.
    pub(crate) series: String,
    /// The version: the archive's, or the tree's own.
    pub(crate) version: String,
    /// Where it is from, in words: `the archive (bookworm)`, `--xen-source NAME`.
    pub(crate) from: String,
    /// Names the content.
    pub(crate) key: String,
}

/// A pristine tree, ready in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Pristine {
    /// The release series.
    pub(crate) series: Series,
    /// The tree.
    pub(crate) directory: PathBuf,
    /// Where it came from.
    pub(crate) origin: Origin,
    /// Whether the cache had it already.
    pub(crate) cached: bool,
}

impl Pristine {
    /// Names the content, for the keys of what is built from it.
    pub(crate) fn key(&self) -> Key {
        KeyBuilder::new("xen/pristine", 1)
            .text(&self.origin.key)
            .text(self.series.name())
            .finish()
    }

    /// Says in one line what is used.
    pub(crate) fn told(&self) -> String {
        let cached = if self.cached { ", kept in the cache" } else { "" };
        format!(
            "Xen {} from {}{cached}; series {}",
            self.origin.version,
            self.origin.from,
            self.series.name()
        )
    }
}

/// Finds a source and has it unpacked in the cache.
///
/// In this order: what the user gives (nothing is done where the cache holds just that); what the cache
/// holds; what the archive serves, the newest series first. `wanted` limits all of it to one series.
pub(crate) fn choose(context: &Context, sysroot: &Sysroot, wanted: Option<Series>) -> Result<Pristine> {
    let mut passed_over = Vec::new();
    if let Some(given) = &context.options.xen_source {
        let pristine = from_given(context, given)?;
        if wanted.is_none_or(|wanted| wanted == pristine.series) {
            return Ok(tell(pristine));
        }
        passed_over.push(over(
            &format!("{OPTION} {}", given.told()),
            &format!("is Xen {}", pristine.origin.version),
        ));
    }
    let series: Vec<Series> = wanted.map_or_else(|| SUPPORTED.to_vec(), |one| vec![one]);
    for one in &series {
        match held(context, *one) {
            Some(pristine) => return Ok(tell(pristine)),
            None => passed_over.push(over(
                &format!("the cache, series {}", one.name()),
                "holds no source of it",
            )),
        }
    }
    if context.options.offline {
        passed_over.push(over("the archive", "not asked: --offline"));
        return Err(nothing(&series, &passed_over));
    }
    let fetched = context.work("xen/source", |progress| {
        from_archive(context, sysroot, &series, passed_over, progress)
    })?;
    Ok(tell(fetched))
}

/// Returns what the cache holds of `series`.
pub(crate) fn held(context: &Context, series: Series) -> Option<Pristine> {
    let directory = place(context, series, "pristine");
    let text = fs::read_to_string(origin_file(context, series)).ok()?;
    let origin: Origin = serde_json::from_str(&text).ok()?;
    directory.is_dir().then_some(Pristine {
        series,
        directory,
        origin,
        cached: true,
    })
}

fn from_given(context: &Context, given: &Given) -> Result<Pristine> {
    let key = given.key(context)?;
    let same = SUPPORTED
        .into_iter()
        .filter_map(|series| held(context, series))
        .find(|pristine| pristine.origin.key == key.as_str());
    if let Some(pristine) = same {
        return Ok(pristine);
    }
    context.work("xen/source", |progress| {
        let staged = Staged::directory(context.cached("xen/given"))?;
        given.unpack(&staged.path, &context.step_log("xen/source"), progress)?;
        let version = tree_version(&staged.path)?;
        let Some(series) = Series::named(&version.series) else {
            remove(&staged.path)?;
            return Err(Error::Unexpected {
                what: format!("{OPTION} {}", given.told()),
                expected: format!(
                    "a series that the patches are for ({}); `cargo lab patches check` says how far they fit another",
                    supported()
                ),
                seen: format!("Xen {}", version.whole),
            });
        };
        let origin = Origin {
            series: version.series,
            version: version.whole,
            from: format!("--xen-source {}", given.told()),
            key: key.as_str().to_owned(),
        };
        keep(context, series, &staged, origin)
    })
}

/// Downloads the first version that the archive serves and unpacks it.
fn from_archive(
    context: &Context,
    sysroot: &Sysroot,
    series: &[Series],
    mut passed_over: Vec<PassedOver>,
    progress: &Progress,
) -> Result<Pristine> {
    let archive = Archive::open(
        context,
        "xen",
        Runner::Sysroot(sysroot),
        &entries(context, SUITES, &[Kind::Sources])?,
        Limits::default(),
        progress,
    )?;
    let all = archive.sources("xen")?;
    let mut offers = all.clone();
    offers.candidates.clear();
    for one in series {
        let of_series = all.clone().of(one.name()).candidates;
        if of_series.is_empty() {
            passed_over.push(over(
                &format!("the archive, series {}", one.name()),
                "no suite lists a source of it",
            ));
        }
        offers.candidates.extend(of_series);
    }
    passed_over.append(&mut offers.passed_over);
    offers.passed_over = passed_over;
    let download = context.cached("xen/download");
    let what = format!("a source of Xen {}", names(series));
    let chosen = archive.first_served(&what, offers, &download, REMEDY, progress)?;
    let candidate = &chosen.candidate;
    let found = series.iter().copied().find(|one| candidate.is_of(one.name()));
    let Some((tarball, series)) = chosen.paths.first().zip(found) else {
        return Err(nothing(series, &chosen.passed_over));
    };
    let staged = Staged::directory(context.cached("xen/fetched"))?;
    untar(
        tarball,
        1,
        &staged.path,
        &context.step_log("xen/source"),
        progress,
    )?;
    let hashes: Vec<&str> = candidate.files.iter().map(|file| file.sha256.as_str()).collect();
    let origin = Origin {
        series: series.name().to_owned(),
        version: candidate.version.clone(),
        from: format!("the archive ({})", candidate.suites.join(", ")),
        key: KeyBuilder::new("xen/archive", 1)
            .text(&hashes.join(" "))
            .finish()
            .as_str()
            .to_owned(),
    };
    let pristine = keep(context, series, &staged, origin)?;
    remove(&download)?;
    Ok(pristine)
}

/// Moves a whole tree to its place. Its origin is written last: without one the tree does not count.
fn keep(context: &Context, series: Series, staged: &Staged, origin: Origin) -> Result<Pristine> {
    let file = origin_file(context, series);
    remove(&file)?;
    let directory = place(context, series, "pristine");
    remove(&directory)?;
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).on("create", parent)?;
    }
    fs::rename(&staged.path, &directory).on("rename", &staged.path)?;
    let text = serde_json::to_string_pretty(&origin).unwrap_or_default();
    fs::write(&file, text).on("write", &file)?;
    Ok(Pristine {
        series,
        directory,
        origin,
        cached: false,
    })
}

fn origin_file(context: &Context, series: Series) -> PathBuf {
    place(context, series, "origin.json")
}

fn tell(pristine: Pristine) -> Pristine {
    say(&format!("lab: {}", pristine.told()));
    pristine
}

fn over(what: &str, reason: &str) -> PassedOver {
    PassedOver {
        what: what.to_owned(),
        reason: reason.to_owned(),
        unusable: true,
    }
}

fn names(series: &[Series]) -> String {
    let names: Vec<&str> = series.iter().map(|series| series.name()).collect();
    names.join(" or ")
}

fn nothing(series: &[Series], passed_over: &[PassedOver]) -> Error {
    let tried: Vec<String> = passed_over.iter().map(|over| format!("  {over}")).collect();
    Error::NothingServed {
        what: format!("a source of Xen {}", names(series)),
        tried: tried.join("\n"),
        remedy: REMEDY.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Candidate;

    #[test]
    fn a_version_belongs_to_the_series_whose_numbers_it_begins_with() {
        let of_version = |version: &str| {
            let candidate = Candidate {
                package: "xen".to_owned(),
                version: version.to_owned(),
                suites: Vec::new(),
                files: Vec::new(),
                missing: None,
            };
            SUPPORTED
                .into_iter()
                .find(|series| candidate.is_of(series.name()))
        };
        assert_eq!(of_version("4.20.4+63-g7abfd2bce2-0+deb13u1"), Some(Series::V4_20));
        assert_eq!(of_version("4.17.5+72-g01140da4e8-1"), Some(Series::V4_17));
        assert_eq!(of_version("4.2.5"), None);
        assert_eq!(of_version("4.170.1"), None);
    }
}
