//! Holding one VMCOREINFO note against what user memory cannot forge.

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels};

use super::identify::{Identified, Rejection, architecture};
use super::image::{Evidence, KERNEL_MAP, KERNEL_MAP_BYTES};
use super::kallsyms::{KallsymsError, Symbols};
use super::known_symbols::KnownSymbols;
use super::other_kernels::Tie;
use super::spaces::{CR3_ADDRESS, levels_of, table_of, tables_of};
use super::vmcoreinfo::{Kind, VmcoreInfo};
use crate::os::view::{AddressSpace, KernelView};
use crate::source::Cpu;

/// How far from `_stext` the system call's entry may be. Debian's text has 14 to 20 MiB.
const TEXT_BYTES: u64 = 64 << 20;
/// `CPU_ENTRY_AREA_PGD` (`arch/x86/include/asm/pgtable_64_types.h`): the top-level slot of the read-only IDT,
/// since 4.15.
const CPU_ENTRY_AREA: std::ops::Range<u64> = 0xffff_fe00_0000_0000..0xffff_fe80_0000_0000;
/// The fixed mappings at the end of the address space, which held the IDT before; until 3.9 it lay in the
/// image.
const FIXMAP: std::ops::Range<u64> = 0xffff_ffff_ff00_0000..0xffff_ffff_ffe0_0000;
/// `__NEW_UTS_LEN + 1`: bytes of a name in `struct new_utsname` (`include/uapi/linux/utsname.h`).
pub(super) const UTS_FIELD: usize = 65;
/// Where a 32-bit kernel's half can begin: `VMSPLIT_3G`, `3G_OPT`, `2G`, `2G_OPT`, `1G` (`arch/x86/Kconfig`).
pub(super) const PAGE_OFFSETS: [u64; 5] = [0xc000_0000, 0xb000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000];

/// How well a note is confirmed, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Confirmation {
    /// The kernel's image vouches for it.
    Image(Evidence),
    /// The variable that the kernel's symbol table calls `vmcoreinfo_note` leads to it.
    Symbol,
}

/// Holds a note against the virtual CPUs, their page tables and the kernel's image. `evidence`: how the
/// image vouches for it, if that is known already. `known`: symbol tables read before.
pub(super) fn confirm<M: GuestMemory>(
    memory: &mut M,
    info: VmcoreInfo,
    note_at: GuestPhys,
    cpus: &[Cpu],
    evidence: Option<Evidence>,
    known: &mut KnownSymbols,
) -> Result<(Confirmation, Identified), Rejection> {
    let mut confirmed = Vec::new();
    let release = info.release()?.to_owned();
    if let Some(processor) = info.other_processor() {
        return Err(Rejection::OtherProcessor(processor));
    }
    let stext = info.symbol("_stext")?;
    let narrow = stext.get() >> 32 == 0;
    let running: Vec<(usize, &Cpu)> = cpus
        .iter()
        .enumerate()
        .filter(|(_, cpu)| cpu.is_paging())
        .collect();
    if running.is_empty() && cpus.iter().any(|cpu| cpu.cr0.is_some()) {
        return Err(Rejection::NotLongMode);
    }
    let levels = levels_by(&info, narrow, &running)?;
    let top = in_kernel(&info, "init_top_pgt", levels)
        .or_else(|_| in_kernel(&info, "swapper_pg_dir", levels))
        .or_else(|_| in_kernel(&info, "init_level4_pgt", levels))?;
    let text = in_kernel(&info, "_stext", levels)?;
    let uts = in_kernel(&info, "init_uts_ns", levels)?;

    let space = confirm_page_tables(memory, &info, levels, top, &running)?;
    confirmed.push(of_tables(space, running.len(), "init_top_pgt"));

    let mut view = KernelView::new(memory, space);
    confirm_release(&mut view, &info, uts, &release)?;
    confirmed.push(format!("init_uts_ns, read through them, says {release}"));
    confirm_registers(&running, levels, text, &mut confirmed)?;

    let symbols = match known.look_up(&mut view, &info) {
        Ok(symbols) => Some(symbols),
        Err(KallsymsError::NotOffered(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let mut banner = None;
    let mut by_symbol = false;
    if let Some(symbols) = &symbols {
        by_symbol = confirm_by_symbols(&mut view, symbols, note_at, &running, &mut confirmed)?;
        if let Some(at) = symbols.find("linux_banner") {
            banner = Some(view.text(at, 512)?.trim_end().to_owned());
        }
    }
    let mut confirmation = Confirmation::Symbol;
    if !by_symbol {
        let evidence = evidence.map_or_else(|| known.evidence_for(memory, space, text, note_at), Ok)?;
        confirmed.push(in_words(evidence).to_owned());
        confirmation = Confirmation::Image(evidence);
    }
    Ok((
        confirmation,
        Identified {
            release,
            banner,
            build_id: info.word("BUILD-ID").map(str::to_owned),
            note_at: Some(note_at),
            info,
            space,
            symbols,
            tie: Tie::of(cpus, text),
            confirmed,
            rejected: Vec::new(),
        },
    ))
}

/// The kernel's own page tables: every virtual CPU's map the top-level table that the note names where it
/// says, and so does that table itself.
fn confirm_page_tables<M: GuestMemory>(
    memory: &mut M,
    info: &VmcoreInfo,
    levels: PagingLevels,
    top: GuestVirt,
    running: &[(usize, &Cpu)],
) -> Result<AddressSpace, Rejection> {
    let root = find_root(memory, info, levels, top, running)?;
    let space = AddressSpace {
        root: GuestPhys::new(root),
        levels,
    };
    all_map(memory, running, space, ("init_top_pgt", top))?;
    if maps_to(memory, space, top, root) {
        Ok(space)
    } else {
        Err(unmapped(running, root, root))
    }
}

/// The page tables of every virtual CPU map the top-level table `top`, a symbol and its address, to that of
/// `space`.
pub(super) fn all_map<M: GuestMemory>(
    memory: &mut M,
    running: &[(usize, &Cpu)],
    space: AddressSpace,
    top: (&'static str, GuestVirt),
) -> Result<(), Rejection> {
    let (symbol, at) = top;
    let AddressSpace { root, levels } = space;
    for (vcpu, cpu) in running {
        let cr3 = cpu.cr3.unwrap_or(0);
        let maps = tables_of(cr3, levels)
            .into_iter()
            .any(|space| maps_to(memory, space, at, root.get()));
        if !maps {
            return Err(Rejection::PageTables {
                vcpu: *vcpu,
                root: table_of(cr3, levels),
                symbol,
                stated: root.get(),
            });
        }
    }
    Ok(())
}

/// What the page tables confirm of the top-level table `symbol`.
pub(super) fn of_tables(space: AddressSpace, running: usize, symbol: &str) -> String {
    let root = space.root.get();
    if running == 0 {
        format!("without registers: the page table at {root:#x} maps {symbol} to itself")
    } else {
        format!("the page tables of all {running} paging virtual CPUs map {symbol} to {root:#x}")
    }
}

/// Whether a top-level table can lie at `root`.
pub(super) fn is_root(root: u64, levels: PagingLevels) -> bool {
    let alignment = if levels == PagingLevels::Pae {
        32
    } else {
        PAGE_SIZE as u64
    };
    root.is_multiple_of(alignment) && root & !CR3_ADDRESS & !0xfff == 0
}

/// How the kernel's image vouches for its note.
fn in_words(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Inside => "the note lies in the kernel's image",
        Evidence::Word => "a word of the kernel's image leads to this very note",
        Evidence::Neighbours => {
            "the kernel's image has vmcoreinfo_note, vmcoreinfo_size and vmcoreinfo_data for this very note"
        }
    }
}

/// The form of the page tables: by the note, and no other than what the virtual CPUs can have.
fn levels_by(info: &VmcoreInfo, narrow: bool, running: &[(usize, &Cpu)]) -> Result<PagingLevels, Rejection> {
    let stated = info.wrapping_number("pgtable_l5_enabled").unwrap_or(0);
    let levels = if !narrow {
        if stated == 1 {
            PagingLevels::Five
        } else {
            PagingLevels::Four
        }
    } else if info.word("CONFIG_X86_PAE") == Some("y") || info.word("CONFIG(X86_PAE)") == Some("y") {
        PagingLevels::Pae
    } else {
        PagingLevels::Two
    };
    for (_, cpu) in running {
        let possible = levels_of(cpu);
        if possible.contains(&levels) {
            continue;
        }
        if possible.iter().all(|possible| possible.is_32_bit() != narrow) {
            return Err(Rejection::WordSize {
                stated: architecture(levels),
            });
        }
        return Err(Rejection::Levels {
            stated,
            cr4: cpu.cr4.unwrap_or(0),
        });
    }
    Ok(levels)
}

/// Physical address of the kernel's reference table.
fn find_root<M: GuestMemory>(
    memory: &mut M,
    info: &VmcoreInfo,
    levels: PagingLevels,
    top: GuestVirt,
    running: &[(usize, &Cpu)],
) -> Result<u64, Rejection> {
    let valid = |root: u64| is_root(root, levels);
    let by_note = if levels.is_32_bit() {
        None
    } else {
        info.wrapping_number("phys_base")
            .ok()
            .map(|base| top.get().wrapping_sub(KERNEL_MAP).wrapping_add(base))
    };
    if let Some(root) = by_note {
        return if valid(root) {
            Ok(root)
        } else {
            Err(unmapped(running, root, root))
        };
    }
    // 32-bit kernels, and old ones: a virtual CPU's tables say where it is,
    for (_, cpu) in running {
        for space in tables_of(cpu.cr3.unwrap_or(0), levels) {
            if let Ok(at) = KernelView::new(memory, space).translate(top)
                && valid(at.get())
            {
                return Ok(at.get());
            }
        }
    }
    // and without one, the place at which it maps itself.
    let starts: &[u64] = if levels.is_32_bit() {
        &PAGE_OFFSETS
    } else {
        &[KERNEL_MAP]
    };
    let root = starts
        .iter()
        .filter_map(|start| top.get().checked_sub(*start))
        .find(|root| {
            let space = AddressSpace {
                root: GuestPhys::new(*root),
                levels,
            };
            valid(*root) && running.is_empty() && maps_to(memory, space, top, *root)
        });
    root.ok_or_else(|| {
        let table = running.first().map_or(0, |(_, cpu)| cpu.cr3.unwrap_or(0));
        unmapped(running, table, table)
    })
}

/// The page table at `root` does not map `init_top_pgt` to `stated`.
fn unmapped(running: &[(usize, &Cpu)], root: u64, stated: u64) -> Rejection {
    let symbol = "init_top_pgt";
    match running.first() {
        Some((vcpu, _)) => Rejection::PageTables {
            vcpu: *vcpu,
            root,
            symbol,
            stated,
        },
        None => Rejection::OwnTables { root, symbol },
    }
}

fn confirm_release<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
    uts: GuestVirt,
    release: &str,
) -> Result<(), Rejection> {
    // Without a line for it (before 5.11) the names come after a reference count of four bytes, or first.
    let places = match info.unsigned(Kind::Offset, "uts_namespace.name") {
        Ok(at) => vec![at],
        Err(_) => vec![4, 0],
    };
    let mut refusal = None;
    for names in places {
        // The third name of struct new_utsname: sysname, nodename, release.
        let at = GuestVirt::new(uts.get().wrapping_add(names).wrapping_add(2 * UTS_FIELD as u64));
        let found = view.text(at, UTS_FIELD)?;
        if found == release {
            return Ok(());
        }
        refusal.get_or_insert(Rejection::Release {
            stated: release.to_owned(),
            found,
        });
    }
    refusal.map_or(Ok(()), Err)
}

/// What of the registers can be held against the kernel's text and its IDT's place.
pub(super) fn confirm_registers(
    running: &[(usize, &Cpu)],
    levels: PagingLevels,
    text: GuestVirt,
    confirmed: &mut Vec<String>,
) -> Result<(), Rejection> {
    let mut idts = 0;
    for (vcpu, cpu) in running {
        let register = |register, found, expected: String| Rejection::Register {
            vcpu: *vcpu,
            register,
            found,
            expected,
        };
        if let Some(idt) = cpu.idt_base {
            let image = KERNEL_MAP..KERNEL_MAP + KERNEL_MAP_BYTES;
            let fits = if levels.is_32_bit() {
                levels.in_kernel_half(idt)
            } else {
                CPU_ENTRY_AREA.contains(&idt) || FIXMAP.contains(&idt) || image.contains(&idt)
            };
            if !fits {
                return Err(register(
                    "the IDT's base",
                    idt,
                    "in the CPU entry area or the kernel".into(),
                ));
            }
            idts += 1;
        }
        let text_range = text.get()..text.get().wrapping_add(TEXT_BYTES);
        if let Some(lstar) = cpu.lstar.filter(|_| !levels.is_32_bit())
            && !text_range.contains(&lstar)
        {
            return Err(register(
                "LSTAR",
                lstar,
                format!("within 64 MiB of _stext ({:#x})", text.get()),
            ));
        }
    }
    if idts > 0 && idts == running.len() {
        confirmed.push("every paging virtual CPU has its IDT in the CPU entry area or the kernel".into());
    }
    Ok(())
}

/// Holds the symbol table against the registers and the note. True when the kernel's own pointer confirms the
/// note.
fn confirm_by_symbols<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: &Symbols,
    note_at: GuestPhys,
    running: &[(usize, &Cpu)],
    confirmed: &mut Vec<String>,
) -> Result<bool, Rejection> {
    if let Some(entry) = symbols.find("entry_SYSCALL_64") {
        for (vcpu, cpu) in running {
            if let Some(lstar) = cpu.lstar.filter(|lstar| *lstar != entry.get()) {
                return Err(Rejection::Register {
                    vcpu: *vcpu,
                    register: "LSTAR",
                    found: lstar,
                    expected: format!("entry_SYSCALL_64 ({:#x})", entry.get()),
                });
            }
        }
        if !running.is_empty() && running.iter().all(|(_, cpu)| cpu.lstar.is_some()) {
            confirmed.push("LSTAR of every online virtual CPU is entry_SYSCALL_64".into());
        }
    }
    let Some(pointer) = symbols.find("vmcoreinfo_note") else {
        return Ok(false);
    };
    let own = GuestVirt::new(view.word(pointer)?);
    let own = view.translate(own)?;
    if own != note_at {
        return Err(Rejection::NotTheKernelsOwn { own: own.get() });
    }
    confirmed.push("vmcoreinfo_note points at this very note".into());
    Ok(true)
}

/// An address of the note that has to lie in the kernel's image.
fn in_kernel(info: &VmcoreInfo, symbol: &'static str, levels: PagingLevels) -> Result<GuestVirt, Rejection> {
    let at = info.symbol(symbol)?;
    let inside = if levels.is_32_bit() {
        levels.in_kernel_half(at.get())
    } else {
        (KERNEL_MAP..KERNEL_MAP + KERNEL_MAP_BYTES).contains(&at.get())
    };
    if inside {
        Ok(at)
    } else {
        Err(Rejection::OutsideImage { symbol, at: at.get() })
    }
}

/// Whether the tables at `space` have `at` at `physical`.
pub(super) fn maps_to<M: GuestMemory>(
    memory: &mut M,
    space: AddressSpace,
    at: GuestVirt,
    physical: u64,
) -> bool {
    KernelView::new(memory, space)
        .translate(at)
        .is_ok_and(|found| found.get() == physical)
}
