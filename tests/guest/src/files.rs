//! Work on files of a file system on the guest's disk. Each page of a file has contents of its own, which
//! follow from the file's name: so what is lost, or comes from elsewhere, is seen whoever looks, and when.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lacuna_guest::filling::Random;
use lacuna_guest::truth::PAGE_SIZE;
use lacuna_guest::{FilesSeen, Report};
use rustix::fs::{Advice, fadvise};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::disk::{self, content};

/// Where the file system is mounted, and of which kind it is.
const MOUNTED: &str = "/mnt";
const KIND: &str = "ext4";
/// The most pages of a file. A file has half of them on average.
const MOST_PAGES: u64 = 64;
/// One access of so many writes a file anew.
const WRITES: u64 = 4;
const BYTES: u64 = PAGE_SIZE as u64;

/// Mounts the file system of the guest's disk.
pub(crate) fn mount_disk() -> io::Result<()> {
    let (device, _) = disk::device()?;
    fs::create_dir_all(MOUNTED)?;
    Ok(mount(&device, MOUNTED, KIND, MountFlags::empty(), c"")?)
}

/// Takes it off again, with all that was written.
pub(crate) fn unmount_disk() -> io::Result<()> {
    Ok(unmount(MOUNTED, UnmountFlags::empty())?)
}

/// A file, by what its name tells: which one of its folder it is, and how often it was written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    slot: u64,
    generation: u64,
}

impl Named {
    fn parse(name: &str) -> Option<Self> {
        let (slot, generation) = name.split_once('-')?;
        Some(Self {
            slot: slot.parse().ok()?,
            generation: generation.parse().ok()?,
        })
    }

    fn path(self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}", self.slot, self.generation))
    }

    /// What makes its contents.
    fn seed(self, seed: u64) -> u64 {
        let own = self.slot << 32 | self.generation;
        seed ^ Random((own + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).next()
    }

    fn pages(self, seed: u64) -> u64 {
        1 + Random(self.seed(seed) | 1).next() % MOST_PAGES
    }
}

/// The files of one folder, and what was seen of them.
struct Folder {
    path: PathBuf,
    seed: u64,
    seen: Arc<Mutex<FilesSeen>>,
}

impl Folder {
    /// Counts what `access` did to a file; a failure is kept.
    fn count(&self, what: &str, file: Named, access: impl FnOnce(&mut FilesSeen) -> io::Result<()>) -> bool {
        let mut counted = FilesSeen::default();
        let ended = access(&mut counted);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.written += counted.written;
        seen.read += counted.read;
        seen.wrong += counted.wrong;
        let Err(error) = ended else { return true };
        seen.errors += 1;
        seen.first
            .get_or_insert_with(|| format!("{what} {}: {error}", file.path(&self.path).display()));
        false
    }

    /// Writes a file, which is then on the disk.
    fn write(&self, file: Named) -> bool {
        self.count("to write", file, |seen| {
            let to = File::create_new(file.path(&self.path))?;
            let pages = file.pages(self.seed);
            for page in 0..pages {
                to.write_all_at(&content(file.seed(self.seed), page), page * BYTES)?;
            }
            seen.written += pages;
            to.sync_all()
        })
    }

    /// Reads a file from the disk, whatever of it was in memory, and looks at each page.
    fn read(&self, file: Named) -> bool {
        self.count("to read", file, |seen| {
            let from = File::open(file.path(&self.path))?;
            fadvise(&from, 0, None, Advice::DontNeed)?;
            fadvise(&from, 0, None, Advice::WillNeed)?;
            let pages = file.pages(self.seed);
            let length = from.metadata()?.len();
            if length != pages * BYTES {
                let text = format!("{length} bytes, and {} were written", pages * BYTES);
                return Err(io::Error::other(text));
            }
            let mut bytes = vec![0; PAGE_SIZE];
            for page in 0..pages {
                from.read_exact_at(&mut bytes, page * BYTES)?;
                seen.read += 1;
                seen.wrong += u64::from(bytes != content(file.seed(self.seed), page));
            }
            Ok(())
        })
    }

    /// Writes a file anew and removes it as it was before. Returns the one that is there then.
    fn rewrite(&self, old: Named) -> Named {
        let new = Named {
            generation: old.generation + 1,
            ..old
        };
        if !self.write(new) {
            return old;
        }
        self.count("to remove", old, |_| fs::remove_file(old.path(&self.path)));
        new
    }

    /// Adds up what there is.
    fn tally(&self, files: impl IntoIterator<Item = Named>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files {
            seen.files += 1;
            seen.pages += file.pages(self.seed);
            seen.generations += file.generation;
        }
    }
}

/// A thread that goes on reading files and writing them anew.
pub(crate) struct Files {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<FilesSeen>>,
    thread: JoinHandle<()>,
}

impl Files {
    /// Makes about `mib` MiB of files, where there are none yet, goes on with them, and rests for `rest` after each access.
    pub(crate) fn start(seed: u64, mib: u32, rest: Duration) -> Self {
        let count = (u64::from(mib) << 20) / (MOST_PAGES / 2 * BYTES);
        Self::start_in(Path::new(MOUNTED), seed, count.max(1), rest)
    }

    fn start_in(folder: &Path, seed: u64, count: u64, rest: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::default();
        let folder = Folder {
            path: folder.to_owned(),
            seed,
            seen: Arc::clone(&seen),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || work(&folder, count, rest, &stopped));
        Self { stop, seen, thread }
    }

    /// What was seen so far.
    pub(crate) fn report(&self) -> Report {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Report::Files(seen.clone())
    }

    /// Ends the work, and tells what there is then.
    pub(crate) fn stop(self) -> Result<Report, String> {
        self.stop.store(true, Ordering::Relaxed);
        let Self { seen, thread, .. } = self;
        thread
            .join()
            .map_err(|_| "the thread with the files panicked".to_owned())?;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Report::Files(seen.clone()))
    }
}

fn work(folder: &Folder, count: u64, rest: Duration, stop: &AtomicBool) {
    let mut random = Random(folder.seed | 1);
    let mut files = there(&folder.path).unwrap_or_default();
    files.sort_by_key(|file| file.slot);
    for slot in files.len() as u64..count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let file = Named { slot, generation: 0 };
        folder.write(file);
        files.push(file);
    }
    while !stop.load(Ordering::Relaxed) {
        let word = random.next() >> 16;
        let slot = usize::try_from(word / WRITES % count).unwrap_or(0);
        if word.is_multiple_of(WRITES) {
            files[slot] = folder.rewrite(files[slot]);
        } else {
            folder.read(files[slot]);
        }
        std::thread::sleep(rest);
    }
    folder.tally(files);
}

/// The files that there are.
fn there(folder: &Path) -> io::Result<Vec<Named>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        // What mke2fs leaves has no name of ours.
        files.extend(Named::parse(&entry?.file_name().to_string_lossy()));
    }
    Ok(files)
}

/// Reads all files that there are.
pub(crate) fn check(seed: u64) -> io::Result<Report> {
    check_in(Path::new(MOUNTED), seed)
}

fn check_in(path: &Path, seed: u64) -> io::Result<Report> {
    let folder = Folder {
        path: path.to_owned(),
        seed,
        seen: Arc::default(),
    };
    let files = there(path)?;
    for file in &files {
        folder.read(*file);
    }
    folder.tally(files);
    let seen = folder.seen.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Report::Files(seen.clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::{BYTES, Files, FilesSeen, Named, Report, check_in};
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    fn seen(report: Report) -> FilesSeen {
        let Report::Files(seen) = report else {
            panic!("{report:?}")
        };
        seen
    }

    #[test]
    fn what_was_written_is_there_and_each_kind_of_loss_is_seen() {
        let folder = std::env::temp_dir().join(format!("lacuna-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let files = Files::start_in(&folder, 5, 20, Duration::ZERO);
        let far = |seen: &FilesSeen| seen.read > 200 && seen.written > 20 * 100;
        while !far(&seen(files.report())) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let made = seen(files.stop().unwrap());
        assert_eq!((made.files, made.wrong, made.errors), (20, 0, 0), "{made:?}");
        assert!(made.generations > 0 && made.written > made.pages, "{made:?}");

        let whole = seen(check_in(&folder, 5).unwrap());
        assert_eq!(
            (whole.files, whole.pages, whole.generations, whole.read),
            (20, made.pages, made.generations, made.pages)
        );
        assert_eq!((whole.wrong, whole.errors, whole.first), (0, 0, None));
        let other = seen(check_in(&folder, 6).unwrap());
        assert!(other.wrong + other.errors > 0, "{other:?}");

        let some = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let file = File::options().write(true).open(&some).unwrap();
        file.write_all_at(&[0; 8], 40).unwrap();
        assert_eq!(seen(check_in(&folder, 5).unwrap()).wrong, 1);
        file.set_len(BYTES / 2).unwrap();
        assert_eq!(seen(check_in(&folder, 5).unwrap()).errors, 1);
        fs::remove_file(&some).unwrap();
        assert_eq!(seen(check_in(&folder, 5).unwrap()).files, 19);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_name_tells_which_file_it_is() {
        let file = Named {
            slot: 7,
            generation: 12,
        };
        assert_eq!(Named::parse("7-12"), Some(file));
        assert_eq!(Named::parse("lost+found"), None);
    }
}
