//! Operations on guests, as functions that take options and return a report. Nothing here parses arguments or
//! prints.
//!
//! * [`guest`] opens the guest that an operation works on, [`paused`] stops a guest during an operation;
//! * [`identify`], [`profile`], [`attach`], [`scan`], [`dedup`], [`estimate`] and [`status`] are the
//!   operations on a guest;
//! * [`symbols`] and [`fetch`] fetch PDBs and headers of kernels, [`inspect`] shows what a Windows file says;
//! * [`host`] is the host and its guests, [`top`] compares all of them, [`doctor`] checks what is wrong;
//! * [`history`] is the file of the host's past that the daemon keeps, [`report`] what it says;
//! * [`migration`] holds the files that this tool and a migrating toolstack leave for each other.

pub mod attach;
pub mod dedup;
pub mod doctor;
pub mod estimate;
pub mod fetch;
pub mod guest;
pub mod history;
pub mod host;
pub mod identify;
pub mod inspect;
pub mod migration;
pub mod paused;
pub mod profile;
pub mod report;
pub mod scan;
pub mod status;
pub mod symbols;
pub mod top;

use lacuna_core::OfflineScan;

use crate::os::{BuiltProfile, Kernel};
use crate::progress::{Progress, Silent};
use crate::source::dump::Dump;
use crate::xen::engine::ScanFigures;
use dedup::Round;

/// Receives what an operation has found so far, so that it can be shown while the operation goes on. By
/// default each method does nothing.
pub trait Observer: Progress {
    /// Tells that a dump was opened.
    fn dump_opened(&mut self, dump: &Dump) {
        let _ = dump;
    }

    /// Tells that the guest's kernel was identified.
    fn identified(&mut self, kernel: &Kernel) {
        let _ = kernel;
    }

    /// Tells that the kernel's profile was built.
    fn built(&mut self, built: &BuiltProfile) {
        let _ = built;
    }

    /// Tells that the hypervisor scanned the guest.
    fn scanned(&mut self, scanned: &ScanFigures) {
        let _ = scanned;
    }

    /// Tells that the dump of a guest with this profile was scanned.
    fn dump_scanned(&mut self, built: &BuiltProfile, scanned: &OfflineScan) {
        let _ = (built, scanned);
    }

    /// Tells that the `number`th round of giving memory back is done.
    fn round_done(&mut self, number: u64, round: &Round) {
        let _ = (number, round);
    }
}

impl Observer for Silent {}
