//! A file mapped for reading, copied from and never referred to.
//!
//! `vm-memory` does the mapping and the volatile copies, so that no `unsafe` of ours is needed and no reference to bytes
//! that another process may change exists. A file that is cut short *while* it is mapped ends the process (SIGBUS), as it
//! does for every program that maps files.

use std::fs::File;
use std::path::Path;

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::DumpError;

/// A mapped file.
#[derive(Debug)]
pub(super) struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    region: Option<MmapRegion>,
    length: u64,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`DumpError::Io`].
    pub(super) fn open(path: &Path) -> Result<Self, DumpError> {
        let io_error = |cause| DumpError::Io {
            file: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        if !metadata.is_file() {
            return Err(io_error(std::io::Error::other("not a regular file")));
        }
        let length = metadata.len();
        if length == 0 {
            return Ok(Self { region: None, length });
        }
        let size =
            usize::try_from(length).map_err(|_| io_error(std::io::Error::other("too large to map")))?;
        let region = MmapRegion::build(
            Some(FileOffset::new(file, 0)),
            size,
            libc::PROT_READ,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(|error| io_error(std::io::Error::other(error)))?;
        Ok(Self {
            region: Some(region),
            length,
        })
    }

    /// Bytes in the file.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Copies bytes from `offset` on. False, and nothing copied, where the file does not have them all.
    #[inline]
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let Some(region) = &self.region else {
            return into.is_empty();
        };
        let Ok(offset) = usize::try_from(offset) else {
            return false;
        };
        match region.get_slice(offset, into.len()) {
            Ok(slice) => slice.copy_to(into) == into.len(),
            Err(_) => false,
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
