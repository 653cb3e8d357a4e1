//! The profile: where a guest kernel keeps its page descriptors, and what makes one free.
//!
//! The Dom0 tool builds a profile for one boot of one guest and pushes it into the hypervisor, which trusts nothing in
//! it: the bytes are checked in full ([`Profile::decode`]) before they replace another profile, and the profile then
//! has to be admitted, by a scan that agrees with the guest's own counters, before a page is shared on its word.
//!
//! Encoding: a 16-byte header (magic, version, body length, CRC-32C of the body; all little-endian) and the body in
//! postcard. At most [`MAX_PROFILE_BYTES`] in all.

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

use crate::{GuestPhys, GuestVirt, Order, PAGE_SIZE, Status};

/// Largest encoded profile, in bytes, header included.
pub const MAX_PROFILE_BYTES: usize = 16 * 1024;
/// Most zones whose counters a profile names. Linux x86 has at most five zones a node; 128 allows 25 nodes and more.
pub const MAX_ZONES: usize = 128;
/// Most top-level page-table entries that the guard compares.
pub const MAX_ROOT_SLOTS: usize = 8;

const MAGIC: u32 = u32::from_le_bytes(*b"LCNA");
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
/// Largest page descriptor accepted, in bytes. Linux' largest seen is 64; debug options add to it (`mm_types.h`).
const MAX_DESCRIPTOR_BYTES: u16 = 512;

/// A kernel, for messages and to find its layout again. Nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Release as the kernel names itself (Linux: `init_uts_ns.name.release`), for example `6.12.38+deb13-amd64`.
    pub release: String<64>,
    /// The first 16 bytes of the BLAKE3 hash of the layout this profile was made from.
    pub layout: [u8; 16],
}

/// How many levels the kernel's page tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PagingLevels {
    /// 4-level paging: 48-bit virtual addresses.
    Four,
    /// 5-level paging (`CR4.LA57`): 57-bit virtual addresses.
    Five,
}

/// Where the descriptor of a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemoryMap {
    /// Linux `CONFIG_SPARSEMEM_VMEMMAP`: one virtual array (`include/asm-generic/memory_model.h`, `vmemmap + pfn`),
    /// mapped only where there is memory.
    Vmemmap {
        /// Virtual address of descriptor 0 (`vmemmap_base`).
        base: GuestVirt,
    },
}

/// An unsigned little-endian member of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Bytes from the start of the descriptor.
    pub offset: u16,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
}

/// The test that the kernel's own `PageBuddy` amounts to: `(value & mask) == expected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicate {
    /// The bytes that the test looks at.
    pub field: Field,
    /// The bits that matter.
    pub mask: u64,
    /// What they hold in a free block's first page.
    pub expected: u64,
}

impl Predicate {
    /// Whether a value of the field passes the test.
    #[inline]
    pub const fn holds(&self, value: u64) -> bool {
        value & self.mask == self.expected
    }
}

/// What makes a block free (Linux `mm/page_alloc.c`, `include/linux/page-flags.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeRule {
    /// Marks the first page of a free block.
    pub predicate: Predicate,
    /// Holds the block's order (`struct page.private`).
    pub order: Field,
    /// Holds the reference count, 0 in a free block (`struct page._refcount`).
    pub references: Field,
    /// The largest order the kernel's allocator uses.
    pub max_order: Order,
    /// Whether the descriptor's word is enough.
    pub bytes: BytesRule,
}

/// What the share step asks of a free page's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BytesRule {
    /// Nothing: the kernel's own mark is proof (Linux' buddy pages).
    Any,
    /// They are all zero, so that sharing keeps the contents whatever the descriptor said.
    Zero,
}

/// The kernel's own count of free blocks in one zone: an array of `orders` elements, `stride` bytes apart, each of
/// which counts free blocks of that order in the 8 bytes at `count_offset` (Linux `struct free_area.nr_free`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneCounter {
    /// Virtual address of element 0 (`zone.free_area`).
    pub array: GuestVirt,
    /// Bytes from one element to the next.
    pub stride: u16,
    /// Bytes from an element's start to its count.
    pub count_offset: u16,
}

/// One entry of the top-level page table, compared without its accessed and dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSlot {
    /// Index, 256 to 511: the kernel's half.
    pub index: u16,
    /// The entry as the kernel's reference table holds it, accessed (bit 5) and dirty (bit 6) masked off.
    pub entry: u64,
}

/// What must hold of every online virtual CPU for the profile to be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Base of the interrupt descriptor table.
    pub idt_base: u64,
    /// Its limit, in bytes minus one. A kexec sets it to 0 before it copies the new kernel.
    pub idt_limit: u32,
    /// `IA32_LSTAR`: where `syscall` enters the kernel.
    pub lstar: u64,
    /// Top-level entries that map the kernel and its memory map.
    pub root_slots: Vec<RootSlot, MAX_ROOT_SLOTS>,
    /// Virtual address of eight bytes that the kernel draws at random at each boot (`init_task.stack_canary`).
    pub boot_value_at: GuestVirt,
    /// What they hold in this boot.
    pub boot_value: u64,
}

/// What the guest expects to find in a page that it takes from its free list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// Anything: the kernel clears what must be clear when it allocates.
    DontCare,
    /// Zeros: the kernel cleared it when it was freed and relies on it (`init_on_free=1`; Windows' zeroed list).
    Zero,
}

/// Everything the hypervisor needs to know of one boot of one guest kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Which kernel this is for.
    pub kernel: Kernel,
    /// Physical address of the kernel's reference page table (Linux `init_top_pgt`).
    pub root: GuestPhys,
    /// Its number of levels.
    pub levels: PagingLevels,
    /// Where descriptors lie.
    pub memory_map: MemoryMap,
    /// Size of one descriptor, in bytes (Linux `sizeof(struct page)`).
    pub descriptor_bytes: u16,
    /// What makes a block free.
    pub free: FreeRule,
    /// What a free page must read as.
    pub contents: Contents,
    /// The kernel's own counts, one per populated zone.
    pub zones: Vec<ZoneCounter, MAX_ZONES>,
    /// What ties the profile to this boot.
    pub guard: Guard,
}

/// Why bytes are not a usable profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileError {
    /// Fewer bytes than the header, or than it promises.
    Truncated {
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Not a profile at all: its first four bytes.
    Magic(u32),
    /// A version this code does not know.
    Version(u16),
    /// Larger than [`MAX_PROFILE_BYTES`].
    TooLarge(usize),
    /// The body was damaged.
    Checksum {
        /// In the header.
        stated: u32,
        /// Of the body.
        computed: u32,
    },
    /// The body is not one encoded profile and nothing else.
    Encoding,
    /// A field breaks a rule.
    Field {
        /// Which rule.
        rule: FieldRule,
        /// The offending value.
        value: u64,
    },
    /// The buffer for the encoded profile is too small.
    NoRoom,
}

/// The rules that a decoded profile must keep. Numbers are stable: they cross the hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum FieldRule {
    /// The page-table root is a 52-bit physical address, aligned to a frame.
    RootAligned = 1,
    /// A descriptor has 8 to 512 bytes, a multiple of 4.
    DescriptorSize = 2,
    /// The memory map begins in the kernel's half, at a multiple of 8, and its end does not overflow.
    MemoryMapBase = 3,
    /// A field is 1, 2, 4 or 8 bytes wide and lies inside the descriptor.
    FieldPlace = 4,
    /// The predicate's mask is not zero and fits the field.
    PredicateMask = 5,
    /// The predicate's expected value has bits only inside the mask, and is not zero (a cleared descriptor is not free).
    PredicateValue = 6,
    /// The largest order is at most 18 and at least 1.
    MaxOrder = 7,
    /// There is at least one zone, and at most [`MAX_ZONES`].
    Zones = 8,
    /// A zone's array lies in the kernel's half, its stride is 8 to 4096 and its count lies inside an element.
    ZonePlace = 9,
    /// The guard has at least one root slot, each in the kernel's half and present, none twice; those that map the boot
    /// value and the start of the memory map are among them.
    RootSlots = 10,
    /// The guard's addresses lie in the kernel's half.
    GuardAddress = 11,
    /// The guard's IDT limit covers at least the 32 exceptions and at most 256 vectors.
    GuardIdtLimit = 12,
    /// The guard's boot value is not zero (a value not yet drawn proves nothing).
    GuardBootValue = 13,
    /// Two fields of the free rule overlap.
    FieldOverlap = 14,
}

impl ProfileError {
    /// The answer for the hypercall, with its values.
    pub fn status(self) -> (Status, [u64; 4]) {
        match self {
            Self::Truncated { given, needed } => {
                (Status::ProfileTruncated, [given as u64, needed as u64, 0, 0])
            }
            Self::Magic(found) => (Status::ProfileMagic, [u64::from(found), 0, 0, 0]),
            Self::Version(found) => (
                Status::ProfileVersion,
                [u64::from(found), u64::from(VERSION), 0, 0],
            ),
            Self::TooLarge(given) => (
                Status::ProfileTooLarge,
                [given as u64, MAX_PROFILE_BYTES as u64, 0, 0],
            ),
            Self::Checksum { stated, computed } => (
                Status::ProfileChecksum,
                [u64::from(stated), u64::from(computed), 0, 0],
            ),
            Self::Encoding | Self::NoRoom => (Status::ProfileEncoding, [0; 4]),
            Self::Field { rule, value } => (Status::ProfileField, [rule as u64, value, 0, 0]),
        }
    }
}

/// CRC-32C (Castagnoli), reflected, as in RFC 3720 appendix B.4. Bit by bit: a profile is read once, and a table would
/// cost the hypervisor a kilobyte.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0x82f6_3b78
            }
        })
    })
}

/// The body of an encoded profile, whose header and checksum are right.
fn checked_body(bytes: &[u8]) -> Result<&[u8], ProfileError> {
    if bytes.len() > MAX_PROFILE_BYTES {
        return Err(ProfileError::TooLarge(bytes.len()));
    }
    let truncated = |needed| ProfileError::Truncated {
        given: bytes.len(),
        needed,
    };
    let (header, body) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or(truncated(HEADER_BYTES))?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != MAGIC {
        return Err(ProfileError::Magic(word(0)));
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION || header[6..8] != [0, 0] {
        return Err(ProfileError::Version(version));
    }
    let length = word(8) as usize;
    if body.len() < length {
        return Err(truncated(HEADER_BYTES.saturating_add(length)));
    }
    if body.len() > length {
        return Err(ProfileError::Encoding);
    }
    let computed = crc32c(body);
    if word(12) != computed {
        return Err(ProfileError::Checksum {
            stated: word(12),
            computed,
        });
    }
    Ok(body)
}

impl Profile {
    /// A profile that describes nothing: the place that [`Profile::decode_from`] fills. It keeps no [`FieldRule`].
    pub const fn blank() -> Self {
        let field = Field { offset: 0, width: 0 };
        Self {
            kernel: Kernel {
                release: String::new(),
                layout: [0; 16],
            },
            root: GuestPhys::new(0),
            levels: PagingLevels::Four,
            memory_map: MemoryMap::Vmemmap {
                base: GuestVirt::new(0),
            },
            descriptor_bytes: 0,
            free: FreeRule {
                predicate: Predicate {
                    field,
                    mask: 0,
                    expected: 0,
                },
                order: field,
                references: field,
                max_order: Order::PAGE,
                bytes: BytesRule::Any,
            },
            contents: Contents::DontCare,
            zones: Vec::new(),
            guard: Guard {
                idt_base: 0,
                idt_limit: 0,
                lstar: 0,
                root_slots: Vec::new(),
                boot_value_at: GuestVirt::new(0),
                boot_value: 0,
            },
        }
    }

    /// Decodes and checks a profile.
    ///
    /// # Errors
    /// [`ProfileError`]; a profile that is returned keeps every [`FieldRule`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProfileError> {
        let mut profile = Self::blank();
        profile.decode_from(bytes)?;
        Ok(profile)
    }

    /// Decodes and checks a profile in place: `self` becomes it, or is unspecified after an error.
    ///
    /// A profile has some kilobytes and the hypervisor's stack only eight, so members are decoded one by one. The
    /// encoding is still what serde derives: postcard writes a structure's members one after the other.
    ///
    /// # Errors
    /// [`ProfileError`]; after success every [`FieldRule`] is kept.
    pub fn decode_from(&mut self, bytes: &[u8]) -> Result<(), ProfileError> {
        fn take<'b, T: Deserialize<'b>>(from: &mut &'b [u8]) -> Result<T, ProfileError> {
            let (value, rest) = postcard::take_from_bytes(from).map_err(|_| ProfileError::Encoding)?;
            *from = rest;
            Ok(value)
        }
        let mut body = checked_body(bytes)?;
        self.kernel = take(&mut body)?;
        self.root = take(&mut body)?;
        self.levels = take(&mut body)?;
        self.memory_map = take(&mut body)?;
        self.descriptor_bytes = take(&mut body)?;
        self.free = take(&mut body)?;
        self.contents = take(&mut body)?;
        self.zones.clear();
        let zones: usize = take(&mut body)?;
        if zones > MAX_ZONES {
            return Err(ProfileError::Field {
                rule: FieldRule::Zones,
                value: zones as u64,
            });
        }
        for _ in 0..zones {
            let zone = take(&mut body)?;
            self.zones.push(zone).map_err(|_| ProfileError::Encoding)?;
        }
        self.guard = take(&mut body)?;
        if !body.is_empty() {
            return Err(ProfileError::Encoding);
        }
        self.check()
    }

    /// Encodes the profile into `buffer` and returns the bytes used.
    ///
    /// # Errors
    /// [`ProfileError::Field`] for a profile that [`Profile::decode`] would refuse, [`ProfileError::NoRoom`].
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], ProfileError> {
        self.check()?;
        let room = buffer.len().min(MAX_PROFILE_BYTES);
        let (header, body) = buffer[..room]
            .split_at_mut_checked(HEADER_BYTES)
            .ok_or(ProfileError::NoRoom)?;
        let body = postcard::to_slice(self, body).map_err(|_| ProfileError::NoRoom)?;
        let length = body.len();
        let length_field = u32::try_from(length).map_err(|_| ProfileError::NoRoom)?;
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6..8].fill(0);
        header[8..12].copy_from_slice(&length_field.to_le_bytes());
        header[12..].copy_from_slice(&crc32c(body).to_le_bytes());
        buffer.get(..HEADER_BYTES + length).ok_or(ProfileError::NoRoom)
    }

    /// Checks every [`FieldRule`].
    ///
    /// # Errors
    /// [`ProfileError::Field`] with the first rule broken.
    pub fn check(&self) -> Result<(), ProfileError> {
        let require = |holds: bool, rule: FieldRule, value: u64| {
            if holds {
                Ok(())
            } else {
                Err(ProfileError::Field { rule, value })
            }
        };
        let root = self.root.get();
        require(
            root % PAGE_SIZE as u64 == 0 && root < 1 << 52,
            FieldRule::RootAligned,
            root,
        )?;
        let size = self.descriptor_bytes;
        require(
            (8..=MAX_DESCRIPTOR_BYTES).contains(&size) && size % 4 == 0,
            FieldRule::DescriptorSize,
            u64::from(size),
        )?;
        match self.memory_map {
            MemoryMap::Vmemmap { base } => {
                let span = crate::Gfn::LIMIT.checked_mul(u64::from(size));
                // The array spans the whole physical address space at most; what is not mapped is not there.
                require(
                    self.in_kernel_half(base.get()) && base.get() % 8 == 0 && span.is_some(),
                    FieldRule::MemoryMapBase,
                    base.get(),
                )?;
            }
        }
        let rule = &self.free;
        for field in [rule.predicate.field, rule.order, rule.references] {
            require(
                matches!(field.width, 1 | 2 | 4 | 8)
                    && u32::from(field.offset) + u32::from(field.width) <= u32::from(size),
                FieldRule::FieldPlace,
                u64::from(field.offset) << 8 | u64::from(field.width),
            )?;
        }
        for (one, other) in [
            (rule.predicate.field, rule.order),
            (rule.predicate.field, rule.references),
            (rule.order, rule.references),
        ] {
            let apart = one.offset + u16::from(one.width) <= other.offset
                || other.offset + u16::from(other.width) <= one.offset;
            require(
                apart,
                FieldRule::FieldOverlap,
                u64::from(one.offset) << 16 | u64::from(other.offset),
            )?;
        }
        let bits = 8 * u32::from(rule.predicate.field.width);
        let mask = rule.predicate.mask;
        require(
            mask != 0 && (bits == 64 || mask >> bits == 0),
            FieldRule::PredicateMask,
            mask,
        )?;
        let expected = rule.predicate.expected;
        require(
            expected != 0 && expected & !mask == 0,
            FieldRule::PredicateValue,
            expected,
        )?;
        require(
            rule.max_order >= Order::new(1).unwrap_or(Order::MAX),
            FieldRule::MaxOrder,
            u64::from(rule.max_order.get()),
        )?;

        require(!self.zones.is_empty(), FieldRule::Zones, 0)?;
        for zone in &self.zones {
            require(
                self.in_kernel_half(zone.array.get())
                    && zone.array.get() % 8 == 0
                    && (8..=PAGE_SIZE as u64).contains(&u64::from(zone.stride))
                    && zone.stride % 8 == 0
                    && zone.count_offset % 8 == 0
                    && u32::from(zone.count_offset) + 8 <= u32::from(zone.stride),
                FieldRule::ZonePlace,
                zone.array.get(),
            )?;
        }

        let guard = &self.guard;
        require(!guard.root_slots.is_empty(), FieldRule::RootSlots, 0)?;
        for (position, slot) in guard.root_slots.iter().enumerate() {
            let twice = guard
                .root_slots
                .iter()
                .take(position)
                .any(|earlier| earlier.index == slot.index);
            require(
                (256..512).contains(&slot.index)
                    && slot.entry & 1 == 1
                    && slot.entry & crate::guard::ACCESSED_DIRTY == 0
                    && !twice,
                FieldRule::RootSlots,
                u64::from(slot.index),
            )?;
        }
        for address in [guard.idt_base, guard.lstar, guard.boot_value_at.get()] {
            require(self.in_kernel_half(address), FieldRule::GuardAddress, address)?;
        }
        let MemoryMap::Vmemmap { base } = self.memory_map;
        // Both are read through the reference table: only where every virtual CPU has its entries is what is read there
        // the running kernel's.
        for address in [guard.boot_value_at, base] {
            let index = self.root_index(address);
            require(
                guard.root_slots.iter().any(|slot| slot.index == index),
                FieldRule::RootSlots,
                u64::from(index),
            )?;
        }
        require(
            (32 * 16 - 1..=256 * 16 - 1).contains(&guard.idt_limit),
            FieldRule::GuardIdtLimit,
            u64::from(guard.idt_limit),
        )?;
        require(guard.boot_value != 0, FieldRule::GuardBootValue, 0)
    }

    /// Index of the top-level entry that maps `address`.
    const fn root_index(&self, address: GuestVirt) -> u16 {
        let shift = match self.levels {
            PagingLevels::Four => 39,
            PagingLevels::Five => 48,
        };
        // Nine bits.
        (address.get() >> shift & 0x1ff) as u16
    }

    /// Whether `address` is canonical and belongs to the upper half, where amd64 kernels live.
    fn in_kernel_half(&self, address: u64) -> bool {
        let sign = match self.levels {
            PagingLevels::Four => 47,
            PagingLevels::Five => 56,
        };
        address >> sign == u64::MAX >> sign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
