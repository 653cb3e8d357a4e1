//! Looking for work before the guest is stopped for it.
//!
//! A page whose bit a scan has set, a candidate, is often on a zero frame already: a guest's free memory
//! stays free for long, and every scan sets all of its bits. Stopping the guest to find that out would make
//! each round cost as much as the first.

use crate::{Bitmap, Domain, Gfn, Order};

/// Most entries of the p2m looked at in one search.
const MAX_LOOKUPS: u64 = 1024;
/// Frames whose bits are searched at once: 256 KiB of bitmap.
const HORIZON_GFNS: u64 = 1 << 21;

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Search {
    /// Candidates passed over, which are on zero frames already.
    pub(crate) already: u64,
    /// Where it ended.
    pub(crate) end: SearchEnd,
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchEnd {
    /// There is something to share here.
    Found(Gfn),
    /// Nothing before this frame; the search goes on from it. Always further on than where it began.
    NothingBefore(Gfn),
}

/// Searches `from..to`, which is not empty, for a candidate that is not on a zero frame.
///
/// The guest runs and nothing is locked: the answer is a hint, and a page missed now is met in the next
/// round.
pub(crate) fn first_to_share<D: Domain>(domain: &mut D, bitmap: &Bitmap<'_>, from: Gfn, to: Gfn) -> Search {
    let horizon = from.saturating_add(HORIZON_GFNS).min(to);
    let mut at = from;
    let mut already = 0;
    let ended = |already, end| Search { already, end };
    for _ in 0..MAX_LOOKUPS {
        let Some(candidate) = bitmap.next_set(at, horizon) else {
            return ended(already, SearchEnd::NothingBefore(horizon));
        };
        let info = domain.gfn_info(candidate);
        if info.zero_frame == 0 {
            return ended(already, SearchEnd::Found(candidate));
        }
        let region_end = candidate
            .align_down(Order::SUPERPAGE)
            .saturating_add(Order::SUPERPAGE.pages())
            .min(to);
        let candidates = || bitmap.count(candidate, region_end);
        at = if info.order >= u32::from(Order::SUPERPAGE.get()) {
            already += candidates();
            region_end
        } else if candidate.is_aligned(Order::SUPERPAGE) && candidates() == Order::SUPERPAGE.pages() {
            // 512 small entries that one of 2 MiB can replace.
            return ended(already, SearchEnd::Found(candidate));
        } else {
            already += 1;
            candidate.saturating_add(1)
        };
        if at >= horizon {
            return ended(already, SearchEnd::NothingBefore(at));
        }
    }
    ended(already, SearchEnd::NothingBefore(at))
}
