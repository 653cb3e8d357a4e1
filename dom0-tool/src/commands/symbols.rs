//! `lacuna symbols fetch`, `lacuna profile export` and `lacuna profile import`: PDBs, and what they say.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Out;
use super::progress;
use crate::commands::cli::{ProfileExport, ProfileImport, SymbolSource, SymbolsFetch};
use crate::failure::{Class, Failure};
use crate::os::windows::facts::KernelFacts;
use crate::os::windows::pdb::container::Container;
use crate::os::windows::pdb::{self, PdbFacts};
use crate::os::windows::pe;
use crate::os::windows::store::path::{SymbolPath, VARIABLE};
use crate::os::windows::store::{Finder, Hit, Limits, Miss};
use crate::os::windows::symbol_key::{PdbName, SymbolKey};

/// Largest executable read. Kernels have 2 to 20 MiB.
const MAX_EXECUTABLE: u64 = 256 << 20;

/// `lacuna symbols fetch`.
pub(super) fn fetch(arguments: &SymbolsFetch, out: Out) -> Result<Value, Failure> {
    let key = key_of(&arguments.what)?;
    let hit = find(&key, &arguments.symbols, out)?;
    out.line(format!("PDB         {}", hit.file.display()));
    out.line(format!("from        {}", hit.from));
    Ok(json!({
        "symbol_path": key.path(),
        "file": hit.file.display().to_string(),
        "from": hit.from,
        "asked_in_vain": misses_json(&hit.misses),
    }))
}

/// `lacuna profile export`.
pub(super) fn export(arguments: &ProfileExport, out: Out) -> Result<Value, Failure> {
    let path = Path::new(&arguments.what);
    let (name, facts) = if begins(path).is_some_and(|head| Container::is_meant_by(&head)) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name = PdbName::from_path(name).map_err(|error| Failure::plain(Class::Refused, error))?;
        (name, read_pdb(path)?)
    } else {
        let key = key_of(&arguments.what)?;
        let hit = find(&key, &arguments.symbols, out)?;
        (key.name, read_pdb(&hit.file)?)
    };
    if facts.mmpfn_size.is_none() {
        return Err(Failure::new(
            Class::Refused,
            format!("{} knows no _MMPFN", arguments.what),
            "only the PDBs of Windows kernels (ntoskrnl, ntkrnlmp, ntkrnlpa, ntkrpamp) are of use",
        ));
    }
    let facts = KernelFacts::new(&name, facts);
    facts.save(&arguments.out)?;
    out.line(format!("written     {}", arguments.out.display()));
    Ok(json!({ "written": arguments.out.display().to_string(), "symbol_path": path_of(&facts)? }))
}

/// `lacuna profile import`.
pub(super) fn import(arguments: &ProfileImport, out: Out) -> Result<Value, Failure> {
    let facts = KernelFacts::load(&arguments.file)?;
    let key = facts
        .key()
        .map_err(|error| Failure::plain(Class::Refused, error))?;
    let file = KernelFacts::file_in(&arguments.layouts, &key);
    facts.save(&file)?;
    out.line(format!("kept        {}", file.display()));
    Ok(json!({ "kept": file.display().to_string(), "symbol_path": key.path() }))
}

fn path_of(facts: &KernelFacts) -> Result<String, Failure> {
    let key = facts
        .key()
        .map_err(|error| Failure::plain(Class::Refused, error))?;
    Ok(key.path())
}

/// Reads a PDB, with the file's name in what goes wrong.
pub(super) fn read_pdb(file: &Path) -> Result<PdbFacts, Failure> {
    let named = |failure: Failure| Failure {
        what: format!("{}: {}", file.display(), failure.what),
        ..failure
    };
    let open = File::open(file).map_err(|error| named(unreadable(&error)))?;
    pdb::read(open).map_err(|error| named(error.into()))
}

fn unreadable(error: &std::io::Error) -> Failure {
    let class = match error.kind() {
        std::io::ErrorKind::NotFound => Class::NotFound,
        _ => Class::Failed,
    };
    Failure::plain(class, error)
}

fn begins(file: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(file).ok()?.take(64).read_to_end(&mut head).ok()?;
    Some(head)
}

/// The key that an executable's debug record or a store path names.
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
            format!("{what} names no PDB: it has no debug record"),
            "is it a kernel of Windows?",
        ));
    };
    record
        .key()
        .map_err(|error| Failure::plain(Class::Refused, format!("{what}: {error}")))
}

/// Finds the PDB that `key` names where `source` says, with progress.
pub(super) fn find(key: &SymbolKey, source: &SymbolSource, out: Out) -> Result<Hit, Failure> {
    let cache = default_cache();
    let said = source.symbols.clone().or_else(|| {
        std::env::var(VARIABLE)
            .ok()
            .filter(|path| !path.trim().is_empty())
    });
    let path = match &said {
        Some(path) => SymbolPath::parse(path, &cache).map_err(|error| {
            Failure::new(
                Class::Failed,
                error,
                "the syntax is that of _NT_SYMBOL_PATH: srv*CACHE*URL, cache*FOLDER, FOLDER; separated by ;",
            )
        })?,
        None => SymbolPath::default_path(&cache),
    };
    let finder = Finder::new(path, (!source.offline).then(Limits::default));
    out.line(format!("looking for {}", key.path()));
    let bar = progress::over_download();
    let found = finder.find(key, &mut |done, length| {
        if let Some(length) = length {
            bar.set_length(length);
        }
        bar.set_position(done);
    });
    bar.finish_and_clear();
    found.map_err(|misses| not_found(key, finder.path(), &cache, &misses))
}

fn not_found(key: &SymbolKey, path: &SymbolPath, cache: &Path, misses: &[Miss]) -> Failure {
    let mut what = format!("the PDB {} was not found", key.path());
    for miss in misses {
        // Writing to a String cannot fail.
        let _ = write!(what, "\n  {}: {}", miss.place, miss.why);
    }
    let server = path
        .servers()
        .next()
        .unwrap_or(crate::os::windows::store::path::PUBLIC_SERVER);
    let place = path.first_store().unwrap_or(cache).join(key.path());
    Failure::new(
        Class::NotFound,
        what,
        format!(
            "fetch {server}/{} on a machine that can and put it at {}; or there `lacuna profile export {} --out FILE`, and here `lacuna profile import FILE`",
            key.path(),
            place.display(),
            key.path()
        ),
    )
}

fn misses_json(misses: &[Miss]) -> Value {
    misses
        .iter()
        .map(|miss| json!({ "place": miss.place, "why": miss.why }))
        .collect()
}

/// Where PDBs are kept that were fetched: in the user's cache folder.
fn default_cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"));
    base.join("lacuna/symbols")
}
