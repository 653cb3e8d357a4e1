//! What goes wrong with the hypervisor, and what to do about it.

use lacuna_core::Status;
use lacuna_core::abi::VERSION;

use super::answer::explain_status;
use super::domain::DomainError;
use super::engine::EngineError;
use super::privcmd::PrivcmdError;
use crate::failure::{Cause, Class, Clues, Failure};

/// Returns why the engine refused with `status`.
fn cause_of(status: Status) -> Cause {
    match status {
        Status::NotHap
        | Status::Passthrough
        | Status::Altp2m
        | Status::Nested
        | Status::LogDirty
        | Status::MemEvents
        | Status::PvhDom0
        | Status::PopulateOnDemand
        | Status::NoZeroFrames
        | Status::Blocked => Cause::Blocked,
        Status::Dying => Cause::Gone,
        Status::CountsDisagree => Cause::CountsDisagree,
        Status::KernelChanged | Status::NoVcpuOnline | Status::Ended | Status::CountersUnreadable => {
            Cause::Contradiction
        }
        _ => Cause::Other,
    }
}

impl From<PrivcmdError> for Failure {
    fn from(error: PrivcmdError) -> Self {
        let (class, remedy) = match (&error, error.errno()) {
            (PrivcmdError::Open { .. }, Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => (
                Class::NoXen,
                "this needs a Xen Dom0: boot under Xen, or load the module xen_privcmd",
            ),
            (PrivcmdError::NoVersion { .. }, _) => (
                Class::OtherVersion,
                "the tool knows Xen 4.17 to 4.21; with XSM, the policy may also let this domain ask for nothing",
            ),
            (_, Some(libc::EPERM | libc::EACCES)) => (
                Class::NoRights,
                "run it as root in Dom0; with XSM, check the policy",
            ),
            _ => (Class::Failed, "see `xl dmesg` for what the hypervisor has to say"),
        };
        Self::new(class, error, remedy)
    }
}

impl From<DomainError> for Failure {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::NotFound(_) => {
                Self::new(Class::NotFound, error, "`xl list` shows the domains there are")
                    .because(Cause::Gone)
            }
            DomainError::Ambiguous { .. } => Self::new(Class::Failed, error, "name the domain by its number"),
            DomainError::Xenstore(_) => Self::new(
                Class::Failed,
                error,
                "is xenstored running? A domain can also be named by its number",
            ),
            DomainError::Privcmd(error) => error.into(),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::Refused { status, values } => {
                let answer = explain_status(*status, values);
                Self {
                    class: answer.class,
                    what: answer.what,
                    remedy: Some(answer.remedy),
                    cause: cause_of(*status),
                    clues: Clues::default(),
                }
            }
            EngineError::NotThere => Self::new(
                Class::StockXen,
                error,
                format!(
                    "boot the Xen with Lacuna's patches: `xl info` has lacuna-{VERSION} among its xen_caps then (docs/install.md)"
                ),
            ),
            EngineError::UnknownStatus { .. }
            | EngineError::OtherVersion { .. }
            | EngineError::Offers { .. } => Self::new(
                Class::OtherVersion,
                error,
                "install the `lacuna` that was built together with this hypervisor",
            ),
            EngineError::NotHvm { .. } | EngineError::Myself { .. } => Self::new(
                Class::Refused,
                error,
                "only HVM and PVH guests other than this domain can be worked on",
            )
            .because(Cause::NotHvm),
            EngineError::Forbidden { .. } => Self::new(
                Class::NoRights,
                error,
                "allow the domctl to this domain in the FLASK policy, or use Dom0",
            ),
            EngineError::Busy { .. } => {
                Self::new(Class::Failed, error, "wait for it to end and try again").because(Cause::Busy)
            }
            EngineError::Gone { .. } => Self::plain(Class::NotFound, error).because(Cause::Gone),
            EngineError::NoMemory { .. } => Self::new(
                Class::Failed,
                error,
                "free some host memory (`xl info` shows it) and try again",
            ),
            EngineError::Privcmd(_) => match error {
                EngineError::Privcmd(inner) => inner.into(),
                other => Self::plain(Class::Failed, other),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn open(number: i32) -> PrivcmdError {
        PrivcmdError::Open {
            device: "/dev/xen/privcmd",
            cause: io::Error::from_raw_os_error(number),
        }
    }

    fn call(number: i32) -> PrivcmdError {
        PrivcmdError::Call {
            call: "a call",
            cause: io::Error::from_raw_os_error(number),
        }
    }

    #[test]
    fn what_is_missing_of_a_host_has_an_exit_status_of_its_own() {
        let no_version = PrivcmdError::NoVersion {
            interface: "domctl",
            tried: "0x17".to_owned(),
            xen: "4.99".to_owned(),
        };
        for (error, status) in [
            (open(libc::ENOENT), 5),
            (open(libc::ENXIO), 5),
            (open(libc::EACCES), 8),
            (no_version, 7),
            (call(libc::EPERM), 8),
            (call(libc::EFAULT), 1),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.class.exit_status(), status, "{failure}");
            assert!(failure.remedy.is_some(), "{failure}");
        }
        for (error, status) in [
            (EngineError::NotThere, 6),
            (EngineError::Offers { version: 99 }, 7),
            (
                EngineError::UnknownStatus {
                    code: 9999,
                    values: [0; 4],
                },
                7,
            ),
            (EngineError::Forbidden { domain: 1 }, 8),
            (EngineError::Gone { domain: 1 }, 4),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.class.exit_status(), status, "{failure}");
        }
        // The version that the operator is to look for is the one that this tool speaks.
        let told = Failure::from(EngineError::NotThere).to_string();
        assert!(told.contains(&format!("lacuna-{VERSION}")), "{told}");
    }
}
