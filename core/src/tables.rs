//! The tables that the hypervisor keeps for a guest: what they cost follows from what the guest has, not from
//! its frame numbers.
//!
//! Each [`Table`] is an array of 64-bit words. Memory for it is taken a page at a time ([`PART_WORDS`]),
//! where a word has to be written that is not zero; words without memory read as zero. A guest chooses its
//! frame numbers, and so which pages are taken, but not how many: past a share of the memory that it has, the
//! hypervisor refuses ([`Shortage::Bound`]).
//!
//! One page at a time also keeps each step short: nothing is ever copied, cleared or moved as a whole.

use core::sync::atomic::AtomicU64;

use crate::refusal::Refusal;
use crate::{Bitmap, Gfn, Status};

/// Words of a page.
pub const PART_WORDS: u64 = 512;
/// Frames for which a [`Table::Bitmap`] or a [`Table::Zero`] can have bits: 16 TiB of guest-physical space.
pub const MAX_GFNS: u64 = 1 << 32;

/// One of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Table {
    /// The free bitmap: frame `gfn` is bit `gfn % 64` of word `gfn / 64`.
    Bitmap = 0,
    /// The content stage's hashes of the last round: frame `gfn` is half `gfn % 2` of word `gfn / 2`.
    Rounds = 1,
    /// The content stage's index: the domain's own, or its trust group's.
    Index = 2,
    /// Frames that are on zero frames, bits as in the bitmap. The hypervisor writes it with the p2m lock held;
    /// the core only reads it. A bit may be missing where there was no memory for it, and a bit that is wrong
    /// costs a page that is not shared.
    Zero = 3,
    /// What the last scan found in each stretch of frames for which a page of the bitmap has bits: 16 words
    /// for a stretch (`core/src/judge/stretch.rs`).
    Stretches = 4,
}

/// Most bytes that may be kept for a guest that has `pages`: for the bitmap alone, and for all tables, the
/// nodes by which their pages are found included. 0.1 % and 0.4 % of its memory, and what a few pages for the
/// smallest guest take.
///
/// The hypervisor's side has the same numbers (`lacuna_tables_most()` in `xen/arch/x86/lacuna/tables.c`).
pub const fn most_bytes(pages: u64) -> (u64, u64) {
    (
        (64 << 10) + pages.saturating_mul(4),
        (192 << 10) + pages.saturating_mul(16),
    )
}

/// Words of a table that lie side by side.
#[derive(Clone, Debug)]
pub struct Part<W> {
    /// The first word.
    pub first: u64,
    /// One past the last word.
    pub end: u64,
    /// The words; none where no memory is kept for them.
    pub words: W,
}

impl<W: AsRef<[AtomicU64]>> Part<W> {
    /// Whether no memory is kept for these words. All of them read as zero.
    pub fn is_absent(&self) -> bool {
        self.words.as_ref().is_empty()
    }

    /// This part of a [`Table::Bitmap`] or a [`Table::Zero`].
    pub fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::part(self.first, self.end, self.words.as_ref())
    }
}

/// Why there is no memory for a page of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The hypervisor has none.
    NoMemory,
    /// The tables have reached the share of the guest's memory that they may take.
    Bound {
        /// Bytes kept for the guest.
        held: u64,
        /// Bytes that may be kept for it.
        most: u64,
        /// Pages that the guest has.
        pages: u64,
    },
}

impl Shortage {
    /// The answer to an operation that needs the page with the frames from `gfn` on.
    pub(crate) fn refusal(self, gfn: u64) -> Refusal {
        match self {
            Self::NoMemory => Refusal::new(Status::NoMemory, [PART_WORDS * 8, gfn, 0, 0]),
            Self::Bound { held, most, pages } => {
                Refusal::new(Status::TablesAtBound, [held, most, pages, gfn])
            }
        }
    }
}

/// Where the index is, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexSize {
    /// Words of the whole [`Table::Index`].
    pub words: u64,
    /// The random number that hashes begin with.
    pub seed: u64,
}

/// The memory of the tables. All of it is the hypervisor's, and goes with the domain; no page goes before.
pub trait Tables {
    /// Words of a part. All access is by atomics.
    type Words: AsRef<[AtomicU64]>;

    /// The part of `table` that has word `at`; where no memory is kept for it, at least that word.
    fn part(&mut self, table: Table, at: u64) -> Part<Self::Words>;

    /// The same, with memory. A page that is new is all zero.
    ///
    /// # Errors
    /// [`Shortage`]; nothing has changed then.
    fn extend(&mut self, table: Table, at: u64) -> Result<Part<Self::Words>, Shortage>;

    /// The size of the index. That of a domain's own is settled when it is first asked for, by the memory
    /// that the domain has.
    fn index_size(&mut self) -> IndexSize;

    /// Makes the header beside the bitmap, which readers need to find anything.
    ///
    /// # Errors
    /// [`Shortage`].
    fn make_header(&mut self) -> Result<(), Shortage>;

    /// The words of the header; `None` before [`Tables::make_header`].
    fn header(&mut self) -> Option<Self::Words>;
}

/// The part of the bitmap that has frame `gfn`.
pub(crate) fn bitmap_at<T: Tables + ?Sized>(tables: &mut T, gfn: u64) -> Part<T::Words> {
    tables.part(Table::Bitmap, gfn / 64)
}

/// Whether frame `gfn` was free when last scanned.
pub(crate) fn is_candidate<T: Tables + ?Sized>(tables: &mut T, gfn: Gfn) -> bool {
    bitmap_at(tables, gfn.get()).bitmap().get(gfn)
}
