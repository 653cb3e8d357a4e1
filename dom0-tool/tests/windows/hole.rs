//! Raw memory files that leave out the hole below 4 GiB: what is above it lies right behind what is below.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use lacuna_windows_fixtures::guest::{Above, Guest, Made};
use serde_json::Value;

use crate::command::GUID;
use crate::memory::{Files, layout};

/// Where the second half of a made guest's memory begins in [`Made::memory`].
const HALF: usize = 0x900 << 12;
/// Where the hole begins, as on most machines.
const HOLE: u64 = 0xc000_0000;

fn guest(profile: &str, above: Above) -> Guest {
    let mut guest = Guest::new(layout(profile), GUID);
    guest.above = above;
    guest
}

/// The guest's files: all of its memory without the hole, which begins at `hole`. `cut` bytes are missing at
/// the end.
fn files(made: &Made, hole: u64, cut: u64) -> Files {
    let files = Files::of(made);
    let mut file = File::create(files.path("memory")).unwrap();
    file.write_all(&made.memory[..HALF]).unwrap();
    file.seek(SeekFrom::Start(hole)).unwrap();
    file.write_all(&made.memory[HALF..]).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - cut).unwrap();
    files
}

/// Scans, and holds each frame against the truth where it succeeds.
fn scan(guest: &Guest, made: &Made, files: &Files, with_registers: bool, more: &[&str]) -> (i32, Value) {
    let options = ["--pdb", "HERE/ntkrnlmp.pdb", "--bitmap", "HERE/bitmap"];
    let (status, answer) = files.run(&["scan"], with_registers, &[&options[..], more].concat());
    if status == 0 {
        let bits = std::fs::read(files.path("bitmap")).unwrap();
        let is_free = |frame: u64| {
            let byte = usize::try_from(frame / 8).unwrap();
            bits.get(byte).is_some_and(|byte| byte >> (frame % 8) & 1 != 0)
        };
        for (place, free) in (0..).zip(&made.free) {
            let frame = guest.frame_at(place);
            assert_eq!(is_free(frame), *free, "frame {frame:#x}");
        }
        let all: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        let free = made.free.iter().filter(|free| **free).count();
        assert_eq!(usize::try_from(all).unwrap(), free);
        assert_eq!(answer["verdict"], "exact", "{answer}");
    }
    (status, answer)
}

#[test]
fn the_guests_own_word_puts_memory_above_the_hole_where_it_is() {
    for (profile, above) in [
        ("win10_x64_19041", Above::Half),
        ("win10_x64_19041", Above::Tables),
        ("win7_sp1_x64", Above::Half),
        ("win7_sp1_x64", Above::Tables),
        ("win10_x86_19041", Above::Half),
    ] {
        let guest = guest(profile, above);
        let made = guest.make();
        for hole in [HOLE, 0x8000_0000] {
            let what = format!("{profile}, {above:?}");
            let files = files(&made, hole, 0);
            let (status, answer) = scan(&guest, &made, &files, true, &[]);
            assert_eq!(status, 0, "{what}: {answer}");
            let remarks = answer["dump"]["remarks"].to_string();
            let named = format!("--hole {hole:#x}:0x100000000");
            assert!(remarks.contains(&named), "{what}: {answer}");
        }
    }
}

#[test]
fn a_hole_can_be_named_and_a_wrong_one_is_refused() {
    let guest = guest("win10_x64_19041", Above::Half);
    let made = guest.make();
    let files = files(&made, HOLE + (12 << 20), 0);
    let named = ["--hole", "0xc0c00000:0x100000000"];
    let (status, answer) = scan(&guest, &made, &files, true, &named);
    assert_eq!(status, 0, "{answer}");
    for wrong in ["0xc0800000:0x100000000", "0xc0c00000:0x100001000"] {
        let (status, answer) = scan(&guest, &made, &files, true, &["--hole", wrong]);
        assert_ne!(status, 0, "{wrong}: {answer}");
    }
    // No machine is known to have such a hole: it is not guessed.
    let (status, answer) = scan(&guest, &made, &files, true, &[]);
    assert_eq!(status, 3, "{answer}");
    assert!(answer.to_string().contains("--hole START:END"), "{answer}");
}

#[test]
fn a_file_that_is_cut_short_is_not_taken_for_one_without_its_hole() {
    let guest = guest("win10_x64_19041", Above::Half);
    let made = guest.make();
    // Cut, and with the hole, and both.
    for (hole, cut) in [(HOLE, 4096), (HOLE, 1 << 20), (1 << 32, 4096), (1 << 32, 3 << 20)] {
        let files = files(&made, hole, cut);
        let (status, answer) = scan(&guest, &made, &files, true, &[]);
        assert_eq!(status, 3, "{hole:#x}, {cut:#x}: {answer}");
    }
}
