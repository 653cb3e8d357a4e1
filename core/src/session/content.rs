//! The operation of the content stage.

use core::sync::atomic::AtomicU64;

use super::frames::{hole_end, range};
use super::preemptible::{Step, each_step};
use super::sharing::steps;
use super::{Outcome, Refusal, Session};
use crate::PageState;
use crate::abi::{ContentFlags, Request};
use crate::content::{ContentReport, Peers, Rounds, Seed, Stage};
use crate::share::steps::Steps;
use crate::tables::{IndexSize, Part, Table, bitmap_at};
use crate::{Bitmap, Domain, Gfn, Skip};

/// Pages between two looks at pending interrupts: some tens of microseconds of hashing.
const CHUNK: u64 = 16;

impl Session {
    // By itself: what it needs of the stack would otherwise be taken during the other operations, too.
    #[inline(never)]
    pub(super) fn content<D: Domain + Peers>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
    ) -> Result<Outcome, Refusal> {
        let flags = ContentFlags::from_bits_truncate(request.flags);
        let again = flags.contains(ContentFlags::AGAIN);
        let steps = steps(request.flags & !flags.bits())?;
        let (from, end, _) = range(domain, request)?;
        if from == 0 && !again {
            self.content_rounds = self.content_rounds.wrapping_add(1);
        }
        let index = domain.index_size();
        let walk = Walk {
            index,
            seed: Seed::new(index.seed),
            leave_free: flags.contains(ContentFlags::LEAVE_FREE),
            rest: flags.contains(ContentFlags::REST).then_some(self.content_rounds),
            steps,
        };
        each_step(domain, request, from..end, |domain, at, budget| {
            // Asked before each stretch: a device may be assigned, or a migration begin, between two.
            if let Some(blocker) = domain.blocker() {
                return Err(Refusal::blocked(blocker));
            }
            let most = CHUNK.min(budget);
            let mut report = ContentReport::default();
            let ended = if again {
                walk.marked_stretch(domain, *at, end, most, &mut report)
            } else {
                walk.stretch(domain, *at, end, most, &mut report)
            };
            self.count_content(&report);
            let next = ended?;
            // A hole, or what has no mark, costs as much as a stretch of pages, however long it is.
            let cost = most.min(next - *at);
            *at = next;
            Ok(Step {
                cost,
                figures: [report.zeroed, report.merged, report.hashed, report.changed],
                is_half: false,
            })
        })
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

/// What is the same for all pages of an operation.
struct Walk {
    index: IndexSize,
    seed: Seed,
    leave_free: bool,
    /// As in [`Stage`].
    rest: Option<u64>,
    steps: Steps,
}

impl Walk {
    /// Takes the pages from `at` on, `most` of them, or passes over a hole. Returns where to go on.
    ///
    /// # Errors
    /// There is no memory for a table.
    fn stretch<D: Domain + Peers>(
        &self,
        domain: &mut D,
        at: u64,
        end: u64,
        most: u64,
        report: &mut ContentReport,
    ) -> Result<u64, Refusal> {
        let mut rounds = domain.part(Table::Rounds, at / 2);
        if rounds.is_absent() {
            let next = hole_end(domain, at, end);
            if next > at {
                return Ok(next);
            }
        }
        let stop = at.saturating_add(most).min(end).min(rounds.end.saturating_mul(2));
        let free = self.leave_free.then(|| bitmap_at(domain, at));
        let leave = free.as_ref().map(|part| part.bitmap());
        let is_private = |gfn: u64| {
            !leave.is_some_and(|free| free.get(Gfn::new(gfn)))
                && domain.page_state(Gfn::new(gfn)) == PageState::Private
        };
        if rounds.is_absent() && (at..stop).any(is_private) {
            rounds = domain
                .extend(Table::Rounds, at / 2)
                .map_err(|shortage| shortage.refusal(at))?;
        }
        let stage = self.stage(&rounds, leave);
        for gfn in at..stop {
            stage
                .page(domain, Gfn::new(gfn), report)
                .map_err(|shortage| shortage.refusal(gfn))?;
        }
        Ok(stop)
    }

    /// Takes the marked pages from `at` on, `most` of them, and of one part of the hashes. Returns where to
    /// go on.
    ///
    /// # Errors
    /// There is no memory for a table.
    fn marked_stretch<D: Domain + Peers>(
        &self,
        domain: &mut D,
        at: u64,
        end: u64,
        most: u64,
        report: &mut ContentReport,
    ) -> Result<u64, Refusal> {
        let rounds = domain.part(Table::Rounds, at / 2);
        let stop = Gfn::new(end.min(rounds.end.saturating_mul(2)));
        if rounds.is_absent() {
            return Ok(stop.get());
        }
        let free = self.leave_free.then(|| bitmap_at(domain, at));
        let stage = self.stage(&rounds, free.as_ref().map(|part| part.bitmap()));
        let mut next = Gfn::new(at);
        for _ in 0..most {
            next = stage
                .marked_page(domain, next, stop, report)
                .map_err(|(gfn, shortage)| shortage.refusal(gfn.get()))?;
            if next >= stop {
                break;
            }
        }
        Ok(next.get())
    }

    fn stage<'w, W: AsRef<[AtomicU64]>>(&self, rounds: &'w Part<W>, leave: Option<Bitmap<'w>>) -> Stage<'w> {
        Stage {
            rounds: Rounds::part(rounds.first, rounds.words.as_ref()),
            index: self.index,
            seed: self.seed,
            leave,
            rest: self.rest,
            steps: self.steps,
        }
    }
}
