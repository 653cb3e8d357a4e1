//! The bytes of guest memory in a file, as they lie there or unpacked.

use super::DumpError;
use super::file::ReadFile;
use super::packed::Packed;

/// Where guest memory is read from.
#[derive(Debug)]
pub(super) enum Content {
    /// The file has it as it is.
    Plain(ReadFile),
    /// It is unpacked.
    Packed(Packed),
}

impl Content {
    /// Copies bytes from `offset` on. False where they are not all there.
    #[inline]
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        match self {
            Self::Plain(file) => file.read(offset, into),
            Self::Packed(packed) => packed.read(offset, into),
        }
    }

    /// Bytes of a file that has memory as it is; 0 of another one.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Plain(file) => file.length(),
            Self::Packed(_) => 0,
        }
    }

    /// Tells what has gone wrong since the file was opened.
    ///
    /// # Errors
    /// [`DumpError`].
    pub(super) fn check_unharmed(&self) -> Result<(), DumpError> {
        match self {
            Self::Plain(file) => file.check_unharmed(),
            Self::Packed(packed) => packed.check_unharmed(),
        }
    }
}
