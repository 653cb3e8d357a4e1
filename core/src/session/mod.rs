//! One domain's session with the engine: its profile, its state and its counters, and the operations of the
//! hypercall.
//!
//! The caller holds the domain's Lacuna lock, so operations on one domain never overlap. Long operations
//! return [`Outcome::Again`] at every point where the hypervisor wants its processor back; the request then
//! carries the progress, and the caller may be interrupted, or the domain change, before it comes back.
//! Nothing is assumed across that gap but what is checked again.

mod content;
mod frames;
mod header;
mod query;
mod scanning;

use zerocopy::IntoBytes;

use self::frames::{forget_nominations, range};
pub use self::header::Header;
use self::header::{Announcement, Nominations};
use self::query::{put, read_bitmap, registers};
use self::scanning::FullScan;
use crate::abi::{CHUNK_GFNS, Op, Request, SCAN_EARLY, State, Statistics};
use crate::content::Peers;
use crate::refusal::Refusal;
use crate::share::candidates::{SearchEnd, first_to_share};
use crate::share::slice::{identify_paused, mismatch_values};
use crate::tables::{bitmap_at, is_nominated};
use crate::{
    Domain, Gfn, MAX_PROFILE_BYTES, NotIdentified, Profile, Skip, Slice, SliceReport, Status, Steps, explain,
};

/// Guard failures in a row, none of them final, after which the profile is dropped all the same.
const GUARD_PATIENCE: u64 = 8;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Finished; `request.status` says how.
    Finished,
    /// Interrupted; call again with the same request.
    Again,
}

/// One of the two places of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Second,
}

/// See the module's header.
#[derive(Debug)]
pub struct Session {
    /// Two places for profiles: the one in use, and the one into which the next is decoded. A profile is too
    /// large for the hypervisor's stack, and a bad one must not cost the good one.
    places: [Profile; 2],
    /// Which place is in use, if any.
    current: Option<Place>,
    state: State,
    statistics: Statistics,
    scan: Option<FullScan>,
    /// Scans of all memory begun.
    started: u64,
    /// What the bitmap's bits are.
    nominations: Nominations,
    /// Guard failures since the last slice that passed.
    guard_streak: u64,
}

// What a domain costs the hypervisor that was ever asked about.
static_assertions::const_assert!(size_of::<Session>() <= 10 * 1024);

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session without a profile.
    pub fn new() -> Self {
        Self {
            places: [Profile::blank(), Profile::blank()],
            current: None,
            state: State::Empty,
            statistics: Statistics::default(),
            scan: None,
            started: 0,
            nominations: Nominations::default(),
            guard_streak: 0,
        }
    }

    /// The profile in use.
    pub const fn profile(&self) -> Option<&Profile> {
        let [first, second] = &self.places;
        match self.current {
            Some(Place::First) => Some(first),
            Some(Place::Second) => Some(second),
            None => None,
        }
    }

    /// State of the profile.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Carries out `request`, with `buffer` as the hypervisor's copy of the caller's buffer: filled for
    /// operations that read it, to be filled (and `request.buffer_size` set) by those that write it.
    pub fn operate<D: Domain + Peers>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
        buffer: &mut [u8],
    ) -> Outcome {
        let outcome = match self.dispatch(domain, request, buffer) {
            Ok(outcome) => {
                request.status = Status::Done.code();
                outcome
            }
            Err(refusal) => {
                request.status = refusal.status().code();
                request.result = refusal.values();
                Outcome::Finished
            }
        };
        // While a scan is under way, be it between two calls, the bits are nothing that readers can use.
        if outcome == Outcome::Finished && self.scan.is_none() {
            self.publish(domain);
        }
        outcome
    }

    fn publish<D: Domain>(&self, domain: &mut D) {
        if let Some(words) = domain.header() {
            let chunks = domain.counters().bitmap_gfns / CHUNK_GFNS;
            Header::new(words.as_ref()).publish(&Announcement {
                started: self.started,
                generation: self.statistics.generation,
                state: self.state as u64,
                nominations: self.nominations,
                profile: self.profile(),
                chunks,
            });
        }
    }

    /// The guest was reset (Xen's soft reset, through which a Xen-aware Linux kexecs): whatever ran is gone.
    pub fn reset(&mut self) {
        if self.current.is_some() {
            self.end();
        }
    }

    fn dispatch<D: Domain + Peers>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
        buffer: &mut [u8],
    ) -> Result<Outcome, Refusal> {
        let op = Op::from_code(request.op).ok_or(Refusal::bad_request(request.op))?;
        if request.pad != 0 {
            return Err(Refusal::bad_request(request.pad));
        }
        let flags_allowed = match op {
            Op::Share | Op::Content => true,
            Op::Scan => cfg!(feature = "mutants") && request.flags == SCAN_EARLY,
            _ => false,
        };
        if request.flags != 0 && !flags_allowed {
            return Err(Refusal::bad_request(request.flags));
        }
        match op {
            Op::SetProfile => self.set_profile(domain, request, buffer),
            Op::GetProfile => self.get_profile(request, buffer).map(|()| Outcome::Finished),
            Op::ClearProfile => {
                self.clear_profile();
                Ok(Outcome::Finished)
            }
            Op::Scan => self.scan(domain, request),
            Op::Share => self.share(domain, request),
            Op::Content => self.content(domain, request),
            Op::Statistics => {
                let statistics = self.statistics(domain);
                put(request, buffer, statistics.as_bytes()).map(|()| Outcome::Finished)
            }
            Op::Explain => self.explain(domain, request, buffer).map(|()| Outcome::Finished),
            Op::Registers => registers(domain, request, buffer).map(|()| Outcome::Finished),
            Op::ReadBitmap => read_bitmap(domain, request, buffer).map(|()| Outcome::Finished),
            // They do not come here: the shim has all that they need.
            Op::ZeroMap | Op::PopulateZero | Op::SetGroup => Err(Refusal::bad_request(request.op)),
        }
    }

    /// Each call checks the bytes anew; the profile in use stays so until the last one.
    fn set_profile<D: Domain>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
        bytes: &[u8],
    ) -> Result<Outcome, Refusal> {
        let [first, second] = &mut self.places;
        let (spare, place) = match self.current {
            Some(Place::First) => (second, Place::Second),
            Some(Place::Second) | None => (first, Place::First),
        };
        spare.decode_from(bytes)?;
        // Only what can never change under a profile is refused here; log-dirty mode, say, may be off again
        // by then.
        if let Some(blocker) = domain.blocker() {
            if blocker.0 != Status::LogDirty {
                return Err(Refusal::blocked(blocker));
            }
        }
        begin(domain, self.started);
        self.nominations = Nominations::default();
        if forget_nominations(domain, &mut request.cursor) == Outcome::Again {
            return Ok(Outcome::Again);
        }
        self.current = Some(place);
        self.state = State::Loaded;
        self.scan = None;
        self.guard_streak = 0;
        self.statistics.generation += 1;
        Ok(Outcome::Finished)
    }

    fn get_profile(&self, request: &mut Request, buffer: &mut [u8]) -> Result<(), Refusal> {
        let profile = self.profile().ok_or(Refusal::of(Status::NoProfile))?;
        let room = buffer.len();
        let bytes = profile.encode(buffer).map_err(|_| {
            Refusal::new(
                Status::BufferTooSmall,
                [MAX_PROFILE_BYTES as u64, room as u64, 0, 0],
            )
        })?;
        // A profile is at most 16 KiB.
        request.buffer_size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Ok(())
    }

    fn clear_profile(&mut self) {
        self.current = None;
        self.state = State::Empty;
        self.scan = None;
        self.nominations = Nominations::default();
        self.guard_streak = 0;
    }

    /// The profile is no longer true: keep it for `status`, use it for nothing.
    fn end(&mut self) {
        self.state = State::Ended;
        self.scan = None;
        self.nominations = Nominations::default();
    }

    /// The profile, if it may be used at all.
    fn usable(&self) -> Result<&Profile, Refusal> {
        match (self.profile(), self.state) {
            (Some(_), State::Ended) => {
                let s = &self.statistics;
                let values = [s.guard_vcpu, s.guard_check, s.guard_found, s.guard_expected];
                Err(Refusal::new(Status::Ended, values))
            }
            (Some(profile), _) => Ok(profile),
            (None, _) => Err(Refusal::of(Status::NoProfile)),
        }
    }

    fn share<D: Domain>(&mut self, domain: &mut D, request: &mut Request) -> Result<Outcome, Refusal> {
        self.usable()?;
        if self.state != State::Admitted {
            return Err(Refusal::of(Status::NotAdmitted));
        }
        let steps = steps(request.flags)?;
        let (from, end, _) = range(domain, request)?;
        let unlimited = request.budget == 0;
        let mut at = from;
        let mut identified = false;
        while at < end {
            if at != from && domain.preempted() {
                request.cursor = at;
                return Ok(Outcome::Again);
            }
            let part = bitmap_at(domain, at);
            let bitmap = part.bitmap();
            // What is nominated is in this part, or in a later one.
            let stop = end.min(bitmap.gfns());
            if part.is_absent() {
                at = stop;
                continue;
            }
            let search = first_to_share(domain, &bitmap, Gfn::new(at), Gfn::new(stop));
            self.statistics.already += search.already;
            match search.end {
                SearchEnd::Found(candidate) => at = candidate.get(),
                SearchEnd::NothingBefore(next) => {
                    at = next.get();
                    continue;
                }
            }
            // Asked before each slice: a device may be assigned, or a migration begin, between two.
            if let Some(blocker) = domain.blocker() {
                request.cursor = at;
                return Err(Refusal::blocked(blocker));
            }
            let Some(profile) = self.profile() else {
                return Err(Refusal::of(Status::NoProfile));
            };
            let (report, identified_now) =
                Slice::new(domain, profile, &bitmap, Gfn::new(at), Gfn::new(stop), steps).run();
            self.count_slice(&report);
            if let Err(reason) = identified_now {
                request.cursor = at;
                return Err(self.guard_refused(reason));
            }
            if report.paused {
                self.guard_streak = 0;
                identified = true;
            }
            // A slice that stops where it began would loop for ever; none does, and if one did it ends here.
            at = report.next.max(at.saturating_add(1)).min(stop);
            let figures = [
                report.shared,
                report.superpages,
                report.rejected,
                report.skipped[Skip::Held.index()],
            ];
            for (sum, pages) in request.result.iter_mut().zip(figures) {
                *sum = sum.wrapping_add(pages);
            }
            if !unlimited {
                request.budget = request.budget.saturating_sub(report.shared);
                if request.budget == 0 {
                    break;
                }
            }
        }
        request.cursor = at;
        if !identified {
            // Nothing was left to share. The answer is still about this guest, running this kernel.
            if let Some(blocker) = domain.blocker() {
                return Err(Refusal::blocked(blocker));
            }
            self.identify(domain)?;
        }
        Ok(Outcome::Finished)
    }

    /// Identifies the guest's kernel, without a slice.
    fn identify<D: Domain>(&mut self, domain: &mut D) -> Result<(), Refusal> {
        let (identified, stopped) = identify_paused(domain, self.usable()?);
        self.count_pause(stopped);
        identified.map_err(|reason| self.guard_refused(reason))?;
        self.guard_streak = 0;
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

    fn guard_refused(&mut self, reason: NotIdentified) -> Refusal {
        self.statistics.guard_failures += 1;
        self.guard_streak += 1;
        match reason {
            NotIdentified::NoVcpuOnline => Refusal::of(Status::NoVcpuOnline),
            NotIdentified::Guard(mismatch) => {
                let values = mismatch_values(&mismatch);
                let s = &mut self.statistics;
                [s.guard_vcpu, s.guard_check, s.guard_found, s.guard_expected] = values;
                if mismatch.is_final() || self.guard_streak >= GUARD_PATIENCE {
                    self.end();
                    Refusal::new(Status::Ended, values)
                } else {
                    Refusal::new(Status::KernelChanged, values)
                }
            }
        }
    }

    /// The counters, with what the shim counts filled in.
    pub fn statistics<D: Domain>(&self, domain: &mut D) -> Statistics {
        let shim = domain.counters();
        Statistics {
            state: self.state as u64,
            zero_gfns: shim.zero_gfns,
            unshared: shim.unshared,
            unshare_enomem: shim.unshare_enomem,
            released: shim.released,
            content_gfns: shim.content_gfns,
            content_unshared: shim.content_unshared,
            refilled: shim.refilled,
            metadata_bytes: shim.metadata_bytes,
            metadata_most: shim.metadata_most,
            bitmap_gfns: shim.bitmap_gfns,
            ..self.statistics
        }
    }

    fn explain<D: Domain>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
        buffer: &mut [u8],
    ) -> Result<(), Refusal> {
        let gfns = domain.gfns();
        if request.cursor >= gfns {
            return Err(Refusal::out_of_range(request.cursor, gfns));
        }
        let gfn = Gfn::new(request.cursor);
        let nominated = is_nominated(domain, gfn);
        let info = domain.gfn_info(gfn);
        let answer = explain(domain, self.profile(), nominated, &info, gfn);
        put(request, buffer, answer.as_bytes())
    }
}

/// Tells readers of the bitmap that its bits are about to change.
fn begin<D: Domain>(domain: &mut D, started: u64) {
    if let Some(words) = domain.header() {
        Header::new(words.as_ref()).begin(started);
    }
}

/// The steps that a share request asks for: all, but for the test-only feature `mutants`.
fn steps(flags: u32) -> Result<Steps, Refusal> {
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
