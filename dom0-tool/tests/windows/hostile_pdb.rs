//! Damaged and hostile PDBs: refused with the reason, without a panic, and without much memory.

use std::io::Cursor;

use lacuna::os::windows::pdb::types::TypeError;
use lacuna::os::windows::pdb::{self, PdbError};
use lacuna_windows_fixtures::layouts::layouts;
use lacuna_windows_fixtures::msf::container;
use lacuna_windows_fixtures::pdb::Pdb;
use lacuna_windows_fixtures::pe::AMD64;
use lacuna_windows_fixtures::types::{UCHAR, ULONG, UQUAD};
use proptest::prelude::*;

use crate::command::{GUID, inspect};
use crate::layouts::pdb_of;

fn refusal(bytes: Vec<u8>) -> PdbError {
    pdb::read(Cursor::new(bytes)).expect_err("it is damaged")
}

fn good() -> Vec<u8> {
    let layout = layouts()
        .into_iter()
        .find(|layout| layout.profile == "win10_x64_19041");
    pdb_of(&layout.expect("it is one of the 48"), false).to_bytes()
}

#[test]
fn a_file_cut_short_is_refused_wherever_it_is_cut() {
    let whole = good();
    for length in (0..whole.len()).step_by(61) {
        assert!(pdb::read(Cursor::new(&whole[..length])).is_err(), "{length}");
    }
    let (status, answer) = inspect("ntkrnlmp.pdb", &whole[..whole.len() - 1]);
    assert_eq!(status, 3);
    assert!(
        answer["error"].as_str().unwrap().contains("cut short"),
        "{answer}"
    );
}

#[test]
fn types_that_hold_each_other_are_refused() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    // The list of members of _MMPFN's member names the type that is to come: _MMPFN itself.
    let own = pdb.types.next_index() + 1;
    let list = pdb.types.field_list(&[("u1", own, 0)], None);
    assert_eq!(pdb.types.structure_of("_MMPFN", list, 1, 48), own);
    assert!(matches!(
        refusal(pdb.to_bytes()),
        PdbError::Type(TypeError::Cyclic(_))
    ));
    let (status, answer) = inspect("ntkrnlmp.pdb", &pdb.to_bytes());
    assert_eq!(status, 3);
    assert!(answer["error"].as_str().unwrap().contains("cyclic"), "{answer}");
}

#[test]
fn a_qualifier_of_itself_is_refused() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let own = pdb.types.next_index();
    assert_eq!(pdb.types.volatile(own), own);
    pdb.types.structure("_MMPFN", 48, &[("u1", own, 0)]);
    assert!(matches!(
        refusal(pdb.to_bytes()),
        PdbError::Type(TypeError::Cyclic(_))
    ));
}

#[test]
fn a_list_that_continues_itself_is_refused() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let own = pdb.types.next_index();
    let list = pdb.types.field_list(&[("u1", ULONG, 0)], Some(own));
    pdb.types.structure_of("_MMPFN", list, 1, 48);
    assert!(matches!(
        refusal(pdb.to_bytes()),
        PdbError::Type(TypeError::EndlessList)
    ));
}

#[test]
fn a_bush_of_types_is_refused() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    // Each has two of the one before: 2^14 members in all.
    let mut inner = UCHAR;
    for level in 0..14 {
        inner = pdb
            .types
            .union(&format!("level{level}"), 1, &[("a", inner, 0), ("b", inner, 0)]);
    }
    pdb.types.structure("_MMPFN", 48, &[("u1", inner, 0)]);
    assert!(matches!(
        refusal(pdb.to_bytes()),
        PdbError::Type(TypeError::TooManyMembers)
    ));
}

#[test]
fn enumerations_over_each_other_do_not_multiply() {
    // Seven names, each defined sixteen times, each time over the next name: 2^28 ways to the last.
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let enumeration = |pdb: &mut Pdb, name: &str, properties: u16, underlying: u32| {
        let mut body = vec![0; 2];
        body.extend(properties.to_le_bytes());
        body.extend(underlying.to_le_bytes());
        body.extend([0; 4]);
        body.extend(name.as_bytes());
        body.push(0);
        // LF_ENUM: count, properties (0x80: only announced), underlying type, list, name.
        pdb.types.push(0x1507, &body)
    };
    let mut inner = ULONG;
    for level in 0..7 {
        let name = format!("level{level}");
        for _ in 0..16 {
            enumeration(&mut pdb, &name, 0, inner);
        }
        inner = enumeration(&mut pdb, &name, 0x80, 0);
    }
    pdb.types
        .structure("_MMPFN", 48, &[("u1", inner, 0), ("PageLocation", UCHAR, 8)]);
    let begun = std::time::Instant::now();
    let facts = pdb::read(Cursor::new(pdb.to_bytes())).unwrap();
    assert!(begun.elapsed().as_secs() < 20);
    assert_eq!(
        facts.fields[0].storage_bytes, 0,
        "no compiler makes an enumeration of one"
    );
}

#[test]
fn members_past_the_end_are_refused() {
    for (member, kind) in [(41, UQUAD), (0x7fff_ffff, UCHAR)] {
        let mut pdb = Pdb::new(GUID, 1, AMD64);
        pdb.types.structure("_MMPFN", 48, &[("u4", kind, member)]);
        assert!(matches!(
            refusal(pdb.to_bytes()),
            PdbError::Type(TypeError::Outside { .. })
        ));
    }
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    let bits = pdb.types.bit_field(UCHAR, 6, 3);
    pdb.types.structure("_MMPFN", 48, &[("PageLocation", bits, 0)]);
    assert!(matches!(
        refusal(pdb.to_bytes()),
        PdbError::Type(TypeError::BitsOutside { .. })
    ));
}

#[test]
fn an_entry_without_a_sane_size_is_refused() {
    for size in [0, 4097] {
        let mut pdb = Pdb::new(GUID, 1, AMD64);
        pdb.types.structure("_MMPFN", size, &[]);
        assert!(matches!(
            refusal(pdb.to_bytes()),
            PdbError::Type(TypeError::EntrySize(found)) if found == u64::from(size)
        ));
    }
}

#[test]
fn two_definitions_must_say_the_same() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    pdb.types.structure("_MMPFN", 48, &[("u1", UQUAD, 0)]);
    pdb.types.structure("_MMPFN", 48, &[("u1", UQUAD, 0)]);
    assert!(pdb::read(Cursor::new(pdb.to_bytes())).is_ok());
    pdb.types.structure("_MMPFN", 48, &[("u1", UQUAD, 8)]);
    assert!(matches!(
        refusal(pdb.to_bytes()),
        PdbError::Type(TypeError::Ambiguous { count: 3, .. })
    ));
}

#[test]
fn a_name_at_two_addresses_is_refused() {
    let mut pdb = Pdb::new(GUID, 1, AMD64);
    pdb.symbols = vec![("MmPfnDatabase".into(), 1, 8), ("MmPfnDatabase".into(), 1, 16)];
    assert!(matches!(refusal(pdb.to_bytes()), PdbError::TwoPlaces { .. }));
}

#[test]
fn numbers_without_measure_are_refused() {
    let whole = good();
    // Block size, number of blocks, size of the directory.
    for (at, value) in [
        (32, 0_u32),
        (32, 3000),
        (32, 1 << 30),
        (40, u32::MAX),
        (44, u32::MAX),
        (44, 0x10_0000),
        (52, 0),
        (52, u32::MAX),
    ] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        refusal(bytes);
    }
    // A type stream that claims 2^32 types, one that ends before it begins, one of an unknown version.
    let pdb = Pdb::new(GUID, 1, AMD64);
    for (at, value) in [
        (12, u32::MAX),
        (12, 0x0fff),
        (8, 0),
        (4, u32::MAX),
        (0, 20_990_101),
    ] {
        let mut streams = pdb.streams();
        streams[2].as_mut().unwrap()[at..at + 4].copy_from_slice(&value.to_le_bytes());
        refusal(container(4096, &streams));
    }
    // A debug stream whose parts are larger than it.
    let mut streams = pdb.streams();
    streams[3].as_mut().unwrap()[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    refusal(container(4096, &streams));
}

#[test]
fn streams_larger_than_the_file_are_refused() {
    // A directory with 60,000 streams, each of which claims every block there is.
    let blocks = 16_u32;
    let mut directory = vec![60_000_u32];
    directory.extend(std::iter::repeat_n(blocks * 512, 60_000));
    directory.extend(std::iter::repeat_n(3, 4096));
    let directory: Vec<u8> = directory.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut bytes = container(4096, &[Some(directory.clone())]);
    // The directory is the first stream's content: point the header at it.
    let listed = directory.len().div_ceil(4096);
    let list: Vec<u8> = (0..listed)
        .flat_map(|index| (3 + u32::try_from(index).unwrap()).to_le_bytes())
        .collect();
    let at = bytes.len();
    bytes.resize(at + 4096, 0);
    bytes[at..at + list.len()].copy_from_slice(&list);
    let blocks = u32::try_from(bytes.len() / 4096).unwrap();
    for (place, value) in [
        (40, blocks),
        (44, u32::try_from(directory.len()).unwrap()),
        (52, blocks - 1),
    ] {
        bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }
    assert!(matches!(
        refusal(bytes),
        PdbError::TooLarge {
            what: "the size of all streams, in blocks",
            ..
        }
    ));
}

#[test]
fn other_kinds_of_pdb_are_named() {
    for (magic, word) in [
        (
            &b"Microsoft C/C++ program database 2.00\r\n\x1aJG\0\0"[..],
            "2.00",
        ),
        (b"Microsoft MSFZ Container\r\n\x1aALD\0\0", "MSFZ"),
    ] {
        let mut bytes = magic.to_vec();
        bytes.resize(4096, 0);
        let (status, answer) = inspect("ntkrnlmp.pdb", &bytes);
        assert_eq!(status, 3);
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done to a file, an answer comes: a panic of the parser would end this test's thread.
    #[test]
    fn a_mutated_pdb_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = good();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        consistent(bytes)?;
    }

    /// The same within one stream, which a mutation of the whole file seldom meets.
    #[test]
    fn a_mutated_stream_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
        stream in 1_usize..7,
    ) {
        let layout = layouts().swap_remove(0);
        let mut streams = pdb_of(&layout, false).streams();
        let content = streams[stream].as_mut().unwrap();
        for (at, value) in changes {
            if !content.is_empty() {
                let at = at.index(content.len());
                content[at] = value;
            }
        }
        consistent(container(4096, &streams))?;
    }
}

/// Reads a file; what is read from it must be within its own bounds.
fn consistent(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let Ok(facts) = pdb::read(Cursor::new(bytes)) else {
        return Ok(());
    };
    for field in &facts.fields {
        let size = facts.mmpfn_size.unwrap_or(0);
        prop_assert!(field.offset + field.storage_bytes <= size);
        prop_assert!(u64::from(field.bit) + field.width <= field.storage_bytes * 8);
    }
    Ok(())
}
