//! Looking for work before the guest is stopped for it.
//!
//! A page whose bit a scan has set, a candidate, is often on a zero frame already: a guest's free memory
//! stays free for long, and every scan sets all of its bits. Stopping the guest to find that out would make
//! each round cost as much as the first, and so would asking the p2m for each of them. The hypervisor keeps a
//! bit for each frame that is on a zero frame ([`crate::Table::Zero`]): the words of both bitmaps say which
//! candidates are worth a look, 64 at a time.
//!
//! A bit that is not set costs a look. A bit that should not be set costs a page that is not given back;
//! nothing is shared because of one.

use crate::bitmap::span;
use crate::{Bitmap, Domain, Gfn, Order};

/// Most entries of the p2m looked at in one search.
const MAX_LOOKUPS: u64 = 1024;
/// Frames whose bits are searched at once: 256 KiB of bitmap.
const HORIZON_GFNS: u64 = 1 << 21;
/// Words of the bitmap for 2 MiB.
const REGION_WORDS: u64 = Order::SUPERPAGE.pages() / 64;

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

/// What a scan called free, and which of it is on zero frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'w> {
    /// What a scan called free.
    pub(crate) bitmap: Bitmap<'w>,
    /// What the hypervisor knows to be on zero frames.
    pub(crate) zero: Bitmap<'w>,
}

impl Candidates<'_> {
    /// The first candidate of `from..to` that is worth a look: one that is not known to be on a zero frame, or
    /// the first of 2 MiB of candidates, which may be worth an entry of 2 MiB. Adds to `known` how many
    /// candidates before it are known to be on zero frames.
    #[inline]
    pub(crate) fn next(&self, from: Gfn, to: Gfn, known: &mut u64) -> Option<Gfn> {
        let mut at = from.get();
        while at < to.get() {
            let word_start = at & !63;
            let index = at / 64;
            let candidates = self.bitmap.word(index) & span(at % 64, to.get() - word_start);
            if candidates != 0 {
                if candidates == u64::MAX && self.is_region(index) {
                    return Some(Gfn::new(at));
                }
                let on_zero = candidates & self.zero.word(index);
                let others = candidates ^ on_zero;
                let first = u64::from(others.trailing_zeros());
                if on_zero != 0 {
                    *known += u64::from((on_zero & span(0, first)).count_ones());
                }
                if others != 0 {
                    return Some(Gfn::new(word_start + first));
                }
            }
            at = (at | 63).saturating_add(1);
        }
        None
    }

    /// The candidates of `from..to`, which lie in one word of the bitmap.
    #[inline]
    pub(crate) fn word(&self, from: Gfn, to: Gfn) -> CandidateWord {
        let start = from.get() & !63;
        let index = start / 64;
        CandidateWord {
            start: Gfn::new(start),
            candidates: self.bitmap.word(index) & span(from.get() - start, to.get() - start),
            zero: self.zero.word(index),
        }
    }

    /// Whether word `index` is the first of those for 2 MiB of candidates.
    pub(crate) fn is_region(&self, index: u64) -> bool {
        index % REGION_WORDS == 0
            && (index..index + REGION_WORDS).all(|index| self.bitmap.word(index) == u64::MAX)
    }
}

/// The candidates among 64 frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CandidateWord {
    /// The first of the 64 frames.
    pub(crate) start: Gfn,
    candidates: u64,
    /// The frames that are known to be on zero frames, candidates or not.
    zero: u64,
}

impl CandidateWord {
    /// The first candidate from `at` on that is not known to be on a zero frame.
    #[inline]
    pub(crate) fn next(&self, at: Gfn) -> Option<Gfn> {
        let others = self.candidates & !self.zero & !span(0, at.get() - self.start.get());
        (others != 0).then(|| self.start.saturating_add(u64::from(others.trailing_zeros())))
    }

    /// The first pages of `from..to` that are not known to be on zero frames, candidates or not, at most `most`
    /// of them; and where they end.
    pub(crate) fn others(&self, from: Gfn, to: Gfn, most: u64) -> (u64, Gfn) {
        let start = self.start.get();
        let mut others = span(from.get() - start, to.get() - start) & !self.zero;
        let mut end = to;
        while u64::from(others.count_ones()) > most {
            let Some(last) = others.checked_ilog2() else {
                break;
            };
            others ^= 1 << last;
            end = self.start.saturating_add(u64::from(last));
        }
        (others, end)
    }

    /// How many candidates before `gfn` are known to be on zero frames.
    pub(crate) fn known_before(&self, gfn: Gfn) -> u64 {
        let known = self.candidates & self.zero & span(0, gfn.get() - self.start.get());
        u64::from(known.count_ones())
    }
}

/// Searches `from..to`, which is not empty, for a candidate that is not on a zero frame.
///
/// The guest runs and nothing is locked: the answer is a hint, and a page missed now is met in the next
/// round.
pub(crate) fn first_to_share<D: Domain>(
    domain: &mut D,
    candidates: &Candidates<'_>,
    from: Gfn,
    to: Gfn,
) -> Search {
    let horizon = from.saturating_add(HORIZON_GFNS).min(to);
    let mut at = from;
    let mut already = 0;
    let ended = |already, end| Search { already, end };
    for _ in 0..MAX_LOOKUPS {
        let Some(candidate) = candidates.next(at, horizon, &mut already) else {
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
        let count = || candidates.bitmap.count(candidate, region_end);
        at = if info.order >= u32::from(Order::SUPERPAGE.get()) {
            already += count();
            region_end
        } else if candidate.is_aligned(Order::SUPERPAGE) && count() == Order::SUPERPAGE.pages() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        /// Word by word as page by page, whole regions too.
        #[test]
        fn candidates_are_the_pages_that_are_free_and_not_known(
            free in prop::collection::vec(prop_oneof![Just(u64::MAX), any::<u64>(), Just(0)], 24),
            whole in prop::collection::vec(any::<bool>(), 3),
            zero in prop::collection::vec(prop_oneof![Just(u64::MAX), any::<u64>(), Just(0)], 0..24),
            from in 0_u64..1600, to in 0_u64..1600,
        ) {
            let whole_words = |at: usize| whole[at / 8].then_some(u64::MAX);
            let words: Vec<AtomicU64> =
                (0..).zip(&free).map(|(at, word)| whole_words(at).unwrap_or(*word).into()).collect();
            let zero: Vec<AtomicU64> = zero.into_iter().map(AtomicU64::new).collect();
            let candidates = Candidates { bitmap: Bitmap::new(&words), zero: Bitmap::new(&zero) };
            let Candidates { bitmap, zero } = candidates;
            let region = |gfn: u64| {
                let (first, end) = (Gfn::new(gfn), Gfn::new(gfn + 512));
                gfn % 512 == 0 && gfn + 64 <= to && bitmap.count(first, end) == 512
            };
            let looked_at = |gfn: &u64| {
                let gfn = Gfn::new(*gfn);
                bitmap.get(gfn) && !zero.get(gfn) || region(gfn.get())
            };
            let found = (from..to).find(looked_at);
            let passed = (from..found.unwrap_or(to.max(from))).filter(|gfn| bitmap.get(Gfn::new(*gfn)));
            let expected = (found.map(Gfn::new), passed.count() as u64);
            let mut known = 0;
            let next = candidates.next(Gfn::new(from), Gfn::new(to), &mut known);
            prop_assert_eq!((next, known), expected);
        }

        /// The pages of a block that one word has, no more than asked for.
        #[test]
        fn the_others_of_a_block_are_not_known_to_be_on_zero_frames(
            zero in prop_oneof![Just(0), any::<u64>(), Just(u64::MAX)],
            from in 0_u64..64, pages in 0_u64..=64, most in 0_u64..=65,
        ) {
            let start = 6400;
            let word = CandidateWord { start: Gfn::new(start), candidates: 0, zero };
            let to = (from + pages).min(64);
            let all: Vec<u64> = (from..to).filter(|bit| zero >> bit & 1 == 0).collect();
            let kept: Vec<u64> = all.iter().copied().take(usize::try_from(most).unwrap_or(0)).collect();
            let end = all.get(kept.len()).map_or(start + to, |bit| start + bit);
            let expected = kept.iter().fold(0, |mask, bit| mask | 1_u64 << bit);
            let found = word.others(Gfn::new(start + from), Gfn::new(start + to), most);
            prop_assert_eq!(found, (expected, Gfn::new(end)));
        }
    }
}
