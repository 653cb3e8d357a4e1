//! Threads that allocate, write, check and free at full speed, so that pages change hands all the time.
//!
//! Anonymous memory and page cache (files in tmpfs) take turns. Every word written is a function of the seed,
//! the block's generation and the word's place, so a word that is lost or comes from elsewhere is detected.
//!
//! Most blocks live for as long as a queue of them is: moments. Some small ones are kept for up to a minute:
//! what a migration drops in its middle is then still needed at its end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lacuna_guest::Report;
use lacuna_guest::filling::Random;
use lacuna_guest::truth::{PAGE_SIZE, PAGE_WORDS};

use crate::console::Console;

/// The largest block, in pages: 2 MiB, so that huge pages come and go as well.
const BLOCK_PAGES: u64 = 512;
/// Small blocks that each thread keeps, and their largest size in pages.
const KEPT_BLOCKS: usize = 128;
const KEPT_PAGES: u64 = 16;
/// How many of them a thread looks at for each large block, and how long it keeps one at most.
const KEPT_LOOKS: usize = 4;
const KEPT_MS: u64 = 60_000;
/// What their random numbers differ by from the others'.
const KEPT_SEED: u64 = 0x5851_f42d_4c95_7f2d;
/// How many corrupt words are reported one by one; the counter has all of them.
const TOLD: u64 = 16;

#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    blocks: AtomicU64,
    pages: AtomicU64,
    corrupt: AtomicU64,
}

/// A running workload.
pub(crate) struct Workload {
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Workload {
    /// Starts `threads` threads that use at most `mib` MiB together, and `rest` after each block.
    pub(crate) fn start(threads: u32, mib: u32, seed: u64, rest: Duration, console: &Arc<Console>) -> Self {
        let counters = Arc::new(Counters::default());
        let threads = threads.max(1);
        // Each thread has a queue of blocks beside the small ones that it keeps; blocks average half of the
        // largest.
        let kept = KEPT_BLOCKS as u64 * KEPT_PAGES / 2;
        let queue = (u64::from(mib) * 256 / u64::from(threads)).saturating_sub(kept);
        let depth = queue / BLOCK_PAGES * 2;
        let threads = (0..threads)
            .map(|number| {
                let seed = seed ^ u64::from(number + 1) << 40;
                let worker = Worker {
                    random: Random(seed | 1),
                    kept_random: Random(seed ^ KEPT_SEED | 1),
                    depth: usize::try_from(depth).unwrap_or(usize::MAX).max(1),
                    number,
                    rest,
                    counters: Arc::clone(&counters),
                    console: Arc::clone(console),
                };
                std::thread::spawn(move || worker.run())
            })
            .collect();
        Self { counters, threads }
    }

    /// Returns the counters now.
    pub(crate) fn report(&self) -> Report {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Report::Work {
            blocks: read(&counters.blocks),
            pages: read(&counters.pages),
            corrupt: read(&counters.corrupt),
        }
    }

    /// Ends the threads, which first check all that they hold, and returns the final counters.
    pub(crate) fn stop(mut self) -> Report {
        self.counters.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return Report::Failed {
                        why: format!("a workload thread: {error}"),
                    };
                }
                Err(_) => {
                    return Report::Failed {
                        why: "a workload thread panicked".to_owned(),
                    };
                }
            }
        }
        self.report()
    }
}

struct Worker {
    random: Random,
    /// For the small blocks that are kept: which one is due depends on the time, and the others are not to
    /// depend on that.
    kept_random: Random,
    depth: usize,
    number: u32,
    rest: Duration,
    counters: Arc<Counters>,
    console: Arc<Console>,
}

/// Returns the word to write at `index` of the block of `generation`.
fn word(generation: u64, index: u64) -> u64 {
    // Odd multipliers mix both in; the low bit keeps a written word from ever being zero.
    generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1
}

enum Block {
    Anonymous {
        generation: u64,
        words: Vec<u64>,
    },
    File {
        generation: u64,
        pages: u64,
        file: File,
        path: String,
    },
}

impl Worker {
    fn run(mut self) -> io::Result<()> {
        let mut held = std::collections::VecDeque::new();
        let mut kept: Vec<Option<(Instant, Block)>> = Vec::new();
        kept.resize_with(KEPT_BLOCKS, || None);
        let mut slot = 0;
        while !self.counters.stop.load(Ordering::Relaxed) {
            let pages = self.block_pages();
            let generation = self.random.next();
            held.push_back(self.make(generation, pages)?);
            if held.len() > self.depth
                && let Some(block) = held.pop_front()
            {
                self.check(block)?;
            }
            for _ in 0..KEPT_LOOKS {
                slot = (slot + 1) % KEPT_BLOCKS;
                if let Some((due, block)) = kept[slot].take() {
                    if due > Instant::now() {
                        kept[slot] = Some((due, block));
                        continue;
                    }
                    self.check(block)?;
                }
                let pages = 1 + self.kept_random.next() % KEPT_PAGES;
                let due = Instant::now() + Duration::from_millis(self.kept_random.next() % KEPT_MS);
                let generation = self.kept_random.next();
                kept[slot] = Some((due, self.make(generation, pages)?));
            }
            if !self.rest.is_zero() {
                std::thread::sleep(self.rest);
            }
        }
        let kept = kept.into_iter().flatten().map(|(_, block)| block);
        for block in held.into_iter().chain(kept) {
            self.check(block)?;
        }
        Ok(())
    }

    /// Returns the size of the next block of the queue: a few pages, a whole 2 MiB, or anything between.
    fn block_pages(&mut self) -> u64 {
        let random = self.random.next();
        match random % 4 {
            0 => 1 + random / 4 % 16,
            1 => BLOCK_PAGES,
            _ => 1 + random / 4 % BLOCK_PAGES,
        }
    }

    fn make(&self, generation: u64, pages: u64) -> io::Result<Block> {
        let content = |index: u64| word(generation, index);
        if generation >> 32 & 3 != 0 {
            let words = (0..pages * PAGE_WORDS as u64).map(content).collect();
            return Ok(Block::Anonymous { generation, words });
        }
        let path = format!("/tmp/{}-{generation:x}", self.number);
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)?;
        let mut bytes = Vec::with_capacity(PAGE_SIZE);
        for page in 0..pages {
            bytes.clear();
            for index in 0..PAGE_WORDS as u64 {
                bytes.extend_from_slice(&content(page * PAGE_WORDS as u64 + index).to_le_bytes());
            }
            file.write_all_at(&bytes, page * PAGE_SIZE as u64)?;
        }
        Ok(Block::File {
            generation,
            pages,
            file,
            path,
        })
    }

    fn check(&self, block: Block) -> io::Result<()> {
        match block {
            Block::Anonymous { generation, words } => {
                for (index, seen) in words.iter().enumerate() {
                    self.compare(generation, index as u64, *seen, words.as_ptr() as usize as u64);
                }
                self.counters
                    .pages
                    .fetch_add((words.len() / PAGE_WORDS) as u64, Ordering::Relaxed);
            }
            Block::File {
                generation,
                pages,
                file,
                path,
            } => {
                let mut bytes = [0; PAGE_SIZE];
                for page in 0..pages {
                    file.read_exact_at(&mut bytes, page * PAGE_SIZE as u64)?;
                    for (index, chunk) in bytes.chunks_exact(8).enumerate() {
                        let mut seen = [0; 8];
                        seen.copy_from_slice(chunk);
                        let index = page * PAGE_WORDS as u64 + index as u64;
                        self.compare(generation, index, u64::from_le_bytes(seen), 0);
                    }
                }
                drop(file);
                fs::remove_file(path)?;
                self.counters.pages.fetch_add(pages, Ordering::Relaxed);
            }
        }
        self.counters.blocks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn compare(&self, generation: u64, index: u64, seen: u64, base: u64) {
        let expected = word(generation, index);
        if seen != expected && self.counters.corrupt.fetch_add(1, Ordering::Relaxed) < TOLD {
            self.console.say(
                0,
                Report::Corrupt {
                    address: base + index * 8,
                    expected,
                    seen,
                },
            );
        }
    }
}
