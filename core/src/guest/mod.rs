//! A guest's memory: how it is read, and how the guest's own page tables translate an address.

mod frame_copies;
mod memory;
mod predicate;
mod walk;

pub use frame_copies::FrameCopies;
pub(crate) use memory::is_zero;
pub use memory::{
    GuestMemory, LINE, LINES, ReadError, Row, count_failing_one_by_one, lines_by_copies, value_by_bytes,
};
pub use predicate::{Field, Predicate};
pub(crate) use walk::{ACCESSED_DIRTY, Directory, address, is_present, walk_on};
pub use walk::{Mapping, PagingLevels, WalkError, walk};
