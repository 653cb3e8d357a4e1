//! What a test does to the mock guest's machine, and what it may ask of the engine's calls.

use super::faults::Primitive;
use super::kernel::MockGuest;
use lacuna_core::Gfn;

/// How the hypervisor tells what the guest wrote to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TakeWritten {
    /// As it should.
    #[default]
    Flush,
    /// Processors are not made to forget what they have cached as written to.
    NoFlush,
    /// It cannot: everything counts as written to.
    Everything,
}

impl MockGuest {
    // --- what the machine does ---

    /// Takes a reference to the page behind `gfn`, as a grant or a foreign mapping does; `false` for no
    /// ordinary page.
    pub fn hold(&mut self, gfn: Gfn) -> bool {
        self.machine
            .references(gfn.get())
            .map(|references| *references += 1)
            .is_some()
    }

    /// Drops one.
    pub fn unhold(&mut self, gfn: Gfn) {
        if let Some(references) = self.machine.references(gfn.get()) {
            *references = references.saturating_sub(1);
        }
    }

    /// Turns log-dirty mode on or off.
    pub fn set_log_dirty(&mut self, on: bool) {
        self.machine.log_dirty = on;
    }

    /// How many pages the paging pool has left. Splitting a 2 MiB entry takes one.
    pub fn set_pool_pages(&mut self, pages: u64) {
        self.machine.pool_pages = pages;
    }

    /// Whether another domain takes each released frame at once and fills it with its own data.
    pub fn set_neighbour(&mut self, on: bool) {
        self.machine.neighbour = on;
    }

    /// Whether the toolstack keeps the guest paused.
    pub fn set_toolstack_pause(&mut self, on: bool) {
        self.toolstack_pause = on;
    }

    /// How the hypervisor tells what the guest wrote to.
    pub fn set_take_written(&mut self, how: TakeWritten) {
        self.take_written = how;
    }

    /// Breaks all entries of 2 MiB up.
    pub fn split_all(&mut self) {
        for gfn in (0..self.pages()).step_by(512) {
            self.machine.break_up(gfn);
        }
    }

    // --- the test's hooks ---

    /// Lets call number `call` (from 0) of `primitive` fail.
    pub fn fail(&mut self, primitive: Primitive, call: u64) {
        self.faults.plan(primitive, call);
    }

    /// Lets every call of `primitive` fail.
    pub fn fail_all(&mut self, primitive: Primitive) {
        self.faults.plan_all(primitive);
    }

    /// Forgets all plans and counts of calls.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// How often `primitive` was called.
    pub fn calls(&self, primitive: Primitive) -> u64 {
        self.faults.calls(primitive)
    }

    /// How many calls failed by plan.
    pub fn faults_struck(&self) -> u64 {
        self.faults.struck()
    }

    /// Runs `program` before each of the engine's calls that finds the guest running.
    pub fn set_interlude(&mut self, program: impl FnMut(&mut Self) + Send + 'static) {
        self.interlude = Some(Box::new(program));
    }

    /// Ends it.
    pub fn clear_interlude(&mut self) {
        self.interlude = None;
    }

    /// What a read of guest memory costs on the mock's clock, in nanoseconds.
    pub fn set_read_price(&mut self, nanoseconds: u64) {
        self.read_price = nanoseconds;
    }

    /// Reads of guest memory by the engine so far.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Begins to record where the engine reads.
    pub fn record_reads(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// The frames whose descriptors were read since [`MockGuest::record_reads`], in order, one for each read.
    pub fn descriptors_read(&mut self) -> Vec<Gfn> {
        let trace = self.trace.take().unwrap_or_default();
        trace
            .into_iter()
            .filter_map(|at| self.descriptor_at(at))
            .collect()
    }
}
