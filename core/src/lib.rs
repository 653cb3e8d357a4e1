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
//! (pause, lock, share, flush, release). `xen-module` implements them on Xen, the module `mock` (feature
//! `mock`, for tests) in ordinary memory.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "mock"))]
extern crate std;

pub mod abi;
mod addr;
mod admission;
mod bitmap;
pub mod boundary;
mod candidates;
mod content;
mod explain;
mod frame_copies;
mod free;
mod guard;
mod header;
mod memory;
mod memory_map;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod offline;
mod p2m;
mod predicate;
mod profile;
mod query;
mod refill;
mod scan;
mod session;
mod share;
mod status;
mod steps;
mod tables;
mod walk;

pub use addr::{Gfn, GuestPhys, GuestVirt, Order, PAGE_SHIFT, PAGE_SIZE};
pub use admission::{CounterError, CounterReading, free_by_counters};
pub use bitmap::Bitmap;
pub use boundary::{Blocker, PageState, Skip, VcpuRegisters};
pub use content::{
    ContentReport, Digest, DomainId, Entry, Index, Inserted, MAX_SHARERS, Peers, Place, Rounds, Seed, Stage,
    merge_protected, share_zero_protected,
};
pub use explain::explain;
pub use frame_copies::FrameCopies;
pub use free::{FreeCheck, InUseReason, UnknownReason, Verdict};
pub use guard::{GuardFailure, GuardMismatch, check_guard};
pub use header::Header;
pub use memory::{GuestMemory, ReadError, Row, failing_one_by_one, value_by_bytes};
pub use memory_map::{Descriptor, DescriptorAt, DescriptorError, MemoryMapReader, PassedOver};
pub use offline::{Agreement, OfflineScan, Taken, confirm_zero, scan_offline};
pub use p2m::{P2m, Protect};
pub use predicate::{Field, Predicate};
pub use profile::{
    Anchor, Blocks, BootValue, BytesRule, Contents, Extent, FieldRule, FreeRule, Gate, Guard, Kernel,
    MAX_ANCHORS, MAX_CONDITIONS, MAX_EXTENTS, MAX_PROFILE_BYTES, MAX_ROOT_SLOTS, MAX_ZONES, MemoryMap,
    Profile, ProfileError, RootSlot, Sections, ZoneCounter,
};
pub use refill::Refill;
pub use scan::{ScanStep, Scanner};
pub use session::{Host, Outcome, Session};
pub use share::{
    MAX_SLICE_NS, MAX_SLICE_PAGES, MAX_SLICE_UNITS, NotIdentified, SUPERPAGE_UNITS, Slice, SliceReport,
};
pub use status::Status;
#[cfg(feature = "mutants")]
pub use steps::Mutation;
pub use steps::Steps;
pub use tables::{IndexSize, MAX_GFNS, PART_WORDS, Part, Shortage, Table, Tables, most_bytes};
pub use walk::{Mapping, PagingLevels, WalkError, walk};
