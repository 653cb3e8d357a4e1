//! The memory of the mock's tables: pages in a map, and the bound that the hypervisor sets.

use core::sync::atomic::AtomicU64;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::MockGuest;
use super::faults::Primitive;
use super::machine::Entry;
use lacuna_core::abi::CHUNK_GFNS;
use lacuna_core::{IndexSize, MAX_GFNS, PAGE_SIZE, PART_WORDS, Part, Shortage, Table, Tables, most_bytes};

/// Bytes of a node of the tree by which the hypervisor finds pages, and the bits of a page's number that each
/// decides (`xen/arch/x86/lacuna/tables.c`).
pub(super) const NODE_BYTES: u64 = 512;
pub(super) const NODE_BITS: u32 = 6;
/// Levels of the tree.
pub(super) const LEVELS: u32 = 4;

/// One page of a table, or the header.
type Page = Arc<[AtomicU64]>;

/// What [`Table::Zero`] says of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroBits {
    /// Whether it is on a zero frame, when the table was asked for.
    #[default]
    Kept,
    /// Nothing: the hypervisor had no memory for it.
    Missing,
    /// That it is on a zero frame, whichever it is on: bits that nobody cleared.
    Stale,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct TablesHeld {
    zero_bits: ZeroBits,
    pages: BTreeMap<(Table, u64), Page>,
    header: Option<Page>,
    index: Option<IndexSize>,
    /// Pages taken since [`MockGuest::take_extensions`] was called last.
    taken: u64,
}

fn blank() -> Page {
    (0..PART_WORDS).map(|_| AtomicU64::new(0)).collect()
}

impl TablesHeld {
    fn numbers(&self, table: Table) -> impl Iterator<Item = u64> + '_ {
        self.pages
            .range((table, 0)..=(table, u64::MAX))
            .map(|((_, number), _)| *number)
    }

    /// Bytes of `table`, nodes included.
    fn bytes_of(&self, table: Table) -> u64 {
        let nodes: BTreeSet<(u32, u64)> = self
            .numbers(table)
            .flat_map(|number| (1..=LEVELS).map(move |level| (level, number >> (NODE_BITS * level))))
            .collect();
        self.numbers(table).count() as u64 * PAGE_SIZE as u64 + nodes.len() as u64 * NODE_BYTES
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> u64 {
        [Table::Bitmap, Table::Rounds, Table::Index, Table::Stretches]
            .into_iter()
            .map(|table| self.bytes_of(table))
            .sum()
    }

    pub(super) fn bitmap_gfns(&self) -> u64 {
        self.numbers(Table::Bitmap).count() as u64 * CHUNK_GFNS
    }
}

impl MockGuest {
    /// Bytes kept for the bitmap, and for all tables.
    pub fn tables_bytes(&self) -> (u64, u64) {
        (self.tables_held.bytes_of(Table::Bitmap), self.tables_held.bytes())
    }

    /// Decides what [`Table::Zero`] says.
    pub fn set_zero_bits(&mut self, zero_bits: ZeroBits) {
        self.tables_held.zero_bits = zero_bits;
    }

    /// The words of [`Table::Zero`] around word `at`.
    fn zero_part(&self, at: u64) -> Part<Page> {
        let first = at / PART_WORDS * PART_WORDS;
        let words = first..first + PART_WORDS;
        let bits = |word: u64| {
            let frames = (word * 64..(word + 1) * 64).take_while(|gfn| *gfn < self.machine.gfns());
            let zero = frames.filter(|gfn| match self.tables_held.zero_bits {
                ZeroBits::Kept => self.machine.entry(*gfn) == Entry::Zero,
                ZeroBits::Missing => false,
                ZeroBits::Stale => true,
            });
            zero.fold(0, |bits, gfn| bits | 1 << (gfn % 64))
        };
        Part {
            first,
            end: words.end,
            words: if self.tables_held.zero_bits == ZeroBits::Missing {
                Arc::from([])
            } else {
                words.map(bits).map(AtomicU64::new).collect()
            },
        }
    }

    /// Has a page populated at `gfn`, as a guest may wherever it likes. `false` without memory, or where
    /// there is one.
    pub fn populate(&mut self, gfn: u64) -> bool {
        self.machine.populate(gfn)
    }

    /// Gives the page at `gfn` up. `false` where there is none of the guest's own.
    pub fn remove(&mut self, gfn: u64) -> bool {
        self.machine.remove(gfn)
    }

    /// Pages of tables taken since the last call.
    pub fn take_extensions(&mut self) -> u64 {
        core::mem::take(&mut self.tables_held.taken)
    }

    /// How many frames of `from..to` are candidates.
    pub fn candidates(&mut self, from: u64, to: u64) -> u64 {
        let mut at = from;
        let mut sum = 0;
        while at < to.min(MAX_GFNS) {
            let part = self.part(Table::Bitmap, at / 64);
            let bitmap = part.bitmap();
            sum += bitmap.count(lacuna_core::Gfn::new(at), lacuna_core::Gfn::new(to));
            at = bitmap.gfns();
        }
        sum
    }
}

impl Tables for MockGuest {
    type Words = Page;

    fn part(&mut self, table: Table, at: u64) -> Part<Page> {
        if table == Table::Zero {
            return self.zero_part(at);
        }
        let number = at / PART_WORDS;
        if let Some(page) = self.tables_held.pages.get(&(table, number)) {
            return Part {
                first: number * PART_WORDS,
                end: (number + 1) * PART_WORDS,
                words: Arc::clone(page),
            };
        }
        let next = self.tables_held.numbers(table).find(|other| *other > number);
        Part {
            first: at,
            end: next.unwrap_or(1 << (NODE_BITS * LEVELS)) * PART_WORDS,
            words: Arc::from([]),
        }
    }

    fn extend(&mut self, table: Table, at: u64) -> Result<Part<Page>, Shortage> {
        let number = at / PART_WORDS;
        if self.tables_held.pages.contains_key(&(table, number)) {
            return Ok(self.part(table, at));
        }
        if self.faults.strikes(Primitive::Extend) {
            return Err(Shortage::NoMemory);
        }
        self.tables_held.pages.insert((table, number), blank());
        let pages = self.machine.owned();
        let (most_bitmap, most) = most_bytes(pages);
        let (bitmap, all) = self.tables_bytes();
        let bound = if table == Table::Bitmap && bitmap > most_bitmap {
            Some((bitmap, most_bitmap))
        } else {
            (all > most).then_some((all, most))
        };
        if let Some((_, most)) = bound {
            self.tables_held.pages.remove(&(table, number));
            let held = if most == most_bitmap {
                self.tables_bytes().0
            } else {
                self.tables_bytes().1
            };
            return Err(Shortage::Bound { held, most, pages });
        }
        self.tables_held.taken += 1;
        Ok(self.part(table, at))
    }

    fn index_size(&mut self) -> IndexSize {
        let pages = self.machine.owned();
        *self.tables_held.index.get_or_insert(IndexSize {
            words: 1_u64
                .checked_shl(pages.max(1).ilog2())
                .unwrap_or(0)
                .max(PART_WORDS),
            seed: 0x1acc_a5ee,
        })
    }

    fn make_header(&mut self) -> Result<(), Shortage> {
        if self.tables_held.header.is_none() {
            if self.faults.strikes(Primitive::Extend) {
                return Err(Shortage::NoMemory);
            }
            self.tables_held.header = Some(blank());
        }
        Ok(())
    }

    fn header(&mut self) -> Option<Page> {
        self.tables_held.header.clone()
    }
}
