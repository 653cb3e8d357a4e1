//! Looking for work before the guest is stopped for it.
//!
//! A nominated page is often on a zero frame already: a guest's free memory stays free for long, and every scan nominates
//! all of it. Stopping the guest to find that out would make each round cost as much as the first.

use crate::{Bitmap, Gfn, Host, Order};

/// Most entries of the p2m looked at in one search.
const MAX_LOOKUPS: u64 = 1024;
/// Frames whose bits are searched at once: 256 KiB of bitmap.
const HORIZON_GFNS: u64 = 1 << 21;

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// There is something to share here.
    Found(Gfn),
    /// Nothing before this frame; the search goes on from it. Always further on than where it began.
    NothingBefore(Gfn),
}

/// Searches `from..to`, which is not empty, for a nominated page that is not on a zero frame.
///
/// The guest runs and nothing is locked: the answer is a hint, and a page missed now is met in the next round.
pub(crate) fn first_to_share<H: Host>(host: &mut H, bitmap: &Bitmap<'_>, from: Gfn, to: Gfn) -> Search {
    let horizon = from.saturating_add(HORIZON_GFNS).min(to);
    let mut at = from;
    for _ in 0..MAX_LOOKUPS {
        let Some(nominee) = bitmap.next_set(at, horizon) else {
            return Search::NothingBefore(horizon);
        };
        let info = host.gfn_info(nominee);
        if info.zero_frame == 0 {
            return Search::Found(nominee);
        }
        let region_end = nominee
            .align_down(Order::SUPERPAGE)
            .saturating_add(Order::SUPERPAGE.pages());
        at = if info.order >= u32::from(Order::SUPERPAGE.get()) {
            region_end
        } else if nominee.is_aligned(Order::SUPERPAGE)
            && bitmap.count(nominee, region_end.min(to)) == Order::SUPERPAGE.pages()
        {
            // 512 small entries that one of 2 MiB can replace.
            return Search::Found(nominee);
        } else {
            nominee.saturating_add(1)
        };
        if at >= horizon {
            return Search::NothingBefore(at.min(to));
        }
    }
    Search::NothingBefore(at)
}
