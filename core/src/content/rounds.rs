//! The hash that each page had in the last round: who changes is not worth a comparison.
//!
//! A page that is written between two rounds is likely to be written again, and sharing it would cost a fault
//! and a copy. Of a page that is met for the first time nothing is known yet. Where another page may have its
//! bytes it is marked, and looked at again at the end of the round.
//!
//! A page that stood still for rounds and is in the index needs no look: whoever comes to equal it finds it
//! there. It rests, the longer the longer it stood still, and is looked at in every eighth round at least.
//!
//! Four bytes a frame: 28 bits of the hash, for how many rounds it stood still (7 at most), and the mark. Two
//! pages that differ have the same number once in 268 million times, and cost a comparison then.

use core::sync::atomic::{AtomicU64, Ordering};

use super::Digest;
use crate::Gfn;

/// The mark in a frame's half of a word.
const MARK: u64 = 1 << 31;
/// The rounds for which the page stood still.
const AGE_SHIFT: u32 = 28;
const AGE: u64 = 7 << AGE_SHIFT;
const NUMBER: u64 = (1 << AGE_SHIFT) - 1;
const HALF: u64 = 0xffff_ffff;

/// A borrowed table, or a part of one: the half `gfn % 2` of word `gfn / 2` is that frame's; 0 for one that
/// was not met yet. There is one writer (the domain's Lacuna lock).
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'w> {
    /// Number of the first word.
    first: u64,
    words: &'w [AtomicU64],
}

/// What a page was when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The same.
    Same,
    /// Another.
    Another,
    /// Not looked at yet.
    Unknown,
}

impl<'w> Rounds<'w> {
    /// The words of a table from number `first` on, two frames in each.
    pub const fn part(first: u64, words: &'w [AtomicU64]) -> Self {
        Self { first, words }
    }

    /// The word of `gfn`, and the place of its half; `None` for a frame outside the part.
    fn word(&self, gfn: Gfn) -> Option<(&'w AtomicU64, u64)> {
        let at = usize::try_from((gfn.get() / 2).wrapping_sub(self.first)).ok()?;
        Some((self.words.get(at)?, gfn.get() % 2 * 32))
    }

    /// Enters the page's hash, unmarked, and says what it was before. A frame outside the part counts as
    /// another every time.
    pub fn meet(&self, gfn: Gfn, digest: Digest) -> Before {
        // The middle of the hash: the index takes its bucket from the one end and its tag from the other.
        let number = (digest.get() >> 20 & NUMBER).max(1);
        let Some((word, shift)) = self.word(gfn) else {
            return Before::Another;
        };
        let found = word.load(Ordering::Relaxed);
        let half = found >> shift & HALF;
        let (before, to) = match half & NUMBER {
            0 => (Before::Unknown, number),
            same if same == number => (Before::Same, half & !MARK),
            _ => (Before::Another, number),
        };
        if half != to {
            word.store(found & !(HALF << shift) | to << shift, Ordering::Relaxed);
        }
        before
    }

    /// A page that was met stood still for another round, and is in the index.
    pub fn stood_still(&self, gfn: Gfn) {
        if let Some((word, shift)) = self.word(gfn) {
            let found = word.load(Ordering::Relaxed);
            if found >> shift & AGE != AGE {
                word.store(found.wrapping_add((1 << AGE_SHIFT) << shift), Ordering::Relaxed);
            }
        }
    }

    /// Whether a page that stood still for rounds is left alone in round `number`: every other time after two
    /// rounds, three of four times after four, and seven of eight after six. Neighbours have their turns in
    /// different rounds.
    pub fn rests(&self, gfn: Gfn, number: u64) -> bool {
        let Some((word, shift)) = self.word(gfn) else {
            return false;
        };
        let half = word.load(Ordering::Relaxed) >> shift & HALF;
        let every = 1 << (((half & AGE) >> AGE_SHIFT) / 2);
        half & MARK == 0 && number.wrapping_add(gfn.get()) % every != 0
    }

    /// Marks a page that was met.
    pub fn mark(&self, gfn: Gfn) {
        if let Some((word, shift)) = self.word(gfn) {
            let found = word.load(Ordering::Relaxed);
            word.store(found | MARK << shift, Ordering::Relaxed);
        }
    }

    /// The first marked page of `from..end`, all of which lie in the part.
    pub fn next_marked(&self, from: Gfn, end: Gfn) -> Option<Gfn> {
        let mut at = from;
        while at < end {
            let (word, shift) = self.word(at)?;
            let found = word.load(Ordering::Relaxed) >> shift;
            if found & MARK != 0 {
                return Some(at);
            }
            at = at.saturating_add(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn neighbours_do_not_disturb_each_other() {
        let words: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
        let rounds = Rounds::part(50, &words);
        let digest = |gfn: u64, round: u64| Digest::of_value((gfn * 100 + round + 1) << 20);
        for round in [0, 1] {
            for gfn in 100..104 {
                let before = rounds.meet(Gfn::new(gfn), digest(gfn, round));
                let expected = if round == 0 {
                    Before::Unknown
                } else {
                    Before::Another
                };
                assert_eq!(before, expected, "{gfn}");
            }
            for gfn in 100..104 {
                assert_eq!(rounds.meet(Gfn::new(gfn), digest(gfn, round)), Before::Same);
            }
        }
        for gfn in [0, 99, 104] {
            for _ in 0..2 {
                assert_eq!(rounds.meet(Gfn::new(gfn), digest(gfn, 0)), Before::Another);
            }
        }
    }

    #[test]
    fn a_page_rests_the_longer_the_longer_it_stood_still() {
        let words: Vec<AtomicU64> = (0..1).map(|_| AtomicU64::new(0)).collect();
        let rounds = Rounds::part(0, &words);
        let (page, other) = (Gfn::new(1), Gfn::new(0));
        let digest = Digest::of_value(u64::MAX);
        let looks = |gfn: Gfn| (0..64).filter(|number| !rounds.rests(gfn, *number)).count();
        for gfn in [page, other] {
            rounds.meet(gfn, digest);
        }
        for expected in [64, 64, 32, 32, 16, 16, 8, 8, 8, 8] {
            assert_eq!(looks(page), expected);
            assert_eq!(rounds.meet(page, digest), Before::Same);
            rounds.stood_still(page);
        }
        assert_eq!(looks(other), 64, "a neighbour's");
        assert_eq!(looks(Gfn::new(2)), 64, "one outside the part");
        rounds.mark(page);
        assert_eq!(looks(page), 64, "a marked one");
        assert_eq!(rounds.meet(page, digest), Before::Same);
        assert_eq!(looks(page), 8);
        assert_eq!(rounds.meet(page, Digest::of_value(1 << 20)), Before::Another);
        assert_eq!(looks(page), 64, "one that has changed");
        assert_eq!(rounds.meet(other, digest), Before::Same);
    }

    #[test]
    fn a_hash_of_zero_is_met_for_the_first_time_too() {
        let words = [AtomicU64::new(0)];
        let rounds = Rounds::part(0, &words);
        assert_eq!(rounds.meet(Gfn::new(0), Digest::of_value(0)), Before::Unknown);
        assert_eq!(rounds.meet(Gfn::new(0), Digest::of_value(0)), Before::Same);
    }

    #[test]
    fn a_mark_lasts_until_the_page_is_met_again_and_is_no_part_of_its_hash() {
        let words: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
        let rounds = Rounds::part(50, &words);
        let all = || rounds.next_marked(Gfn::new(100), Gfn::new(104));
        let digest = Digest::of_value(u64::MAX);
        for gfn in 100..104 {
            rounds.meet(Gfn::new(gfn), digest);
            assert_eq!(all(), None);
        }
        for gfn in [103, 101] {
            rounds.mark(Gfn::new(gfn));
            assert_eq!(all(), Some(Gfn::new(gfn)));
        }
        assert_eq!(
            rounds.next_marked(Gfn::new(102), Gfn::new(104)),
            Some(Gfn::new(103))
        );
        assert_eq!(rounds.next_marked(Gfn::new(102), Gfn::new(103)), None);
        assert_eq!(rounds.meet(Gfn::new(101), digest), Before::Same);
        assert_eq!(
            rounds.meet(Gfn::new(103), Digest::of_value(1 << 20)),
            Before::Another
        );
        assert_eq!(all(), None);
        rounds.mark(Gfn::new(99));
        rounds.mark(Gfn::new(104));
        assert_eq!(rounds.next_marked(Gfn::new(104), Gfn::new(110)), None);
    }
}
