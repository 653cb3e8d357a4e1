//! A guest of any size: what its memory map holds is computed when it is read, so that one of 4 TiB needs
//! hardly more memory than its bitmap.
//!
//! It is for measuring, not for driving races: nothing of the guest runs. It counts what the engine asks of
//! the hypervisor ([`Work`]), and how much of that lies between two looks at pending interrupts. Descriptors
//! are those of [`Layout::modern`], in an array mapped by 2 MiB pages.
//!
//! What the mock itself does is in functions whose names begin with `mock_`, none of which calls another, so
//! that a count of instructions can leave them out.

mod blocks;
mod engine;
mod run;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use lacuna_core::{
    BootValue, Contents, Extent, Gfn, GuestPhys, GuestVirt, Identity, Kernel, MemoryMap, PAGE_SHIFT,
    PAGE_SIZE, PagingLevels, Profile, RootSlot, VcpuRegisters, ZoneCounter,
};

use self::blocks::Blocks;
pub use self::blocks::State;
pub use self::run::{admit, operate, operate_by, set_profile};
use self::tables::Held;
use crate::build::{
    BOOT_VALUE, BOOT_VALUE_OFFSET, COUNTER_OFFSET, COUNTER_STRIDE, DATA, DATA_FRAME, IDT_BASE, IDT_LIMIT,
    LSTAR, ZONES_OFFSET,
};
use crate::layout::Layout;
use crate::tables::Tables as PageTables;

/// First frame of the page tables.
const TABLES_FIRST: u64 = 64;
/// First frame of the memory map: that of the second 4 MiB.
const MAP_FIRST: u64 = 1024;
/// Where the kernel maps it (Linux `VMEMMAP_START` without KASLR).
const MAP_AT: u64 = 0xffff_ea00_0000_0000;
/// log2 of the bytes of a page that maps it.
const MAP_SHIFT: u32 = 21;

/// What the engine asked of the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Values of guest memory read.
    pub values: u64,
    /// Times that another frame of the guest was read than the time before, which the hypervisor maps then.
    pub frames: u64,
    /// Looks at entries of the p2m.
    pub lookups: u64,
    /// Entries of the p2m written.
    pub entries: u64,
    /// Pages of the hypervisor's tables asked for. A page has 512 words, and none is gone through twice.
    pub parts: u64,
    /// Times that the guest was stopped.
    pub pauses: u64,
    /// Looks at pending interrupts.
    pub checks: u64,
    /// Operations given up for a pending interrupt, to go on later.
    pub continuations: u64,
    /// The largest [`Work::total`] between two looks at pending interrupts.
    pub longest: u64,
}

impl Work {
    /// All that costs the hypervisor time: values, frames, lookups, entries and parts.
    pub const fn total(&self) -> u64 {
        self.values + self.frames + self.lookups + self.entries + self.parts
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct LargeGuest {
    pages: u64,
    layout: Layout,
    blocks: Blocks,
    page_tables: PageTables,
    /// Frames whose bytes are kept: the kernel's data, and its page tables.
    kept: BTreeMap<u64, Vec<u8>>,
    /// A bit for each frame on a zero frame, and one for each region of 2 MiB that is no longer one entry.
    zero: Vec<u64>,
    split: Vec<u64>,
    /// First frames of entries that do not say that they were used to write.
    unwritten: BTreeSet<u64>,
    held: Held,
    work: Work,
    /// [`Work::total`] at the last look at pending interrupts, and at the last that found one.
    checked_at: u64,
    continued_at: u64,
    /// The frame read last.
    mapped: u64,
    /// The frame at which the operation under way was interrupted last.
    interrupted_at: u64,
    clock: u64,
}

impl LargeGuest {
    /// A guest of `gib` GiB in `state`.
    ///
    /// # Panics
    /// When `gib` is 0.
    pub fn new(gib: u64, state: State) -> Self {
        let pages = gib << (30 - PAGE_SHIFT);
        let layout = Layout::modern();
        let map_bytes = pages * u64::from(layout.descriptor_bytes);
        let map_end = MAP_FIRST + map_bytes.div_ceil(PAGE_SIZE as u64);
        let blocks = Blocks::new(state, map_end.next_multiple_of(layout.max_order.pages()), pages);
        let mut page_tables = PageTables::new(TABLES_FIRST, PagingLevels::Four);
        page_tables.map(DATA, DATA_FRAME << PAGE_SHIFT, PAGE_SHIFT);
        for at in (0..map_bytes).step_by(1 << MAP_SHIFT) {
            page_tables.map(MAP_AT + at, (MAP_FIRST << PAGE_SHIFT) + at, MAP_SHIFT);
        }
        assert!(
            TABLES_FIRST + page_tables.len() <= MAP_FIRST,
            "too many page tables"
        );
        let mut kept: BTreeMap<u64, Vec<u8>> = page_tables.frames().collect();
        kept.insert(DATA_FRAME, data(&blocks));
        let words = |bits: u64| vec![0; usize::try_from(bits.div_ceil(64)).expect("a machine of 64 bits")];
        Self {
            pages,
            layout,
            blocks,
            page_tables,
            kept,
            zero: words(pages),
            split: words(pages >> 9),
            unwritten: BTreeSet::new(),
            held: Held::default(),
            work: Work::default(),
            checked_at: 0,
            continued_at: 0,
            mapped: u64::MAX,
            interrupted_at: 0,
            clock: 0,
        }
    }

    /// The profile that describes this guest.
    ///
    /// # Panics
    /// Never.
    pub fn profile(&self) -> Profile {
        let slots = [DATA, MAP_AT].map(|address| {
            let (index, entry) = self.page_tables.top_entry(address);
            RootSlot {
                index,
                entry: entry & !0x60,
            }
        });
        Profile {
            kernel: Kernel {
                release: "6.12.0-mock".try_into().unwrap(),
                layout: [0x4d; 16],
            },
            root: GuestPhys::new(TABLES_FIRST << PAGE_SHIFT),
            levels: PagingLevels::Four,
            memory_map: MemoryMap::Vmemmap {
                base: GuestVirt::new(MAP_AT),
            },
            extents: core::iter::empty::<Extent>().collect(),
            descriptor_bytes: self.layout.descriptor_bytes,
            free: self.layout.free_rule(),
            contents: Contents::DontCare,
            zones: core::iter::once(ZoneCounter {
                array: GuestVirt::new(DATA + ZONES_OFFSET),
                stride: COUNTER_STRIDE,
                count_offset: COUNTER_OFFSET,
                count_bytes: 8,
            })
            .collect(),
            identity: Identity {
                idt_base: IDT_BASE,
                idt_limit: IDT_LIMIT,
                lstar: LSTAR,
                sysenter_eip: 0,
                gate: None,
                root_slots: slots.into_iter().collect(),
                anchors: heapless::Vec::new(),
                boot_value: Some(BootValue {
                    at: GuestVirt::new(DATA + BOOT_VALUE_OFFSET),
                    bytes: 8,
                    value: BOOT_VALUE,
                }),
            },
        }
    }

    /// Frames of guest-physical memory.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages in free blocks.
    pub fn free_pages(&self) -> u64 {
        (0..)
            .zip(self.blocks.counted())
            .map(|(order, count): (u32, u64)| count << order)
            .sum()
    }

    /// Free blocks.
    pub fn free_blocks(&self) -> u64 {
        self.blocks.counted().iter().sum()
    }

    /// Whether `gfn` lies in a free block.
    pub fn is_free(&self, gfn: Gfn) -> bool {
        self.blocks.piece(gfn.get()).is_free
    }

    /// Pages on zero frames.
    pub fn zero_gfns(&self) -> u64 {
        self.zero.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Bytes that the hypervisor keeps for the guest.
    pub fn tables_bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// Has the descriptor of `gfn` count as written to.
    pub fn touch(&mut self, gfn: Gfn) {
        let at = MAP_FIRST + gfn.get() * u64::from(self.layout.descriptor_bytes) / PAGE_SIZE as u64;
        self.unwritten.remove(&at);
        self.unwritten.remove(&(at >> 9 << 9));
    }

    /// Forgets what was asked of the hypervisor so far.
    fn forget_work(&mut self) {
        self.work = Work::default();
        self.checked_at = 0;
        self.continued_at = 0;
    }

    /// What was asked of the hypervisor by an operation that is finished.
    fn finished_work(&mut self) -> Work {
        self.work.longest = self.work.longest.max(self.work.total() - self.checked_at);
        self.work
    }

    /// The registers of its virtual CPU.
    const fn register_values() -> VcpuRegisters {
        VcpuRegisters {
            cr0: 0x8005_0033,
            cr3: TABLES_FIRST << PAGE_SHIFT,
            cr4: 0x20,
            efer: 0xd01,
            idt_base: IDT_BASE,
            idt_limit: IDT_LIMIT,
            lstar: LSTAR,
            sysenter_eip: 0,
            flags: VcpuRegisters::ONLINE,
        }
    }
}

/// The kernel's data page: the value drawn at boot, and the counters of free blocks.
fn data(blocks: &Blocks) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE];
    let mut put = |offset: u64, value: u64| {
        let offset = usize::try_from(offset).expect("an offset in a page");
        page[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    };
    put(BOOT_VALUE_OFFSET, BOOT_VALUE);
    for (order, count) in (0..).zip(blocks.counted()) {
        let counter = order * u64::from(COUNTER_STRIDE) + u64::from(COUNTER_OFFSET);
        put(ZONES_OFFSET + counter, count);
    }
    page
}
