//! The operation of the content stage.

use super::{Outcome, Refusal, Session, range, steps};
use crate::abi::{CONTENT_LEAVE_FREE, Request};
use crate::content::{ContentReport, Index, Peers, Rounds, Seed, Stage};
use crate::{Bitmap, Gfn, Host, Skip};

/// Pages between two looks at pending interrupts: some tens of microseconds of hashing.
const CHUNK: u64 = 16;

/// What the hypervisor keeps for a domain's content stage.
#[derive(Debug)]
pub struct ContentArea<W> {
    /// Words of the [`Rounds`], two frames in each.
    pub rounds: W,
    /// Words of the [`Index`]: the domain's own, or its trust group's.
    pub index: W,
    /// The random number that belongs to the index.
    pub seed: u64,
}

impl Session {
    pub(super) fn content<H: Host + Peers>(
        &mut self,
        host: &mut H,
        request: &mut Request,
    ) -> Result<Outcome, Refusal> {
        let leave_free = request.flags & CONTENT_LEAVE_FREE != 0;
        let steps = steps(request.flags & !CONTENT_LEAVE_FREE)?;
        let (from, end, gfns) = range(host, request)?;
        let area = host
            .content_area(gfns)
            .map_err(|bytes| (crate::Status::NoMemory, [bytes, 0, 0, 0]))?;
        let words = host
            .bitmap(0)
            .map_err(|bytes| (crate::Status::NoMemory, [bytes, 0, 0, 0]))?;
        let stage = Stage {
            rounds: Rounds::new(area.rounds.as_ref()),
            index: Index::new(area.index.as_ref()),
            seed: Seed::new(area.seed),
            leave: leave_free.then(|| Bitmap::new(words.as_ref())),
            steps,
        };
        let unlimited = request.budget == 0;
        let mut at = from;
        while at < end {
            if at != from && host.preempted() {
                request.cursor = at;
                return Ok(Outcome::Again);
            }
            // Asked before each stretch: a device may be assigned, or a migration begin, between two.
            if let Some((status, value)) = host.blocker() {
                request.cursor = at;
                return Err((status, [value, 0, 0, 0]));
            }
            let mut chunk = CHUNK.min(end - at);
            if !unlimited {
                chunk = chunk.min(request.budget);
                request.budget -= chunk;
            }
            let mut report = ContentReport::default();
            for gfn in at..at + chunk {
                stage.page(host, Gfn::new(gfn), &mut report);
            }
            at += chunk;
            self.count_content(&report);
            let figures = [report.zeroed, report.merged, report.hashed, report.changed];
            for (sum, pages) in request.result.iter_mut().zip(figures) {
                *sum = sum.wrapping_add(pages);
            }
            if !unlimited && request.budget == 0 {
                break;
            }
        }
        request.cursor = at;
        Ok(Outcome::Finished)
    }

    fn count_content(&mut self, report: &ContentReport) {
        let s = &mut self.statistics;
        s.content_pages += report.looked_at;
        s.content_hashed += report.hashed;
        s.content_changed += report.changed;
        s.content_zeroed += report.zeroed;
        s.content_merged += report.merged;
        s.content_indexed += report.indexed;
        s.content_evicted += report.evicted;
        s.content_differed += report.skipped[Skip::Differs.index()];
        s.content_held += report.skipped[Skip::Held.index()];
        s.content_full += report.skipped[Skip::Full.index()];
        // Every other reason.
        s.content_refused += report.skipped.iter().sum::<u64>()
            - report.skipped[Skip::Differs.index()]
            - report.skipped[Skip::Held.index()]
            - report.skipped[Skip::Full.index()];
    }
}
