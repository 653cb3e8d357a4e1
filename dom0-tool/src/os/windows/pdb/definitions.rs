//! The types of a PDB, to be found by index and by name.

use std::collections::{BTreeMap, HashMap};

use pdb2::{FallibleIterator, RawString, TypeData, TypeFinder, TypeIndex, TypeInformation, Variant};

use super::PdbError;
use super::types::TypeError;
use super::walk::MAX_MEMBERS;

/// The enumeration of page lists, from Windows XP to 11.
const LISTS: &str = "_MMLISTS";
/// The value without which an enumeration is not that of the page lists.
const ZEROED: &str = "ZeroedPageList";
/// Most field lists that continue each other. One holds 64 KiB.
pub(super) const MAX_CONTINUATIONS: usize = 64;
/// Most definitions under one name that are compared.
const MAX_DEFINITIONS: usize = 16;
/// Most names of an enumeration.
pub(super) const MAX_VALUES: usize = 256;
/// Kinds of records that define a class, structure, union, enumeration or interface (`cvinfo.h`, `LF_*`):
/// with names that are counted, that end in zero, and of the wide kind of Visual Studio 2019.
const DEFINING: [u16; 13] = [
    0x1004, 0x1005, 0x1006, 0x1007, 0x1504, 0x1505, 0x1506, 0x1507, 0x1519, 0x1608, 0x1609, 0x160a, 0x160b,
];
/// How a C++ compiler decorates the name of a structure, union, class and enumeration to make it unique.
const DECORATIONS: [&str; 4] = [".?AU", ".?AT", ".?AV", ".?AW4"];

/// The types of a PDB.
pub(super) struct Types<'t> {
    finder: TypeFinder<'t>,
    /// Definitions, no forward references, by unique name or, without one, by name.
    by_name: HashMap<&'t [u8], Vec<TypeIndex>>,
}

impl<'t> Types<'t> {
    pub(super) fn index(information: &'t TypeInformation<'_>) -> Result<Self, PdbError> {
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

    /// The record `index`.
    ///
    /// # Errors
    /// [`PdbError::Record`].
    pub(super) fn data(&self, index: TypeIndex) -> Result<TypeData<'t>, PdbError> {
        Ok(self.finder.find(index)?.parse()?)
    }

    /// All definitions under `name`: those that C compilers wrote, and those of C++ compilers, which have a
    /// second, unique name.
    pub(super) fn defined(&self, name: &str) -> Vec<TypeIndex> {
        let plain = std::iter::once(name.to_owned());
        plain
            .chain(DECORATIONS.iter().map(|kind| format!("{kind}{name}@@")))
            .filter_map(|name| self.by_name.get(name.as_bytes()))
            .flatten()
            .copied()
            .collect()
    }

    /// `_MMLISTS`; when there is none, the one enumeration that has its names.
    pub(super) fn lists(&self) -> Result<BTreeMap<String, i64>, PdbError> {
        let mut found: Vec<BTreeMap<String, i64>> = Vec::new();
        for index in self.defined(LISTS) {
            found.extend(self.values(index)?);
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
        let TypeData::Enumeration(enumeration) = self.data(index)? else {
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
    pub(super) fn members(&self, list: TypeIndex) -> Result<Vec<TypeData<'t>>, PdbError> {
        let mut members = Vec::new();
        let mut next = Some(list);
        for _ in 0..MAX_CONTINUATIONS {
            let Some(index) = next else {
                return Ok(members);
            };
            let TypeData::FieldList(list) = self.data(index)? else {
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

    /// Where the member at the end of `path` lies in the structure `root`, in bytes; `None` where a name is
    /// not there, or where definitions place it differently.
    ///
    /// # Errors
    /// [`PdbError`].
    pub(super) fn offset_of(&self, root: &str, path: &[&str]) -> Result<Option<u64>, PdbError> {
        let mut within = self.defined(root);
        let mut offset = 0_u64;
        for name in path {
            let mut places = Vec::new();
            let mut next = Vec::new();
            for index in within {
                if let Some((at, of)) = self.member(index, name)? {
                    places.push(at);
                    let data = self.data(of)?;
                    next.extend(self.definitions(of, &data));
                }
            }
            places.dedup();
            let [at] = places.as_slice() else { return Ok(None) };
            offset = offset.saturating_add(*at);
            within = next;
        }
        Ok(Some(offset))
    }

    /// Offset and type of the member of a structure or union that is called so.
    fn member(&self, index: TypeIndex, name: &str) -> Result<Option<(u64, TypeIndex)>, PdbError> {
        let list = match self.data(index)? {
            TypeData::Class(class) => class.fields,
            TypeData::Union(union) => Some(union.fields),
            _ => None,
        };
        let Some(list) = list else { return Ok(None) };
        Ok(self.members(list)?.into_iter().find_map(|member| match member {
            TypeData::Member(member) if member.name.as_bytes() == name.as_bytes() => {
                Some((member.offset, member.field_type))
            }
            _ => None,
        }))
    }

    /// The definitions that a type stands for: itself, or, for a forward reference, those under its unique
    /// name. Where there are none, as between modules of C and of C++, those under its plain name.
    pub(super) fn definitions(&self, index: TypeIndex, data: &TypeData<'t>) -> Vec<TypeIndex> {
        let Some((name, unique)) = forward_names(data) else {
            return vec![index];
        };
        unique
            .and_then(|unique| self.by_name.get(unique.as_bytes()).cloned())
            .unwrap_or_else(|| self.defined(&name.to_string()))
    }
}

/// The name under which a definition can be referred to: the unique one if there is one.
fn defined_name<'t>(data: &TypeData<'t>) -> Option<&'t [u8]> {
    let (name, unique, properties) = named(data)?;
    (!properties.forward_reference()).then(|| unique.unwrap_or(name).as_bytes())
}

/// The plain and the unique name that a forward reference refers to; `None` for everything else.
pub(super) fn forward_names<'t>(data: &TypeData<'t>) -> Option<(RawString<'t>, Option<RawString<'t>>)> {
    let (name, unique, properties) = named(data)?;
    properties.forward_reference().then_some((name, unique))
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
