//! The share operation, slice by slice, and the identity check that goes with it.

use super::frames::range;
use super::preemptible::{Step, each_step};
use super::{Outcome, Session};
use crate::abi::{Request, State};
use crate::refusal::Refusal;
use crate::share::candidates::{Candidates, SearchEnd, first_to_share};
use crate::share::slice::{identify_paused, mismatch_values};
use crate::tables::{Table, bitmap_at};
use crate::{Domain, Gfn, NotIdentified, Skip, Slice, SliceReport, Status, Steps};

/// Mismatches in a row, none of them final, after which the profile is dropped all the same.
const MOST_MISMATCHES: u64 = 8;

impl Session {
    pub(super) fn share<D: Domain>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
    ) -> Result<Outcome, Refusal> {
        self.usable()?;
        if self.state != State::Admitted {
            return Err(Refusal::of(Status::NotAdmitted));
        }
        let steps = steps(request.flags)?;
        let (from, end, _) = range(domain, request)?;
        let mut identified = false;
        let outcome = each_step(domain, request, from..end, |domain, at, _| {
            let report = self.search_and_share(domain, at, end, steps)?;
            identified |= report.paused;
            Ok(Step {
                cost: report.shared,
                figures: [
                    report.shared,
                    report.superpages,
                    report.rejected,
                    report.skipped[Skip::Held.index()],
                ],
                is_half: false,
            })
        })?;
        if outcome == Outcome::Finished && !identified {
            // Nothing was left to share. The answer is still about this guest, running this kernel.
            if let Some(blocker) = domain.blocker() {
                return Err(Refusal::blocked(blocker));
            }
            self.identify(domain)?;
        }
        Ok(outcome)
    }

    /// Searches for a page to share from frame `at` on, and carries out a slice there. Moves `at` on; where
    /// the search finds none for now, that is all, and the report is empty.
    fn search_and_share<D: Domain>(
        &mut self,
        domain: &mut D,
        at: &mut u64,
        end: u64,
        steps: Steps,
    ) -> Result<SliceReport, Refusal> {
        let part = bitmap_at(domain, *at);
        let bitmap = part.bitmap();
        // The candidates are in this part, or in a later one.
        let stop = end.min(bitmap.gfns());
        if part.is_absent() {
            *at = stop;
            return Ok(SliceReport::default());
        }
        let zero = domain.part(Table::Zero, *at / 64);
        let candidates = Candidates {
            bitmap,
            zero: zero.bitmap(),
        };
        let search = first_to_share(domain, &candidates, Gfn::new(*at), Gfn::new(stop));
        self.statistics.already += search.already;
        match search.end {
            SearchEnd::Found(candidate) => *at = candidate.get(),
            SearchEnd::NothingBefore(next) => {
                *at = next.get();
                return Ok(SliceReport::default());
            }
        }
        // Asked before each slice: a device may be assigned, or a migration begin, between two.
        if let Some(blocker) = domain.blocker() {
            return Err(Refusal::blocked(blocker));
        }
        let Some(profile) = self.profile() else {
            return Err(Refusal::of(Status::NoProfile));
        };
        let (report, identified) = Slice::new(domain, profile, &bitmap, Gfn::new(*at), Gfn::new(stop), steps)
            .passing_over(zero.bitmap())
            .run();
        self.count_slice(&report);
        identified.map_err(|reason| self.not_identified(reason))?;
        if report.paused {
            self.mismatch_streak = 0;
        }
        // A slice that stops where it began would loop for ever; none does, and if one did it ends here.
        *at = report.next.max(at.saturating_add(1)).min(stop);
        Ok(report)
    }

    /// Identifies the guest's kernel, without a slice.
    pub(super) fn identify<D: Domain>(&mut self, domain: &mut D) -> Result<(), Refusal> {
        let (identified, stopped) = identify_paused(domain, self.usable()?);
        self.count_pause(stopped);
        identified.map_err(|reason| self.not_identified(reason))?;
        self.mismatch_streak = 0;
        Ok(())
    }

    fn count_slice(&mut self, report: &SliceReport) {
        let s = &mut self.statistics;
        s.slices += u64::from(report.paused);
        s.shared += report.shared;
        s.shared_superpages += report.superpages;
        s.shared_entries += report.entries;
        s.rejected += report.rejected;
        s.skipped_not_ram += report.skipped[Skip::NotRam.index()];
        s.skipped_held += report.skipped[Skip::Held.index()];
        s.skipped_not_zero += report.skipped[Skip::NotZero.index()];
        s.skipped_no_pool += report.skipped[Skip::NoPool.index()];
        s.skipped_entry_refused += report.skipped[Skip::EntryRefused.index()];
        s.skipped_log_dirty += report.skipped[Skip::LogDirty.index()];
        s.already += report.skipped[Skip::Already.index()];
        s.slice_most_units = s.slice_most_units.max(report.units);
        s.slice_most_pages = s.slice_most_pages.max(report.shared);
        if report.paused {
            self.count_pause(report.pause_ns);
        }
    }

    fn count_pause(&mut self, stopped_ns: u64) {
        let s = &mut self.statistics;
        s.pauses += 1;
        s.pause_total_ns += stopped_ns;
        s.pause_longest_ns = s.pause_longest_ns.max(stopped_ns);
    }

    fn not_identified(&mut self, reason: NotIdentified) -> Refusal {
        self.statistics.identity_failures += 1;
        self.mismatch_streak += 1;
        match reason {
            NotIdentified::NoVcpuOnline => Refusal::of(Status::NoVcpuOnline),
            NotIdentified::Mismatch(mismatch) => {
                let values = mismatch_values(&mismatch);
                let s = &mut self.statistics;
                [
                    s.identity_vcpu,
                    s.identity_check,
                    s.identity_found,
                    s.identity_expected,
                ] = values;
                if mismatch.is_final() || self.mismatch_streak >= MOST_MISMATCHES {
                    self.end();
                    Refusal::new(Status::Ended, values)
                } else {
                    Refusal::new(Status::KernelChanged, values)
                }
            }
        }
    }
}

/// The steps that a share request asks for: all, but for the test-only feature `mutants`.
pub(super) fn steps(flags: u32) -> Result<Steps, Refusal> {
    #[cfg(feature = "mutants")]
    {
        use crate::Mutation;
        let mutation = match flags >> crate::abi::SHARE_MUTATION_SHIFT {
            1 => Some(Mutation::NoPause),
            2 => Some(Mutation::NoIdentify),
            3 => Some(Mutation::NoRecheck),
            4 => Some(Mutation::NoFlush),
            5 => Some(Mutation::ResumeFirst),
            6 => Some(Mutation::ReleaseFirst),
            _ => None,
        };
        if let Some(mutation) = mutation {
            return Ok(Steps::with(mutation));
        }
    }
    if flags == 0 {
        Ok(Steps::default())
    } else {
        Err(Refusal::bad_request(flags))
    }
}
