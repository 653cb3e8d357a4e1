//! The scan operation: all memory or a part, over as many calls as it takes, and what a complete one proves.

use core::ops::Range;

use super::frames::{hole_end, range};
use super::header::Candidates;
use super::preemptible::{Step, each_step};
use super::stretches::{Follow, Walker, step_over_holes};
use super::{Outcome, Refusal, Session, begin};
use crate::abi::{Request, SCAN_CHANGED, State};
use crate::judge::admission::{Sample, compare, sample, tolerance};
use crate::tables::{Table, bitmap_at};
use crate::{Domain, Gfn, Profile, ScanStep, Scanner, Status, free_by_counters};

/// Scans of all memory after one that left nothing out that may leave out what has not changed. So a frame of
/// the memory map that was wrongly taken for unchanged does not stay so.
const MOST_PARTIAL: u64 = 63;

/// Descriptors looked at between two looks at the clock and at pending interrupts.
const SCAN_CHUNK: u64 = 4096;

/// A scan of all memory under way, over several calls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FullScan {
    /// Added up so far; it also says where the next step begins.
    total: ScanStep,
    guest_free_before: u64,
    elapsed_ns: u64,
    /// When it began.
    start: u64,
    /// Whether the toolstack kept the guest paused at every step.
    paused: bool,
    follow: Follow,
}

impl FullScan {
    /// Reads the clock and the guest's counters.
    fn begin<D: Domain>(domain: &mut D, profile: &Profile, follow: Follow) -> Result<Self, Refusal> {
        Ok(Self {
            start: domain.now(),
            guest_free_before: counted(domain, profile)?,
            paused: true,
            follow,
            ..Self::default()
        })
    }
}

/// The guest's own count of its free pages.
fn counted<D: Domain>(domain: &mut D, profile: &Profile) -> Result<u64, Refusal> {
    free_by_counters(domain, profile)
        .map(|reading| reading.pages)
        .map_err(|error| Refusal::new(Status::CountersUnreadable, [error.zone, error.at.get(), 0, 0]))
}

impl Session {
    pub(super) fn scan<D: Domain>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
    ) -> Result<Outcome, Refusal> {
        let (from, end, gfns) = range(domain, request)?;
        if from != 0 && from == end && self.scan.is_none() {
            // The part before this one came to the end with nothing left of its budget, so its caller comes
            // back. What was found stands.
            return Ok(Outcome::Finished);
        }
        // Nobody is to act on, or be told of, the memory map of a kernel that is gone. A scan of all memory
        // asks at its first call and again at its last: a kernel once replaced does not come back, so the one
        // that runs at both ran all the while. Calls between need not stop the guest again.
        let goes_on = end == gfns && from != 0 && self.scan.is_some_and(|full| full.total.next == from);
        if !goes_on {
            self.identify(domain)?;
        }
        domain.make_header().map_err(|shortage| shortage.refusal(0))?;
        if from == 0 && end == gfns {
            self.started = self.started.wrapping_add(1);
        }
        self.candidates = Candidates::default();
        begin(domain, self.started);
        let mut full = match self.scan {
            Some(full) if goes_on => Some(full),
            // A scan from 0 to the end counts as one of all memory, over however many calls.
            _ if end == gfns && from == 0 => {
                let follow = self.follow(domain, request);
                Some(FullScan::begin(domain, self.usable()?, follow)?)
            }
            _ => {
                // It changes bits without any record.
                self.tag = self.tag.wrapping_add(1);
                None
            }
        };
        let outcome = self
            .scan_frames(domain, request, from..end, full.as_mut())
            // Half a scan is none: the next one begins anew.
            .inspect_err(|_| self.scan = None)?;
        match full {
            Some(full) if request.cursor >= end => self.end_full_scan(domain, &full, gfns),
            _ => {
                self.scan = full;
                Ok(outcome)
            }
        }
    }

    /// How a scan of all memory that begins now goes about it. What has not changed may be left out if the
    /// caller says so, the profile was admitted by a scan that left nothing out, not too long ago, and nothing
    /// is in the way of sharing: log-dirty mode, say, and with it a migration.
    fn follow<D: Domain>(&self, domain: &mut D, request: &Request) -> Follow {
        let is_partial = request.flags & SCAN_CHANGED != 0
            && self.state == State::Admitted
            && self.partial_in_row < MOST_PARTIAL
            && domain.blocker().is_none();
        Follow::new(self.tag, is_partial)
    }

    /// Scans `frames`, and adds to `full` what it finds.
    fn scan_frames<D: Domain>(
        &self,
        domain: &mut D,
        request: &mut Request,
        frames: Range<u64>,
        mut full: Option<&mut FullScan>,
    ) -> Result<Outcome, Refusal> {
        let end = frames.end;
        let mut walker = Walker::new(self.usable()?);
        each_step(domain, request, frames, |domain, at, budget| {
            let paused = domain.paused_by_toolstack();
            let before = domain.now();
            let budget = SCAN_CHUNK.min(budget);
            let step = match full.as_deref_mut() {
                Some(full) => full.follow.step(domain, &mut walker, *at, end, budget)?,
                None => scan_step(domain, &mut walker.scanner, *at, end, budget)?,
            };
            if let Some(full) = full.as_deref_mut() {
                full.total.add(&step);
                full.elapsed_ns += domain.now().saturating_sub(before);
                full.paused &= paused;
            }
            *at = step.next;
            Ok(Step {
                cost: step.descriptors,
                figures: [step.free, step.in_use, step.no_descriptor, step.unknown],
                // A block that has been begun is written down to its end: the next call would not know of it.
                is_half: walker.scanner.is_within_block(step.next),
            })
        })
    }

    /// Identifies the kernel once more, and admits or refuses the profile by what the scan of all memory
    /// found.
    fn end_full_scan<D: Domain>(
        &mut self,
        domain: &mut D,
        full: &FullScan,
        gfns: u64,
    ) -> Result<Outcome, Refusal> {
        let profile = self.usable()?;
        let uncounted = profile.zones.is_empty();
        let after = counted(domain, profile);
        self.scan = None;
        // Before the counters: if they are another kernel's, that is what is wrong.
        self.identify(domain)?;
        let sample = uncounted.then(|| sample(domain, full.total.free));
        self.complete_scan(full, after?, sample)?;
        if full.follow.is_partial {
            // Nobody is told that the bits are those of a complete scan: a migration must not believe them.
            self.statistics.scans_partial += 1;
            self.partial_in_row += 1;
            return Ok(Outcome::Finished);
        }
        self.partial_in_row = 0;
        self.candidates = Candidates {
            scan: self.started,
            gfns,
            free: full.total.free,
            start: full.start,
        };
        Ok(Outcome::Finished)
    }

    /// A scan of all memory is complete: account for it and admit the profile, or refuse it.
    fn complete_scan(
        &mut self,
        full: &FullScan,
        guest_free_after: u64,
        sample: Option<Sample>,
    ) -> Result<(), Refusal> {
        let bytes = self.usable()?.free.bytes;
        let s = &mut self.statistics;
        s.scans += 1;
        s.scan_descriptors = full.total.descriptors;
        s.scan_free = full.total.free;
        s.scan_in_use = full.total.in_use;
        s.scan_no_descriptor = full.total.no_descriptor;
        s.scan_unknown = full.total.unknown;
        s.scan_ns = full.elapsed_ns;
        s.guest_free_before = full.guest_free_before;
        s.guest_free_after = guest_free_after;
        let low = full.guest_free_before.min(guest_free_after);
        let high = full.guest_free_before.max(guest_free_after);
        let slack = tolerance(low, high, full.paused);
        let found = full.total.free;
        let refusal = match sample {
            None => compare(bytes, found, low, high, slack)
                .is_err()
                .then_some(Refusal::new(Status::CountsDisagree, [found, low, high, slack])),
            // No counter to hold it against: the pages themselves.
            Some(sample) => (!sample.bears_out()).then_some(Refusal::new(
                Status::ContentsDisagree,
                [found, sample.looked_at, sample.zero, 0],
            )),
        };
        if let Some(refusal) = refusal {
            // The candidates of a profile that is not believed are never acted on: it stays, or falls back
            // to, loaded.
            self.state = State::Loaded;
            return Err(refusal);
        }
        self.state = State::Admitted;
        Ok(())
    }
}

/// One step of the scan, in the part of the bitmap that has frame `at`. Memory for the part is taken when a
/// free block is met and there is none.
///
/// # Errors
/// There is none to be had.
pub(super) fn scan_step<D: Domain>(
    domain: &mut D,
    scanner: &mut Scanner<'_>,
    at: u64,
    end: u64,
    budget: u64,
) -> Result<ScanStep, Refusal> {
    let part = bitmap_at(domain, at);
    if !scanner.is_within_block(at) {
        if let Some(step) = step_over_holes(domain, &part, at, end) {
            return Ok(step);
        }
    }
    let mut step = scanner.step(domain, &part.bitmap(), Gfn::new(at), Gfn::new(end), budget);
    if step.wants_memory {
        // It is not for this step to say so any more: the next one takes the look at the block again.
        step.wants_memory = false;
        let next = hole_end(domain, step.next, end);
        if next > step.next {
            step.no_descriptor += next - step.next;
            step.next = next;
        } else {
            domain
                .extend(Table::Bitmap, step.next / 64)
                .map_err(|shortage| shortage.refusal(step.next))?;
        }
    }
    Ok(step)
}
