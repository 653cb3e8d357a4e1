//! What a PDB says, in a file of a few kilobytes: for hosts that cannot reach a symbol server.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::isf;
use super::pdb::PdbFacts;
use super::pdb::types::{MAX_ENTRY, find};
use super::symbol_key::{PdbName, Signature, SymbolKey};
use crate::output::write_whole;

/// Version of the file's form.
const VERSION: u32 = 1;
/// Largest file read. A kernel's has some 10 KiB.
const MAX_FILE: u64 = 1 << 20;

/// Why such a file cannot be used.
#[derive(Debug, Error)]
pub enum FactsError {
    /// It could not be read or written.
    #[error("{}: {cause}", file.display())]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It is what another tool keeps, or something else again.
    #[error("{}: {what}", file.display())]
    Other {
        /// Which.
        file: PathBuf,
        /// What it is.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// It is something else.
    #[error("{} does not hold what `lacuna profile export` writes: {why}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// Why.
        why: String,
    },
}

/// What the PDB called `pdb_name` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelFacts {
    lacuna_windows_kernel: u32,
    /// Name of the PDB.
    pub pdb_name: String,
    /// What it says.
    pub facts: PdbFacts,
}

impl KernelFacts {
    /// The facts of the PDB that `key` names.
    pub fn new(name: &PdbName, facts: PdbFacts) -> Self {
        Self {
            lacuna_windows_kernel: VERSION,
            pdb_name: name.as_str().to_owned(),
            facts,
        }
    }

    /// The file for `key` in a folder of layouts.
    pub fn file_in(folder: &Path, key: &SymbolKey) -> PathBuf {
        folder.join(format!("{}.{}.windows.json", key.name.as_str(), key.id()))
    }

    /// The key of the PDB.
    ///
    /// # Errors
    /// In words, when the name is not fit.
    pub fn key(&self) -> Result<SymbolKey, String> {
        Ok(SymbolKey {
            name: PdbName::from_path(&self.pdb_name).map_err(|error| error.to_string())?,
            signature: Signature::Guid(self.facts.identity.guid),
            age: self.facts.identity.age,
        })
    }

    /// Takes what the file says that is to be imported: one of ours, or a symbol table of Volatility 3's.
    ///
    /// # Errors
    /// [`FactsError`].
    pub fn import(file: &Path) -> Result<Self, FactsError> {
        let Some(facts) = isf::read(file)? else {
            return Self::load(file);
        };
        facts
            .key()
            .and_then(|_| facts.check())
            .map_err(|why| FactsError::Other {
                file: file.to_owned(),
                what: format!("a symbol table of Volatility's (ISF) that is of no use: {why}"),
                remedy: "make it again from the kernel's PDB, or `lacuna profile export PDB --out FILE`",
            })?;
        Ok(facts)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`FactsError`].
    pub fn load(file: &Path) -> Result<Self, FactsError> {
        let io = |cause| FactsError::Io {
            file: file.to_owned(),
            cause,
        };
        let malformed = |why: String| FactsError::Malformed {
            file: file.to_owned(),
            why,
        };
        let mut text = String::new();
        let open = File::open(file).map_err(io)?;
        open.take(MAX_FILE).read_to_string(&mut text).map_err(io)?;
        let loaded: Self = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        if loaded.lacuna_windows_kernel != VERSION {
            return Err(malformed(format!(
                "it is of version {}, version {VERSION} is read",
                loaded.lacuna_windows_kernel
            )));
        }
        loaded.key().map_err(malformed)?;
        loaded.check().map_err(malformed)?;
        Ok(loaded)
    }

    /// The bounds that the reader of PDBs keeps hold here as well.
    fn check(&self) -> Result<(), String> {
        let Some(size) = self.facts.mmpfn_size else {
            return Err("it knows no _MMPFN: its PDB was not a kernel's".to_owned());
        };
        if !(1..=MAX_ENTRY).contains(&size) {
            return Err(format!("_MMPFN has {size} bytes; 1 to {MAX_ENTRY} are possible"));
        }
        for needed in ["PageLocation", "ReferenceCount"] {
            if find(&self.facts.fields, needed)
                .map_err(|error| error.to_string())?
                .is_none()
            {
                return Err(format!("it knows no {needed} in _MMPFN"));
            }
        }
        if !self.facts.lists.contains_key("ZeroedPageList") {
            return Err("it knows no ZeroedPageList in _MMLISTS".to_owned());
        }
        for field in &self.facts.fields {
            let end = field.offset.checked_add(field.storage_bytes);
            let bits = u64::from(field.bit).checked_add(field.width);
            if end.is_none_or(|end| end > size) || bits.is_none_or(|bits| bits > field.storage_bytes * 8) {
                return Err(format!("the member {} lies outside of _MMPFN", field.dotted()));
            }
        }
        Ok(())
    }

    /// Writes the file, all of it or nothing.
    ///
    /// # Errors
    /// [`FactsError::Io`].
    pub fn save(&self, file: &Path) -> Result<(), FactsError> {
        let io = |cause| FactsError::Io {
            file: file.to_owned(),
            cause,
        };
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).map_err(io)?;
        let text = serde_json::to_string_pretty(self).map_err(|error| io(error.into()))?;
        write_whole(file, |file| writeln!(file, "{text}")).map_err(io)
    }
}
