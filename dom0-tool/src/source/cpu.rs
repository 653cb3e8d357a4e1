//! What a dump says of a virtual CPU. Each source knows another part of it.

use lacuna_core::VcpuRegisters;

/// `CR0.PG`.
const CR0_PG: u64 = 1 << 31;
/// `EFER.LMA`: 64-bit mode is active.
const EFER_LMA: u64 = 1 << 10;

/// One virtual CPU. `None` is "not said": never a guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// CR0.
    pub cr0: Option<u64>,
    /// CR3, with PCID bits.
    pub cr3: Option<u64>,
    /// CR4.
    pub cr4: Option<u64>,
    /// `IA32_EFER`.
    pub efer: Option<u64>,
    /// Base of the interrupt descriptor table.
    pub idt_base: Option<u64>,
    /// Its limit, in bytes minus one.
    pub idt_limit: Option<u64>,
    /// `IA32_LSTAR`.
    pub lstar: Option<u64>,
    /// `IA32_SYSENTER_EIP`.
    pub sysenter_eip: Option<u64>,
    /// Base of FS.
    pub fs_base: Option<u64>,
    /// Base of GS.
    pub gs_base: Option<u64>,
    /// `IA32_KERNEL_GS_BASE`.
    pub kernel_gs_base: Option<u64>,
    /// RIP or EIP.
    pub rip: Option<u64>,
    /// RSP or ESP.
    pub rsp: Option<u64>,
    /// Whether 64-bit mode is active, where the file says so by other means than EFER.
    pub long_mode: Option<bool>,
    /// Said to be offline.
    pub offline: bool,
}

impl Cpu {
    /// Whether it can tell which kernel runs: it is online, has a page table, and paging is not known to be
    /// off.
    pub fn is_paging(&self) -> bool {
        !self.offline && self.cr3.is_some() && self.cr0.is_none_or(|cr0| cr0 & CR0_PG != 0)
    }

    /// The registers as the core takes them; what is not said is 0, but for `EFER.LMA`, which
    /// follows from `long_mode`.
    pub fn registers(&self) -> VcpuRegisters {
        let or_zero = |value: Option<u64>| value.unwrap_or(0);
        VcpuRegisters {
            cr0: or_zero(self.cr0),
            cr3: or_zero(self.cr3),
            cr4: or_zero(self.cr4),
            efer: self
                .efer
                .unwrap_or(if self.long_mode == Some(true) { EFER_LMA } else { 0 }),
            idt_base: or_zero(self.idt_base),
            lstar: or_zero(self.lstar),
            sysenter_eip: or_zero(self.sysenter_eip),
            idt_limit: u32::try_from(or_zero(self.idt_limit)).unwrap_or(u32::MAX),
            flags: if self.offline { 0 } else { VcpuRegisters::ONLINE },
        }
    }

    /// Of a live domain, of which everything is known.
    pub fn from_registers(registers: &VcpuRegisters) -> Self {
        Self {
            cr0: Some(registers.cr0),
            cr3: Some(registers.cr3),
            cr4: Some(registers.cr4),
            efer: Some(registers.efer),
            idt_base: Some(registers.idt_base),
            idt_limit: Some(u64::from(registers.idt_limit)),
            lstar: Some(registers.lstar).filter(|lstar| *lstar != 0),
            sysenter_eip: Some(registers.sysenter_eip).filter(|entry| *entry != 0),
            offline: registers.flags & VcpuRegisters::ONLINE == 0,
            ..Self::default()
        }
    }
}
