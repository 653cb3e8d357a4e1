//! Where Xen, kernels and packages would come from, whether they are really served, and what the cache has of
//! them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Check;
use super::machine::gib;
use crate::archive::{
    Answer, Archive, Kind, Limits, Offers, PassedOver, Prober, Runner, SUITES, Wanted, entries,
};
use crate::context::Context;
use crate::error::Result;
use crate::kernels;
use crate::process::is_installed;
use crate::progress::Progress;
use crate::sysroot::{self, PACKAGES, archive_uris};
use crate::xen::series::SUPPORTED;
use crate::xen::source::held;

/// How much of the time is for the indices; the rest is for asking for files.
const REFRESH: Duration = Duration::from_secs(20);
/// For one file's first byte.
const ANSWER: Duration = Duration::from_secs(10);

const LATER: &str = "run it again: a download goes on from where it was. If it stays so, name another mirror of Debian's in \
                     apt's sources and run `apt-get update`";
const XEN_REMEDY: &str = "hand Xen's source over by --xen-source FILE|DIR or LACUNA_XEN_SOURCE";

/// Looks at all of it.
pub(super) fn checks(context: &Context, until: Instant) -> Vec<Check> {
    let stamps = stamps(context);
    let mut checks = Vec::new();
    if is_installed("apt-get") {
        checks.extend(archive(context, until, &stamps));
    }
    checks.push(cache(context, &stamps));
    checks
}

fn archive(context: &Context, until: Instant, stamps: &[String]) -> Vec<Check> {
    let progress = Progress::begin("looking at the archive");
    let looked = look(context, until, stamps, &progress);
    looked.unwrap_or_else(|error| vec![Check::fail("archive", one_line(&error.to_string()), LATER)])
}

fn look(context: &Context, until: Instant, stamps: &[String], progress: &Progress) -> Result<Vec<Check>> {
    let left = until.saturating_duration_since(Instant::now());
    let limits = Limits {
        refresh: REFRESH.min(left),
        silence: Duration::from_secs(10),
        retries: 0,
        answer: ANSWER,
        ..Limits::default()
    };
    let kinds = [Kind::Sources, Kind::Binaries("amd64")];
    let listed = entries(context, SUITES, &kinds)?;
    let archive = Archive::open(context, "doctor", Runner::Host, &listed, limits, progress)?;
    let (main, _) = archive_uris(context)?;
    let mut checks = vec![answers(&main, &archive.suites(), archive.passed_over())];
    let prober = Prober::new(ANSWER, until);
    let sources = within(&prober, || archive.sources("xen"))?;
    let mut xen: Vec<Check> = Vec::new();
    for series in SUPPORTED {
        let name = format!("Xen {}", series.name());
        let is_cached = held(context, series).is_some();
        let offers = sources.clone().map(|offers| offers.of(series.name()));
        xen.push(origin(&name, offers, &prober, XEN_REMEDY, is_cached));
    }
    one_is_enough(&mut xen);
    checks.extend(xen);
    for wanted in kernels::GUESTS {
        let offers = within(&prober, || {
            archive.kernels(Wanted {
                series: Some(wanted.series),
                flavour: "amd64",
            })
        })?;
        let is_cached = stamps.contains(&format!("kernel-{}", wanted.series));
        let name = format!("Linux {}", wanted.series);
        checks.push(origin(&name, offers, &prober, LATER, is_cached));
    }
    checks.push(packages(context, limits, &prober, stamps, progress)?);
    Ok(checks)
}

/// The archive itself: which suites answer.
fn answers(uri: &str, suites: &[&str], passed_over: &[PassedOver]) -> Check {
    let name = "archive";
    if !suites.contains(&sysroot::SUITE) {
        let why = passed_over
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        return Check::fail(name, format!("{uri} has no {}: {why}", sysroot::SUITE), LATER);
    }
    let mut parts = vec![format!("{uri} has {}", suites.join(", "))];
    parts.extend(passed_over.iter().map(ToString::to_string));
    let seen = parts.join("; ");
    if passed_over.iter().any(|over| !over.unusable) {
        return Check::warn(name, seen, LATER);
    }
    Check::ok(name, seen)
}

/// Reads indices while there is time.
fn within(prober: &Prober, read: impl FnOnce() -> Result<Offers>) -> Result<Option<Offers>> {
    if prober.is_over() {
        return Ok(None);
    }
    read().map(Some)
}

/// Where one thing would come from.
fn origin(name: &str, offers: Option<Offers>, prober: &Prober, remedy: &str, is_cached: bool) -> Check {
    let Some(offers) = offers else {
        return undecided(name);
    };
    let suites = |over: &PassedOver| !over.what.starts_with("the suite ");
    let (chosen, mut passed_over) = prober.first_served(offers);
    // What is said of suites has a check of its own.
    passed_over.retain(suites);
    if chosen.is_none() && prober.is_over() {
        return undecided(name);
    }
    judge(
        name,
        chosen.map(|candidate| candidate.to_string()),
        &passed_over,
        remedy,
        is_cached,
    )
}

/// For what the time was not enough for.
fn undecided(name: &str) -> Check {
    Check::warn(
        name,
        "not looked at to the end: the time was up",
        "run it again: the archive's indices are kept, and only what has changed is asked for",
    )
}

fn judge(
    name: &str,
    chosen: Option<String>,
    passed_over: &[PassedOver],
    remedy: &str,
    is_cached: bool,
) -> Check {
    let over: Vec<String> = passed_over.iter().map(ToString::to_string).collect();
    let over = over.join("; ");
    match chosen {
        Some(chosen) if over.is_empty() => Check::ok(name, format!("{chosen} is served")),
        Some(chosen) => Check::ok(name, format!("{chosen} is served; passed over: {over}")),
        None => {
            let seen = if over.is_empty() {
                "no index lists one".to_owned()
            } else {
                format!("none is served: {over}")
            };
            if is_cached {
                Check::ok(name, format!("the cache has it; from the archive {seen}"))
            } else {
                Check::fail(name, seen, remedy)
            }
        }
    }
}

/// Any one series of Xen will do: those that cannot be had are warnings then.
fn one_is_enough(checks: &mut [Check]) {
    use super::State;
    if checks.iter().any(|check| check.state == State::Ok) {
        for check in checks.iter_mut().filter(|check| check.state == State::Fail) {
            check.state = State::Warn;
        }
    }
}

/// The sysroot's packages, with all that they depend on.
fn packages(
    context: &Context,
    limits: Limits,
    prober: &Prober,
    stamps: &[String],
    progress: &Progress,
) -> Result<Check> {
    const NAME: &str = "packages";
    if stamps.iter().any(|stamp| stamp == "sysroot") {
        return Ok(Check::ok(NAME, "the cache has the sysroot"));
    }
    if prober.is_over() {
        return Ok(undecided(NAME));
    }
    let listed = entries(context, &[sysroot::SUITE], &[Kind::Binaries("amd64")])?;
    let archive = Archive::open(context, "doctor", Runner::Host, &listed, limits, progress)?;
    let wanted: Vec<&str> = ["?essential", "apt"]
        .into_iter()
        .chain(PACKAGES.iter().copied())
        .collect();
    let files = archive.closure(&wanted)?;
    let answers = prober.survey(&files);
    let missing: Vec<String> = files
        .iter()
        .zip(&answers)
        .filter_map(|(file, answer)| Some(format!("{}: {}", file.uri, answer.trouble()?)))
        .collect();
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let served = answers.iter().filter(|answer| **answer == Answer::Served).count();
    let seen = format!(
        "{served} of {} files for the sysroot are served, {} MiB in all",
        files.len(),
        bytes >> 20
    );
    Ok(match missing.first() {
        Some(_) if prober.is_over() => undecided(NAME),
        _ if files.is_empty() => Check::fail(NAME, "apt names no file for the sysroot", LATER),
        None => Check::ok(NAME, seen),
        Some(first) => Check::fail(NAME, format!("{seen}; first missing: {first}"), LATER),
    })
}

/// The steps that were done, by the names of their stamps.
fn stamps(context: &Context) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(context.cached("stamps"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// What is in the cache.
fn cache(context: &Context, stamps: &[String]) -> Check {
    let mut sizes: Vec<(String, u64)> = fs::read_dir(&context.cache)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entry.path().is_dir().then(|| (name, size_below(&entry.path())))
        })
        .filter(|(_, size)| *size > 0)
        .collect();
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    describe_cache(&context.cache, stamps, &sizes)
}

fn describe_cache(place: &Path, stamps: &[String], sizes: &[(String, u64)]) -> Check {
    let total: u64 = sizes.iter().map(|(_, size)| size).sum();
    let parts: Vec<String> = sizes
        .iter()
        .map(|(name, size)| format!("{name} {} MiB", size >> 20))
        .collect();
    let steps = if stamps.is_empty() {
        "no step done yet".to_owned()
    } else {
        format!("steps done: {}", stamps.join(", "))
    };
    Check::ok(
        "cache",
        format!(
            "{} at {} ({}); {steps}",
            gib(total),
            place.display(),
            parts.join(", ")
        ),
    )
}

/// Bytes that a directory takes on disk; what cannot be looked at counts nothing.
fn size_below(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    let mut pending = vec![directory.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn over(what: &str, reason: &str, unusable: bool) -> PassedOver {
        PassedOver {
            what: what.to_owned(),
            reason: reason.to_owned(),
            unusable,
        }
    }

    #[test]
    fn an_archive_without_the_sysroots_suite_fails() {
        let gone = [over(
            "the suite trixie of http://a.example/",
            "404 Not Found",
            true,
        )];
        let check = answers("http://a.example/", &["bookworm"], &gone);
        assert_eq!(check.state, State::Fail);
        assert!(check.seen.contains("404 Not Found"), "{}", check.seen);
        let gone = [over("the suite sid of http://a.example/", "404 Not Found", true)];
        let check = answers("http://a.example/", &["trixie"], &gone);
        assert_eq!(check.state, State::Ok);
        assert!(check.seen.contains("sid"), "{}", check.seen);
        let old = [over("the suite trixie of http://a.example/", "time-out", false)];
        assert_eq!(answers("http://a.example/", &["trixie"], &old).state, State::Warn);
    }

    #[test]
    fn what_is_nowhere_fails_unless_the_cache_has_it() {
        let gone = [over("xen 4.20.4-1 (trixie)", "404 Not Found", true)];
        let check = judge("Xen 4.20", None, &gone, XEN_REMEDY, false);
        assert_eq!(check.state, State::Fail);
        assert!(
            check.seen.contains("xen 4.20.4-1 (trixie): 404"),
            "{}",
            check.seen
        );
        assert_eq!(check.remedy.as_deref(), Some(XEN_REMEDY));
        assert_eq!(judge("Xen 4.20", None, &gone, XEN_REMEDY, true).state, State::Ok);
        assert_eq!(
            judge("Xen 4.20", None, &[], XEN_REMEDY, false).seen,
            "no index lists one"
        );
        let chosen = Some("xen 4.20.2-1 (trixie)".to_owned());
        let check = judge("Xen 4.20", chosen, &gone, XEN_REMEDY, false);
        assert_eq!(check.state, State::Ok);
        assert!(
            check
                .seen
                .starts_with("xen 4.20.2-1 (trixie) is served; passed over: "),
            "{}",
            check.seen
        );
    }

    #[test]
    fn one_series_of_xen_is_enough() {
        let mut checks = [
            Check::fail("Xen 4.20", "none", "hand it over"),
            Check::ok("Xen 4.17", "served"),
        ];
        one_is_enough(&mut checks);
        assert_eq!(checks[0].state, State::Warn);
        let mut checks = [Check::fail("Xen 4.20", "none", "hand it over")];
        one_is_enough(&mut checks);
        assert_eq!(checks[0].state, State::Fail);
    }

    #[test]
    fn the_cache_is_described_by_steps_and_sizes() {
        let sizes = [("sysroot".to_owned(), 3 << 30), ("xen".to_owned(), 512 << 20)];
        let check = describe_cache(Path::new("/c"), &["sysroot".to_owned()], &sizes);
        assert_eq!(
            check.seen,
            "3.5 GiB at /c (sysroot 3072 MiB, xen 512 MiB); steps done: sysroot"
        );
        assert!(
            describe_cache(Path::new("/c"), &[], &[])
                .seen
                .contains("no step done yet")
        );
    }
}
