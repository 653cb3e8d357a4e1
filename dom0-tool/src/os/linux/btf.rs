//! BTF: the types of a kernel as the kernel carries them in its own memory (`Documentation/bpf/btf.rst`).
//!
//! Kernels built with `CONFIG_DEBUG_INFO_BTF` hold 4 to 6 MB of it in their read-only data. This reads sizes,
//! offsets, array lengths and enumerators of what is asked for, and nothing else. The blob is found inside
//! the kernel's image, which user memory is not mapped into; its contents are bounded-checked like everything
//! that comes out of a guest: each loop ends with the blob, and nesting is followed `MAX_DEPTH` deep.

use std::collections::BTreeMap;

use thiserror::Error;

/// `BTF_MAGIC` (`include/uapi/linux/btf.h`), version 1, no flags, header of 24 bytes: how every blob so far
/// begins.
pub const BEGINNING: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
/// Bytes of a header.
pub const HEADER_BYTES: usize = 24;
/// Largest blob accepted, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;
/// How deep anonymous members and typedefs are followed.
const MAX_DEPTH: u32 = 12;

const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const TYPE_TAG: u32 = 18;

/// Why bytes are not BTF.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BtfError {
    /// The header is not one, or its sections do not fit.
    #[error("no BTF begins here")]
    Header,
    /// A type runs past the section or has an unknown kind.
    #[error("type {number} of the BTF at byte {at} is malformed (kind {kind})")]
    Type {
        /// Its number.
        number: usize,
        /// Where, from the section's start.
        at: usize,
        /// Its kind.
        kind: u32,
    },
}

/// Parsed BTF: a table of where each type begins.
#[derive(Clone, Debug)]
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where type N begins; type 0 is void.
    starts: Vec<u32>,
    /// Structures by name; two that differ in size are `None`.
    structures: BTreeMap<&'static str, Option<usize>>,
    enumerators: BTreeMap<&'static str, u64>,
}

/// One type's fixed part.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    count: u32,
    kind: u32,
    flag: bool,
    /// Bytes, or another type's number.
    size: u32,
    body: usize,
}

impl Btf {
    /// How many bytes the blob takes whose header is `header`.
    ///
    /// # Errors
    /// [`BtfError::Header`].
    pub fn length(header: &[u8]) -> Result<u64, BtfError> {
        let word = |at: usize| u64::from(u32_at(header, at).unwrap_or(0));
        if header.len() < HEADER_BYTES || !header.starts_with(&BEGINNING) {
            return Err(BtfError::Header);
        }
        let (type_at, type_bytes, string_at, string_bytes) = (word(8), word(12), word(16), word(20));
        let length = HEADER_BYTES as u64 + string_at + string_bytes;
        let whole = type_at == 0 && type_bytes > 0 && string_at == type_bytes && string_bytes > 0;
        if whole && length <= MAX_BYTES {
            Ok(length)
        } else {
            Err(BtfError::Header)
        }
    }

    /// Parses a blob and notes the structures and enumerators of these names.
    ///
    /// # Errors
    /// [`BtfError`].
    pub fn parse(
        blob: &[u8],
        structures: &[&'static str],
        enumerators: &[&'static str],
    ) -> Result<Self, BtfError> {
        let length = usize::try_from(Self::length(blob)?).map_err(|_| BtfError::Header)?;
        let blob = blob.get(..length).ok_or(BtfError::Header)?;
        let type_bytes = u32_at(blob, 12).unwrap_or(0) as usize;
        let (types, strings) = blob[HEADER_BYTES..]
            .split_at_checked(type_bytes)
            .ok_or(BtfError::Header)?;
        let mut btf = Self {
            types: types.to_vec(),
            strings: strings.to_vec(),
            starts: vec![u32::MAX],
            structures: BTreeMap::new(),
            enumerators: BTreeMap::new(),
        };
        let mut at = 0;
        while at < btf.types.len() {
            let number = btf.starts.len();
            let malformed = |kind| BtfError::Type { number, at, kind };
            let head = btf.head_at(at).ok_or(malformed(u32::MAX))?;
            let count = head.count as usize;
            let tail = match head.kind {
                1 | 14 | 17 => 4,
                2 | 7..=12 | 16 | 18 => 0,
                ARRAY => 12,
                STRUCT | UNION | 15 | 19 => 12 * count,
                ENUM | 13 => 8 * count,
                kind => return Err(malformed(kind)),
            };
            let end = head.body + tail;
            if end > btf.types.len() {
                return Err(malformed(head.kind));
            }
            btf.starts
                .push(u32::try_from(at).map_err(|_| malformed(head.kind))?);
            match head.kind {
                STRUCT => {
                    let name = btf.name(head.name);
                    if let Some(wanted) = structures.iter().find(|wanted| wanted.as_bytes() == name) {
                        btf.note(wanted, number);
                    }
                }
                ENUM => {
                    for index in 0..count {
                        let name = btf.name(u32_at(&btf.types, head.body + 8 * index).unwrap_or(0));
                        if let Some(wanted) = enumerators.iter().find(|wanted| wanted.as_bytes() == name) {
                            let value = u32_at(&btf.types, head.body + 8 * index + 4).unwrap_or(0);
                            btf.enumerators.insert(wanted, u64::from(value));
                        }
                    }
                }
                _ => {}
            }
            at = end;
        }
        Ok(btf)
    }

    fn note(&mut self, name: &'static str, number: usize) {
        let size = |btf: &Self, number| btf.head(number).map(|head| head.size);
        let differs = match self.structures.get(name) {
            None => false,
            Some(None) => true,
            Some(Some(other)) => size(self, *other) != size(self, number),
        };
        self.structures.insert(name, (!differs).then_some(number));
    }

    /// `sizeof(struct name)`.
    pub fn size(&self, name: &str) -> Option<u64> {
        Some(u64::from(self.structure(name)?.size))
    }

    /// `offsetof(struct name, member)`, also of a member of an anonymous structure or union inside it.
    pub fn offset(&self, name: &str, member: &str) -> Option<u64> {
        self.find(self.structure(name)?, member.as_bytes(), 0)
            .map(|(offset, _)| offset)
    }

    /// Number of elements of the array `member` of `struct name`.
    pub fn elements(&self, name: &str, member: &str) -> Option<u64> {
        let (_, kind) = self.find(self.structure(name)?, member.as_bytes(), 0)?;
        let array = self.bare(kind)?;
        (array.kind == ARRAY)
            .then(|| u32_at(&self.types, array.body + 8).map(u64::from))
            .flatten()
    }

    /// Value of an enumerator.
    pub fn enumerator(&self, name: &str) -> Option<u64> {
        self.enumerators.get(name).copied()
    }

    fn structure(&self, name: &str) -> Option<Head> {
        self.head(self.structures.get(name).copied().flatten()?)
    }

    /// Offset and type of `member`.
    fn find(&self, of: Head, member: &[u8], depth: u32) -> Option<(u64, usize)> {
        if depth > MAX_DEPTH {
            return None;
        }
        for index in 0..of.count as usize {
            let at = of.body + 12 * index;
            let (name, kind, place) = (
                u32_at(&self.types, at)?,
                u32_at(&self.types, at + 4)? as usize,
                u32_at(&self.types, at + 8)?,
            );
            // With the flag, the upper byte is a bit field's width.
            let bits = if of.flag { place & 0x00ff_ffff } else { place };
            let offset = u64::from(bits / 8);
            let name = self.name(name);
            if name == member {
                return (bits % 8 == 0).then_some((offset, kind));
            }
            if name.is_empty()
                && let Some(inner) = self
                    .bare(kind)
                    .filter(|inner| matches!(inner.kind, STRUCT | UNION))
                && let Some((inside, kind)) = self.find(inner, member, depth + 1)
            {
                return Some((offset + inside, kind));
            }
        }
        None
    }

    /// The type behind qualifiers and other names.
    fn bare(&self, number: usize) -> Option<Head> {
        let mut head = self.head(number)?;
        for _ in 0..MAX_DEPTH {
            if !matches!(head.kind, TYPEDEF | VOLATILE | CONST | TYPE_TAG) {
                break;
            }
            head = self.head(head.size as usize)?;
        }
        Some(head)
    }

    fn head(&self, number: usize) -> Option<Head> {
        let start = *self.starts.get(number)?;
        (start != u32::MAX)
            .then(|| self.head_at(start as usize))
            .flatten()
    }

    fn head_at(&self, at: usize) -> Option<Head> {
        let info = u32_at(&self.types, at + 4)?;
        Some(Head {
            name: u32_at(&self.types, at)?,
            count: info & 0xffff,
            kind: info >> 24 & 0x1f,
            flag: info >> 31 == 1,
            size: u32_at(&self.types, at + 8)?,
            body: at + 12,
        })
    }

    fn name(&self, offset: u32) -> &[u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        // No name that is asked for is longer.
        let near = &rest[..rest.len().min(64)];
        near.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

#[cfg(test)]
#[path = "../../../tests/made/btf.rs"]
mod made;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::made::sample;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_of_anonymous_members_are_found_at_their_place() {
        let btf = Btf::parse(&sample(), &["page"], &["PGTY_buddy"]).unwrap();
        assert_eq!(btf.size("page"), Some(44));
        assert_eq!(btf.offset("page", "flags"), Some(0));
        assert_eq!(btf.offset("page", "_mapcount"), Some(12));
        assert_eq!(btf.offset("page", "private"), Some(8));
        assert_eq!(btf.elements("page", "array"), Some(7));
        assert_eq!(btf.elements("page", "flags"), None);
        assert_eq!(btf.enumerator("PGTY_buddy"), Some(0xf0));
        assert_eq!(btf.offset("page", "nothing"), None);
    }

    #[test]
    fn a_blob_that_is_cut_short_is_refused() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(Btf::parse(&whole[..length], &["page"], &[]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn damaged_btf_is_parsed_or_refused(at in 0..200_usize, value in any::<u8>(), more in 0..200_usize) {
            let mut blob = sample();
            let length = blob.len();
            blob[at % length] ^= value;
            blob[more % length] = value;
            if let Ok(btf) = Btf::parse(&blob, &["page"], &["PGTY_buddy"]) {
                let _ = (btf.size("page"), btf.offset("page", "_mapcount"), btf.elements("page", "array"));
            }
        }
    }
}
