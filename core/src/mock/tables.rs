//! Page tables of the mock guest (Intel SDM volume 3, 4.5).

use std::vec::Vec;

use crate::{PAGE_SHIFT, PagingLevels};

const PRESENT_WRITABLE: u64 = 0x3;
/// Accessed and dirty: a processor sets them as it goes, so the engine must not care.
const ACCESSED_DIRTY: u64 = 0x60;
const NO_EXECUTE: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;

/// A set of page tables under construction: each table is one frame.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    first: u64,
    levels: PagingLevels,
    entries: Vec<[u64; 512]>,
}

impl Tables {
    /// Empty tables whose top level is frame `first`; further tables take the frames after it.
    pub(super) fn new(first: u64, levels: PagingLevels) -> Self {
        Self {
            first,
            levels,
            entries: std::vec![[0; 512]],
        }
    }

    const fn top_shift(&self) -> u32 {
        match self.levels {
            PagingLevels::Four => 39,
            PagingLevels::Five => 48,
        }
    }

    /// Maps the page of 2^`shift` bytes at `virtual_address` to `physical`. Both are aligned to its size.
    pub(super) fn map(&mut self, virtual_address: u64, physical: u64, shift: u32) {
        let mut table = 0_usize;
        let mut level = self.top_shift();
        while level > shift {
            let index = slot(virtual_address, level);
            let entry = self.entries[table][index];
            table = if entry == 0 {
                let next = self.entries.len();
                self.entries.push([0; 512]);
                self.entries[table][index] =
                    ((self.first + next as u64) << PAGE_SHIFT) | PRESENT_WRITABLE | ACCESSED_DIRTY;
                next
            } else {
                usize::try_from((entry & 0x000f_ffff_ffff_f000) >> PAGE_SHIFT)
                    .unwrap_or(0)
                    .saturating_sub(usize::try_from(self.first).unwrap_or(0))
            };
            level -= 9;
        }
        let large = if shift > PAGE_SHIFT { LARGE } else { 0 };
        self.entries[table][slot(virtual_address, shift)] =
            physical | PRESENT_WRITABLE | ACCESSED_DIRTY | NO_EXECUTE | large;
    }

    /// The top-level entry above `virtual_address`, and its index.
    pub(super) fn top_entry(&self, virtual_address: u64) -> (u16, u64) {
        let index = slot(virtual_address, self.top_shift());
        // An index has nine bits.
        (u16::try_from(index).unwrap_or(0), self.entries[0][index])
    }

    /// Each table's frame and its bytes.
    pub(super) fn frames(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        (self.first..).zip(&self.entries).map(|(frame, table)| {
            (
                frame,
                table.iter().flat_map(|entry| entry.to_le_bytes()).collect(),
            )
        })
    }

    /// Frames taken.
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }
}

/// Nine bits of a virtual address: its slot in the table whose entries cover 2^`shift` bytes.
fn slot(virtual_address: u64, shift: u32) -> usize {
    // The mask leaves nine bits.
    usize::try_from((virtual_address >> shift) & 0x1ff).unwrap_or(0)
}
