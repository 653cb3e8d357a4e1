//! The profile: where a guest kernel keeps its page descriptors, and what makes one free.
//!
//! The Dom0 tool builds a profile for one boot of one guest and pushes it into the hypervisor, which trusts
//! nothing in it: the bytes are checked in full ([`Profile::decode`]) before they replace another profile,
//! and the profile then has to be admitted, by a scan that agrees with the guest's own counters, before a
//! page is shared on its word.
//!
//! Encoding: a 16-byte header (magic, version, body length, CRC-32C of the body; all little-endian) and the
//! body in postcard. At most [`MAX_PROFILE_BYTES`] in all.

mod encoding;
mod rules;

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

use crate::{Field, Gfn, GuestPhys, GuestVirt, Order, PagingLevels, Predicate};

pub use encoding::{MAX_PROFILE_BYTES, ProfileError};
pub use rules::FieldRule;

/// Most zones whose counters a profile names. Linux x86 has at most five zones a node; 128 allows 25 nodes
/// and more.
pub const MAX_ZONES: usize = 128;
/// Most top-level page-table entries that the identity check compares.
pub const MAX_ROOT_SLOTS: usize = 8;
/// Most runs of frames that [`MemoryMap::Extents`] has. A node or a run of physical memory takes one; the
/// largest PCs seen have fewer than twenty.
pub const MAX_EXTENTS: usize = 64;
/// Most conditions of a [`FreeRule`] besides its mark.
pub const MAX_CONDITIONS: usize = 6;
/// Most addresses that the identity check translates.
pub const MAX_ANCHORS: usize = 8;

/// A kernel, for messages and to find its layout again. Nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Release as the kernel names itself (Linux: `init_uts_ns.name.release`), for example
    /// `6.12.38+deb13-amd64`.
    pub release: String<64>,
    /// The first 16 bytes of the BLAKE3 hash of the layout this profile was made from.
    pub layout: [u8; 16],
}

/// Where the descriptor of a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemoryMap {
    /// Linux `CONFIG_SPARSEMEM_VMEMMAP`: one virtual array (`include/asm-generic/memory_model.h`,
    /// `vmemmap + pfn`), mapped only where there is memory. 64-bit kernels only.
    Vmemmap {
        /// Virtual address of descriptor 0 (`vmemmap_base`).
        base: GuestVirt,
    },
    /// Arrays for some runs of frames, which [`Profile::extents`] lists: Linux `CONFIG_FLATMEM` (one array,
    /// `mem_map`) and `CONFIG_DISCONTIGMEM` (one for each node), Windows' PFN database (one run for each of
    /// `MmPhysicalMemoryBlock`). Frames outside them have no descriptor.
    Extents,
    /// Linux `CONFIG_SPARSEMEM` without `VMEMMAP`: an array for each section of memory.
    Sections(Sections),
}

/// A run of frames whose descriptors lie one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its first frame.
    pub first: Gfn,
    /// Frames in it.
    pub count: u64,
    /// Virtual address of the descriptor of `first`.
    pub array: GuestVirt,
}

/// Classic sparse memory (Linux `mm/sparse.c`, `struct mem_section` in `include/linux/mmzone.h`).
///
/// Sections are read from the guest whenever one is entered, not listed in the profile: a guest of a terabyte
/// has thousands, and what is plugged in or taken out later is seen as the kernel itself sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sections {
    /// Virtual address of the array of pointers to groups of sections (`CONFIG_SPARSEMEM_EXTREME`), or of
    /// section 0.
    pub table: GuestVirt,
    /// Sections in a group (`SECTIONS_PER_ROOT`); 0 where all sections lie in `table` itself.
    pub per_root: u32,
    /// How many sections there can be (`NR_MEM_SECTIONS`).
    pub count: u64,
    /// log2 of the bytes of memory that a section describes (`SECTION_SIZE_BITS`).
    pub section_bits: u8,
    /// `sizeof(struct mem_section)`.
    pub section_bytes: u16,
    /// Offset of `section_mem_map` in it, which has the size of a pointer.
    pub map_offset: u16,
    /// Bits of `section_mem_map` that are flags. The others are the address that descriptor 0 would have were
    /// the section's array to begin there (`sparse_encode_mem_map`).
    pub flag_mask: u64,
    /// Flags that are all set in a section that has descriptors (`SECTION_HAS_MEM_MAP`, `SECTION_IS_ONLINE`).
    pub required: u64,
    /// Flags none of which is set in it (`SECTION_TAINT_ZONE_DEVICE`).
    pub refused: u64,
}

/// What makes a page free.
///
/// Linux (`mm/page_alloc.c`, `include/linux/page-flags.h`): the first page of a free block carries the mark,
/// has no reference, and says how large the block is. Windows: each page of the zeroed list says so for
/// itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeRule {
    /// The mark: what a scan looks for. Linux' `PageBuddy`; Windows' `PageLocation == ZeroedPageList`.
    pub predicate: Predicate,
    /// What must hold of a descriptor with the mark, too. Linux: no reference (`struct page._refcount`).
    /// Windows: no reference, not ROM, present, not locked.
    pub conditions: Vec<Predicate, MAX_CONDITIONS>,
    /// How large a marked block is; `None` where a mark speaks for its own page only.
    pub blocks: Option<Blocks>,
    /// Whether the descriptor's word is enough.
    pub bytes: BytesRule,
}

/// Blocks of 2^order pages, aligned to their size, as a buddy allocator keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Holds the order in a block's first descriptor (`struct page.private`).
    pub order: Field,
    /// The largest order the kernel's allocator uses.
    pub max_order: Order,
}

impl FreeRule {
    /// The largest block.
    pub const fn max_order(&self) -> Order {
        match self.blocks {
            Some(blocks) => blocks.max_order,
            None => Order::PAGE,
        }
    }
}

/// What the share step asks of a free page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BytesRule {
    /// Nothing: the kernel's own mark is proof (Linux' buddy pages).
    Any,
    /// They are all zero, so that sharing keeps the contents whatever the descriptor said.
    Zero,
}

/// The kernel's own count of free blocks in one zone: an array with an element for each order up to the
/// largest, `stride` bytes apart, each of which counts free blocks of that order at `count_offset` (Linux
/// `struct free_area.nr_free`). Where there are no blocks it has one element (Windows: the zeroed list's
/// `Total`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneCounter {
    /// Virtual address of element 0 (`zone.free_area`).
    pub array: GuestVirt,
    /// Bytes from one element to the next.
    pub stride: u16,
    /// Bytes from an element's start to its count.
    pub count_offset: u16,
    /// Bytes of a count: 4 or 8.
    pub count_bytes: u8,
}

/// One entry of the top-level page table of a 64-bit kernel, compared without its accessed and dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSlot {
    /// Index, 256 to 511: the kernel's half.
    pub index: u16,
    /// The entry as the kernel's reference table holds it, accessed (bit 5) and dirty (bit 6) masked off.
    pub entry: u64,
}

/// An address that the page tables of every virtual CPU translate alike, whichever process it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The virtual address.
    pub at: GuestVirt,
    /// What it leads to.
    pub physical: GuestPhys,
}

/// A gate of the interrupt descriptor table, for kernels that give each virtual CPU a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Its number.
    pub vector: u8,
    /// Where it leads.
    pub handler: GuestVirt,
}

/// A number that the kernel draws at random at each boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootValue {
    /// Where it lies (Linux `init_task.stack_canary`, Windows `__security_cookie`).
    pub at: GuestVirt,
    /// Bytes: 4 or 8.
    pub bytes: u8,
    /// What it is in this boot.
    pub value: u64,
}

/// What must hold of every online virtual CPU for the profile to be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Base of the interrupt descriptor table; 0 where it is not the same for all, and not compared.
    pub idt_base: u64,
    /// Its limit, in bytes minus one. A kexec sets it to 0 before it copies the new kernel.
    pub idt_limit: u32,
    /// `IA32_LSTAR`: where `syscall` enters a 64-bit kernel. 0: not compared.
    pub lstar: u64,
    /// `IA32_SYSENTER_EIP`: where `sysenter` enters a 32-bit kernel. 0: not compared.
    pub sysenter_eip: u64,
    /// A gate that leads into the kernel.
    pub gate: Option<Gate>,
    /// Top-level entries that map the kernel and its memory map.
    pub root_slots: Vec<RootSlot, MAX_ROOT_SLOTS>,
    /// Addresses of the kernel, and where they lead. For 32-bit kernels, whose processes have top-level
    /// tables that differ, and for those that run user programs on tables of their own (Windows' KVA shadow).
    pub anchors: Vec<Anchor, MAX_ANCHORS>,
    /// What tells this boot from the next one of the same kernel.
    pub boot_value: Option<BootValue>,
}

/// What the guest expects to find in a page that it takes from its free list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// Anything: the kernel clears what must be clear when it allocates.
    DontCare,
    /// Zeros: the kernel cleared it when it was freed and relies on it (`init_on_free=1`; Windows' zeroed
    /// list).
    Zero,
}

/// Everything the hypervisor needs to know of one boot of one guest kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Which kernel this is for.
    pub kernel: Kernel,
    /// Physical address of a top-level page table that lives as long as the boot (Linux `init_top_pgt`,
    /// `swapper_pg_dir`; Windows: that of the System process).
    pub root: GuestPhys,
    /// Its form.
    pub levels: PagingLevels,
    /// Where descriptors lie.
    pub memory_map: MemoryMap,
    /// The runs of [`MemoryMap::Extents`], in order; none for the other models.
    pub extents: Vec<Extent, MAX_EXTENTS>,
    /// Size of one descriptor, in bytes (Linux `sizeof(struct page)`).
    pub descriptor_bytes: u16,
    /// What makes a page free.
    pub free: FreeRule,
    /// What a free page must read as.
    pub contents: Contents,
    /// The kernel's own counts, one per populated zone. May be empty where the bytes of every page are looked
    /// at ([`BytesRule::Zero`]).
    pub zones: Vec<ZoneCounter, MAX_ZONES>,
    /// What ties the profile to this boot.
    pub identity: Identity,
}
