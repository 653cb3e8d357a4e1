//! The guest's page tables: 4- and 5-level paging of amd64, PAE and two-level paging of 32-bit kernels (Intel
//! SDM volume 3, chapter 4; AMD APM volume 2, chapter 5).
//!
//! Only the kernel's own view is wanted, so access rights are not checked: a page that the kernel can reach
//! is read.

use serde::{Deserialize, Serialize};
use x86_64::PhysAddr;
use x86_64::structures::paging::{PageSize, PageTableFlags, Size4KiB};

use crate::{GuestMemory, GuestPhys, GuestVirt, ReadError};

/// CR3 of a 32-bit kernel with PAE: the table of four entries is aligned to 32 bytes.
const PAE_ROOT: u64 = 0xffff_ffe0;
/// Bits 12 to 31 of a two-level entry.
const ADDRESS_32: u64 = 0xffff_f000;
/// Bits 22 to 31 of an entry that maps 4 MiB.
const ADDRESS_4M: u64 = 0xffc0_0000;

/// Bits of an entry that the processor sets, so that they are never compared.
pub(crate) const ACCESSED_DIRTY: u64 = PageTableFlags::ACCESSED.union(PageTableFlags::DIRTY).bits();

/// The form of the kernel's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PagingLevels {
    /// 4-level paging: 48-bit virtual addresses.
    Four,
    /// 5-level paging (`CR4.LA57`): 57-bit virtual addresses.
    Five,
    /// 32-bit virtual addresses, three levels of 8-byte entries (`CR4.PAE`); the top one has four entries.
    Pae,
    /// 32-bit virtual addresses, two levels of 4-byte entries, with 4 MiB pages anywhere in 40 bits (PSE,
    /// PSE-36).
    Two,
}

/// The lowest address that a 32-bit kernel keeps for itself (Linux `VMSPLIT_1G`, `arch/x86/Kconfig`). Windows
/// begins at 2 GiB.
const LOWEST_KERNEL_32: u64 = 0x4000_0000;

impl PagingLevels {
    /// Whether virtual addresses and the kernel's pointers have 32 bits.
    pub const fn is_32_bit(self) -> bool {
        matches!(self, Self::Pae | Self::Two)
    }

    /// Bytes of a kernel pointer, and of Linux' `unsigned long`.
    pub const fn pointer_bytes(self) -> u8 {
        if self.is_32_bit() { 4 } else { 8 }
    }

    /// Whether `address` belongs to the half of the address space where kernels live.
    pub const fn in_kernel_half(self, address: u64) -> bool {
        match self {
            Self::Four => address >> 47 == u64::MAX >> 47,
            Self::Five => address >> 56 == u64::MAX >> 56,
            Self::Pae | Self::Two => address >= LOWEST_KERNEL_32 && address <= u32::MAX as u64,
        }
    }
}

/// Where a virtual address lies in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte of the page, physically.
    pub base: GuestPhys,
    /// First byte of the page, virtually.
    pub start: GuestVirt,
    /// log2 of the page's size in bytes: 12, 21, 22 or 30.
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

    /// The page of 2^`shift` bytes at physical `base` in which `va` lies.
    const fn page(base: u64, va: GuestVirt, shift: u32) -> Self {
        Self {
            base: GuestPhys::new(base),
            start: GuestVirt::new(va.get() & !((1 << shift) - 1)),
            shift,
        }
    }
}

/// Why a virtual address has no physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The address is not canonical for this number of levels, or has more than 32 bits with a 32-bit kernel.
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

/// Whether an entry of a page table, of 4 or 8 bytes, is present.
#[inline]
pub(crate) const fn is_present(entry: u64) -> bool {
    PageTableFlags::from_bits_retain(entry).contains(PageTableFlags::PRESENT)
}

/// Whether an entry above the last level maps a page instead of naming a table.
#[inline]
const fn is_large(entry: u64) -> bool {
    PageTableFlags::from_bits_retain(entry).contains(PageTableFlags::HUGE_PAGE)
}

/// The physical address in an entry of 8 bytes, or in CR3: bits 12 to 51. Neither NX (63) nor the protection
/// key, nor PCID.
#[inline]
pub(crate) fn address(entry: u64) -> u64 {
    PhysAddr::new_truncate(entry).align_down(Size4KiB::SIZE).as_u64()
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
    walk_on(memory, root, levels, va, &mut None)
}

/// A table of 8-byte entries, each of which maps 2^`shift` bytes.
#[derive(Clone, Copy, Debug)]
struct Level {
    table: u64,
    shift: u32,
}

/// The table that a walk found for the 1 GiB around an address, whose entries map 2 MiB or name a last table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory {
    /// Which GiB of virtual memory.
    number: u64,
    table: u64,
}

/// log2 of the bytes that an entry of a [`Directory`] maps.
const DIRECTORY_SHIFT: u32 = 21;

/// As [`walk`], but begins at `directory` if that is the one for `va`, and otherwise leaves there the one that
/// it came through. For many addresses in a row: what changes above a directory meanwhile is not seen.
///
/// # Errors
/// As [`walk`].
pub(crate) fn walk_on<M: GuestMemory + ?Sized>(
    memory: &mut M,
    root: GuestPhys,
    levels: PagingLevels,
    va: GuestVirt,
    directory: &mut Option<Directory>,
) -> Result<Mapping, WalkError> {
    if levels == PagingLevels::Two {
        return walk_two(memory, root, va);
    }
    let known = directory.filter(|known| known.number == va.get() >> 30);
    let level = match known.map(|known| known.table) {
        Some(table) => Level {
            table,
            shift: DIRECTORY_SHIFT,
        },
        None => top(root, levels, va)?,
    };
    descend(memory, levels, va, level, directory)
}

/// The table at `root`, which is of 8-byte entries.
fn top(root: GuestPhys, levels: PagingLevels, va: GuestVirt) -> Result<Level, WalkError> {
    let (table, shift, significant) = match levels {
        PagingLevels::Two | PagingLevels::Pae => (root.get() & PAE_ROOT, 30, 32),
        PagingLevels::Four => (address(root.get()), 39, 48),
        PagingLevels::Five => (address(root.get()), 48, 57),
    };
    let canonical = if levels.is_32_bit() {
        va.get() >> significant == 0
    } else {
        let upper = va.get() >> (significant - 1);
        upper == 0 || upper == u64::MAX >> (significant - 1)
    };
    if !canonical {
        return Err(WalkError::NotCanonical(va));
    }
    Ok(Level { table, shift })
}

/// The walk from `level` on.
fn descend<M: GuestMemory + ?Sized>(
    memory: &mut M,
    levels: PagingLevels,
    va: GuestVirt,
    level: Level,
    directory: &mut Option<Directory>,
) -> Result<Mapping, WalkError> {
    let Level { mut table, mut shift } = level;
    loop {
        if shift == DIRECTORY_SHIFT {
            *directory = Some(Directory {
                number: va.get() >> 30,
                table,
            });
        }
        let index = (va.get() >> shift) & 0x1ff;
        let entry = memory.read_value(GuestPhys::new(table + index * 8), 8)?;
        if !is_present(entry) {
            return Err(WalkError::NotPresent { shift });
        }
        let leaf = shift == 12 || is_large(entry);
        if leaf {
            // With PAE the top level has no large pages: bit 7 is reserved there (SDM, table 4-8).
            if shift > 30 || (shift == 30 && levels == PagingLevels::Pae) {
                return Err(WalkError::Malformed { shift });
            }
            // Bit 12 of a large page is PAT, and the bits above it up to the page's size must be zero: masked
            // off.
            return Ok(Mapping::page(address(entry) & !((1 << shift) - 1), va, shift));
        }
        table = address(entry);
        shift -= 9;
    }
}

/// Two levels of 1,024 entries of 4 bytes (SDM volume 3, 4.3). Page-size extensions are taken for granted:
/// without `CR4.PSE` no kernel sets the bit.
fn walk_two<M: GuestMemory + ?Sized>(
    memory: &mut M,
    root: GuestPhys,
    va: GuestVirt,
) -> Result<Mapping, WalkError> {
    if va.get() >> 32 != 0 {
        return Err(WalkError::NotCanonical(va));
    }
    let directory = root.get() & ADDRESS_32;
    let entry = memory.read_value(GuestPhys::new(directory + (va.get() >> 22) * 4), 4)?;
    if !is_present(entry) {
        return Err(WalkError::NotPresent { shift: 22 });
    }
    if is_large(entry) {
        // PSE-36: bits 13 to 20 are bits 32 to 39 of the address (SDM, table 4-4).
        let high = (entry >> 13 & 0xff) << 32;
        return Ok(Mapping::page(entry & ADDRESS_4M | high, va, 22));
    }
    let table = entry & ADDRESS_32;
    let entry = memory.read_value(GuestPhys::new(table + (va.get() >> 12 & 0x3ff) * 4), 4)?;
    if !is_present(entry) {
        return Err(WalkError::NotPresent { shift: 12 });
    }
    Ok(Mapping::page(entry & ADDRESS_32, va, 12))
}
