//! Microsoft's own reader (`ms-pdb`) on the same files: truth from outside the code under test.

use lacuna_windows_fixtures::layouts::layouts;
use ms_pdb::types::fields::Field;
use ms_pdb::types::{TypeData, TypeIndex};

use crate::layouts::pdb_of;

/// Size of `_MMPFN`, and byte, storage, bit and width of its `PageLocation`, as `ms-pdb` sees them.
pub(crate) fn by_ms_pdb(bytes: &[u8]) -> (u64, (u64, u64, u8, u8)) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kernel.pdb");
    std::fs::write(&file, bytes).unwrap();
    let pdb = ms_pdb::Pdb::open(&file).unwrap();
    let stream = pdb.read_type_stream().unwrap();
    let types: Vec<TypeData<'_>> = stream
        .iter_type_records()
        .map(|record| record.parse().unwrap())
        .collect();
    let (size, fields) = types
        .iter()
        .find_map(|data| match data {
            TypeData::Struct(class) if class.name == "_MMPFN" && !class.fixed.property.get().fwdref() => {
                Some((u64::try_from(class.length).unwrap(), class.fixed.field_list.get()))
            }
            _ => None,
        })
        .unwrap();
    (size, find(&types, fields, 0).unwrap())
}

/// Depth first, by definitions' names where only an announcement is referred to.
fn find(types: &[TypeData<'_>], list: TypeIndex, base: u64) -> Option<(u64, u64, u8, u8)> {
    let at = |index: TypeIndex| types.get((index.0).checked_sub(0x1000)? as usize);
    let TypeData::FieldList(list) = at(list)? else {
        return None;
    };
    for field in list.iter() {
        let (name, mut kind, offset) = match field {
            Field::Member(member) => (
                member.name.to_string(),
                member.ty,
                base + u64::try_from(member.offset).unwrap(),
            ),
            Field::Index(more) => {
                if let Some(found) = find(types, more, base) {
                    return Some(found);
                }
                continue;
            }
            _ => continue,
        };
        if let Some(TypeData::Modifier(modifier)) = at(kind) {
            kind = modifier.underlying_type.get();
        }
        match at(kind) {
            Some(TypeData::Bitfield(bits)) if name == "PageLocation" => {
                let storage = match bits.underlying_type.get().0 {
                    0x20 => 1,
                    0x21 => 2,
                    0x22 => 4,
                    _ => 8,
                };
                return Some((offset, storage, bits.position, bits.length));
            }
            Some(TypeData::Struct(class)) => {
                let definition = types.iter().find_map(|data| match data {
                    TypeData::Struct(other)
                        if other.name == class.name && !other.fixed.property.get().fwdref() =>
                    {
                        Some(other.fixed.field_list.get())
                    }
                    _ => None,
                });
                let own = class.fixed.field_list.get();
                let list = if class.fixed.property.get().fwdref() {
                    definition?
                } else {
                    own
                };
                if let Some(found) = find(types, list, offset) {
                    return Some(found);
                }
            }
            Some(TypeData::Union(union)) => {
                if let Some(found) = find(types, union.fixed.fields.get(), offset) {
                    return Some(found);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn microsofts_reader_sees_the_same_in_every_layout() {
    for layout in layouts() {
        for old in [false, true] {
            let bytes = pdb_of(&layout, old).to_bytes();
            let (size, location) = by_ms_pdb(&bytes);
            let facts = lacuna::os::windows::pdb::read(std::io::Cursor::new(bytes)).unwrap();
            let ours = lacuna::os::windows::pdb::types::find(&facts.fields, "PageLocation")
                .unwrap()
                .unwrap();
            assert_eq!(facts.mmpfn_size, Some(size), "{}", layout.profile);
            let (offset, storage, bit, width) = location;
            assert_eq!(
                (ours.offset, ours.storage_bytes, ours.bit, ours.width),
                (offset, storage, u32::from(bit), u64::from(width)),
                "{}",
                layout.profile
            );
        }
    }
}
