//! How an operation fails: what happened, what to do, and the class of the failure.
//!
//! Each layer names its own failures: `failures.rs` in `xen/`, `source/`, `os/linux/` and `os/windows/` says
//! what each of its errors means and what to do about it.

use std::fmt;

/// Class of a failure. Scripts distinguish the classes by the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Anything else.
    Failed,
    /// Refused: it would not be safe, or is not known to be.
    Refused,
    /// What was named does not exist.
    NotFound,
    /// This machine does not run under Xen, or its kernel has no driver for hypercalls.
    NoXen,
    /// The hypervisor is a Xen without Lacuna.
    StockXen,
    /// The hypervisor's interfaces have versions that this tool does not know.
    OtherVersion,
    /// The user, or this domain, lacks the permission.
    NoRights,
}

impl Class {
    /// Returns the exit status of a process that fails in this way. Besides these there are 0 (done) and 2
    /// (wrong usage).
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::NoXen => 5,
            Self::StockXen => 6,
            Self::OtherVersion => 7,
            Self::NoRights => 8,
        }
    }
}

/// Why a guest is left alone, as the `reason` of events and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// None of the below.
    #[default]
    Other,
    /// A PV guest, or the domain that asks.
    NotHvm,
    /// No kernel that this version knows was found; the guest may be booting.
    UnknownKernel,
    /// Neither a layout nor the headers of the guest's kernel are here.
    NoLayout,
    /// The kernel writes a pattern into free pages and checks it.
    PagePoison,
    /// What the guest's memory says contradicts itself.
    Contradiction,
    /// The scan and the guest's own counters disagree.
    CountsDisagree,
    /// The guest has a feature with which sharing is refused, or is being migrated.
    Blocked,
    /// Another operation runs on the domain.
    Busy,
    /// The domain does not exist any more.
    Gone,
    /// The guest has not run yet, or not for long, so its kernel cannot be identified yet.
    Booting,
}

impl Cause {
    /// Returns the name, which is stable: events and metrics contain it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::NotHvm => "not_hvm",
            Self::UnknownKernel => "unknown_kernel",
            Self::NoLayout => "no_layout",
            Self::PagePoison => "page_poison",
            Self::Contradiction => "contradiction",
            Self::CountsDisagree => "counts_disagree",
            Self::Blocked => "blocked",
            Self::Busy => "busy",
            Self::Gone => "gone",
            Self::Booting => "booting",
        }
    }
}

/// Additions to a failure for a guest whose memory is a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clues {
    /// The remedy for a file: trying again does not help, and a file does not change under the reader.
    pub remedy: Option<&'static str>,
    /// A frame that is needed and absent from the file.
    pub absent: Option<u64>,
    /// How many bytes further on something lies than where the file has it, by the guest's own word.
    pub displaced: Option<u64>,
    /// Memory holds a Linux kernel, whether it runs or not.
    pub is_linux: bool,
    /// The guest's kernel was not confirmed in memory as the file has it.
    pub is_unconfirmed: bool,
    /// The failure says that the file is cut short: that need not be added.
    pub is_cut_short: bool,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The class.
    pub class: Class,
    /// What happened.
    pub what: String,
    /// What to do, where there is something to do.
    pub remedy: Option<String>,
    /// Why, as one word.
    pub cause: Cause,
    /// Additions that apply if the guest is a file.
    pub clues: Clues,
}

impl Failure {
    /// Creates a failure of `class`.
    pub fn new(class: Class, what: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self {
            class,
            what: what.to_string(),
            remedy: Some(remedy.into()),
            cause: Cause::Other,
            clues: Clues::default(),
        }
    }

    /// Creates a failure without a remedy: `what` says everything.
    pub fn plain(class: Class, what: impl fmt::Display) -> Self {
        Self {
            class,
            what: what.to_string(),
            remedy: None,
            cause: Cause::Other,
            clues: Clues::default(),
        }
    }

    /// Returns the same failure, with its cause named.
    #[must_use]
    pub fn because(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// Returns the same failure, with additions that apply if the guest is a file.
    #[must_use]
    pub fn with_clues(self, clues: Clues) -> Self {
        Self { clues, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.class == Class::Refused {
            "refused"
        } else {
            "error"
        };
        write!(formatter, "{prefix}: {}", self.what)?;
        if let Some(remedy) = &self.remedy {
            write!(formatter, "\n  help: {remedy}")?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::plain(Class::Failed, error)
    }
}
