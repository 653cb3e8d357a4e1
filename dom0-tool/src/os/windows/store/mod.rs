//! Finds the PDB of a kernel: in folders, in symbol stores, on symbol servers.
//!
//! Whatever is found is held against the GUID and the age that were asked for, also what lies in a cache
//! already. A download goes to a temporary file beside its place and is moved there when it is whole and
//! right: a cache never holds a part of a file, or another's.

mod cabinet;
mod http;
mod local;
pub mod path;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use self::http::Client;
pub use self::http::{Limits, Progress};
use self::local::{Found, MAX_POINTER, Pointer, printable};
use self::path::{PdbSource, SymbolPath};
use super::pdb;
use super::pdb::container::MAX_FILE;
use super::symbol_key::{Signature, SymbolKey};

/// Most bytes of a store's index, which is empty or a list of files; only that it is there counts.
const MAX_INDEX: u64 = 16 << 20;

/// A place that was asked in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Which: a folder, or an address.
    pub place: String,
    /// Why it was no use.
    pub why: String,
}

/// A PDB that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The file.
    pub file: PathBuf,
    /// Where it came from: the file itself, or an address.
    pub from: String,
    /// Places that were asked before, in vain.
    pub misses: Vec<Miss>,
}

/// Looks for PDBs.
#[derive(Debug)]
pub struct Finder {
    path: SymbolPath,
    /// None when no server may be asked.
    client: Option<Client>,
}

impl Finder {
    /// A finder along `path`, which asks servers within `limits`, or none at all.
    pub fn new(path: SymbolPath, limits: Option<Limits>) -> Self {
        Self {
            path,
            client: limits.map(Client::new),
        }
    }

    /// The path that it goes along.
    pub fn path(&self) -> &SymbolPath {
        &self.path
    }

    /// Finds the PDB that `key` names.
    ///
    /// # Errors
    /// Every place that was asked, and why it was no use.
    pub fn find(&self, key: &SymbolKey, progress: Progress<'_>) -> Result<Hit, Vec<Miss>> {
        let mut misses = Vec::new();
        for element in &self.path.elements {
            let mut caches: Vec<&Path> = Vec::new();
            for place in &element.places {
                let name = match place {
                    PdbSource::Store(folder) | PdbSource::Folder(folder) => folder.display().to_string(),
                    PdbSource::Server(address) => address.clone(),
                };
                match self.ask(place, &caches, key, progress) {
                    Ok(Some((file, from))) => return Ok(Hit { file, from, misses }),
                    Ok(None) => misses.push(Miss {
                        place: name,
                        why: "does not have it".to_owned(),
                    }),
                    Err(why) => misses.push(Miss { place: name, why }),
                }
                if let PdbSource::Store(folder) = place {
                    caches.push(folder);
                }
            }
        }
        Err(misses)
    }

    /// Asks one place; what it has is copied into `caches`, the last of them first.
    fn ask(
        &self,
        place: &PdbSource,
        caches: &[&Path],
        key: &SymbolKey,
        progress: Progress<'_>,
    ) -> Result<Option<(PathBuf, String)>, String> {
        match place {
            PdbSource::Folder(folder) => {
                let named = || folder.join(key.name.as_str());
                let flat = local::in_any_case(folder, key.name.as_str()).unwrap_or_else(named);
                if flat.is_file() && check(&flat, key).is_ok() {
                    return Ok(Some((flat.clone(), flat.display().to_string())));
                }
                match from_store(folder, caches, key)? {
                    None if flat.is_file() => check(&flat, key).map(|()| None),
                    other => Ok(other),
                }
            }
            PdbSource::Store(folder) => from_store(folder, caches, key),
            PdbSource::Server(address) => {
                let Some(client) = &self.client else {
                    return Err("not asked: servers may not be asked (offline)".to_owned());
                };
                let Some(cache) = caches.last() else {
                    return Err("not asked: there is no cache to keep its answer in".to_owned());
                };
                let Some((file, from)) = download(client, address, cache, key, progress)? else {
                    return Ok(None);
                };
                Ok(Some((spread(&file, caches, key), from)))
            }
        }
    }
}

/// The file of a local store, checked; unpacked into a cache, or beside itself, if it is a cabinet.
fn from_store(folder: &Path, caches: &[&Path], key: &SymbolKey) -> Result<Option<(PathBuf, String)>, String> {
    match local::look_up(folder, key)? {
        None => Ok(None),
        Some(Found::Plain(file)) => {
            check(&file, key)?;
            let from = file.display().to_string();
            Ok(Some((spread(&file, caches, key), from)))
        }
        Some(Found::Cabinet(cabinet)) => {
            let from = cabinet.display().to_string();
            let packed = File::open(&cabinet).map_err(|error| format!("{from}: {error}"))?;
            let file = keep(caches.last().copied().unwrap_or(folder), key, |into| {
                cabinet::unpack(BufReader::new(&packed), key.name.as_str(), MAX_FILE, into)
            })?;
            Ok(Some((spread(&file, caches, key), from)))
        }
    }
}

/// Copies `file` into each cache, and returns where it is in the first that took it. A cache that cannot be
/// written to costs time later, no more.
fn spread(file: &Path, caches: &[&Path], key: &SymbolKey) -> PathBuf {
    let mut nearest = file.to_owned();
    for cache in caches.iter().rev() {
        if place_in(cache, key) == nearest {
            continue;
        }
        let copied = keep(cache, key, |into| {
            let mut source = File::open(&nearest).map_err(|error| error.to_string())?;
            std::io::copy(&mut source, into).map_err(|error| error.to_string())?;
            Ok(())
        });
        if let Ok(copied) = copied {
            nearest = copied;
        }
    }
    nearest
}

/// Where a store keeps the file of `key`.
fn place_in(store: &Path, key: &SymbolKey) -> PathBuf {
    let three = local::has_three_tiers(store);
    store.join(local::tier(key, three)).join(key.name.as_str())
}

/// Writes the file of `key` into a store: filled by `fill`, checked, and only then moved to its place.
fn keep(
    store: &Path,
    key: &SymbolKey,
    fill: impl FnOnce(&mut NamedTempFile) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let target = place_in(store, key);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", target.display());
    let folder = target.parent().unwrap_or(store);
    fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    let mut file = NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
    fill(&mut file)?;
    check(file.path(), key)?;
    file.as_file().sync_all().map_err(|error| failed(&error))?;
    let file = file.persist(&target).map_err(|error| failed(&error))?;
    drop(file);
    Ok(target)
}

/// Holds a file against the key under which it was found.
fn check(file: &Path, key: &SymbolKey) -> Result<(), String> {
    let mut open = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let identity =
        pdb::identity(&mut open).map_err(|error| format!("what it has is no usable PDB: {error}"))?;
    let Signature::Guid(guid) = key.signature else {
        return Err("PDBs named by a time stamp are of before Windows XP and not read".to_owned());
    };
    if identity.guid != guid || identity.age != key.age {
        return Err(format!(
            "what it has is another PDB: GUID {}, age {}; wanted are GUID {guid}, age {}",
            identity.guid, identity.age, key.age
        ));
    }
    Ok(())
}

/// Fetches the file of `key` from a server into `cache`.
fn download(
    client: &Client,
    server: &str,
    cache: &Path,
    key: &SymbolKey,
    progress: Progress<'_>,
) -> Result<Option<(PathBuf, String)>, String> {
    if let Some(found) = download_tier(client, server, cache, key, false, progress)? {
        return Ok(Some(found));
    }
    // Stores with many files have three tiers, and a file that says so.
    let index = format!("{server}/{}", local::INDEX);
    let answer = client.get(&index, MAX_INDEX, &mut || Ok(std::io::sink()), &mut |_, _| {});
    match answer {
        Ok(Some(_)) => download_tier(client, server, cache, key, true, progress),
        _ => Ok(None),
    }
}

fn download_tier(
    client: &Client,
    server: &str,
    cache: &Path,
    key: &SymbolKey,
    three: bool,
    progress: Progress<'_>,
) -> Result<Option<(PathBuf, String)>, String> {
    let name = key.name.as_str();
    let folder = format!("{server}/{}", encoded(&local::tier(key, three)));
    for (file, packed) in [(name.to_owned(), false), (local::compressed(name), true)] {
        let address = format!("{folder}/{}", encoded(&file));
        if let Some(kept) = fetch(client, &address, packed, cache, key, progress)? {
            return Ok(Some((kept, address)));
        }
    }
    let address = format!("{folder}/{}", local::POINTER);
    let Some(text) = client.get(&address, MAX_POINTER, &mut || Ok(Vec::new()), &mut |_, _| {})? else {
        return Ok(None);
    };
    match Pointer::parse(&String::from_utf8_lossy(&text)) {
        Pointer::Message(message) => Err(format!("{address} says: {}", printable(&message))),
        // A server may send us to itself, not into our own files or to anybody else.
        Pointer::Path(target) if target.starts_with(&format!("{server}/")) => {
            let packed = target.ends_with('_');
            match fetch(client, &target, packed, cache, key, progress)? {
                Some(kept) => Ok(Some((kept, target))),
                None => Err(format!(
                    "{address} leads to {}, which is not there",
                    printable(&target)
                )),
            }
        }
        Pointer::Path(target) => Err(format!(
            "{address} leads to {}, which is not on that server",
            printable(&target)
        )),
    }
}

/// Downloads one address into `cache`.
fn fetch(
    client: &Client,
    address: &str,
    packed: bool,
    cache: &Path,
    key: &SymbolKey,
    progress: Progress<'_>,
) -> Result<Option<PathBuf>, String> {
    let said = |why: String| format!("{address}: {why}");
    // Beside the cache's folders, so that a folder appears only together with its file.
    fs::create_dir_all(cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let mut begin = || NamedTempFile::new_in(cache);
    let Some(mut arrived) = client
        .get(address, MAX_FILE, &mut begin, progress)
        .map_err(said)?
    else {
        return Ok(None);
    };
    let kept = keep(cache, key, |into| {
        arrived.rewind().map_err(|error| error.to_string())?;
        if packed {
            return cabinet::unpack(BufReader::new(&mut arrived), key.name.as_str(), MAX_FILE, into);
        }
        std::io::copy(&mut arrived, into).map_err(|error| error.to_string())?;
        Ok(())
    });
    kept.map(Some).map_err(said)
}

/// A path as a part of an address: what is not plain becomes `%XX`.
fn encoded(path: &str) -> String {
    path.bytes()
        .fold(String::with_capacity(path.len()), |mut text, byte| {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                text.push(byte.into());
            } else {
                // Writing to a String cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
            text
        })
}
