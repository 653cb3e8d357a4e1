//! Share slices: free pages are put on zero frames, a bounded number at a time.
//!
//! # Steps
//!
//! ```text
//! guest runs | pause | identify | lock | recheck, share, recheck, share ... | flush | unlock | resume | release
//! ```
//!
//! A guest that allocates a page first marks it as not free, then writes to it. If it marked the page before
//! *pause*, *recheck* sees the mark and the page is left alone. If it marks it after *resume*, its write
//! faults and gets a cleared page. Between the two nothing of the guest runs, so no write is lost. The old
//! frames are freed after *flush*, so no stale translation reaches a frame that someone else owns.
//!
//! *Recheck* and *share* are for 2 MiB, or for the pages of one word of the bitmap.
//!
//! Each step is a method of [`Slice`] and holds what a test can do to it; [`Slice::run`] is their order.
//!
//! # Lock order
//!
//! The domain's Lacuna lock (held by the caller) < p2m lock < whatever the p2m needs (page allocator, paging
//! pool). Nothing sleeps or allocates guest-visible memory between *lock* and *unlock*.
//!
//! # Bounds
//!
//! A slice spends at most [`MAX_SLICE_UNITS`], one for each 4 KiB entry or rejected page and
//! [`SUPERPAGE_UNITS`] for each 2 MiB entry; with them it shares at most [`MAX_SLICE_PAGES`]. It ends early
//! once the guest has been stopped for [`MAX_SLICE_NS`]. The clock is asked before each region and before
//! each page that the bitmap names, but for the first page: at most one look at a page or a region follows
//! the limit, and the sharing of what was found free before, which is at most 64 pages. The first page is
//! always dealt with. Otherwise no slice would get anywhere where *identify* alone takes as long as the limit
//! (a slow machine, or one whose processor was taken away).

use crate::judge::identity::check_boot_value;
use crate::share::candidates::{CandidateWord, Candidates};
use crate::share::steps::{Steps, mutated};
use crate::{
    Bitmap, BytesRule, FreeCheck, Gfn, IdentityMismatch, Order, P2m, Profile, Skip, VcpuRegisters, Verdict,
    check_identity,
};

/// Most work in one slice.
pub const MAX_SLICE_UNITS: u64 = 512;
/// What a 2 MiB entry costs: 512 frames are looked at, one entry is written.
pub const SUPERPAGE_UNITS: u64 = 64;
/// Most pages that one slice shares: eight 2 MiB entries.
pub const MAX_SLICE_PAGES: u64 = MAX_SLICE_UNITS / SUPERPAGE_UNITS * Order::SUPERPAGE.pages();
/// The guest is started again at the next page once it has been stopped this long, in nanoseconds.
pub const MAX_SLICE_NS: u64 = 1_000_000;
/// Frames whose bits are searched while the guest is stopped: the next candidate may be far away.
const LOOKAHEAD_GFNS: u64 = 64 * 512;
/// Frames whose bits are searched before it is stopped, 256 KiB of bitmap; further on, the caller comes back.
const SEARCH_GFNS: u64 = 1 << 21;

/// What one slice did. Counts are of pages unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SliceReport {
    /// Where the next slice begins; the end of the range when there is nothing left.
    pub next: u64,
    /// Pages newly on zero frames.
    pub shared: u64,
    /// 2 MiB entries written.
    pub superpages: u64,
    /// 4 KiB entries written.
    pub entries: u64,
    /// Pages that the bitmap called free and *recheck* did not: what a scan alone would have lost.
    pub rejected: u64,
    /// Free pages left alone, by [`Skip::index`].
    pub skipped: [u64; Skip::COUNT],
    /// Work done, at most [`MAX_SLICE_UNITS`].
    pub units: u64,
    /// How long the guest was stopped, in nanoseconds; 0 when it was not.
    pub pause_ns: u64,
    /// Whether the guest was stopped at all.
    pub paused: bool,
}

/// Why a slice shared nothing: the kernel of the profile was not found to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIdentified {
    /// Another kernel runs, or none that can be recognised.
    Mismatch(IdentityMismatch),
    /// No virtual CPU is online.
    NoVcpuOnline,
}

/// One slice over a part of a guest's memory: see the module's header.
#[derive(Debug)]
pub struct Slice<'a, P> {
    p2m: &'a mut P,
    profile: &'a Profile,
    /// What a scan called free, and what is known of it.
    candidates: Candidates<'a>,
    /// One past the last frame that may be shared.
    end: Gfn,
    steps: Steps,
    check: FreeCheck<'a>,
    /// The slice's first candidate, which is dealt with whatever the time.
    first: Gfn,
    /// When the guest was stopped, in nanoseconds.
    stopped_at: u64,
    report: SliceReport,
}

impl<'a, P: P2m> Slice<'a, P> {
    /// Prepares a slice over `from..end`.
    pub fn new(
        p2m: &'a mut P,
        profile: &'a Profile,
        bitmap: &'a Bitmap<'a>,
        from: Gfn,
        end: Gfn,
        steps: Steps,
    ) -> Self {
        Self {
            p2m,
            profile,
            candidates: Candidates {
                bitmap: *bitmap,
                zero: Bitmap::new(&[]),
            },
            end,
            steps,
            check: FreeCheck::new(profile),
            first: from,
            stopped_at: 0,
            report: SliceReport::default(),
        }
    }

    /// Has the slice pass over the frames of `zero`, which are known to be on zero frames.
    #[must_use]
    pub const fn passing_over(mut self, zero: Bitmap<'a>) -> Self {
        self.candidates.zero = zero;
        self
    }

    /// Carries out the slice, and reports what it did. Where the bitmap names no page, the guest is not
    /// stopped.
    ///
    /// # Errors
    /// [`NotIdentified`], beside the report: nothing was shared then, and the guest was stopped for a moment.
    pub fn run(mut self) -> (SliceReport, Result<(), NotIdentified>) {
        if !self.find_first() {
            return (self.report, Ok(()));
        }
        self.pause();
        let identified = self.identify();
        if identified.is_ok() {
            self.lock();
            self.share_candidates();
            self.flush();
            self.unlock();
        }
        self.resume();
        self.release();
        (self.report, identified)
    }

    /// Looks for the first candidate before the guest is stopped: it can be far away.
    fn find_first(&mut self) -> bool {
        let horizon = self.first.saturating_add(SEARCH_GFNS).min(self.end);
        self.report.next = horizon.get();
        match self.next_candidate(self.first, horizon) {
            Some(first) => {
                self.first = first;
                true
            }
            None => false,
        }
    }

    /// The next page to deal with in `from..to`; counts those that are passed over.
    fn next_candidate(&mut self, from: Gfn, to: Gfn) -> Option<Gfn> {
        let known = &mut self.report.skipped[Skip::Already.index()];
        self.candidates.next(from, to, known)
    }

    /// Stops the guest: every virtual CPU leaves it.
    fn pause(&mut self) {
        self.report.paused = true;
        if !mutated!(self.steps, NoPause | IdentifyFirst) {
            self.p2m.pause();
        }
        self.stopped_at = self.p2m.now();
    }

    /// Holds the registers and the memory of the stopped guest against the profile.
    fn identify(&mut self) -> Result<(), NotIdentified> {
        let identified = if mutated!(self.steps, NoIdentify) {
            Ok(())
        } else {
            identify(self.p2m, self.profile)
        };
        if mutated!(self.steps, IdentifyFirst) {
            self.p2m.pause();
        }
        if mutated!(self.steps, ResumeFirst) {
            self.p2m.unpause();
        }
        identified
    }

    fn lock(&mut self) {
        if !mutated!(self.steps, NoLock) {
            self.p2m.lock();
        }
    }

    /// Reads the page's own descriptor once more. Returns one past the end of the free block that it lies in;
    /// `None` where it is not free, or no longer.
    fn recheck(&mut self, gfn: Gfn) -> Option<Gfn> {
        if mutated!(self.steps, NoRecheck) {
            return Some(gfn.saturating_add(1));
        }
        match self.check.page(self.p2m, gfn) {
            Verdict::Free { head, order } => {
                Some(head.saturating_add(order.pages())).filter(|end| *end > gfn)
            }
            Verdict::InUse(_) | Verdict::Unknown(_) => None,
        }
    }

    /// The part of *recheck* that is done where a page changes hands.
    const fn bytes(&self) -> BytesRule {
        if mutated!(self.steps, NoRecheck) {
            BytesRule::Any
        } else {
            self.profile.free.bytes
        }
    }

    /// Has every processor forget its translations to the old frames.
    fn flush(&mut self) {
        if !mutated!(self.steps, NoFlush | ResumeBeforeFlush | ReleaseFirst) {
            self.p2m.flush();
        }
    }

    fn unlock(&mut self) {
        if !mutated!(self.steps, NoLock) {
            self.p2m.unlock();
        }
    }

    /// Starts the guest again.
    fn resume(&mut self) {
        self.report.pause_ns = self.p2m.now().saturating_sub(self.stopped_at);
        if !mutated!(self.steps, NoPause | ResumeFirst) {
            self.p2m.unpause();
        }
        if mutated!(self.steps, ResumeBeforeFlush) {
            self.p2m.flush();
        }
    }

    /// Has the old frames scrubbed and freed.
    fn release(&mut self) {
        self.p2m.release();
        if mutated!(self.steps, ReleaseFirst) {
            self.p2m.flush();
        }
    }

    /// Rechecks and shares the candidates, from the first one until the slice's bounds.
    fn share_candidates(&mut self) {
        let mut at = self.first;
        loop {
            self.report.next = at.get();
            if self.is_spent(at) {
                return;
            }
            let region = at.align_down(Order::SUPERPAGE);
            let region_end = region.saturating_add(Order::SUPERPAGE.pages());
            let whole =
                at == region && region_end <= self.end && self.candidates.is_region(region.get() / 64);
            // A region is not begun that does not fit: the next slice starts with it.
            if whole && self.report.units + SUPERPAGE_UNITS > MAX_SLICE_UNITS {
                return;
            }
            at = if whole && self.share_region(region, region_end) {
                region_end
            } else {
                self.share_pages(at, region_end.min(self.end))
            };
            // The stopped guest does not wait for a long search: the next slice makes it before its pause.
            let horizon = at.saturating_add(LOOKAHEAD_GFNS).min(self.end);
            let Some(next) = self.next_candidate(at, horizon) else {
                self.report.next = horizon.get();
                return;
            };
            at = next;
        }
    }

    /// Whether the slice, which has come to `at`, has used up its work or its time.
    fn is_spent(&mut self, at: Gfn) -> bool {
        self.report.units >= MAX_SLICE_UNITS
            || at > self.first && self.p2m.now().saturating_sub(self.stopped_at) >= MAX_SLICE_NS
    }

    /// Shares `region..end`, 2 MiB that the bitmap calls wholly free, as one entry. Returns `false` where
    /// that cannot be: its pages are to be tried then.
    fn share_region(&mut self, region: Gfn, end: Gfn) -> bool {
        self.report.units += 1;
        // Reads one head where a large block covers the region, 512 at most.
        let mut at = region;
        while at < end {
            match self.recheck(at) {
                Some(block_end) => at = block_end,
                None => return false,
            }
        }
        let pages = match self.p2m.share_zero(region, Order::SUPERPAGE, self.bytes()) {
            Ok(pages) => {
                self.report.shared += pages;
                self.report.superpages += 1;
                self.report.units += SUPERPAGE_UNITS - 1;
                pages
            }
            Err(Skip::Already) => 0,
            Err(_) => {
                // The frames were looked at: that is most of the cost. The pages' own reasons are counted one
                // by one.
                self.report.units += SUPERPAGE_UNITS - 1;
                return false;
            }
        };
        // Some of its small entries, or all, were there before.
        self.report.skipped[Skip::Already.index()] += Order::SUPERPAGE.pages().saturating_sub(pages);
        true
    }

    /// Shares the candidates of `from..end`, which lie in one 2 MiB region, as 4 KiB entries. Returns where
    /// it stopped.
    fn share_pages(&mut self, from: Gfn, end: Gfn) -> Gfn {
        let mut at = from;
        while at < end {
            let word_end = Gfn::new(at.get() | 63).saturating_add(1).min(end);
            let word = self.candidates.word(at, word_end);
            let stopped = self.share_word(&word, word_end);
            self.report.skipped[Skip::Already.index()] += word.known_before(stopped);
            if stopped < word_end {
                return stopped;
            }
            at = stopped;
        }
        end
    }

    /// Rechecks the candidates of one word of the bitmap, as far as `end`, and then shares those that are free.
    /// Returns where it stopped.
    fn share_word(&mut self, word: &CandidateWord, end: Gfn) -> Gfn {
        let (mut at, mut free, mut stopped) = (word.start, 0, end);
        while let Some(candidate) = word.next(at) {
            if self.is_spent(candidate) {
                stopped = candidate;
                break;
            }
            let Some(block_end) = self.recheck(candidate) else {
                self.report.rejected += 1;
                self.report.units += 1;
                at = candidate.saturating_add(1);
                continue;
            };
            let most = MAX_SLICE_UNITS.saturating_sub(self.report.units);
            let (pages, until) = word.others(candidate, block_end.min(end), most);
            self.report.units += u64::from(pages.count_ones());
            free |= pages;
            at = until;
        }
        self.share_free(word.start, free);
        stopped
    }

    /// Shares the pages of `free`, bits of the 64 frames from `start` on.
    fn share_free(&mut self, start: Gfn, mut free: u64) {
        let bytes = self.bytes();
        while free != 0 {
            let outcome = self.p2m.share_zero_pages(start, free, bytes);
            let left = free & outcome.left;
            let shared = u64::from((free ^ left).count_ones());
            self.report.shared += shared;
            self.report.entries += shared;
            let Some(skip) = outcome.refused else {
                return;
            };
            self.report.skipped[skip.index()] += 1;
            if skip == Skip::NotZero {
                // What the descriptor says is not so: the guest is not stopped for it again before the next
                // scan.
                let gfn = start.saturating_add(u64::from(left.trailing_zeros()));
                self.candidates.bitmap.clear_range(gfn, gfn.saturating_add(1));
            }
            // Without the one that was refused.
            free = left & left.wrapping_sub(1);
        }
    }
}

/// Stops the guest, identifies its kernel, and starts it again. Returns how long it was stopped, in
/// nanoseconds.
pub(crate) fn identify_paused<P: P2m>(p2m: &mut P, profile: &Profile) -> (Result<(), NotIdentified>, u64) {
    p2m.pause();
    let stopped_at = p2m.now();
    let identified = identify(p2m, profile);
    let stopped = p2m.now().saturating_sub(stopped_at);
    p2m.unpause();
    (identified, stopped)
}

/// Holds every virtual CPU of the stopped guest, and the value of this boot, against the profile.
fn identify<P: P2m>(p2m: &mut P, profile: &Profile) -> Result<(), NotIdentified> {
    let mut online = 0_u32;
    for vcpu in 0..p2m.vcpus() {
        let registers = p2m.registers(vcpu);
        online += registers.flags & VcpuRegisters::ONLINE;
        check_identity(p2m, profile, vcpu, &registers).map_err(NotIdentified::Mismatch)?;
    }
    if online == 0 {
        return Err(NotIdentified::NoVcpuOnline);
    }
    check_boot_value(p2m, profile).map_err(NotIdentified::Mismatch)
}

/// The values of a mismatch as they cross the hypercall.
pub(crate) fn mismatch_values(mismatch: &IdentityMismatch) -> [u64; 4] {
    let IdentityMismatch {
        vcpu,
        failure,
        found,
        expected,
    } = *mismatch;
    [u64::from(vcpu), failure.code(), found, expected]
}
