//! Files and memory in the shapes of Windows kernels, made from facts, so that no file of Microsoft's is
//! needed.
//!
//! * [`layouts`]: how 48 kernels lay `_MMPFN` out, and the keys of 1,894 kernels' PDBs;
//! * [`types`], [`msf`], [`pdb`]: writers for PDBs, old and new;
//! * [`pe`]: a writer for executables;
//! * [`crash`]: a writer for crash dumps;
//! * [`large`]: a PDB as large as a kernel's;
//! * [`guest`]: the memory of a guest that stands still;
//! * [`live`]: what the lab's own Windows-like guest (`kernel/`, which runs on Xen) is given to boot from.

// What makes fixtures may stop a test at once when it is used wrongly.
#![allow(clippy::expect_used, clippy::panic)]

pub mod crash;
pub mod guest;
pub mod large;
pub mod layouts;
pub mod live;
pub mod msf;
mod page_tables;
pub mod pdb;
pub mod pe;
pub mod types;
