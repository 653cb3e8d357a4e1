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
mod preemptible;
mod query;
mod scanning;
mod sharing;
mod stretches;

use zerocopy::IntoBytes;

use self::frames::forget_candidates;
pub use self::header::Header;
use self::header::{Announcement, Candidates};
use self::query::{put, read_bitmap, registers};
use self::scanning::FullScan;
use crate::abi::{CHUNK_GFNS, Op, Request, SCAN_CHANGED, SCAN_EARLY, State, Statistics};
use crate::content::Peers;
use crate::refusal::Refusal;
use crate::tables::is_candidate;
use crate::{Domain, Gfn, MAX_PROFILE_BYTES, Profile, Status, explain};

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
enum Slot {
    First,
    Second,
}

/// See the module's header.
#[derive(Debug)]
pub struct Session {
    /// Two places for profiles: the one in use, and the one into which the next is decoded. A profile is too
    /// large for the hypervisor's stack, and a bad one must not cost the good one.
    slots: [Profile; 2],
    /// Which place is in use, if any.
    current: Option<Slot>,
    state: State,
    statistics: Statistics,
    scan: Option<FullScan>,
    /// Scans of all memory begun.
    started: u64,
    /// Rounds of the content stage begun.
    content_rounds: u64,
    /// What the bitmap's bits are.
    candidates: Candidates,
    /// Mismatches since the last slice that passed.
    mismatch_streak: u64,
    /// The tag of the records that the next scan of all memory may believe. Never 0.
    tag: u64,
    /// Scans of all memory since the last that left nothing out.
    partial_in_row: u64,
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
            slots: [Profile::blank(), Profile::blank()],
            current: None,
            state: State::Empty,
            statistics: Statistics::default(),
            scan: None,
            started: 0,
            content_rounds: 0,
            candidates: Candidates::default(),
            mismatch_streak: 0,
            tag: 1,
            partial_in_row: 0,
        }
    }

    /// The profile in use.
    pub const fn profile(&self) -> Option<&Profile> {
        let [first, second] = &self.slots;
        match self.current {
            Some(Slot::First) => Some(first),
            Some(Slot::Second) => Some(second),
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
                candidates: self.candidates,
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
            Op::Scan => {
                request.flags == SCAN_CHANGED || cfg!(feature = "mutants") && request.flags == SCAN_EARLY
            }
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
            Op::ZeroFrames | Op::PopulateZero | Op::SetGroup => Err(Refusal::bad_request(request.op)),
        }
    }

    /// Each call checks the bytes anew; the profile in use stays so until the last one.
    fn set_profile<D: Domain>(
        &mut self,
        domain: &mut D,
        request: &mut Request,
        bytes: &[u8],
    ) -> Result<Outcome, Refusal> {
        let [first, second] = &mut self.slots;
        let (spare, slot) = match self.current {
            Some(Slot::First) => (second, Slot::Second),
            Some(Slot::Second) | None => (first, Slot::First),
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
        self.candidates = Candidates::default();
        self.tag = self.tag.wrapping_add(1);
        if forget_candidates(domain, &mut request.cursor) == Outcome::Again {
            return Ok(Outcome::Again);
        }
        self.current = Some(slot);
        self.state = State::Loaded;
        self.scan = None;
        self.mismatch_streak = 0;
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
        self.candidates = Candidates::default();
        self.mismatch_streak = 0;
    }

    /// The profile is no longer true: keep it for `status`, use it for nothing.
    fn end(&mut self) {
        self.state = State::Ended;
        self.scan = None;
        self.candidates = Candidates::default();
    }

    /// The profile, if it may be used at all.
    fn usable(&self) -> Result<&Profile, Refusal> {
        match (self.profile(), self.state) {
            (Some(_), State::Ended) => {
                let s = &self.statistics;
                let values = [
                    s.identity_vcpu,
                    s.identity_check,
                    s.identity_found,
                    s.identity_expected,
                ];
                Err(Refusal::new(Status::Ended, values))
            }
            (Some(profile), _) => Ok(profile),
            (None, _) => Err(Refusal::of(Status::NoProfile)),
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
            reserve: shim.reserve,
            reserve_full: shim.reserve_full,
            reserve_refused: shim.reserve_refused,
            stood: shim.stood,
            stood_ns: shim.stood_ns,
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
        let candidate = is_candidate(domain, gfn);
        let info = domain.gfn_info(gfn);
        let answer = explain(domain, self.profile(), candidate, &info, gfn);
        put(request, buffer, answer.as_bytes())
    }
}

/// Tells readers of the bitmap that its bits are about to change.
fn begin<D: Domain>(domain: &mut D, started: u64) {
    if let Some(words) = domain.header() {
        Header::new(words.as_ref()).begin(started);
    }
}
