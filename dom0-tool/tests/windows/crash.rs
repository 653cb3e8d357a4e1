//! Windows crash dumps, and `kdmp-parser`'s opinion on the same files.

use std::io::Cursor;

use lacuna::source::dump::{Dump, Format};
use lacuna_windows_fixtures::crash::{bitmap_64, full_32, full_64, ranges_64, summary};
use lacuna_windows_fixtures::guest::{Guest, Made, Paging};
use lacuna_windows_fixtures::layouts::layouts;

use crate::command::{GUID, lacuna};

fn made(profile: &str) -> (Guest, Made) {
    let layout = layouts().into_iter().find(|layout| layout.profile == profile);
    let guest = Guest::new(layout.unwrap(), GUID);
    let made = guest.make();
    (guest, made)
}

/// Scans a crash dump without any further help than its PDB.
fn assert_scanned(made: &Made, file: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("memory.dmp"), file).unwrap();
    std::fs::write(at("ntkrnlmp.pdb"), &made.pdb).unwrap();
    let (dump, pdb, bitmap) = (at("memory.dmp"), at("ntkrnlmp.pdb"), at("bitmap"));
    let output = lacuna(&[
        "scan", "--json", "--dump", &dump, "--pdb", &pdb, "--bitmap", &bitmap,
    ]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let bits = std::fs::read(bitmap).unwrap();
    for (frame, free) in made.free.iter().enumerate() {
        let found = bits
            .get(frame / 8)
            .is_some_and(|byte| byte >> (frame % 8) & 1 != 0);
        assert_eq!(found, *free, "frame {frame:#x}");
    }
}

#[test]
fn crash_dumps_of_every_kind_are_scanned_right() {
    let (_, seven) = made("win7_sp1_x64");
    assert_scanned(&seven, &full_64(&seven));
    assert_scanned(&seven, &bitmap_64(&seven));
    for kind in [2, 6] {
        let mut file = bitmap_64(&seven);
        file[0xf98] = kind;
        assert_scanned(&seven, &file);
    }
    assert_scanned(&seven, &summary(&seven, &full_64(&seven)));
    for kind in [8, 9, 10] {
        assert_scanned(&seven, &ranges_64(&seven, kind));
    }
    for profile in ["xp_sp3_x86", "win7_sp1_x86_24000"] {
        let (guest, made) = made(profile);
        let full = full_32(&made, guest.paging == Paging::Pae);
        assert_scanned(&made, &full);
        assert_scanned(&made, &summary(&made, &full));
    }
}

#[test]
fn another_reader_finds_every_page_at_the_same_place() {
    let (_, made) = made("win7_sp1_x64");
    let mut live = bitmap_64(&made);
    live[0xf98] = 6;
    let ranges = [8, 9, 10].map(|kind| ranges_64(&made, kind));
    for file in [full_64(&made), bitmap_64(&made), live].into_iter().chain(ranges) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.dmp");
        std::fs::write(&path, &file).unwrap();
        let ours = Dump::open(&path).unwrap();
        assert_eq!(ours.format(), Format::WindowsCrash);
        let mut pages = Vec::new();
        for extent in ours.extents() {
            pages.extend(
                (0..extent.bytes / 4096)
                    .map(|page| (extent.start + page * 4096, extent.offset + page * 4096)),
            );
        }
        let theirs = kdmp_parser::parse::KernelDumpParser::with_reader(Cursor::new(file)).unwrap();
        let theirs: Vec<(u64, u64)> = theirs
            .physmem()
            .map(|(at, offset)| (u64::from(at), offset))
            .collect();
        assert_eq!(pages, theirs);
    }
}

#[test]
fn damaged_crash_dumps_are_refused() {
    let (_, made) = made("win7_sp1_x64");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.dmp");
    let is_refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Dump::open(&path).is_err()
    };
    let full = full_64(&made);
    for length in [8, 0x100, 0x1fff, 0x2000, full.len() - 1] {
        assert!(is_refused(&full[..length]), "{length:#x}");
    }
    // Runs without number, a run without end, a run past all addresses, kinds whose header is not there.
    for (at, value) in [
        (0x88, u64::MAX),
        (0xa0, u64::MAX),
        (0x98, u64::MAX),
        (0xf98, 8),
        (0xf98, 2),
    ] {
        let mut bytes = full.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        assert!(is_refused(&bytes), "{at:#x}");
    }
    // Kinds that are not read are named by their number, and so are those that have not what they should.
    for (kind, name) in [
        (4, "minidump"),
        (7, "0x7"),
        (9, "list of ranges"),
        (10, "0xa"),
        (0x1234, "0x1234"),
    ] {
        let mut bytes = full.clone();
        bytes[0xf98..0xfa0].copy_from_slice(&u64::to_le_bytes(kind));
        std::fs::write(&path, &bytes).unwrap();
        let error = Dump::open(&path).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("of type"), "{error}");
    }
    // A bitmap of which the header says another number of bits, a list that does not end before the pages.
    for (file, at) in [
        (bitmap_64(&made), 0x2028),
        (summary(&made, &full), 0x2014),
        (ranges_64(&made, 9), 0x2018),
    ] {
        let mut bytes = file;
        bytes[at] ^= 1;
        assert!(is_refused(&bytes) || at == 0x2018, "{at:#x}");
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(is_refused(&bytes), "{at:#x}");
    }
    let mut bytes = bitmap_64(&made);
    bytes[0x2030..0x2038].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(is_refused(&bytes));
}

/// What is said of a crash dump that is not read.
fn told(file: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.dmp");
    std::fs::write(&path, file).unwrap();
    let output = lacuna(&[
        "identify",
        "--json",
        "--offline",
        "--dump",
        path.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn crash_dumps_that_are_cut_are_cut_and_not_damaged() {
    let (_, made) = made("win7_sp1_x64");
    let mut files = vec![full_64(&made), bitmap_64(&made), summary(&made, &full_64(&made))];
    files.extend([8, 9, 10].map(|kind| ranges_64(&made, kind)));
    for file in files {
        for length in [0x1000, file.len() / 3, file.len() * 2 / 3, file.len() - 1] {
            let said = told(&file[..length]);
            assert!(said.contains("cut short"), "{length:#x}: {said}");
            assert!(!said.contains("not possible"), "{length:#x}: {said}");
        }
    }
}

#[test]
fn a_crash_dump_of_another_processor_is_named() {
    let (_, made) = made("win7_sp1_x64");
    for (machine, name) in [
        (0xaa64_u16, "an arm64 machine"),
        (0x200, "an ia64 machine"),
        (0x1c4, "a 32-bit arm machine"),
        (0x5064, "0x5064"),
    ] {
        for mut file in [full_64(&made), bitmap_64(&made), ranges_64(&made, 10)] {
            file[0x30..0x32].copy_from_slice(&machine.to_le_bytes());
            let said = told(&file);
            assert!(said.contains(name) && said.contains("amd64"), "{said}");
            assert!(!said.contains("damaged"), "{said}");
        }
    }
    // What says nothing of it is read.
    for machine in [*b"\x64\x86\0\0", [0; 4], *b"PAGE"] {
        let mut file = full_64(&made);
        file[0x30..0x34].copy_from_slice(&machine);
        assert_scanned(&made, &file);
    }
}

#[test]
fn a_header_that_was_never_filled_in_is_not_called_damaged() {
    let (_, made) = made("win7_sp1_x64");
    let mut file = full_64(&made);
    file[0x88..0x8c].copy_from_slice(b"PAGE");
    let said = told(&file);
    assert!(
        said.contains("never filled in") && !said.contains("damaged"),
        "{said}"
    );
}
