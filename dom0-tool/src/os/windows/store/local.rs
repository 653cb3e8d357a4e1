//! Symbol stores that are folders: two or three tiers, plain, compressed, or a pointer to somewhere else.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::os::windows::symbol_key::SymbolKey;

/// The file that says that a store has three tiers: folders by the first two letters above those by name.
pub(super) const INDEX: &str = "index2.txt";
/// The file that says where the wanted one is.
pub(super) const POINTER: &str = "file.ptr";
/// Most entries of a folder looked through for a name in other letters. Microsoft's own store has some
/// 100,000 names.
const MAX_ENTRIES: usize = 1 << 20;
/// Longest pointer file read.
pub(super) const MAX_POINTER: u64 = 4096;

/// What a store has of a PDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The file.
    Plain(PathBuf),
    /// A cabinet with the file in it.
    Cabinet(PathBuf),
}

/// What a pointer file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pointer {
    /// The file is there.
    Path(String),
    /// There is none, for this reason.
    Message(String),
}

impl Pointer {
    /// Reads `PATH:...`, `MSG:...` or a path alone.
    pub(super) fn parse(text: &str) -> Self {
        let line = text
            .trim_start_matches('\u{feff}')
            .lines()
            .next()
            .unwrap_or_default()
            .trim();
        match line.split_once(':') {
            Some((word, rest)) if word.eq_ignore_ascii_case("path") => Self::Path(rest.trim().to_owned()),
            Some((word, rest)) if word.eq_ignore_ascii_case("msg") => Self::Message(rest.trim().to_owned()),
            _ => Self::Path(line.to_owned()),
        }
    }
}

/// `NAME/ID` in a store of two tiers, `NA/NAME/ID` in one of three.
pub(super) fn tier(key: &SymbolKey, three: bool) -> String {
    let name = key.name.as_str();
    let folder = format!("{name}/{}", key.id());
    if three {
        let letters: String = name.chars().take(2).collect();
        format!("{letters}/{folder}")
    } else {
        folder
    }
}

/// The name of the compressed file: the last character becomes an underscore.
pub(super) fn compressed(name: &str) -> String {
    let mut characters: Vec<char> = name.chars().collect();
    if let Some(last) = characters.last_mut() {
        *last = '_';
    }
    characters.into_iter().collect()
}

/// Whether the store in `folder` has three tiers.
pub(super) fn has_three_tiers(folder: &Path) -> bool {
    folder.join(INDEX).is_file()
}

/// Looks for `key` in the store in `folder`. The text says why a pointer led nowhere.
pub(super) fn look_up(folder: &Path, key: &SymbolKey) -> Result<Option<Found>, String> {
    let name = key.name.as_str();
    let three = has_three_tiers(folder);
    // A store may have been converted half-way, so the other form is asked as well.
    for tiers in [three, !three] {
        let Some(place) = in_any_case(folder, &tier(key, tiers)) else {
            continue;
        };
        if let Some(plain) = in_any_case(&place, name).filter(|plain| plain.is_file()) {
            return Ok(Some(Found::Plain(plain)));
        }
        if let Some(cabinet) = in_any_case(&place, &compressed(name)).filter(|cabinet| cabinet.is_file()) {
            return Ok(Some(Found::Cabinet(cabinet)));
        }
        if let Some(pointer) = in_any_case(&place, POINTER).filter(|pointer| pointer.is_file()) {
            return follow(folder, &pointer).map(Some);
        }
    }
    Ok(None)
}

/// What lies at `path` below `folder`, as written, or else in other letters, large for small: Windows does
/// not tell them apart, and stores are copied from there. The first in alphabetical order if there are
/// several.
pub(super) fn in_any_case(folder: &Path, path: &str) -> Option<PathBuf> {
    let exact = folder.join(path);
    if exact.exists() {
        return Some(exact);
    }
    path.split('/').try_fold(folder.to_owned(), |at, part| {
        let exact = at.join(part);
        if exact.exists() {
            return Some(exact);
        }
        let alike = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            name.eq_ignore_ascii_case(part).then_some(name)
        };
        let name = std::fs::read_dir(&at)
            .ok()?
            .take(MAX_ENTRIES)
            .filter_map(alike)
            .min()?;
        Some(at.join(name))
    })
}

fn follow(folder: &Path, pointer: &Path) -> Result<Found, String> {
    let mut text = String::new();
    File::open(pointer)
        .and_then(|file| file.take(MAX_POINTER).read_to_string(&mut text))
        .map_err(|error| format!("{}: {error}", pointer.display()))?;
    match Pointer::parse(&text) {
        Pointer::Message(message) => Err(format!("{} says: {}", pointer.display(), printable(&message))),
        Pointer::Path(path) if path.starts_with("\\\\") || path.contains("://") => Err(format!(
            "{} leads to {}, which is no folder of this machine",
            pointer.display(),
            printable(&path)
        )),
        Pointer::Path(path) => {
            let target = folder.join(path.replace('\\', "/"));
            if !target.is_file() {
                return Err(format!(
                    "{} leads to {}, which is not there",
                    pointer.display(),
                    target.display()
                ));
            }
            let is_cabinet = target.to_string_lossy().ends_with('_');
            Ok(if is_cabinet {
                Found::Cabinet(target)
            } else {
                Found::Plain(target)
            })
        }
    }
}

/// Text from elsewhere, without what could steer a terminal, and not endless.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|character| if character.is_control() { '?' } else { character })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_say_where_or_why_not() {
        assert_eq!(
            Pointer::parse("PATH:\\\\server\\x.pdb\r\n"),
            Pointer::Path("\\\\server\\x.pdb".into())
        );
        assert_eq!(Pointer::parse("msg: gone"), Pointer::Message("gone".into()));
        assert_eq!(Pointer::parse("/a/b.pdb"), Pointer::Path("/a/b.pdb".into()));
        assert_eq!(compressed("ntkrnlmp.pdb"), "ntkrnlmp.pd_");
        assert_eq!(printable("a\x1b[31mb"), "a?[31mb");
    }
}
