//! Which Linux kernel runs in a guest.
//!
//! Memory is searched for VMCOREINFO notes. Each is an allegation that any process in the guest could have written,
//! and is confirmed from what it could not: the control registers of the virtual CPUs, the page tables they lead to,
//! and the kernel's image, which user memory is never mapped into. The last word has the kernel's own pointer to its
//! note (`vmcoreinfo_note`, found through the kernel's symbol table): only one page can be the one it points to.

use std::fmt::Write as _;

use lacuna_core::{Gfn, GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels, VcpuRegisters};
use thiserror::Error;

use super::kallsyms::{self, KallsymsError, Symbols};
use super::kernel_view::{AddressSpace, KernelView, ViewError};
use super::vmcoreinfo::{VmcoreInfo, VmcoreInfoError};
use crate::memory::GuestSource;

/// `__START_KERNEL_map` (`arch/x86/include/asm/page_64_types.h`): where the kernel's image is linked to.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Size of the area that holds the image, at most (`KERNEL_IMAGE_SIZE` with KASLR); modules begin above it.
const KERNEL_MAP_BYTES: u64 = 1 << 30;
/// How far from `_stext` the system call's entry may be. Debian's text has 14 to 20 MiB.
const TEXT_BYTES: u64 = 64 << 20;
/// `CPU_ENTRY_AREA_PGD` (`arch/x86/include/asm/pgtable_64_types.h`): the top-level slot of the read-only IDT, since 4.15.
const CPU_ENTRY_AREA: std::ops::Range<u64> = 0xffff_fe00_0000_0000..0xffff_fe80_0000_0000;
/// The fixed mappings at the end of the address space, which held the IDT before.
const FIXMAP: std::ops::Range<u64> = 0xffff_ffff_ff00_0000..0xffff_ffff_ffe0_0000;
/// `__NEW_UTS_LEN + 1`: bytes of a name in `struct new_utsname` (`include/uapi/linux/utsname.h`).
const UTS_FIELD: usize = 65;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
/// Address bits of CR3 (Intel SDM volume 3, 4.5).
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bit of CR3 that tells the user from the kernel table under page-table isolation (`PTI_PGTABLE_SWITCH_BIT`).
const PTI_SWITCH: u64 = 1 << 12;
/// Most allegations looked into, each of which can cost the reading of a symbol table. A guest can make as many as it
/// has pages; an ordinary one has one, and one more for each kernel before a kexec.
const MAX_ALLEGATIONS: usize = 64;

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
    /// Kernel memory that must be there is not.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The kernel calls itself something else.
    #[error("the note says {stated:?}, the kernel that the processor runs says {found:?}")]
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
    /// Where the note is.
    pub note_at: GuestPhys,
    /// The note.
    pub info: VmcoreInfo,
    /// The kernel's reference page table.
    pub space: AddressSpace,
    /// What of [`WANTED`] the symbol table holds; `None` when there is no table.
    pub symbols: Option<Symbols>,
    /// Whether the kernel's own pointer leads to this note, so that no other can be meant.
    pub pointed_at: bool,
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
        "no VMCOREINFO note in {frames} frames: not a Linux guest, or one without CONFIG_VMCORE_INFO, or still booting"
    )]
    NothingFound {
        /// Frames looked at.
        frames: u64,
    },
    /// Notes, but none that is confirmed.
    #[error("{} VMCOREINFO note(s) found, none of which the virtual CPUs confirm:{}", rejected.len(), list(rejected))]
    NoneConfirmed {
        /// Each, with the reason.
        rejected: Vec<Rejected>,
    },
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

/// Searches `memory` for the kernel that `vcpus` run. `progress` is told the frame reached and the last one.
///
/// # Errors
/// [`IdentifyError`].
pub fn identify<M: GuestSource>(
    memory: &mut M,
    vcpus: &[VcpuRegisters],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Identified, IdentifyError> {
    let end = memory.end();
    let mut rejected = Vec::new();
    let mut plausible: Vec<Identified> = Vec::new();
    let mut frames = 0;
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
        frames += 1;
        if !VmcoreInfo::may_begin(&head) {
            continue;
        }
        let info = VmcoreInfo::read(memory, base);
        let release = info
            .as_ref()
            .ok()
            .and_then(|info| info.release().ok())
            .map(str::to_owned);
        match info
            .map_err(Rejection::from)
            .and_then(|info| confirm(memory, info, base, vcpus))
        {
            // The kernel itself points at this note: there is no other.
            Ok(found) if found.pointed_at => {
                progress(end.get(), end.get());
                return Ok(Identified { rejected, ..found });
            }
            Ok(found) => plausible.push(found),
            Err(reason) => rejected.push(Rejected {
                at: base,
                release,
                reason,
            }),
        }
        if rejected.len() + plausible.len() > MAX_ALLEGATIONS {
            return Err(IdentifyError::TooMany { rejected });
        }
    }
    progress(end.get(), end.get());
    let Some(first) = plausible.first() else {
        return Err(if rejected.is_empty() {
            IdentifyError::NothingFound { frames }
        } else {
            IdentifyError::NoneConfirmed { rejected }
        });
    };
    if plausible.iter().any(|other| other.info != first.info) {
        return Err(IdentifyError::Ambiguous {
            at: plausible.iter().map(|found| found.note_at).collect(),
        });
    }
    Ok(Identified {
        rejected,
        ..first.clone()
    })
}

/// Holds one note against the virtual CPUs.
fn confirm<M: GuestMemory>(
    memory: &mut M,
    info: VmcoreInfo,
    note_at: GuestPhys,
    vcpus: &[VcpuRegisters],
) -> Result<Identified, Rejection> {
    let mut confirmed = Vec::new();
    let release = info.release()?.to_owned();
    let online: Vec<(usize, &VcpuRegisters)> = vcpus
        .iter()
        .enumerate()
        .filter(|(_, cpu)| cpu.flags & VcpuRegisters::ONLINE != 0)
        .collect();
    let Some((_, first)) = online.first() else {
        return Err(Rejection::NotLongMode);
    };
    if online
        .iter()
        .any(|(_, cpu)| cpu.cr0 & CR0_PG == 0 || cpu.efer & EFER_LMA == 0)
    {
        return Err(Rejection::NotLongMode);
    }
    let five = first.cr4 & CR4_LA57 != 0;
    let stated = info.wrapping_number("pgtable_l5_enabled").unwrap_or(0);
    if stated != u64::from(five) {
        return Err(Rejection::Levels {
            stated,
            cr4: first.cr4,
        });
    }
    let levels = if five {
        PagingLevels::Five
    } else {
        PagingLevels::Four
    };

    let top = in_image(&info, "init_top_pgt").or_else(|_| in_image(&info, "swapper_pg_dir"))?;
    let text = in_image(&info, "_stext")?;
    let uts = in_image(&info, "init_uts_ns")?;
    let root = top
        .get()
        .wrapping_sub(KERNEL_MAP)
        .wrapping_add(info.wrapping_number("phys_base")?);
    let not_mapped = |vcpu, table| Rejection::PageTables {
        vcpu,
        root: table,
        symbol: "init_top_pgt",
        stated: root,
    };
    if root % PAGE_SIZE as u64 != 0 || root & !CR3_ADDRESS != 0 {
        return Err(not_mapped(0, root));
    }
    for (vcpu, cpu) in &online {
        let table = cpu.cr3 & CR3_ADDRESS;
        // Stopped in user mode under page-table isolation, the kernel's table is the other one of the pair.
        let maps = [table, table & !PTI_SWITCH]
            .into_iter()
            .any(|table| maps_to(memory, table, levels, top, root));
        if !maps {
            return Err(not_mapped(*vcpu, table));
        }
    }
    if !maps_to(memory, root, levels, top, root) {
        return Err(not_mapped(0, root));
    }
    confirmed.push(format!(
        "the page tables of all {} online virtual CPUs map init_top_pgt to {root:#x}",
        online.len()
    ));

    let space = AddressSpace {
        root: GuestPhys::new(root),
        levels,
    };
    let mut view = KernelView::new(memory, space);
    let names = info
        .unsigned(super::vmcoreinfo::Kind::Offset, "uts_namespace.name")
        .unwrap_or(0);
    // The third name of struct new_utsname: sysname, nodename, release.
    let release_at = GuestVirt::new(uts.get().wrapping_add(names).wrapping_add(2 * UTS_FIELD as u64));
    let found = view.text(release_at, UTS_FIELD)?;
    if found != release {
        return Err(Rejection::Release {
            stated: release,
            found,
        });
    }
    confirmed.push(format!("init_uts_ns, read through them, says {release}"));

    for (vcpu, cpu) in &online {
        let register = |register, found, expected: String| Rejection::Register {
            vcpu: *vcpu,
            register,
            found,
            expected,
        };
        if !CPU_ENTRY_AREA.contains(&cpu.idt_base) && !FIXMAP.contains(&cpu.idt_base) {
            return Err(register(
                "the IDT's base",
                cpu.idt_base,
                "in the CPU entry area".into(),
            ));
        }
        // 0 only in a registers file that leaves it out; no kernel has its entry there.
        let text_range = text.get()..text.get().wrapping_add(TEXT_BYTES);
        if cpu.lstar != 0 && !text_range.contains(&cpu.lstar) {
            return Err(register(
                "LSTAR",
                cpu.lstar,
                format!("within 64 MiB of _stext ({:#x})", text.get()),
            ));
        }
    }
    confirmed.push("every online virtual CPU has its IDT in the CPU entry area".into());

    let symbols = match kallsyms::look_up(&mut view, &info, WANTED) {
        Ok(symbols) => Some(symbols),
        Err(KallsymsError::NotOffered(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let mut banner = None;
    let mut pointed_at = false;
    if let Some(symbols) = &symbols {
        pointed_at = confirm_by_symbols(&mut view, symbols, note_at, &online, &mut confirmed)?;
        if let Some(at) = symbols.find("linux_banner") {
            banner = Some(view.text(at, 512)?.trim_end().to_owned());
        }
    }
    let build_id = info.word("BUILD-ID").map(str::to_owned);
    Ok(Identified {
        release,
        banner,
        build_id,
        note_at,
        info,
        space,
        symbols,
        pointed_at,
        confirmed,
        rejected: Vec::new(),
    })
}

/// Holds the symbol table against the registers and the note. True when the kernel's own pointer confirms the note.
fn confirm_by_symbols<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: &Symbols,
    note_at: GuestPhys,
    online: &[(usize, &VcpuRegisters)],
    confirmed: &mut Vec<String>,
) -> Result<bool, Rejection> {
    if let Some(entry) = symbols.find("entry_SYSCALL_64") {
        for (vcpu, cpu) in online {
            if cpu.lstar != 0 && cpu.lstar != entry.get() {
                return Err(Rejection::Register {
                    vcpu: *vcpu,
                    register: "LSTAR",
                    found: cpu.lstar,
                    expected: format!("entry_SYSCALL_64 ({:#x})", entry.get()),
                });
            }
        }
        if online.iter().all(|(_, cpu)| cpu.lstar != 0) {
            confirmed.push("LSTAR of every online virtual CPU is entry_SYSCALL_64".into());
        }
    }
    let Some(pointer) = symbols.find("vmcoreinfo_note") else {
        return Ok(false);
    };
    let own = GuestVirt::new(view.u64(pointer)?);
    let own = view.translate(own)?;
    if own != note_at {
        return Err(Rejection::NotTheKernelsOwn { own: own.get() });
    }
    confirmed.push("vmcoreinfo_note points at this very note".into());
    Ok(true)
}

fn in_image(info: &VmcoreInfo, symbol: &'static str) -> Result<GuestVirt, Rejection> {
    let at = info.symbol(symbol)?;
    if (KERNEL_MAP..KERNEL_MAP + KERNEL_MAP_BYTES).contains(&at.get()) {
        Ok(at)
    } else {
        Err(Rejection::OutsideImage { symbol, at: at.get() })
    }
}

fn maps_to<M: GuestMemory>(
    memory: &mut M,
    root: u64,
    levels: PagingLevels,
    at: GuestVirt,
    physical: u64,
) -> bool {
    let space = AddressSpace {
        root: GuestPhys::new(root),
        levels,
    };
    KernelView::new(memory, space)
        .translate(at)
        .is_ok_and(|found| found.get() == physical)
}
