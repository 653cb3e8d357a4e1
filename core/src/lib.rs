//! Free-page introspection: the logic shared by the hypervisor module and the Dom0 tool.
//!
//! The crate answers one question, *which pages of this guest are free?*, from nothing but the guest's memory
//! and a [`Profile`] that says where the guest kernel keeps its page descriptors and what makes one free; and
//! it drives the share slices that turn such pages into zero frames. It runs inside Xen, so:
//!
//! * nothing allocates, nothing panics, nothing recurses, and every loop over guest data has a bound that the
//!   guest cannot set;
//! * whatever comes out of a guest is an allegation: [`Verdict::Free`] is the only answer that is acted on,
//!   and it is asked for again with the guest stopped before a page changes hands;
//! * nothing here knows a kernel version. Offsets, masks and values come with the profile.
//!
//! The crate is generic over two traits: [`GuestMemory`] (bounded copying reads of guest frames) and [`P2m`]
//! (pause, lock, share, flush, release). `xen-module` implements them on Xen, the crate `lacuna-mock`
//! in ordinary memory, for tests.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
mod addr;
mod bitmap;
pub mod boundary;
mod content;
mod domain;
mod guest;
mod judge;
mod profile;
mod refusal;
mod session;
mod share;
mod status;
mod tables;

pub use addr::{Gfn, GuestPhys, GuestVirt, Order, PAGE_SHIFT, PAGE_SIZE};
pub use bitmap::Bitmap;
pub use boundary::{Blocker, PageState, Skip, VcpuRegisters};
pub use content::{
    Before, ContentReport, Digest, DomainId, DomainPage, Entry, Index, Inserted, MAX_SHARERS, Peers, Rounds,
    Seed, Stage, merge_protected, share_zero_protected,
};
pub use domain::{Domain, MAX_WRITTEN, P2m, Protect, SharedPages, Writes};
pub use guest::{
    Field, FrameCopies, GuestMemory, LINE, LINES, Mapping, PagingLevels, Predicate, ReadError, Row,
    WalkError, count_failing_one_by_one, lines_by_copies, value_by_bytes, walk,
};
pub use judge::{
    Agreement, CounterError, CounterReading, Descriptor, DescriptorAt, DescriptorError, FreeCheck,
    IdentityCheck, IdentityMismatch, InUseReason, MemoryMapReader, OfflineScan, PassedOver, ScanStep,
    Scanner, Taken, UnknownReason, Verdict, check_identity, confirm_zero, explain, free_by_counters,
    scan_offline,
};
pub use profile::{
    Anchor, Blocks, BootValue, BytesRule, Contents, Extent, FieldRule, FreeRule, Gate, Identity, Kernel,
    MAX_ANCHORS, MAX_CONDITIONS, MAX_EXTENTS, MAX_PROFILE_BYTES, MAX_ROOT_SLOTS, MAX_ZONES, MemoryMap,
    Profile, ProfileError, RootSlot, Sections, ZoneCounter,
};
pub use session::{Header, Outcome, Session};
#[cfg(feature = "mutants")]
pub use share::Mutation;
pub use share::{
    MAX_SLICE_NS, MAX_SLICE_PAGES, MAX_SLICE_UNITS, NotIdentified, Refill, SUPERPAGE_UNITS, Slice,
    SliceReport, Steps,
};
pub use status::Status;
pub use tables::{IndexSize, MAX_GFNS, PART_WORDS, Part, Shortage, Table, Tables, most_bytes};
