//! The hash that each page had in the last round: who changes is not worth a comparison.
//!
//! A page that is written between two rounds is likely to be written again, and sharing it would cost a fault
//! and a copy. Four bytes a frame; two pages that differ have the same number once in four thousand million
//! times, and cost a comparison then.

use core::sync::atomic::{AtomicU64, Ordering};

use super::Digest;
use crate::Gfn;

/// A borrowed table, or a part of one: the half `gfn % 2` of word `gfn / 2` is that frame's; 0 for one that
/// was not met yet. There is one writer (the domain's Lacuna lock).
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'w> {
    /// Number of the first word.
    first: u64,
    words: &'w [AtomicU64],
}

impl<'w> Rounds<'w> {
    /// The words of a table from number `first` on, two frames in each.
    pub const fn part(first: u64, words: &'w [AtomicU64]) -> Self {
        Self { first, words }
    }

    /// Remembers the hash of the page for the next round. Returns whether it had the same in the last one; a
    /// frame outside the part never had.
    pub fn remember(&self, gfn: Gfn, digest: Digest) -> bool {
        // The middle of the hash: the index takes its bucket from the one end and its tag from the other.
        let number = (digest.get() >> 20 & 0xffff_ffff).max(1);
        let shift = gfn.get() % 2 * 32;
        let Some(word) = usize::try_from((gfn.get() / 2).wrapping_sub(self.first))
            .ok()
            .and_then(|at| self.words.get(at))
        else {
            return false;
        };
        let found = word.load(Ordering::Relaxed);
        if found >> shift & 0xffff_ffff == number {
            return true;
        }
        word.store(
            found & !(0xffff_ffff << shift) | number << shift,
            Ordering::Relaxed,
        );
        false
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
                assert!(!rounds.remember(Gfn::new(gfn), digest(gfn, round)));
            }
            for gfn in 100..104 {
                assert!(rounds.remember(Gfn::new(gfn), digest(gfn, round)));
            }
        }
        for gfn in [0, 99, 104] {
            assert!(!rounds.remember(Gfn::new(gfn), digest(gfn, 0)));
            assert!(!rounds.remember(Gfn::new(gfn), digest(gfn, 0)));
        }
    }

    #[test]
    fn a_hash_of_zero_is_met_for_the_first_time_too() {
        let words = [AtomicU64::new(0)];
        let rounds = Rounds::part(0, &words);
        assert!(!rounds.remember(Gfn::new(0), Digest::of_value(0)));
        assert!(rounds.remember(Gfn::new(0), Digest::of_value(0)));
    }
}
