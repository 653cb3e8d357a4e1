//! Memory images of guests: the kernel is found, whatever else lies about, and not one page is wrongly called
//! free.

use std::path::{Path, PathBuf};

use lacuna_windows_fixtures::guest::{Guest, Made, Paging, State};
use lacuna_windows_fixtures::layouts::{Layout, layouts};
use serde_json::Value;

use crate::command::{GUID, GUID_TEXT, lacuna};

/// The nine kinds of layout that kernels since Windows XP have: one kernel for each.
const NINE: [&str; 9] = [
    "xp_sp3_x86",
    "win2003_sp2_x86",
    "win2003_sp2_x64",
    "win7_sp1_x86",
    "win7_sp1_x86_24000",
    "win7_sp1_x64",
    "win81_u1_x64",
    "win10_x86_19041",
    "win10_x64_19041",
];

pub(crate) fn layout(profile: &str) -> Layout {
    layouts()
        .into_iter()
        .find(|layout| layout.profile == profile)
        .unwrap()
}

/// A made guest in files.
pub(crate) struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    pub(crate) fn of(made: &Made) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("memory"), &made.memory).unwrap();
        std::fs::write(folder.path().join("registers"), &made.registers).unwrap();
        std::fs::write(folder.path().join("ntkrnlmp.pdb"), &made.pdb).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command on the image, offline and with JSON.
    pub(crate) fn run(&self, command: &[&str], with_registers: bool, more: &[&str]) -> (i32, Value) {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut arguments: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend([
            "--json".into(),
            "--offline".into(),
            "--dump".into(),
            text("memory"),
        ]);
        if with_registers {
            arguments.extend(["--registers".into(), text("registers")]);
        }
        arguments.extend(
            more.iter()
                .map(|word| word.replace("HERE", self.folder.path().to_str().unwrap())),
        );
        let output = lacuna(&arguments);
        let answer = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), answer)
    }
}

fn bitmap(file: &Path) -> Vec<u8> {
    std::fs::read(file).unwrap()
}

/// Scans the image and holds each frame against the truth.
pub(crate) fn assert_scan(made: &Made, with_registers: bool, what: &str) {
    let files = Files::of(made);
    let (status, answer) = files.run(
        &["scan"],
        with_registers,
        &["--pdb", "HERE/ntkrnlmp.pdb", "--bitmap", "HERE/bitmap"],
    );
    assert_eq!(status, 0, "{what}: {answer}");
    let bits = bitmap(&files.path("bitmap"));
    for (frame, free) in made.free.iter().enumerate() {
        let found = bits[frame / 8] >> (frame % 8) & 1 != 0;
        assert_eq!(found, *free, "{what}: frame {frame:#x}, {:?}", made.states[frame]);
    }
    let free = made.free.iter().filter(|free| **free).count();
    assert!(free > 500, "{what}: {free}");
    assert_eq!(answer["free_pages"], free, "{what}");
    assert_eq!(answer["guest_free_pages"], free, "{what}");
    assert_eq!(answer["verdict"], "exact", "{what}");
    let pages: u64 = made.runs.iter().map(|(_, count)| count).sum();
    assert_eq!(answer["pages"], pages, "{what}");
    let dirty = made
        .states
        .iter()
        .filter(|state| matches!(state, Some(State::ZeroedButDirty | State::OffList)))
        .count();
    assert_eq!(answer["not_zero"], dirty, "{what}");
}

#[test]
fn none_wrong_and_none_missed_in_nine_layouts() {
    for profile in NINE {
        let made = Guest::new(layout(profile), GUID).make();
        assert_scan(&made, true, profile);
    }
}

#[test]
fn every_known_layout_is_scanned_right() {
    let mut seen = Vec::new();
    for layout in layouts() {
        // Many kernels have the same: each is tried once.
        let what = layout.profile.clone();
        let facts = Layout {
            profile: String::new(),
            ..layout.clone()
        };
        if seen.contains(&facts) {
            continue;
        }
        seen.push(facts);
        assert_scan(&Guest::new(layout, GUID).make(), true, &what);
    }
    assert!(seen.len() > NINE.len());
}

#[test]
fn five_levels_of_page_tables_do_as_well() {
    let mut guest = Guest::new(layout("win10_x64_19041"), GUID);
    guest.paging = Paging::Five;
    assert_scan(&guest.make(), true, "five levels");
}

#[test]
fn without_registers_the_kernel_is_found_by_its_page_tables() {
    // Two levels, PAE, four levels.
    for profile in ["xp_sp3_x86", "win10_x86_19041", "win7_sp1_x64"] {
        let mut guest = Guest::new(layout(profile), GUID);
        guest.decoys = true;
        assert_scan(&guest.make(), false, profile);
    }
    let mut guest = Guest::new(layout("win10_x64_19041"), GUID);
    guest.paging = Paging::Five;
    assert_scan(&guest.make(), false, "five levels");
}

#[test]
fn the_kernel_is_identified_with_and_without_what_may_be_paged_out() {
    for exports_present in [true, false] {
        let mut guest = Guest::new(layout("win7_sp1_x64"), GUID);
        guest.exports_present = exports_present;
        guest.decoys = true;
        let made = guest.make();
        let files = Files::of(&made);
        for with_registers in [true, false] {
            let (status, answer) = files.run(&["identify"], with_registers, &[]);
            assert_eq!(status, 0, "{answer}");
            assert_eq!(answer["os"], "windows");
            assert_eq!(answer["guid"], GUID_TEXT);
            assert_eq!(answer["age"], 1);
            assert_eq!(answer["image_base"], format!("{:#x}", made.base));
            assert_eq!(
                answer["symbol_path"],
                format!("ntkrnlmp.pdb/{GUID_TEXT}1/ntkrnlmp.pdb")
            );
            assert_eq!(answer["export_name"].is_string(), exports_present);
        }
    }
}

#[test]
fn kernels_of_every_name_are_kernels() {
    // By the PDB's name alone, in a search, beside images that are no kernels.
    for (profile, paging, name) in [
        ("xp_sp3_x86", Paging::Two, "ntoskrnl.pdb"),
        ("win7_sp1_x86", Paging::Two, "d:\\w7\\NTKRNLMP.PDB"),
        ("win10_x86_19041", Paging::Pae, "ntkrnlpa.pdb"),
        ("win10_x86_19041", Paging::Pae, "ntkrpamp.pdb"),
        ("win10_x64_19041", Paging::Four, "ntkrnlmp.pdb"),
        ("win10_x64_19041", Paging::Five, "ntkrla57.pdb"),
    ] {
        let mut guest = Guest::new(layout(profile), GUID);
        guest.paging = paging;
        guest.pdb_name = name.to_owned();
        guest.exports_present = false;
        guest.decoys = true;
        let (status, answer) = Files::of(&guest.make()).run(&["identify"], false, &[]);
        assert_eq!(status, 0, "{name}: {answer}");
        let own = name.rsplit('\\').next().unwrap();
        assert_eq!(answer["symbol_path"], format!("{own}/{GUID_TEXT}1/{own}"));
    }
    let mut guest = Guest::new(layout("win10_x64_19041"), GUID);
    guest.pdb_name = "win32k.pdb".into();
    guest.exports_present = false;
    let (status, answer) = Files::of(&guest.make()).run(&["identify"], false, &[]);
    assert_eq!(status, 4, "{answer}");
}

#[test]
fn a_single_register_or_two_will_do() {
    let made = Guest::new(layout("win10_x64_19041"), GUID).make();
    let files = Files::of(&made);
    let cr3 = format!("{:x}", made.cr3);
    let lstar = format!("{:x}", made.base + 0x1040);
    let (status, answer) = files.run(&["identify"], false, &["--cr3", &cr3, "--lstar", &lstar]);
    assert_eq!(status, 0, "{answer}");
    assert!(
        answer["confirmed"][0].as_str().unwrap().contains("LSTAR"),
        "{answer}"
    );
}

#[test]
fn a_second_kernel_in_the_kernels_half_is_told_from_the_one_that_runs() {
    let mut guest = Guest::new(layout("win7_sp1_x64"), GUID);
    guest.copy = true;
    let made = guest.make();
    let files = Files::of(&made);
    // Registers settle it.
    let (status, answer) = files.run(&["identify"], true, &[]);
    assert_eq!(
        (status, &answer["image_base"]),
        (0, &Value::from(format!("{:#x}", made.base)))
    );
    // So do the kernel's own structures, with its PDB.
    assert_scan(&made, false, "a copy");
    // Neither: refused, and both are named.
    let (status, answer) = files.run(&["identify"], false, &[]);
    assert_eq!(status, 3, "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains(&format!("{:#x}", made.base)), "{error}");
    assert!(
        error.contains(&format!("{:#x}", made.base - 0x80_0000)),
        "{error}"
    );
}

#[test]
fn the_debuggers_block_stands_in_for_what_the_pdb_does_not_name() {
    for profile in ["xp_sp3_x86", "win7_sp1_x64"] {
        let mut guest = Guest::new(layout(profile), GUID);
        guest.by_debugger_block = true;
        assert_scan(&guest.make(), true, profile);
    }
}

#[test]
fn decoys_alone_are_refused_and_nothing_is_not_found() {
    let mut guest = Guest::new(layout("win7_sp1_x64"), GUID);
    guest.decoys = true;
    let mut made = guest.make();
    // The page tables' frames are wiped: nothing maps anything.
    made.memory[0x200 * 4096..0x240 * 4096].fill(0);
    let files = Files::of(&made);
    let (status, answer) = files.run(&["identify"], false, &[]);
    assert_eq!(status, 3, "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("no debug record"), "{error}");
    made.memory.fill(0);
    let (status, answer) = Files::of(&made).run(&["identify"], false, &[]);
    assert_eq!(status, 4, "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("taken for raw memory"), "{error}");
}

#[test]
fn another_kernels_pdb_is_refused() {
    let made = Guest::new(layout("win7_sp1_x64"), GUID).make();
    let files = Files::of(&made);
    let mut other = Guest::new(layout("win7_sp1_x64"), GUID);
    other.age = 2;
    std::fs::write(files.path("other.pdb"), other.make().pdb).unwrap();
    let (status, answer) = files.run(&["scan"], true, &["--pdb", "HERE/other.pdb"]);
    assert_eq!(status, 3, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("age 2"), "{answer}");
    // And one that is not to be had, with its address and its place.
    let (status, answer) = files.run(
        &["scan"],
        true,
        &["--symbols", "srv*HERE/cache*http://127.0.0.1:1/s"],
    );
    assert_eq!(status, 4, "{answer}");
    let remedy = answer["remedy"].as_str().unwrap();
    assert!(
        remedy.contains(&format!(
            "http://127.0.0.1:1/s/ntkrnlmp.pdb/{GUID_TEXT}1/ntkrnlmp.pdb"
        )),
        "{remedy}"
    );
}

#[test]
fn a_count_that_contradicts_the_scan_is_refused() {
    let mut guest = Guest::new(layout("win7_sp1_x64"), GUID);
    guest.total = Some(60_000);
    let (status, answer) = Files::of(&guest.make()).run(&["scan"], true, &["--pdb", "HERE/ntkrnlmp.pdb"]);
    assert_eq!(status, 3, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("60000"), "{answer}");
    // A count of none is a count.
    guest.total = Some(0);
    let (status, answer) = Files::of(&guest.make()).run(&["scan"], true, &["--pdb", "HERE/ntkrnlmp.pdb"]);
    assert_eq!(status, 3, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("says 0"), "{answer}");
}

#[test]
fn the_partitions_count_makes_windows_10_and_11_exact() {
    for profile in ["win10_x64_19041", "win10_x86_19041"] {
        let mut guest = Guest::new(layout(profile), GUID);
        guest.partition = true;
        assert_scan(&guest.make(), true, profile);
        for total in [0, 60_000] {
            guest.total = Some(total);
            let files = Files::of(&guest.make());
            let (status, answer) = files.run(&["scan"], true, &["--pdb", "HERE/ntkrnlmp.pdb"]);
            assert_eq!(status, 3, "{profile}: {answer}");
        }
    }
}

/// What a large page that is zeroed looks like is known of no kernel: one entry or 512 on the list, counted
/// as one page, as 512, or elsewhere. Where both say the same, the bytes decide; where they differ, nothing
/// is called free.
#[test]
fn however_large_pages_are_listed_and_counted_none_is_wrong() {
    let mut guest = Guest::new(layout("win10_x64_19041"), GUID);
    guest.partition = true;
    let free = guest.make().free.iter().filter(|free| **free).count() as u64;
    // Counted and not listed, listed and not counted, a large page of which a part is counted.
    for (total, expected) in [(free + 511, 3), (free - 512, 3), (free, 0)] {
        guest.total = Some(total);
        let files = Files::of(&guest.make());
        let (status, answer) = files.run(&["scan"], true, &["--pdb", "HERE/ntkrnlmp.pdb"]);
        assert_eq!(status, expected, "{total} of {free}: {answer}");
    }
}

#[test]
fn pages_that_are_listed_and_hold_something_are_believed_of_nobody() {
    let scan = |made: &Made| Files::of(made).run(&["scan"], true, &["--pdb", "HERE/ntkrnlmp.pdb"]);
    for (profile, uncounted) in [("win7_sp1_x64", false), ("win10_x64_19041", true)] {
        let mut guest = Guest::new(layout(profile), GUID);
        guest.uncounted = uncounted;
        let mut made = guest.make();
        for (frame, state) in made.states.iter().enumerate() {
            if *state == Some(State::Zeroed) {
                made.memory[frame * 4096 + 17] = 1;
            }
        }
        let (status, answer) = scan(&made);
        assert_eq!(status, 3, "{profile}: {answer}");
    }
    // Without a count, 15 of 16 have to be zero.
    let mut guest = Guest::new(layout("win10_x64_19041"), GUID);
    guest.uncounted = true;
    let mut made = guest.make();
    let (status, answer) = scan(&made);
    assert_eq!(status, 3, "{answer}");
    assert!(
        answer["error"].as_str().unwrap().contains("no count of its own"),
        "{answer}"
    );
    for (frame, state) in made.states.iter().enumerate() {
        if matches!(state, Some(State::ZeroedButDirty | State::OffList)) {
            made.memory[frame * 4096..][..4096].fill(0);
        }
    }
    let (status, answer) = scan(&made);
    assert_eq!(
        (status, &answer["verdict"]),
        (0, &Value::from("unconfirmed")),
        "{answer}"
    );
}

#[test]
fn a_file_that_ends_before_memory_does_is_cut_short_whatever_is_counted() {
    let mut guest = Guest::new(layout("win7_sp1_x64"), GUID).make();
    let end = guest.memory.len() / 4096 - 16;
    let lime = |memory: &[u8], promised: usize| {
        let mut file = [&b"EMiL"[..], &1_u32.to_le_bytes(), &[0; 8]].concat();
        file.extend_from_slice(&(promised as u64 - 1).to_le_bytes());
        file.extend_from_slice(&[0; 8]);
        [&file[..], memory].concat()
    };
    let whole = std::mem::take(&mut guest.memory);
    for (file, is_whole) in [
        (whole.clone(), true),
        (lime(&whole, whole.len()), true),
        (whole[..end * 4096].to_vec(), false),
        (lime(&whole[..end * 4096], whole.len()), false),
        (lime(&whole[..end * 4096], end * 4096), false),
        // All that the guest has is there, and not all that the file says it has.
        (lime(&whole, 1 << 40), false),
    ] {
        guest.memory = file;
        let files = Files::of(&guest);
        let (status, answer) = files.run(&["scan"], false, &["--pdb", "HERE/ntkrnlmp.pdb"]);
        assert_eq!(status, if is_whole { 0 } else { 3 }, "{answer}");
        let told = answer["error"].as_str().unwrap_or_default();
        assert_eq!(told.contains("cut short"), !is_whole, "{told}");
        assert!(told.matches("cut short").count() < 2, "{told}");
    }
}

#[test]
fn a_profile_is_written_that_the_engine_would_take() {
    for profile in NINE {
        let made = Guest::new(layout(profile), GUID).make();
        let files = Files::of(&made);
        let (status, answer) = files.run(
            &["profile", "build"],
            true,
            &["--pdb", "HERE/ntkrnlmp.pdb", "--out", "HERE/profile"],
        );
        assert_eq!(status, 0, "{answer}");
        let bytes = std::fs::read(files.path("profile")).unwrap();
        let decoded = lacuna_core::Profile::decode(&bytes).unwrap();
        assert_eq!(decoded.extents.len(), made.runs.len(), "{profile}");
    }
}
