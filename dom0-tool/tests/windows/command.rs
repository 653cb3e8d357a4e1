//! The command as scripts see it.

use std::path::Path;
use std::process::{Command, Output};

use lacuna_windows_fixtures::pdb::Pdb;
use lacuna_windows_fixtures::pe::{AMD64, I386, Pe, Record};
use serde_json::Value;

/// The GUID of Windows XP SP3's ntkrnlpa.pdb, as files hold it and as stores name it.
pub(crate) const GUID: [u8; 16] = [
    0x31, 0xfb, 0xb5, 0x30, 0x7e, 0xae, 0xca, 0x4a, 0xab, 0xa7, 0x50, 0xaa, 0x24, 0x1f, 0xf3, 0x31,
];
pub(crate) const GUID_TEXT: &str = "30B5FB31AE7E4ACAABA750AA241FF331";

pub(crate) fn lacuna<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(arguments)
        .env_remove("_NT_SYMBOL_PATH")
        .output()
        .unwrap()
}

/// Runs `lacuna inspect FILE --json` on `bytes` under `name`: the exit status and the answer.
pub(crate) fn inspect(name: &str, bytes: &[u8]) -> (i32, Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    inspect_file(&file)
}

pub(crate) fn inspect_file(file: &Path) -> (i32, Value) {
    let output = lacuna(&["inspect".as_ref(), file.as_os_str(), "--json".as_ref()]);
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    (
        output.status.code().unwrap(),
        serde_json::from_slice(&output.stdout).unwrap(),
    )
}

fn executable(machine: u16, record: Record) -> Pe {
    Pe {
        machine,
        image_base: 0x40_0000,
        record,
        export_name: Some("ntoskrnl.exe".into()),
        data: Vec::new(),
    }
}

#[test]
fn an_executable_names_its_pdb() {
    let path = "d:\\build\\ntkrnlpa.pdb".to_owned();
    for (machine, arch) in [(I386, "x86"), (AMD64, "x64")] {
        let pe = executable(machine, Record::Rsds(GUID, 10, path.clone()));
        for (bytes, layout) in [(pe.file(), "file"), (pe.mapped(), "mapped")] {
            let (status, answer) = inspect("any.exe", &bytes);
            assert_eq!(status, 0);
            assert_eq!(answer["kind"], "pe");
            assert_eq!(answer["arch"], arch);
            assert_eq!(answer["layout"], layout);
            assert_eq!(answer["guid"], GUID_TEXT);
            assert_eq!(answer["age"], 10);
            assert_eq!(answer["pdb_name"], "ntkrnlpa.pdb");
            assert_eq!(answer["pdb_path"], path);
            assert_eq!(answer["export_name"], "ntoskrnl.exe");
            assert_eq!(
                answer["symbol_path"],
                format!("ntkrnlpa.pdb/{GUID_TEXT}a/ntkrnlpa.pdb")
            );
        }
    }
}

#[test]
fn an_old_executable_names_its_pdb_by_a_time_stamp() {
    let record = Record::Nb10(0x3b7d_8410, 4, "ntoskrnl.pdb".into());
    let (status, answer) = inspect("ntoskrnl.exe", &executable(I386, record).file());
    assert_eq!(status, 0);
    assert_eq!(answer["guid"], Value::Null);
    assert_eq!(answer["signature"], "3B7D8410");
    assert_eq!(answer["symbol_path"], "ntoskrnl.pdb/3B7D84104/ntoskrnl.pdb");
}

#[test]
fn the_record_is_found_among_other_entries_of_the_debug_directory() {
    // VC_FEATURE, POGO, REPRO without content, an embedded record of Visual C++ 5, extended characteristics.
    let others = [
        (12, vec![0; 20]),
        (13, b"PGU\0\0\x10\0\0 .text$mn\0\0\0".to_vec()),
        (16, Vec::new()),
        (2, b"NB11\0\0\0\0 types and symbols".to_vec()),
        (20, vec![1, 0, 0, 0]),
    ];
    for machine in [I386, AMD64] {
        let pe = executable(machine, Record::Rsds(GUID, 2, "ntkrla57.pdb".into()));
        let (status, answer) = inspect("ntkrla57.exe", &pe.file_among(&others));
        assert_eq!(status, 0, "{answer}");
        assert_eq!(
            answer["symbol_path"],
            format!("ntkrla57.pdb/{GUID_TEXT}2/ntkrla57.pdb")
        );
        // In a file only: the entry names no address, and its place in the file counts.
        let mut file = pe.file_among(&others);
        let entries = file.len() - 0x1000 * 4;
        let entry = entries + 28 * others.len();
        assert_eq!(file[entry + 12], 2, "the record's own entry");
        file[entry + 20..entry + 24].fill(0);
        assert_eq!(inspect("ntkrla57.exe", &file).1["guid"], GUID_TEXT);
    }
}

#[test]
fn an_executable_without_a_record_names_none() {
    let (status, answer) = inspect("ntoskrnl.exe", &executable(AMD64, Record::None).file());
    assert_eq!(status, 0);
    assert_eq!(answer["guid"], Value::Null);
    assert_eq!(answer["symbol_path"], Value::Null);
}

#[test]
fn a_record_that_is_damaged_is_not_one_that_is_missing() {
    let good = executable(AMD64, Record::Rsds(GUID, 1, "ntkrnlmp.pdb".into())).file();
    let at = good
        .windows(12)
        .position(|bytes| bytes == b"ntkrnlmp.pdb")
        .unwrap();
    let long = executable(AMD64, Record::Rsds(GUID, 1, "d".repeat(300))).file();
    let mut odd = good;
    odd[at] = 0xff;
    for (bytes, why) in [(odd, "not UTF-8"), (long, "longer than 260")] {
        let (status, answer) = inspect("ntoskrnl.exe", &bytes);
        assert_eq!(status, 0, "{answer}");
        assert_eq!(answer["pdb_path"], Value::Null);
        assert!(
            answer["damaged_record"].as_str().unwrap().contains(why),
            "{answer}"
        );
    }
}

#[test]
fn a_name_that_leaves_the_store_is_no_path() {
    let record = Record::Rsds(GUID, 1, "..\\..".into());
    let (status, answer) = inspect("ntoskrnl.exe", &executable(AMD64, record).file());
    assert_eq!(status, 0);
    assert_eq!(answer["symbol_path"], Value::Null);
    assert_eq!(answer["pdb_path"], "..\\..");
}

#[test]
fn a_damaged_executable_is_refused_or_says_less() {
    let whole = executable(AMD64, Record::Rsds(GUID, 1, "ntkrnlmp.pdb".into())).file();
    for length in [2, 63, 64, 0x80, 0x90, 0x98, 0x150] {
        let (status, answer) = inspect("ntoskrnl.exe", &whole[..length]);
        assert_eq!(status, 3, "{length}: {answer}");
    }
    // An offset of the header, a machine, a count of sections and a size that cannot be.
    for (at, value) in [
        (0x3c, 0x8000_0000_u32),
        (0x84, 0x0004_aa64),
        (0x86, 0xffff),
        (0xd0, u32::MAX),
    ] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let (status, answer) = inspect("ntoskrnl.exe", &bytes);
        assert_eq!(status, 3, "{at:#x}: {answer}");
    }
}

#[test]
fn what_is_neither_is_refused_and_what_is_not_there_is_4() {
    let (status, answer) = inspect("notes.txt", b"<!DOCTYPE html><html>404</html>");
    assert_eq!(status, 3);
    assert!(answer["error"].as_str().unwrap().contains("neither"));
    assert_eq!(inspect("empty", b"").0, 3);
    assert_eq!(inspect_file(Path::new("/nowhere/at/all")).0, 4);
}

#[test]
fn a_pdb_goes_by_the_age_of_its_debug_stream() {
    let mut pdb = Pdb::new(GUID, 1, 0).of_old();
    pdb.info_age = 2;
    let (status, answer) = inspect("ntkrnlpa.pdb", &pdb.to_bytes());
    assert_eq!(status, 0, "{answer}");
    assert_eq!(answer["kind"], "pdb");
    assert_eq!(answer["guid"], GUID_TEXT);
    assert_eq!(answer["age"], 1);
    assert_eq!(answer["info_age"], 2);
    assert_eq!(
        answer["symbol_path"],
        format!("ntkrnlpa.pdb/{GUID_TEXT}1/ntkrnlpa.pdb")
    );
    // No kernel's: nothing to be said of _MMPFN, and no failure.
    assert_eq!(answer["mmpfn_size"], Value::Null);
    assert_eq!(answer["fields"], serde_json::json!({}));
}
