//! The mock guest as a guest: its kernel allocates, frees, writes and reads, and can be replaced by another.

use core::fmt;
use std::collections::BTreeMap;

use super::buddy::{Buddy, Change};
use super::build::{
    BOOT_VALUE, BOOT_VALUE_OFFSET, COUNTER_OFFSET, COUNTER_STRIDE, Config, DATA_FRAME, IDT_LIMIT,
    IDT_LIMIT_32, ZONE_BYTES, ZONES_OFFSET,
};
use super::faults::Faults;
use super::hooks::TakeWritten;
use super::machine::{Access, Machine, Violation};
use super::models::MapPlace;
use super::tables::Tables;
use super::tables_held::TablesHeld;
use lacuna_core::{Field, Gfn, GuestPhys, PAGE_SHIFT, PAGE_SIZE, VcpuRegisters};

/// A guest program, run between the engine's calls.
type Interlude = Box<dyn FnMut(&mut MockGuest) + Send>;

/// A page that no longer holds what the guest wrote there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The frame.
    pub gfn: Gfn,
    /// What the guest wrote.
    pub written: u64,
    /// What it reads now.
    pub read: u64,
}

/// A mock guest and the machine below it. See the [module](crate).
pub struct MockGuest {
    pub(super) config: Config,
    pub(super) machine: Machine,
    pub(super) tables: Tables,
    pub(super) place: MapPlace,
    pub(super) zones: [Buddy; 2],
    pub(super) allocated: BTreeMap<u64, u8>,
    pub(super) stamps: BTreeMap<u64, u64>,
    pub(super) faults: Faults,
    pub(super) interlude: Option<Interlude>,
    pub(super) registers: Vec<VcpuRegisters>,
    pub(super) toolstack_pause: bool,
    pub(super) tables_held: TablesHeld,
    pub(super) clock: u64,
    pub(super) read_price: u64,
    pub(super) reads: u64,
    pub(super) trace: Option<Vec<GuestPhys>>,
    pub(super) share_calls: u64,
    pub(super) take_written: TakeWritten,
}

impl fmt::Debug for MockGuest {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("MockGuest")
            .field("pages", &self.config.pages)
            .field("free", &self.free_pages())
            .field("zero", &self.zero_gfns())
            .field("violations", &self.machine.violations)
            .finish_non_exhaustive()
    }
}

impl MockGuest {
    // --- the truth ---

    /// Pages in free blocks.
    pub fn free_pages(&self) -> u64 {
        self.free_blocks().iter().map(|(_, order)| 1_u64 << order).sum()
    }

    /// Every free block: first frame and order.
    pub fn free_blocks(&self) -> Vec<(Gfn, u8)> {
        self.zones
            .iter()
            .flat_map(Buddy::blocks)
            .map(|(head, order)| (Gfn::new(head), order))
            .collect()
    }

    /// The free block that `gfn` lies in: first frame and order.
    pub fn free_block_of(&self, gfn: Gfn) -> Option<(Gfn, u8)> {
        self.zone_of(gfn.get())
            .and_then(|zone| self.zones[zone].block_of(gfn.get()))
            .map(|(head, order)| (Gfn::new(head), order))
    }

    /// Whether `gfn` lies in a free block.
    pub fn is_free(&self, gfn: Gfn) -> bool {
        self.free_block_of(gfn).is_some()
    }

    /// Frames of guest-physical memory, holes included.
    pub fn pages(&self) -> u64 {
        self.machine.pages()
    }

    /// Pages on zero frames, counted in the p2m itself.
    pub fn zero_gfns(&self) -> u64 {
        self.machine.zero_gfns()
    }

    /// 2 MiB entries of zero frames.
    pub fn zero_superpages(&self) -> u64 {
        self.machine.zero_superpages()
    }

    /// Frames that the host has free.
    pub fn host_free(&self) -> u64 {
        self.machine.host_free()
    }

    /// Everything that must never happen and has.
    pub fn violations(&self) -> &[Violation] {
        &self.machine.violations
    }

    /// Checks the machine between two operations: nothing violated, locked, paused, queued or misplaced.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn audit(&self) -> Result<(), std::string::String> {
        let machine = &self.machine;
        if let Some(violation) = machine.violations.first() {
            return Err(std::format!("violation: {violation:?}"));
        }
        if machine.locked() {
            return Err("the p2m is still locked".into());
        }
        if !machine.running() {
            return Err("the guest is still paused".into());
        }
        if machine.queued() != 0 {
            return Err(std::format!("{} frames were not released", machine.queued()));
        }
        if let Some(frame) = machine.misplaced() {
            return Err(std::format!("host frame {frame} is not where its owner says"));
        }
        Ok(())
    }

    // --- what the guest does ---

    /// Allocates a block of 2^`order` pages on `vcpu`, from the lowest free memory; `None` when there is
    /// none. Its descriptor is marked first; nothing is written to its pages.
    pub fn alloc(&mut self, vcpu: usize, order: u8) -> Option<Gfn> {
        self.alloc_from(vcpu, order, false)
    }

    /// As [`MockGuest::alloc`], from the highest memory if `highest`.
    pub fn alloc_from(&mut self, vcpu: usize, order: u8, highest: bool) -> Option<Gfn> {
        let zones = if highest { [1, 0] } else { [0, 1] };
        let (head, changes) = zones
            .into_iter()
            .find_map(|zone| self.zones[zone].take(order, highest))?;
        self.apply(Some(vcpu), &changes);
        self.put_references(vcpu, head, order, 1);
        self.allocated.insert(head, order);
        Some(Gfn::new(head))
    }

    /// Frees a block that [`MockGuest::alloc`] gave out. Stamps in it are forgotten.
    ///
    /// # Panics
    /// When `head` is not such a block.
    pub fn free(&mut self, vcpu: usize, head: Gfn) {
        let order = self
            .allocated
            .remove(&head.get())
            .expect("only allocated blocks are freed");
        for gfn in head.get()..head.get() + (1 << order) {
            self.stamps.remove(&gfn);
        }
        self.put_references(vcpu, head.get(), order, 0);
        self.give(Some(vcpu), head.get(), order);
    }

    /// Blocks given out: first frame and order.
    pub fn allocated(&self) -> impl Iterator<Item = (Gfn, u8)> + '_ {
        self.allocated
            .iter()
            .map(|(head, order)| (Gfn::new(*head), *order))
    }

    /// Writes `value` at the start and at the end of a page, and remembers it for [`MockGuest::verify`].
    pub fn stamp(&mut self, vcpu: usize, gfn: Gfn, value: u64) -> Access {
        let bytes = value.to_le_bytes();
        let access = self.machine.store(vcpu, gfn.get(), 0, &bytes);
        if access == Access::Done {
            // The same page again: its translation is cached and writable now.
            self.machine.store(vcpu, gfn.get(), PAGE_SIZE - 8, &bytes);
            self.stamps.insert(gfn.get(), value);
        }
        access
    }

    /// Reads every stamp back on every virtual CPU.
    ///
    /// # Errors
    /// The first [`Damage`].
    pub fn verify(&mut self) -> Result<(), Damage> {
        let stamps: Vec<(u64, u64)> = self.stamps.iter().map(|(gfn, value)| (*gfn, *value)).collect();
        for (gfn, written) in stamps {
            for vcpu in 0..self.registers.len() {
                for offset in [0, PAGE_SIZE - 8] {
                    let mut bytes = [0; 8];
                    let access = self.machine.load(vcpu, gfn, offset, &mut bytes);
                    let read = u64::from_le_bytes(bytes);
                    if access == Access::Done && read != written {
                        return Err(Damage {
                            gfn: Gfn::new(gfn),
                            written,
                            read,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads bytes of a page on `vcpu`, through its translation cache.
    pub fn load(&mut self, vcpu: usize, gfn: Gfn, offset: usize, into: &mut [u8]) -> Access {
        self.machine.load(vcpu, gfn.get(), offset, into)
    }

    /// Writes bytes to a page on `vcpu`, through its translation cache.
    pub fn store(&mut self, vcpu: usize, gfn: Gfn, offset: usize, bytes: &[u8]) -> Access {
        self.machine.store(vcpu, gfn.get(), offset, bytes)
    }

    /// Overwrites a member of a descriptor with anything at all: what a hostile guest does.
    pub fn corrupt(&mut self, gfn: Gfn, field: Field, value: u64) {
        self.poke_field(gfn.get(), field, value);
    }

    /// Overwrites any memory of the guest with anything at all. What lies past the end of a frame is left
    /// out.
    pub fn overwrite(&mut self, at: GuestPhys, bytes: &[u8]) {
        let room = bytes.len().min(PAGE_SIZE - at.offset());
        self.machine.poke(at.gfn().get(), at.offset(), &bytes[..room]);
    }

    /// Changes what a zone's counter says, without a block changing hands.
    pub fn corrupt_counter(&mut self, zone: usize, order: u8, count: u64) {
        self.put_counter(None, zone as u64, order, count);
    }

    // --- another kernel ---

    /// A kexec begins: the old kernel empties its IDT, and the copy of the new one is under way.
    pub fn kexec_begins(&mut self) {
        for registers in &mut self.registers {
            registers.idt_limit = 0;
        }
    }

    /// The new kernel, the same one without KASLR, is up: registers and page tables are what they were, the
    /// boot value is not, and the old memory map lies on in memory as it was.
    pub fn kexec_ends(&mut self) {
        let limit = if self.config.levels.is_32_bit() {
            IDT_LIMIT_32
        } else {
            IDT_LIMIT
        };
        for registers in &mut self.registers {
            registers.idt_limit = limit;
        }
        self.write_boot_value(BOOT_VALUE ^ 0x00d1_ffe1_e277_0000);
    }

    /// The registers of a virtual CPU, to be changed.
    pub fn registers_mut(&mut self, vcpu: usize) -> &mut VcpuRegisters {
        &mut self.registers[vcpu]
    }

    pub(super) fn write_section_table(&mut self) {
        for (offset, word) in self.place.section_table(&self.config) {
            self.put_word(offset, word);
        }
    }

    /// Takes the section of `gfn` offline, as a kernel does whose memory is pulled out: its map stands as it
    /// was.
    pub fn take_section_offline(&mut self, gfn: Gfn) {
        if let Some((offset, word)) = self.place.offline(&self.config, gfn.get()) {
            self.put_word(offset, word);
        }
    }

    /// Writes a pointer-sized value of the kernel's data page.
    fn put_word(&mut self, offset: u64, word: u64) {
        let width = usize::from(self.config.levels.pointer_bytes());
        self.machine
            .poke(DATA_FRAME, offset as usize, &word.to_le_bytes()[..width]);
    }

    pub(super) fn write_boot_value(&mut self, value: u64) {
        self.machine
            .poke(DATA_FRAME, BOOT_VALUE_OFFSET as usize, &value.to_le_bytes());
    }

    pub(super) fn descriptor_at(&self, at: GuestPhys) -> Option<Gfn> {
        let page = self
            .place
            .frames
            .iter()
            .position(|frame| *frame == at.gfn().get())?;
        let offset = page * PAGE_SIZE + at.offset();
        Some(Gfn::new(
            offset as u64 / u64::from(self.config.layout.descriptor_bytes),
        ))
    }

    // --- descriptors and counters in memory ---

    fn zone_of(&self, gfn: u64) -> Option<usize> {
        self.zones.iter().position(|zone| zone.holds(gfn))
    }

    /// References are counted in a block's head or, where pages stand for themselves, in each.
    fn put_references(&mut self, vcpu: usize, head: u64, order: u8, count: u64) {
        let layout = self.config.layout;
        let end = if layout.per_page {
            head + (1 << order)
        } else {
            head + 1
        };
        for gfn in head..end {
            self.put_field(Some(vcpu), gfn, layout.references, count);
        }
    }

    pub(super) fn give(&mut self, vcpu: Option<usize>, head: u64, order: u8) {
        let zone = self.zone_of(head).expect("every frame has a zone");
        let changes = self.zones[zone].give(head, order);
        self.apply(vcpu, &changes);
    }

    /// What the kernel writes for each change, in the order of Linux' `mm/page_alloc.c`: order first, then
    /// the mark, and the mark off before anything else.
    fn apply(&mut self, vcpu: Option<usize>, changes: &[Change]) {
        let layout = self.config.layout;
        for change in changes {
            match *change {
                Change::Removed { head, order } if layout.per_page => {
                    for gfn in head..head + (1 << order) {
                        self.put_field(vcpu, gfn, layout.predicate.field, self.unmarked(gfn));
                    }
                    self.count_pages(vcpu, head);
                }
                Change::Added { head, order } if layout.per_page => {
                    for gfn in head..head + (1 << order) {
                        // The zero thread, at once.
                        self.clear_page(vcpu, gfn);
                        self.put_field(vcpu, gfn, layout.references, 0);
                        self.put_field(vcpu, gfn, layout.predicate.field, layout.marked);
                    }
                    self.count_pages(vcpu, head);
                }
                Change::Removed { head, order } => {
                    self.put_field(vcpu, head, layout.predicate.field, self.unmarked(head));
                    self.put_field(vcpu, head, layout.order, 0);
                    self.count(vcpu, head, order);
                }
                Change::Added { head, order } => {
                    self.put_field(vcpu, head, layout.references, 0);
                    self.put_field(vcpu, head, layout.order, u64::from(order));
                    self.put_field(vcpu, head, layout.predicate.field, layout.marked);
                    self.count(vcpu, head, order);
                }
            }
        }
    }

    fn count(&mut self, vcpu: Option<usize>, head: u64, order: u8) {
        let zone = self.zone_of(head).expect("every frame has a zone");
        let count = self.zones[zone].count(order);
        self.put_counter(vcpu, zone as u64, order, count);
    }

    /// The length of the list of zeroed pages.
    fn count_pages(&mut self, vcpu: Option<usize>, head: u64) {
        let zone = self.zone_of(head).expect("every frame has a zone");
        let pages = self.zones[zone].blocks().map(|(_, order)| 1_u64 << order).sum();
        self.put_counter(vcpu, zone as u64, 0, pages);
    }

    fn put_counter(&mut self, vcpu: Option<usize>, zone: u64, order: u8, count: u64) {
        let bytes = count.to_le_bytes();
        let width = usize::from(self.config.levels.pointer_bytes());
        self.put(vcpu, DATA_FRAME, counter_offset(zone, order), &bytes[..width]);
    }

    fn clear_page(&mut self, vcpu: Option<usize>, gfn: u64) {
        let mut bytes = [0; PAGE_SIZE];
        // What is zero already stays as it is: a write would take the page off its zero frame.
        if self.machine.peek(gfn, 0, &mut bytes) && bytes != [0; PAGE_SIZE] {
            self.put(vcpu, gfn, 0, &[0; PAGE_SIZE]);
        }
    }

    /// A value of the predicate's field that does not mark a head; another for each frame.
    pub(super) fn unmarked(&self, gfn: u64) -> u64 {
        let values = self.config.layout.unmarked;
        values[(gfn % values.len() as u64) as usize]
    }

    pub(super) fn poke_field(&mut self, gfn: u64, field: Field, value: u64) {
        self.put_field(None, gfn, field, value);
    }

    /// Writes a member of a descriptor, which may lie in two frames.
    fn put_field(&mut self, vcpu: Option<usize>, gfn: u64, field: Field, value: u64) {
        let bytes = value.to_le_bytes();
        let start =
            gfn as usize * usize::from(self.config.layout.descriptor_bytes) + usize::from(field.offset);
        let width = usize::from(field.width);
        let room = PAGE_SIZE - start % PAGE_SIZE;
        let (first, second) = bytes[..width].split_at(width.min(room));
        for (at, part) in [(start, first), (start + first.len(), second)] {
            if !part.is_empty() {
                let frame = self.place.frames[at >> PAGE_SHIFT];
                self.put(vcpu, frame, at % PAGE_SIZE, part);
            }
        }
    }

    /// Writes as the guest does, or behind its back (`None`): a guest's write to a page of its own kernel
    /// never waits.
    fn put(&mut self, vcpu: Option<usize>, frame: u64, offset: usize, bytes: &[u8]) {
        match vcpu {
            Some(vcpu) => {
                let access = self.machine.store(vcpu, frame, offset, bytes);
                assert_eq!(access, Access::Done, "the mock kernel's own page {frame:#x}");
            }
            None => self.machine.poke(frame, offset, bytes),
        }
    }

    pub(super) fn peek_u64(&self, frame: u64, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.machine.peek(frame, offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// Offset of a counter in the kernel's data page.
fn counter_offset(zone: u64, order: u8) -> usize {
    (ZONES_OFFSET
        + zone * ZONE_BYTES
        + u64::from(order) * u64::from(COUNTER_STRIDE)
        + u64::from(COUNTER_OFFSET)) as usize
}
