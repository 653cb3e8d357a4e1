//! The hypervisor's tables for a large guest: as those of [`crate::MockGuest`], but found and counted at the
//! same cost however many pages they have.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lacuna_core::{IndexSize, PAGE_SIZE, PART_WORDS, Part, Shortage, Table, Tables, most_bytes};

use super::LargeGuest;
use crate::tables_held::{LEVELS, NODE_BITS, NODE_BYTES};

/// One page of a table, or the header.
type Page = Arc<[AtomicU64]>;

/// The pages that are kept.
#[derive(Debug, Default)]
pub(super) struct Held {
    pages: BTreeMap<(Table, u64), Page>,
    nodes: BTreeSet<(Table, u32, u64)>,
    header: Option<Page>,
}

impl Held {
    /// Bytes of all of them, nodes included.
    pub(super) fn bytes(&self) -> u64 {
        self.pages() * PAGE_SIZE as u64 + self.nodes.len() as u64 * NODE_BYTES
    }

    /// Pages of all tables.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }
}

fn blank() -> Page {
    (0..PART_WORDS).map(|_| AtomicU64::new(0)).collect()
}

impl LargeGuest {
    #[inline(never)]
    fn mock_part(&mut self, table: Table, at: u64) -> Part<Page> {
        self.work.parts += 1;
        let number = at / PART_WORDS;
        let mut from = self.held.pages.range((table, number)..=(table, u64::MAX));
        match from.next() {
            Some(((_, found), page)) if *found == number => Part {
                first: number * PART_WORDS,
                end: (number + 1) * PART_WORDS,
                words: Arc::clone(page),
            },
            next => Part {
                first: at,
                end: next.map_or(1 << (NODE_BITS * LEVELS), |((_, number), _)| *number) * PART_WORDS,
                words: Arc::from([]),
            },
        }
    }

    /// Brings word `at` of [`Table::Zero`] up to date, where there is memory for it.
    #[inline]
    pub(super) fn note_zero(&mut self, at: usize) {
        let bits = self.zero[at];
        let at = at as u64;
        let key = (Table::Zero, at / PART_WORDS);
        if !self.held.pages.contains_key(&key) {
            // Without memory the core looks the frames up.
            let _ = self.extend_table(Table::Zero, at);
        }
        if let Some(page) = self.held.pages.get(&key) {
            page[usize::try_from(at % PART_WORDS).unwrap_or(0)].store(bits, Ordering::Relaxed);
        }
    }

    #[inline(never)]
    fn mock_extend(&mut self, table: Table, at: u64) -> Result<(), Shortage> {
        self.extend_table(table, at)
    }

    #[inline]
    fn extend_table(&mut self, table: Table, at: u64) -> Result<(), Shortage> {
        let number = at / PART_WORDS;
        let (_, most) = most_bytes(self.pages);
        let held = self.held.bytes();
        if held + PAGE_SIZE as u64 + u64::from(LEVELS) * NODE_BYTES > most {
            return Err(Shortage::Bound {
                held,
                most,
                pages: self.pages,
            });
        }
        self.held.pages.entry((table, number)).or_insert_with(blank);
        for level in 1..=LEVELS {
            self.held
                .nodes
                .insert((table, level, number >> (NODE_BITS * level)));
        }
        Ok(())
    }
}

impl Tables for LargeGuest {
    type Words = Page;

    fn part(&mut self, table: Table, at: u64) -> Part<Page> {
        self.mock_part(table, at)
    }

    fn extend(&mut self, table: Table, at: u64) -> Result<Part<Page>, Shortage> {
        self.mock_extend(table, at)?;
        Ok(self.mock_part(table, at))
    }

    fn index_size(&mut self) -> IndexSize {
        IndexSize {
            words: PART_WORDS,
            seed: 0,
        }
    }

    fn make_header(&mut self) -> Result<(), Shortage> {
        self.held.header.get_or_insert_with(blank);
        Ok(())
    }

    fn header(&mut self) -> Option<Page> {
        self.held.header.clone()
    }
}
