//! The free bitmap: one bit a frame, set where the last scan saw a free block.
//!
//! It is a hint. A scan writes it while the guest runs and others read it; every page is asked for again
//! before it changes hands. So plain relaxed atomics suffice, and a reader may see a scan half done. There is
//! one writer at a time (the domain's Lacuna lock), so a change is a load and a store, without the bus lock
//! of a read-modify-write.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::Gfn;

/// A borrowed bitmap, or a part of one. Bit `gfn % 64` of word `gfn / 64` stands for a frame; set means free.
/// Frames outside the part read as not free, and are left out when bits are written.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap<'w> {
    /// Number of the first word.
    first: u64,
    /// One past the last word that the part stands for.
    end: u64,
    /// The words from `first` on; none where no memory is kept for them, and all bits are 0.
    words: &'w [AtomicU64],
}

/// Bits `from..to` of one word, `from <= to`; past 64 there are none.
pub(crate) const fn span(from: u64, to: u64) -> u64 {
    let upper = if to >= 64 { u64::MAX } else { (1 << to) - 1 };
    upper & !((1 << from) - 1)
}

impl<'w> Bitmap<'w> {
    /// A bitmap of the first `words.len() * 64` frames.
    pub const fn new(words: &'w [AtomicU64]) -> Self {
        Self::part(0, words.len() as u64, words)
    }

    /// The words `first..end` of a bitmap; with no `words`, a part for which no memory is kept.
    pub const fn part(first: u64, end: u64, words: &'w [AtomicU64]) -> Self {
        Self { first, end, words }
    }

    /// One past the last frame covered.
    pub const fn gfns(&self) -> u64 {
        self.end.saturating_mul(64)
    }

    /// Whether no memory is kept for the frames covered, so that none can be marked free.
    pub const fn is_absent(&self) -> bool {
        self.words.is_empty()
    }

    #[inline]
    fn at(&self, index: u64) -> Option<&'w AtomicU64> {
        self.words
            .get(usize::try_from(index.wrapping_sub(self.first)).ok()?)
    }

    /// Word `index`, that is frames `64 * index` to `64 * index + 63`; 0 outside the part.
    pub fn word(&self, index: u64) -> u64 {
        self.at(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Whether the frame was free when last scanned.
    pub fn get(&self, gfn: Gfn) -> bool {
        self.word(gfn.get() / 64) >> (gfn.get() % 64) & 1 == 1
    }

    /// Replaces the bits of `mask` in word `index` by those of `bits`. A word outside the part is left out.
    #[inline]
    pub(crate) fn replace(&self, index: u64, mask: u64, bits: u64) {
        if let Some(word) = self.at(index) {
            let kept = if mask == u64::MAX {
                0
            } else {
                word.load(Ordering::Relaxed) & !mask
            };
            word.store(kept | bits & mask, Ordering::Relaxed);
        }
    }

    /// The frames of `from..to` for which there are bits.
    fn clip(&self, from: Gfn, to: Gfn) -> (u64, u64) {
        let end = self
            .first
            .saturating_add(self.words.len() as u64)
            .saturating_mul(64);
        (from.get().max(self.first.saturating_mul(64)), to.get().min(end))
    }

    /// Marks `from..to` free. Frames outside the part are left out.
    pub fn set_range(&self, from: Gfn, to: Gfn) {
        self.each_word(from, to, |word, bits| {
            word.store(word.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
        });
    }

    /// Marks `from..to` not free. Frames outside the part are left out.
    pub fn clear_range(&self, from: Gfn, to: Gfn) {
        self.each_word(from, to, |word, bits| {
            word.store(word.load(Ordering::Relaxed) & !bits, Ordering::Relaxed);
        });
    }

    fn each_word(&self, from: Gfn, to: Gfn, apply: impl Fn(&AtomicU64, u64)) {
        let (mut at, end) = self.clip(from, to);
        while at < end {
            let stop = (at | 63).saturating_add(1).min(end);
            let Some(word) = self.at(at / 64) else {
                return;
            };
            let from_bit = at % 64;
            let bits = span(from_bit, from_bit + (stop - at));
            apply(word, bits);
            at = stop;
        }
    }

    /// The first free frame in `from..to`.
    pub fn next_set(&self, from: Gfn, to: Gfn) -> Option<Gfn> {
        let (mut at, end) = self.clip(from, to);
        while at < end {
            let word = self.word(at / 64) & span(at % 64, 64);
            if word != 0 {
                let found = (at & !63) + u64::from(word.trailing_zeros());
                return (found < end).then_some(Gfn::new(found));
            }
            at = (at | 63).saturating_add(1);
        }
        None
    }

    /// How many frames of `from..to` are marked free.
    pub fn count(&self, from: Gfn, to: Gfn) -> u64 {
        let (mut at, end) = self.clip(from, to);
        let mut total = 0;
        while at < end {
            let stop = (at | 63).saturating_add(1).min(end);
            total += u64::from((self.word(at / 64) & span(at % 64, at % 64 + (stop - at))).count_ones());
            at = stop;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn ranges_do_what_single_bits_would(
            ops in prop::collection::vec((0_u64..300, 0_u64..300, any::<bool>()), 0..20), from in 0_u64..300, to in 0_u64..300,
        ) {
            let words: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
            let bitmap = Bitmap::new(&words);
            let mut model = [false; 256];
            for (from, length, set) in ops {
                let to = from + length;
                for bit in from.min(256)..to.min(256) {
                    model[usize::try_from(bit).unwrap()] = set;
                }
                if set { bitmap.set_range(Gfn::new(from), Gfn::new(to)) } else { bitmap.clear_range(Gfn::new(from), Gfn::new(to)) }
            }
            for (at, expected) in model.iter().enumerate() {
                prop_assert_eq!(bitmap.get(Gfn::new(at as u64)), *expected);
            }
            let set = |at: &u64| model[usize::try_from(*at).unwrap()];
            let (first, last) = (Gfn::new(from), Gfn::new(to));
            prop_assert_eq!(bitmap.count(first, last), (from..to.min(256)).filter(set).count() as u64);
            prop_assert_eq!(bitmap.next_set(first, last), (from..to.min(256)).find(set).map(Gfn::new));
        }

        /// The same words as a part from `first` on: the same bits, `64 * first` frames further on, and none
        /// around them.
        #[test]
        fn a_part_is_the_same_bitmap_further_on(
            bits in prop::collection::vec(any::<u64>(), 1..4), first in 0_u64..(1 << 40), from in 0_u64..300, to in 0_u64..300,
        ) {
            let words: Vec<AtomicU64> = bits.iter().copied().map(AtomicU64::new).collect();
            let whole = Bitmap::new(&words);
            let part = Bitmap::part(first, first + words.len() as u64, &words);
            let shift = first * 64;
            let (here, there) = (Gfn::new(from), Gfn::new(to));
            let (moved, moved_to) = (here.saturating_add(shift), there.saturating_add(shift));
            prop_assert_eq!(part.count(moved, moved_to), whole.count(here, there));
            let expected = whole.next_set(here, there).map(|at| at.saturating_add(shift));
            prop_assert_eq!(part.next_set(moved, moved_to), expected);
            prop_assert_eq!(part.next_set(Gfn::new(0), moved_to), whole.next_set(Gfn::new(0), there).map(|at| at.saturating_add(shift)));
            prop_assert_eq!(part.get(moved), whole.get(here));
            prop_assert_eq!(part.count(Gfn::new(0), Gfn::new(u64::MAX)), whole.count(Gfn::new(0), Gfn::new(u64::MAX)));
            part.clear_range(Gfn::new(0), Gfn::new(u64::MAX));
            prop_assert_eq!(whole.count(Gfn::new(0), Gfn::new(u64::MAX)), 0);
        }
    }

    #[test]
    fn a_part_without_memory_has_no_free_frame_and_keeps_none() {
        let absent = Bitmap::part(512, 1 << 26, &[]);
        assert!(absent.is_absent() && !Bitmap::new(&[AtomicU64::new(0)]).is_absent());
        let (from, to) = (Gfn::new(0), Gfn::new(u64::MAX));
        absent.set_range(from, to);
        absent.replace(600, u64::MAX, u64::MAX);
        assert_eq!((absent.count(from, to), absent.next_set(from, to)), (0, None));
        assert_eq!(absent.gfns(), 1 << 32);
    }
}
