//! The identity check: does the guest still run the kernel that the profile describes?
//!
//! A kexec leaves the old kernel's memory map behind, intact and false. What a profile says may be acted on
//! only while every online virtual CPU still runs that very boot of that kernel. None of the checks suffices
//! alone. Linux' IDT lies at the same address in every kernel, and the same kernel started again without
//! KASLR has the same `LSTAR` and the same page tables. The value drawn at random at each boot tells those
//! apart. An IDT limit of 0 covers the time in which kexec copies.
//!
//! Kernels differ in what identifies them. 64-bit Linux has one IDT for all processors, and processes whose
//! top-level tables share the kernel's entries: both are compared as they are. Windows has an IDT for each
//! processor: a gate of it is compared. The processes of 32-bit kernels have page directories of their own,
//! and under Windows' KVA shadow user programs run on tables that hold little of the kernel: what must agree
//! there is where an address leads.

use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::registers::model_specific::EferFlags;

use crate::guest::{address, is_present};
use crate::judge::memory_map::read_virtual;
use crate::{Gate, GuestMemory, GuestPhys, GuestVirt, PagingLevels, Profile, VcpuRegisters, walk};

/// Paging and protection on.
const CR0_PAGED: u64 = Cr0Flags::PAGING.union(Cr0Flags::PROTECTED_MODE_ENABLE).bits();
/// 64-bit mode is active.
const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();
const CR4_PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
const CR4_LA57: u64 = Cr4Flags::L5_PAGING.bits();
/// With page-table isolation the user half of a pair of top-level tables has this bit of its address set
/// (Linux `arch/x86/include/asm/pgtable.h`, `PTI_PGTABLE_SWITCH_BIT`).
const PTI_SWITCH: u64 = 1 << 12;

/// Which check failed. The numbers cross the hypercall (`result[1]` of `Status::KernelChanged`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityCheck {
    /// Not in 64-bit mode with paging, or, for a 32-bit kernel, not in 32-bit mode.
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
    /// `SYSENTER_EIP`.
    SysenterEip,
    /// Where a gate of the IDT leads.
    Gate,
    /// Where an address of the kernel leads.
    Anchor,
}

impl IdentityCheck {
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
            Self::SysenterEip => 9,
            Self::Gate => 10,
            Self::Anchor => 11,
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
            9 => Self::SysenterEip,
            10 => Self::Gate,
            11 => Self::Anchor,
            _ => return None,
        })
    }
}

/// What the identity check found otherwise than the profile says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityMismatch {
    /// The virtual CPU; 0 for what concerns all of them.
    pub vcpu: u32,
    /// What failed.
    pub failure: IdentityCheck,
    /// The value found.
    pub found: u64,
    /// The value of the profile.
    pub expected: u64,
}

impl IdentityMismatch {
    /// Whether another kernel certainly runs, so that the profile can never become true again. The other
    /// checks, and an entry point that is still 0, can fail for a moment in a healthy guest (a virtual CPU on
    /// its way up, a firmware call).
    pub const fn is_final(&self) -> bool {
        match self.failure {
            IdentityCheck::BootValue => true,
            IdentityCheck::Lstar | IdentityCheck::SysenterEip => self.found != 0,
            _ => false,
        }
    }
}

/// Checks one virtual CPU's registers and page-table root against `profile`. Offline ones pass: they run
/// nothing.
///
/// # Errors
/// The first [`IdentityMismatch`].
pub fn check_identity<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    vcpu: u32,
    registers: &VcpuRegisters,
) -> Result<(), IdentityMismatch> {
    if registers.flags & VcpuRegisters::ONLINE == 0 {
        return Ok(());
    }
    check_registers(profile, vcpu, registers)?;
    match check_tables(memory, profile, vcpu, registers, registers.cr3) {
        Err(first) if registers.cr3 & PTI_SWITCH != 0 => {
            // A virtual CPU stopped in user mode under page-table isolation: its kernel table is the other of
            // the pair.
            check_tables(memory, profile, vcpu, registers, registers.cr3 & !PTI_SWITCH).map_err(|_| first)
        }
        other => other,
    }
}

/// What the registers alone say of the kernel.
fn check_registers(profile: &Profile, vcpu: u32, registers: &VcpuRegisters) -> Result<(), IdentityMismatch> {
    let identity = &profile.identity;
    let require = |holds: bool, failure: IdentityCheck, found: u64, expected: u64| {
        if holds {
            Ok(())
        } else {
            Err(IdentityMismatch {
                vcpu,
                failure,
                found,
                expected,
            })
        }
    };
    // The IDT limit first: it is the earliest sign of a kexec, and the others may still look right.
    require(
        registers.idt_limit == identity.idt_limit,
        IdentityCheck::IdtLimit,
        u64::from(registers.idt_limit),
        u64::from(identity.idt_limit),
    )?;
    require(
        identity.idt_base == 0 || registers.idt_base == identity.idt_base,
        IdentityCheck::IdtBase,
        registers.idt_base,
        identity.idt_base,
    )?;
    require(
        registers.cr0 & CR0_PAGED == CR0_PAGED,
        IdentityCheck::Mode,
        registers.cr0,
        CR0_PAGED,
    )?;
    let long = if profile.levels.is_32_bit() { 0 } else { EFER_LMA };
    require(
        registers.efer & EFER_LMA == long,
        IdentityCheck::Mode,
        registers.efer,
        long,
    )?;
    let levels = match profile.levels {
        PagingLevels::Four | PagingLevels::Pae => CR4_PAE,
        PagingLevels::Five => CR4_PAE | CR4_LA57,
        PagingLevels::Two => 0,
    };
    require(
        registers.cr4 & (CR4_PAE | CR4_LA57) == levels,
        IdentityCheck::Levels,
        registers.cr4,
        levels,
    )?;
    require(
        identity.lstar == 0 || registers.lstar == identity.lstar,
        IdentityCheck::Lstar,
        registers.lstar,
        identity.lstar,
    )?;
    require(
        identity.sysenter_eip == 0 || registers.sysenter_eip == identity.sysenter_eip,
        IdentityCheck::SysenterEip,
        registers.sysenter_eip,
        identity.sysenter_eip,
    )
}

/// What the page tables that `cr3` names say of the kernel.
fn check_tables<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    vcpu: u32,
    registers: &VcpuRegisters,
    cr3: u64,
) -> Result<(), IdentityMismatch> {
    let mismatch = |failure, found, expected| IdentityMismatch {
        vcpu,
        failure,
        found,
        expected,
    };
    for slot in &profile.identity.root_slots {
        let at = GuestPhys::new(address(cr3) + u64::from(slot.index) * 8);
        let found = memory
            .read_value(at, 8)
            .map_err(|_| mismatch(IdentityCheck::Unreadable, at.get(), slot.entry))?;
        // The address of the next table; its other bits may change.
        let compared = |entry| (is_present(entry), address(entry));
        if compared(found) != compared(slot.entry) {
            return Err(mismatch(IdentityCheck::RootSlot, found, slot.entry));
        }
    }
    for anchor in &profile.identity.anchors {
        let expected = anchor.physical.get();
        let found = walk(memory, GuestPhys::new(cr3), profile.levels, anchor.at)
            .ok()
            .and_then(|mapping| mapping.translate(anchor.at))
            .ok_or(mismatch(IdentityCheck::Unreadable, anchor.at.get(), expected))?;
        if found != anchor.physical {
            return Err(mismatch(IdentityCheck::Anchor, found.get(), expected));
        }
    }
    if let Some(gate) = profile.identity.gate {
        let expected = gate.handler.get();
        let found = handler(memory, profile.levels, registers.idt_base, gate, cr3).ok_or(mismatch(
            IdentityCheck::Unreadable,
            registers.idt_base,
            expected,
        ))?;
        if found != expected {
            return Err(mismatch(IdentityCheck::Gate, found, expected));
        }
    }
    Ok(())
}

/// Where a gate of the interrupt descriptor table at `idt` leads (Intel SDM volume 3, figures 6-2 and 6-8);
/// `None` where it cannot be read. A gate that is not present leads nowhere: 0.
fn handler<M: GuestMemory>(
    memory: &mut M,
    levels: PagingLevels,
    idt: u64,
    gate: Gate,
    cr3: u64,
) -> Option<u64> {
    const PRESENT: u64 = 1 << 47;
    let bytes = if levels.is_32_bit() { 8 } else { 16 };
    let at = GuestVirt::new(idt).checked_add(u64::from(gate.vector) * bytes)?;
    let root = GuestPhys::new(cr3);
    let low = read_virtual(memory, root, levels, at, 8).ok()?;
    let high = if levels.is_32_bit() {
        0
    } else {
        read_virtual(memory, root, levels, at.checked_add(8)?, 8).ok()? & 0xffff_ffff
    };
    if low & PRESENT == 0 {
        return Some(0);
    }
    Some(high << 32 | (low >> 32 & 0xffff_0000) | (low & 0xffff))
}

/// Checks the value that the kernel draws at each boot, where the profile has one.
///
/// # Errors
/// A [`IdentityMismatch`] for virtual CPU 0.
pub(crate) fn check_boot_value<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
) -> Result<(), IdentityMismatch> {
    let Some(drawn) = profile.identity.boot_value else {
        return Ok(());
    };
    let mismatch = |failure, found| IdentityMismatch {
        vcpu: 0,
        failure,
        found,
        expected: drawn.value,
    };
    let found = read_virtual(memory, profile.root, profile.levels, drawn.at, drawn.bytes)
        .map_err(|_| mismatch(IdentityCheck::Unreadable, drawn.at.get()))?;
    if found == drawn.value {
        Ok(())
    } else {
        Err(mismatch(IdentityCheck::BootValue, found))
    }
}
