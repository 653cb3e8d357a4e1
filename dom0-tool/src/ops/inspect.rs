//! Reads what a Windows kernel's executable or PDB says.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::failure::{Class, Failure};
use crate::os::windows::pdb::container::Container;
use crate::os::windows::pdb::{self, PdbFacts};
use crate::os::windows::pe::{self, FileLayout, PeImage};
use crate::os::windows::symbols::unreadable;

/// Largest executable read. Kernels have 2 to 20 MiB.
pub(super) const MAX_EXECUTABLE: u64 = 256 << 20;

/// What a file says.
#[derive(Debug)]
pub enum KernelFile {
    /// It is a PDB.
    Pdb(Box<PdbFacts>),
    /// It is an executable, laid out in this way.
    Executable(Box<PeImage>, FileLayout),
}

/// Reads an executable or a PDB.
///
/// # Errors
/// It is neither, or damaged.
pub fn inspect(path: &Path) -> Result<KernelFile, Failure> {
    let named = |failure: Failure| Failure {
        what: format!("{}: {}", path.display(), failure.what),
        ..failure
    };
    let (mut file, head) = open(path).map_err(|error| named(unreadable(&error)))?;
    if Container::is_meant_by(&head) {
        let facts = pdb::read(file).map_err(|error| named(error.into()))?;
        Ok(KernelFile::Pdb(Box::new(facts)))
    } else if head.starts_with(b"MZ") {
        let mut bytes = Vec::new();
        file.by_ref().take(MAX_EXECUTABLE).read_to_end(&mut bytes)?;
        let (image, layout) = pe::read_file(&bytes).map_err(|error| named(error.into()))?;
        Ok(KernelFile::Executable(Box::new(image), layout))
    } else {
        Err(named(Failure::new(
            Class::Refused,
            "it is neither a PE executable nor a PDB",
            "name a kernel's executable (ntoskrnl.exe and the like) or its PDB",
        )))
    }
}

/// Opens a regular file and reads its first bytes.
fn open(path: &Path) -> std::io::Result<(File, Vec<u8>)> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut head = Vec::new();
    file.by_ref().take(64).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, head))
}
