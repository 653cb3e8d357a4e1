//! The profile of a mock guest.

use super::build::{
    BOOT_VALUE_OFFSET, COUNTER_OFFSET, COUNTER_STRIDE, DATA_FRAME, IDT_BASE, IDT_BASE_32, IDT_LIMIT,
    IDT_LIMIT_32, LSTAR, SYSENTER_EIP, ZONE_BYTES, ZONES_OFFSET,
};
use super::kernel::MockGuest;
use lacuna_core::{
    Anchor, BootValue, Contents, GuestPhys, GuestVirt, Identity, Kernel, MAX_ANCHORS, MAX_ROOT_SLOTS,
    MemoryMap, Profile, RootSlot, ZoneCounter,
};

impl MockGuest {
    /// The profile that describes this guest's current boot, truthfully.
    ///
    /// # Panics
    /// Never, for any [`Config`](super::Config) that [`MockGuest::new`] accepts.
    pub fn profile(&self) -> Profile {
        let layout = self.config.layout;
        let levels = self.config.levels;
        let data = self.config.data();
        let pointer = levels.pointer_bytes();
        let drawn = GuestVirt::new(data + BOOT_VALUE_OFFSET);
        let boot_value = self.peek_u64(DATA_FRAME, BOOT_VALUE_OFFSET as usize)
            & (u64::MAX >> (64 - 8 * u32::from(pointer)));
        let (memory_map, extents) = self.place.describe(&self.config);
        let counters = (0..self.zones.len() as u64).map(|zone| {
            let array = data + ZONES_OFFSET + zone * ZONE_BYTES;
            if layout.per_page {
                return ZoneCounter {
                    array: GuestVirt::new(array + u64::from(COUNTER_OFFSET)),
                    stride: u16::from(pointer),
                    count_offset: 0,
                    count_bytes: pointer,
                };
            }
            ZoneCounter {
                array: GuestVirt::new(array),
                stride: COUNTER_STRIDE,
                count_offset: COUNTER_OFFSET,
                count_bytes: pointer,
            }
        });
        let first_descriptor = match &memory_map {
            MemoryMap::Sections(sections) => sections.table.get(),
            // An array or several, and whatever else a profile may name one day.
            _ => self.place.base(),
        };
        let (root_slots, anchors) = self.reached(data, first_descriptor);
        Profile {
            kernel: Kernel {
                release: "6.12.0-mock".try_into().unwrap(),
                layout: [0x4d; 16],
            },
            root: GuestPhys::new(self.registers[0].cr3 & !0xfff),
            levels,
            memory_map,
            extents: extents.into_iter().collect(),
            descriptor_bytes: layout.descriptor_bytes,
            free: layout.free_rule(),
            contents: Contents::DontCare,
            zones: counters.collect(),
            identity: Identity {
                idt_base: if levels.is_32_bit() { IDT_BASE_32 } else { IDT_BASE },
                idt_limit: if levels.is_32_bit() {
                    IDT_LIMIT_32
                } else {
                    IDT_LIMIT
                },
                lstar: if levels.is_32_bit() { 0 } else { LSTAR },
                sysenter_eip: if levels.is_32_bit() { SYSENTER_EIP } else { 0 },
                gate: None,
                root_slots,
                anchors,
                boot_value: Some(BootValue {
                    at: drawn,
                    bytes: pointer,
                    value: boot_value,
                }),
            },
        }
    }

    /// How the kernel's data and its memory map are reached: by top-level entries, or by anchors where a
    /// kernel of 32 bits has none that stay.
    fn reached(
        &self,
        data: u64,
        first_descriptor: u64,
    ) -> (
        heapless::Vec<RootSlot, MAX_ROOT_SLOTS>,
        heapless::Vec<Anchor, MAX_ANCHORS>,
    ) {
        let levels = self.config.levels;
        let slots = [data, first_descriptor].map(|address| {
            let (index, entry) = self.tables.top_entry(address);
            RootSlot {
                index,
                entry: entry & !0x60,
            }
        });
        let root_slots = if levels.is_32_bit() {
            heapless::Vec::new()
        } else {
            let mut slots: heapless::Vec<RootSlot, MAX_ROOT_SLOTS> = slots.into_iter().collect();
            if slots[0].index == slots[1].index {
                slots.pop();
            }
            slots
        };
        let anchors = if levels.is_32_bit() {
            [data, first_descriptor]
                .map(|address| Anchor {
                    at: GuestVirt::new(address),
                    physical: self.tables.translate(address),
                })
                .into_iter()
                .collect()
        } else {
            heapless::Vec::new()
        };
        (root_slots, anchors)
    }
}
