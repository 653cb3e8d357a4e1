//! What goes wrong with a dump, and what to do about it.

use super::dump::DumpError;
use crate::failure::{Class, Clues, Failure};

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        match &error {
            DumpError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                Self::plain(Class::NotFound, error)
            }
            DumpError::NotAFile { .. } => Self::new(
                Class::Failed,
                error,
                "memory is read from everywhere in it: write what a pipe or a device gives to a file first, and name that",
            ),
            DumpError::OtherFormat { remedy, .. } => Self::new(Class::Failed, &error, *remedy),
            DumpError::Holes { .. } => Self::new(
                Class::Failed,
                error,
                "name the guest-physical memory that the file leaves out, in bytes: --hole 0xc0000000:0x100000000",
            ),
            DumpError::CrashType { .. } => Self::new(
                Class::Failed,
                error,
                "set Windows to write a complete memory dump, or take a dump of the guest from the host",
            ),
            DumpError::NotThatFormat { .. } => Self::new(
                Class::Failed,
                error,
                "leave --format out: the file's beginning tells; or --format raw, which any file can be",
            ),
            DumpError::Registers { .. } => Self::new(
                Class::Failed,
                error,
                "give the text that QEMU's monitor prints for `info registers -a`, or the JSON of docs/profile.md",
            ),
            DumpError::Truncated { .. } | DumpError::Impossible { .. } => {
                Self::new(Class::Failed, error, "take the dump again, or copy it again")
            }
            DumpError::CutWhileRead { .. } => Self::new(
                Class::Failed,
                error,
                "wait until whatever writes the file is done, or copy it first",
            ),
            DumpError::CutShort { .. } => Self::new(
                Class::Refused,
                error,
                "take the dump again, of all of memory, or copy it again whole",
            )
            .with_clues(Clues {
                is_cut_short: true,
                ..Clues::default()
            }),
            _ => Self::plain(Class::Failed, error),
        }
    }
}
