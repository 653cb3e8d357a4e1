//! The guest's health, by its kernel's own log and counters.

use std::fs::File;
use std::io::{self, Read};

use lacuna_guest::Report;
use rustix::fs::{Mode, OFlags};

use crate::numbers;

/// What a kernel logs when its memory has changed under it (`mm/page_alloc.c`, `mm/page_poison.c`,
/// `mm/slub.c`, `lib/bug.c`, `kernel/watchdog.c`), or a disk or a file system on it has failed
/// (`block/blk-mq.c`, `fs/ext4/super.c`, `fs/jbd2/journal.c`).
const TROUBLE: &[&str] = &[
    "Oops",
    "BUG:",
    "kernel BUG",
    "Bad page",
    "bad page",
    "memory corruption",
    "general protection",
    "double fault",
    "list_add corruption",
    "list_del corruption",
    "soft lockup",
    "hard LOCKUP",
    "Kernel panic",
    "WARNING: CPU",
    "Out of memory",
    "segfault",
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "Aborting journal",
];

/// Kilobytes in a page, as `/proc/meminfo` counts in kilobytes.
const PAGE_KIB: u64 = 4;

/// Reads the kernel's log from its beginning, and the counters.
pub(crate) fn report() -> io::Result<Report> {
    let memory = numbers("/proc/meminfo")?;
    let pages = |name: &str| memory.get(name).copied().unwrap_or(0) / PAGE_KIB;
    Ok(Report::Health {
        trouble: trouble()?,
        total_pages: pages("MemTotal"),
        free_pages: pages("MemFree"),
        buddy_pages: buddy_pages(&std::fs::read_to_string("/proc/buddyinfo")?),
    })
}

fn trouble() -> io::Result<Vec<String>> {
    let descriptor = rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    let mut log = File::from(descriptor);
    let mut found = Vec::new();
    // One record a read; the kernel's limit for a record is below this (CONSOLE_EXT_LOG_MAX).
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]).into_owned();
                if TROUBLE.iter().any(|sign| text.contains(sign)) {
                    found.push(text.lines().next().unwrap_or_default().to_owned());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(found),
            // EPIPE: records were overwritten while reading; the next read goes on with the oldest there is.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns the pages in buddy blocks by `/proc/buddyinfo`, whose columns are the numbers of blocks of order
/// 0, 1, ….
fn buddy_pages(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once("zone"))
        .flat_map(|(_, rest)| rest.split_whitespace().skip(1).enumerate())
        .map(|(order, blocks)| blocks.parse::<u64>().unwrap_or(0) << order)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::buddy_pages;

    #[test]
    fn blocks_count_by_their_order() {
        let text =
            "Node 0, zone      DMA      1      0      2 \nNode 0, zone    DMA32      3      1      0 \n";
        assert_eq!(buddy_pages(text), 1 + 2 * 4 + 3 + 2);
    }
}
