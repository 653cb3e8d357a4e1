//! How a mock guest is laid out, and its construction.
//!
//! Guest-physical memory, from frame 0: a reserved frame, the kernel's data (frame 16), the memory map (from
//! frame [`MAP_FIRST`]), the page tables, and the rest, which begins free.

use core::ops::Range;
use std::collections::BTreeMap;

use super::hooks::TakeWritten;
use super::kernel::MockGuest;
use super::layout::Layout;
use super::machine::Machine;
use super::models::{MapPlace, Model};
use super::tables::Tables;
use super::tables_held::TablesHeld;
use crate::buddy::Buddy;
use crate::faults::Faults;
use lacuna_core::{PAGE_SHIFT, PAGE_SIZE, PagingLevels, VcpuRegisters};

/// What maps the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapPages {
    /// 4 KiB pages, physically in reverse order, so that neighbours in virtual memory are not neighbours in
    /// physical memory. What is wholly inside the hole is not mapped.
    Small,
    /// 2 MiB pages, as Linux does (`vmemmap_populate_hugepages`); 4 MiB pages in two-level tables.
    Large,
    /// One 1 GiB page; large ones in the tables of 32-bit kernels.
    Huge,
}

/// What a mock guest is like.
#[derive(Clone, Debug)]
pub struct Config {
    /// The descriptors.
    pub layout: Layout,
    /// The page tables' form.
    pub levels: PagingLevels,
    /// Where the kernel keeps its descriptors.
    pub model: Model,
    /// What maps the memory map.
    pub map_pages: MapPages,
    /// Frames of guest-physical memory, the hole included. At least 2,048.
    pub pages: u64,
    /// Frames without memory. Empty for none; multiples of the largest block.
    pub hole: Range<u64>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Frames that the host has left beside the guest's.
    pub host_free: usize,
}

impl Default for Config {
    /// 32 MiB, two virtual CPUs, Linux 6.12's layout, 4-level page tables, a memory map in 4 KiB pages, no
    /// hole.
    fn default() -> Self {
        Self {
            layout: Layout::modern(),
            levels: PagingLevels::Four,
            model: Model::Vmemmap,
            map_pages: MapPages::Small,
            pages: 8192,
            hole: 0..0,
            vcpus: 2,
            host_free: 4096,
        }
    }
}

/// First frame of the memory map.
pub(super) const MAP_FIRST: u64 = 64;
/// The kernel's data page.
pub(super) const DATA_FRAME: u64 = 16;
/// Where the kernel maps it; a 32-bit kernel, in the lower half of this address.
pub(super) const DATA: u64 = 0xffff_ffff_8260_0000;
/// Offset of the value drawn at each boot.
pub(super) const BOOT_VALUE_OFFSET: u64 = 0x40;
/// Offset of the first zone's counters, and bytes from one zone to the next.
pub(super) const ZONES_OFFSET: u64 = 0x100;
/// Room for the 19 orders there can be, 64 bytes each.
pub(super) const ZONE_BYTES: u64 = 0x500;
/// Bytes of one counter element, and where its count lies in it: as `struct free_area`, lists first.
pub(super) const COUNTER_STRIDE: u16 = 64;
pub(super) const COUNTER_OFFSET: u16 = 56;
/// Linux' own (`CPU_ENTRY_AREA_RO_IDT_VADDR`), the same in every kernel.
pub(super) const IDT_BASE: u64 = 0xffff_fe00_0000_0000;
pub(super) const IDT_LIMIT: u32 = 0xfff;
pub(super) const LSTAR: u64 = 0xffff_ffff_8120_0080;
/// The same of a 32-bit kernel (`CPU_ENTRY_AREA` below the fixed mappings, and `entry_SYSENTER_32`).
pub(super) const IDT_BASE_32: u64 = 0xff80_0000;
pub(super) const IDT_LIMIT_32: u32 = 0x7ff;
pub(super) const SYSENTER_EIP: u64 = 0xc17d_1230;
/// The boot value of a mock guest's first boot.
pub(super) const BOOT_VALUE: u64 = 0x5eed_1e55_c0ff_ee00;

impl MockGuest {
    /// Builds and boots a guest: all memory that its kernel does not use itself is free.
    ///
    /// # Panics
    /// When `config` leaves no room for the kernel.
    pub fn new(config: &Config) -> Self {
        let layout = config.layout;
        let size = u64::from(layout.descriptor_bytes);
        let map_frames = (config.pages * size).div_ceil(PAGE_SIZE as u64);
        let tables_first = (MAP_FIRST + map_frames).next_multiple_of(2);
        let mut tables = Tables::new(tables_first, config.levels);
        tables.map(config.data(), DATA_FRAME << PAGE_SHIFT, PAGE_SHIFT);
        let place = MapPlace::build(config, &mut tables, map_frames);
        let kernel_end = tables_first + tables.len();
        assert!(kernel_end < config.pages, "no room for the mock kernel");
        assert!(
            config.hole.is_empty() || config.hole.start >= kernel_end,
            "the hole would swallow the mock kernel"
        );

        let mut machine = Machine::new(config.pages, &config.hole, config.vcpus, config.host_free);
        for (frame, bytes) in tables.frames() {
            machine.poke(frame, 0, &bytes);
        }
        let registers = config.registers(tables_first << PAGE_SHIFT);
        let largest = layout.max_order.pages();
        let middle = (config.pages / 2).next_multiple_of(largest);
        let max_order = layout.max_order.get();
        let mut guest = Self {
            config: config.clone(),
            machine,
            tables,
            place,
            zones: [
                Buddy::new(0, middle, max_order),
                Buddy::new(middle, config.pages, max_order),
            ],
            allocated: BTreeMap::new(),
            stamps: BTreeMap::new(),
            faults: Faults::default(),
            interlude: None,
            registers: (0..config.vcpus).map(|_| registers).collect(),
            toolstack_pause: false,
            tables_held: TablesHeld::default(),
            clock: 0,
            read_price: super::engine::READ_NS,
            reads: 0,
            trace: None,
            share_calls: 0,
            take_written: TakeWritten::default(),
        };
        guest.write_boot_value(BOOT_VALUE);
        guest.write_section_table();
        guest.blank_descriptors();
        guest.release_boot_memory(kernel_end);
        guest
    }

    /// Every descriptor as the kernel's early boot leaves it: in use, one reference.
    fn blank_descriptors(&mut self) {
        for gfn in 0..self.config.pages {
            let layout = self.config.layout;
            for constant in layout.constants {
                self.poke_field(gfn, constant.field, constant.expected);
            }
            self.poke_field(gfn, layout.predicate.field, self.unmarked(gfn));
            self.poke_field(gfn, layout.references, 1);
        }
    }

    /// Frees all memory from `first` on, in the largest blocks that fit (Linux `__free_pages_memory`).
    fn release_boot_memory(&mut self, first: u64) {
        let hole = self.config.hole.clone();
        let mut at = first;
        while at < self.config.pages {
            if hole.contains(&at) {
                at = hole.end;
                continue;
            }
            let limit = if at < hole.start {
                hole.start
            } else {
                self.config.pages
            };
            let order = (0..=self.config.layout.max_order.get())
                .rev()
                .find(|order| at & ((1 << order) - 1) == 0 && at + (1 << order) <= limit)
                .unwrap_or(0);
            self.give(None, at, order);
            at += 1 << order;
        }
    }
}

impl Config {
    /// The registers of a virtual CPU whose top-level table is at physical `root`.
    fn registers(&self, root: u64) -> VcpuRegisters {
        let common = VcpuRegisters {
            cr0: 0x8005_0033,
            flags: VcpuRegisters::ONLINE,
            ..VcpuRegisters::default()
        };
        if self.levels.is_32_bit() {
            return VcpuRegisters {
                cr3: root,
                cr4: if self.levels == PagingLevels::Pae {
                    0x30
                } else {
                    0x10
                },
                idt_base: IDT_BASE_32,
                idt_limit: IDT_LIMIT_32,
                sysenter_eip: SYSENTER_EIP,
                ..common
            };
        }
        VcpuRegisters {
            // A process' own table would do as well; the low bits are a PCID.
            cr3: root | 0x5,
            cr4: if self.levels == PagingLevels::Five {
                0x1020
            } else {
                0x20
            },
            efer: 0xd01,
            idt_base: IDT_BASE,
            lstar: LSTAR,
            idt_limit: IDT_LIMIT,
            ..common
        }
    }
}
