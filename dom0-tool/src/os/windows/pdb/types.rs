//! `_MMPFN` and `_MMLISTS`: a bounded depth-first walk through a PDB's types.
//!
//! Members are what is looked for, not the types they are in: the type that holds `PageLocation` is
//! `_MMPFNENTRY` until Windows 10 1703 and `_MMPFNENTRY1` after it, and it sits in a union in a structure in
//! `_MMPFN`.

use std::collections::BTreeMap;

use pdb2::{TypeData, TypeInformation};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PdbError;
use super::definitions::{MAX_CONTINUATIONS, MAX_VALUES, Types};
use super::walk::{MAX_DEPTH, MAX_MEMBERS, Walk};

/// The type of an entry of the page-frame database, from Windows XP to 11.
const ENTRY: &str = "_MMPFN";
/// The system's partition of memory, since Windows 10, and what in it leads to the number of its zeroed
/// pages.
const PARTITION: &str = "_MI_PARTITION";
const ZEROED_TOTAL: [&str; 3] = ["PageLists", "ZeroedPageListHead", "Total"];
/// Members that decide whether a page is free (`profile.rs` tests them).
pub(super) const DECISIVE: [&str; 5] = ["PageLocation", "ReferenceCount", "Rom", "PfnExists", "LockBit"];
/// Largest size of an entry: they have 24 to 48 bytes so far.
pub const MAX_ENTRY: u64 = 4096;

/// Why the types cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TypeError {
    /// A type holds itself, or types hold each other.
    #[error("its types are cyclic, or nest deeper than {MAX_DEPTH}: {0}")]
    Cyclic(String),
    /// More members than any kernel has.
    #[error("a type has more than {MAX_MEMBERS} members, counting those of members")]
    TooManyMembers,
    /// A field list that goes on and on.
    #[error("a list of members goes on for more than {MAX_CONTINUATIONS} records")]
    EndlessList,
    /// An enumeration with more values than any kernel has.
    #[error("the enumeration {name} has more than {MAX_VALUES} values")]
    TooManyValues {
        /// Its name.
        name: String,
    },
    /// An entry of no or too large a size.
    #[error("_MMPFN has {0} bytes; 1 to {MAX_ENTRY} are possible")]
    EntrySize(u64),
    /// A member that is not inside.
    #[error("the member {path} lies at bytes {offset} to {end} of {size}")]
    Outside {
        /// Its path.
        path: String,
        /// Its first byte.
        offset: u64,
        /// One past its last byte.
        end: u64,
        /// Size of what it should lie in.
        size: u64,
    },
    /// A bit field that does not fit its storage.
    #[error("the member {path} has bits {bit} to {end} of {storage} bytes")]
    BitsOutside {
        /// Its path.
        path: String,
        /// Its first bit.
        bit: u32,
        /// One past its last bit.
        end: u32,
        /// Bytes of its storage.
        storage: u64,
    },
    /// Several definitions that say different things.
    #[error("it defines {name} in {count} ways that differ")]
    Ambiguous {
        /// Which name.
        name: String,
        /// How many definitions.
        count: usize,
    },
}

/// A member of `_MMPFN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// The names that lead to it, the last one its own.
    pub path: Vec<String>,
    /// Where its storage begins, in bytes from the start of `_MMPFN`.
    pub offset: u64,
    /// Bytes of its storage: of a bit field, those of its underlying type. 0 when the type is not known.
    pub storage_bytes: u64,
    /// Its first bit within the storage; 0 for what is no bit field.
    pub bit: u32,
    /// How many bits it has.
    pub width: u64,
}

impl Field {
    /// Its own name.
    pub fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    /// Its path with dots.
    pub fn dotted(&self) -> String {
        self.path.join(".")
    }

    /// Its first bit, counted from the start of `_MMPFN`.
    pub fn first_bit(&self) -> u64 {
        self.offset * 8 + u64::from(self.bit)
    }

    fn is_same_place(&self, other: &Self) -> bool {
        self.first_bit() == other.first_bit() && self.width == other.width
    }
}

/// The one place that the members called `name` share.
///
/// A name can stand in several alternatives of a union (`ReferenceCount` in `u3` and in `u3.e2`). It is
/// believed when they all mean the same bits; the first in the order of declaration is returned.
///
/// # Errors
/// [`TypeError::Ambiguous`] when they do not.
pub fn find<'fields>(fields: &'fields [Field], name: &str) -> Result<Option<&'fields Field>, TypeError> {
    let mut named = fields.iter().filter(|field| field.name() == name);
    let Some(first) = named.next() else {
        return Ok(None);
    };
    let others = named.filter(|other| !first.is_same_place(other)).count();
    if others == 0 {
        Ok(Some(first))
    } else {
        Err(TypeError::Ambiguous {
            name: format!("_MMPFN's {name}"),
            count: others + 1,
        })
    }
}

/// What was learnt from the types.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeFacts {
    /// `sizeof(_MMPFN)`, in bytes; `None` when there is no such type.
    pub mmpfn_size: Option<u64>,
    /// Its members.
    pub fields: Vec<Field>,
    /// `_MMLISTS`: name to value.
    pub lists: BTreeMap<String, i64>,
    /// Where `PageLists.ZeroedPageListHead.Total` lies in `_MI_PARTITION`, in bytes.
    pub zeroed_total: Option<u64>,
}

/// Reads the type stream.
///
/// # Errors
/// [`PdbError`].
pub fn read(information: &TypeInformation<'_>) -> Result<TypeFacts, PdbError> {
    let types = Types::index(information)?;
    let lists = types.lists()?;
    let zeroed_total = types.offset_of(PARTITION, &ZEROED_TOTAL)?;
    let entries = types.defined(ENTRY);
    let mut results = Vec::new();
    for index in entries {
        let TypeData::Class(class) = types.data(index)? else {
            continue;
        };
        if class.size == 0 || class.size > MAX_ENTRY {
            return Err(TypeError::EntrySize(class.size).into());
        }
        let mut walk = Walk::new(&types, class.size);
        walk.aggregate(index, 0)?;
        results.push((class.size, walk.into_fields()));
    }
    let Some((size, fields)) = results.pop() else {
        return Ok(TypeFacts {
            lists,
            zeroed_total,
            ..TypeFacts::default()
        });
    };
    if results.iter().any(|other| *other != (size, fields.clone())) {
        return Err(TypeError::Ambiguous {
            name: ENTRY.to_owned(),
            count: results.len() + 1,
        }
        .into());
    }
    Ok(TypeFacts {
        mmpfn_size: Some(size),
        fields,
        lists,
        zeroed_total,
    })
}
