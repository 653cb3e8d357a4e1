//! Which Linux kernel runs in a guest.
//!
//! The kernel describes itself in a VMCOREINFO note. Any process in the guest can write a page that looks
//! like one, so a note is an allegation, and is confirmed from what a process cannot write: the control
//! registers of the virtual CPUs, the page tables they lead to, and the kernel's image. The image's pointer
//! to the note has the last word: a 64-bit kernel's image is looked through for it first; where that finds
//! nothing, all of memory is searched for notes and each is confirmed. Without registers, page tables come
//! from the note itself and have to map the kernel that it describes, and two notes that both stand up to
//! that are told to be undecidable. A kernel that is dead stands up to it as well as one that runs, so such a
//! kernel is searched for signs of another ([`super::other_kernels`]), and called tied to nothing.

use std::fmt::Write as _;

use lacuna_core::{Gfn, GuestPhys, PagingLevels, VcpuRegisters};
use thiserror::Error;

use super::by_system_map::MapError;
use super::confirm::{Confirmation, confirm};
use super::image::{Evidence, KERNEL_MAP, KERNEL_MAP_BYTES, mapped, notes};
use super::kallsyms::{KallsymsError, Symbols};
use super::known_symbols::KnownSymbols;
use super::other_kernels::{Tie, signs_of_another};
use super::spaces::spaces_of;
use super::vmcoreinfo::{VmcoreInfo, VmcoreInfoError};
use crate::os::view::{AddressSpace, ViewError};
use crate::source::Cpu;
use crate::source::GuestSource;

/// Most allegations looked into, each of which can cost the reading of a symbol table. A guest can make as
/// many as it has pages; an ordinary one has one, and one more for each kernel before a kexec.
const MAX_ALLEGATIONS: usize = 200;

/// Symbols that later steps need. Looked up here in one pass, since the table is long.
pub const WANTED: &[&str] = &[
    "linux_banner",
    "vmcoreinfo_note",
    "entry_SYSCALL_64",
    "init_task",
    "vmemmap_base",
    "page_offset_base",
    "_page_poisoning_enabled",
    "_page_poisoning_enabled_early",
    "want_page_poisoning",
    "init_on_free",
    "mem_section",
    "__start_BTF",
    "__stop_BTF",
    "crashk_res",
    "kexec_in_progress",
    "system_call",
    "syncookie_secret",
    "ptr_key",
    "sysctl_bootid",
    "wall_to_monotonic",
];

/// Why a note does not belong to the kernel that runs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// The text is malformed or incomplete.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// No virtual CPU is online in 64-bit mode with paging.
    #[error("no virtual CPU runs in 64-bit mode")]
    NotLongMode,
    /// The note and the registers differ on the number of page-table levels.
    #[error("the note says pgtable_l5_enabled={stated}, CR4 is {cr4:#x}")]
    Levels {
        /// By the note.
        stated: u64,
        /// By the processor.
        cr4: u64,
    },
    /// An address of the note lies outside the kernel's image.
    #[error("{symbol} = {at:#x} lies outside the kernel's image")]
    OutsideImage {
        /// Which.
        symbol: &'static str,
        /// Where.
        at: u64,
    },
    /// A virtual CPU's page tables do not map the kernel where the note says.
    #[error("virtual CPU {vcpu}: the page tables at {root:#x} do not map {symbol} to {stated:#x}")]
    PageTables {
        /// The virtual CPU.
        vcpu: usize,
        /// Its table.
        root: u64,
        /// What should be mapped.
        symbol: &'static str,
        /// Where, by the note.
        stated: u64,
    },
    /// Without registers: the page table that the note names does not lead to itself.
    #[error("the page table at {root:#x}, which the note names, does not map {symbol} there")]
    OwnTables {
        /// The table.
        root: u64,
        /// What should be mapped.
        symbol: &'static str,
    },
    /// The note is of a kernel for another processor.
    #[error("the note is of a kernel for {0}: only those for i386 and amd64 are known")]
    OtherProcessor(&'static str),
    /// Kernel memory that must be there is not.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The kernel calls itself something else.
    #[error("the note says {stated:?}, the kernel's init_uts_ns says {found:?}")]
    Release {
        /// By the note.
        stated: String,
        /// By `init_uts_ns`.
        found: String,
    },
    /// A register does not point into this kernel.
    #[error("virtual CPU {vcpu}: {register} is {found:#x}, not {expected}")]
    Register {
        /// The virtual CPU.
        vcpu: usize,
        /// Which register.
        register: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// The kernel's symbol table is damaged, or not this kernel's.
    #[error(transparent)]
    Kallsyms(#[from] KallsymsError),
    /// Nothing in the kernel's image points at the note.
    #[error("nothing in the kernel's image points at it")]
    NotPointedAt,
    /// The note's kernel has other word size than the virtual CPUs run.
    #[error("the note is of a {stated} kernel, which the virtual CPUs do not run")]
    WordSize {
        /// By the note.
        stated: &'static str,
    },
    /// By a System.map: there are no names of a kernel.
    #[error("{symbol} at {at:#x} does not hold a Linux kernel's names")]
    NoNames {
        /// The symbol.
        symbol: &'static str,
        /// Where it should be.
        at: u64,
    },
    /// By a System.map: the kernel's banner does not say the release.
    #[error("the kernel calls itself {release}, and its linux_banner says {found:?}")]
    Banner {
        /// By its names.
        release: String,
        /// By the banner.
        found: String,
    },
    /// The kernel's own note is another page.
    #[error("the kernel's own note is at {own:#x}")]
    NotTheKernelsOwn {
        /// Where `vmcoreinfo_note` points.
        own: u64,
    },
}

/// A note that was found and not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where it begins.
    pub at: GuestPhys,
    /// The release that it claims, if it has one.
    pub release: Option<String>,
    /// Why not.
    pub reason: Rejection,
}

/// The kernel that runs.
#[derive(Clone, Debug)]
pub struct Identified {
    /// Release, `uname -r`.
    pub release: String,
    /// `linux_banner`, if the symbol table is to be had.
    pub banner: Option<String>,
    /// `BUILD-ID` of the note, as it says.
    pub build_id: Option<String>,
    /// Where the note is; `None` of a kernel that has none and was told by its System.map.
    pub note_at: Option<GuestPhys>,
    /// The note, or what it would say.
    pub info: VmcoreInfo,
    /// The kernel's reference page table.
    pub space: AddressSpace,
    /// What of [`WANTED`] the symbol table holds; `None` when there is no table.
    pub symbols: Option<Symbols>,
    /// What ties it to the processors.
    pub tie: Tie,
    /// What was confirmed, for people.
    pub confirmed: Vec<String>,
    /// Other notes met on the way.
    pub rejected: Vec<Rejected>,
}

/// Why no kernel was identified.
#[derive(Clone, Debug, Error)]
pub enum IdentifyError {
    /// No note at all.
    #[error(
        "no VMCOREINFO note in {frames} frames: no Linux kernel that has booted, or one without CONFIG_VMCORE_INFO"
    )]
    NothingFound {
        /// Frames looked at.
        frames: u64,
    },
    /// Notes, but none that is confirmed.
    #[error("{} VMCOREINFO note(s) found, none of which is confirmed:{}", rejected.len(), list(rejected))]
    NoneConfirmed {
        /// Each, with the reason.
        rejected: Vec<Rejected>,
    },
    /// Every note is of a kernel for another processor.
    #[error("memory is that of a machine with another processor ({0}): only i386 and amd64 are read")]
    OtherProcessor(&'static str),
    /// More notes than any honest guest has.
    #[error(
        "more than {MAX_ALLEGATIONS} pages of the guest look like VMCOREINFO notes, none of them the kernel's own so far:{}",
        list(rejected)
    )]
    TooMany {
        /// Those looked into and not believed, with the reasons.
        rejected: Vec<Rejected>,
    },
    /// Several notes are confirmed as far as this kernel allows, and they differ.
    #[error("{} VMCOREINFO notes look right and differ (at {}); this kernel offers nothing to tell them apart by", at.len(), addresses(at))]
    Ambiguous {
        /// Where they are.
        at: Vec<GuestPhys>,
    },
    /// No note is confirmed, and the System.map that was given leads to no kernel either.
    #[error("{without}; and of the System.map given: {by_map}")]
    NotByMap {
        /// What came of the search for notes.
        without: Box<IdentifyError>,
        /// What came of the file.
        by_map: MapError,
    },
    /// Nothing ties the only kernel that is confirmed to a processor, and another may run in its place.
    #[error(
        "memory holds the kernel {release}, but nothing ties it to a processor, and another kernel may run in its place:{}",
        signs.iter().take(8).fold(String::new(), |text, sign| text + "\n  " + sign)
    )]
    AnotherRuns {
        /// The kernel that is confirmed.
        release: String,
        /// What says so.
        signs: Vec<String>,
    },
}

/// The processor that all notes are for, where it is none that is known.
fn other_processor(rejected: &[Rejected]) -> Option<&'static str> {
    let mut processors = rejected.iter().map(|note| match note.reason {
        Rejection::OtherProcessor(name) => Some(name),
        _ => None,
    });
    let first = processors.next()??;
    processors.all(|other| other == Some(first)).then_some(first)
}

fn list(rejected: &[Rejected]) -> String {
    rejected.iter().take(8).fold(String::new(), |mut text, note| {
        let release = note.release.as_deref().unwrap_or("no release");
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  at {:#x}, {release}: {}", note.at.get(), note.reason);
        text
    })
}

fn addresses(at: &[GuestPhys]) -> String {
    at.iter()
        .take(8)
        .map(|at| format!("{:#x}", at.get()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Searches `memory` for the kernel that `cpus` run. `progress` is told the frame reached and the last one.
///
/// # Errors
/// [`IdentifyError`].
pub fn identify<M: GuestSource>(
    memory: &mut M,
    cpus: &[Cpu],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Identified, IdentifyError> {
    let mut search = Search::default();
    // What the image of the kernel that runs points at: no need to look at user memory at all.
    for space in spaces_of(cpus) {
        if space.levels.is_32_bit() {
            continue;
        }
        let runs = mapped(
            memory,
            space,
            lacuna_core::GuestVirt::new(KERNEL_MAP),
            KERNEL_MAP_BYTES,
        );
        if runs.is_empty() {
            continue;
        }
        for (at, evidence) in notes(memory, space, &runs) {
            search.look_into(memory, at, cpus, Some(evidence));
        }
        if !search.confirmed.is_empty() {
            break;
        }
    }
    if search.confirmed.is_empty() {
        search.rejected.clear();
        search.everywhere(memory, cpus, progress)?;
    }
    let kernel = search.decide()?;
    let signs = signs_of_another(memory, &kernel, progress);
    if signs.is_empty() {
        return Ok(kernel);
    }
    Err(IdentifyError::AnotherRuns {
        release: kernel.release,
        signs,
    })
}

/// Of live virtual CPUs everything is known.
pub fn identify_live<M: GuestSource>(
    memory: &mut M,
    vcpus: &[VcpuRegisters],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Identified, IdentifyError> {
    let cpus: Vec<Cpu> = vcpus.iter().map(Cpu::from_registers).collect();
    identify(memory, &cpus, progress)
}

/// Notes looked into so far.
#[derive(Default)]
struct Search {
    confirmed: Vec<(Confirmation, Identified)>,
    rejected: Vec<Rejected>,
    frames: u64,
    known: KnownSymbols,
}

impl Search {
    /// Holds one note against everything that is known.
    fn look_into<M: GuestSource>(
        &mut self,
        memory: &mut M,
        at: GuestPhys,
        cpus: &[Cpu],
        evidence: Option<Evidence>,
    ) {
        let info = VmcoreInfo::read(memory, at);
        let release = info
            .as_ref()
            .ok()
            .and_then(|info| info.release().ok())
            .map(str::to_owned);
        let outcome = info
            .map_err(Rejection::from)
            .and_then(|info| confirm(memory, info, at, cpus, evidence, &mut self.known));
        match outcome {
            Ok(found) => self.confirmed.push(found),
            Err(reason) => self.rejected.push(Rejected { at, release, reason }),
        }
    }

    /// Looks at the beginning of every frame.
    fn everywhere<M: GuestSource>(
        &mut self,
        memory: &mut M,
        cpus: &[Cpu],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), IdentifyError> {
        let end = memory.end();
        let mut at = Gfn::new(0);
        while let Some(gfn) = memory.next_present(at) {
            at = gfn.saturating_add(1);
            if gfn.get() % 1024 == 0 {
                progress(gfn.get(), end.get());
            }
            let Some(base) = gfn.base() else { break };
            let mut head = [0; 24];
            if memory.read(base, &mut head).is_err() {
                continue;
            }
            self.frames += 1;
            if !VmcoreInfo::may_begin(&head) {
                continue;
            }
            self.look_into(memory, base, cpus, None);
            // Never the end of a search that has found the kernel's own: a flood must not hide it.
            if self.rejected.len() > MAX_ALLEGATIONS && self.confirmed.is_empty() {
                return Err(IdentifyError::TooMany {
                    rejected: std::mem::take(&mut self.rejected),
                });
            }
        }
        progress(end.get(), end.get());
        Ok(())
    }

    /// The one kernel that can be meant, or why it is not known.
    fn decide(mut self) -> Result<Identified, IdentifyError> {
        // A symbol table that leads to the note says more than a word somewhere in the image.
        let best = self.confirmed.iter().map(|(confirmation, _)| *confirmation).max();
        let Some(best) = best else {
            return Err(if self.rejected.is_empty() {
                IdentifyError::NothingFound { frames: self.frames }
            } else if let Some(processor) = other_processor(&self.rejected) {
                IdentifyError::OtherProcessor(processor)
            } else {
                IdentifyError::NoneConfirmed {
                    rejected: self.rejected,
                }
            });
        };
        let mut found: Vec<Identified> = self
            .confirmed
            .drain(..)
            .filter(|(confirmation, _)| *confirmation == best)
            .map(|(_, identified)| identified)
            .collect();
        let first = found.swap_remove(0);
        if found
            .iter()
            .any(|other| other.info != first.info || other.space != first.space)
        {
            let mut at: Vec<GuestPhys> = first.note_at.into_iter().collect();
            at.extend(found.iter().filter_map(|other| other.note_at));
            return Err(IdentifyError::Ambiguous { at });
        }
        Ok(Identified {
            rejected: self.rejected,
            ..first
        })
    }
}

/// What the kernel that runs is built for.
pub const fn architecture(levels: PagingLevels) -> &'static str {
    if levels.is_32_bit() { "i386" } else { "amd64" }
}

/// How a kernel's page tables are called.
pub const fn paging_name(levels: PagingLevels) -> &'static str {
    match levels {
        PagingLevels::Four => "4-level",
        PagingLevels::Five => "5-level",
        PagingLevels::Pae => "pae",
        PagingLevels::Two => "2-level",
    }
}
