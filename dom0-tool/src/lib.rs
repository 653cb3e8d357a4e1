//! The Dom0 tool: finds out where a guest's kernel keeps its free pages, and drives the engine inside Xen.
//!
//! * [`os`] identifies a guest's kernel and makes its profile;
//! * [`source`] is a guest's memory, of a live domain or in a file; [`xen`] is the hypervisor;
//! * [`ops`] is what can be done with guests: functions with options and a report;
//! * [`policy`] says what to give back, [`daemon`] is `lacunad`, [`commands`] the command line;
//! * [`failure`] is how an operation fails, for any caller.
//!
//! Whatever comes out of a guest is hostile input: parsers are bounded, and nothing is believed on one
//! source's word.

pub mod commands;
pub mod daemon;
pub mod failure;
mod hex;
pub mod ops;
pub mod os;
pub mod output;
pub mod policy;
pub mod progress;
pub mod source;
pub mod xen;
