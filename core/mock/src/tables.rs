//! Page tables of the mock guest (Intel SDM volume 3, chapter 4).

use lacuna_core::{GuestPhys, PAGE_SHIFT, PAGE_SIZE, PagingLevels};

const PRESENT_WRITABLE: u64 = 0x3;
/// The entries of PAE's top level have no such bit: it is reserved (SDM, table 4-8).
const PRESENT: u64 = 0x1;
/// Accessed and dirty: a processor sets them as it goes, so the engine must not care.
const ACCESSED_DIRTY: u64 = 0x60;
const NO_EXECUTE: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;

/// A set of page tables under construction: each table is one frame.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    first: u64,
    levels: PagingLevels,
    /// A table's entries; two-level tables have 1,024 of them, the others 512.
    entries: Vec<[u64; 1024]>,
}

impl Tables {
    /// Empty tables whose top level is frame `first`; further tables take the frames after it.
    pub(super) fn new(first: u64, levels: PagingLevels) -> Self {
        Self {
            first,
            levels,
            entries: std::vec![[0; 1024]],
        }
    }

    const fn top_shift(&self) -> u32 {
        match self.levels {
            PagingLevels::Four => 39,
            PagingLevels::Five => 48,
            PagingLevels::Pae => 30,
            PagingLevels::Two => 22,
        }
    }

    /// Bits of an address that one level looks at.
    const fn index_bits(&self) -> u32 {
        match self.levels {
            PagingLevels::Two => 10,
            PagingLevels::Four | PagingLevels::Five | PagingLevels::Pae => 9,
        }
    }

    /// A virtual address' slot in the table whose entries cover 2^`shift` bytes.
    fn slot(&self, virtual_address: u64, shift: u32) -> usize {
        // At most ten bits.
        usize::try_from((virtual_address >> shift) & ((1 << self.index_bits()) - 1)).unwrap_or(0)
    }

    /// Maps the page of 2^`shift` bytes at `virtual_address` to `physical`. Both are aligned to its size.
    pub(super) fn map(&mut self, virtual_address: u64, physical: u64, shift: u32) {
        let mut table = 0_usize;
        let mut level = self.top_shift();
        while level > shift {
            let index = self.slot(virtual_address, level);
            let entry = self.entries[table][index];
            table = if entry == 0 {
                let next = self.entries.len();
                self.entries.push([0; 1024]);
                let flags = if self.levels == PagingLevels::Pae && level == 30 {
                    PRESENT
                } else {
                    PRESENT_WRITABLE | ACCESSED_DIRTY
                };
                self.entries[table][index] = ((self.first + next as u64) << PAGE_SHIFT) | flags;
                next
            } else {
                usize::try_from((entry & 0x000f_ffff_ffff_f000) >> PAGE_SHIFT)
                    .unwrap_or(0)
                    .saturating_sub(usize::try_from(self.first).unwrap_or(0))
            };
            level -= self.index_bits();
        }
        let large = if shift > PAGE_SHIFT { LARGE } else { 0 };
        let slot = self.slot(virtual_address, shift);
        let flags = PRESENT_WRITABLE | ACCESSED_DIRTY | large;
        self.entries[table][slot] = match self.levels {
            // PSE-36: bits 32 to 39 of the address go to 13 to 20.
            PagingLevels::Two => physical & 0xffff_ffff | physical >> 32 << 13 | flags,
            PagingLevels::Four | PagingLevels::Five | PagingLevels::Pae => physical | flags | NO_EXECUTE,
        };
    }

    /// The top-level entry above `virtual_address`, and its index.
    pub(super) fn top_entry(&self, virtual_address: u64) -> (u16, u64) {
        let index = self.slot(virtual_address, self.top_shift());
        // An index has at most ten bits.
        (u16::try_from(index).unwrap_or(0), self.entries[0][index])
    }

    /// The physical address of a mapped address.
    pub(super) fn translate(&self, virtual_address: u64) -> GuestPhys {
        let mut table = 0_usize;
        let mut level = self.top_shift();
        loop {
            let entry = self.entries[table][self.slot(virtual_address, level)];
            if level == PAGE_SHIFT || entry & LARGE != 0 {
                let page = (1 << level) - 1;
                let base = entry & 0x000f_ffff_ffff_f000 & !page;
                return GuestPhys::new(base | virtual_address & page);
            }
            table = usize::try_from((entry & 0x000f_ffff_ffff_f000) >> PAGE_SHIFT)
                .unwrap_or(0)
                .saturating_sub(usize::try_from(self.first).unwrap_or(0));
            level -= self.index_bits();
        }
    }

    /// Each table's frame and its bytes.
    pub(super) fn frames(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        let bytes = if self.levels == PagingLevels::Two { 4 } else { 8 };
        (self.first..).zip(&self.entries).map(move |(frame, table)| {
            let entries = table.iter().take(PAGE_SIZE / bytes);
            (
                frame,
                entries
                    .flat_map(|entry| entry.to_le_bytes().into_iter().take(bytes))
                    .collect(),
            )
        })
    }

    /// Frames taken.
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }
}
