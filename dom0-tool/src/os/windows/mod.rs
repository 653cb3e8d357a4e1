//! Windows guests: which kernel runs, what its symbols say, and which pages are free.
//!
//! * [`pe`] reads the executable's headers, from a file or from a guest's memory;
//! * [`locate`] finds the kernel in a guest's memory, through its page tables; [`search`] in all of it, by
//!   [`ways`] and [`tables`];
//! * [`shadowed`] tells when another moment is worth waiting for;
//! * [`symbol_key`] names a PDB as symbol stores do;
//! * [`pdb`] reads what a PDB says about the page-frame database;
//! * [`facts`] keeps that in a small file, and takes it from other tools' symbol tables;
//! * [`store`] finds a PDB, in folders and on symbol servers;
//! * [`profile`] makes the profile of one boot.
//!
//! No live Windows has been tried: see `docs/windows.md` for what was.

pub mod catch_panic;
pub mod facts;
mod failures;
mod isf;
pub mod loaded_image;
pub mod locate;
mod nearby;
pub mod pdb;
pub mod pe;
pub mod profile;
pub mod search;
pub mod shadowed;
pub mod store;
pub mod symbol_key;
pub mod symbols;
pub mod tables;
mod ties;
pub mod ways;
