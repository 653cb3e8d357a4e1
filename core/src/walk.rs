//! The guest's page tables: 4- and 5-level paging of amd64 (Intel SDM volume 3, 4.5; AMD APM volume 2, 5.3).
//!
//! Only the kernel's own view is wanted, so access rights are not checked: a page that the kernel can reach is read.

use crate::{GuestMemory, GuestPhys, GuestVirt, PagingLevels, ReadError};

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry: the physical address. Bit 51 downwards, so neither NX (63) nor the protection key.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where a virtual address lies in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte of the page, physically.
    pub base: GuestPhys,
    /// First byte of the page, virtually.
    pub start: GuestVirt,
    /// log2 of the page's size in bytes: 12, 21 or 30.
    pub shift: u32,
}

impl Mapping {
    /// The physical address of `va`, if this page maps it.
    #[inline]
    pub fn translate(&self, va: GuestVirt) -> Option<GuestPhys> {
        let offset = va.get().wrapping_sub(self.start.get());
        if offset >> self.shift == 0 {
            self.base.checked_add(offset)
        } else {
            None
        }
    }
}

/// Why a virtual address has no physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The address is not canonical for this number of levels.
    NotCanonical(GuestVirt),
    /// An entry is not present. Nothing in the 2^`shift` bytes around the address is mapped.
    NotPresent {
        /// log2 of the span, in bytes, that the missing entry covers.
        shift: u32,
    },
    /// A table or the large-page bit is where it cannot be.
    Malformed {
        /// log2 of the span, in bytes, that the entry covers.
        shift: u32,
    },
    /// A page table could not be read.
    Read(ReadError),
}

impl From<ReadError> for WalkError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// Translates `va` through the page tables whose top-level table is at `root`.
///
/// At most five entries are read, whatever the tables hold.
///
/// # Errors
/// [`WalkError`], which names the span that is known to be unmapped, so that a scan can step over it.
pub fn walk<M: GuestMemory + ?Sized>(
    memory: &mut M,
    root: GuestPhys,
    levels: PagingLevels,
    va: GuestVirt,
) -> Result<Mapping, WalkError> {
    let top_shift = match levels {
        PagingLevels::Four => 39,
        PagingLevels::Five => 48,
    };
    let sign = top_shift + 8;
    let upper = va.get() >> sign;
    if upper != 0 && upper != u64::MAX >> sign {
        return Err(WalkError::NotCanonical(va));
    }
    let mut table = root.get() & ADDRESS;
    let mut shift = top_shift;
    loop {
        let index = (va.get() >> shift) & 0x1ff;
        let entry = memory.read_value(GuestPhys::new(table + index * 8), 8)?;
        if entry & PRESENT == 0 {
            return Err(WalkError::NotPresent { shift });
        }
        let leaf = shift == 12 || entry & LARGE != 0;
        if leaf {
            if shift > 30 {
                return Err(WalkError::Malformed { shift });
            }
            let size = 1_u64 << shift;
            // Bit 12 of a large page is PAT, and the bits above it up to the page's size must be zero: masked off.
            let base = entry & ADDRESS & !(size - 1);
            return Ok(Mapping {
                base: GuestPhys::new(base),
                start: GuestVirt::new(va.get() & !(size - 1)),
                shift,
            });
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}
