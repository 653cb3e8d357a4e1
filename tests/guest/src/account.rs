//! Keeps the account of free pages up to date (see [`lacuna_guest::truth`] for its layout).
//!
//! Capturing must not change what is captured: all memory is allocated and locked beforehand, the file stays
//! open, and the kernel copies into memory that is already there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lacuna_guest::truth::{
    MAGIC, PAGE_SIZE, PAGE_WORDS, SLOT_FREE, SLOT_SAME, SLOT_SEQUENCE, WORD_MAGIC, WORD_PAGES, WORD_SLOT,
    bitmap_pages, total_pages,
};
use rustix::mm::{MlockAllFlags, mlockall};

/// `KPF_BUDDY` in `include/uapi/linux/kernel-page-flags.h`.
const KPF_BUDDY: u32 = 10;
/// Bits 0 to 54 of an entry of `/proc/pid/pagemap` are the page frame, bit 63 says that there is one
/// (`Documentation/admin-guide/mm/pagemap.rst`).
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;
const PAGEMAP_PRESENT: u64 = 1 << 63;
/// How many flags one read takes: 128 KiB, so that a guest of 1 GiB takes 16 reads.
const CHUNK: usize = 16 * 1024;
/// The pause between captures: lets the rest of the guest run.
const PAUSE: Duration = Duration::from_millis(5);

/// A running capture.
pub(crate) struct Account {
    gfns: Vec<u64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Account {
    /// Allocates the account, locks everything in memory and starts capturing.
    pub(crate) fn start() -> io::Result<Self> {
        let flags = File::open("/proc/kpageflags")?;
        let pages = count_pages(&flags)?;
        let words = total_pages(pages) * PAGE_WORDS;
        // One page more than needed, as a vector begins anywhere; `first` is the first word on a page
        // boundary.
        let memory: Vec<AtomicU64> = (0..words + PAGE_WORDS).map(|_| AtomicU64::new(0)).collect();
        let first = (PAGE_SIZE - memory.as_ptr() as usize % PAGE_SIZE) % PAGE_SIZE / size_of::<u64>();
        let mut capture = Capture {
            flags,
            pages,
            memory,
            first,
            buffer: vec![0; CHUNK * size_of::<u64>()],
        };
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)?;
        let gfns = capture.frames()?;
        capture.word(WORD_MAGIC).store(MAGIC, Ordering::Relaxed);
        capture.word(WORD_PAGES).store(pages as u64, Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || capture.run(&stopped));
        Ok(Self { gfns, stop, thread })
    }

    /// Returns the guest frames of the account, in order.
    pub(crate) fn gfns(&self) -> &[u64] {
        &self.gfns
    }

    /// Ends the capture, unlocks memory and gives the account's back.
    pub(crate) fn stop(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self
            .thread
            .join()
            .map_err(|_| io::Error::other("the capturing thread panicked"))?;
        rustix::mm::munlockall()?;
        ended
    }
}

struct Capture {
    flags: File,
    pages: usize,
    memory: Vec<AtomicU64>,
    first: usize,
    buffer: Vec<u8>,
}

impl Capture {
    fn word(&self, at: usize) -> &AtomicU64 {
        &self.memory[self.first + at]
    }

    /// Returns the page frame of each page of the account, as the kernel tells this process about itself.
    fn frames(&self) -> io::Result<Vec<u64>> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let start = (self.word(0).as_ptr() as usize / PAGE_SIZE) as u64;
        (0..total_pages(self.pages) as u64)
            .map(|page| {
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, (start + page) * 8)?;
                let entry = u64::from_le_bytes(entry);
                if entry & PAGEMAP_PRESENT == 0 {
                    return Err(io::Error::other(format!(
                        "page {page} of the account is not in memory: {entry:#x}"
                    )));
                }
                Ok(entry & PAGEMAP_FRAME)
            })
            .collect()
    }

    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        // Above everything else in the guest, so that a busy guest does not stretch a capture.
        rustix::process::setpriority_process(None, -20)?;
        let mut slot = 0;
        let mut same = 0;
        while !stop.load(Ordering::Relaxed) {
            same = if self.capture(slot)? { same + 1 } else { 1 };
            let base = WORD_SLOT[slot];
            self.word(base + SLOT_SAME).store(same, Ordering::Relaxed);
            self.word(base + SLOT_SEQUENCE).fetch_add(1, Ordering::Release);
            slot = 1 - slot;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Captures into `slot`, leaving its sequence number odd. Returns whether the other slot's capture was
    /// the same.
    fn capture(&mut self, slot: usize) -> io::Result<bool> {
        let base = WORD_SLOT[slot];
        let other_sequence = self
            .word(WORD_SLOT[1 - slot] + SLOT_SEQUENCE)
            .load(Ordering::Relaxed);
        // Ahead of the other slot's, and odd.
        self.word(base + SLOT_SEQUENCE)
            .store(other_sequence + 1, Ordering::Release);
        let here = (1 + slot * bitmap_pages(self.pages)) * PAGE_WORDS;
        let there = (1 + (1 - slot) * bitmap_pages(self.pages)) * PAGE_WORDS;
        let (mut free, mut same) = (0, true);
        for start in (0..self.pages).step_by(CHUNK) {
            let count = CHUNK.min(self.pages - start);
            self.flags
                .read_exact_at(&mut self.buffer[..count * 8], start as u64 * 8)?;
            for group in 0..count.div_ceil(64) {
                let mut bits = 0_u64;
                for bit in 0..64.min(count - group * 64) {
                    let at = (group * 64 + bit) * 8;
                    // Little-endian: bit 10 is in the second byte.
                    let flag = self.buffer[at + (KPF_BUDDY / 8) as usize] >> (KPF_BUDDY % 8) & 1;
                    bits |= u64::from(flag) << bit;
                }
                free += u64::from(bits.count_ones());
                let word = start / 64 + group;
                same &= self.word(there + word).load(Ordering::Relaxed) == bits;
                self.word(here + word).store(bits, Ordering::Relaxed);
            }
        }
        self.word(base + SLOT_FREE).store(free, Ordering::Relaxed);
        Ok(same)
    }
}

/// Returns how many page frames `/proc/kpageflags` covers: `max_pfn`, read by looking where it ends.
fn count_pages(flags: &File) -> io::Result<usize> {
    let readable = |page: u64| Ok::<bool, io::Error>(flags.read_at(&mut [0; 8], page * 8)? == 8);
    let (mut low, mut high) = (0_u64, 1_u64);
    // The bound is the largest physical address amd64 has, 52 bits.
    while high < 1 << 40 && readable(high)? {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = u64::midpoint(low, high);
        if readable(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    usize::try_from(high).map_err(io::Error::other)
}
