//! The address spaces that virtual CPUs can be in, by what is known of their registers.

use crate::os::view::AddressSpace;
use lacuna_core::{GuestPhys, PagingLevels};

use crate::source::Cpu;

/// `CR4.PAE`, `CR4.LA57`, `EFER.LMA`.
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
/// With 32-bit PAE the table has 32 bytes, and its address that alignment.
const CR3_ADDRESS_PAE: u64 = 0xffff_ffe0;
/// Address bits of CR3 (Intel SDM volume 3, 4.5).
pub(super) const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bit of CR3 that tells the user from the kernel table under page-table isolation
/// (`PTI_PGTABLE_SWITCH_BIT`).
const PTI_SWITCH: u64 = 1 << 12;

/// The forms that a virtual CPU's page tables can have, by what is known of it.
pub(super) fn levels_of(cpu: &Cpu) -> Vec<PagingLevels> {
    let long = cpu.efer.map(|efer| efer & EFER_LMA != 0).or(cpu.long_mode);
    let four_or_five = match cpu.cr4 {
        Some(cr4) if cr4 & CR4_LA57 != 0 => vec![PagingLevels::Five],
        Some(_) => vec![PagingLevels::Four],
        None => vec![PagingLevels::Four, PagingLevels::Five],
    };
    let narrow = match cpu.cr4 {
        Some(cr4) if cr4 & CR4_PAE != 0 => vec![PagingLevels::Pae],
        Some(_) => vec![PagingLevels::Two],
        None => vec![PagingLevels::Pae, PagingLevels::Two],
    };
    match (long, cpu.cr4) {
        (Some(true), _) => four_or_five,
        (Some(false), _) => narrow,
        // 64-bit mode needs PAE.
        (None, Some(cr4)) if cr4 & CR4_PAE == 0 => narrow,
        (None, _) => [four_or_five, narrow].concat(),
    }
}

/// The physical address of the top-level table in `cr3`.
pub(super) fn table_of(cr3: u64, levels: PagingLevels) -> u64 {
    cr3 & match levels {
        PagingLevels::Pae => CR3_ADDRESS_PAE,
        PagingLevels::Two => 0xffff_f000,
        PagingLevels::Four | PagingLevels::Five => CR3_ADDRESS,
    }
}

/// The tables that a virtual CPU may be using: its own, and the kernel's of the pair under page-table
/// isolation.
pub(super) fn tables_of(cr3: u64, levels: PagingLevels) -> [AddressSpace; 2] {
    let table = table_of(cr3, levels);
    [table & !PTI_SWITCH, table].map(|table| AddressSpace {
        root: GuestPhys::new(table),
        levels,
    })
}

/// Address spaces in which the kernel may be mapped, by the registers.
pub fn spaces_of(cpus: &[Cpu]) -> Vec<AddressSpace> {
    let mut spaces = Vec::new();
    for cpu in cpus.iter().filter(|cpu| cpu.is_paging()) {
        for levels in levels_of(cpu) {
            for space in tables_of(cpu.cr3.unwrap_or(0), levels) {
                if !spaces.contains(&space) {
                    spaces.push(space);
                }
            }
        }
    }
    spaces
}
