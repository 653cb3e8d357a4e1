//! Xen cores: `xl dump-core` (Xen's `docs/misc/dump-core-format.txt`, `xen/include/public/arch-x86/xen.h`).
//!
//! Pages lie one after the other in `.xen_pages`; `.xen_pfn` gives the number of each. `.xen_prstatus` has a
//! `vcpu_guest_context` for each virtual CPU. Of an HVM or PVH guest that holds CR0, CR3 and CR4 and no IDT,
//! EFER or LSTAR (`xen/arch/x86/domctl.c`, `arch_get_info_guest`). Cores of PV guests have `.xen_p2m`: their
//! page tables hold machine addresses, and such guests have no memory of their own to give back; they are
//! refused.

use lacuna_core::PAGE_SIZE;

use super::elf::{Elf, Fields, impossible};
use super::extents::Extent;
use super::file::ReadFile;
use super::{DumpError, Parts};
use crate::source::Cpu;

/// A page that is not there (`XC_CORE_INVALID_PFN`).
const INVALID_PFN: u64 = u64::MAX;
/// Most frames accepted: 52-bit physical addresses.
const MAX_PFN: u64 = 1 << 40;
/// Entries of `.xen_pfn` read at once.
const ENTRIES_AT_ONCE: u64 = 1 << 16;
/// `sizeof(vcpu_guest_context_t)`, 64 and 32 bits.
const CONTEXT_64: u64 = 5168;
const CONTEXT_32: u64 = 2800;

/// Takes memory and virtual CPUs out of a Xen core; `None` when it is none.
///
/// # Errors
/// [`DumpError`].
pub(super) fn read(file: &ReadFile, elf: &Elf) -> Result<Option<Parts>, DumpError> {
    let Some(pages) = elf.section(".xen_pages") else {
        return Ok(None);
    };
    let Some(numbers) = elf.section(".xen_pfn") else {
        return Err(if elf.section(".xen_p2m").is_some() {
            DumpError::OtherFormat {
                what: "the core of a Xen PV guest",
                remedy: "only HVM and PVH guests have memory that can be shared",
            }
        } else {
            DumpError::Truncated {
                what: "section .xen_pfn",
                needed: file.length().saturating_add(1),
                length: file.length(),
            }
        });
    };
    let mut parts = Parts::default();
    let page = PAGE_SIZE as u64;
    let there = file.length().saturating_sub(pages.offset).min(pages.bytes) / page;
    let promised = (pages.bytes / page).min(numbers.bytes / 8);
    parts.missing = promised.saturating_sub(there).saturating_mul(page);
    if there < promised {
        parts.remarks.push(format!(
            "the file is cut short: {} pages that its headers promise are missing",
            promised - there
        ));
    }
    let count = promised.min(there);
    let mut index = 0;
    while index < count {
        let entries = ENTRIES_AT_ONCE.min(count - index);
        let table = file.bytes(
            "section .xen_pfn",
            numbers.offset.saturating_add(index * 8),
            entries * 8,
        )?;
        for (entry, bytes) in (index..).zip(table.chunks_exact(8)) {
            let pfn = Fields { bytes, wide: true }.number(0, 8);
            if pfn == INVALID_PFN {
                continue;
            }
            if pfn >= MAX_PFN {
                return Err(impossible("page number in .xen_pfn", pfn));
            }
            let offset = pages.offset + entry * page;
            match parts.extents.last_mut() {
                Some(last) if last.start + last.bytes == pfn * page && last.offset + last.bytes == offset => {
                    last.bytes += page;
                }
                _ => parts.extents.push(Extent {
                    start: pfn * page,
                    bytes: page,
                    offset,
                }),
            }
        }
        index += entries;
    }
    read_cpus(file, elf, &mut parts)?;
    Ok(Some(parts))
}

/// Takes the virtual CPUs out of a Xen core.
fn read_cpus(file: &ReadFile, elf: &Elf, parts: &mut Parts) -> Result<(), DumpError> {
    let Some(contexts) = elf.section(".xen_prstatus") else {
        return Ok(());
    };
    let size = if contexts.entry_bytes == 0 {
        CONTEXT_64
    } else {
        contexts.entry_bytes
    };
    if size != CONTEXT_64 && size != CONTEXT_32 {
        parts.remarks.push(format!(
            "registers of {size} bytes for a virtual CPU are not known ({CONTEXT_64} and {CONTEXT_32} are)"
        ));
        return Ok(());
    }
    if contexts.bytes / size > super::MAX_CPUS as u64 {
        return Err(impossible("number of virtual CPUs", contexts.bytes / size));
    }
    match file.bytes("section .xen_prstatus", contexts.offset, contexts.bytes) {
        Ok(bytes) => {
            let each = bytes.chunks_exact(usize::try_from(size).unwrap_or(usize::MAX));
            parts.cpus = each.map(|context| cpu(context, size == CONTEXT_64)).collect();
        }
        Err(error) => parts.remarks.push(error.to_string()),
    }
    Ok(())
}

/// A virtual CPU's context. Zero is "not said": the control registers of a CPU that runs are not.
fn cpu(context: &[u8], wide: bool) -> Cpu {
    let context = Fields { bytes: context, wide };
    // After the FPU's 512 bytes and `flags`: user_regs, trap_ctxt[256], LDT, GDT, the kernel's stack, then
    // ctrlreg[8].
    let (control, width, rip, rsp, segments) = if wide {
        (4984, 8, 520 + 16 * 8, 520 + 19 * 8, 5144)
    } else {
        (2716, 4, 516 + 8 * 4, 516 + 11 * 4, 0)
    };
    let said = |at: usize| Some(context.number(at, width)).filter(|value| *value != 0);
    let base = |index: usize| wide.then(|| context.number(segments + 8 * index, 8));
    Cpu {
        cr0: said(control),
        cr3: said(control + 3 * width),
        cr4: said(control + 4 * width),
        fs_base: base(0),
        gs_base: base(1),
        rip: said(rip),
        rsp: said(rsp),
        ..Cpu::default()
    }
}
