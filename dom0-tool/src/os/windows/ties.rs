//! What ties a profile to one boot of a Windows guest.

use lacuna_core::{Anchor, BootValue, Gate, GuestMemory, GuestVirt, Identity, VcpuRegisters};

use super::locate::{Located, gate};

/// The exception whose handler ties a profile to its kernel.
const PAGE_FAULT: u8 = 14;
/// `KUSER_SHARED_DATA.Cookie` (`ntddk.h`, since Windows Vista), drawn at random at each boot; the structure
/// is mapped at these addresses in every kernel.
const SHARED_DATA_COOKIE: u64 = 0x330;
const SHARED_DATA_64: u64 = 0xffff_f780_0000_0000;
const SHARED_DATA_32: u64 = 0xffdf_0000;

/// What ties the profile to this boot: where the processor enters the kernel, where that lies, and a random
/// number.
pub(super) fn ties<M: GuestMemory>(memory: &mut M, kernel: &Located, vcpus: &[VcpuRegisters]) -> Identity {
    let space = kernel.space;
    let first = vcpus.iter().find(|cpu| cpu.flags & VcpuRegisters::ONLINE != 0);
    let long = !space.levels.is_32_bit();
    let lstar = first.map_or(0, |cpu| if long { cpu.lstar } else { 0 });
    let sysenter_eip = first.map_or(0, |cpu| if long { 0 } else { cpu.sysenter_eip });
    let gate = first
        .and_then(|cpu| gate(memory, space, GuestVirt::new(cpu.idt_base), PAGE_FAULT.into()))
        .filter(|handler| handler.get() != 0)
        .map(|handler| Gate {
            vector: PAGE_FAULT,
            handler,
        });
    // Only what is mapped while a user program runs, too, where the kernel keeps a second set of tables for
    // that.
    let mut anchors = heapless::Vec::new();
    for at in [lstar, sysenter_eip, gate.map_or(0, |gate| gate.handler.get())] {
        let page = GuestVirt::new(at & !0xfff);
        let known = anchors.iter().any(|anchor: &Anchor| anchor.at == page);
        if at != 0
            && !known
            && let Some(physical) = space.translate(memory, page)
        {
            // There are three at most.
            let _ = anchors.push(Anchor { at: page, physical });
        }
    }
    let shared = GuestVirt::new(if long { SHARED_DATA_64 } else { SHARED_DATA_32 });
    let cookie = space
        .number(memory, shared, SHARED_DATA_COOKIE, 4)
        .filter(|cookie| *cookie != 0);
    Identity {
        // Each processor has its own.
        idt_base: 0,
        idt_limit: first
            .map(|cpu| cpu.idt_limit)
            .filter(|limit| *limit != 0)
            .unwrap_or(if long { 0xfff } else { 0x7ff }),
        lstar,
        sysenter_eip,
        gate,
        root_slots: heapless::Vec::new(),
        anchors,
        boot_value: cookie.map(|value| BootValue {
            at: GuestVirt::new(shared.get() + SHARED_DATA_COOKIE),
            bytes: 4,
            value,
        }),
    }
}
