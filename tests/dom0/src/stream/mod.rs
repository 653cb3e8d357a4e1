//! Migration streams as they pass by: followed record by record, counted, never stored.
//!
//! Xen's documents `docs/specs/libxl-migration-stream.pandoc` and `libxc-migration-stream.pandoc` have the
//! format.

mod follow;
pub(crate) mod tally;
pub(crate) mod tap;

pub(crate) use follow::{Moment, PROMISE, StreamError, follow};
