//! Work on a virtual disk, each page of which has contents of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lacuna_guest::filling::Random;
use lacuna_guest::truth::PAGE_SIZE;
use lacuna_guest::{DISK, Report};
use rustix::fs::{Advice, fadvise};

/// Where the image has the disk's driver.
const DRIVERS: &str = "/disks";
/// How long the disk may take to be there.
const LIMIT: Duration = Duration::from_secs(60);
/// Pages that are written or read at once.
const CHUNK: u64 = 32;
/// Pages that the kernel is asked to read ahead of time.
const AHEAD: u64 = 2048;
const BYTES: u64 = PAGE_SIZE as u64;

/// Counts what an order comes to.
#[derive(Default)]
struct Tally {
    pages: u64,
    wrong: u64,
    errors: u64,
    first: Option<String>,
}

impl Tally {
    /// Notes that an access to `page` ended so; returns whether it succeeded.
    fn accessed(&mut self, what: &str, page: u64, ended: io::Result<()>) -> bool {
        let Err(error) = ended else { return true };
        self.errors += 1;
        self.first
            .get_or_insert_with(|| format!("to {what} page {page}: {error}"));
        false
    }

    fn report(self) -> Report {
        Report::Disk {
            pages: self.pages,
            wrong: self.wrong,
            errors: self.errors,
            first: self.first,
        }
    }
}

/// Writes all of the disk.
pub(crate) fn fill(seed: u64) -> io::Result<Report> {
    let (disk, pages) = open()?;
    let mut tally = Tally::default();
    for first in (0..pages).step_by(usize::try_from(CHUNK).unwrap_or(1)) {
        let some = first..pages.min(first + CHUNK);
        let bytes: Vec<u8> = some.flat_map(|page| content(seed, page)).collect();
        disk.write_all_at(&bytes, first * BYTES)?;
        tally.pages += bytes.len() as u64 / BYTES;
    }
    forget(&disk)?;
    Ok(tally.report())
}

/// Reads and checks all of it, and writes some of it.
pub(crate) fn check(seed: u64, every: u64) -> io::Result<Report> {
    let (disk, pages) = open()?;
    let mut tally = Tally::default();
    let mut bytes = vec![0; PAGE_SIZE];
    for page in 0..pages {
        if page % AHEAD == 0 {
            // As much in flight as the ring has room for, whatever this process waits for.
            let length = NonZeroU64::new(AHEAD * BYTES);
            fadvise(&disk, page * BYTES, length, Advice::WillNeed)?;
        }
        let read = disk.read_exact_at(&mut bytes, page * BYTES);
        if tally.accessed("read", page, read) {
            tally.pages += 1;
            tally.wrong += u64::from(bytes != content(seed, page));
        }
        if page % every.max(1) == 0 {
            let again = content(!seed, page);
            let written = disk
                .write_all_at(&again, page * BYTES)
                .and_then(|()| disk.sync_data());
            tally.accessed("write", page, written);
        }
    }
    // What was written is read from the disk once more.
    tally.accessed("write", pages, forget(&disk));
    for page in (0..pages).step_by(usize::try_from(every.max(1)).unwrap_or(1)) {
        let read = disk.read_exact_at(&mut bytes, page * BYTES);
        if tally.accessed("read again", page, read) {
            tally.wrong += u64::from(bytes != content(!seed, page));
        }
    }
    Ok(tally.report())
}

/// What page number `page` of the disk holds: no two pages hold the same, and none only zeros.
pub(crate) fn content(seed: u64, page: u64) -> Vec<u8> {
    let mut random = Random((seed ^ (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
    let words = (0..PAGE_SIZE / 8).map(|_| random.next());
    words.flat_map(u64::to_le_bytes).collect()
}

/// Has everything on the disk, and no copy of it in memory.
fn forget(disk: &File) -> io::Result<()> {
    disk.sync_all()?;
    Ok(fadvise(disk, 0, None, Advice::DontNeed)?)
}

/// The disk, and how many pages it has.
fn open() -> io::Result<(File, u64)> {
    let (path, pages) = device()?;
    Ok((OpenOptions::new().read(true).write(true).open(path)?, pages))
}

/// Where the disk is once both ends are connected, and how many pages it has.
pub(crate) fn device() -> io::Result<(PathBuf, u64)> {
    load()?;
    let path = PathBuf::from(format!("/dev/{DISK}"));
    let size = PathBuf::from(format!("/sys/block/{DISK}/size"));
    let since = Instant::now();
    loop {
        // It has its size once both ends are connected.
        let sectors: u64 = std::fs::read_to_string(&size)
            .unwrap_or_default()
            .trim()
            .parse()
            .unwrap_or(0);
        if sectors > 0 && path.exists() {
            return Ok((path, sectors * 512 / BYTES));
        }
        if since.elapsed() > LIMIT {
            return Err(io::Error::new(
                ErrorKind::NotFound,
                format!("no disk {} after {LIMIT:?}", path.display()),
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Loads the drivers that the image has, in the order of their names, unless they are.
pub(crate) fn load() -> io::Result<()> {
    /// `MODULE_INIT_COMPRESSED_FILE` of Linux' `module.h`: the kernel unpacks it.
    const COMPRESSED: i32 = 4;
    let entries = std::fs::read_dir(Path::new(DRIVERS))?;
    let mut drivers = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    drivers.sort();
    for driver in drivers {
        let is_packed = driver.extension().is_some_and(|kind| kind != "ko");
        let flags = if is_packed { COMPRESSED } else { 0 };
        match rustix::system::finit_module(File::open(driver)?, c"", flags) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PAGE_SIZE, content};

    #[test]
    fn no_two_pages_hold_the_same() {
        assert_eq!(content(5, 7).len(), PAGE_SIZE);
        assert_eq!(content(5, 7), content(5, 7));
        assert_ne!(content(5, 7), content(5, 8));
        assert_ne!(content(5, 7), content(!5, 7));
        assert!(content(5, 7).iter().any(|byte| *byte != 0));
    }
}
