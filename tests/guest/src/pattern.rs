//! Pages with known contents: several kinds with several equal copies each, and pages that equal no other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lacuna_guest::Report;
use lacuna_guest::filling::Random;
use lacuna_guest::truth::{PAGE_SIZE, PAGE_WORDS};

/// Bits 0 to 54 of an entry of `/proc/pid/pagemap` are the page frame
/// (`Documentation/admin-guide/mm/pagemap.rst`).
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;
/// Between two writes of the churn: pages then stay as they are for a round or two of the engine, and change
/// after that.
const CHURN_PAUSE: Duration = Duration::from_micros(500);

/// The pages, page-aligned, and which kind each is of by now.
pub(crate) struct Pattern {
    words: Vec<u64>,
    first: usize,
    kinds: Vec<u64>,
    /// How many kinds have copies.
    shared_kinds: u64,
    seed: u64,
    /// The next kind that no page has had.
    fresh: u64,
}

/// Returns the word at `index` of a page of `kind`.
fn word(seed: u64, kind: u64, index: usize) -> u64 {
    (seed ^ kind.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(2 * index as u64 + 1) | 1
}

impl Pattern {
    /// Allocates and writes `kinds` times `copies` pages, kind after kind in turn, and `unique` pages of a
    /// kind of their own each. Pages of one kind and seed are equal, in other guests too.
    pub(crate) fn make(kinds: u32, copies: u32, unique: u32, seed: u64) -> Self {
        let (kinds, copies) = (u64::from(kinds), u64::from(copies));
        let unique = kinds..kinds + u64::from(unique);
        let fresh = unique.end;
        let all: Vec<u64> = (0..kinds * copies)
            .map(|page| page % kinds)
            .chain(unique)
            .collect();
        // One page more than needed, as a vector begins anywhere.
        let words = vec![0_u64; (all.len() + 1) * PAGE_WORDS];
        let first = (PAGE_SIZE - words.as_ptr() as usize % PAGE_SIZE) % PAGE_SIZE / size_of::<u64>();
        let mut pattern = Self {
            words,
            first,
            kinds: all,
            shared_kinds: kinds,
            seed,
            fresh,
        };
        for page in 0..pattern.kinds.len() {
            pattern.write(page, pattern.kinds[page]);
        }
        pattern
    }

    fn page(&mut self, page: usize) -> &mut [u64] {
        let start = self.first + page * PAGE_WORDS;
        &mut self.words[start..start + PAGE_WORDS]
    }

    fn write(&mut self, page: usize, kind: u64) {
        let seed = self.seed;
        self.kinds[page] = kind;
        for (index, place) in self.page(page).iter_mut().enumerate() {
            *place = word(seed, kind, index);
        }
    }

    fn is_intact(&mut self, page: usize) -> bool {
        let (seed, kind) = (self.seed, self.kinds[page]);
        let mut words = self.page(page).iter().enumerate();
        words.all(|(index, found)| *found == word(seed, kind, index))
    }

    /// Returns the page frame of each page.
    pub(crate) fn frames(&self) -> io::Result<Vec<u64>> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let start = (self.words[self.first..].as_ptr() as usize / PAGE_SIZE) as u64;
        (0..self.kinds.len() as u64)
            .map(|page| {
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, (start + page) * 8)?;
                Ok(u64::from_le_bytes(entry) & PAGEMAP_FRAME)
            })
            .collect()
    }

    /// Checks every word.
    pub(crate) fn check(&mut self) -> Report {
        let pages = self.kinds.len();
        let wrong = (0..pages).filter(|page| !self.is_intact(*page)).count();
        Report::Checked {
            pages: pages as u64,
            wrong: wrong as u64,
        }
    }

    /// Gives every page, from the first on, that is a multiple of `every` contents of its own.
    pub(crate) fn rewrite(&mut self, every: u32) {
        for page in (0..self.kinds.len()).step_by(every.max(1) as usize) {
            let fresh = self.fresh;
            self.fresh += 1;
            self.write(page, fresh);
        }
    }
}

/// A thread that goes on writing pages: some kind that has copies, again and again, and checks what was
/// there.
pub(crate) struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Pattern, u64, u64)>,
}

impl Churn {
    /// Starts it on the pages of `pattern`.
    pub(crate) fn start(mut pattern: Pattern) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut random = Random(pattern.seed | 1);
            let (mut pages, mut wrong) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let draw = random.next();
                let page = usize::try_from(draw % pattern.kinds.len() as u64).unwrap_or(0);
                wrong += u64::from(!pattern.is_intact(page));
                pattern.write(page, (draw >> 32) % pattern.shared_kinds);
                pages += 1;
                std::thread::sleep(CHURN_PAUSE);
            }
            (pattern, pages, wrong)
        });
        Self { stop, thread }
    }

    /// Ends the thread, and returns the pages and what it found.
    pub(crate) fn stop(self) -> Result<(Pattern, Report), String> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut pattern, written, met) = self.thread.join().map_err(|_| "the churn panicked")?;
        let wrong = match pattern.check() {
            Report::Checked { wrong, .. } => wrong + met,
            _ => met,
        };
        let report = Report::Checked {
            pages: written,
            wrong,
        };
        Ok((pattern, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(pattern: &mut Pattern) -> u64 {
        match pattern.check() {
            Report::Checked { wrong, .. } => wrong,
            _ => u64::MAX,
        }
    }

    #[test]
    fn copies_are_equal_and_others_are_not() {
        let mut pattern = Pattern::make(3, 4, 5, 77);
        let pages: Vec<Vec<u64>> = (0..17).map(|page| pattern.page(page).to_vec()).collect();
        for one in 0..17 {
            for other in 0..17 {
                let same_kind = one < 12 && other < 12 && one % 3 == other % 3;
                assert_eq!(pages[one] == pages[other], one == other || same_kind);
            }
        }
        assert_eq!(wrong(&mut pattern), 0);
    }

    #[test]
    fn a_word_that_is_not_as_written_is_seen() {
        let mut pattern = Pattern::make(2, 2, 1, 5);
        pattern.page(3)[PAGE_WORDS - 1] ^= 1;
        assert_eq!(wrong(&mut pattern), 1);
        pattern.rewrite(1);
        assert_eq!(wrong(&mut pattern), 0);
    }
}
