//! Windows guests: which kernel runs, what its symbols say, and which pages are free.
//!
//! * [`pe`] reads the executable's headers, from a file or from a guest's memory;
//! * [`symbol_key`] names a PDB as symbol stores do;
//! * [`pdb`] reads what a PDB says about the page-frame database.
//!
//! No live Windows has been tried: see `docs/windows.md` for what was.

pub mod pdb;
pub mod pe;
pub mod symbol_key;
