//! Guard I: does the guest still run the kernel that the profile describes?
//!
//! A kexec leaves the old kernel's memory map behind, intact and false. What a profile says may be acted on only while
//! every online virtual CPU still runs that very boot of that kernel. None of the checks suffices alone (DESIGN.md,
//! safety argument): Linux' IDT lies at the same address in every kernel, and the same kernel started again without
//! KASLR has the same `LSTAR` and the same page tables; the value drawn at random at each boot tells those apart, and
//! the IDT limit of 0 covers the time in which kexec copies.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory_map::read_virtual;
use crate::{GuestMemory, GuestPhys, Profile};

/// Accessed (bit 5) and dirty (bit 6) of a page-table entry: set by the processor, so never compared.
pub(crate) const ACCESSED_DIRTY: u64 = 0x60;
/// Bits of a top-level entry that the guard compares: present, and the address of the next table.
const COMPARED: u64 = 0x000f_ffff_ffff_f001;
/// `CR0.PG` and `CR0.PE`: paging and protection on.
const CR0_PAGED: u64 = 0x8000_0001;
/// `EFER.LMA`: 64-bit mode is active.
const EFER_LMA: u64 = 1 << 10;
/// `CR4.LA57`.
const CR4_LA57: u64 = 1 << 12;
/// With page-table isolation the user half of a pair of top-level tables has this bit of its address set
/// (Linux `arch/x86/include/asm/pgtable.h`, `PTI_PGTABLE_SWITCH_BIT`).
const PTI_SWITCH: u64 = 1 << 12;

/// The registers of one virtual CPU, read while it does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3, with PCID bits.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// Base of the interrupt descriptor table.
    pub idt_base: u64,
    /// `IA32_LSTAR`.
    pub lstar: u64,
    /// Limit of the interrupt descriptor table, in bytes minus one.
    pub idt_limit: u32,
    /// Bit 0: the virtual CPU is online (it has been brought up and not taken down).
    pub flags: u32,
}

impl VcpuRegisters {
    /// Bit of `flags`: online.
    pub const ONLINE: u32 = 1;
}

/// Which check failed. The numbers cross the hypercall (`result[1]` of `Status::KernelChanged`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardFailure {
    /// Not in 64-bit mode with paging.
    Mode,
    /// The number of page-table levels.
    Levels,
    /// Base of the IDT.
    IdtBase,
    /// Limit of the IDT.
    IdtLimit,
    /// `LSTAR`.
    Lstar,
    /// A top-level page-table entry.
    RootSlot,
    /// The random value of this boot.
    BootValue,
    /// The boot value, or a page table, could not be read.
    Unreadable,
}

impl GuardFailure {
    /// The stable number of this check.
    pub const fn code(self) -> u64 {
        match self {
            Self::Mode => 1,
            Self::Levels => 2,
            Self::IdtBase => 3,
            Self::IdtLimit => 4,
            Self::Lstar => 5,
            Self::RootSlot => 6,
            Self::BootValue => 7,
            Self::Unreadable => 8,
        }
    }

    /// The check with number `code`.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Mode,
            2 => Self::Levels,
            3 => Self::IdtBase,
            4 => Self::IdtLimit,
            5 => Self::Lstar,
            6 => Self::RootSlot,
            7 => Self::BootValue,
            8 => Self::Unreadable,
            _ => return None,
        })
    }
}

/// A failed guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardMismatch {
    /// The virtual CPU; 0 for what concerns all of them.
    pub vcpu: u32,
    /// What failed.
    pub failure: GuardFailure,
    /// The value found.
    pub found: u64,
    /// The value of the profile.
    pub expected: u64,
}

impl GuardMismatch {
    /// Whether another kernel certainly runs, so that the profile can never become true again. The other checks, and
    /// an `LSTAR` that is still 0, can fail for a moment in a healthy guest (a virtual CPU on its way up, a firmware
    /// call).
    pub const fn is_final(&self) -> bool {
        match self.failure {
            GuardFailure::BootValue => true,
            GuardFailure::Lstar => self.found != 0,
            _ => false,
        }
    }
}

/// Checks one virtual CPU's registers and page-table root against `profile`. Offline ones pass: they run nothing.
///
/// # Errors
/// The first [`GuardMismatch`].
pub fn check_guard<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    vcpu: u32,
    registers: &VcpuRegisters,
) -> Result<(), GuardMismatch> {
    if registers.flags & VcpuRegisters::ONLINE == 0 {
        return Ok(());
    }
    let guard = &profile.guard;
    let require = |holds: bool, failure: GuardFailure, found: u64, expected: u64| {
        if holds {
            Ok(())
        } else {
            Err(GuardMismatch {
                vcpu,
                failure,
                found,
                expected,
            })
        }
    };
    // The IDT limit first: it is the earliest sign of a kexec, and the others may still look right.
    require(
        registers.idt_limit == guard.idt_limit,
        GuardFailure::IdtLimit,
        u64::from(registers.idt_limit),
        u64::from(guard.idt_limit),
    )?;
    require(
        registers.idt_base == guard.idt_base,
        GuardFailure::IdtBase,
        registers.idt_base,
        guard.idt_base,
    )?;
    require(
        registers.cr0 & CR0_PAGED == CR0_PAGED,
        GuardFailure::Mode,
        registers.cr0,
        CR0_PAGED,
    )?;
    require(
        registers.efer & EFER_LMA != 0,
        GuardFailure::Mode,
        registers.efer,
        EFER_LMA,
    )?;
    let five = u64::from(profile.levels == crate::PagingLevels::Five);
    require(
        (registers.cr4 & CR4_LA57) >> 12 == five,
        GuardFailure::Levels,
        registers.cr4,
        five << 12,
    )?;
    require(
        registers.lstar == guard.lstar,
        GuardFailure::Lstar,
        registers.lstar,
        guard.lstar,
    )?;

    let root = registers.cr3 & 0x000f_ffff_ffff_f000;
    match check_root(memory, profile, vcpu, root) {
        Err(first) if root & PTI_SWITCH != 0 => {
            // A virtual CPU stopped in user mode under page-table isolation: its kernel table is the other of the pair.
            check_root(memory, profile, vcpu, root & !PTI_SWITCH).map_err(|_| first)
        }
        other => other,
    }
}

fn check_root<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    vcpu: u32,
    root: u64,
) -> Result<(), GuardMismatch> {
    for slot in &profile.guard.root_slots {
        let at = GuestPhys::new(root + u64::from(slot.index) * 8);
        let found = memory.read_value(at, 8).map_err(|_| GuardMismatch {
            vcpu,
            failure: GuardFailure::Unreadable,
            found: at.get(),
            expected: slot.entry,
        })?;
        if found & COMPARED != slot.entry & COMPARED {
            return Err(GuardMismatch {
                vcpu,
                failure: GuardFailure::RootSlot,
                found,
                expected: slot.entry,
            });
        }
    }
    Ok(())
}

/// Checks the value that the kernel draws at each boot.
///
/// # Errors
/// A [`GuardMismatch`] for virtual CPU 0.
pub(crate) fn check_boot_value<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
) -> Result<(), GuardMismatch> {
    let guard = &profile.guard;
    let mismatch = |failure, found| GuardMismatch {
        vcpu: 0,
        failure,
        found,
        expected: guard.boot_value,
    };
    let found = read_virtual(memory, profile.root, profile.levels, guard.boot_value_at, 8)
        .map_err(|_| mismatch(GuardFailure::Unreadable, guard.boot_value_at.get()))?;
    if found == guard.boot_value {
        Ok(())
    } else {
        Err(mismatch(GuardFailure::BootValue, found))
    }
}
