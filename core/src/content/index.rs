//! Where pages with a given hash were last seen: a table of fixed size.
//!
//! Buckets of eight places, a cache line each: nothing is ever moved or rehashed, so an insertion costs the
//! same always. That is why it is not one of the growing tables (`docs/dependencies.md`). A page of 64
//! buckets gets its memory when the first entry goes there ([`crate::Tables`]).
//!
//! Every entry is one word that is read and written whole, and everything it says is checked again before it
//! is acted on. So the members of a trust group use one index without a lock: an entry lost to a race costs a
//! later look.
//!
//! # Eviction
//!
//! Each entry has a worth, 0 to 15, which grows each time a page was shared through it. A new page takes an
//! empty place, else one without worth; where there is none, every entry of the bucket loses one and the
//! newcomer has to come again in the next round. Entries that pay outlive any number of pages met once.
//!
//! Of several without worth, one of the first half of the bucket gives way, another for each newcomer's frame
//! number. Were it always the same, two contents that have the same full bucket would put each other out page
//! by page, and no page of either would be found. The second half stays: pages are looked at in a circle, and
//! where there are more of them than places, the last that came is the one that is needed last.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Digest, DomainId, DomainPage};
use crate::Gfn;

/// Places of a bucket: as many words as a cache line has.
const WAYS: usize = 8;

/// Places of a bucket that newcomers take in turn.
const CHANGING: usize = WAYS / 2;

/// Layout of an entry: frame number (bits 0 to 31), domain (32 to 46; Xen has domains up to 0x7fff,
/// `xen/include/public/xen.h`), in use (47), tag (48 to 59), worth (60 to 63).
const DOMAIN_SHIFT: u32 = 32;
const USED: u64 = 1 << 47;
const TAG_SHIFT: u32 = 48;
const TAG_MASK: u64 = 0xfff;
const WORTH_SHIFT: u32 = 60;
const WORTH: u64 = 1 << WORTH_SHIFT;
const MAX_WORTH: u64 = 15;

/// A borrowed table, or a part of one. See the module's header.
#[derive(Clone, Copy, Debug)]
pub struct Index<'w> {
    /// Words of the whole table.
    total: u64,
    /// Number of the first word of `words`.
    first: u64,
    words: &'w [AtomicU64],
}

/// An entry as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the page was.
    pub place: DomainPage,
    slot: usize,
    word: u64,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It took an empty place.
    Free,
    /// It took the place of an entry without worth.
    Replaced,
    /// Pages were shared through all entries of its bucket of late.
    Refused,
}

const fn tag(digest: Digest) -> u64 {
    digest.get() >> 52 & TAG_MASK
}

const fn word(digest: Digest, place: DomainPage) -> u64 {
    place.gfn.get() & 0xffff_ffff
        | (place.domain.get() as u64 & 0x7fff) << DOMAIN_SHIFT
        | USED
        | tag(digest) << TAG_SHIFT
}

/// The first place of a full bucket that a page at `place` would take. Multiplying by the golden ratio
/// spreads frame numbers that lie at even distances, as copies do.
const fn first_to_go(place: DomainPage) -> usize {
    (place.gfn.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % CHANGING
}

impl<'w> Index<'w> {
    /// A table in `words`; what does not fill a bucket is left over.
    pub const fn new(words: &'w [AtomicU64]) -> Self {
        Self::part(words.len() as u64, 0, words)
    }

    /// The words of a table of `total` from number `first` on, whole buckets.
    pub const fn part(total: u64, first: u64, words: &'w [AtomicU64]) -> Self {
        Self { total, first, words }
    }

    /// The first word of the bucket that `digest` has in a table of `total` words.
    pub const fn bucket_at(total: u64, digest: Digest) -> u64 {
        let buckets = total / WAYS as u64;
        // The low half, scaled: the tag is of the high half.
        ((digest.get() & 0xffff_ffff).wrapping_mul(buckets) >> 32).wrapping_mul(WAYS as u64)
    }

    /// The bucket of `digest`: its first slot and its words. Empty where they are not in this part.
    fn bucket(&self, digest: Digest) -> (usize, &'w [AtomicU64]) {
        let first = Self::bucket_at(self.total, digest).wrapping_sub(self.first);
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        (
            first,
            self.words.get(first..first.saturating_add(WAYS)).unwrap_or(&[]),
        )
    }

    /// Pages that may have this hash.
    pub fn candidates(&self, digest: Digest) -> impl Iterator<Item = Entry> + use<'w> {
        let (first, words) = self.bucket(digest);
        let tag = tag(digest);
        (first..).zip(words).filter_map(move |(slot, word)| {
            let word = word.load(Ordering::Relaxed);
            (word & USED != 0 && word >> TAG_SHIFT & TAG_MASK == tag).then(|| Entry {
                place: DomainPage {
                    domain: DomainId::new((word >> DOMAIN_SHIFT & 0x7fff) as u16),
                    gfn: Gfn::new(word & 0xffff_ffff),
                },
                slot,
                word,
            })
        })
    }

    /// Enters a page. One whose frame number or domain does not fit an entry is never found again by it.
    pub fn insert(&self, digest: Digest, place: DomainPage) -> Inserted {
        let (_, words) = self.bucket(digest);
        let is_empty = |slot: &&AtomicU64| slot.load(Ordering::Relaxed) & USED == 0;
        if let Some(slot) = words.iter().find(is_empty) {
            slot.store(word(digest, place), Ordering::Relaxed);
            return Inserted::Free;
        }
        let (before, from) = words.split_at(first_to_go(place).min(words.len()));
        let is_worthless = |slot: &&AtomicU64| slot.load(Ordering::Relaxed) >> WORTH_SHIFT == 0;
        if let Some(slot) = from.iter().chain(before).find(is_worthless) {
            slot.store(word(digest, place), Ordering::Relaxed);
            return Inserted::Replaced;
        }
        for slot in words {
            let found = slot.load(Ordering::Relaxed);
            slot.store(found.saturating_sub(WORTH), Ordering::Relaxed);
        }
        Inserted::Refused
    }

    /// Raises the worth of the entry: a page was shared through it.
    pub fn credit(&self, entry: &Entry) {
        if entry.word >> WORTH_SHIFT < MAX_WORTH {
            self.change(entry, entry.word + WORTH);
        }
    }

    /// Puts another page in the entry's place, without worth.
    pub fn replace(&self, entry: &Entry, digest: Digest, place: DomainPage) {
        self.change(entry, word(digest, place));
    }

    /// Writes an entry, unless another member of the group has by now.
    fn change(&self, entry: &Entry, to: u64) {
        if let Some(slot) = self.words.get(entry.slot) {
            if slot.load(Ordering::Relaxed) == entry.word {
                slot.store(to, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    fn table(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    fn at(gfn: u64) -> DomainPage {
        DomainPage {
            domain: DomainId::new(7),
            gfn: Gfn::new(gfn),
        }
    }

    /// Spread over all 64 bits, as a hash is.
    fn digest(value: u64) -> Digest {
        Digest::of_value(value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17))
    }

    fn find(index: &Index<'_>, value: u64) -> Option<Entry> {
        index
            .candidates(digest(value))
            .find(|entry| entry.place == at(value))
    }

    #[test]
    fn a_page_is_found_where_it_was_entered() {
        let words = table(64);
        let index = Index::new(&words);
        for value in 0..8 {
            assert_ne!(index.insert(digest(value), at(value)), Inserted::Refused);
        }
        for value in 0..8 {
            assert!(find(&index, value).is_some(), "{value}");
        }
        assert!(find(&index, 8).is_none());
    }

    #[test]
    fn every_bucket_of_a_table_of_any_size_is_used() {
        for words in [8, 24, 100, 1024] {
            let words = table(words);
            let index = Index::new(&words);
            for value in 0..20_000 {
                index.insert(digest(value), at(value));
            }
            let used = words.iter().filter(|word| word.load(Ordering::Relaxed) != 0);
            assert_eq!(used.count(), words.len() / WAYS * WAYS);
        }
    }

    /// A table of parts, each with memory of its own, is the table that it would be in one piece.
    #[test]
    fn parts_make_up_the_whole_table() {
        let (whole, parts) = (table(1024), [table(512), table(512)]);
        let at_once = Index::new(&whole);
        for value in 0..3000 {
            let digest = digest(value);
            let first = Index::bucket_at(1024, digest) / 512 * 512;
            let part = Index::part(1024, first, &parts[usize::from(first > 0)]);
            let other = Index::part(1024, 512 - first, &parts[usize::from(first == 0)]);
            assert_eq!(other.candidates(digest).count(), 0);
            assert_eq!(other.insert(digest, at(value)), Inserted::Refused);
            assert_eq!(part.insert(digest, at(value)), at_once.insert(digest, at(value)));
        }
        let load = |words: &[AtomicU64]| -> Vec<u64> {
            words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
        };
        assert_eq!(load(&whole), [load(&parts[0]), load(&parts[1])].concat());
    }

    #[test]
    fn an_entry_that_pages_share_through_outlives_pages_met_once() {
        let words = table(1024);
        let index = Index::new(&words);
        index.insert(digest(1), at(1));
        index.credit(&find(&index, 1).unwrap());
        for value in 2..200_000_u64 {
            index.insert(digest(value), at(value));
            // A page is shared through it now and then: once in about a thousand pages.
            if value % 1024 == 0 {
                let entry = find(&index, 1).expect("an entry that pages share through was evicted");
                index.credit(&entry);
            }
        }
        assert!(find(&index, 1).is_some());
    }

    #[test]
    fn an_entry_that_one_page_shared_through_gives_way_in_the_end() {
        let words = table(8);
        let index = Index::new(&words);
        for value in 0..8 {
            index.insert(digest(value), at(value));
            let entry = find(&index, value).unwrap();
            index.credit(&entry);
        }
        assert_eq!(index.insert(digest(100), at(100)), Inserted::Refused);
        assert_eq!(index.insert(digest(100), at(100)), Inserted::Replaced);
        assert!(find(&index, 100).is_some());
    }

    /// Of 32 contents two have the same one of 8,192 buckets once in about sixteen times: 496 pairs.
    #[test]
    fn contents_that_meet_in_a_full_bucket_do_not_put_each_other_out() {
        for kinds in 2..=3_u64 {
            let words = table(8);
            let index = Index::new(&words);
            for value in 100..108 {
                index.insert(digest(value), at(value));
            }
            let not_found = (1000..1000 + kinds * 128).filter(|page| {
                let content = digest(page % kinds);
                let found = index.candidates(content).next().is_some();
                if !found {
                    index.insert(content, at(*page));
                }
                !found
            });
            let not_found = not_found.count() as u64;
            assert!(not_found >= kinds, "{not_found}");
            assert!(not_found < kinds * 12, "{not_found} of {kinds} times 128");
        }
    }

    #[test]
    fn an_empty_table_refuses_and_finds_nothing() {
        let index = Index::new(&[]);
        assert_eq!(index.insert(digest(1), at(1)), Inserted::Refused);
        assert_eq!(index.candidates(digest(1)).count(), 0);
    }

    #[test]
    fn an_entry_that_another_member_has_changed_is_left_alone() {
        let words = table(8);
        let index = Index::new(&words);
        index.insert(digest(1), at(1));
        let stale = find(&index, 1).unwrap();
        index.replace(&stale, digest(2), at(2));
        index.replace(&stale, digest(3), at(3));
        index.credit(&stale);
        assert!(find(&index, 2).is_some());
        assert!(find(&index, 3).is_none());
    }

    proptest! {
        /// Whatever is found was entered under that hash.
        #[test]
        fn nothing_is_found_that_was_not_entered(values in prop::collection::vec(0_u64..500, 1..400)) {
            let words = table(128);
            let index = Index::new(&words);
            let mut entered: BTreeMap<u64, Digest> = BTreeMap::new();
            for value in values {
                index.insert(digest(value), at(value));
                entered.insert(value, digest(value));
                for entry in index.candidates(digest(value)) {
                    let found = entered.get(&entry.place.gfn.get()).copied();
                    prop_assert_eq!(found.map(tag), Some(tag(digest(value))));
                    prop_assert_eq!(entry.place.domain, DomainId::new(7));
                }
            }
        }
    }
}
