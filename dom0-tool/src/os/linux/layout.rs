//! The layout: what of a kernel build does not change from boot to boot.
//!
//! A layout comes from the kernel's headers and can be made on any machine that has them and a compiler; Dom0
//! often has neither. It is kept as a JSON file, `RELEASE.layout.json`, described in `docs/profile.md`. A
//! profile is a layout plus the addresses and the random values of one boot.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lacuna_core::FreeRule;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::output::write_whole;

/// Version of the file format.
pub const FORMAT: u32 = 2;
/// Largest layout file read, in bytes. One has about 8 KiB.
const MAX_FILE: u64 = 1 << 20;
/// Where layouts are looked for by default.
pub const DEFAULT_FOLDER: &str = "/var/lib/lacuna/layouts";

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The number.
    pub value: u64,
    /// Where it comes from, for people.
    pub source: String,
}

/// How the rule for free pages was held against the kernel's own test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Descriptors on which both were asked; they never differed.
    pub descriptors: u64,
    /// Of those, how many the kernel's own test called free.
    pub free: u64,
    /// Seed of the pseudo-random descriptors.
    pub seed: u64,
}

/// See the module's header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// [`FORMAT`].
    pub format: u32,
    /// The kernel's release, `uname -r`.
    pub release: String,
    /// `sizeof(struct page)`, in bytes.
    pub descriptor_bytes: u16,
    /// What makes a block free.
    pub free: FreeRule,
    /// Where that rule comes from.
    pub free_source: String,
    /// The header tree it was made from, on the machine where it was made.
    pub headers: String,
    /// How the rule was proven.
    pub proof: Proof,
    /// Every number that the headers gave, by its C expression.
    pub facts: BTreeMap<String, Known>,
}

/// Why a layout could not be read or written.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The file could not be read or written.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file is not a layout.
    #[error("{} is not a layout: {cause}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// The file has a version that this tool does not know.
    #[error("{} has layout format {found}; this tool knows {FORMAT}", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The layout lacks a number that is needed.
    #[error("the layout of {release} does not give {name}")]
    Missing {
        /// The layout's kernel.
        release: String,
        /// The C expression.
        name: &'static str,
    },
}

impl Layout {
    /// Reads a layout file.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn load(file: &Path) -> Result<Self, LayoutError> {
        let io_error = |cause| LayoutError::Io {
            file: file.to_owned(),
            cause,
        };
        let size = fs::metadata(file).map_err(io_error)?.len();
        if size > MAX_FILE {
            return Err(io_error(io::Error::other(format!(
                "{size} bytes are too many for a layout"
            ))));
        }
        let text = fs::read_to_string(file).map_err(io_error)?;
        let layout: Self = serde_json::from_str(&text).map_err(|cause| LayoutError::Format {
            file: file.to_owned(),
            cause,
        })?;
        if layout.format != FORMAT {
            return Err(LayoutError::Version {
                file: file.to_owned(),
                found: layout.format,
            });
        }
        Ok(layout)
    }

    /// Writes a layout file, all of it or nothing.
    ///
    /// # Errors
    /// [`LayoutError::Io`].
    pub fn save(&self, file: &Path) -> Result<(), LayoutError> {
        let io_error = |cause| LayoutError::Io {
            file: file.to_owned(),
            cause,
        };
        let mut text = serde_json::to_string_pretty(self).map_err(|cause| LayoutError::Format {
            file: file.to_owned(),
            cause,
        })?;
        text.push('\n');
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(io_error)?;
        }
        write_whole(file, |file| file.write_all(text.as_bytes())).map_err(io_error)
    }

    /// The file that holds the layout of `release` in `folder`.
    pub fn file_in(folder: &Path, release: &str) -> PathBuf {
        folder.join(format!("{release}.layout.json"))
    }

    /// A number of the headers.
    ///
    /// # Errors
    /// [`LayoutError::Missing`].
    pub fn fact(&self, name: &'static str) -> Result<u64, LayoutError> {
        self.find_fact(name).ok_or_else(|| LayoutError::Missing {
            release: self.release.clone(),
            name,
        })
    }

    /// A number of the headers, if they give it.
    pub fn find_fact(&self, name: &str) -> Option<u64> {
        self.facts.get(name).map(|known| known.value)
    }

    /// The first 16 bytes of the BLAKE3 hash over everything that bears on a profile: not over where it was
    /// made.
    pub fn id(&self) -> [u8; 16] {
        let mut bare = self.clone();
        bare.headers.clear();
        bare.free_source.clear();
        for known in bare.facts.values_mut() {
            known.source.clear();
        }
        // A layout that came from JSON, or is to become it, can be written as JSON.
        let text = serde_json::to_vec(&bare).unwrap_or_default();
        let hash = blake3::hash(&text);
        std::array::from_fn(|index| hash.as_bytes()[index])
    }
}
