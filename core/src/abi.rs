//! What crosses the hypercall: one definition for both sides.
//!
//! The C half is `struct xen_domctl_lacuna` in `xen/include/public/domctl.h` (`patches/`). All members are
//! fixed-width, 64-bit ones naturally aligned, no padding is implicit, so 32- and 64-bit callers agree. A
//! change of any size here needs a new [`VERSION`]; the golden bytes in this file's tests notice.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::VcpuRegisters;

/// The domctl's number, `XEN_DOMCTL_lacuna`: "LA", far above what Xen allots in sequence.
pub const DOMCTL_LACUNA: u32 = 0x4c41;
/// Version of this interface.
pub const VERSION: u32 = 8;

/// What is asked of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// Replace the profile by the one in `buffer`. Nothing changes unless it is whole and valid.
    SetProfile = 1,
    /// Copy the profile into `buffer`.
    GetProfile = 2,
    /// Forget the profile and its bitmap's contents. Shared pages stay shared: they are zero and unshare on
    /// write.
    ClearProfile = 3,
    /// Scan frames `cursor..end` into the bitmap, `budget` descriptors at most. A scan of everything also
    /// admits the profile. `result`: free pages, pages in use, pages without a descriptor, unknown pages,
    /// added up over continuations (the caller clears them). `flags`: [`SCAN_CHANGED`].
    Scan = 4,
    /// Share the candidates of `cursor..end`, `budget` pages at most. `result`: pages shared, 2 MiB entries,
    /// pages rejected by the re-check, free pages skipped because something holds them; added up likewise.
    Share = 5,
    /// Copy a [`Statistics`] into `buffer`.
    Statistics = 6,
    /// Copy an [`Explanation`] of frame `cursor` into `buffer`.
    Explain = 7,
    /// Copy the [`VcpuRegisters`] of every virtual CPU into `buffer`. The domain is paused for it.
    Registers = 8,
    /// Copy the bitmap from frame `cursor` (a multiple of 8) into `buffer`, a bit a frame, lowest first.
    /// `result[0]`: one past the guest's last frame; `result[1]`: the first frame from `cursor` on for which
    /// there are bits.
    ReadBitmap = 9,
    /// Copy a bit for each frame from `cursor` (a multiple of 8) on into `buffer`, set where a zero frame is
    /// mapped. The shim's own: the engine is not asked.
    ZeroFrames = 10,
    /// Map zero frames at the frames in `buffer`, an array of 64-bit numbers, from index `cursor` on; `flags`
    /// is the order of each, 0 or 9. For a domain that is being received. The shim's own.
    PopulateZero = 11,
    /// Content stage over frames `cursor..end`, `budget` pages at most. Needs no profile. `flags`:
    /// [`ContentFlags`]. `result`: pages put on zero frames, pages put on a shared frame, pages hashed, of
    /// them not as in the last round or met for the first time; added up likewise.
    Content = 12,
    /// Have the domain share by content with the members of the trust group that `buffer` names, and they
    /// with it; with an empty buffer with nobody but itself. The shim's own.
    SetGroup = 13,
}

bitflags::bitflags! {
    /// Flags of [`Op::Content`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ContentFlags: u32 {
        /// Leave pages alone that the last scan found free.
        const LEAVE_FREE = 1;
        /// Look only at the pages that the round before met for the first time, and that could be shared if
        /// they have not changed since.
        const AGAIN = 2;
        /// Let pages rest that have not changed for rounds, and are like no other. A change of one is noticed
        /// some rounds later, eight at most. A round begins with frame 0.
        const REST = 4;
    }
}

/// Longest name of a trust group, in bytes (`XEN_DOMCTL_LACUNA_GROUP_MAX`).
pub const GROUP_NAME_MAX: usize = 63;

impl Op {
    /// The operation with number `code`.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::SetProfile,
            2 => Self::GetProfile,
            3 => Self::ClearProfile,
            4 => Self::Scan,
            5 => Self::Share,
            6 => Self::Statistics,
            7 => Self::Explain,
            8 => Self::Registers,
            9 => Self::ReadBitmap,
            10 => Self::ZeroFrames,
            11 => Self::PopulateZero,
            12 => Self::Content,
            13 => Self::SetGroup,
            _ => return None,
        })
    }
}

/// Flag of [`Op::Scan`]: a scan of all memory may leave out what the guest has not written to since the last
/// one (`XEN_DOMCTL_LACUNA_SCAN_CHANGED`). It is a full one all the same if it has to be.
pub const SCAN_CHANGED: u32 = 1;

/// Flag of [`Op::Share`], builds with the feature `mutants` only: bits 16 to 23 hold the number of a
/// mutation.
pub const SHARE_MUTATION_SHIFT: u32 = 16;

/// Flag of [`Op::Scan`], builds with the feature `mutants` only. The engine does nothing about it. A
/// toolstack that is told, for a test, to take its scans too early passes it, so that only a hypervisor made
/// for tests lets it.
pub const SCAN_EARLY: u32 = 1 << SHARE_MUTATION_SHIFT;

/// Pages of 4 KiB in a block of 2 MiB.
const BLOCK_PAGES: u64 = 512;

/// Version of [`BitmapHeader`].
pub const BITMAP_VERSION: u32 = 2;

/// `struct xen_lacuna_bitmap`, at the start of the resource `XENMEM_resource_lacuna_bitmap`. Read it as a
/// sequence lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BitmapHeader {
    /// [`BITMAP_VERSION`].
    pub version: u32,
    /// How many chunks of bits there are; see [`chunk_at`].
    pub chunks: u32,
    /// Odd while anything of this is being written.
    pub sequence: u64,
    /// How many scans of all memory were begun.
    pub started: u64,
    /// Which of those the bits are of; 0 when they are of none, or not wholly, or of one that was not
    /// believed or left out what had not changed.
    pub complete: u64,
    /// How many profiles were set.
    pub generation: u64,
    /// How many bits are in use.
    pub gfns: u64,
    /// A [`State`], after the last operation.
    pub state: u64,
    /// What a page whose bit is set holds: 0 nothing that anybody needs; 1 zeros, which the guest relies on
    /// ([`crate::Contents::Zero`]); 2 zeros or else it is not free ([`crate::BytesRule::Zero`]).
    pub contents: u64,
    /// How many bits are set.
    pub free: u64,
    /// When the scan began, in nanoseconds of the host's clock.
    pub start: u64,
}

/// Frames for which a chunk of the mapped bitmap has bits: a page of them. Frames of no chunk are not free.
pub const CHUNK_GFNS: u64 = 4096 * 8;
/// Chunks that a page of the table says the numbers of.
pub const TABLE_ENTRIES: u64 = 1024;

/// Where chunk number `slot` of the resource is: the byte at which the number of its stretch of
/// [`CHUNK_GFNS`] frames is found (32 bits), and the byte at which its bits begin, a bit a frame, lowest
/// first.
///
/// After the header's page come groups of a page of numbers and the 1,024 chunks that these are of. A chunk
/// stays where it is while the domain lives; new ones come at the end.
pub const fn chunk_at(slot: u64) -> (u64, u64) {
    let table = 1 + slot / TABLE_ENTRIES * (TABLE_ENTRIES + 1);
    let entry = slot % TABLE_ENTRIES;
    (table * 4096 + entry * 4, (table + 1 + entry) * 4096)
}

/// `struct xen_domctl_lacuna`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// IN: [`VERSION`].
    pub version: u32,
    /// IN: an [`Op`].
    pub op: u32,
    /// IN: flags of the operation, 0 where none are defined.
    pub flags: u32,
    /// OUT: a [`crate::Status`].
    pub status: u32,
    /// IN and OUT: the frame to begin at; where it stopped.
    pub cursor: u64,
    /// IN: one past the last frame, 0 for all.
    pub end: u64,
    /// IN and OUT: work left, 0 for no limit.
    pub budget: u64,
    /// OUT: values, by operation or by status.
    pub result: [u64; 4],
    /// IN: guest handle of the caller's buffer, 0 for none.
    pub buffer: u64,
    /// IN and OUT: bytes available or given; bytes used or needed.
    pub buffer_size: u32,
    /// 0.
    pub pad: u32,
}

/// State of a domain's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// No profile.
    Empty = 0,
    /// A profile is set; no scan has agreed with the guest's counters yet.
    Loaded = 1,
    /// In use.
    Admitted = 2,
    /// The guest runs another kernel: the profile is not used any more.
    Ended = 3,
}

impl State {
    /// The state with number `code`.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Empty,
            1 => Self::Loaded,
            2 => Self::Admitted,
            3 => Self::Ended,
            _ => return None,
        })
    }
}

macro_rules! statistics {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Everything that is counted for a domain, since its first Lacuna operation. Pages are of 4 KiB.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct Statistics {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Statistics {
            /// Name, meaning and value of each figure, in the order of the structure.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name)),+].into_iter()
            }

            /// Write faults that took pages off zero frames, in all: `unshared`, with the 512 pages of a
            /// block counted once.
            pub const fn faults(&self) -> u64 {
                self.unshared
                    .saturating_sub(self.refilled.saturating_mul(BLOCK_PAGES - 1))
            }
        }
    };
}

statistics! {
    /// A `State`.
    state,
    /// How many profiles were set, this one included.
    generation,
    /// Scans of all memory completed.
    scans,
    /// Descriptors that the last complete scan looked at.
    scan_descriptors,
    /// Pages in free blocks, last complete scan.
    scan_free,
    /// Pages in use, last complete scan.
    scan_in_use,
    /// Pages without a descriptor, last complete scan.
    scan_no_descriptor,
    /// Pages whose descriptor contradicts itself or cannot be read, last complete scan.
    scan_unknown,
    /// Time inside the last complete scan, in nanoseconds.
    scan_ns,
    /// The guest's own count of free pages when the last complete scan began.
    guest_free_before,
    /// The guest's own count of free pages when the last complete scan ended.
    guest_free_after,
    /// Share slices that stopped the guest.
    slices,
    /// Pages put on zero frames, in all.
    shared,
    /// 2 MiB entries written, in all.
    shared_superpages,
    /// 4 KiB entries written, in all.
    shared_entries,
    /// Pages that the bitmap called free and the re-check did not, in all.
    rejected,
    /// Free pages left alone as not ordinary memory, in all.
    skipped_not_ram,
    /// Free pages left alone because something holds them, in all.
    skipped_held,
    /// Free pages left alone because their bytes are not zero, in all.
    skipped_not_zero,
    /// Free pages left alone for want of paging-pool memory, in all.
    skipped_no_pool,
    /// Free pages left alone because the p2m refused the entry, in all.
    skipped_entry_refused,
    /// Free pages left alone because log-dirty mode was on, in all.
    skipped_log_dirty,
    /// Free pages met that were zero frames already, in all.
    already,
    /// Times the guest was stopped.
    pauses,
    /// Time the guest was stopped, in nanoseconds, in all.
    pause_total_ns,
    /// Longest time the guest was stopped at once, in nanoseconds.
    pause_longest_ns,
    /// Most work done in one slice, in units of a 4 KiB entry.
    slice_most_units,
    /// Most pages shared in one slice.
    slice_most_pages,
    /// Times the identity check refused a slice.
    identity_failures,
    /// Virtual CPU of the last refusal.
    identity_vcpu,
    /// Check that failed in the last refusal, an `IdentityCheck`, 0 for none.
    identity_check,
    /// Value found in the last refusal.
    identity_found,
    /// Value expected in the last refusal.
    identity_expected,
    /// Pages on zero frames now.
    zero_gfns,
    /// Pages that left zero frames because the guest wrote to them, in all: one by a fault, or 512 by one
    /// (`refilled`).
    unshared,
    /// Write faults that found no memory, in all.
    unshare_enomem,
    /// Frames given back to the host, in all.
    released,
    /// Bytes of hypervisor memory that Lacuna holds for this domain: bitmap, tables of the content stage, and
    /// all else.
    metadata_bytes,
    /// Frames for which the bitmap has memory.
    bitmap_gfns,
    /// Pages that the content stage looked at, in all.
    content_pages,
    /// Pages hashed, in all.
    content_hashed,
    /// Pages hashed that were not as in the last round, or were met for the first time, in all.
    content_changed,
    /// Pages found to be zero and put on zero frames by the content stage, in all.
    content_zeroed,
    /// Pages put on a frame that others share, in all.
    content_merged,
    /// Pages entered into the index, in all.
    content_indexed,
    /// Entries of the index that gave way to others, in all.
    content_evicted,
    /// Times that the index named a page which turned out to differ, in all.
    content_differed,
    /// Pages left alone by the content stage because something holds them, in all.
    content_held,
    /// Times that a frame had as many sharers as a frame may have, in all.
    content_full,
    /// Pages left alone by the content stage for any other reason, in all.
    content_refused,
    /// Pages on frames shared by content now.
    content_gfns,
    /// Write faults that took a page off a frame shared by content, in all.
    content_unshared,
    /// Write faults that took a cleared block of 2 MiB in place of a whole entry of zero frames, in all.
    refilled,
    /// Most bytes that bitmap and tables of the content stage may take, by the memory that the guest has now.
    metadata_most,
    /// Pages of the host's memory that are put aside for accesses on the guest's behalf which cannot wait.
    reserve,
    /// How many that should be: a page for each of the guest's grants, 1,024 more with a device model, and no
    /// more than the guest has on shared frames.
    reserve_full,
    /// Times that there was no memory to put aside for a page that was to be shared, or for a larger grant
    /// table; it was refused.
    reserve_refused,
    /// Times that the guest was kept from running because its reserve had been drawn on.
    stood,
    /// How long it was, in nanoseconds, in all.
    stood_ns,
    /// Scans of all memory completed that left out what had not changed. Part of `scans`.
    scans_partial,
}

/// What is known of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Explanation {
    /// The verdict of the descriptors: 0 free, 1 in use, 2 unknown, 3 not asked (no profile).
    pub verdict: u64,
    /// Free: 0. In use: 1 not in a free block, 2 past the end of one, 3 marked free but for a condition.
    /// Unknown: 1 no descriptor, 2 unreadable, 3 bad order, 4 misaligned, 5 the head of a block, but for a
    /// condition (referenced).
    pub reason: u64,
    /// Free: first frame of the block. Unknown, or a condition: the value found.
    pub value: u64,
    /// Free: order of the block. A condition: its position in the rule.
    pub order: u64,
    /// Virtual address of the frame's own descriptor, 0 without a profile.
    pub descriptor: u64,
    /// The predicate's member of that descriptor; all ones when unreadable.
    pub predicate: u64,
    /// Whether the bitmap has the frame as free: 1 or 0.
    pub candidate: u64,
    /// The machine frame it is mapped to; all ones for none.
    pub mfn: u64,
    /// Xen's `count_info` of that frame.
    pub count_info: u64,
    /// Xen's `type_info` of that frame.
    pub type_info: u64,
    /// Xen's p2m type (`p2m_type_t`).
    pub p2m_type: u32,
    /// Order of the p2m entry.
    pub p2m_order: u32,
    /// Whether it is a zero frame: 1 or 0.
    pub zero_frame: u32,
    /// 0.
    pub pad: u32,
}

/// What the hypervisor knows of a frame, as the shim fills it in (`struct lacuna_gfn_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GfnInfo {
    /// Machine frame; all ones for none.
    pub mfn: u64,
    /// `page_info.count_info`.
    pub count_info: u64,
    /// `page_info.u.inuse.type_info`.
    pub type_info: u64,
    /// `p2m_type_t`.
    pub p2m_type: u32,
    /// Order of the p2m entry.
    pub order: u32,
    /// 1 for a zero frame.
    pub zero_frame: u32,
    /// 0.
    pub pad: u32,
}

/// What the shim itself counts (`struct lacuna_counters`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ShimCounters {
    /// Frames on zero frames now.
    pub zero_gfns: u64,
    /// Pages that left zero frames because the guest wrote to them.
    pub unshared: u64,
    /// Write faults that found no memory.
    pub unshare_enomem: u64,
    /// Frames freed.
    pub released: u64,
    /// Shares refused because the paging pool was short.
    pub pool_refused: u64,
    /// Bytes held for the domain by the shim, bitmap and tables included.
    pub metadata_bytes: u64,
    /// Frames shared by content now.
    pub content_gfns: u64,
    /// Write faults that took a page off such a frame.
    pub content_unshared: u64,
    /// Write faults that took a block of 2 MiB.
    pub refilled: u64,
    /// Frames for which the bitmap has memory.
    pub bitmap_gfns: u64,
    /// Most bytes that bitmap and tables may take.
    pub metadata_most: u64,
    /// Pages put aside for the domain.
    pub reserve: u64,
    /// How many that should be.
    pub reserve_full: u64,
    /// Times that there was no memory to put aside.
    pub reserve_refused: u64,
    /// Times that the domain waited for its reserve.
    pub stood: u64,
    /// How long, in nanoseconds.
    pub stood_ns: u64,
}

static_assertions::const_assert_eq!(size_of::<Request>(), 88);
static_assertions::const_assert_eq!(size_of::<BitmapHeader>(), 80);
static_assertions::const_assert_eq!(size_of::<VcpuRegisters>(), 64);
static_assertions::const_assert_eq!(size_of::<GfnInfo>(), 40);
static_assertions::const_assert_eq!(size_of::<ShimCounters>(), 128);
static_assertions::const_assert_eq!(size_of::<Explanation>(), 96);
static_assertions::const_assert_eq!(size_of::<Statistics>(), 60 * 8);

#[cfg(test)]
mod tests;
