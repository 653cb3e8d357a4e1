//! What goes wrong with a Linux guest, and what to do about it.

use super::by_system_map::MapError;
use super::contents::ContentsError;
use super::facts::FactError;
use super::identify::{IdentifyError, Rejected, Rejection};
use super::layout::LayoutError;
use super::memory_model::MemoryModelError;
use super::profile::BuildError;
use super::stub::StubError;
use super::stub::compile::CompileError;
use super::stub::headers::HeadersError;
use super::stub::run::RunError;
use super::zones::ZonesError;
use crate::failure::{Cause, Class, Clues, Failure};
use crate::os::view::ViewError;

/// Where registers decide, which a file may not have.
const BY_REGISTERS: &str = "say which kernel the processors run: --registers FILE (the text of QEMU's `info registers -a`), or --cr3 HEX";
/// Where a file's memory contradicts itself.
const NOT_STILL: &str = "was the guest stopped while the dump was taken, and is the dump whole, with no pages left out? If so, its memory does not look as its kernel says";
/// Where a number is given by no source.
const GIVE_HEADERS: &str =
    "give the kernel's headers: --headers DIR, or have them fetched with `lacuna profile fetch`";

impl From<IdentifyError> for Failure {
    fn from(error: IdentifyError) -> Self {
        if let IdentifyError::NotByMap { without, by_map } = &error {
            return not_by_map(&error, without, by_map);
        }
        let mut clues = Clues::default();
        let (class, remedy, of_file, cause) = match &error {
            IdentifyError::NothingFound { .. } => (
                Class::NotFound,
                "a Linux guest has one once it has booted: try again then; a kernel without it is known by its System.map and its headers: --system-map FILE --headers DIR",
                "is the file all of a guest's memory, and was its kernel up? A kernel without the note is known by its System.map and its headers: --system-map FILE --headers DIR",
                Cause::UnknownKernel,
            ),
            IdentifyError::OtherProcessor(_) => (
                Class::Failed,
                "nothing can be done with such a guest",
                "nothing can be done with such a dump",
                Cause::UnknownKernel,
            ),
            IdentifyError::NoneConfirmed { rejected } => {
                clues.absent = rejected.iter().find_map(absent);
                // Of several notes, one that a process wrote may fit a layout that the file does not have.
                if let [only] = &**rejected {
                    clues.is_unconfirmed = true;
                    clues.displaced = displaced(only);
                }
                (
                    Class::Refused,
                    "the guest may be booting, or have changed its kernel by kexec: try again; if it lasts, the guest is lying",
                    "memory and registers have to be of one guest at one moment: take both while it is stopped; without registers, add them (--registers FILE, or --cr3 HEX)",
                    Cause::Contradiction,
                )
            }
            IdentifyError::TooMany { .. } => (
                Class::Refused,
                "the guest may be booting, or have changed its kernel by kexec: try again; if it lasts, the guest is lying",
                BY_REGISTERS,
                Cause::Contradiction,
            ),
            IdentifyError::NotByMap { .. }
            | IdentifyError::Ambiguous { .. }
            | IdentifyError::AnotherRuns { .. } => {
                clues.is_linux = true;
                (
                    Class::Refused,
                    "the guest may have changed its kernel by kexec: try again; if it lasts, the guest is lying",
                    BY_REGISTERS,
                    Cause::Contradiction,
                )
            }
        };
        clues.remedy = Some(of_file);
        Self::new(class, error, remedy).because(cause).with_clues(clues)
    }
}

/// What to do where a System.map was given and led to no kernel.
fn not_by_map(error: &IdentifyError, without: &IdentifyError, by_map: &MapError) -> Failure {
    const THIS_BUILD: &str = "give the System.map of the very build that the guest runs, and its headers; of a dump its registers, too (--registers FILE, or --cr3 HEX)";
    let of_notes = Failure::from(without.clone());
    let (class, remedy) = match by_map {
        MapError::AnotherRuns { .. } | MapError::Several { .. } => (Class::Refused, BY_REGISTERS),
        MapError::File(_) | MapError::NotThere { .. } | MapError::Rejected { .. } => {
            (of_notes.class, THIS_BUILD)
        }
    };
    let clues = Clues {
        remedy: Some(remedy),
        is_linux: true,
        ..of_notes.clues
    };
    Failure::new(class, error, remedy)
        .because(of_notes.cause)
        .with_clues(clues)
}

/// The frame for want of which a note was not confirmed.
fn absent(note: &Rejected) -> Option<u64> {
    match &note.reason {
        Rejection::View(error) => error.absent(),
        _ => None,
    }
}

/// How much further on than where the note is the kernel says that it is.
fn displaced(note: &Rejected) -> Option<u64> {
    match note.reason {
        Rejection::NotTheKernelsOwn { own } => own.checked_sub(note.at.get()),
        _ => None,
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

/// Whether a number is missing that headers would give.
fn lacks_fact(error: &BuildError) -> bool {
    matches!(
        error,
        BuildError::NoMark(_)
            | BuildError::NoNote
            | BuildError::Fact(FactError::Missing { .. })
            | BuildError::MemoryModel(MemoryModelError::Fact(FactError::Missing { .. }))
            | BuildError::Zones(ZonesError::Fact(FactError::Missing { .. }))
    )
}

/// The error of a read of kernel memory that is behind `error`.
fn view_error(error: &BuildError) -> Option<&ViewError> {
    match error {
        BuildError::View(error)
        | BuildError::MemoryModel(
            MemoryModelError::View(error) | MemoryModelError::Nodes(ZonesError::View(error)),
        )
        | BuildError::Zones(ZonesError::View(error))
        | BuildError::Contents(ContentsError::View(error)) => Some(error),
        _ => None,
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let (remedy, of_file) = match &error {
            error if lacks_fact(error) => (GIVE_HEADERS, GIVE_HEADERS),
            BuildError::OtherKernel { .. } => {
                let remedy = "give the headers or the layout of the kernel that the guest runs";
                (remedy, remedy)
            }
            BuildError::Fact(_) => (
                "the headers are not those of this very build, or the guest is lying: give the right ones",
                "the headers are not those of this very build: give the right ones",
            ),
            BuildError::OtherHeaders { .. } => {
                let remedy = "give the headers and the System.map of the very build that the guest runs";
                (remedy, remedy)
            }
            BuildError::NoSymbol(_) => {
                let remedy = "give the kernel's real System.map with --system-map (Debian: in the package linux-image-RELEASE-dbg)";
                (remedy, remedy)
            }
            BuildError::SystemMap(_) | BuildError::MapDisagrees { .. } => {
                let remedy = "give the System.map of the kernel that the guest runs, or leave it out";
                (remedy, remedy)
            }
            BuildError::Config(_) => {
                let remedy = "give the configuration of the kernel that the guest runs, or leave it out";
                (remedy, remedy)
            }
            BuildError::NoBtf => {
                let remedy = "use another source: --source vmcoreinfo, or --headers DIR";
                (remedy, remedy)
            }
            BuildError::Contents(ContentsError::Poisoned { .. } | ContentsError::Pattern { .. }) => (
                "boot the guest without page_poison=1, or leave it alone: nothing was changed",
                "free pages of such a guest must keep their contents: nothing can be done with its dump",
            ),
            BuildError::OtherIdentity { .. } => (
                "a virtual CPU may have been in a firmware call, or on its way up: try again",
                "memory and registers have to be of one guest at one moment: take both while it is stopped",
            ),
            _ => (
                "the guest may have been changing its memory map, or be lying: try again; nothing was changed",
                NOT_STILL,
            ),
        };
        let cause = match &error {
            BuildError::OtherKernel { .. } | BuildError::NoSymbol(_) => Cause::NoLayout,
            error if lacks_fact(error) => Cause::NoLayout,
            BuildError::Contents(ContentsError::Poisoned { .. } | ContentsError::Pattern { .. }) => {
                Cause::PagePoison
            }
            BuildError::MemoryModel(_) => Cause::UnknownKernel,
            _ => Cause::Contradiction,
        };
        let clues = Clues {
            remedy: Some(of_file),
            absent: view_error(&error).and_then(ViewError::absent),
            ..Clues::default()
        };
        Self::new(Class::Refused, &error, remedy)
            .because(cause)
            .with_clues(clues)
    }
}
