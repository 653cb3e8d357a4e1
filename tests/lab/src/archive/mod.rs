//! The Debian archive that this machine is set up to use, by suite and version: what its signed indices list,
//! and what it really serves. An archive lists files that it no longer has, and moves others at will; so
//! everything that is downloaded is looked for among all versions that any of its suites lists, newest first,
//! until one is served.
//!
//! [`Archive::open`] brings the indices up to date; apt checks their signatures. [`Archive::sources`] and
//! [`Archive::kernels`] tell what there is, as [`Offers`]; [`Archive::first_served`] downloads the first that
//! can be had.

mod apt;
mod fetch;
mod index;
mod kernel;
#[cfg(test)]
mod loopback;
mod probe;
#[cfg(test)]
mod tests;
mod version;

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub(crate) use apt::Runner;
use apt::{Apt, Index};
pub(crate) use fetch::{Chosen, Trouble};
pub(crate) use kernel::Wanted;
pub(crate) use probe::{Answer, Prober};

use crate::context::Context;
use crate::error::Result;
use crate::progress::Progress;
use crate::sysroot::archive_uris;

/// The suites whose indices are asked: of the sysroot's release and of the one before, whose packages still
/// build there.
pub(crate) const SUITES: &[&str] = &[
    "trixie",
    "trixie-updates",
    "trixie-security",
    "trixie-proposed-updates",
    "trixie-backports",
    "bookworm",
    "bookworm-updates",
    "bookworm-security",
    "bookworm-backports",
];

/// What kind of index a suite is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Source packages.
    Sources,
    /// Binary packages of an architecture.
    Binaries(&'static str),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sources => f.write_str("sources"),
            Self::Binaries(architecture) => write!(f, "packages for {architecture}"),
        }
    }
}

/// One line of a list of package sources.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    uri: String,
    suite: String,
    kind: Kind,
    /// Trusted without a signature: for archives that a test makes.
    trusted: bool,
}

impl Entry {
    /// Names one kind of index of a suite's component main.
    pub(crate) fn new(uri: &str, suite: &str, kind: Kind) -> Self {
        Self {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
            kind,
            trusted: false,
        }
    }

    /// The line as apt reads it.
    fn line(&self, keyring: &str) -> String {
        let (kind, architecture) = match self.kind {
            Kind::Sources => ("deb-src", String::new()),
            Kind::Binaries(architecture) => ("deb", format!("arch={architecture}")),
        };
        let trust = if self.trusted { "trusted=yes" } else { keyring };
        let options = [architecture.as_str(), trust].join(" ");
        let options = match options.trim() {
            "" => String::new(),
            options => format!("[{options}] "),
        };
        format!("{kind} {options}{} {} main\n", self.uri, self.suite)
    }

    fn is(&self, index: &Index) -> bool {
        let bare = |uri: &str| uri.trim_end_matches('/').to_owned();
        self.kind == index.kind && self.suite == index.suite && bare(&self.uri) == bare(&index.uri)
    }
}

/// Lists `kinds` of each of `suites`, where this machine's archive has them. Suites for security fixes are
/// looked for in the archive for these, if the machine uses one.
pub(crate) fn entries(context: &Context, suites: &[&str], kinds: &[Kind]) -> Result<Vec<Entry>> {
    let (main, security) = archive_uris(context)?;
    let mut found = Vec::new();
    for suite in suites {
        let uri = if suite.ends_with("-security") {
            security.as_deref()
        } else {
            Some(main.as_str())
        };
        let of_suite = uri
            .iter()
            .flat_map(|uri| kinds.iter().map(move |kind| Entry::new(uri, suite, *kind)));
        found.extend(of_suite);
    }
    Ok(found)
}

/// Bounds on what is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For bringing all indices up to date.
    pub(crate) refresh: Duration,
    /// For a server that sends nothing, or next to nothing.
    pub(crate) silence: Duration,
    /// The bytes which must come in that time.
    pub(crate) least: u64,
    /// How often apt itself tries again after a failure of the network.
    pub(crate) retries: u32,
    /// For the first byte of a file.
    pub(crate) answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(900),
            silence: Duration::from_secs(30),
            // 2 KiB a second: at that rate a kernel takes 15 hours.
            least: 60 << 10,
            retries: 2,
            answer: Duration::from_secs(10),
        }
    }
}

/// A file of the archive, as its signed index describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RemoteFile {
    /// Its name without the directory.
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
    /// In hexadecimal.
    pub(crate) sha256: String,
    /// The whole address.
    pub(crate) uri: String,
}

/// A version of something, with the files that make it up: they are of use together only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Candidate {
    /// The package: `xen`, `linux-image-6.12.107+deb13-amd64`.
    pub(crate) package: String,
    /// Debian's version.
    pub(crate) version: String,
    /// The suites whose index lists it.
    pub(crate) suites: Vec<String>,
    /// What is to be downloaded.
    pub(crate) files: Vec<RemoteFile>,
    /// What no index lists, without which the rest is of no use.
    pub(crate) missing: Option<String>,
}

impl Candidate {
    /// Whether the upstream version belongs to a release series such as `4.20`.
    pub(crate) fn is_of(&self, series: &str) -> bool {
        let rest = version::upstream(&self.version).strip_prefix(series);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    }
}

impl Candidate {
    fn is_same(&self, other: &Self) -> bool {
        self.package == other.package && self.files == other.files && self.missing == other.missing
    }

    /// Why it is passed over.
    fn passed_over(&self, reason: String) -> PassedOver {
        PassedOver {
            what: self.to_string(),
            reason,
            unusable: true,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({})",
            self.package,
            self.version,
            self.suites.join(", ")
        )
    }
}

/// Something that was not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PassedOver {
    /// A suite or a candidate.
    pub(crate) what: String,
    /// In one line.
    pub(crate) reason: String,
    /// Nothing of it can be used; else an earlier state is.
    pub(crate) unusable: bool,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

/// What the indices list of one thing.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Offers {
    /// Newest first.
    pub(crate) candidates: Vec<Candidate>,
    /// Suites that could not be looked at.
    pub(crate) passed_over: Vec<PassedOver>,
}

impl Offers {
    /// Keeps the candidates of one release series.
    pub(crate) fn of(mut self, series: &str) -> Self {
        self.candidates.retain(|candidate| candidate.is_of(series));
        self
    }
}

/// The archive, its indices at hand.
pub(crate) struct Archive<'a> {
    apt: Apt<'a>,
    indices: Vec<Index>,
    passed_over: Vec<PassedOver>,
    /// The packages of kernels, once they were asked for: reading the indices takes longer than all else.
    linux: OnceCell<Vec<Package>>,
}

impl<'a> Archive<'a> {
    /// Brings the indices of `entries` up to date, and keeps them under `name`. A suite that cannot be had is
    /// passed over with its reason.
    pub(crate) fn open(
        context: &Context,
        name: &str,
        runner: Runner<'a>,
        entries: &[Entry],
        limits: Limits,
        progress: &Progress,
    ) -> Result<Self> {
        let log = context.step_log(&format!("archive-{name}"));
        let directory = context.cached("archive").join(name);
        Self::open_at(directory, log, runner, entries, limits, progress)
    }

    fn open_at(
        directory: PathBuf,
        log: PathBuf,
        runner: Runner<'a>,
        entries: &[Entry],
        limits: Limits,
        progress: &Progress,
    ) -> Result<Self> {
        let apt = Apt::new(runner, directory, limits, log)?;
        let (indices, passed_over) = apt.refresh(entries, progress)?;
        Ok(Self {
            apt,
            indices,
            passed_over,
            linux: OnceCell::new(),
        })
    }

    /// The suites of which something is at hand, in the order in which they were named.
    pub(crate) fn suites(&self) -> Vec<&str> {
        let mut suites: Vec<&str> = Vec::new();
        for index in &self.indices {
            if !suites.contains(&index.suite.as_str()) {
                suites.push(&index.suite);
            }
        }
        suites
    }

    /// The suites that were passed over or not brought up to date.
    pub(crate) fn passed_over(&self) -> &[PassedOver] {
        &self.passed_over
    }

    /// Lists every version of a source package, with its upstream tarball.
    pub(crate) fn sources(&self, package: &str) -> Result<Offers> {
        let mut candidates = Vec::new();
        for index in self.indices.iter().filter(|index| index.kind == Kind::Sources) {
            for paragraph in self.apt.read(index, |name| name == package)? {
                let files = paragraph.tarballs(&index.uri);
                if !files.is_empty() {
                    candidates.push(Candidate {
                        package: package.to_owned(),
                        version: paragraph.field("Version").to_owned(),
                        suites: vec![index.suite.clone()],
                        files,
                        missing: None,
                    });
                }
            }
        }
        Ok(self.offers(candidates))
    }

    /// Lists the versions of every binary package whose name is `wanted`, each by itself.
    pub(crate) fn binaries(&self, wanted: impl Fn(&str) -> bool) -> Result<Offers> {
        let found = self.packages(wanted)?;
        let candidates = found.into_iter().map(|package| Candidate {
            package: package.name,
            version: package.version,
            suites: vec![package.suite],
            files: vec![package.file],
            missing: None,
        });
        Ok(self.offers(candidates.collect()))
    }

    /// Returns the files that installing `packages` into an empty system takes, with all they depend on.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<RemoteFile>> {
        Ok(self
            .apt
            .closure(packages)?
            .lines()
            .filter_map(fetch::parse_uri)
            .collect())
    }

    fn packages(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Package>> {
        let mut found = Vec::new();
        for index in &self.indices {
            if index.kind == Kind::Sources {
                continue;
            }
            for paragraph in self.apt.read(index, &wanted)? {
                if let Some(file) = paragraph.package_file(&index.uri) {
                    found.push(Package {
                        name: paragraph.field("Package").to_owned(),
                        version: paragraph.field("Version").to_owned(),
                        depends: paragraph.field("Depends").to_owned(),
                        suite: index.suite.clone(),
                        file,
                    });
                }
            }
        }
        Ok(found)
    }

    /// Puts candidates in order, newest first, and makes one of those that are the same file.
    fn offers(&self, candidates: Vec<Candidate>) -> Offers {
        let mut sorted: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            match sorted.iter_mut().find(|known| known.is_same(&candidate)) {
                Some(known) => known.suites.extend(candidate.suites),
                None => sorted.push(candidate),
            }
        }
        sorted.sort_by(|left, right| newer_first(&left.version, &right.version));
        Offers {
            candidates: sorted,
            passed_over: self.passed_over.clone(),
        }
    }
}

/// A binary package as an index describes it.
struct Package {
    name: String,
    version: String,
    depends: String,
    suite: String,
    file: RemoteFile,
}

fn newer_first(left: &str, right: &str) -> Ordering {
    version::compare(right, left)
}
