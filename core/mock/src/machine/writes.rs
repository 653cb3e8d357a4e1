//! What the entries of the p2m say of the guest's writes.

use lacuna_core::Order;

use super::{Entry, Machine, REGION};

impl Machine {
    /// The entry that maps `gfn` says from now on that it was used to write; a new one does, too.
    pub(super) fn note_written(&mut self, gfn: u64) {
        let region = gfn / REGION * REGION;
        if self.order(gfn) == Order::PAGE {
            self.unwritten.remove(&gfn);
        } else {
            for gfn in region..region + REGION {
                self.unwritten.remove(&gfn);
            }
        }
    }

    /// Breaks the entry of 2 MiB at `gfn` up, as the hypervisor does for a single page of it.
    pub(in super::super) fn break_up(&mut self, gfn: u64) {
        self.note_written(gfn);
        self.large.remove(&(gfn / REGION));
    }

    /// As [`lacuna_core::Writes::take_written`]; with `flush` false, processors go on with what they have
    /// cached as written to.
    pub(in super::super) fn take_written(&mut self, first: u64, count: u64, flush: bool) -> [u64; 8] {
        let asked = first..first + count;
        let mut written = [0; 8];
        for gfn in asked.clone() {
            let region = gfn / REGION * REGION;
            let is_whole = asked.start <= region && region + REGION <= asked.end;
            // An entry of 2 MiB has one bit for all of it, which is not for a part to clear.
            let is_known = self.order(gfn) == Order::PAGE || is_whole;
            if !is_known || !self.unwritten.contains(&gfn) {
                let at = gfn - first;
                written[(at / 64) as usize] |= 1 << (at % 64);
            }
        }
        for gfn in asked.clone() {
            let region = gfn / REGION * REGION;
            let is_whole = asked.start <= region && region + REGION <= asked.end;
            if self.entry(gfn) != Entry::Hole && (self.order(gfn) == Order::PAGE || is_whole) {
                self.unwritten.insert(gfn);
            }
        }
        if flush {
            self.flush();
        }
        written
    }
}
