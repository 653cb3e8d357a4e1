//! Checks a host: whether Lacuna's parts are installed and belong together, and whether it can work for each
//! guest.
//!
//! Each finding is a [`Check`]. `libraries` looks at what `xl` and libvirt load, `guests` at the domains; the
//! rest is here. Nothing is changed. A guest is stopped for the moment that reading its registers takes, if
//! it has no profile yet.

mod guests;
mod libraries;

use std::path::Path;

use lacuna_core::abi::VERSION;

use super::guest::open_lacuna;
use super::host::{ThisHost, Xen};
use crate::failure::{Class, Failure};
use crate::os::Sources;
use crate::xen::hypervisor::{HypervisorInfo, SYSFS, hypervisor_info};

pub use libraries::{SearchPaths, check_libraries};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All is well.
    Good,
    /// Lacuna works, but less well than it could, or not as the operator probably intends.
    Warning,
    /// Lacuna does not work there.
    Bad,
}

impl Verdict {
    /// Returns the word that text and JSON have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was checked: `hypervisor`, `xl`, `guest 3 (web)`.
    pub subject: String,
    /// The result.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// What to do, where there is something to do.
    pub remedy: Option<String>,
    /// The class of the failure, if it is one.
    pub class: Option<Class>,
}

impl Check {
    /// Creates a finding that all is well.
    pub fn good(subject: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            verdict: Verdict::Good,
            what: what.into(),
            remedy: None,
            class: None,
        }
    }

    /// Creates a finding that something is wrong, with the remedy.
    pub fn wrong(
        subject: impl Into<String>,
        verdict: Verdict,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict,
            remedy: Some(remedy.into()),
            ..Self::good(subject, what)
        }
    }

    /// Creates a finding from a failure.
    pub fn failed(subject: impl Into<String>, verdict: Verdict, failure: Failure) -> Self {
        Self {
            subject: subject.into(),
            verdict,
            what: failure.what,
            remedy: failure.remedy,
            class: Some(failure.class),
        }
    }
}

/// Returns the exit status for `checks`: that of the first failure that keeps Lacuna from working (1 if it
/// has no class), 3 if there are only warnings, 0 if all is well.
pub fn exit_status(checks: &[Check]) -> u8 {
    let bad = checks.iter().find(|check| check.verdict == Verdict::Bad);
    match bad {
        Some(check) => check.class.unwrap_or(Class::Failed).exit_status(),
        None if checks.iter().any(|check| check.verdict == Verdict::Warning) => Class::Refused.exit_status(),
        None => 0,
    }
}

/// What the checks need to know besides the host.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Free memory of the host, in MiB, that `lacunad` keeps.
    pub reserve_mib: u64,
    /// Where kernels' layouts are.
    pub sources: Sources,
}

/// Checks the host.
pub fn examine(expected: &Expected) -> Vec<Check> {
    let says = hypervisor_info(Path::new(SYSFS));
    let opened = open_lacuna();
    let mut checks = vec![hypervisor(&says, opened.as_ref().err())];
    checks.extend(check_libraries(&SearchPaths::usual(says.release.as_deref())));
    if opened.is_err() {
        return checks;
    }
    match ThisHost::open() {
        Ok(mut host) => {
            checks.push(reserve(&mut host, expected.reserve_mib));
            checks.extend(guests::check_guests(&mut host, &expected.sources));
        }
        Err(failure) => checks.push(Check::failed("host", Verdict::Bad, failure)),
    }
    checks
}

/// Checks which hypervisor runs, and whether this tool belongs to it.
fn hypervisor(says: &HypervisorInfo, failure: Option<&Failure>) -> Check {
    let subject = "hypervisor";
    if let Some(failure) = failure {
        return Check::failed(subject, Verdict::Bad, failure.clone());
    }
    let release = says.release.as_deref().unwrap_or("of an unknown version");
    match says.lacuna {
        Some(version) => Check::good(
            subject,
            format!("Xen {release} with Lacuna: version {version} of the hypercall, which this tool speaks"),
        ),
        None => Check::wrong(
            subject,
            Verdict::Warning,
            format!(
                "Xen {release} with Lacuna, of a build that does not say so in xen_caps; this tool speaks version {VERSION} of the hypercall"
            ),
            "boot the hypervisor that belongs to this tool",
        ),
    }
}

/// Checks the free memory against the reserve, and against what guests could take back.
fn reserve(host: &mut impl Xen, reserve_mib: u64) -> Check {
    let subject = "memory";
    let memory = match host.memory() {
        Ok(memory) => memory,
        Err(failure) => return Check::failed(subject, Verdict::Bad, failure),
    };
    let promised: u64 = host
        .guests()
        .unwrap_or_default()
        .iter()
        .filter_map(|seen| host.state(seen.domain).ok())
        .map(|state| state.given_back())
        .sum();
    let mib = |pages: u64| pages / 256;
    let free = mib(memory.free.saturating_sub(memory.claimed));
    let what = format!(
        "{free} MiB of {} MiB free, reserve {reserve_mib} MiB; guests could take back {} MiB",
        mib(memory.total),
        mib(promised)
    );
    if free < reserve_mib {
        let remedy = "below the reserve nothing more is given back: destroy, move or balloon down a guest, or set reserve_mib in /etc/lacuna/lacunad.toml to what the host can spare";
        return Check::wrong(subject, Verdict::Warning, what, remedy);
    }
    if mib(promised) > free {
        let remedy = "if guests wanted all of it at once, they would wait for memory: start no further guest, or move one";
        return Check::wrong(subject, Verdict::Warning, what, remedy);
    }
    Check::good(subject, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_finding_makes_the_exit_status() {
        let good = || Check::good("a", "b");
        let warning = || Check::wrong("a", Verdict::Warning, "b", "c");
        let bad = |class| Check::failed("a", Verdict::Bad, Failure::plain(class, "b"));
        assert_eq!(exit_status(&[good()]), 0);
        assert_eq!(exit_status(&[warning(), good()]), 3);
        assert_eq!(
            exit_status(&[warning(), bad(Class::StockXen), bad(Class::Failed)]),
            6
        );
        assert_eq!(exit_status(&[Check::wrong("a", Verdict::Bad, "b", "c")]), 1);
    }

    #[test]
    fn a_hypervisor_is_named_with_its_version() {
        let says = HypervisorInfo {
            release: Some("4.20.4".to_owned()),
            lacuna: Some(VERSION),
        };
        let check = hypervisor(&says, None);
        assert_eq!(check.verdict, Verdict::Good);
        assert!(check.what.contains("4.20.4") && check.what.contains(&VERSION.to_string()));
        let mute = hypervisor(&HypervisorInfo::default(), None);
        assert_eq!(mute.verdict, Verdict::Warning);
        let stock = Failure::plain(Class::StockXen, "no");
        let check = hypervisor(&says, Some(&stock));
        assert_eq!(
            (check.verdict, check.class),
            (Verdict::Bad, Some(Class::StockXen))
        );
    }
}
