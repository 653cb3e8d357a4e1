//! What a PDB says, carried to a host without network.

use std::io::Write;

use lacuna_windows_fixtures::guest::Guest;
use lacuna_windows_fixtures::layouts::{Bits, Layout, layouts};
use serde_json::{Map, Value, json};

use crate::command::{GUID, GUID_TEXT, lacuna};
use crate::layouts::pdb_of;
use crate::memory::{Files, layout};

#[test]
fn facts_are_exported_and_imported_and_damaged_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let layout = layouts().swap_remove(0);
    std::fs::write(at("ntkrnlmp.pdb"), pdb_of(&layout, false).to_bytes()).unwrap();
    let export = lacuna(&[
        "profile",
        "export",
        &at("ntkrnlmp.pdb"),
        "--out",
        &at("carried.json"),
    ]);
    assert_eq!(export.status.code(), Some(0));
    let import = |file: &str| {
        let output = lacuna(&["profile", "import", file, "--layouts", &at("layouts"), "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), answer)
    };
    let (status, answer) = import(&at("carried.json"));
    assert_eq!(status, 0, "{answer}");
    let kept = at(&format!("layouts/ntkrnlmp.pdb.{GUID_TEXT}1.windows.json"));
    assert_eq!(answer["kept"], kept);
    let text = std::fs::read_to_string(&kept).unwrap();
    for (from, to) in [
        ("\"offset\": 26", "\"offset\": 48"),
        ("\"width\": 3", "\"width\": 9"),
        ("\"mmpfn_size\": 48", "\"mmpfn_size\": null"),
        ("\"lacuna_windows_kernel\": 1", "\"lacuna_windows_kernel\": 2"),
        ("ntkrnlmp.pdb", "../ntkrnlmp.pdb/.."),
        (GUID_TEXT, "30B5"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(at("damaged.json"), text.replace(from, to)).unwrap();
        let (status, answer) = import(&at("damaged.json"));
        assert_eq!(status, 3, "{to}: {answer}");
    }
    assert_eq!(import(&at("nothing.json")).0, 4);
}

/// A symbol table as Volatility 3 keeps it, of a kernel with `layout`, whose variables are where a made guest
/// has them.
fn isf(layout: &Layout, partition: bool) -> Value {
    let number = |bytes: u32| match bytes {
        1 => "unsigned char",
        2 => "unsigned short",
        4 => "unsigned long",
        _ => "unsigned long long",
    };
    let base = |bytes| json!({ "kind": "base", "name": number(bytes) });
    let bits = |bits: Bits| {
        json!({
            "kind": "bitfield", "bit_position": bits.bit, "bit_length": bits.width, "type": base(bits.storage),
        })
    };
    let named = |kind: &str, name: &str| json!({ "kind": kind, "name": name });
    let member = |offset: u32, kind: Value| json!({ "offset": offset, "type": kind });
    let word = if layout.x64 { 8 } else { 4 };
    let [first, second, third, fourth, ..] = layout.offsets;
    let mut flags = Map::new();
    flags.insert("PageLocation".into(), member(0, bits(layout.page_location)));
    let mut counts = Map::new();
    counts.insert("Blink".into(), member(0, base(word)));
    let mut frame = Map::new();
    frame.insert(
        "PteFrame".into(),
        member(layout.pte_frame.offset - fourth, bits(layout.pte_frame)),
    );
    for (members, name, place, from) in [
        (&mut flags, "Rom", layout.rom, layout.page_location.offset),
        (&mut counts, "LockBit", layout.lock_bit, second),
        (&mut frame, "PfnExists", layout.pfn_exists, fourth),
    ] {
        if let Some(place) = place {
            members.insert(name.into(), member(place.offset - from, bits(place)));
        }
    }
    let count_at = layout.reference_count - third;
    let mut symbols = json!({
        "MmPfnDatabase": { "address": 0x4010 }, "MmPhysicalMemoryBlock": { "address": 0x4020 },
        "KeBugCheckEx": { "address": 0x1000 },
    });
    let list = if partition {
        ("MiSystemPartition", 0x4800)
    } else {
        ("MmZeroedPageListHead", 0x4040)
    };
    symbols[list.0] = json!({ "address": list.1 });
    let guid = GUID_TEXT.to_ascii_lowercase();
    json!({
        "metadata": { "format": "6.2.0", "windows": { "pdb": {
            "GUID": guid, "age": 1, "database": "ntkrnlmp.pdb",
            "machine_type": if layout.x64 { 0x8664 } else { 0x14c },
        } } },
        "base_types": {
            "pointer": { "kind": "int", "size": word, "signed": false, "endian": "little" },
            "unsigned char": { "size": 1 }, "unsigned short": { "size": 2 },
            "unsigned long": { "size": 4 }, "unsigned long long": { "size": 8 },
        },
        "enums": { "_MMLISTS": { "base": "long", "size": 4, "constants": { "ZeroedPageList": 0, "ActiveAndValid": 6 } } },
        "user_types": {
            "_MMPFN": { "kind": "struct", "size": layout.size, "fields": {
                "u1": member(first, base(word)),
                "u2": member(second, named("union", "__unnamed_2")),
                "u3": member(third, named("union", "__unnamed_3")),
                "u4": member(fourth, named("union", "__unnamed_4")),
                "PteAddress": member(layout.offsets[4], json!({ "kind": "pointer", "subtype": { "kind": "base", "name": "void" } })),
            } },
            "__unnamed_2": { "kind": "union", "size": word, "fields": counts },
            "__unnamed_3": { "kind": "union", "size": 4, "fields": {
                "ReferenceCount": member(count_at, base(2)),
                "e1": member(layout.page_location.offset - third, named("struct", "_MMPFNENTRY")),
            } },
            "__unnamed_4": { "kind": "union", "size": layout.size - fourth, "fields": frame },
            "_MMPFNENTRY": { "kind": "struct", "size": 2, "fields": flags },
            "_MI_PARTITION": { "kind": "struct", "size": 8192, "fields": {
                "PageLists": member(2176, named("struct", "_MI_PARTITION_PAGE_LISTS")),
            } },
            "_MI_PARTITION_PAGE_LISTS": { "kind": "struct", "size": 1024, "fields": {
                "ZeroedPageListHead": member(64, named("struct", "_MMPFNLIST")),
            } },
            "_MMPFNLIST": { "kind": "struct", "size": 40, "fields": { "Total": member(0, base(word)) } },
        },
        "symbols": symbols,
    })
}

fn packed(text: &[u8], form: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match form {
        "xz" => lzma_rs::xz_compress(&mut &*text, &mut bytes).unwrap(),
        "gz" => {
            let mut writer = flate2::write::GzEncoder::new(&mut bytes, flate2::Compression::fast());
            writer.write_all(text).unwrap();
            writer.finish().unwrap();
        }
        _ => bytes.extend_from_slice(text),
    }
    bytes
}

#[test]
fn volatilitys_symbol_tables_do_as_well_as_a_pdb() {
    for (profile, partition, form) in [
        ("win7_sp1_x64", false, "json"),
        ("win10_x64_19041", true, "xz"),
        ("win10_x86_19041", true, "gz"),
        ("xp_sp3_x86", false, "xz"),
    ] {
        let mut guest = Guest::new(layout(profile), GUID);
        guest.partition = partition;
        let made = guest.make();
        let files = Files::of(&made);
        let table = packed(isf(&guest.layout, partition).to_string().as_bytes(), form);
        std::fs::write(files.path("table"), table).unwrap();
        let at = |name: &str| files.path(name).to_str().unwrap().to_owned();
        let output = lacuna(&["profile", "import", &at("table"), "--layouts", &at("layouts")]);
        assert_eq!(output.status.code(), Some(0), "{profile}: {output:?}");
        let (status, answer) = files.run(&["scan"], true, &["--layouts", "HERE/layouts"]);
        assert_eq!(
            (status, &answer["verdict"]),
            (0, &Value::from("exact")),
            "{profile}: {answer}"
        );
        let free = made.free.iter().filter(|free| **free).count();
        assert_eq!(answer["free_pages"], free, "{profile}");
    }
}

#[test]
fn tables_that_are_of_no_use_are_named_and_end_alike() {
    let good = isf(&layout("win7_sp1_x64"), false);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut table = good.clone();
        change(&mut table);
        table.to_string().into_bytes()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (
            br#"{"$METADATA": {"ProfileClass": "Nt"}, "$STRUCTS": {}}"#.to_vec(),
            "Rekall",
        ),
        (
            changed(&|table| table["metadata"] = json!({ "linux": {} })),
            "no Windows kernel",
        ),
        (
            changed(&|table| table["user_types"]["_MMPFNENTRY"]["fields"] = json!({})),
            "PageLocation",
        ),
        (
            changed(&|table| table["user_types"]["_MMPFN"]["size"] = json!(1_u64 << 40)),
            "1099511627776",
        ),
        (
            changed(&|table| {
                table["user_types"]["__unnamed_3"]["fields"]["e1"]["type"]["name"] = json!("__unnamed_3");
            }),
            "nest deeper",
        ),
        (
            changed(&|table| table["metadata"]["windows"]["pdb"]["GUID"] = json!("30B5")),
            "no GUID",
        ),
        (changed(&|table| table["symbols"] = json!(3)), "damaged"),
        (
            packed(good.to_string().as_bytes(), "xz")[..200].to_vec(),
            "compressed (xz)",
        ),
        (b"BZh91AY".to_vec(), "bzip2"),
        (vec![0xff; 64], "neither"),
        (b"some text".to_vec(), "lacuna profile export"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table");
    for (bytes, word) in cases {
        std::fs::write(&file, bytes).unwrap();
        let output = lacuna(&[
            "profile".as_ref(),
            "import".as_ref(),
            file.as_os_str(),
            "--json".as_ref(),
        ]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(3), "{word}: {answer}");
        assert!(
            answer["error"].as_str().unwrap().contains(word),
            "{word}: {answer}"
        );
    }
}
