//! Share slices: free pages change hands, a bounded number at a time.
//!
//! # The slice
//!
//! ```text
//! P pause -> I identify -> lock p2m -> [ C re-check -> S share ]* -> flush -> unlock -> U unpause -> release
//! ```
//!
//! Guest allocation is (1) mark not free, (2) write. Before P, C sees (1). After U the write faults and gets a cleared
//! page. Nothing of the guest runs between, so no write is lost, whatever the interleaving. The old frames are freed
//! only after the flush, so no stale translation reaches a frame that someone else owns.
//!
//! # Lock order
//!
//! The domain's Lacuna lock (held by the caller) < p2m lock < whatever the p2m needs (page allocator, paging pool).
//! Nothing sleeps or allocates guest-visible memory between `lock` and `unlock`.
//!
//! # Bounds
//!
//! A slice spends at most [`MAX_SLICE_UNITS`], one for each 4 KiB entry or rejected page and [`SUPERPAGE_UNITS`] for
//! each 2 MiB entry; with them it shares at most [`MAX_SLICE_PAGES`]. It ends early once the guest has been stopped for
//! [`MAX_SLICE_NS`]: the clock is asked before each region and before each page that the bitmap names, but for the first
//! page, so what follows the limit is one look at a page or a region. The first page is always dealt with: where the guard
//! alone takes as long as the limit (a slow machine, or one whose processor was taken away), no slice would get anywhere.

// Where mutations do not exist, `mutated!` is the constant `false`.
#![allow(clippy::nonminimal_bool)]

use crate::guard::check_boot_value;
use crate::steps::{Steps, mutated};
use crate::{
    Bitmap, BytesRule, FreeCheck, Gfn, GuardFailure, GuardMismatch, GuestMemory, Order, P2m, Profile, Skip,
    VcpuRegisters, Verdict, check_guard,
};

/// Most work in one slice.
pub const MAX_SLICE_UNITS: u64 = 512;
/// What a 2 MiB entry costs: 512 frames are looked at, one entry is written.
pub const SUPERPAGE_UNITS: u64 = 64;
/// Most pages that one slice shares: eight 2 MiB entries.
pub const MAX_SLICE_PAGES: u64 = MAX_SLICE_UNITS / SUPERPAGE_UNITS * Order::SUPERPAGE.pages();
/// The guest is started again at the next page once it has been stopped this long, in nanoseconds.
pub const MAX_SLICE_NS: u64 = 1_000_000;
/// Frames whose bits are searched while the guest is stopped: the next nominee may be far away.
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
    /// Pages that the bitmap called free and the re-check did not: what a scan alone would have lost.
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

/// Why a slice shared nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceEnd {
    /// Another kernel, or none that can be recognised.
    Guard(GuardMismatch),
    /// No virtual CPU is online.
    NoVcpuOnline,
}

/// One slice over `from..to`: see the module's header.
///
/// # Errors
/// [`SliceEnd`] when the guard refuses; nothing was shared then. `report.pause_ns` counts either way.
pub fn share_slice<P: P2m>(
    p2m: &mut P,
    profile: &Profile,
    bitmap: &Bitmap<'_>,
    from: Gfn,
    to: Gfn,
    steps: Steps,
    report: &mut SliceReport,
) -> Result<(), SliceEnd> {
    let horizon = from.saturating_add(SEARCH_GFNS).min(to);
    *report = SliceReport {
        next: horizon.get(),
        ..SliceReport::default()
    };
    // Looked up before the pause: the nominee can be far away.
    let Some(first) = bitmap.next_set(from, horizon) else {
        return Ok(());
    };

    let early = mutated!(steps, GuardFirst).then(|| identify(p2m, profile));
    report.paused = true;
    if !mutated!(steps, NoPause) {
        p2m.pause();
    }
    let started = p2m.now();
    let identified = if mutated!(steps, NoGuard) {
        Ok(())
    } else {
        early.unwrap_or_else(|| identify(p2m, profile))
    };
    if mutated!(steps, UnpauseFirst) {
        p2m.unpause();
    }
    if identified.is_ok() {
        lock(p2m, steps);
        let limit = Limit { started, first };
        share_nominees(p2m, profile, bitmap, to, limit, steps, report);
        if !mutated!(steps, NoFlush) && !mutated!(steps, UnpauseBeforeFlush) && !mutated!(steps, ReleaseFirst)
        {
            p2m.flush();
        }
        unlock(p2m, steps);
    }
    report.pause_ns = p2m.now().saturating_sub(started);
    if !mutated!(steps, NoPause) && !mutated!(steps, UnpauseFirst) {
        p2m.unpause();
    }
    if mutated!(steps, UnpauseBeforeFlush) {
        p2m.flush();
    }
    p2m.release();
    if mutated!(steps, ReleaseFirst) {
        p2m.flush();
    }
    identified
}

fn lock<P: P2m>(p2m: &mut P, steps: Steps) {
    if !mutated!(steps, NoLock) {
        p2m.lock();
    }
}

fn unlock<P: P2m>(p2m: &mut P, steps: Steps) {
    if !mutated!(steps, NoLock) {
        p2m.unlock();
    }
}

/// Guard I by itself: stops the guest, asks, starts it again. Returns how long it was stopped, in nanoseconds.
pub(crate) fn identify_paused<P: P2m>(p2m: &mut P, profile: &Profile) -> (Result<(), SliceEnd>, u64) {
    p2m.pause();
    let started = p2m.now();
    let identified = identify(p2m, profile);
    let stopped = p2m.now().saturating_sub(started);
    p2m.unpause();
    (identified, stopped)
}

/// Guard I over every virtual CPU of the stopped guest.
fn identify<P: P2m>(p2m: &mut P, profile: &Profile) -> Result<(), SliceEnd> {
    let mut online = 0_u32;
    for vcpu in 0..p2m.vcpus() {
        let registers = p2m.registers(vcpu);
        online += registers.flags & VcpuRegisters::ONLINE;
        check_guard(p2m, profile, vcpu, &registers).map_err(SliceEnd::Guard)?;
    }
    if online == 0 {
        return Err(SliceEnd::NoVcpuOnline);
    }
    check_boot_value(p2m, profile).map_err(SliceEnd::Guard)
}

/// C and S over the nominees from the slice's first page on, until its bounds.
fn share_nominees<P: P2m>(
    p2m: &mut P,
    profile: &Profile,
    bitmap: &Bitmap<'_>,
    to: Gfn,
    limit: Limit,
    steps: Steps,
    report: &mut SliceReport,
) {
    let mut check = FreeCheck::new(profile);
    let mut at = limit.first;
    loop {
        report.next = at.get();
        if limit.is_spent(p2m, at, report) {
            return;
        }
        let region = at.align_down(Order::SUPERPAGE);
        let region_end = region.saturating_add(Order::SUPERPAGE.pages());
        let whole = at == region && region_end <= to;
        at = if whole && bitmap.count(region, region_end) == Order::SUPERPAGE.pages() {
            // A region is not begun that does not fit: the next slice starts with it.
            if report.units + SUPERPAGE_UNITS > MAX_SLICE_UNITS {
                return;
            }
            match share_region(p2m, profile, &mut check, region, steps, report) {
                RegionEnd::Done => region_end,
                RegionEnd::TryPages => share_pages(
                    p2m, profile, bitmap, &mut check, at, region_end, limit, steps, report,
                ),
            }
        } else {
            share_pages(
                p2m,
                profile,
                bitmap,
                &mut check,
                at,
                region_end.min(to),
                limit,
                steps,
                report,
            )
        };
        // The stopped guest does not wait for a long search: the next slice makes it before its pause.
        let horizon = at.saturating_add(LOOKAHEAD_GFNS).min(to);
        let Some(next) = bitmap.next_set(at, horizon) else {
            report.next = horizon.get();
            return;
        };
        at = next;
    }
}

/// From where a slice's bounds count.
#[derive(Clone, Copy)]
struct Limit {
    /// When the guest was stopped, in nanoseconds.
    started: u64,
    /// The slice's first page, with which it is to deal whatever the time.
    first: Gfn,
}

impl Limit {
    /// Whether the slice, which has come to `at`, has used up its work or its time.
    fn is_spent<P: P2m>(self, p2m: &mut P, at: Gfn, report: &SliceReport) -> bool {
        report.units >= MAX_SLICE_UNITS
            || at > self.first && p2m.now().saturating_sub(self.started) >= MAX_SLICE_NS
    }
}

enum RegionEnd {
    /// The region needs no more work.
    Done,
    /// It cannot be one 2 MiB entry: try its pages.
    TryPages,
}

/// A 2 MiB region that the bitmap calls wholly free.
fn share_region<P: P2m>(
    p2m: &mut P,
    profile: &Profile,
    check: &mut FreeCheck,
    region: Gfn,
    steps: Steps,
    report: &mut SliceReport,
) -> RegionEnd {
    report.units += 1;
    if !mutated!(steps, NoRecheck) && !region_is_free(p2m, check, region) {
        return RegionEnd::TryPages;
    }
    match p2m.share_zero(region, Order::SUPERPAGE, bytes_rule(profile, steps)) {
        Ok(pages) => {
            report.shared += pages;
            // Some of its small entries were there before.
            report.skipped[Skip::Already.index()] += Order::SUPERPAGE.pages().saturating_sub(pages);
            report.superpages += 1;
            report.units += SUPERPAGE_UNITS - 1;
            RegionEnd::Done
        }
        Err(Skip::Already) => {
            report.skipped[Skip::Already.index()] += Order::SUPERPAGE.pages();
            RegionEnd::Done
        }
        Err(_) => {
            // The frames were looked at: that is most of the cost. The pages' own reasons are counted one by one.
            report.units += SUPERPAGE_UNITS - 1;
            RegionEnd::TryPages
        }
    }
}

/// What must hold of a page's bytes: the part of C that is done where the page changes hands.
fn bytes_rule(profile: &Profile, steps: Steps) -> BytesRule {
    if mutated!(steps, NoRecheck) {
        BytesRule::Any
    } else {
        profile.free.bytes
    }
}

/// Whether free blocks cover the whole region. Reads one head where a large block does, 512 at most.
fn region_is_free<M: GuestMemory>(memory: &mut M, check: &mut FreeCheck, region: Gfn) -> bool {
    let end = region.saturating_add(Order::SUPERPAGE.pages());
    let mut at = region;
    while at < end {
        match check.page(memory, at) {
            Verdict::Free { head, order } => {
                let next = head.saturating_add(order.pages());
                if next <= at {
                    return false;
                }
                at = next;
            }
            Verdict::InUse(_) | Verdict::Unknown(_) => return false,
        }
    }
    true
}

/// Nominated pages of `from..end`, which lie in one 2 MiB region, as 4 KiB entries. Returns where it stopped.
#[allow(clippy::too_many_arguments)] // two call sites, both in the body of a slice
fn share_pages<P: P2m>(
    p2m: &mut P,
    profile: &Profile,
    bitmap: &Bitmap<'_>,
    check: &mut FreeCheck,
    from: Gfn,
    end: Gfn,
    limit: Limit,
    steps: Steps,
    report: &mut SliceReport,
) -> Gfn {
    let mut at = from;
    while let Some(nominee) = bitmap.next_set(at, end) {
        at = nominee;
        if limit.is_spent(p2m, at, report) {
            return at;
        }
        let stop = if mutated!(steps, NoRecheck) {
            at.saturating_add(1)
        } else {
            match check.page(p2m, at) {
                Verdict::Free { head, order } => head.saturating_add(order.pages()).min(end),
                Verdict::InUse(_) | Verdict::Unknown(_) => {
                    report.rejected += 1;
                    report.units += 1;
                    at = at.saturating_add(1);
                    continue;
                }
            }
        };
        while at < stop {
            if limit.is_spent(p2m, at, report) {
                return at;
            }
            report.units += 1;
            match p2m.share_zero(at, Order::PAGE, bytes_rule(profile, steps)) {
                Ok(pages) => {
                    report.shared += pages;
                    report.entries += 1;
                }
                Err(skip) => {
                    report.skipped[skip.index()] += 1;
                    if skip == Skip::NotZero {
                        // What the descriptor says is not so: the guest is not stopped for it again before the next scan.
                        bitmap.clear_range(at, at.saturating_add(1));
                    }
                }
            }
            at = at.saturating_add(1);
        }
    }
    end
}

/// The values of a guard mismatch as they cross the hypercall.
pub(crate) fn mismatch_values(mismatch: &GuardMismatch) -> [u64; 4] {
    let GuardMismatch {
        vcpu,
        failure,
        found,
        expected,
    } = *mismatch;
    let failure: GuardFailure = failure;
    [u64::from(vcpu), failure.code(), found, expected]
}
