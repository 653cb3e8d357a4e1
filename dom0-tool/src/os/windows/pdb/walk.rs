//! A bounded depth-first walk through the members of `_MMPFN`.

use pdb2::{Indirection, PrimitiveKind, TypeData, TypeIndex};

use super::PdbError;
use super::definitions::{Types, forward_names};
use super::types::{DECISIVE, Field, TypeError};

/// Deepest nesting followed. Windows 11's `_MMPFN` has three levels of named members.
pub(super) const MAX_DEPTH: usize = 16;
/// Most members looked at. Windows 11's `_MMPFN` has about 80.
pub(super) const MAX_MEMBERS: usize = 4096;

/// One walk through the members of `_MMPFN`.
pub(super) struct Walk<'types, 't> {
    types: &'types Types<'t>,
    entry_size: u64,
    path: Vec<String>,
    visited: usize,
    fields: Vec<Field>,
}

impl<'types, 't> Walk<'types, 't> {
    pub(super) fn new(types: &'types Types<'t>, entry_size: u64) -> Self {
        Self {
            types,
            entry_size,
            path: Vec::new(),
            visited: 0,
            fields: Vec::new(),
        }
    }

    /// What was recorded.
    pub(super) fn into_fields(self) -> Vec<Field> {
        self.fields
    }

    /// Records the members of the structure or union `index`, which begins at `base`. The depth is that of
    /// the path, where the members of an unnamed one count as well.
    pub(super) fn aggregate(&mut self, index: TypeIndex, base: u64) -> Result<(), PdbError> {
        if self.path.len() >= MAX_DEPTH {
            return Err(self.cyclic());
        }
        let list = match self.types.data(index)? {
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
        if let TypeData::Bitfield(bits) = self.types.data(self.unqualified(index)?)? {
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

    /// What is behind `const`, `volatile` and other names of a type.
    fn unqualified(&self, index: TypeIndex) -> Result<TypeIndex, PdbError> {
        let mut index = index;
        for _ in 0..MAX_DEPTH {
            index = match self.types.data(index)? {
                TypeData::Modifier(modifier) => modifier.underlying_type,
                TypeData::Alias(alias) => alias.underlying_type,
                _ => return Ok(index),
            };
        }
        Err(self.cyclic())
    }

    fn cyclic(&self) -> PdbError {
        TypeError::Cyclic(self.path.join(".")).into()
    }

    /// Goes into a structure or union, through qualifiers and forward references; stops at everything else.
    fn follow(&mut self, index: TypeIndex, at: u64) -> Result<(), PdbError> {
        let index = self.unqualified(index)?;
        let data = self.types.data(index)?;
        match data {
            TypeData::Class(_) | TypeData::Union(_) => {
                let definitions = self.types.definitions(index, &data);
                self.one_of(&definitions, at)
            }
            _ => Ok(()),
        }
    }

    /// Goes into a type that may be defined several times: modules of one program can know different things
    /// under one name, and an unnamed type's name is shared by all of them. A definition that does not fit
    /// into the entry is not the one that is meant. What those that fit say alike is recorded; they must
    /// agree on what decides whether a page is free.
    fn one_of(&mut self, definitions: &[TypeIndex], at: u64) -> Result<(), PdbError> {
        let (before, depth) = (self.fields.len(), self.path.len());
        let mut agreed: Option<Vec<Field>> = None;
        let mut unfit = None;
        for definition in definitions {
            match self.aggregate(*definition, at) {
                Ok(()) => {}
                Err(error @ PdbError::Type(TypeError::Outside { .. })) if definitions.len() > 1 => {
                    self.path.truncate(depth);
                    self.fields.truncate(before);
                    unfit = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let said = self.fields.split_off(before);
            agreed = Some(match agreed {
                None => said,
                Some(agreed) if agreed == said => agreed,
                Some(agreed) => {
                    if !decisive(&agreed).eq(decisive(&said)) {
                        return Err(TypeError::Ambiguous {
                            name: self.path.join("."),
                            count: definitions.len(),
                        }
                        .into());
                    }
                    agreed.into_iter().filter(|field| said.contains(field)).collect()
                }
            });
        }
        match (agreed, unfit) {
            (Some(agreed), _) => self.fields.extend(agreed),
            (None, Some(error)) => return Err(error),
            (None, None) => {}
        }
        Ok(())
    }

    /// Bytes of a built-in type, qualified or not, such as enumerations are made of; 0 of any other.
    fn size_of_primitive(&self, index: TypeIndex) -> Result<u64, PdbError> {
        Ok(match self.types.data(self.unqualified(index)?)? {
            TypeData::Primitive(primitive) => match primitive.indirection {
                None => primitive_size(primitive.kind),
                Some(pointer) => pointer_size(pointer),
            },
            _ => 0,
        })
    }

    /// Bytes of a type; 0 when it cannot be known (a forward reference to nothing, or to definitions of
    /// several sizes; a function).
    fn size_of(&self, index: TypeIndex, depth: usize) -> Result<u64, PdbError> {
        if depth >= MAX_DEPTH {
            return Err(self.cyclic());
        }
        let data = self.types.data(index)?;
        if forward_names(&data).is_some() {
            let mut size = None;
            for definition in self.types.definitions(index, &data) {
                let one = match self.types.data(definition)? {
                    TypeData::Class(class) => class.size,
                    TypeData::Union(union) => union.size,
                    TypeData::Enumeration(enumeration) => {
                        self.size_of_primitive(enumeration.underlying_type)?
                    }
                    _ => 0,
                };
                if size.is_some_and(|other| other != one) {
                    return Ok(0);
                }
                size = Some(one);
            }
            return Ok(size.unwrap_or(0));
        }
        Ok(match data {
            TypeData::Primitive(_) => self.size_of_primitive(index)?,
            TypeData::Class(class) => class.size,
            TypeData::Union(union) => union.size,
            TypeData::Enumeration(enumeration) => self.size_of_primitive(enumeration.underlying_type)?,
            TypeData::Modifier(modifier) => self.size_of(modifier.underlying_type, depth + 1)?,
            TypeData::Alias(alias) => self.size_of(alias.underlying_type, depth + 1)?,
            TypeData::Pointer(pointer) => pointer.attributes.size().into(),
            // The last dimension is the size of the whole, in bytes.
            TypeData::Array(array) => array.dimensions.last().copied().unwrap_or(0).into(),
            _ => 0,
        })
    }
}

/// Of the members of a type, those that decide whether a page is free.
fn decisive(fields: &[Field]) -> impl Iterator<Item = &Field> {
    fields.iter().filter(|field| DECISIVE.contains(&field.name()))
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
