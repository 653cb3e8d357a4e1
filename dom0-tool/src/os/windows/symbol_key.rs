//! How symbol stores name a PDB: `NAME/GUIDAGE/NAME`, as Microsoft's `symstore` lays its folders out.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name of a PDB. A file system takes no longer ones (`NAME_MAX`), and kernels' have 12 characters.
const MAX_NAME: usize = 255;

/// A globally unique identifier in the byte order of its structure: the first three parts little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Guid([u8; 16]);

impl Guid {
    /// The GUID whose sixteen bytes a file holds.
    pub const fn from_file(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads the 32 digits of a symbol store.
    pub fn from_text(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Some(Self(bytes))
    }

    /// The bytes as a file holds them.
    pub const fn to_file(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = &self.0;
        for index in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15] {
            write!(formatter, "{:02X}", bytes[index])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl TryFrom<String> for Guid {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_text(&text).ok_or("a GUID has 32 hexadecimal digits")
    }
}

impl From<Guid> for String {
    fn from(guid: Guid) -> Self {
        guid.to_string()
    }
}

/// Why a name cannot be a PDB's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing is left behind the last separator.
    #[error("the name of the PDB is empty in {0:?}")]
    Empty(String),
    /// Too long.
    #[error("the name of the PDB has {0} bytes; at most {MAX_NAME} are possible")]
    TooLong(usize),
    /// It would name another folder, or cannot be a file's name.
    #[error("{0:?} cannot be the name of a PDB")]
    Unfit(String),
}

/// The name of a PDB file, fit to be a part of a path: no separator, no control character, neither `.` nor
/// `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PdbName(String);

impl PdbName {
    /// The file's name in `path`, which an executable's debug record holds: often a full path of the machine
    /// that built it.
    ///
    /// # Errors
    /// [`NameError`]: the record is an allegation, and the name becomes a part of paths and of a URL.
    pub fn from_path(path: &str) -> Result<Self, NameError> {
        let name = path.rsplit(['\\', '/']).next().unwrap_or(path);
        if name.is_empty() {
            return Err(NameError::Empty(path.to_owned()));
        }
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong(name.len()));
        }
        let fit = |character: char| {
            !character.is_control() && !matches!(character, ':' | '*' | '?' | '"' | '<' | '>' | '|')
        };
        if name == "." || name == ".." || !name.chars().all(fit) {
            return Err(NameError::Unfit(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What tells one PDB from another besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signature {
    /// RSDS: all kernels since Windows XP.
    Guid(Guid),
    /// NB10: the linker's time stamp, before.
    TimeStamp(u32),
}

/// Names one PDB.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SymbolKey {
    /// The file's name.
    pub name: PdbName,
    /// Its signature.
    pub signature: Signature,
    /// Its age: how often the file was written anew under one signature.
    pub age: u32,
}

impl SymbolKey {
    /// The middle folder: signature in capitals, age in lower case without leading zeroes, as symbol servers
    /// want it.
    pub fn id(&self) -> String {
        match self.signature {
            Signature::Guid(guid) => format!("{guid}{:x}", self.age),
            Signature::TimeStamp(stamp) => format!("{stamp:08X}{:x}", self.age),
        }
    }

    /// Reads `NAME/GUIDAGE/NAME`, with or without the last part.
    pub fn from_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let (name, id) = (parts.next()?, parts.next()?);
        if parts.next().is_some_and(|again| again != name) || parts.next().is_some() {
            return None;
        }
        let (guid, age) = id.split_at_checked(32)?;
        Some(Self {
            name: PdbName::from_path(name).ok()?,
            signature: Signature::Guid(Guid::from_text(guid)?),
            age: u32::from_str_radix(age, 16).ok()?,
        })
    }

    /// `NAME/GUIDAGE/NAME`.
    pub fn path(&self) -> String {
        format!("{0}/{1}/{0}", self.name.as_str(), self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_stores() {
        // Windows XP SP3's ntkrnlpa.pdb, whose key is public.
        let guid = Guid::from_text("30B5FB31AE7E4ACAABA750AA241FF331").expect("32 digits");
        assert_eq!(guid.to_file()[..4], [0x31, 0xfb, 0xb5, 0x30]);
        let key = SymbolKey {
            name: PdbName::from_path("d:\\xpsp\\ntkrnlpa.pdb").expect("a name"),
            signature: Signature::Guid(guid),
            age: 1,
        };
        assert_eq!(
            key.path(),
            "ntkrnlpa.pdb/30B5FB31AE7E4ACAABA750AA241FF3311/ntkrnlpa.pdb"
        );
        assert_eq!(
            SymbolKey { age: 0x2a, ..key }.id(),
            "30B5FB31AE7E4ACAABA750AA241FF3312a"
        );
    }

    #[test]
    fn a_name_that_leaves_its_folder_is_refused() {
        for name in [
            "",
            "a/..",
            "..",
            ".",
            "x\\",
            "nt\0.pdb",
            "nt?x=.pdb",
            "nt\n.pdb",
            "c:nt.pdb",
        ] {
            assert!(PdbName::from_path(name).is_err(), "{name:?}");
        }
        assert!(PdbName::from_path(&"x".repeat(256)).is_err());
        assert_eq!(PdbName::from_path("a/../b.pdb").expect("b.pdb").as_str(), "b.pdb");
    }

    #[test]
    fn only_32_digits_are_a_guid() {
        assert_eq!(Guid::from_text("30B5FB31AE7E4ACAABA750AA241FF33"), None);
        assert_eq!(Guid::from_text("30B5FB31AE7E4ACAABA750AA241FF33G"), None);
        assert_eq!(Guid::from_text("+0B5FB31AE7E4ACAABA750AA241FF331"), None);
    }
}
