//! A kernel that has no VMCOREINFO note, told by its System.map.
//!
//! Kernels before 2.6.24 and those built without `CONFIG_VMCORE_INFO` (before 6.9 `CONFIG_CRASH_CORE`, before
//! 4.12 `CONFIG_KEXEC`) say nothing of themselves. The file says where the linker put the kernel's top-level
//! page table, its names and its entries. The kernel of the file runs where
//!
//! * the page tables of all virtual CPUs map that table, moved by some displacement, to a table that maps
//!   itself there, too;
//! * the names read through it say "Linux" and a release, and the kernel's banner says the same release;
//! * the system call's entry in the registers is the one of the file, moved by the same;
//! * the IDT that the registers lead to is the file's `idt_table`, at whatever address it is mapped for them.
//!
//! Without registers, memory is searched for such names and tables. What is found then is tied to nothing.
//!
//! What the kernel's structures look like only its headers say: `complete` adds what a note would have said
//! of them once they are asked.

mod linked;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels};
use thiserror::Error;

use super::confirm::{UTS_FIELD, all_map, confirm_registers, of_tables};
use super::facts::Facts;
use super::first_task::is_first;
use super::identify::{Identified, Rejection, WANTED};
use super::kallsyms::Symbols;
use super::other_kernels::{Tie, signs_of_another};
use super::profile::BuildError;
use super::spaces::levels_of;
use super::system_map::SystemMap;
use super::vmcoreinfo::{Kind, VmcoreInfo};
use crate::os::view::KernelView;
use crate::source::{Cpu, GuestSource};
use linked::{KernelLocation, Linked, NAMES, ROOTS};

/// Where `LSTAR` leads: since 4.2, and before.
const ENTRIES: [&str; 2] = ["entry_SYSCALL_64", "system_call"];
/// Where `SYSENTER_EIP` leads in a 32-bit kernel: since 4.2, before, and until 2.6.21.
const ENTRIES_32: [&str; 3] = ["entry_SYSENTER_32", "ia32_sysenter_target", "sysenter_entry"];
/// The kernel's IDT, and those that it loads for a while: while it traces (3.10 to 4.13), in debug exceptions
/// (3.3 to 5.8) and in NMIs (3.3 to 3.9).
const IDTS: [&str; 4] = ["idt_table", "trace_idt_table", "debug_idt_table", "nmi_idt_table"];
/// Only kernels that have a note have these: the note, since 2.6.24, and its text.
const HAVE_NOTES: [&str; 2] = ["vmcoreinfo_note", "vmcoreinfo_data"];
/// What a note would name, besides.
const NOTED: [&str; 5] = [
    "_stext",
    "mem_map",
    "node_data",
    "contig_page_data",
    "mem_section",
];
/// Bits of physical addresses for which a kernel since 4.15 has a table of sections, by its levels
/// (`MAX_PHYSMEM_BITS`, `arch/x86/include/asm/sparsemem.h`).
const PHYSICAL_BITS: (u64, u64) = (46, 52);

/// Why a System.map led to no kernel.
#[derive(Clone, Debug, Error)]
pub enum MapError {
    /// The file is of no use.
    #[error("{0}")]
    File(String),
    /// No page tables are as the file wants them.
    #[error(
        "wherever it may have been moved to, {by} map its {symbol} to a page table that maps itself there: the kernel of {} does not run",
        file.display()
    )]
    NotThere {
        /// The file.
        file: PathBuf,
        /// What was asked.
        by: &'static str,
        /// The table, as the file calls it.
        symbol: &'static str,
    },
    /// The tables are, and something else is not.
    #[error("{}, moved by {moved:#x}: {reason}", file.display())]
    Rejected {
        /// The file.
        file: PathBuf,
        /// How far from where it was linked to.
        moved: u64,
        /// What does not fit.
        reason: Rejection,
    },
    /// Several kernels are there.
    #[error(
        "several kernels in memory are that of {}: their page tables are at {}",
        file.display(),
        roots.iter().map(|root| format!("{:#x}", root.get())).collect::<Vec<_>>().join(", ")
    )]
    Several {
        /// The file.
        file: PathBuf,
        /// Their tables.
        roots: Vec<GuestPhys>,
    },
    /// No register leads to it, and another may run in its place.
    #[error(
        "memory holds the kernel {release}, but nothing ties it to a processor, and another kernel may run in its place:{}",
        signs.iter().take(8).fold(String::new(), |text, sign| text + "\n  " + sign)
    )]
    AnotherRuns {
        /// What it calls itself.
        release: String,
        /// What says so.
        signs: Vec<String>,
    },
}

/// The kernel of the System.map `file`, if by that file it has no note, and the page tables of a virtual CPU
/// lead to it. A note need not be looked for in all of memory then. Nothing in any other case: what is wrong
/// is told once no note was found either.
pub fn identify_without_note<M: GuestSource>(
    memory: &mut M,
    cpus: &[Cpu],
    file: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Option<Identified> {
    if !cpus.iter().any(Cpu::is_paging) {
        return None;
    }
    let map = SystemMap::open(file, &[&HAVE_NOTES]).ok()?;
    if HAVE_NOTES.iter().any(|symbol| map.names(symbol)) {
        return None;
    }
    identify(memory, cpus, file, progress).ok()
}

/// Searches `memory` for the kernel of the System.map `file`. `progress` is told the frame reached and the
/// last one.
///
/// # Errors
/// [`MapError`].
pub fn identify<M: GuestSource>(
    memory: &mut M,
    cpus: &[Cpu],
    file: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Identified, MapError> {
    let wanted = [WANTED, &ROOTS, &NAMES, &ENTRIES, &ENTRIES_32, &IDTS, &NOTED];
    let map = SystemMap::open(file, &wanted).map_err(|error| MapError::File(error.to_string()))?;
    let linked = Linked::of(&map)?;
    let running: Vec<(usize, &Cpu)> = cpus
        .iter()
        .enumerate()
        .filter(|(_, cpu)| cpu.is_paging())
        .collect();
    let locations = match running.first() {
        Some((_, first)) => linked.by_registers(memory, first),
        None => linked.by_memory(memory),
    };
    let mut found: Vec<Identified> = Vec::new();
    let mut rejected = None;
    for location in locations {
        match examine(memory, cpus, &running, &map, &linked, location) {
            Ok(kernel) => found.push(kernel),
            Err(reason) => {
                rejected.get_or_insert(MapError::Rejected {
                    file: file.to_owned(),
                    moved: location.moved,
                    reason,
                });
            }
        }
    }
    let Some(kernel) = found.pop() else {
        return Err(rejected.unwrap_or(MapError::NotThere {
            file: file.to_owned(),
            by: if running.is_empty() {
                "no page tables in memory"
            } else {
                "the virtual CPUs' page tables do not"
            },
            symbol: linked.root.0,
        }));
    };
    if !found.is_empty() {
        let roots = found.iter().chain([&kernel]).map(|one| one.space.root);
        return Err(MapError::Several {
            file: file.to_owned(),
            roots: roots.collect(),
        });
    }
    let signs = signs_of_another(memory, &kernel, progress);
    if signs.is_empty() {
        return Ok(kernel);
    }
    Err(MapError::AnotherRuns {
        release: kernel.release,
        signs,
    })
}

/// Holds the kernel of the file at `location` against what is known of the guest.
fn examine<M: GuestMemory>(
    memory: &mut M,
    cpus: &[Cpu],
    running: &[(usize, &Cpu)],
    map: &SystemMap,
    linked: &Linked,
    location: KernelLocation,
) -> Result<Identified, Rejection> {
    let space = location.space;
    let at = |linked: u64| GuestVirt::new(linked.wrapping_add(location.moved));
    let symbols = map.moved_by(location.moved);
    let text = at(linked.text);
    for (vcpu, cpu) in running {
        if !levels_of(cpu).contains(&space.levels) {
            return Err(Rejection::PageTables {
                vcpu: *vcpu,
                root: cpu.cr3.unwrap_or(0),
                symbol: linked.root.0,
                stated: space.root.get(),
            });
        }
    }
    all_map(memory, running, space, (linked.root.0, at(linked.root.1)))?;
    let mut confirmed = vec![of_tables(space, running.len(), linked.root.0)];
    let mut view = KernelView::new(memory, space);
    let release = release_at(&mut view, linked.names.0, at(linked.names.1))?;
    confirmed.push(format!("{}, read through them, says {release}", linked.names.0));
    let banner = banner(&mut view, &symbols, &release)?;
    if banner.is_some() {
        confirmed.push("so does linux_banner".to_owned());
    }
    confirm_registers(running, space.levels, text, &mut confirmed)?;
    confirm_entry(running, linked.is_32_bit, &symbols, &mut confirmed)?;
    confirm_idt(&mut view, running, &symbols, &mut confirmed)?;
    let noted = NOTED
        .iter()
        .filter_map(|name| Some((*name, symbols.find(name)?)))
        .chain([(linked.root.0, at(linked.root.1))]);
    Ok(Identified {
        info: VmcoreInfo::without_note(&release, noted),
        release,
        banner,
        build_id: None,
        note_at: None,
        space,
        symbols: Some(symbols),
        tie: Tie::of(cpus, text),
        confirmed,
        rejected: Vec::new(),
    })
}

/// The release that a kernel calls itself by, in its names at `names`.
fn release_at<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbol: &'static str,
    names: GuestVirt,
) -> Result<String, Rejection> {
    for behind in [4, 0] {
        let name = |index: usize| names.get().wrapping_add(behind + (index * UTS_FIELD) as u64);
        // The first and the third name of struct new_utsname: sysname, nodename, release.
        let (system, release) = (
            view.text(GuestVirt::new(name(0)), UTS_FIELD)?,
            view.text(GuestVirt::new(name(2)), UTS_FIELD)?,
        );
        let is_release = release.starts_with(|letter: char| letter.is_ascii_digit())
            && release.chars().all(|letter| letter.is_ascii_graphic());
        if system == "Linux" && is_release {
            return Ok(release);
        }
    }
    Err(Rejection::NoNames {
        symbol,
        at: names.get(),
    })
}

/// `linux_banner`, which has to say the release: an array of letters, or until 2.6.19 a pointer to them.
fn banner<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: &Symbols,
    release: &str,
) -> Result<Option<String>, Rejection> {
    let Some(at) = symbols.find("linux_banner") else {
        return Ok(None);
    };
    let found = view.text(at, 512)?;
    let led_to = GuestVirt::new(view.word(at)?);
    let texts = [Some(found.clone()), view.text(led_to, 512).ok()];
    let says = |text: &String| text.starts_with(&format!("Linux version {release} "));
    match texts.into_iter().flatten().find(says) {
        Some(text) => Ok(Some(text.trim_end().to_owned())),
        None => Err(Rejection::Banner {
            release: release.to_owned(),
            found: found.chars().take(64).collect(),
        }),
    }
}

/// The registers that lead to the kernel's entry, where they are known, lead to the file's.
fn confirm_entry(
    running: &[(usize, &Cpu)],
    is_32_bit: bool,
    symbols: &Symbols,
    confirmed: &mut Vec<String>,
) -> Result<(), Rejection> {
    let (register, names) = if is_32_bit {
        ("SYSENTER_EIP", &ENTRIES_32[..])
    } else {
        ("LSTAR", &ENTRIES[..])
    };
    let Some((name, entry)) = names.iter().find_map(|name| Some((*name, symbols.find(name)?))) else {
        return Ok(());
    };
    let mut held = 0;
    for (vcpu, cpu) in running {
        let Some(found) = (if is_32_bit { cpu.sysenter_eip } else { cpu.lstar }) else {
            continue;
        };
        if found != entry.get() {
            return Err(Rejection::Register {
                vcpu: *vcpu,
                register,
                found,
                expected: format!("{name} ({:#x})", entry.get()),
            });
        }
        held += 1;
    }
    if held > 0 && held == running.len() {
        confirmed.push(format!("{register} of every online virtual CPU is {name}"));
    }
    Ok(())
}

/// The IDTs that the registers lead to, where they are known, lie where the file's do. It is mapped at another
/// address, too, for reading only: since 4.15 in the CPU entry area, from 3.10 (on i386 with the F00F bug
/// before) among the fixed mappings.
fn confirm_idt<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    running: &[(usize, &Cpu)],
    symbols: &Symbols,
    confirmed: &mut Vec<String>,
) -> Result<(), Rejection> {
    let Some(table) = symbols.find(IDTS[0]) else {
        return Ok(());
    };
    let places: Vec<GuestPhys> = IDTS
        .iter()
        .filter_map(|name| view.translate(symbols.find(name)?).ok())
        .collect();
    let mut held = 0;
    for (vcpu, cpu) in running {
        let Some(found) = cpu.idt_base else { continue };
        let leads_to = view.translate(GuestVirt::new(found));
        if !leads_to.is_ok_and(|at| places.contains(&at)) {
            return Err(Rejection::Register {
                vcpu: *vcpu,
                register: "the IDT's base",
                found,
                expected: format!("idt_table ({:#x}), or where that is mapped besides", table.get()),
            });
        }
        held += 1;
    }
    if held > 0 && held == running.len() {
        confirmed.push("the IDT of every online virtual CPU is idt_table".to_owned());
    }
    Ok(())
}

/// The kernel; where it has no note, with what that would have said of its structures, as its headers say it.
///
/// # Errors
/// The headers do not say it, or are another kernel's.
pub(super) fn complete<'k, M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &'k Identified,
    facts: &Facts,
) -> Result<Cow<'k, Identified>, BuildError> {
    if kernel.note_at.is_some() {
        return Ok(Cow::Borrowed(kernel));
    }
    if facts.sources().is_empty() {
        return Err(BuildError::NoNote);
    }
    let mut kernel = kernel.clone();
    let levels = kernel.space.levels;
    let word = u64::from(levels.pointer_bytes());
    // The headers' structures are this kernel's.
    if let Some(task) = kernel
        .symbols
        .as_ref()
        .and_then(|symbols| symbols.find("init_task"))
    {
        let parent = facts.get("offsetof(struct task_struct,parent)")?;
        let name = facts.get("offsetof(struct task_struct,comm)")?;
        if !is_first(view, task.get(), parent, name) {
            return Err(BuildError::OtherHeaders { at: task });
        }
    }
    if kernel.info.find_symbol("node_data").is_some() {
        kernel
            .info
            .state(Kind::Length, "node_data", facts.get("MAX_NUMNODES")?);
    }
    if let Some(table) = kernel.info.find_symbol("mem_section") {
        let size = facts.get("sizeof(struct mem_section)")?;
        let whole = facts.get("sizeof(mem_section)")?;
        let per_root = PAGE_SIZE as u64 / size.max(1);
        let roots = if levels.is_32_bit() {
            whole / size.max(1)
        } else if whole == word {
            // Since 4.15 the table of groups is allocated.
            let groups = view.word(table)?;
            kernel.info.state(Kind::Symbol, "mem_section", groups);
            let (four, five) = PHYSICAL_BITS;
            let bits = if levels == PagingLevels::Five { five } else { four };
            let sections = 1_u64 << bits.saturating_sub(facts.at_most("SECTION_SIZE_BITS", bits)?);
            sections.div_ceil(per_root.max(1))
        } else {
            whole / word
        };
        kernel.info.state(Kind::Length, "mem_section", roots);
    }
    Ok(Cow::Owned(kernel))
}
