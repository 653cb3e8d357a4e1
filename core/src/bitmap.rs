//! The free bitmap: one bit a frame, set where the last scan saw a free block.
//!
//! It is a hint. A scan writes it while the guest runs and others read it; every page is asked for again before it
//! changes hands. So plain relaxed atomics suffice, and a reader may see a scan half done. There is one writer at a time
//! (the domain's Lacuna lock), so a change is a load and a store, without the bus lock of a read-modify-write.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::Gfn;

/// A borrowed bitmap. Bit `gfn % 64` of word `gfn / 64` stands for a frame; set means free.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap<'w> {
    words: &'w [AtomicU64],
}

/// Bits `from..to` of one word, `from < to <= 64`.
const fn span(from: u64, to: u64) -> u64 {
    let upper = if to >= 64 { u64::MAX } else { (1 << to) - 1 };
    upper & !((1 << from) - 1)
}

impl<'w> Bitmap<'w> {
    /// A bitmap of `words.len() * 64` frames.
    pub const fn new(words: &'w [AtomicU64]) -> Self {
        Self { words }
    }

    /// Frames covered.
    pub const fn gfns(&self) -> u64 {
        self.words.len() as u64 * 64
    }

    /// Word `index`, that is frames `64 * index` to `64 * index + 63`; 0 past the end.
    pub fn word(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.words.get(index))
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Whether the frame was free when last scanned.
    pub fn get(&self, gfn: Gfn) -> bool {
        self.word(gfn.get() / 64) >> (gfn.get() % 64) & 1 == 1
    }

    /// Replaces the bits of `mask` in word `index` by those of `bits`. A word past the end is left out.
    #[inline]
    pub(crate) fn replace(&self, index: u64, mask: u64, bits: u64) {
        if let Some(word) = usize::try_from(index)
            .ok()
            .and_then(|index| self.words.get(index))
        {
            let kept = if mask == u64::MAX {
                0
            } else {
                word.load(Ordering::Relaxed) & !mask
            };
            word.store(kept | bits & mask, Ordering::Relaxed);
        }
    }

    /// Marks `from..to` free. Frames past the end are left out.
    pub fn set_range(&self, from: Gfn, to: Gfn) {
        self.each_word(from, to, |word, bits| {
            word.store(word.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
        });
    }

    /// Marks `from..to` not free. Frames past the end are left out.
    pub fn clear_range(&self, from: Gfn, to: Gfn) {
        self.each_word(from, to, |word, bits| {
            word.store(word.load(Ordering::Relaxed) & !bits, Ordering::Relaxed);
        });
    }

    fn each_word(&self, from: Gfn, to: Gfn, apply: impl Fn(&AtomicU64, u64)) {
        let end = to.get().min(self.gfns());
        let mut at = from.get();
        while at < end {
            let stop = (at | 63).saturating_add(1).min(end);
            let Some(word) = usize::try_from(at / 64)
                .ok()
                .and_then(|index| self.words.get(index))
            else {
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
        let end = to.get().min(self.gfns());
        let mut at = from.get();
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
        let end = to.get().min(self.gfns());
        let mut at = from.get();
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
    }
}
