//! Writes `CodeView` type records (`microsoft-pdb`, `include/cvinfo.h`).

use crate::msf::{push_u16, push_u32};

/// Built-in types: `T_UCHAR`, `T_USHORT`, `T_ULONG`, `T_UQUAD`, `T_32PVOID`, `T_64PVOID`.
pub const UCHAR: u32 = 0x20;
/// 16 bits.
pub const USHORT: u32 = 0x21;
/// 32 bits.
pub const ULONG: u32 = 0x22;
/// 64 bits.
pub const UQUAD: u32 = 0x23;
/// Pointer of 32 bits.
pub const PVOID32: u32 = 0x0403;
/// Pointer of 64 bits.
pub const PVOID64: u32 = 0x0603;

/// `LF_STRUCTURE`, `LF_UNION`, and the wide records of Visual Studio 2019 for the same (`LF_STRUCTURE2`,
/// `LF_UNION2`).
pub const STRUCTURE: u16 = 0x1505;
/// A union.
pub const UNION: u16 = 0x1506;
/// A structure in a wide record.
pub const WIDE_STRUCTURE: u16 = 0x1609;
/// A union in a wide record.
pub const WIDE_UNION: u16 = 0x160a;

const LF_POINTER: u16 = 0x1002;
const LF_MODIFIER: u16 = 0x1001;
const LF_FIELDLIST: u16 = 0x1203;
const LF_BITFIELD: u16 = 0x1205;
const LF_INDEX: u16 = 0x1404;
const LF_ENUMERATE: u16 = 0x1502;
const LF_ARRAY: u16 = 0x1503;
const LF_ALIAS: u16 = 0x150a;
const LF_ENUM: u16 = 0x1507;
const LF_MEMBER: u16 = 0x150d;
/// `CV_prop_t.fwdref`.
const FORWARD: u16 = 1 << 7;
/// `CV_prop_t.hasuniquename`.
const UNIQUE: u16 = 1 << 9;

/// A member of a structure or union: name, type and offset.
pub type Member<'name> = (&'name str, u32, u32);

/// How a number that is not short is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// In two bytes, or behind `LF_ULONG` if it is too large for that.
    Shortest,
    /// Behind `LF_USHORT`.
    Ushort,
    /// Behind `LF_ULONG`.
    Ulong,
    /// Behind `LF_UQUADWORD`.
    Uquad,
}

/// A structure or union.
#[derive(Clone, Copy, Debug)]
pub struct Aggregate<'name> {
    /// [`STRUCTURE`] and the like.
    pub kind: u16,
    /// Its name.
    pub name: &'name str,
    /// Its unique name, where a C++ compiler wrote it.
    pub unique: Option<&'name str>,
    /// Whether it is only announced.
    pub is_forward: bool,
    /// Its list of members; 0 if it is only announced.
    pub fields: u32,
    /// How many members that has.
    pub members: usize,
    /// Its size in bytes.
    pub size: u32,
    /// How the size is written.
    pub leaf: Leaf,
}

impl<'name> Aggregate<'name> {
    /// One that is only announced.
    pub fn forward(kind: u16, name: &'name str, unique: Option<&'name str>) -> Self {
        Self {
            kind,
            name,
            unique,
            is_forward: true,
            fields: 0,
            members: 0,
            size: 0,
            leaf: Leaf::Shortest,
        }
    }

    /// One over a list of members.
    pub fn over(kind: u16, name: &'name str, fields: u32, members: usize, size: u32) -> Self {
        Self {
            fields,
            members,
            size,
            is_forward: false,
            ..Self::forward(kind, name, None)
        }
    }
}

/// Type records, numbered from 0x1000 on.
#[derive(Clone, Debug, Default)]
pub struct Types {
    records: Vec<u8>,
    number: u32,
}

impl Types {
    /// The records, one after the other.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.number
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// The index that the next record will get.
    pub fn next_index(&self) -> u32 {
        0x1000 + self.number
    }

    /// Appends any record.
    pub fn push(&mut self, kind: u16, body: &[u8]) -> u32 {
        let mut record = body.to_vec();
        pad(&mut record);
        let length = u16::try_from(record.len() + 2).expect("a record has less than 64 KiB");
        push_u16(&mut self.records, length);
        push_u16(&mut self.records, kind);
        self.records.extend_from_slice(&record);
        self.number += 1;
        self.next_index() - 1
    }

    /// A bit field of `underlying`.
    pub fn bit_field(&mut self, underlying: u32, bit: u8, width: u8) -> u32 {
        let mut body = underlying.to_le_bytes().to_vec();
        body.extend([width, bit]);
        self.push(LF_BITFIELD, &body)
    }

    /// `volatile`.
    pub fn volatile(&mut self, underlying: u32) -> u32 {
        let mut body = underlying.to_le_bytes().to_vec();
        push_u16(&mut body, 2);
        self.push(LF_MODIFIER, &body)
    }

    /// A pointer of four or eight bytes.
    pub fn pointer(&mut self, to: u32, bytes: u32) -> u32 {
        // CV_PTR_NEAR32 (0xa) or CV_PTR_64 (0xc); the size lies in bits 13 to 18.
        let kind = if bytes == 8 { 0xc } else { 0xa };
        let mut body = to.to_le_bytes().to_vec();
        push_u32(&mut body, kind | bytes << 13);
        self.push(LF_POINTER, &body)
    }

    /// An array of `bytes` bytes in all.
    pub fn array(&mut self, of: u32, bytes: u32) -> u32 {
        let mut body = of.to_le_bytes().to_vec();
        push_u32(&mut body, UQUAD);
        number(&mut body, bytes);
        body.push(0);
        self.push(LF_ARRAY, &body)
    }

    /// A list of members; `more` is the list that continues it.
    pub fn field_list(&mut self, members: &[Member<'_>], more: Option<u32>) -> u32 {
        self.field_list_in(members, more, Leaf::Shortest)
    }

    /// The same, with offsets written as `leaf`.
    pub fn field_list_in(&mut self, members: &[Member<'_>], more: Option<u32>, leaf: Leaf) -> u32 {
        let mut body = Vec::new();
        for (name, kind, offset) in members {
            push_u16(&mut body, LF_MEMBER);
            push_u16(&mut body, 3);
            push_u32(&mut body, *kind);
            number_in(&mut body, *offset, leaf);
            text(&mut body, name);
            pad(&mut body);
        }
        if let Some(more) = more {
            push_u16(&mut body, LF_INDEX);
            push_u16(&mut body, 0);
            push_u32(&mut body, more);
        }
        self.push(LF_FIELDLIST, &body)
    }

    /// A structure over a field list.
    pub fn structure_of(&mut self, name: &str, fields: u32, members: usize, size: u32) -> u32 {
        self.aggregate(&Aggregate::over(STRUCTURE, name, fields, members, size))
    }

    /// A structure.
    pub fn structure(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let list = self.field_list(members, None);
        self.structure_of(name, list, members.len(), size)
    }

    /// A union.
    pub fn union(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let list = self.field_list(members, None);
        self.aggregate(&Aggregate::over(UNION, name, list, members.len(), size))
    }

    /// A structure that is only announced.
    pub fn forward(&mut self, name: &str) -> u32 {
        self.aggregate(&Aggregate::forward(STRUCTURE, name, None))
    }

    /// Another name of a type.
    pub fn alias(&mut self, name: &str, underlying: u32) -> u32 {
        let mut body = underlying.to_le_bytes().to_vec();
        text(&mut body, name);
        self.push(LF_ALIAS, &body)
    }

    /// An enumeration over `underlying`.
    pub fn enumeration(&mut self, name: &str, underlying: u32, values: &[(&str, u32)]) -> u32 {
        let mut list = Vec::new();
        for (name, value) in values {
            push_u16(&mut list, LF_ENUMERATE);
            push_u16(&mut list, 3);
            number(&mut list, *value);
            text(&mut list, name);
            pad(&mut list);
        }
        let list = self.push(LF_FIELDLIST, &list);
        let mut body = Vec::new();
        push_u16(&mut body, u16::try_from(values.len()).expect("few values"));
        push_u16(&mut body, 0);
        push_u32(&mut body, underlying);
        push_u32(&mut body, list);
        text(&mut body, name);
        self.push(LF_ENUM, &body)
    }

    /// A structure or union of any kind.
    pub fn aggregate(&mut self, made: &Aggregate<'_>) -> u32 {
        let is_structure = matches!(made.kind, STRUCTURE | WIDE_STRUCTURE);
        let is_wide = matches!(made.kind, WIDE_STRUCTURE | WIDE_UNION);
        let members = u16::try_from(made.members).expect("few members");
        let forward = if made.is_forward { FORWARD } else { 0 };
        let properties = forward | if made.unique.is_some() { UNIQUE } else { 0 };
        let mut body = Vec::new();
        if is_wide {
            push_u32(&mut body, properties.into());
        } else {
            push_u16(&mut body, members);
            push_u16(&mut body, properties);
        }
        push_u32(&mut body, made.fields);
        if is_structure {
            push_u32(&mut body, 0);
            push_u32(&mut body, 0);
        }
        if is_wide {
            push_u16(&mut body, members);
        }
        number_in(&mut body, made.size, made.leaf);
        text(&mut body, made.name);
        if let Some(unique) = made.unique {
            text(&mut body, unique);
        }
        self.push(made.kind, &body)
    }
}

/// A number as records hold it: short ones as they are, others behind `LF_ULONG`.
fn number(bytes: &mut Vec<u8>, value: u32) {
    match u16::try_from(value) {
        Ok(short) if short < 0x8000 => push_u16(bytes, short),
        _ => {
            push_u16(bytes, 0x8004);
            push_u32(bytes, value);
        }
    }
}

fn number_in(bytes: &mut Vec<u8>, value: u32, leaf: Leaf) {
    match leaf {
        Leaf::Shortest => number(bytes, value),
        Leaf::Ushort => {
            push_u16(bytes, 0x8002);
            push_u16(bytes, u16::try_from(value).expect("16 bits"));
        }
        Leaf::Ulong => {
            push_u16(bytes, 0x8004);
            push_u32(bytes, value);
        }
        Leaf::Uquad => {
            push_u16(bytes, 0x800a);
            push_u32(bytes, value);
            push_u32(bytes, 0);
        }
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

/// Fills up to a multiple of four with `LF_PAD3`, `LF_PAD2`, `LF_PAD1`.
fn pad(bytes: &mut Vec<u8>) {
    while bytes.len() % 4 != 0 {
        let missing = u8::try_from(4 - bytes.len() % 4).unwrap_or(0);
        bytes.push(0xf0 | missing);
    }
}
