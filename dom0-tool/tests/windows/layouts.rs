//! The layouts of 48 kernels, and the keys of 1,894.

use lacuna::os::windows::pdb::types::find;
use lacuna::os::windows::pdb::{self, PdbFacts};
use lacuna::os::windows::symbol_key::{Guid, PdbName, Signature, SymbolKey};
use lacuna_windows_fixtures::layouts::{Bits, LISTS, Layout, kernels, layouts};
use lacuna_windows_fixtures::pdb::{Pdb, PdbSection};
use lacuna_windows_fixtures::pe::{AMD64, I386};

use crate::command::GUID;

/// A PDB with the types of `layout`, old or new.
pub(crate) fn pdb_of(layout: &Layout, old: bool) -> Pdb {
    let machine = if layout.x64 { AMD64 } else { I386 };
    let mut pdb = Pdb::new(GUID, 1, machine);
    if old {
        pdb = pdb.of_old();
    }
    layout.write(&mut pdb.types);
    let prefix = if layout.x64 { "" } else { "_" };
    pdb.symbols.push((format!("{prefix}MmPfnDatabase"), 1, 0x10));
    pdb.symbols.push((format!("{prefix}NotAskedFor"), 1, 0x18));
    pdb
}

fn read(pdb: &Pdb) -> PdbFacts {
    pdb::read(std::io::Cursor::new(pdb.to_bytes())).unwrap()
}

fn assert_is_at(facts: &PdbFacts, name: &str, expected: Option<Bits>, kernel: &str) {
    let found = find(&facts.fields, name)
        .unwrap()
        .map(|field| (field.offset, field.storage_bytes, field.bit, field.width));
    let expected = expected.map(|bits| {
        (
            u64::from(bits.offset),
            u64::from(bits.storage),
            u32::from(bits.bit),
            u64::from(bits.width),
        )
    });
    assert_eq!(found, expected, "{name} of {kernel}");
}

#[test]
fn every_layout_is_read_as_it_is_from_old_and_new_files() {
    let all = layouts();
    assert_eq!(all.len(), 48);
    for layout in &all {
        for old in [false, true] {
            let facts = read(&pdb_of(layout, old));
            let kernel = format!("{}, old: {old}", layout.profile);
            assert_eq!(facts.mmpfn_size, Some(u64::from(layout.size)), "{kernel}");
            assert_eq!(facts.type_version, if old { 19_990_903 } else { 20_040_203 });
            let count = Bits {
                offset: layout.reference_count,
                storage: 2,
                bit: 0,
                width: 16,
            };
            assert_is_at(&facts, "PageLocation", Some(layout.page_location), &kernel);
            assert_is_at(&facts, "ReferenceCount", Some(count), &kernel);
            assert_is_at(&facts, "Rom", layout.rom, &kernel);
            assert_is_at(&facts, "PfnExists", layout.pfn_exists, &kernel);
            assert_is_at(&facts, "LockBit", layout.lock_bit, &kernel);
            assert_is_at(&facts, "PteFrame", Some(layout.pte_frame), &kernel);
            for (name, offset) in ["u1", "u2", "u3", "u4", "PteAddress", "OriginalPte"]
                .iter()
                .zip(layout.offsets)
            {
                let field = find(&facts.fields, name).unwrap().expect("every kernel has it");
                assert_eq!(field.offset, u64::from(offset), "{name} of {kernel}");
            }
            let lists: Vec<(&str, i64)> = LISTS
                .iter()
                .map(|(name, value)| (*name, i64::from(*value)))
                .collect();
            assert_eq!(facts.lists.len(), lists.len());
            for (name, value) in lists {
                assert_eq!(facts.lists[name], value);
            }
            assert_eq!(facts.rva.get("MmPfnDatabase"), Some(&0x1010));
            assert_eq!(facts.rva.len(), 1);
        }
    }
}

#[test]
fn every_kernels_pdb_is_where_the_store_has_it() {
    let all = kernels();
    assert_eq!(all.len(), 1894);
    for kernel in &all {
        let guid = Guid::from_text(&kernel.guid).unwrap();
        let key = SymbolKey {
            name: PdbName::from_path(&kernel.pdb).unwrap(),
            signature: Signature::Guid(guid),
            age: kernel.age,
        };
        let expected = format!("{0}/{1}{2:x}/{0}", kernel.pdb, kernel.guid, kernel.age);
        assert_eq!(key.path(), expected);
        // And from a file with that GUID, that age, and the variable where that kernel has it.
        let mut pdb = Pdb::new(guid.to_file(), kernel.age, AMD64);
        pdb.sections[0] = PdbSection {
            rva: 0x1000,
            size: 0x800_0000,
        };
        pdb.symbols
            .push(("MmPfnDatabase".into(), 1, kernel.pfn_database - 0x1000));
        let facts = read(&pdb);
        assert_eq!(facts.identity.guid.to_string(), kernel.guid);
        assert_eq!(facts.identity.age, kernel.age);
        assert_eq!(facts.rva["MmPfnDatabase"], kernel.pfn_database);
    }
}

#[test]
fn a_rearranged_image_has_its_symbols_where_omap_says() {
    let mut pdb = pdb_of(&layouts()[0], true);
    // Before: one section at 0x1000. After: its second page first, its first page last, its third left out.
    let original = vec![PdbSection {
        rva: 0x1000,
        size: 0x3000,
    }];
    let omap = vec![(0x1000, 0x6000), (0x2000, 0x1000), (0x3000, 0), (0x4000, 0x9000)];
    pdb.omap = Some((original, omap));
    pdb.symbols = vec![
        ("_MmPfnDatabase".into(), 1, 0x10),
        ("_MmPhysicalMemoryBlock".into(), 1, 0x1020),
        ("_NtBuildNumber".into(), 1, 0x2030),
        ("_MiState".into(), 1, 0x3000),
    ];
    let facts = read(&pdb);
    assert_eq!(facts.rva["MmPfnDatabase"], 0x6010);
    assert_eq!(facts.rva["MmPhysicalMemoryBlock"], 0x1020);
    assert!(
        !facts.rva.contains_key("NtBuildNumber"),
        "left out by the linker's work"
    );
    assert!(!facts.rva.contains_key("MiState"), "past its section");
}
