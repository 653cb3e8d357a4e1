//! What a profile and a guest's memory say: whether the kernel of the profile runs, which pages are free, and
//! whether a scan is borne out.

pub(crate) mod admission;
mod explain;
mod free;
pub(crate) mod identity;
pub(crate) mod memory_map;
mod offline;
mod scan;
pub(crate) mod stretch;

pub use admission::{CounterError, CounterReading, free_by_counters};
pub use explain::explain;
pub use free::{FreeCheck, InUseReason, UnknownReason, Verdict};
pub use identity::{IdentityCheck, IdentityMismatch, check_identity};
pub use memory_map::{Descriptor, DescriptorAt, DescriptorError, MemoryMapReader, PassedOver};
pub use offline::{Agreement, OfflineScan, Taken, confirm_zero, scan_offline};
pub use scan::{ScanStep, Scanner};
