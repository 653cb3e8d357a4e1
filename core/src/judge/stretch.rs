//! What a scan remembers of a stretch of frames, and which of its descriptors the next one reads again.
//!
//! A scan of all memory keeps a [`Record`] for each stretch of [`STRETCH`] frames: where the descriptors lie
//! ([`Place`]), and what it found. The next scan, if it may leave things out, asks the hypervisor which frames
//! of the memory map were written since ([`Writes::take_written`]), and reads only those.
//!
//! The order is what makes it right: first the hypervisor is asked, which forgets what it tells, then
//! descriptors are read. What the guest writes in between, or later, is told the next time. So a record says
//! "found, and not changed up to the moment of asking", whatever the guest does. While a scan is at a stretch
//! there is no record of it in the table: if nobody goes on with the scan, the stretch is read as a whole the
//! next time.
//!
//! A free block is named by its head alone, and may reach past the frame of the memory map that has its head.
//! So what is read again begins and ends where neither a block of the last scan nor one of this scan can lie
//! across ([`closed_start`], [`closed_end`]).

use core::sync::atomic::{AtomicU64, Ordering};

use super::memory_map::Place;
use crate::{Bitmap, Gfn, MAX_WRITTEN, PAGE_SIZE, PART_WORDS, Part, Table, Tables, Writes};

/// Frames of a stretch: those that a page of the bitmap has bits for.
pub(crate) const STRETCH: u64 = PART_WORDS * 64;

/// Words of a record in [`Table::Stretches`], and the first of those with the changed frames.
const WORDS: u64 = 16;
const CHANGED: usize = 8;

/// What a scan found in one stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Where the descriptors lie.
    pub(crate) place: Place,
    /// Frames that were gone through, from the first of the stretch on.
    pub(crate) covered: u64,
    /// Of those, pages in free blocks, without a descriptor, and unknown ones.
    pub(crate) free: u64,
    pub(crate) no_descriptor: u64,
    pub(crate) unknown: u64,
    /// Frames of the memory map that were written to and not read again yet, a bit for each.
    pub(crate) changed: [u64; 8],
}

impl Record {
    /// Pages in use.
    pub(crate) const fn in_use(&self) -> u64 {
        let others = self.free + self.no_descriptor + self.unknown;
        self.covered.saturating_sub(others)
    }

    /// Whether nothing was written.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.changed == [0; 8]
    }

    /// The next pages from `at` on whose descriptors may have changed, all counted from the first page of the
    /// stretch: the first, and one past the last.
    pub(crate) fn next_changed(&self, at: u64, descriptor_bytes: u64) -> Option<(u64, u64)> {
        let page = PAGE_SIZE as u64;
        let frames = u64::from(MAX_WRITTEN);
        let is_changed = |frame: &u64| {
            let word = usize::try_from(frame / 64)
                .ok()
                .and_then(|word| self.changed.get(word));
            word.is_some_and(|word| word >> (frame % 64) & 1 == 1)
        };
        let frame = (at * descriptor_bytes / page..frames).find(is_changed)?;
        let end = (frame..frames).find(|frame| !is_changed(frame)).unwrap_or(frames);
        // A descriptor may lie in two frames.
        let first = (frame * page).checked_div(descriptor_bytes)?.max(at);
        let last = (end * page).div_ceil(descriptor_bytes).min(self.covered);
        (first < last).then_some((first, last))
    }

    /// The record of the stretch that begins at `first`, if the scan that left it was one under `tag`.
    pub(crate) fn load<T: Tables>(tables: &mut T, first: u64, tag: u64) -> Option<Self> {
        let at = first / STRETCH * WORDS;
        let part = tables.part(Table::Stretches, at);
        let words = words(&part, at)?;
        let word = |index: usize| words.get(index).map_or(0, |word| word.load(Ordering::Relaxed));
        if word(0) != tag {
            return None;
        }
        let counts = word(1);
        let count = |shift: u32| counts >> shift & 0xffff;
        let frames = word(4);
        Some(Self {
            place: Place {
                first: [word(2), word(3)],
                frames: [frames & u64::from(u32::MAX), frames >> 32]
                    .map(|frames| u32::try_from(frames).unwrap_or(0)),
            },
            covered: count(0),
            free: count(16),
            no_descriptor: count(32),
            unknown: count(48),
            changed: core::array::from_fn(|index| word(CHANGED + index)),
        })
    }

    /// Keeps it for the next scan. Without memory for it, the next one reads all of the stretch.
    pub(crate) fn save<T: Tables>(&self, tables: &mut T, first: u64, tag: u64) {
        let at = first / STRETCH * WORDS;
        let Ok(part) = tables.extend(Table::Stretches, at) else {
            return;
        };
        let Some(words) = words(&part, at) else {
            return;
        };
        // At most `STRETCH` each, which 16 bits hold.
        let counts = self.covered | self.free << 16 | self.no_descriptor << 32 | self.unknown << 48;
        let [one, other] = self.place.frames.map(u64::from);
        let head = [
            tag,
            counts,
            self.place.first[0],
            self.place.first[1],
            one | other << 32,
        ];
        for (word, value) in words.iter().zip(head) {
            word.store(value, Ordering::Relaxed);
        }
        for (word, value) in words.iter().skip(CHANGED).zip(self.changed) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Forgets what is kept of the stretch.
    pub(crate) fn forget<T: Tables>(tables: &mut T, first: u64) {
        let at = first / STRETCH * WORDS;
        let part = tables.part(Table::Stretches, at);
        if let Some(word) = words(&part, at).and_then(|words| words.first()) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The words of the record that begins with word `at`.
fn words<W: AsRef<[AtomicU64]>>(part: &Part<W>, at: u64) -> Option<&[AtomicU64]> {
    let first = usize::try_from(at.checked_sub(part.first)?).ok()?;
    let end = first.checked_add(usize::try_from(WORDS).ok()?)?;
    part.words.as_ref().get(first..end)
}

/// Asks which frames of the memory map at `place` were written, [`MAX_WRITTEN`] in all at most; `None` for
/// more.
pub(crate) fn take_written<W: Writes>(writes: &mut W, place: &Place) -> Option<[u64; 8]> {
    let [one, other] = place.frames;
    if one.checked_add(other)? > MAX_WRITTEN {
        return None;
    }
    let mut written = taken(writes, place.first[0], one);
    if other != 0 {
        let more = taken(writes, place.first[1], other);
        for (index, word) in more.into_iter().enumerate() {
            // Bits of the second part follow those of the first.
            let (words, bits) = (one as usize / 64, one % 64);
            if let Some(to) = written.get_mut(index + words) {
                *to |= word << bits;
            }
            if let Some(to) = written.get_mut(index + words + 1) {
                *to |= word.checked_shr(64 - bits).unwrap_or(0);
            }
        }
    }
    Some(written)
}

/// The same for `count` frames from `first` on; bits past them are 0.
fn taken<W: Writes>(writes: &mut W, first: u64, count: u32) -> [u64; 8] {
    let mut written = writes.take_written(Gfn::new(first), count);
    for (index, word) in (0..).zip(&mut written) {
        *word &= crate::bitmap::span(0, u64::from(count).saturating_sub(64 * index));
    }
    written
}

/// The last frame before `at`, or itself, across whose beginning no free block of `bitmap` lies. Blocks have
/// `block` frames at most, and begin at multiples of their size.
pub(crate) fn closed_start(bitmap: &Bitmap<'_>, at: u64, block: u64) -> u64 {
    let floor = at & !(block - 1);
    let mut at = at;
    while at > floor && bitmap.get(Gfn::new(at)) && bitmap.get(Gfn::new(at - 1)) {
        let is_word = at % 64 == 0 && at - floor >= 64 && bitmap.word(at / 64 - 1) == u64::MAX;
        at -= if is_word { 64 } else { 1 };
    }
    at
}

/// The first frame after `at`, or itself, across whose beginning none lies.
pub(crate) fn closed_end(bitmap: &Bitmap<'_>, at: u64, block: u64) -> u64 {
    let ceiling = at.saturating_add(block - 1) & !(block - 1);
    let mut at = at;
    while at < ceiling && bitmap.get(Gfn::new(at)) && bitmap.get(Gfn::new(at - 1)) {
        let is_word = at % 64 == 0 && ceiling - at >= 64 && bitmap.word(at / 64) == u64::MAX;
        at += if is_word { 64 } else { 1 };
    }
    at
}
