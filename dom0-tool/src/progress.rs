//! Progress that an operation reports while it runs. The caller decides whether and how to show it.

use std::ops::Range;
use std::path::PathBuf;

/// A step that takes a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Searches the guest's memory for a Linux kernel. Progress is in frames.
    SearchForLinux,
    /// Searches the guest's memory for a Windows kernel. Progress is in frames.
    SearchForWindows,
    /// Compiles the stub against a kernel's headers and runs it.
    AskHeaders,
    /// Looks for the headers of a kernel and fetches them. Progress is in words.
    FetchHeaders,
    /// Fetches a PDB. Progress is in bytes.
    FetchPdb,
    /// Scans a dump. Progress is in frames.
    ScanDump,
    /// Makes the hypervisor scan a guest.
    ScanGuest,
    /// A round of giving memory back, by its number.
    Round(u64),
}

/// Something that happened during an operation and is not part of its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// Neither a layout nor headers of the guest's kernel are here, and the guest's own memory has to do.
    NoLayout,
    /// There are headers of the guest's kernel, no compiler for them, and the guest's own memory has to do.
    NoCompiler,
    /// Where the layout of the guest's kernel was found.
    LayoutFrom(String),
    /// The layout that was made is kept in this file.
    LayoutKept(PathBuf),
    /// The layout that was made could not be kept, for this reason.
    LayoutNotKept(String),
    /// A PDB is looked for, by its path in a symbol store.
    LookingFor(String),
    /// An image that looks like a Windows kernel and was not taken, with the reason.
    PassedOver(String),
    /// The file does not fit as it is, and is read again as memory without this hole.
    Hole(Range<u64>),
    /// A migration's log will not tell why the guest was refused, for this reason.
    RefusalNotKept(String),
}

/// Is told how an operation gets on. Each method does nothing unless it is written.
pub trait Progress {
    /// Tells that a step begins.
    fn begin(&mut self, step: Step) {
        let _ = step;
    }

    /// Tells how far the step has come: `done` of `total`, in the step's own unit.
    fn advance(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// Tells what the step is working on now.
    fn describe(&mut self, what: &str) {
        let _ = what;
    }

    /// Tells that the step is over, successfully or not.
    fn end(&mut self) {}

    /// Tells of something that happened on the way.
    fn remark(&mut self, remark: Remark) {
        let _ = remark;
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {}
