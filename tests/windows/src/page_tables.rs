//! The page tables of a made guest, in each of the forms that Windows has had.

use crate::guest::{FIRST_HIGH, FOUR_GIB, Guest, PAGE, Paging, TABLE_FRAMES, index};

/// The memory of a guest in the making, and its page tables.
pub(crate) struct Build {
    pub(crate) memory: Vec<u8>,
    pub(crate) guest: Guest,
    pub(crate) next_table: u64,
    pub(crate) root: u64,
}

impl Build {
    pub(crate) fn write(&mut self, frame: u64, bytes: &[u8]) {
        self.memory[index(frame) * PAGE..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn table(&mut self) -> u64 {
        let table = self.next_table;
        assert!(
            table < self.guest.first_table() + TABLE_FRAMES,
            "too many page tables"
        );
        self.next_table += 1;
        self.guest.frame_at(table) * PAGE as u64
    }

    /// Entries' size, and the bits of each level's index from the top: shift and width.
    fn form(&self) -> (u64, &'static [(u32, u32)]) {
        match self.guest.paging {
            Paging::Two => (4, &[(22, 10), (12, 10)]),
            Paging::Pae => (8, &[(30, 2), (21, 9), (12, 9)]),
            Paging::Four => (8, &[(39, 9), (30, 9), (21, 9), (12, 9)]),
            Paging::Five => (8, &[(48, 9), (39, 9), (30, 9), (21, 9), (12, 9)]),
        }
    }

    pub(crate) fn map(&mut self, at: u64, frame: u64) {
        let (size, levels) = self.form();
        let mut table = self.root;
        for (depth, (shift, width)) in levels.iter().enumerate() {
            let slot = table + (at >> shift & ((1 << width) - 1)) * size;
            if depth + 1 == levels.len() {
                self.put(slot, self.guest.frame_at(frame) << 12 | 0x63, size);
                return;
            }
            let entry = self.get(slot, size);
            table = if entry & 1 == 0 {
                let new = self.table();
                // The top entries of PAE have no flags but the first.
                let flags = if self.guest.paging == Paging::Pae && depth == 0 {
                    1
                } else {
                    0x63
                };
                self.put(slot, new | flags, size);
                new
            } else {
                entry & 0x000f_ffff_ffff_f000
            };
        }
    }

    /// Windows maps its page tables through themselves: the entries at 0xc0000000, or slot 0x1ed.
    pub(crate) fn map_itself(&mut self) {
        match self.guest.paging {
            Paging::Two => self.put(self.root + 0x300 * 4, self.root | 0x63, 4),
            Paging::Four | Paging::Five => self.put(self.root + 0x1ed * 8, self.root | 0x63, 8),
            Paging::Pae => {
                let tables: Vec<u64> = (0..4)
                    .map(|slot| match self.get(self.root + 8 * slot, 8) {
                        0 => {
                            let new = self.table();
                            self.put(self.root + 8 * slot, new | 1, 8);
                            new
                        }
                        entry => entry & 0x000f_ffff_ffff_f000,
                    })
                    .collect();
                for (slot, table) in (0..).zip(&tables) {
                    self.put(tables[3] + 8 * slot, table | 0x63, 8);
                }
            }
        }
    }

    /// Where the byte that the guest has at `at` lies in `memory`.
    fn place(at: u64) -> u64 {
        let high = FOUR_GIB * PAGE as u64;
        at.checked_sub(high)
            .map_or(at, |above| above + FIRST_HIGH * PAGE as u64)
    }

    fn put(&mut self, at: u64, value: u64, size: u64) {
        let at = Self::place(at);
        let bytes = value.to_le_bytes();
        self.memory[index(at)..][..index(size)].copy_from_slice(&bytes[..index(size)]);
    }

    fn get(&self, at: u64, size: u64) -> u64 {
        let at = Self::place(at);
        let mut value = [0; 8];
        value[..index(size)].copy_from_slice(&self.memory[index(at)..][..index(size)]);
        u64::from_le_bytes(value)
    }
}
