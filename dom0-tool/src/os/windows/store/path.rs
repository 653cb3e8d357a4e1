//! Where to look for a PDB: a path in the syntax of `_NT_SYMBOL_PATH`, which every Windows debugger reads.
//!
//! Elements are separated by `;`. `srv*A*B*C` asks A, then B, then C, and copies what it finds into those
//! before; `symsrv*DLL*...` is the same (the name of the library is passed over); `cache*DIR` is a cache for
//! all elements after it; anything else is a folder or the address of a server. An empty place is the default
//! cache, at the end of a list Microsoft's server: so `srv*` alone is what the debuggers' `.symfix` means.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Microsoft's public symbol server, the default of the field ("Microsoft public symbol server" in the
/// debuggers' documentation).
pub const PUBLIC_SERVER: &str = "https://msdl.microsoft.com/download/symbols";
/// The environment variable that debuggers read.
pub const VARIABLE: &str = "_NT_SYMBOL_PATH";
/// Most elements, and most places in one.
const MAX_PLACES: usize = 64;

/// Why a symbol path cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PathError {
    /// Too many parts.
    #[error("the symbol path has more than {MAX_PLACES} places")]
    TooLong,
    /// An address with a scheme that is not spoken.
    #[error("{0:?} in the symbol path: only http, https and folders can be asked")]
    Scheme(String),
    /// A server that should keep files.
    #[error("{0:?} in the symbol path is a server and cannot be a cache")]
    ServerAsCache(String),
    /// A path that only Windows can follow.
    #[error(
        "{0:?} in the symbol path is a path of Windows; mount the share or copy the folder, and name the place where it is here"
    )]
    Windows(String),
    /// An address with more than a host and a folder.
    #[error(
        "{0:?} in the symbol path: an address ends with a folder, and what follows ? or # cannot be sent"
    )]
    Query(String),
    /// An element without places.
    #[error("{0:?} in the symbol path names no place")]
    Empty(String),
}

/// A place that may have PDBs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PdbSource {
    /// A folder in the layout of a symbol store, which can also keep what others have.
    Store(PathBuf),
    /// Any folder: the layout of a store, or files by their names alone.
    Folder(PathBuf),
    /// A server; its address without a slash at the end.
    Server(String),
}

/// One element: places in the order in which they are asked, and the caches that keep what is found further
/// on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Places.
    pub places: Vec<PdbSource>,
}

/// A symbol path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolPath {
    /// Elements in their order.
    pub elements: Vec<Element>,
}

impl SymbolPath {
    /// Parses `text`. `default_cache` stands for an empty part of `srv**...`, and is put before a server that
    /// has no cache.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn parse(text: &str, default_cache: &Path) -> Result<Self, PathError> {
        let mut elements = Vec::new();
        let mut caches: Vec<PdbSource> = Vec::new();
        for element in text
            .split(';')
            .map(str::trim)
            .filter(|element| !element.is_empty())
        {
            if elements.len() + caches.len() >= MAX_PLACES {
                return Err(PathError::TooLong);
            }
            let mut parts = element.split('*');
            let first = parts.next().unwrap_or_default().to_ascii_lowercase();
            let is_list = element.contains('*');
            if is_list && first == "cache" {
                for part in parts {
                    caches.push(store(part, default_cache)?);
                }
                continue;
            }
            let mut places = caches.clone();
            match first.as_str() {
                "srv" | "symsrv" if is_list => {
                    if first == "symsrv" {
                        parts.next();
                    }
                    let parts: Vec<&str> = parts.collect();
                    let Some((last, before)) = parts.split_last() else {
                        return Err(PathError::Empty(element.to_owned()));
                    };
                    for part in before {
                        places.push(store(part, default_cache)?);
                    }
                    places.push(match server(last)? {
                        Some(address) => PdbSource::Server(address),
                        None if last.trim().is_empty() => PdbSource::Server(PUBLIC_SERVER.to_owned()),
                        None => store(last, default_cache)?,
                    });
                }
                _ => places.push(match server(element)? {
                    Some(address) => PdbSource::Server(address),
                    None => PdbSource::Folder(local(element)?),
                }),
            }
            if places.len() > MAX_PLACES {
                return Err(PathError::TooLong);
            }
            // Without a cache a server's file would have nowhere to be.
            let has_store = places.iter().any(|place| matches!(place, PdbSource::Store(_)));
            if !has_store && matches!(places.last(), Some(PdbSource::Server(_))) {
                places.insert(0, PdbSource::Store(default_cache.to_owned()));
            }
            elements.push(Element { places });
        }
        if elements.is_empty() {
            if caches.is_empty() {
                return Err(PathError::Empty(text.to_owned()));
            }
            elements.push(Element { places: caches });
        }
        Ok(Self { elements })
    }

    /// What is meant when nothing was said: the public server, behind the default cache.
    pub fn default_path(default_cache: &Path) -> Self {
        Self {
            elements: vec![Element {
                places: vec![
                    PdbSource::Store(default_cache.to_owned()),
                    PdbSource::Server(PUBLIC_SERVER.to_owned()),
                ],
            }],
        }
    }

    /// Where to put a file by hand so that it is found.
    pub fn first_store(&self) -> Option<&Path> {
        self.places().find_map(|place| match place {
            PdbSource::Store(folder) => Some(folder.as_path()),
            _ => None,
        })
    }

    /// The servers' addresses.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.places().filter_map(|place| match place {
            PdbSource::Server(address) => Some(address.as_str()),
            _ => None,
        })
    }

    fn places(&self) -> impl Iterator<Item = &PdbSource> {
        self.elements.iter().flat_map(|element| &element.places)
    }
}

fn store(part: &str, default_cache: &Path) -> Result<PdbSource, PathError> {
    if server(part)?.is_some() {
        return Err(PathError::ServerAsCache(part.to_owned()));
    }
    Ok(PdbSource::Store(match part.trim() {
        "" => default_cache.to_owned(),
        folder => local(folder)?,
    }))
}

/// A folder of this machine.
fn local(folder: &str) -> Result<PathBuf, PathError> {
    let has_drive = folder
        .split_once(':')
        .is_some_and(|(drive, rest)| drive.len() == 1 && rest.starts_with(['\\', '/']));
    if folder.starts_with("\\\\") || has_drive {
        return Err(PathError::Windows(folder.to_owned()));
    }
    Ok(PathBuf::from(folder))
}

/// The address in `part` if it is one.
fn server(part: &str) -> Result<Option<String>, PathError> {
    let Some((scheme, rest)) = part.trim().split_once("://") else {
        return Ok(None);
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(PathError::Scheme(part.to_owned()));
    }
    if rest.contains(['?', '#']) {
        return Err(PathError::Query(part.to_owned()));
    }
    Ok(Some(format!("{scheme}://{}", rest.trim_end_matches('/'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Vec<PdbSource>>, PathError> {
        let path = SymbolPath::parse(text, Path::new("/default"))?;
        Ok(path.elements.into_iter().map(|element| element.places).collect())
    }

    fn store(folder: &str) -> PdbSource {
        PdbSource::Store(folder.into())
    }

    fn server(address: &str) -> PdbSource {
        PdbSource::Server(address.into())
    }

    #[test]
    fn the_debuggers_syntax_is_read() {
        assert_eq!(
            parse("SRV*/a*/b*HTTP://h/symbols/; /c ;symsrv*symsrv.dll**http://g").expect("well-formed"),
            [
                vec![store("/a"), store("/b"), server("http://h/symbols")],
                vec![PdbSource::Folder("/c".into())],
                vec![store("/default"), server("http://g")],
            ]
        );
        assert_eq!(
            parse("/first;cache*/keep;http://h;srv*/net").expect("well-formed"),
            [
                vec![PdbSource::Folder("/first".into())],
                vec![store("/keep"), server("http://h")],
                vec![store("/keep"), store("/net")],
            ]
        );
        assert_eq!(
            parse("https://h/x").expect("well-formed"),
            [vec![store("/default"), server("https://h/x")]]
        );
    }

    #[test]
    fn what_is_left_out_is_what_debuggers_mean() {
        let public = [vec![store("/default"), server(PUBLIC_SERVER)]];
        for text in [
            "srv*",
            "SRV*",
            ";; srv* ;",
            "srv**",
            "Cache*;srv*",
            "symsrv*symsrv.dll*",
        ] {
            let places = parse(text).expect("well-formed");
            let mut places = places.into_iter().next().expect("an element");
            places.dedup();
            assert_eq!([places], public, "{text}");
        }
        assert_eq!(
            parse("cache*/a;cache*").expect("well-formed"),
            [vec![store("/a"), store("/default")]]
        );
        assert_eq!(
            parse("cache*/a;CACHE*/b;srv*/c*https://h/;cache*/d;/e").expect("well-formed"),
            [
                vec![store("/a"), store("/b"), store("/c"), server("https://h")],
                vec![
                    store("/a"),
                    store("/b"),
                    store("/d"),
                    PdbSource::Folder("/e".into())
                ],
            ]
        );
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        assert_eq!(parse("ftp://h"), Err(PathError::Scheme("ftp://h".into())));
        assert_eq!(
            parse("srv*http://h*/a"),
            Err(PathError::ServerAsCache("http://h".into()))
        );
        assert_eq!(parse(&"/a;".repeat(65)), Err(PathError::TooLong));
        assert_eq!(parse(" ; ;"), Err(PathError::Empty(" ; ;".into())));
        let without_places = "symsrv*x.dll";
        assert_eq!(
            parse(without_places),
            Err(PathError::Empty(without_places.into()))
        );
        assert_eq!(
            parse(&format!("srv{}", "*/a".repeat(65))),
            Err(PathError::TooLong)
        );
        for windows in ["\\\\server\\share", "c:\\symbols", "C:/symbols"] {
            for text in [
                windows.to_owned(),
                format!("srv*{windows}*https://h"),
                format!("srv*/a*{windows}"),
                format!("cache*{windows}"),
            ] {
                assert_eq!(parse(&text), Err(PathError::Windows(windows.into())), "{text}");
            }
        }
        assert_eq!(
            parse("srv*/a*https://h/x?key=1"),
            Err(PathError::Query("https://h/x?key=1".into()))
        );
    }
}
