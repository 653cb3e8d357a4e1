//! Why a scenario failed: what was looked at, what was expected, what was seen.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

/// A scenario's own result.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// What a scenario fails with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Something is not as expected.
    #[error("{what}: expected {expected}, saw {seen}")]
    Differs {
        /// What was looked at.
        what: String,
        /// What was expected.
        expected: String,
        /// What was seen.
        seen: String,
    },
    /// A program in dom0 ended badly.
    #[error("`{command}` ended with {status}: {output}")]
    Program {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s; last seen: {seen}", limit.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was seen last.
        seen: String,
    },
    /// Nothing failed: the scenario goes on after a reboot of the host.
    #[error("a reboot of the host, which this host does not do")]
    Reboot,
    /// dom0's own system calls failed.
    #[error("dom0: {0}")]
    System(#[from] io::Error),
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        Self::System(error.into())
    }
}

impl Failure {
    /// Returns what was looked at, what was expected, what was seen.
    pub(crate) fn into_parts(self) -> (String, String, String) {
        match self {
            Self::Differs { what, expected, seen } => (what, expected, seen),
            Self::Program {
                command,
                status,
                output,
            } => (
                format!("`{command}`"),
                "success".to_owned(),
                format!("{status}: {output}"),
            ),
            Self::Late { what, limit, seen } => (what, format!("within {} s", limit.as_secs()), seen),
            reboot @ Self::Reboot => ("the host".to_owned(), "no reboot".to_owned(), reboot.to_string()),
            Self::System(error) => (
                "dom0's own system calls".to_owned(),
                "success".to_owned(),
                error.to_string(),
            ),
        }
    }
}

/// Fails unless `seen` is `expected`.
pub(crate) fn equal<T: PartialEq + Debug + ?Sized>(what: &str, expected: &T, seen: &T) -> Result<()> {
    if expected == seen {
        Ok(())
    } else {
        Err(differs(what, &format!("{expected:?}"), &format!("{seen:?}")))
    }
}

/// Fails unless `holds`; `expected` and `seen` say what was compared.
pub(crate) fn ensure(holds: bool, what: &str, expected: &str, seen: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(differs(what, expected, seen))
    }
}

/// Returns the failure itself.
pub(crate) fn differs(what: &str, expected: &str, seen: &str) -> Failure {
    Failure::Differs {
        what: what.to_owned(),
        expected: expected.to_owned(),
        seen: seen.to_owned(),
    }
}
