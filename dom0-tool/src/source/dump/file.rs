//! A file that is read in blocks, a few of which are kept.
//!
//! It is not mapped: a mapped file that is cut short while it is read ends the process (SIGBUS), and all that
//! was touched of it counts as the process' memory. Here a cut is noticed and told, and some megabytes are
//! held.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::DumpError;
use super::flat::{self, Flat};

/// Bytes of a block: four frames. Page tables lie apart, and what is searched is read from end to end.
const BLOCK: usize = 16 << 10;
/// Blocks kept: 4 MiB.
const BLOCKS: usize = 256;

/// A file that is read.
#[derive(Debug)]
pub(super) struct ReadFile {
    file: File,
    path: PathBuf,
    /// Bytes in the file.
    raw_length: u64,
    /// Bytes to be read: those of the file, or of what was flattened into it.
    length: u64,
    flat: Option<Flat>,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    /// The block kept in each place, by its number; each number has one place.
    kept: Vec<Option<u64>>,
    bytes: Vec<u8>,
    trouble: Option<io::Error>,
}

impl ReadFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`DumpError::Io`], [`DumpError::NotAFile`].
    pub(super) fn open(path: &Path) -> Result<Self, DumpError> {
        let io_error = |cause| DumpError::Io {
            file: path.to_owned(),
            cause,
        };
        // Before it is opened: opening a pipe waits for somebody to write.
        let is_file = std::fs::metadata(path).map_err(io_error)?.is_file();
        let not_a_file = || DumpError::NotAFile {
            file: path.to_owned(),
        };
        if !is_file {
            return Err(not_a_file());
        }
        let file = File::open(path).map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        if !metadata.is_file() {
            return Err(not_a_file());
        }
        let mut open = Self {
            file,
            path: path.to_owned(),
            raw_length: metadata.len(),
            length: metadata.len(),
            flat: None,
            state: RefCell::new(State {
                kept: vec![None; BLOCKS],
                bytes: vec![0; BLOCKS * BLOCK],
                trouble: None,
            }),
        };
        let mut head = [0; flat::MAGIC.len()];
        if open.read(0, &mut head) && head == flat::MAGIC {
            open.flat = Flat::read(open.raw_length, |at, into| open.read_raw(at, into));
            open.length = open.flat.as_ref().map_or(open.length, Flat::length);
        }
        Ok(open)
    }

    /// Whether another file was flattened into it.
    pub(super) const fn is_flattened(&self) -> bool {
        self.flat.is_some()
    }

    /// Whether what was flattened into the file has its end.
    pub(super) fn is_whole(&self) -> bool {
        self.flat.as_ref().is_none_or(Flat::is_whole)
    }

    /// Bytes in the file when it was opened, or of what was flattened into it.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Tells what has gone wrong since the file was opened: it was cut short, or the disk failed. What was
    /// read as absent because of that proves nothing.
    ///
    /// # Errors
    /// [`DumpError::Io`], [`DumpError::CutWhileRead`].
    pub(super) fn check_unharmed(&self) -> Result<(), DumpError> {
        match self.state.borrow_mut().trouble.take() {
            None => Ok(()),
            Some(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Err(DumpError::CutWhileRead {
                file: self.path.clone(),
                length: self.raw_length,
            }),
            Some(cause) => Err(DumpError::Io {
                file: self.path.clone(),
                cause,
            }),
        }
    }

    /// Copies bytes from `offset` on. False where the file does not have them all; `into` may be partly
    /// filled then.
    #[inline]
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return false;
        }
        match &self.flat {
            None => self.read_raw(offset, into),
            Some(flat) => self.read_flat(flat, offset, into),
        }
    }

    /// The same of what was flattened.
    fn read_flat(&self, flat: &Flat, offset: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        while done < into.len() {
            let (place, room) = flat.find(offset + done as u64);
            let length = usize::try_from(room).unwrap_or(usize::MAX).min(into.len() - done);
            let part = &mut into[done..done + length];
            match place {
                Some(at) if !self.read_raw(at, part) => return false,
                Some(_) => {}
                None => part.fill(0),
            }
            done += length;
        }
        true
    }

    /// The same of the file itself.
    fn read_raw(&self, offset: u64, into: &mut [u8]) -> bool {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.raw_length) {
            return false;
        }
        let mut state = self.state.borrow_mut();
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let block = at / BLOCK as u64;
            // Both are below 2^32.
            #[allow(clippy::cast_possible_truncation)]
            let (place, within) = ((block % BLOCKS as u64) as usize, (at % BLOCK as u64) as usize);
            if state.kept[place] != Some(block) && !self.fetch(&mut state, place, block) {
                return false;
            }
            let length = (into.len() - done).min(BLOCK - within);
            let from = place * BLOCK + within;
            into[done..done + length].copy_from_slice(&state.bytes[from..from + length]);
            done += length;
        }
        true
    }

    /// Reads a block into its place.
    #[cold]
    fn fetch(&self, state: &mut State, place: usize, block: u64) -> bool {
        let from = block * BLOCK as u64;
        let length = usize::try_from(self.raw_length - from)
            .unwrap_or(usize::MAX)
            .min(BLOCK);
        let bytes = &mut state.bytes[place * BLOCK..place * BLOCK + length];
        state.kept[place] = None;
        match self.file.read_exact_at(bytes, from) {
            Ok(()) => {
                state.kept[place] = Some(block);
                true
            }
            Err(error) => {
                state.trouble.get_or_insert(error);
                false
            }
        }
    }

    /// Copies `length` bytes from `offset` on.
    ///
    /// # Errors
    /// [`DumpError::Truncated`], before anything is allocated.
    pub(super) fn bytes(&self, what: &'static str, offset: u64, length: u64) -> Result<Vec<u8>, DumpError> {
        let needed = offset.saturating_add(length);
        let truncated = DumpError::Truncated {
            what,
            needed,
            length: self.length,
        };
        if needed > self.length {
            return Err(truncated);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        if self.read(offset, &mut bytes) {
            Ok(bytes)
        } else {
            Err(truncated)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A file of `length` bytes, each of which tells where it is.
    fn made(length: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let bytes: Vec<u8> = (0..length)
            .map(|at| u8::try_from(at * 7 % 251).unwrap())
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn bytes_are_those_of_the_file_across_blocks_and_places() {
        let (file, bytes) = made(BLOCK * (BLOCKS + 3) + 100);
        let open = ReadFile::open(file.path()).unwrap();
        for round in 0..2 {
            for at in [
                0,
                1,
                BLOCK - 3,
                BLOCK * BLOCKS - 1,
                BLOCK * (BLOCKS + 2) - 5,
                bytes.len() - 9,
            ] {
                let mut into = [0; 9];
                assert!(open.read(at as u64, &mut into), "{round} {at}");
                assert_eq!(into, bytes[at..at + 9], "{round} {at}");
            }
        }
        assert!(!open.read(bytes.len() as u64 - 8, &mut [0; 9]));
        assert!(!open.read(u64::MAX, &mut [0; 9]));
        open.check_unharmed().unwrap();
    }

    #[test]
    fn a_pipe_is_no_file_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let told = ReadFile::open(path).unwrap_err();
            assert!(matches!(told, DumpError::NotAFile { .. }), "{told}");
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_an_error() {
        let (file, _) = made(4 * BLOCK);
        let open = ReadFile::open(file.path()).unwrap();
        assert!(open.read(0, &mut [0; 8]));
        file.as_file().set_len(2 * BLOCK as u64 + 5).unwrap();
        assert!(open.read(BLOCK as u64, &mut [0; 8]));
        open.check_unharmed().unwrap();
        assert!(!open.read(3 * BLOCK as u64, &mut [0; 8]));
        let told = open.check_unharmed().unwrap_err();
        assert!(matches!(told, DumpError::CutWhileRead { .. }), "{told}");
    }
}
