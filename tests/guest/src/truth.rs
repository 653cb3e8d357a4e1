//! The memory in which a guest keeps its own account of which pages are free, laid out so that dom0 can read
//! it out of the paused guest at any instant.
//!
//! The account is `/proc/kpageflags`, bit 10 (`KPF_BUDDY` in `include/uapi/linux/kernel-page-flags.h`). Since
//! 4.10 or earlier `stable_page_flags()` in `fs/proc/page.c` sets it for every page of a free block, not only
//! for its head: a page with no references for which `is_free_buddy_page()` holds counts as well (read in 6.1
//! and 6.12). So one bit per page is the whole truth, and block orders need not be guessed; `/proc/buddyinfo`
//! gives the same total independently.
//!
//! Captures alternate between two slots. A slot's sequence number is odd while it is being written, so at
//! least one slot is whole at any instant after the first capture. All numbers are 64-bit words in the
//! guest's byte order.

/// Bytes in a page, in every guest the lab has.
pub const PAGE_SIZE: usize = 4096;
/// Words in a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / size_of::<u64>();
/// Marks the first page: "LACTRUTH" in little-endian order.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LACTRUTH");

/// First page: word that holds [`MAGIC`].
pub const WORD_MAGIC: usize = 0;
/// First page: word that holds the number of pages accounted for, from page frame 0.
pub const WORD_PAGES: usize = 1;
/// First page: word at which each slot's own words begin.
pub const WORD_SLOT: [usize; 2] = [8, 16];

/// In a slot: the sequence number, odd while the slot is being written; the larger even one is the later
/// capture.
pub const SLOT_SEQUENCE: usize = 0;
/// In a slot: how many pages are free in it.
pub const SLOT_FREE: usize = 1;
/// In a slot: how many captures in a row, this one included, were the same.
pub const SLOT_SAME: usize = 2;

/// Returns how many pages one slot's bitmap takes for a guest of `pages` pages.
pub const fn bitmap_pages(pages: usize) -> usize {
    pages.div_ceil(PAGE_SIZE * 8)
}

/// Returns how many pages the whole account takes: the first page and two bitmaps.
pub const fn total_pages(pages: usize) -> usize {
    1 + 2 * bitmap_pages(pages)
}

/// A complete capture, as dom0 takes it out of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// One bit per page frame, lowest first.
    words: Vec<u64>,
    /// Pages accounted for.
    pub pages: u64,
    /// Free pages, as counted in the guest while capturing.
    pub free: u64,
    /// How many captures in a row were the same as this one: a measure of how still the guest was.
    pub same: u64,
}

/// Why the memory does not hold a usable capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It does not begin with the magic number.
    #[error("the account begins with {0:#x}, not with its magic number")]
    Magic(u64),
    /// It is shorter than its own size.
    #[error("the account of {pages} pages takes {needed} words, and {seen} are there")]
    Short {
        /// Guest pages accounted for.
        pages: u64,
        /// Words needed.
        needed: usize,
        /// Words given.
        seen: usize,
    },
    /// Neither slot is complete: the first capture is not over.
    #[error("no capture is complete: sequence numbers {0} and {1}")]
    Incomplete(u64, u64),
    /// The bits do not add up to the slot's own count.
    #[error("the capture has {bits} bits set and says {count}")]
    Count {
        /// Bits set.
        bits: u64,
        /// Count noted.
        count: u64,
    },
}

impl Capture {
    /// Reads the latest complete capture out of the account's memory, given as words.
    pub fn latest(words: &[u64]) -> Result<Self, Unusable> {
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        if word(WORD_MAGIC) != MAGIC {
            return Err(Unusable::Magic(word(WORD_MAGIC)));
        }
        let pages = word(WORD_PAGES);
        let short = |needed| Unusable::Short {
            pages,
            needed,
            seen: words.len(),
        };
        let count = usize::try_from(pages).map_err(|_| short(usize::MAX))?;
        let needed = total_pages(count).saturating_mul(PAGE_WORDS);
        if words.len() < needed {
            return Err(short(needed));
        }
        let sequences = WORD_SLOT.map(|slot| word(slot + SLOT_SEQUENCE));
        let whole = |sequence: u64| sequence != 0 && sequence.is_multiple_of(2);
        let chosen = match (whole(sequences[0]), whole(sequences[1])) {
            (true, true) => usize::from(sequences[1] > sequences[0]),
            (true, false) => 0,
            (false, true) => 1,
            (false, false) => return Err(Unusable::Incomplete(sequences[0], sequences[1])),
        };
        let start = (1 + chosen * bitmap_pages(count)) * PAGE_WORDS;
        let bits = words[start..start + count.div_ceil(64)].to_vec();
        let slot = WORD_SLOT[chosen];
        let capture = Self {
            words: bits,
            pages,
            free: word(slot + SLOT_FREE),
            same: word(slot + SLOT_SAME),
        };
        let bits = capture
            .words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum();
        if bits == capture.free {
            Ok(capture)
        } else {
            Err(Unusable::Count {
                bits,
                count: capture.free,
            })
        }
    }

    /// Returns whether the page frame `gfn` is free; frames beyond the account are not.
    pub fn is_free(&self, gfn: u64) -> bool {
        let word = usize::try_from(gfn / 64)
            .ok()
            .and_then(|at| self.words.get(at))
            .copied()
            .unwrap_or(0);
        gfn < self.pages && word >> (gfn % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn account(sequences: [u64; 2]) -> Vec<u64> {
        let pages = 100;
        let mut words = vec![0; total_pages(pages) * PAGE_WORDS];
        words[WORD_MAGIC] = MAGIC;
        words[WORD_PAGES] = pages as u64;
        for (index, slot) in WORD_SLOT.into_iter().enumerate() {
            words[slot + SLOT_SEQUENCE] = sequences[index];
            words[slot + SLOT_FREE] = 1 + index as u64;
            words[(1 + index) * PAGE_WORDS] = [0b1, 0b101][index];
        }
        words
    }

    #[test]
    fn the_later_whole_slot_is_taken() {
        let capture = Capture::latest(&account([2, 4])).unwrap();
        assert_eq!(
            (
                capture.free,
                capture.is_free(0),
                capture.is_free(1),
                capture.is_free(2)
            ),
            (2, true, false, true)
        );
        assert_eq!(Capture::latest(&account([2, 5])).unwrap().free, 1);
    }

    #[test]
    fn half_written_or_short_accounts_are_refused() {
        assert_eq!(Capture::latest(&account([1, 0])), Err(Unusable::Incomplete(1, 0)));
        assert!(matches!(
            Capture::latest(&account([2, 4])[..600]),
            Err(Unusable::Short { .. })
        ));
        let mut lies = account([2, 4]);
        lies[WORD_SLOT[1] + SLOT_FREE] = 9;
        assert_eq!(Capture::latest(&lies), Err(Unusable::Count { bits: 2, count: 9 }));
    }
}
