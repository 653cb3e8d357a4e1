//! What goes wrong with a Linux guest, and what to do about it.

use super::contents::ContentsError;
use super::identify::IdentifyError;
use super::layout::LayoutError;
use super::profile::BuildError;
use super::stub::StubError;
use super::stub::compile::CompileError;
use super::stub::headers::HeadersError;
use super::stub::run::RunError;
use crate::failure::{Cause, Class, Failure};

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
