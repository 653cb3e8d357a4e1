//! The Dom0 tool: finds out where a guest's kernel keeps its free pages, and drives the engine inside Xen.
//!
//! * [`os`] identifies a guest's kernel and makes its profile;
//! * [`source`] is a guest's memory, of a live domain or in a file; [`xen`] is the hypervisor;
//! * [`migration`] is what this tool and a migrating toolstack leave for each other;
//! * [`cli`] and [`commands`] are the command line, [`daemon`] is `lacunad`, [`policy`] what it gives back; [`report`] is how failures look.
//!
//! Whatever comes out of a guest is hostile input: parsers are bounded, and nothing is believed on one source's word.

pub mod cli;
pub mod commands;
pub mod daemon;
pub mod migration;
pub mod os;
pub mod policy;
pub mod report;
pub mod source;
pub mod xen;
