//! The hash that each page had in the last round: who changes is not worth a comparison.
//!
//! A page that is written between two rounds is likely to be written again, and sharing it would cost a fault and a copy.
//! Four bytes a frame; two pages that differ have the same number once in four thousand million times, and cost a
//! comparison then.

use core::sync::atomic::{AtomicU64, Ordering};

use super::Digest;
use crate::Gfn;

/// A borrowed table: the half `gfn % 2` of word `gfn / 2` is that frame's; 0 for one that was not met yet. There is one
/// writer (the domain's Lacuna lock).
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'w> {
    words: &'w [AtomicU64],
}

impl<'w> Rounds<'w> {
    /// A table of `words.len() * 2` frames.
    pub const fn new(words: &'w [AtomicU64]) -> Self {
        Self { words }
    }

    /// Whether the page had this hash in the last round; it has from now on. A frame past the end never does.
    pub fn unchanged(&self, gfn: Gfn, digest: Digest) -> bool {
        // The middle of the hash: the index takes its bucket from the one end and its tag from the other.
        let number = (digest.get() >> 20 & 0xffff_ffff).max(1);
        let shift = gfn.get() % 2 * 32;
        let Some(word) = usize::try_from(gfn.get() / 2)
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
        let rounds = Rounds::new(&words);
        let digest = |gfn: u64, round: u64| Digest::of_value((gfn * 100 + round + 1) << 20);
        for round in [0, 1] {
            for gfn in 0..4 {
                assert!(!rounds.unchanged(Gfn::new(gfn), digest(gfn, round)));
            }
            for gfn in 0..4 {
                assert!(rounds.unchanged(Gfn::new(gfn), digest(gfn, round)));
            }
        }
        assert!(!rounds.unchanged(Gfn::new(4), digest(4, 0)));
        assert!(!rounds.unchanged(Gfn::new(4), digest(4, 0)));
    }

    #[test]
    fn a_hash_of_zero_is_met_for_the_first_time_too() {
        let words = [AtomicU64::new(0)];
        let rounds = Rounds::new(&words);
        assert!(!rounds.unchanged(Gfn::new(0), Digest::of_value(0)));
        assert!(rounds.unchanged(Gfn::new(0), Digest::of_value(0)));
    }
}
