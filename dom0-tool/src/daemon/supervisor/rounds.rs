//! The pieces of one round for one guest: scan, share what the policy says, share equal pages.

use std::collections::VecDeque;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::Supervisor;
use crate::daemon::config::Extent;
use crate::daemon::pace;
use crate::daemon::watched::{Plan, Work};
use crate::failure::{Cause, Failure};
use crate::ops::host::Xen;
use crate::policy::{Observed, REGION_PAGES, Run};

/// Pages of a MiB.
const PAGES_PER_MIB: u64 = 256;
/// A round that gave back at least this many pages is logged at level info. Smaller amounts come and go in
/// each round.
const WORTH_TELLING: u64 = PAGES_PER_MIB;
/// Most runs of frames shared in one piece of work. Each stops the guest at least once.
const RUNS_AT_ONCE: u32 = 64;
/// Pages after which a piece of work ends even if runs are left: 64 MiB.
const PIECE_PAGES: u64 = 1 << 14;
/// Frame numbers that one piece of work of the content stage goes over: 64 MiB.
const CONTENT_PIECE: u64 = 1 << 14;

impl<X: Xen> Supervisor<X> {
    pub(super) fn scan(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let Some(Work::Scan(from)) = self.guests.get(&domain).map(|watched| watched.work) else {
            return Ok(());
        };
        let outcome = self.xen.scan(domain, from);
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        let part = match outcome {
            Err(failure) if failure.cause == Cause::CountsDisagree => {
                // A guest that allocates fast between two readings of its counters exceeds the tolerance now
                // and then.
                watched.disagreeing += 1;
                watched.counters.disagreements += 1;
                watched.work = Work::CheckState;
                watched.due = now + self.config.retry_first;
                debug!(event = "scan.disagreed", domain, what = failure.what);
                return Ok(());
            }
            outcome => outcome?,
        };
        if let Some(next) = part.next {
            // Without delay: the scan is compared with the guest's counters, which go on changing.
            watched.work = Work::Scan(next);
            watched.due = now;
            return Ok(());
        }
        watched.disagreeing = 0;
        if watched.treatment.mode.gives_back() {
            self.plan(domain, now)?;
        } else {
            self.end_round(domain, now);
        }
        Ok(())
    }

    /// Decides, after a complete scan, which free memory to give back.
    fn plan(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let state = self.xen.state(domain)?;
        let Some(extent) = self.guests.get(&domain).map(|watched| watched.treatment.extent) else {
            return Ok(());
        };
        let bitmap = match extent {
            Extent::Settled => self.xen.bitmap(domain)?,
            Extent::Everything => Vec::new(),
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.state = Some(state);
        watched.plan = match extent {
            Extent::Everything => Plan {
                runs: VecDeque::from([(0, None)]),
                allowance: u64::MAX,
            },
            Extent::Settled => {
                let statistics = state.statistics;
                let decision = watched.policy.decide(
                    &bitmap,
                    Observed {
                        at: now,
                        total: state.pages + statistics.zero_gfns,
                        free: statistics.scan_free,
                        given_back: statistics.zero_gfns,
                        unshared: statistics.unshared,
                        faults: statistics.faults(),
                    },
                );
                Plan {
                    runs: decision
                        .runs
                        .into_iter()
                        .map(|run| (run.from, Some(run.to)))
                        .collect(),
                    allowance: decision.allowance,
                }
            }
        };
        watched.work = Work::Share;
        watched.due = now;
        Ok(())
    }

    /// Carries out the next part of the plan, as many runs as make a piece of work.
    pub(super) fn share(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        self.check_reserve();
        for _ in 0..RUNS_AT_ONCE {
            let Some(plan) = self.guests.get(&domain).map(|watched| &watched.plan) else {
                return Ok(());
            };
            let allowance = plan.allowance.min(self.reserve.allowance());
            let (Some((from, end)), true) = (plan.runs.front().copied(), allowance > 0) else {
                self.after_free(domain, now);
                return Ok(());
            };
            // The engine stops between slices only, so the end is limited to what the allowance covers.
            let until = match end {
                Some(end) => {
                    let most = allowance.next_multiple_of(REGION_PAGES);
                    Some(end.min(from.saturating_add(most)))
                }
                None => None,
            };
            let part = self.xen.share(domain, from, until, allowance)?;
            self.reserve.gave_back(part.figures.pages);
            let Some(watched) = self.guests.get_mut(&domain) else {
                return Ok(());
            };
            watched.gave += part.figures.pages;
            let plan = &mut watched.plan;
            plan.allowance = plan.allowance.saturating_sub(part.figures.pages);
            plan.runs.pop_front();
            let next = part.next.or(until);
            if let Some(next) = next.filter(|next| end.is_none_or(|end| *next < end)) {
                plan.runs.push_front((next, end));
            }
            if let Some(to) = next.or(end) {
                watched.policy.gave_back(Run { from, to });
            }
            watched.due = now;
            if part.figures.pages >= PIECE_PAGES {
                break;
            }
        }
        Ok(())
    }

    /// Continues, after free pages were given back, with the content stage if it is wanted and due, or else
    /// ends the round.
    fn after_free(&mut self, domain: u16, now: Duration) {
        if let Some(watched) = self.guests.get_mut(&domain)
            && watched.treatment.mode.has_content()
            && watched.pace.is_due()
        {
            watched.pace.begin();
            watched.work = Work::Content(0);
            watched.due = now;
        } else {
            self.end_round(domain, now);
        }
    }

    /// Does one part of the content stage.
    pub(super) fn content(&mut self, domain: u16, from: u64, now: Duration) -> Result<(), Failure> {
        self.check_reserve();
        let allowance = self.reserve.allowance();
        if allowance == 0 || (from == 0 && !self.join_group(domain)?) {
            self.end_round(domain, now);
            return Ok(());
        }
        let part = self.xen.content(domain, from, CONTENT_PIECE.min(allowance))?;
        let gave = part.figures.zeroed.saturating_add(part.figures.merged);
        self.reserve.gave_back(gave);
        let state = match part.next {
            Some(_) => None,
            None => Some(self.xen.state(domain)?),
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.gave += gave;
        watched.pace.add(pace::ContentRound {
            gave,
            hashed: part.figures.hashed,
            changed: part.figures.changed,
        });
        match (part.next, state) {
            (Some(next), _) => {
                watched.work = Work::Content(next);
                watched.due = now;
            }
            (None, state) => {
                let statistics = state.map(|state| state.statistics).unwrap_or_default();
                watched.pace.end(statistics.content_unshared);
                watched.counters.content_rounds += 1;
                debug!(
                    event = "content.ended",
                    domain,
                    name = watched.name.as_deref(),
                    shared_pages = statistics.content_gfns,
                    taken_back_pages = statistics.content_unshared,
                    rounds_until_next = watched.pace.rounds(),
                );
                self.end_round(domain, now);
            }
        }
        Ok(())
    }

    /// Makes the guest share with the members of the group that the configuration names, and with nobody
    /// else. Returns false if the hypervisor refuses: then nothing must be shared by content, because it
    /// would be shared with guests of another group.
    fn join_group(&mut self, domain: u16) -> Result<bool, Failure> {
        let Some(group) = self
            .guests
            .get(&domain)
            .map(|watched| watched.treatment.group.clone())
        else {
            return Ok(false);
        };
        let failure = match self.xen.set_group(domain, &group) {
            Ok(()) => None,
            Err(failure) if matches!(failure.cause, Cause::Gone | Cause::Busy) => return Err(failure),
            Err(failure) => Some(failure),
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(false);
        };
        let trouble = failure.as_ref().map(|failure| failure.what.clone());
        if let Some(failure) = failure
            && watched.content_trouble != trouble
        {
            warn!(
                event = "content.refused",
                domain,
                name = watched.name.as_deref(),
                group,
                what = failure.what,
                remedy = failure.remedy.as_deref(),
            );
        }
        watched.content_trouble = trouble;
        Ok(watched.content_trouble.is_none())
    }

    fn end_round(&mut self, domain: u16, now: Duration) {
        let state = self.xen.state(domain).ok();
        let Some(watched) = self.guests.get_mut(&domain) else {
            return;
        };
        watched.state = state.or(watched.state);
        watched.counters.rounds += 1;
        watched.work = Work::CheckState;
        // A round that takes longer than the interval is followed by the next one, after the other guests.
        watched.due = (watched.round_began + watched.treatment.interval).max(now);
        let statistics = watched.state.map(|state| state.statistics).unwrap_or_default();
        if watched.gave >= WORTH_TELLING {
            info!(
                event = "round.gave_back",
                domain,
                name = watched.name.as_deref(),
                gave_mib = watched.gave / PAGES_PER_MIB,
                given_back_mib = watched.given_back() / PAGES_PER_MIB,
                free_mib = statistics.scan_free / PAGES_PER_MIB,
            );
        }
        debug!(
            event = "round.ended",
            domain,
            name = watched.name.as_deref(),
            free_pages = statistics.scan_free,
            given_back_pages = statistics.zero_gfns,
            unshared_pages = statistics.unshared,
            faults = statistics.faults(),
            headroom_pages = watched.policy.headroom(),
            pressure = watched.policy.pressure(),
        );
        self.succeeded(domain);
    }
}
