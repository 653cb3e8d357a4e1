//! PDBs with what real kernels' have, or may have, and the made ones of the 48 layouts have not.

use std::io::Cursor;

use lacuna::os::windows::pdb::types::{TypeError, find};
use lacuna::os::windows::pdb::{self, PdbError, PdbFacts};
use lacuna_windows_fixtures::layouts::layouts;
use lacuna_windows_fixtures::msf::container;
use lacuna_windows_fixtures::pdb::{Pdb, PdbSection};
use lacuna_windows_fixtures::pe::{AMD64, I386};
use lacuna_windows_fixtures::types::{
    Aggregate, Leaf, STRUCTURE, UCHAR, ULONG, UNION, UQUAD, USHORT, WIDE_STRUCTURE, WIDE_UNION,
};

use crate::command::GUID;
use crate::layouts::pdb_of;
use crate::second_reader::by_ms_pdb;

fn good() -> Pdb {
    let layout = layouts()
        .into_iter()
        .find(|layout| layout.profile == "win10_x64_19041");
    pdb_of(&layout.expect("it is one of the 48"), false)
}

fn read(bytes: Vec<u8>) -> PdbFacts {
    pdb::read(Cursor::new(bytes)).unwrap()
}

/// Offset, storage, first bit and width of the one member called `name`.
fn place(facts: &PdbFacts, name: &str) -> Option<(u64, u64, u32, u64)> {
    find(&facts.fields, name)
        .unwrap()
        .map(|field| (field.offset, field.storage_bytes, field.bit, field.width))
}

#[test]
fn blocks_of_every_size_are_read_whichever_map_of_free_blocks_is_in_use() {
    let pdb = good();
    let expected = read(pdb.to_bytes());
    let mut streams = pdb.streams();
    // A deleted stream and an empty one in between, and more behind.
    streams[4] = None;
    streams[0] = Some(vec![0xa5; 5000]);
    streams.extend([None, Some(Vec::new()), Some(vec![1; 3]), None]);
    for block_size in [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536] {
        let mut bytes = container(block_size, &streams);
        for map in [1, 2] {
            bytes[36] = map;
            assert_eq!(read(bytes.clone()), expected, "{block_size}, {map}");
            // Microsoft's reader takes it for a PDB, too.
            assert_eq!(by_ms_pdb(&bytes), (48, (34, 1, 0, 3)), "{block_size}, {map}");
        }
    }
}

#[test]
fn a_directory_over_many_blocks_is_read() {
    // 10 MiB in blocks of 512 bytes: a directory of 161 blocks, whose numbers fill two blocks; and more than
    // twenty intervals with maps of free blocks in them.
    let pdb = good();
    let mut streams = pdb.streams();
    streams[0] = Some(vec![0xa5; 10 << 20]);
    let bytes = container(512, &streams);
    let directory = u32::from_le_bytes(bytes[44..48].try_into().unwrap());
    assert!(directory.div_ceil(512) * 4 > 512, "{directory}");
    assert_eq!(by_ms_pdb(&bytes), (48, (34, 1, 0, 3)));
    assert_eq!(read(bytes), read(pdb.to_bytes()));
}

#[test]
fn public_symbols_alone_are_read() {
    let mut pdb = good();
    pdb.types = lacuna_windows_fixtures::types::Types::default();
    let streams = pdb.streams();
    // A type stream with no types in it, an empty one, a deleted one.
    for (stream, version) in [(streams[2].clone(), 20_040_203), (Some(Vec::new()), 0), (None, 0)] {
        let mut streams = streams.clone();
        streams[2] = stream;
        let facts = read(container(4096, &streams));
        assert_eq!(facts.mmpfn_size, None);
        assert_eq!(facts.fields, []);
        assert_eq!(facts.type_version, version);
        assert_eq!(facts.rva["MmPfnDatabase"], 0x1010);
    }
}

#[test]
fn three_hundred_thousand_symbols_are_read() {
    let mut pdb = good();
    let wanted = std::mem::take(&mut pdb.symbols);
    pdb.symbols
        .extend((0..300_000).map(|number| (format!("?Function{number}@Namespace@@YAXXZ"), 1, number)));
    pdb.symbols
        .push((format!("?{}@@3HA", "x".repeat(60_000)), 1, 0x20));
    // Almost a name that is wanted.
    pdb.symbols.push(("MmPfnDatabase2".into(), 1, 0x30));
    pdb.symbols.push(("_MmPfnDatabase".into(), 1, 0x40));
    pdb.symbols.extend(wanted);
    let facts = read(pdb.to_bytes());
    assert_eq!(facts.rva["MmPfnDatabase"], 0x1010);
    assert_eq!(facts.rva.len(), 1);
}

#[test]
fn a_name_that_leads_nowhere_and_is_there_twice_is_left_out() {
    let mut pdb = good();
    pdb.symbols.extend([
        ("NtBuildLab".into(), 1, 0x100),
        ("MiState".into(), 1, 0x200),
        ("NtBuildLab".into(), 1, 0x300),
        ("NtBuildLab".into(), 1, 0x100),
        // Twice at one place is once.
        ("MiState".into(), 1, 0x200),
        // In no section there is.
        ("MiSystemPartition".into(), 2, 0),
        ("MmPteBase".into(), 0, 0),
    ]);
    let facts = read(pdb.to_bytes());
    let names: Vec<&str> = facts.rva.keys().map(String::as_str).collect();
    assert_eq!(names, ["MiState", "MmPfnDatabase"]);
}

#[test]
fn a_rearranged_image_without_its_sections_of_before_is_refused() {
    let mut pdb = good();
    pdb.omap = Some((
        vec![PdbSection {
            rva: 0x1000,
            size: 0x3000,
        }],
        vec![(0x1000, 0x6000)],
    ));
    let mut streams = pdb.streams();
    assert_eq!(read(container(4096, &streams)).rva["MmPfnDatabase"], 0x6010);
    // The eleventh and last number of the debug stream's optional header.
    let debug = streams[3].as_mut().unwrap();
    let last = debug.len() - 2;
    debug[last..].fill(0xff);
    let error = pdb::read(Cursor::new(container(4096, &streams))).expect_err("addresses would be wrong");
    assert!(error.to_string().contains("OMAP"), "{error}");
}

#[test]
fn a_list_of_members_in_many_records_is_read() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let bits = pdb.types.bit_field(UCHAR, 0, 3);
    let mut more = None;
    for number in (0..40).rev() {
        let (name, kind) = if number == 34 {
            ("PageLocation".to_owned(), bits)
        } else {
            (format!("m{number}"), UCHAR)
        };
        more = Some(pdb.types.field_list(&[(&name, kind, number)], more));
    }
    pdb.types.structure_of("_MMPFN", more.unwrap(), 40, 48);
    assert_eq!(by_ms_pdb(&pdb.to_bytes()), (48, (34, 1, 0, 3)));
    let facts = read(pdb.to_bytes());
    assert_eq!(facts.fields.len(), 40);
    assert_eq!(place(&facts, "PageLocation"), Some((34, 1, 0, 3)));
    assert_eq!(place(&facts, "m39"), Some((39, 1, 0, 8)));
}

#[test]
fn numbers_of_every_form_are_read() {
    for leaf in [Leaf::Shortest, Leaf::Ushort, Leaf::Ulong, Leaf::Uquad] {
        // Names of one to four letters, so that each amount of padding occurs.
        let mut pdb = Pdb::new(GUID, 1, AMD64);
        let members = [
            ("a", UQUAD, 0),
            ("bb", UQUAD, 8),
            ("ccc", USHORT, 16),
            ("dddd", UCHAR, 47),
        ];
        let list = pdb.types.field_list_in(&members, None, leaf);
        pdb.types.aggregate(&Aggregate {
            leaf,
            ..Aggregate::over(STRUCTURE, "_MMPFN", list, 4, 48)
        });
        let facts = read(pdb.to_bytes());
        assert_eq!(facts.mmpfn_size, Some(48), "{leaf:?}");
        let offsets: Vec<u64> = facts.fields.iter().map(|field| field.offset).collect();
        assert_eq!(offsets, [0, 8, 16, 47], "{leaf:?}");
    }
}

#[test]
fn wide_records_unique_names_and_other_names_are_read() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let types = &mut pdb.types;
    // Announced before and after its definition, by a C++ compiler; and the entry's type was compiled as C.
    types.aggregate(&Aggregate::forward(STRUCTURE, "_MMPFN", Some(".?AU_MMPFN@@")));
    let announced = types.aggregate(&Aggregate::forward(
        WIDE_STRUCTURE,
        "_MMPFNENTRY1",
        Some(".?AU_MMPFNENTRY1@@"),
    ));
    // volatile, under another name, of three bits.
    let byte = types.alias("BYTE", UCHAR);
    let byte = types.volatile(byte);
    let location = types.bit_field(byte, 0, 3);
    let lock = types.bit_field(UQUAD, 63, 1);
    let bits = types.alias("LOCATION", location);
    let list = types.field_list(&[("PageLocation", bits, 0)], None);
    types.aggregate(&Aggregate::over(WIDE_STRUCTURE, "_MMPFNENTRY1", list, 1, 1));
    let flags = types.alias("MMPFNENTRY", announced);
    let flags = types.volatile(flags);
    let unnamed = |types: &mut lacuna_windows_fixtures::types::Types, kind, size, members: &[_]| {
        let list = types.field_list(members, None);
        types.aggregate(&Aggregate::over(kind, "<unnamed-tag>", list, members.len(), size))
    };
    // Structures without a name in unions without a name in a union.
    let inner = unnamed(
        types,
        WIDE_STRUCTURE,
        4,
        &[("ReferenceCount", USHORT, 0), ("e1", flags, 2)],
    );
    let inner = unnamed(types, WIDE_UNION, 4, &[("", inner, 0), ("EntireField", ULONG, 0)]);
    let third = unnamed(types, UNION, 4, &[("", inner, 0)]);
    let second = unnamed(types, WIDE_UNION, 8, &[("Blink", UQUAD, 0), ("LockBit", lock, 0)]);
    let list = types.field_list(&[("u2", second, 24), ("u3", third, 32)], None);
    types.aggregate(&Aggregate {
        unique: Some(".?AU_MMPFN@@"),
        ..Aggregate::over(WIDE_STRUCTURE, "_MMPFN", list, 2, 48)
    });
    types.aggregate(&Aggregate::forward(STRUCTURE, "_MMPFN", Some(".?AU_MMPFN@@")));
    let facts = read(pdb.to_bytes());
    assert_eq!(facts.mmpfn_size, Some(48));
    assert_eq!(place(&facts, "PageLocation"), Some((34, 1, 0, 3)));
    assert_eq!(place(&facts, "ReferenceCount"), Some((32, 2, 0, 16)));
    assert_eq!(place(&facts, "LockBit"), Some((24, 8, 63, 1)));
    assert_eq!(place(&facts, "EntireField"), Some((32, 4, 0, 32)));
    assert_eq!(place(&facts, "e1"), Some((34, 1, 0, 8)));
}

/// An entry of 24 bytes whose last member, at byte 20, is only announced.
fn with_definitions(
    define: impl FnOnce(&mut lacuna_windows_fixtures::types::Types),
) -> Result<PdbFacts, PdbError> {
    let mut pdb = Pdb::new(GUID, 1, I386);
    let announced = pdb.types.forward("_MMPTE");
    define(&mut pdb.types);
    pdb.types
        .structure("_MMPFN", 24, &[("u1", ULONG, 0), ("OriginalPte", announced, 20)]);
    pdb::read(Cursor::new(pdb.to_bytes()))
}

#[test]
fn of_several_definitions_those_that_fit_count_where_they_agree() {
    // With PAE and without: the larger one does not fit.
    for larger_first in [false, true] {
        let facts = with_definitions(|types| {
            let mut sizes = [(4, ULONG), (8, UQUAD)];
            if larger_first {
                sizes.reverse();
            }
            for (size, word) in sizes {
                types.structure("_MMPTE", size, &[("Long", word, 0)]);
            }
        });
        let facts = facts.unwrap();
        assert_eq!(place(&facts, "Long"), Some((20, 4, 0, 32)));
        // How large the member itself is cannot be told.
        assert_eq!(place(&facts, "OriginalPte"), Some((20, 0, 0, 0)));
    }
    // Two that fit: what only one has is not believed.
    let facts = with_definitions(|types| {
        types.structure("_MMPTE", 4, &[("Long", ULONG, 0), ("Valid", USHORT, 0)]);
        types.structure("_MMPTE", 4, &[("Long", ULONG, 0), ("Valid", USHORT, 2)]);
        types.structure("_MMPTE", 4, &[("Long", ULONG, 0), ("Proto", USHORT, 2)]);
    });
    let facts = facts.unwrap();
    assert_eq!(place(&facts, "Long"), Some((20, 4, 0, 32)));
    assert_eq!(place(&facts, "Valid"), None);
    assert_eq!(place(&facts, "Proto"), None);
    // None that fits.
    let error = with_definitions(|types| {
        types.structure("_MMPTE", 8, &[("Long", UQUAD, 0)]);
        types.structure("_MMPTE", 16, &[("Long", UQUAD, 8)]);
    });
    assert!(matches!(error, Err(PdbError::Type(TypeError::Outside { .. }))));
}

#[test]
fn definitions_that_differ_in_what_decides_are_refused() {
    for decisive in ["PageLocation", "ReferenceCount", "Rom", "PfnExists", "LockBit"] {
        let error = with_definitions(|types| {
            types.structure("_MMPTE", 4, &[("Long", ULONG, 0), (decisive, UCHAR, 1)]);
            types.structure("_MMPTE", 4, &[("Long", ULONG, 0), (decisive, UCHAR, 2)]);
        });
        assert!(
            matches!(error, Err(PdbError::Type(TypeError::Ambiguous { .. }))),
            "{decisive}"
        );
        let error = with_definitions(|types| {
            types.structure("_MMPTE", 4, &[("Long", ULONG, 0)]);
            types.structure("_MMPTE", 4, &[("Long", ULONG, 0), (decisive, UCHAR, 2)]);
        });
        assert!(
            matches!(error, Err(PdbError::Type(TypeError::Ambiguous { .. }))),
            "{decisive}"
        );
    }
    // The entry itself, of two sizes, or by a C and by a C++ compiler.
    for (unique, size, offset) in [(None, 28, 0), (Some(".?AU_MMPFN@@"), 24, 4)] {
        let mut pdb = Pdb::new(GUID, 1, I386);
        pdb.types.structure("_MMPFN", 24, &[("u1", ULONG, 0)]);
        let list = pdb.types.field_list(&[("u1", ULONG, offset)], None);
        pdb.types.aggregate(&Aggregate {
            unique,
            ..Aggregate::over(STRUCTURE, "_MMPFN", list, 1, size)
        });
        let error = pdb::read(Cursor::new(pdb.to_bytes()));
        assert!(
            matches!(error, Err(PdbError::Type(TypeError::Ambiguous { count: 2, .. }))),
            "{unique:?}"
        );
    }
}
