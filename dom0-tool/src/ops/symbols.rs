//! Finds PDBs in symbol stores, and carries what they say to hosts without network.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::inspect::MAX_EXECUTABLE;
use crate::failure::{Class, Failure};
use crate::os::SymbolSources;
use crate::os::windows::facts::KernelFacts;
use crate::os::windows::pdb::container::Container;
use crate::os::windows::pe;
use crate::os::windows::store::Hit;
use crate::os::windows::symbol_key::{PdbName, SymbolKey};
use crate::os::windows::symbols::{find, read_pdb, unreadable};
use crate::output::refuse_inputs;
use crate::progress::Progress;

/// Finds the PDB of an executable, or of a path in a symbol store. Returns its key and where it is.
///
/// # Errors
/// `what` names no PDB, or where it was looked for in vain.
pub fn fetch<P: Progress + ?Sized>(
    what: &str,
    sources: &SymbolSources,
    progress: &mut P,
) -> Result<(SymbolKey, Hit), Failure> {
    let key = key_of(what)?;
    let hit = find(&key, sources, progress)?;
    Ok((key, hit))
}

/// Writes what a PDB says to a small file: that of a PDB, of an executable, or of a path in a symbol store.
/// Returns the PDB's path in a symbol store.
///
/// # Errors
/// There is no such PDB, it is no kernel's, or why the file was not written.
pub fn export<P: Progress + ?Sized>(
    what: &str,
    sources: &SymbolSources,
    out: &Path,
    progress: &mut P,
) -> Result<String, Failure> {
    let path = Path::new(what);
    refuse_inputs(out, [path])?;
    let (name, facts) = if begins(path).is_some_and(|head| Container::is_meant_by(&head)) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name = PdbName::from_path(name).map_err(|error| Failure::plain(Class::Refused, error))?;
        (name, read_pdb(path)?)
    } else {
        let (key, hit) = fetch(what, sources, progress)?;
        (key.name, read_pdb(&hit.file)?)
    };
    if facts.mmpfn_size.is_none() {
        return Err(Failure::new(
            Class::Refused,
            format!("{what} knows no _MMPFN"),
            "only the PDBs of Windows kernels (ntoskrnl, ntkrnlmp, ntkrnlpa, ntkrpamp) are of use",
        ));
    }
    let facts = KernelFacts::new(&name, facts);
    let key = key_in(&facts)?;
    facts.save(out)?;
    Ok(key.path())
}

/// Keeps what [`export`] wrote, or a symbol table of Volatility's, in the folder `layouts`. Returns the file
/// that it is kept in, and the key of the PDB.
///
/// # Errors
/// It is no such file, or why it was not kept.
pub fn import(file: &Path, layouts: &Path) -> Result<(PathBuf, SymbolKey), Failure> {
    let facts = KernelFacts::import(file)?;
    let key = key_in(&facts)?;
    let kept = KernelFacts::file_in(layouts, &key);
    facts.save(&kept)?;
    Ok((kept, key))
}

fn key_in(facts: &KernelFacts) -> Result<SymbolKey, Failure> {
    facts.key().map_err(|error| Failure::plain(Class::Refused, error))
}

fn begins(file: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(file).ok()?.take(64).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Returns the key that an executable's debug record or a store path names.
fn key_of(what: &str) -> Result<SymbolKey, Failure> {
    let path = Path::new(what);
    if !path.is_file() {
        return SymbolKey::from_path(what).ok_or_else(|| {
            Failure::new(
                Class::NotFound,
                format!("{what} is neither a file nor a path in a symbol store"),
                "name an executable, or NAME/GUIDAGE/NAME as `lacuna inspect` prints it",
            )
        });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    file.take(MAX_EXECUTABLE).read_to_end(&mut bytes)?;
    let (image, _) = pe::read_file(&bytes)?;
    let Some(record) = image.debug else {
        return Err(Failure::new(
            Class::Refused,
            match image.damaged_record {
                Some(why) => format!("{what} names no PDB: its debug record is damaged, {why}"),
                None => format!("{what} names no PDB: it has no debug record"),
            },
            "is it a kernel of Windows?",
        ));
    };
    record
        .key()
        .map_err(|error| Failure::plain(Class::Refused, format!("{what}: {error}")))
}
