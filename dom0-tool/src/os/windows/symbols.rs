//! Finds a PDB in symbol stores, and reads what it says of a kernel.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::facts::KernelFacts;
use super::locate::Located;
use super::pdb::{self, PdbFacts};
use super::store::path::{PUBLIC_SERVER, SymbolPath, VARIABLE};
use super::store::{Finder, Hit, Limits, Miss};
use super::symbol_key::SymbolKey;
use crate::failure::{Class, Failure};
use crate::os::{Sources, SymbolSources};
use crate::progress::{Progress, Remark, Step};

/// What the PDB of `kernel` says: the file that was named, facts that were imported, or a symbol store. With
/// `quietly` no server is asked.
///
/// # Errors
/// Why nothing is known.
pub fn facts_of<P: Progress + ?Sized>(
    kernel: &Located,
    sources: &Sources,
    quietly: bool,
    progress: &mut P,
) -> Result<PdbFacts, Failure> {
    if let Some(file) = &sources.symbols.pdb {
        return read_pdb(file);
    }
    let imported = KernelFacts::file_in(&sources.layouts, &kernel.key);
    if imported.is_file() {
        return Ok(KernelFacts::load(&imported)?.facts);
    }
    let symbols = SymbolSources {
        pdb: None,
        path: sources.symbols.path.clone(),
        offline: sources.symbols.offline || quietly,
    };
    read_pdb(&find(&kernel.key, &symbols, progress)?.file)
}

/// Reads a PDB, with the file's name in what goes wrong.
///
/// # Errors
/// What is wrong with it.
pub fn read_pdb(file: &Path) -> Result<PdbFacts, Failure> {
    let named = |failure: Failure| Failure {
        what: format!("{}: {}", file.display(), failure.what),
        ..failure
    };
    let open = File::open(file).map_err(|error| named(unreadable(&error)))?;
    pdb::read(open).map_err(|error| named(error.into()))
}

/// A file that cannot be opened.
pub fn unreadable(error: &std::io::Error) -> Failure {
    let class = match error.kind() {
        std::io::ErrorKind::NotFound => Class::NotFound,
        _ => Class::Failed,
    };
    Failure::plain(class, error)
}

/// Finds the PDB that `key` names where `sources` say.
///
/// # Errors
/// Where it was looked for in vain, and how to get it here.
pub fn find<P: Progress + ?Sized>(
    key: &SymbolKey,
    sources: &SymbolSources,
    progress: &mut P,
) -> Result<Hit, Failure> {
    let cache = default_cache();
    let said = sources.path.clone().or_else(|| {
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
    let finder = Finder::new(path, (!sources.offline).then(Limits::default));
    progress.remark(Remark::LookingFor(key.path()));
    progress.begin(Step::FetchPdb);
    let found = finder.find(key, &mut |done, length| {
        progress.advance(done, length.unwrap_or(0));
    });
    progress.end();
    found.map_err(|misses| not_found(key, finder.path(), &cache, &misses))
}

fn not_found(key: &SymbolKey, path: &SymbolPath, cache: &Path, misses: &[Miss]) -> Failure {
    let mut what = format!("the PDB {} was not found", key.path());
    for miss in misses {
        // Writing to a String cannot fail.
        let _ = write!(what, "\n  {}: {}", miss.place, miss.why);
    }
    let server = path.servers().next().unwrap_or(PUBLIC_SERVER);
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

/// Where PDBs are kept that were fetched: in the user's cache folder.
fn default_cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"));
    base.join("lacuna/symbols")
}
