//! The scan: descriptors into the bitmap, beside the running guest.
//!
//! It nominates only. A guest that allocates and frees while it is scanned leaves the bitmap wrong in places; the share
//! slice asks again.

use crate::{Bitmap, FreeCheck, Gfn, GuestMemory, UnknownReason, Verdict};

/// What one step of a scan did. All numbers but `next` and `descriptors` are pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStep {
    /// Where the next step has to begin; the end of the range when the scan is complete.
    pub next: u64,
    /// Pages in free blocks.
    pub free: u64,
    /// Pages in use.
    pub in_use: u64,
    /// Pages whose kernel has no descriptor for them.
    pub no_descriptor: u64,
    /// Pages whose descriptor contradicts itself or cannot be read; treated as in use.
    pub unknown: u64,
    /// Descriptors looked at: the work done.
    pub descriptors: u64,
}

/// Walks a range of frames.
#[derive(Clone, Debug)]
pub struct Scanner {
    check: FreeCheck,
}

impl Scanner {
    /// A scanner that asks `check`.
    pub const fn new(check: FreeCheck) -> Self {
        Self { check }
    }

    /// Scans `from..to`, looking at no more than `budget` descriptors, and brings the bitmap up to date for what it
    /// passed. The interior of a free block is not looked at: its head speaks for it.
    ///
    /// A block may reach past `to`; only its frames below `to` count. A range should therefore begin and end at
    /// multiples of the largest block, or cover all memory.
    pub fn step<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        bitmap: &Bitmap<'_>,
        from: Gfn,
        to: Gfn,
        budget: u64,
    ) -> ScanStep {
        let end = to.get().min(bitmap.gfns());
        let mut step = ScanStep::default();
        let mut at = from.get();
        // Frames from here to `at` are not free and still to be cleared: runs are cleared at once.
        let mut used_from = at;
        while at < end && step.descriptors < budget {
            // Most descriptors are those of pages in use: through them in one go.
            let limit = (end - at).min(budget - step.descriptors);
            let (in_use, verdict) = self.check.next_head(memory, Gfn::new(at), limit);
            step.descriptors += in_use;
            step.in_use += in_use;
            at += in_use;
            let Some(verdict) = verdict else { continue };
            step.descriptors += 1;
            match verdict {
                Verdict::Free { order, .. } => {
                    let stop = at.saturating_add(order.pages()).min(end);
                    bitmap.clear_range(Gfn::new(used_from), Gfn::new(at));
                    bitmap.set_range(Gfn::new(at), Gfn::new(stop));
                    step.free += stop - at;
                    at = stop;
                    used_from = at;
                }
                Verdict::InUse(_) => {
                    step.in_use += 1;
                    at += 1;
                }
                Verdict::Unknown(UnknownReason::NoDescriptor { next }) => {
                    let stop = next.get().min(end);
                    step.no_descriptor += stop - at;
                    at = stop;
                }
                Verdict::Unknown(_) => {
                    step.unknown += 1;
                    at += 1;
                }
            }
        }
        bitmap.clear_range(Gfn::new(used_from), Gfn::new(at));
        step.next = at;
        step
    }
}
