//! Failures as an operator sees them: what happened, what to do, and an exit status that means something.

use std::fmt;

use crate::os::linux::contents::ContentsError;
use crate::os::linux::identify::IdentifyError;
use crate::os::linux::layout::LayoutError;
use crate::os::linux::profile::BuildError;
use crate::os::linux::stub::StubError;
use crate::os::linux::stub::compile::CompileError;
use crate::os::linux::stub::headers::HeadersError;
use crate::os::linux::stub::run::RunError;
use crate::os::windows::facts::FactsError;
use crate::os::windows::locate::LocateError;
use crate::os::windows::pdb::PdbError;
use crate::os::windows::pe::PeError;
use crate::os::windows::profile::ProfileError;
use crate::source::dump::DumpError;
use crate::xen::answer::explain_status;
use crate::xen::domain::DomainError;
use crate::xen::engine::EngineError;
use crate::xen::privcmd::PrivcmdError;
use lacuna_core::Status;

/// Exit statuses, besides 0 (done) and 2 (usage, given by the command line parser).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Anything else.
    Failed,
    /// It would not be safe, or is not known to be.
    Refused,
    /// What was named does not exist.
    NotFound,
}

impl Class {
    /// The process' exit status.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Refused => 3,
            Self::NotFound => 4,
        }
    }
}

/// Why a guest is left alone, where that has a name of its own: an event's and a metric's `reason`.
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
}

impl Cause {
    /// The name, which does not change.
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
        }
    }

    /// Why the engine refused with `status`.
    fn of_status(status: Status) -> Self {
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
            | Status::Blocked => Self::Blocked,
            Status::Dying => Self::Gone,
            Status::CountsDisagree => Self::CountsDisagree,
            Status::KernelChanged | Status::NoVcpuOnline | Status::Ended | Status::CountersUnreadable => {
                Self::Contradiction
            }
            _ => Self::Other,
        }
    }
}

/// A failure, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which exit status it gets.
    pub class: Class,
    /// What happened.
    pub what: String,
    /// What to do, where there is something to do.
    pub remedy: Option<String>,
    /// Why, as one word.
    pub cause: Cause,
}

impl Failure {
    /// A failure of `class`.
    pub fn new(class: Class, what: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self {
            class,
            what: what.to_string(),
            remedy: Some(remedy.into()),
            cause: Cause::Other,
        }
    }

    /// A failure that `what` says everything about.
    pub fn plain(class: Class, what: impl fmt::Display) -> Self {
        Self {
            class,
            what: what.to_string(),
            remedy: None,
            cause: Cause::Other,
        }
    }

    /// The same failure, with its cause named.
    #[must_use]
    pub fn because(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// The failure as `--json` prints it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": self.what,
            "remedy": self.remedy,
            "exit_status": self.class.exit_status(),
            "verdict": if self.class == Class::Refused { "refused" } else { "failed" },
        })
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

/// Bytes in hexadecimal, two digits each.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('?'));
            }
            text
        })
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::plain(Class::Failed, error)
    }
}

impl From<PrivcmdError> for Failure {
    fn from(error: PrivcmdError) -> Self {
        let remedy = match (&error, error.errno()) {
            (PrivcmdError::Open { .. }, Some(libc::ENOENT)) => {
                "this needs a Xen Dom0: load the module xen_privcmd, or boot under Xen"
            }
            (_, Some(libc::EPERM | libc::EACCES)) => "run it as root in Dom0; with XSM, check the policy",
            _ => "see `xl dmesg` for what the hypervisor has to say",
        };
        Self::new(Class::Failed, error, remedy)
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
                    cause: Cause::of_status(*status),
                }
            }
            EngineError::NotThere => Self::new(
                Class::Failed,
                error,
                "boot the Xen with Lacuna's patches, built with CONFIG_LACUNA=y (docs/install.md)",
            ),
            EngineError::UnknownStatus { .. } | EngineError::OtherVersion { .. } => Self::new(
                Class::Failed,
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
                Class::Failed,
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

impl From<PdbError> for Failure {
    fn from(error: PdbError) -> Self {
        match error {
            PdbError::Io(_) => Self::plain(Class::Failed, error),
            _ => Self::new(
                Class::Refused,
                error,
                "fetch the PDB again from a symbol store; nothing of a damaged one is used",
            ),
        }
    }
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Nothing { .. } => Self::plain(Class::NotFound, error),
            LocateError::Unconfirmed { .. } => Self::new(
                Class::Refused,
                error,
                "give the registers of a virtual CPU (--registers, or --cr3 with --idt or --lstar), or the right PDB (--pdb)",
            ),
            LocateError::Disagree { .. } => Self::new(
                Class::Refused,
                error,
                "the registers are not those of one guest at one moment",
            ),
        }
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        let remedy = match &error {
            ProfileError::OtherKernel { .. } => {
                "name the PDB that the kernel's own debug record names (`lacuna identify`)"
            }
            ProfileError::Unknown(_) => "is it the PDB of a Windows kernel, with its types?",
            ProfileError::Unreadable { .. } => "is the dump whole, and of the kernel's own address space?",
            _ => "the guest's memory does not look as its PDB says",
        };
        Self::new(Class::Refused, error, remedy)
    }
}

impl From<FactsError> for Failure {
    fn from(error: FactsError) -> Self {
        match &error {
            FactsError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                Self::plain(Class::NotFound, error)
            }
            FactsError::Io { .. } => Self::plain(Class::Failed, error),
            FactsError::Malformed { .. } => Self::new(
                Class::Refused,
                error,
                "export it again with this version of lacuna",
            ),
        }
    }
}

impl From<PeError> for Failure {
    fn from(error: PeError) -> Self {
        Self::new(
            Class::Refused,
            error,
            "only whole PE images of x86 and x64 can be inspected",
        )
    }
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        match &error {
            DumpError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                Self::plain(Class::NotFound, error)
            }
            DumpError::OtherFormat { remedy, .. } => Self::new(Class::Failed, &error, *remedy),
            DumpError::Registers { .. } => Self::new(
                Class::Failed,
                error,
                "give the text that QEMU's monitor prints for `info registers -a`, or the JSON of docs/profile.md",
            ),
            DumpError::Truncated { .. } | DumpError::Impossible { .. } => {
                Self::new(Class::Failed, error, "take the dump again, or copy it again")
            }
            DumpError::CutShort { .. } => Self::new(
                Class::Refused,
                error,
                "take the dump again, of all of memory, or copy it again whole",
            ),
            _ => Self::plain(Class::Failed, error),
        }
    }
}

impl From<IdentifyError> for Failure {
    fn from(error: IdentifyError) -> Self {
        match &error {
            IdentifyError::NothingFound { .. } => Self::new(
                Class::NotFound,
                error,
                "a Linux guest has one once it has booted: try again then; of a dump, give its registers (--registers), or look whether it is whole",
            )
            .because(Cause::UnknownKernel),
            IdentifyError::NoneConfirmed { .. }
            | IdentifyError::TooMany { .. }
            | IdentifyError::Ambiguous { .. } => Self::new(
                Class::Refused,
                error,
                "the guest may be booting, or have changed its kernel by kexec: try again; if it lasts, the guest is lying",
            )
            .because(Cause::Contradiction),
        }
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Self {
        let failure = match &error {
            LayoutError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                Self::plain(Class::NotFound, error)
            }
            LayoutError::Io { .. } => Self::plain(Class::Failed, error),
            LayoutError::Format { .. } | LayoutError::Version { .. } | LayoutError::Missing { .. } => {
                Self::new(
                    Class::Failed,
                    error,
                    "make the layout again with this version: `lacuna profile build --headers DIR --out FILE`",
                )
            }
        };
        failure.because(Cause::NoLayout)
    }
}

impl From<StubError> for Failure {
    fn from(error: StubError) -> Self {
        let failure = match &error {
            StubError::Headers(HeadersError::NoConfig(_) | HeadersError::Config(_)) => Self::new(
                Class::NotFound,
                error,
                "give the guest's configuration with --config (on the guest: /boot/config-RELEASE, or /proc/config.gz unpacked)",
            ),
            StubError::Headers(_) | StubError::Compile(CompileError::Headers(_)) => Self::new(
                Class::NotFound,
                error,
                "`lacuna profile fetch`, or install the guest kernel's headers (Debian: linux-headers-RELEASE, both packages) or name them with --headers",
            ),
            StubError::Compile(CompileError::ToolMissing { .. }) => Self::new(
                Class::NotFound,
                error,
                "install gcc (or clang) and binutils, or make the layout on a machine that has them with `lacuna profile build --headers DIR --out FILE` and give it with --layout",
            ),
            StubError::Compile(CompileError::Failed { .. }) => Self::new(
                Class::Failed,
                error,
                "the headers may be incomplete, or too new for this compiler: use the compiler that the guest's kernel was built with",
            ),
            StubError::Run(RunError::NoSandbox) => Self::new(
                Class::Refused,
                error,
                "make the layout on a machine whose kernel has CONFIG_SECCOMP",
            ),
            StubError::Run(RunError::WordSize) => Self::new(
                Class::Failed,
                error,
                "make the layout on a machine that runs them, or use another source: --source vmcoreinfo",
            ),
            StubError::Learn(_) => Self::new(
                Class::Refused,
                error,
                "this kernel's descriptors are not understood: nothing is done with such a guest (docs/adding-a-guest-kernel.md)",
            ),
            StubError::Compile(_) | StubError::Run(_) => Self::plain(Class::Failed, error),
        };
        failure.because(Cause::NoLayout)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let remedy = match &error {
            BuildError::OtherKernel { .. } => {
                "give the headers or the layout of the kernel that the guest runs"
            }
            BuildError::Fact(_) | BuildError::NoMark(_) => {
                "the headers are not those of this very build, or the guest is lying: give the right ones"
            }
            BuildError::NoSymbol(_) => {
                "give the kernel's real System.map with --system-map (Debian: in the package linux-image-RELEASE-dbg)"
            }
            BuildError::SystemMap(_) | BuildError::MapDisagrees { .. } => {
                "give the System.map of the kernel that the guest runs, or leave it out"
            }
            BuildError::Config(_) => {
                "give the configuration of the kernel that the guest runs, or leave it out"
            }
            BuildError::NoBtf => "use another source: --source vmcoreinfo, or --headers DIR",
            BuildError::NoBootValue => {
                "such a kernel could be replaced by kexec unnoticed, so it is left alone"
            }
            BuildError::Contents(ContentsError::Poisoned { .. } | ContentsError::Pattern { .. }) => {
                "boot the guest without page_poison=1, or leave it alone: nothing was changed"
            }
            BuildError::Guard { .. } => {
                "a virtual CPU may have been in a firmware call, or on its way up: try again"
            }
            _ => {
                "the guest may have been changing its memory map, or be lying: try again; nothing was changed"
            }
        };
        let cause = match &error {
            BuildError::OtherKernel { .. } | BuildError::NoSymbol(_) | BuildError::NoMark(_) => {
                Cause::NoLayout
            }
            BuildError::Contents(ContentsError::Poisoned { .. } | ContentsError::Pattern { .. }) => {
                Cause::PagePoison
            }
            BuildError::MemoryModel(_) | BuildError::NoBootValue => Cause::UnknownKernel,
            _ => Cause::Contradiction,
        };
        Self::new(Class::Refused, &error, remedy).because(cause)
    }
}
