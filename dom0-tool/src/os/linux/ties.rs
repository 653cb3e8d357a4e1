//! What ties a profile to its kernel and boot: registers, page-table entries, and a random value.

use lacuna_core::{
    Anchor, BootValue, GuestMemory, GuestVirt, Identity, MAX_ANCHORS, MAX_ROOT_SLOTS, PagingLevels, Profile,
    RootSlot, VcpuRegisters, check_identity,
};

use super::facts::{Facts, Source};
use super::first_task::find_first_task;
use super::kallsyms::Symbols;
use super::profile::BuildError;
use crate::os::view::{KernelView, ViewError};
use crate::source::Cpu;

/// Accessed and dirty, which the processor sets by itself.
const ACCESSED_DIRTY: u64 = 0x60;
/// What a dump's registers most often lack; the rest of the identity can be checked all the same.
const LSTAR_MISSING: &str = "the registers lack LSTAR";
/// By the headers' word: nothing tells this boot from another, so such a guest is left alone while it runs.
const NO_STACK_PROTECTOR: &str = "the kernel is built without a stack protector, and no syncookie_secret, ptr_key or sysctl_bootid is known that it has drawn, nor a wall_to_monotonic that has the time of its boot: nothing ties a profile to this boot, and a kexec would go unnoticed";
/// What a kernel draws at random once a boot, without a stack protector, too. Each is 0 before, is never drawn
/// again, and lies in the image, which a new kernel loads or clears before it has page tables and an IDT.
const DRAWN_ONCE: [&str; 3] = [
    // The secret of its SYN cookies (`net/ipv4/syncookies.c`): in an initcall until 3.12, since 3.13 with the
    // first cookie.
    "syncookie_secret",
    // The key by which `%p` hides addresses (`lib/vsprintf.c`, since 4.15): in an initcall, or as soon as
    // there are random numbers.
    "ptr_key",
    // `/proc/sys/kernel/random/boot_id` (`drivers/char/random.c`): when it is first read.
    "sysctl_bootid",
];
/// Minus the time at which the kernel was booted (`kernel/timer.c`, later `kernel/time/timekeeping.c`; until
/// 3.3): seconds first. It is set once the memory map is the new kernel's own, and again where the clock is
/// set, after which a profile does not fit any more.
const BOOTED_AT: &str = "wall_to_monotonic";
/// Seconds since 1970 that a clock shows which was set. One that was not can show the same at each boot.
const CLOCK_IS_SET: std::ops::Range<u64> = 1_000_000_000..1 << 31;
/// Boot value of a profile that is only looked at: no kernel's, so that no guest is ever taken for the one
/// described.
const NO_BOOT_VALUE: u64 = 1;

/// The virtual CPUs that run, and where each enters the kernel.
pub(super) struct Registers {
    vcpus: Vec<VcpuRegisters>,
    first: VcpuRegisters,
    /// Where the 64-bit system call leads: by the first virtual CPU, or by the symbol that stands in for it.
    lstar: u64,
    are_complete: bool,
}

impl Registers {
    /// Those of `cpus`. What of them is missing for use on a live guest is left in `unusable`.
    pub(super) fn of(
        cpus: &[Cpu],
        levels: PagingLevels,
        symbols: Option<&Symbols>,
        unusable: &mut Option<&'static str>,
    ) -> Self {
        let running = || cpus.iter().filter(|cpu| cpu.is_paging());
        let vcpus: Vec<VcpuRegisters> = running().map(Cpu::registers).collect();
        let first = vcpus.first().copied().unwrap_or_default();
        // A file of registers may lack LSTAR; the symbol then stands in for it, so that the rest can be
        // checked.
        let mut lstar = first.lstar;
        if !levels.is_32_bit() && lstar == 0 {
            unusable.get_or_insert(LSTAR_MISSING);
            let by_symbol = |name| symbols.and_then(|symbols| symbols.find(name));
            // Until 4.1 it was called system_call.
            match by_symbol("entry_SYSCALL_64").or_else(|| by_symbol("system_call")) {
                Some(entry) => lstar = entry.get(),
                None => *unusable = Some("the registers lack LSTAR, and the kernel's symbols are not known"),
            }
        }
        if levels.is_32_bit() && first.sysenter_eip == 0 {
            unusable.get_or_insert("the registers lack SYSENTER_EIP");
        }
        let all_known = running().all(|cpu| {
            cpu.cr0.is_some() && cpu.cr4.is_some() && cpu.idt_base.is_some() && cpu.idt_limit.is_some()
        });
        let are_complete = all_known && !vcpus.is_empty();
        if !are_complete {
            unusable.get_or_insert("the control registers are not all known");
        }
        Self {
            vcpus,
            first,
            lstar,
            are_complete,
        }
    }

    /// Whether they can be held against the profile, with this missing.
    pub(super) fn are_checkable(&self, unusable: Option<&'static str>) -> bool {
        self.are_complete && unusable.is_none_or(|missing| missing == LSTAR_MISSING)
    }

    /// What identifies the kernel in a profile, without anchors. Where it is only looked at, the first byte
    /// of the kernel's text, which no register holds, stands in place of what is missing.
    pub(super) fn identity(
        &self,
        levels: PagingLevels,
        text: GuestVirt,
        unusable: Option<&'static str>,
        boot_value: BootValue,
        root_slots: heapless::Vec<RootSlot, MAX_ROOT_SLOTS>,
    ) -> Identity {
        let is_32_bit = levels.is_32_bit();
        let text = text.get();
        let (idt_base, idt_limit, lstar, sysenter_eip) = if self.are_checkable(unusable) {
            let first = &self.first;
            (first.idt_base, first.idt_limit, self.lstar, first.sysenter_eip)
        } else {
            (text, if is_32_bit { 0x7ff } else { 0xfff }, text, text)
        };
        Identity {
            idt_base,
            idt_limit,
            lstar: if is_32_bit { 0 } else { lstar },
            sysenter_eip: if is_32_bit { sysenter_eip } else { 0 },
            gate: None,
            root_slots,
            anchors: heapless::Vec::new(),
            boot_value: Some(boot_value),
        }
    }

    /// Holds each virtual CPU against a profile.
    pub(super) fn check<M: GuestMemory>(&self, memory: &mut M, profile: &Profile) -> Result<(), BuildError> {
        for (vcpu, registers) in (0..).zip(&self.vcpus) {
            let filled = VcpuRegisters {
                lstar: if registers.lstar == 0 {
                    self.lstar
                } else {
                    registers.lstar
                },
                ..*registers
            };
            check_identity(&mut *memory, profile, vcpu, &filled)?;
        }
        Ok(())
    }
}

/// A value that the kernel drew at random at boot; or one that no kernel draws, at `anchor`, and what is
/// missing.
pub(super) fn boot_value_or_none<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: Option<&Symbols>,
    facts: &Facts,
    text: GuestVirt,
    anchor: GuestVirt,
) -> Result<(BootValue, Option<&'static str>), BuildError> {
    Ok(match boot_value(view, symbols, facts, text)? {
        Ok(value) => (value, None),
        Err(missing) => {
            let none = BootValue {
                at: anchor,
                bytes: view.space().levels.pointer_bytes(),
                value: NO_BOOT_VALUE,
            };
            (none, Some(missing))
        }
    })
}

/// What shows that `needed` is mapped as it was, whichever process runs.
type MappedAlike = (
    heapless::Vec<RootSlot, MAX_ROOT_SLOTS>,
    heapless::Vec<Anchor, MAX_ANCHORS>,
);

/// The top-level entries through which `needed` are reached, or, of a 32-bit kernel, where they lie.
pub(super) fn mapped_alike<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    needed: &[GuestVirt],
) -> Result<MappedAlike, BuildError> {
    Ok(if view.space().levels.is_32_bit() {
        (heapless::Vec::new(), anchors(view, needed)?)
    } else {
        (root_slots(view, needed)?, heapless::Vec::new())
    })
}

/// Where the first of `needed` lie in physical memory.
fn anchors<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    needed: &[GuestVirt],
) -> Result<heapless::Vec<Anchor, MAX_ANCHORS>, BuildError> {
    let mut anchors = heapless::Vec::new();
    for at in needed.iter().take(2) {
        let physical = view.translate(*at)?;
        if anchors.push(Anchor { at: *at, physical }).is_err() {
            break;
        }
    }
    Ok(anchors)
}

/// A value that the kernel drew at random at boot, or what is missing for it.
fn boot_value<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: Option<&Symbols>,
    facts: &Facts,
    text: GuestVirt,
) -> Result<Result<BootValue, &'static str>, BuildError> {
    let Some(canary) = facts.find("offsetof(struct task_struct,stack_canary)")? else {
        return match by_symbol(view, symbols)? {
            Some(drawn) => Ok(Ok(drawn)),
            None if facts.sources().contains(&Source::Stub) => Ok(Err(NO_STACK_PROTECTOR)),
            None => Ok(Err(
                "no source says where the kernel's random value of this boot is",
            )),
        };
    };
    let by_symbol = symbols.and_then(|symbols| symbols.find("init_task"));
    let found = match by_symbol {
        Some(at) => Some(at),
        None => find_first_task(view, facts, text)?,
    };
    let Some(init_task) = found else {
        return Ok(Err(
            "the address of init_task is not known: no symbol tells it, and no one place in the kernel's image looks like it",
        ));
    };
    let at = GuestVirt::new(init_task.get().wrapping_add(canary));
    Ok(Ok(BootValue {
        at,
        bytes: view.space().levels.pointer_bytes(),
        value: view.word(at)?,
    }))
}

/// What differs from boot to boot in a kernel without a stack protector, by its symbols. `None` where it has
/// nothing of the kind, or has not set it.
fn by_symbol<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    symbols: Option<&Symbols>,
) -> Result<Option<BootValue>, ViewError> {
    let Some(symbols) = symbols else {
        return Ok(None);
    };
    let bytes = view.space().levels.pointer_bytes();
    let places = DRAWN_ONCE.iter().chain([&BOOTED_AT]);
    for (name, at) in places.filter_map(|name| Some((*name, symbols.find(name)?))) {
        let value = view.word(at)?;
        // Negative, in a word of 4 or 8 bytes.
        let mask = u64::MAX >> (64 - 8 * u32::from(bytes));
        let seconds = value.wrapping_neg() & mask;
        if value != 0 && (name != BOOTED_AT || CLOCK_IS_SET.contains(&seconds)) {
            return Ok(Some(BootValue { at, bytes, value }));
        }
    }
    Ok(None)
}

/// The top-level entries through which `needed` are reached, from the kernel's reference table.
fn root_slots<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    needed: &[GuestVirt],
) -> Result<heapless::Vec<RootSlot, MAX_ROOT_SLOTS>, BuildError> {
    let space = view.space();
    let shift = match space.levels {
        PagingLevels::Five => 48,
        // Identification admits no 32-bit kernel.
        PagingLevels::Four | PagingLevels::Pae | PagingLevels::Two => 39,
    };
    let mut slots: heapless::Vec<RootSlot, MAX_ROOT_SLOTS> = heapless::Vec::new();
    for at in needed {
        let index = at.get() >> shift & 0x1ff;
        if slots.iter().any(|slot| u64::from(slot.index) == index) {
            continue;
        }
        let entry_at = space.root.checked_add(index * 8);
        let entry = entry_at
            .and_then(|entry_at| view.memory().read_value(entry_at, 8).ok())
            .ok_or(ViewError {
                at: *at,
                cause: lacuna_core::WalkError::NotPresent { shift },
            })?;
        let slot = RootSlot {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            entry: entry & !ACCESSED_DIRTY,
        };
        // More than fit would be a guest spread over eight times 512 GiB: the first ones identify enough.
        if slots.push(slot).is_err() {
            break;
        }
    }
    Ok(slots)
}
