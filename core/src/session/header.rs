//! The header beside the bitmap: it tells whoever maps the two what to make of the bits.
//!
//! The bitmap is shared memory without a lock. The toolstack, which must not send too few pages, needs bits
//! of *one* complete scan that the guest's counters agreed with, and needs to know that this scan began late
//! enough. The header is a sequence lock with that knowledge in it: [`Header::begin`] before the first bit
//! changes, [`Header::publish`] when no more will. There is one writer at a time (the domain's Lacuna lock).
//!
//! A scan may be interrupted, and never be gone on with. Then the sequence stays odd, and readers ask for a
//! scan of their own.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::abi::{BITMAP_VERSION, BitmapHeader};
use crate::{BytesRule, Contents, Profile};

const WORDS: usize = size_of::<BitmapHeader>() / 8;

/// What the bits are: those of one complete, believed scan; all zero when they are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// Which of the scans begun they are of.
    pub(crate) scan: u64,
    /// Frames that the scan covered.
    pub(crate) gfns: u64,
    /// How many of them it found free.
    pub(crate) free: u64,
    /// When it began, in nanoseconds of the host's clock.
    pub(crate) start: u64,
}

/// What there is to tell beside the bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announcement<'p> {
    pub(crate) started: u64,
    pub(crate) generation: u64,
    pub(crate) state: u64,
    pub(crate) candidates: Candidates,
    pub(crate) profile: Option<&'p Profile>,
    /// Chunks of the mapped bitmap.
    pub(crate) chunks: u64,
}

/// The header's `contents`. Where a free page is one only if it is zero, the bits are candidates and no
/// more.
const fn what_free_pages_hold(profile: &Profile) -> u64 {
    match (profile.free.bytes, profile.contents) {
        (BytesRule::Zero, _) => 2,
        (BytesRule::Any, Contents::Zero) => 1,
        (BytesRule::Any, Contents::DontCare) => 0,
    }
}

/// A borrowed header.
#[derive(Clone, Copy, Debug)]
pub struct Header<'w> {
    words: &'w [AtomicU64],
}

impl<'w> Header<'w> {
    /// The header in `words`. Of too few words none is ever written.
    pub const fn new(words: &'w [AtomicU64]) -> Self {
        Self { words }
    }

    const SEQUENCE: usize = offset_of!(BitmapHeader, sequence) / 8;
    const STARTED: usize = offset_of!(BitmapHeader, started) / 8;
    const COMPLETE: usize = offset_of!(BitmapHeader, complete) / 8;

    fn load(&self, index: usize) -> u64 {
        self.words
            .get(index)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn store(&self, index: usize, value: u64, ordering: Ordering) {
        if let Some(word) = self.words.get(index) {
            word.store(value, ordering);
        }
    }

    /// Bits are going to change, in the course of scan number `started` at the latest. May be called again
    /// before [`Self::publish`].
    pub(crate) fn begin(&self, started: u64) {
        self.write();
        self.store(Self::STARTED, started, Ordering::Relaxed);
        self.store(Self::COMPLETE, 0, Ordering::Relaxed);
    }

    /// Makes the sequence odd, before anything that is stored from here on.
    fn write(&self) {
        let sequence = self.load(Self::SEQUENCE);
        self.store(Self::SEQUENCE, sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// The bits are as `announcement` says. Readers are disturbed only if that is news to them.
    pub(crate) fn publish(&self, announcement: &Announcement<'_>) {
        let sequence = self.load(Self::SEQUENCE);
        let Announcement {
            started,
            generation,
            state,
            candidates,
            profile,
            chunks,
        } = *announcement;
        let header = BitmapHeader {
            version: BITMAP_VERSION,
            // At most as many as there are stretches in `MAX_GFNS` frames.
            chunks: u32::try_from(chunks).unwrap_or(0),
            sequence,
            started,
            complete: candidates.scan,
            generation,
            gfns: candidates.gfns,
            state,
            contents: profile.map_or(0, what_free_pages_hold),
            free: candidates.free,
            start: candidates.start,
        };
        let words: [u64; WORDS] = zerocopy::transmute!(header);
        let news = words
            .iter()
            .enumerate()
            .any(|(index, word)| self.load(index) != *word);
        if !news && sequence % 2 == 0 {
            return;
        }
        self.write();
        for (index, word) in words.into_iter().enumerate() {
            if index != Self::SEQUENCE {
                self.store(index, word, Ordering::Relaxed);
            }
        }
        self.store(Self::SEQUENCE, (sequence | 1).wrapping_add(1), Ordering::Release);
    }

    /// What a reader gets, if it comes at a time when nothing is being written.
    pub fn read(&self) -> Option<BitmapHeader> {
        let sequence = self.words.get(Self::SEQUENCE)?.load(Ordering::Acquire);
        let mut words = [0; WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.load(index);
        }
        fence(Ordering::Acquire);
        (sequence % 2 == 0 && self.load(Self::SEQUENCE) == sequence).then(|| zerocopy::transmute!(words))
    }
}
