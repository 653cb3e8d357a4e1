//! The Dom0 tool: finds out where a guest's kernel keeps its free pages, and drives the engine inside Xen.
//!
//! * [`linux`] identifies a Linux kernel and makes its profile;
//! * [`windows`] reads what there is to know about a Windows kernel;
//! * [`dump`] is guest memory in a file, [`memory`] is where guest memory comes from, [`xen`] the hypervisor;
//! * [`migration`] is what this tool and a migrating toolstack leave for each other;
//! * [`cli`] and [`commands`] are the command line, [`daemon`] is `lacunad`, [`policy`] what it gives back; [`report`] is how failures look.
//!
//! Whatever comes out of a guest is hostile input: parsers are bounded, and nothing is believed on one source's word.

pub mod cli;
pub mod commands;
pub mod daemon;
pub mod dump;
pub mod linux;
pub mod memory;
pub mod migration;
pub mod policy;
pub mod report;
pub mod windows;
pub mod xen;
