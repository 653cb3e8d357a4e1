//! What a decoded profile must keep before anything is done on its word.

use super::{BytesRule, MemoryMap, Profile, ProfileError, Sections};
use crate::guest::{ACCESSED_DIRTY, is_present};
use crate::{Field, Gfn, GuestVirt, Order, PAGE_SHIFT, PAGE_SIZE, PagingLevels, Predicate};

/// Largest page descriptor accepted, in bytes. Linux' largest seen is 64; debug options add to it
/// (`mm_types.h`).
const MAX_DESCRIPTOR_BYTES: u16 = 512;
/// log2 of the largest section, in bytes. Linux has 26 to 30 on x86 (`arch/x86/include/asm/sparsemem.h`).
const MAX_SECTION_BITS: u8 = 40;
/// Largest `struct mem_section`, in bytes. Linux has 8 to 32.
const MAX_SECTION_BYTES: u16 = 128;
/// Bits of a physical address on x86.
const PHYSICAL_BITS: u32 = 52;

/// The rules that a decoded profile must keep. Numbers are stable: they cross the hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum FieldRule {
    /// The page-table root is a physical address (52 bits, 32 for a 32-bit kernel), aligned to a frame, or to
    /// 32 bytes with PAE.
    RootAligned = 1,
    /// A descriptor has 8 to 512 bytes, a multiple of 4.
    DescriptorSize = 2,
    /// A virtual memory map is that of a 64-bit kernel and begins in the kernel's half, at a multiple of 8.
    MemoryMapBase = 3,
    /// A field is 1, 2, 4 or 8 bytes wide and lies inside the descriptor.
    FieldPlace = 4,
    /// A predicate's mask is not zero and fits the field.
    PredicateMask = 5,
    /// A predicate's expected value has bits only inside the mask; the mark's is not zero (a cleared
    /// descriptor is not free) unless the bytes of each page are looked at.
    PredicateValue = 6,
    /// The largest order is at most 18 and at least 1.
    MaxOrder = 7,
    /// There are at most [`crate::MAX_ZONES`] zones, and at least one unless the bytes of each page are
    /// looked at.
    Zones = 8,
    /// A zone's array lies in the kernel's half, its stride is at most 4096 and its count, of 4 or 8 bytes,
    /// lies inside an element. All are multiples of the count's size.
    ZonePlace = 9,
    /// Root slots are a 64-bit kernel's, each in the kernel's half and present, none twice; there is at least
    /// one, or an anchor. Unless the bytes of each page are looked at, the boot value and the start of the
    /// memory map (of the first extent, of the table of sections) are reached through a root slot or lie on
    /// the page of an anchor.
    RootSlots = 10,
    /// The addresses that identify the kernel lie in the kernel's half.
    IdentityAddress = 11,
    /// The IDT's limit covers at least the 32 exceptions and at most 256 vectors.
    IdtLimit = 12,
    /// The boot value has 4 or 8 bytes and is not zero (a value not yet drawn proves nothing). It may
    /// be left out only where the bytes of each page are looked at.
    BootValue = 13,
    /// The order's field and another one overlap.
    FieldOverlap = 14,
    /// Extents are there for the model that has them and for no other; they are in order and do not overlap,
    /// are not empty, and their arrays lie in the kernel's half at multiples of 4. At most
    /// [`crate::MAX_EXTENTS`].
    Extents = 15,
    /// The members of a sparse memory map fit each other: see [`Sections`].
    Sections = 16,
    /// A rule with blocks has at least one condition besides the mark. At most [`crate::MAX_CONDITIONS`].
    Conditions = 17,
    /// A rule without blocks looks at the bytes of each page: no allocator's own mark stands behind it.
    BytesRule = 18,
    /// The identity check compares where the kernel is entered (`LSTAR` on 64 bits; `SYSENTER_EIP` or a gate
    /// on 32), and the base of the interrupt descriptor table or a gate of it.
    IdentityEntry = 19,
}

fn require(holds: bool, rule: FieldRule, value: u64) -> Result<(), ProfileError> {
    if holds {
        Ok(())
    } else {
        Err(ProfileError::Field { rule, value })
    }
}

impl Profile {
    /// Checks every [`FieldRule`].
    ///
    /// # Errors
    /// [`ProfileError::Field`] with the first rule broken.
    pub fn check(&self) -> Result<(), ProfileError> {
        self.check_description()?;
        require(
            !self.zones.is_empty() || self.looks_at_bytes(),
            FieldRule::Zones,
            0,
        )?;
        self.check_identity()
    }

    /// Checks what a scan of a stopped guest's memory leans on: every [`FieldRule`] but those of the identity
    /// and that there is a counter. Only a profile that keeps the others too can be encoded.
    ///
    /// # Errors
    /// [`ProfileError::Field`] with the first rule broken.
    pub fn check_description(&self) -> Result<(), ProfileError> {
        let root = self.root.get();
        let (alignment, bits) = match self.levels {
            PagingLevels::Four | PagingLevels::Five => (PAGE_SIZE as u64, PHYSICAL_BITS),
            // CR3 has 32 bits there (Intel SDM volume 3, tables 4-3 and 4-7).
            PagingLevels::Two => (PAGE_SIZE as u64, 32),
            PagingLevels::Pae => (32, 32),
        };
        require(
            root % alignment == 0 && root >> bits == 0,
            FieldRule::RootAligned,
            root,
        )?;
        let size = self.descriptor_bytes;
        require(
            (8..=MAX_DESCRIPTOR_BYTES).contains(&size) && size % 4 == 0,
            FieldRule::DescriptorSize,
            u64::from(size),
        )?;
        self.check_memory_map()?;
        self.check_free_rule()?;
        self.check_zones()
    }

    fn looks_at_bytes(&self) -> bool {
        self.free.bytes == BytesRule::Zero
    }

    fn check_memory_map(&self) -> Result<(), ProfileError> {
        let levels = self.levels;
        match &self.memory_map {
            MemoryMap::Vmemmap { base } => require(
                !levels.is_32_bit() && levels.in_kernel_half(base.get()) && base.get() % 8 == 0,
                FieldRule::MemoryMapBase,
                base.get(),
            )?,
            MemoryMap::Extents => require(!self.extents.is_empty(), FieldRule::Extents, 0)?,
            MemoryMap::Sections(sections) => self.check_sections(sections)?,
        }
        if self.memory_map != MemoryMap::Extents {
            return require(
                self.extents.is_empty(),
                FieldRule::Extents,
                self.extents.len() as u64,
            );
        }
        let mut end = 0;
        for extent in &self.extents {
            let first = extent.first.get();
            require(first >= end && extent.count > 0, FieldRule::Extents, first)?;
            end = first.saturating_add(extent.count);
            require(end <= Gfn::LIMIT, FieldRule::Extents, first)?;
            let last = extent
                .count
                .checked_mul(u64::from(self.descriptor_bytes))
                .and_then(|bytes| extent.array.get().checked_add(bytes - 1));
            require(
                extent.array.get() % 4 == 0
                    && levels.in_kernel_half(extent.array.get())
                    && last.is_some_and(|last| levels.in_kernel_half(last)),
                FieldRule::Extents,
                extent.array.get(),
            )?;
        }
        Ok(())
    }

    fn check_sections(&self, sections: &Sections) -> Result<(), ProfileError> {
        let pointer = u64::from(self.levels.pointer_bytes());
        let table = sections.table.get();
        require(
            self.levels.in_kernel_half(table) && table % pointer == 0,
            FieldRule::Sections,
            table,
        )?;
        let bits = u32::from(sections.section_bits);
        require(
            bits > PAGE_SHIFT && sections.section_bits <= MAX_SECTION_BITS,
            FieldRule::Sections,
            u64::from(bits),
        )?;
        require(
            sections.count > 0 && sections.count <= 1 << (PHYSICAL_BITS - bits),
            FieldRule::Sections,
            sections.count,
        )?;
        let (size, offset) = (u64::from(sections.section_bytes), u64::from(sections.map_offset));
        require(
            sections.section_bytes <= MAX_SECTION_BYTES
                && size % pointer == 0
                && offset % pointer == 0
                && offset + pointer <= size,
            FieldRule::Sections,
            size << 16 | offset,
        )?;
        require(
            u64::from(sections.per_root) * size <= PAGE_SIZE as u64,
            FieldRule::Sections,
            u64::from(sections.per_root),
        )?;
        let flags = sections.required | sections.refused;
        require(
            sections.flag_mask < PAGE_SIZE as u64
                && sections.required != 0
                && flags & !sections.flag_mask == 0
                && sections.required & sections.refused == 0,
            FieldRule::Sections,
            flags,
        )
    }

    fn check_free_rule(&self) -> Result<(), ProfileError> {
        let rule = &self.free;
        self.check_predicate(&rule.predicate)?;
        for condition in &rule.conditions {
            self.check_predicate(condition)?;
        }
        require(
            rule.predicate.expected != 0 || self.looks_at_bytes(),
            FieldRule::PredicateValue,
            0,
        )?;
        let Some(blocks) = rule.blocks else {
            return require(self.looks_at_bytes(), FieldRule::BytesRule, 0);
        };
        self.check_place(blocks.order)?;
        require(!rule.conditions.is_empty(), FieldRule::Conditions, 0)?;
        require(
            blocks.max_order > Order::PAGE,
            FieldRule::MaxOrder,
            u64::from(blocks.max_order.get()),
        )?;
        let tests = core::iter::once(&rule.predicate).chain(&rule.conditions);
        for field in tests.map(|test| test.field) {
            require(
                !overlap(field, blocks.order),
                FieldRule::FieldOverlap,
                u64::from(field.offset) << 16 | u64::from(blocks.order.offset),
            )?;
        }
        Ok(())
    }

    fn check_place(&self, field: Field) -> Result<(), ProfileError> {
        require(
            matches!(field.width, 1 | 2 | 4 | 8)
                && u32::from(field.offset) + u32::from(field.width) <= u32::from(self.descriptor_bytes),
            FieldRule::FieldPlace,
            u64::from(field.offset) << 8 | u64::from(field.width),
        )
    }

    fn check_predicate(&self, predicate: &Predicate) -> Result<(), ProfileError> {
        self.check_place(predicate.field)?;
        let bits = 8 * u32::from(predicate.field.width);
        let mask = predicate.mask;
        require(
            mask != 0 && (bits == 64 || mask >> bits == 0),
            FieldRule::PredicateMask,
            mask,
        )?;
        require(
            predicate.expected & !mask == 0,
            FieldRule::PredicateValue,
            predicate.expected,
        )
    }

    fn check_zones(&self) -> Result<(), ProfileError> {
        for zone in &self.zones {
            let bytes = u16::from(zone.count_bytes);
            let array = zone.array.get();
            require(
                matches!(bytes, 4 | 8)
                    && self.levels.in_kernel_half(array)
                    && array % u64::from(bytes) == 0
                    && usize::from(zone.stride) <= PAGE_SIZE
                    && zone.stride % bytes == 0
                    && zone.count_offset % bytes == 0
                    && u32::from(zone.count_offset) + u32::from(bytes) <= u32::from(zone.stride),
                FieldRule::ZonePlace,
                array,
            )?;
        }
        Ok(())
    }

    fn check_identity(&self) -> Result<(), ProfileError> {
        let identity = &self.identity;
        let levels = self.levels;
        require(
            !identity.root_slots.is_empty() || !identity.anchors.is_empty(),
            FieldRule::RootSlots,
            0,
        )?;
        for (position, slot) in identity.root_slots.iter().enumerate() {
            let twice = identity
                .root_slots
                .iter()
                .take(position)
                .any(|earlier| earlier.index == slot.index);
            require(
                !levels.is_32_bit()
                    && (256..512).contains(&slot.index)
                    && is_present(slot.entry)
                    && slot.entry & ACCESSED_DIRTY == 0
                    && !twice,
                FieldRule::RootSlots,
                u64::from(slot.index),
            )?;
        }
        let gate = identity.gate.map(|gate| gate.handler.get());
        let boot_value = identity.boot_value.map(|value| value.at.get());
        // 0 stands for "not compared"; whether enough is left is the rule after this one.
        let registers = [identity.idt_base, identity.lstar, identity.sysenter_eip];
        let given = registers.into_iter().filter(|&address| address != 0);
        let anchors = identity.anchors.iter().map(|anchor| anchor.at.get());
        for address in given.chain(gate).chain(boot_value).chain(anchors) {
            require(
                levels.in_kernel_half(address),
                FieldRule::IdentityAddress,
                address,
            )?;
        }
        self.check_reached()?;
        let gate_bytes = if levels.is_32_bit() { 8 } else { 16 };
        require(
            (32 * gate_bytes - 1..=256 * gate_bytes - 1).contains(&identity.idt_limit),
            FieldRule::IdtLimit,
            u64::from(identity.idt_limit),
        )?;
        let entered = if levels.is_32_bit() {
            identity.sysenter_eip != 0 || gate.is_some()
        } else {
            identity.lstar != 0
        };
        require(
            entered && (identity.idt_base != 0 || gate.is_some()),
            FieldRule::IdentityEntry,
            identity.idt_base,
        )?;
        match identity.boot_value {
            Some(drawn) => require(
                matches!(drawn.bytes, 4 | 8)
                    && drawn.value != 0
                    && (drawn.bytes == 8 || drawn.value >> 32 == 0),
                FieldRule::BootValue,
                drawn.value,
            ),
            None => require(self.looks_at_bytes(), FieldRule::BootValue, 0),
        }
    }

    /// What is read through the reference table is the running kernel's only where every virtual CPU reaches
    /// it alike.
    fn check_reached(&self) -> Result<(), ProfileError> {
        if self.looks_at_bytes() {
            return Ok(());
        }
        let identity = &self.identity;
        let start = match &self.memory_map {
            MemoryMap::Vmemmap { base } => Some(*base),
            MemoryMap::Extents => self.extents.first().map(|extent| extent.array),
            MemoryMap::Sections(sections) => Some(sections.table),
        };
        let drawn = identity.boot_value.map(|drawn| drawn.at);
        for address in start.into_iter().chain(drawn) {
            let page = |address: GuestVirt| address.get() >> PAGE_SHIFT;
            let by_anchor = identity
                .anchors
                .iter()
                .any(|anchor| page(anchor.at) == page(address));
            let index = match self.levels {
                PagingLevels::Four => Some(address.get() >> 39 & 0x1ff),
                PagingLevels::Five => Some(address.get() >> 48 & 0x1ff),
                PagingLevels::Pae | PagingLevels::Two => None,
            };
            let by_slot = identity
                .root_slots
                .iter()
                .any(|slot| Some(u64::from(slot.index)) == index);
            require(by_anchor || by_slot, FieldRule::RootSlots, address.get())?;
        }
        Ok(())
    }
}

/// Whether two fields have a byte in common. Both lie inside a descriptor, so no sum overflows.
fn overlap(one: Field, other: Field) -> bool {
    let end = |field: Field| u32::from(field.offset) + u32::from(field.width);
    u32::from(one.offset) < end(other) && u32::from(other.offset) < end(one)
}
