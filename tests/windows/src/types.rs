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

const LF_POINTER: u16 = 0x1002;
const LF_MODIFIER: u16 = 0x1001;
const LF_FIELDLIST: u16 = 0x1203;
const LF_BITFIELD: u16 = 0x1205;
const LF_INDEX: u16 = 0x1404;
const LF_ENUMERATE: u16 = 0x1502;
const LF_ARRAY: u16 = 0x1503;
const LF_STRUCTURE: u16 = 0x1505;
const LF_UNION: u16 = 0x1506;
const LF_ENUM: u16 = 0x1507;
const LF_MEMBER: u16 = 0x150d;
/// `CV_prop_t.fwdref`.
const FORWARD: u16 = 1 << 7;

/// A member of a structure or union: name, type and offset.
pub type Member<'name> = (&'name str, u32, u32);

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
        let mut body = Vec::new();
        for (name, kind, offset) in members {
            push_u16(&mut body, LF_MEMBER);
            push_u16(&mut body, 3);
            push_u32(&mut body, *kind);
            number(&mut body, *offset);
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
        self.class(LF_STRUCTURE, name, fields, members, 0, size)
    }

    /// A structure.
    pub fn structure(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let list = self.field_list(members, None);
        self.structure_of(name, list, members.len(), size)
    }

    /// A union.
    pub fn union(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        let list = self.field_list(members, None);
        self.class(LF_UNION, name, list, members.len(), 0, size)
    }

    /// A structure that is only announced.
    pub fn forward(&mut self, name: &str) -> u32 {
        self.class(LF_STRUCTURE, name, 0, 0, FORWARD, 0)
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

    fn class(
        &mut self,
        kind: u16,
        name: &str,
        fields: u32,
        members: usize,
        properties: u16,
        size: u32,
    ) -> u32 {
        let mut body = Vec::new();
        push_u16(&mut body, u16::try_from(members).expect("few members"));
        push_u16(&mut body, properties);
        push_u32(&mut body, fields);
        if kind == LF_STRUCTURE {
            push_u32(&mut body, 0);
            push_u32(&mut body, 0);
        }
        number(&mut body, size);
        text(&mut body, name);
        self.push(kind, &body)
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
