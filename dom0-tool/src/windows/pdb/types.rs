//! `_MMPFN` and `_MMLISTS`: a bounded depth-first walk through a PDB's types.
//!
//! Members are what is looked for, not the types they are in: the type that holds `PageLocation` is `_MMPFNENTRY` until
//! Windows 10 1703 and `_MMPFNENTRY1` after it, and it sits in a union in a structure in `_MMPFN`.

use std::collections::{BTreeMap, HashMap};

use pdb2::{
    FallibleIterator, Indirection, PrimitiveKind, RawString, TypeData, TypeFinder, TypeIndex,
    TypeInformation, Variant,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PdbError;

/// The type of an entry of the page-frame database, from Windows XP to 11.
const ENTRY: &str = "_MMPFN";
/// The enumeration of page lists, from Windows XP to 11.
const LISTS: &str = "_MMLISTS";
/// The value without which an enumeration is not that of the page lists.
const ZEROED: &str = "ZeroedPageList";
/// Deepest nesting followed. Windows 11's `_MMPFN` has three levels of named members.
const MAX_DEPTH: usize = 16;
/// Most members looked at. Windows 11's `_MMPFN` has about 80.
const MAX_MEMBERS: usize = 4096;
/// Most field lists that continue each other. One holds 64 KiB.
const MAX_CONTINUATIONS: usize = 64;
/// Most definitions under one name that are compared.
const MAX_DEFINITIONS: usize = 16;
/// Largest size of an entry: they have 24 to 48 bytes so far.
const MAX_ENTRY: u64 = 4096;
/// Most names of an enumeration.
const MAX_VALUES: usize = 256;
/// Kinds of records that define a class, structure, union, enumeration or interface (`cvinfo.h`, `LF_*`): with names
/// that are counted, that end in zero, and of the wide kind of Visual Studio 2019.
const DEFINING: [u16; 13] = [
    0x1004, 0x1005, 0x1006, 0x1007, 0x1504, 0x1505, 0x1506, 0x1507, 0x1519, 0x1608, 0x1609, 0x160a, 0x160b,
];

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
/// A name can stand in several alternatives of a union (`ReferenceCount` in `u3` and in `u3.e2`). It is believed when
/// they all mean the same bits; the first in the order of declaration is returned.
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
}

/// Reads the type stream.
///
/// # Errors
/// [`PdbError`].
pub fn read(information: &TypeInformation<'_>) -> Result<TypeFacts, PdbError> {
    let types = Types::index(information)?;
    let lists = types.lists()?;
    let entries = types.defined(ENTRY);
    let mut results = Vec::new();
    for index in entries {
        let TypeData::Class(class) = types.finder.find(*index)?.parse()? else {
            continue;
        };
        if class.size == 0 || class.size > MAX_ENTRY {
            return Err(TypeError::EntrySize(class.size).into());
        }
        let mut walk = Walk::new(&types, class.size);
        walk.aggregate(*index, 0)?;
        results.push((class.size, walk.fields));
    }
    let Some((size, fields)) = results.pop() else {
        return Ok(TypeFacts {
            lists,
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
    })
}

/// The types of a PDB, to be found by index and by name.
struct Types<'t> {
    finder: TypeFinder<'t>,
    /// Definitions, no forward references, by unique name or, without one, by name.
    by_name: HashMap<&'t [u8], Vec<TypeIndex>>,
}

impl<'t> Types<'t> {
    fn index(information: &'t TypeInformation<'_>) -> Result<Self, PdbError> {
        let mut finder = information.finder();
        let mut by_name: HashMap<&'t [u8], Vec<TypeIndex>> = HashMap::new();
        if !information.is_empty() {
            let mut items = information.iter();
            while let Some(item) = items.next()? {
                finder.update(&items);
                if !DEFINING.contains(&item.raw_kind()) {
                    continue;
                }
                if let Some(name) = defined_name(&item.parse()?) {
                    let definitions = by_name.entry(name).or_default();
                    if definitions.len() < MAX_DEFINITIONS {
                        definitions.push(item.index());
                    }
                }
            }
        }
        Ok(Self { finder, by_name })
    }

    fn defined(&self, name: &str) -> &[TypeIndex] {
        // Under a C++ compiler the structure _MMPFN has the unique name .?AU_MMPFN@@, an enumeration .?AW4NAME@@.
        let names = [name.to_owned(), format!(".?AU{name}@@"), format!(".?AW4{name}@@")];
        for name in &names {
            if let Some(definitions) = self.by_name.get(name.as_bytes()) {
                return definitions;
            }
        }
        &[]
    }

    /// `_MMLISTS`; when there is none, the one enumeration that has its names.
    fn lists(&self) -> Result<BTreeMap<String, i64>, PdbError> {
        let mut found: Vec<BTreeMap<String, i64>> = Vec::new();
        for index in self.defined(LISTS) {
            found.extend(self.values(*index)?);
        }
        if found.is_empty() {
            for index in self.by_name.values().flatten() {
                // Any other enumeration may be as large and odd as it likes.
                if let Ok(Some(values)) = self.values(*index)
                    && values.contains_key(ZEROED)
                {
                    found.push(values);
                }
            }
        }
        let Some(first) = found.pop() else {
            return Ok(BTreeMap::new());
        };
        if found.iter().any(|other| *other != first) {
            return Err(TypeError::Ambiguous {
                name: LISTS.to_owned(),
                count: found.len() + 1,
            }
            .into());
        }
        Ok(first)
    }

    /// The values of the enumeration `index`; `None` when it is something else.
    fn values(&self, index: TypeIndex) -> Result<Option<BTreeMap<String, i64>>, PdbError> {
        let TypeData::Enumeration(enumeration) = self.finder.find(index)?.parse()? else {
            return Ok(None);
        };
        let mut values = BTreeMap::new();
        let name = || enumeration.name.to_string().into_owned();
        for field in self.members(enumeration.fields)? {
            let TypeData::Enumerate(value) = field else {
                continue;
            };
            let number = match value.value {
                Variant::U8(value) => i64::from(value),
                Variant::U16(value) => i64::from(value),
                Variant::U32(value) => i64::from(value),
                Variant::U64(value) => i64::from_le_bytes(value.to_le_bytes()),
                Variant::I8(value) => i64::from(value),
                Variant::I16(value) => i64::from(value),
                Variant::I32(value) => i64::from(value),
                Variant::I64(value) => value,
            };
            if values.len() >= MAX_VALUES {
                return Err(TypeError::TooManyValues { name: name() }.into());
            }
            let twice = values.insert(value.name.to_string().into_owned(), number);
            if twice.is_some_and(|other| other != number) {
                return Err(TypeError::Ambiguous {
                    name: value.name.to_string().into_owned(),
                    count: 2,
                }
                .into());
            }
        }
        Ok(Some(values))
    }

    /// The members of a field list and of those that continue it.
    fn members(&self, list: TypeIndex) -> Result<Vec<TypeData<'t>>, PdbError> {
        let mut members = Vec::new();
        let mut next = Some(list);
        for _ in 0..MAX_CONTINUATIONS {
            let Some(index) = next else {
                return Ok(members);
            };
            let TypeData::FieldList(list) = self.finder.find(index)?.parse()? else {
                return Err(PdbError::Malformed("a list of members is of another kind"));
            };
            members.extend(list.fields);
            if members.len() > MAX_MEMBERS {
                return Err(TypeError::TooManyMembers.into());
            }
            next = list.continuation;
        }
        Err(TypeError::EndlessList.into())
    }

    /// The definitions that a type stands for: itself, or, for a forward reference, those under its name.
    fn definitions(&self, index: TypeIndex, data: &TypeData<'t>) -> Vec<TypeIndex> {
        match forward_name(data) {
            None => vec![index],
            Some(name) => self.by_name.get(name).cloned().unwrap_or_default(),
        }
    }
}

/// The name under which a definition can be referred to: the unique one if there is one.
fn defined_name<'t>(data: &TypeData<'t>) -> Option<&'t [u8]> {
    let (name, unique, properties) = named(data)?;
    (!properties.forward_reference()).then(|| unique.unwrap_or(name).as_bytes())
}

/// The name that a forward reference refers to.
fn forward_name<'t>(data: &TypeData<'t>) -> Option<&'t [u8]> {
    let (name, unique, properties) = named(data)?;
    properties
        .forward_reference()
        .then(|| unique.unwrap_or(name).as_bytes())
}

fn named<'t>(data: &TypeData<'t>) -> Option<(RawString<'t>, Option<RawString<'t>>, pdb2::TypeProperties)> {
    match data {
        TypeData::Class(class) => Some((class.name, class.unique_name, class.properties)),
        TypeData::Union(union) => Some((union.name, union.unique_name, union.properties)),
        TypeData::Enumeration(enumeration) => {
            Some((enumeration.name, enumeration.unique_name, enumeration.properties))
        }
        _ => None,
    }
}

/// One walk through the members of `_MMPFN`.
struct Walk<'types, 't> {
    types: &'types Types<'t>,
    entry_size: u64,
    path: Vec<String>,
    visited: usize,
    fields: Vec<Field>,
}

impl<'types, 't> Walk<'types, 't> {
    fn new(types: &'types Types<'t>, entry_size: u64) -> Self {
        Self {
            types,
            entry_size,
            path: Vec::new(),
            visited: 0,
            fields: Vec::new(),
        }
    }

    /// Records the members of the structure or union `index`, which begins at `base`. The depth is that of the path,
    /// where the members of an unnamed one count as well.
    fn aggregate(&mut self, index: TypeIndex, base: u64) -> Result<(), PdbError> {
        if self.path.len() >= MAX_DEPTH {
            return Err(TypeError::Cyclic(self.path.join(".")).into());
        }
        let list = match self.types.finder.find(index)?.parse()? {
            TypeData::Class(class) => class.fields,
            TypeData::Union(union) => Some(union.fields),
            _ => None,
        };
        let Some(list) = list else { return Ok(()) };
        for data in self.types.members(list)? {
            self.visited += 1;
            if self.visited > MAX_MEMBERS {
                return Err(TypeError::TooManyMembers.into());
            }
            match data {
                TypeData::Member(member) => {
                    let at = base.checked_add(member.offset).ok_or(TypeError::Outside {
                        path: member.name.to_string().into_owned(),
                        offset: member.offset,
                        end: u64::MAX,
                        size: self.entry_size,
                    })?;
                    self.path.push(member.name.to_string().into_owned());
                    self.member(member.field_type, at)?;
                    self.path.pop();
                }
                TypeData::BaseClass(class) => {
                    self.path.push(String::new());
                    let at = base.saturating_add(u64::from(class.offset));
                    self.follow(class.base_class, at)?;
                    self.path.pop();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Records the member at the end of the path, and what is in it.
    fn member(&mut self, index: TypeIndex, at: u64) -> Result<(), PdbError> {
        let mut field = Field {
            path: self
                .path
                .iter()
                .filter(|name| !name.is_empty())
                .cloned()
                .collect(),
            offset: at,
            storage_bytes: 0,
            bit: 0,
            width: 0,
        };
        if let TypeData::Bitfield(bits) = self.types.finder.find(index)?.parse()? {
            field.storage_bytes = self.size_of(bits.underlying_type, 0)?;
            field.bit = bits.position.into();
            field.width = bits.length.into();
            let end = u32::from(bits.position) + u32::from(bits.length);
            if u64::from(end) > field.storage_bytes * 8 || bits.length == 0 {
                return Err(TypeError::BitsOutside {
                    path: field.dotted(),
                    bit: field.bit,
                    end,
                    storage: field.storage_bytes,
                }
                .into());
            }
        } else {
            field.storage_bytes = self.size_of(index, 0)?;
            field.width = field.storage_bytes.saturating_mul(8);
        }
        let end = at.saturating_add(field.storage_bytes);
        if end > self.entry_size {
            return Err(TypeError::Outside {
                path: field.dotted(),
                offset: at,
                end,
                size: self.entry_size,
            }
            .into());
        }
        if self.path.last().is_some_and(|name| !name.is_empty()) {
            self.fields.push(field);
        }
        self.follow(index, at)
    }

    /// Goes into a structure or union, through modifiers and forward references; stops at everything else.
    fn follow(&mut self, index: TypeIndex, at: u64) -> Result<(), PdbError> {
        let mut index = index;
        for _ in 0..MAX_DEPTH {
            let data = self.types.finder.find(index)?.parse()?;
            match data {
                TypeData::Modifier(modifier) => index = modifier.underlying_type,
                TypeData::Class(_) | TypeData::Union(_) => {
                    let definitions = self.types.definitions(index, &data);
                    return self.one_of(&definitions, at);
                }
                _ => return Ok(()),
            }
        }
        Err(TypeError::Cyclic(self.path.join(".")).into())
    }

    /// Goes into the first of several definitions, all of which must say the same.
    fn one_of(&mut self, definitions: &[TypeIndex], at: u64) -> Result<(), PdbError> {
        let Some((first, others)) = definitions.split_first() else {
            return Ok(());
        };
        let before = self.fields.len();
        self.aggregate(*first, at)?;
        let after = self.fields.len();
        for other in others {
            self.aggregate(*other, at)?;
            if self.fields[before..after] != self.fields[after..] {
                return Err(TypeError::Ambiguous {
                    name: self.path.join("."),
                    count: definitions.len(),
                }
                .into());
            }
            self.fields.truncate(after);
        }
        Ok(())
    }

    /// Bytes of a type; 0 when it cannot be known (a forward reference to nothing, a function).
    fn size_of(&self, index: TypeIndex, depth: usize) -> Result<u64, PdbError> {
        if depth >= MAX_DEPTH {
            return Err(TypeError::Cyclic(self.path.join(".")).into());
        }
        let data = self.types.finder.find(index)?.parse()?;
        if forward_name(&data).is_some() {
            return match self.types.definitions(index, &data).first() {
                Some(definition) if *definition != index => self.size_of(*definition, depth + 1),
                _ => Ok(0),
            };
        }
        Ok(match data {
            TypeData::Primitive(primitive) => match primitive.indirection {
                None => primitive_size(primitive.kind),
                Some(pointer) => pointer_size(pointer),
            },
            TypeData::Class(class) => class.size,
            TypeData::Union(union) => union.size,
            TypeData::Enumeration(enumeration) => self.size_of(enumeration.underlying_type, depth + 1)?,
            TypeData::Modifier(modifier) => self.size_of(modifier.underlying_type, depth + 1)?,
            TypeData::Pointer(pointer) => pointer.attributes.size().into(),
            // The last dimension is the size of the whole, in bytes.
            TypeData::Array(array) => array.dimensions.last().copied().unwrap_or(0).into(),
            _ => 0,
        })
    }
}

fn pointer_size(pointer: Indirection) -> u64 {
    match pointer {
        Indirection::Near16 => 2,
        Indirection::Far16 | Indirection::Huge16 | Indirection::Near32 => 4,
        Indirection::Far32 => 6,
        Indirection::Near64 => 8,
        Indirection::Near128 => 16,
    }
}

fn primitive_size(kind: PrimitiveKind) -> u64 {
    use PrimitiveKind as Kind;
    match kind {
        Kind::Char | Kind::UChar | Kind::RChar | Kind::Char8 | Kind::I8 | Kind::U8 | Kind::Bool8 => 1,
        Kind::WChar | Kind::RChar16 | Kind::Short | Kind::UShort | Kind::I16 | Kind::U16 | Kind::Bool16 => 2,
        Kind::RChar32 | Kind::Long | Kind::ULong | Kind::I32 | Kind::U32 | Kind::Bool32 | Kind::HRESULT => 4,
        Kind::Quad | Kind::UQuad | Kind::I64 | Kind::U64 | Kind::Bool64 => 8,
        _ => 0,
    }
}
