//! What can be done with guests, as functions: nothing here parses arguments or prints.
//!
//! * [`host`] is the host and its guests, as the hypervisor and xenstore know them;
//! * [`migration`] is what this tool and a migrating toolstack leave for each other.

pub(crate) mod guest;
pub mod host;
pub mod migration;
pub(crate) mod paused;
