//! Memory without registers in which more than one way leads to what looks like the kernel.

use lacuna::os::windows::ways::by_search;
use lacuna::source::GuestSource;
use lacuna_core::{Gfn, GuestMemory, GuestPhys, ReadError};
use lacuna_windows_fixtures::crash::full_64;
use lacuna_windows_fixtures::guest::{Guest, Made, Paging};
use serde_json::Value;

use crate::command::{GUID, lacuna};
use crate::memory::{Files, assert_scan, layout};

/// Frames of firmware's, full of what is not memory of the guest's: they come before the guest's own tables.
const NOISE: std::ops::Range<usize> = 0xa0..0x100;
const PAGE: usize = 4096;

fn put(memory: &mut [u8], at: usize, value: u64, size: usize) {
    memory[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

fn get(memory: &[u8], at: usize, size: usize) -> u64 {
    let mut value = [0; 8];
    value[..size].copy_from_slice(&memory[at..at + size]);
    u64::from_le_bytes(value)
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

/// Where the entry of the top-level table is that leads to `at`, its index, and its size.
fn top_entry(paging: Paging, cr3: u64, at: u64) -> (usize, usize, usize) {
    let (shift, bits, size) = match paging {
        Paging::Two => (22, 10, 4),
        Paging::Pae => (30, 2, 8),
        Paging::Four => (39, 9, 8),
        Paging::Five => (48, 9, 8),
    };
    let slot = index(at >> shift & ((1 << bits) - 1));
    (index(cr3) + slot * size, slot, size)
}

/// Sows `count` words that look like the top-level entry that leads to the kernel: at places of the kernel's
/// half of what would be a table, or, with `in_place`, where that entry is in the true table.
fn sow(made: &mut Made, paging: Paging, count: usize, in_place: bool) {
    let (entry_at, slot, size) = top_entry(paging, made.cr3, made.base);
    let entry = get(&made.memory, entry_at, size);
    let mut sown = 0;
    let mut step = 0;
    while sown < count {
        let frame = NOISE.start + step % NOISE.len();
        let per_page = PAGE / size;
        let place = match (in_place, paging) {
            (true, Paging::Pae) => slot + 4 * (step / NOISE.len()),
            (true, _) => slot,
            (false, Paging::Pae) => 2 + step % 2 + 4 * (step / NOISE.len()),
            (false, _) => per_page / 2 + (step * 7 + step / NOISE.len()) % (per_page / 2),
        };
        // A true entry beside it would make two ways of one.
        put(&mut made.memory, frame * PAGE + place * size, entry, size);
        sown += 1;
        step += 1;
    }
}

/// Takes away the entry by which the tables map themselves: of PAE's, the first of four.
fn forget_itself(made: &mut Made, paging: Paging) {
    let at = index(made.cr3);
    match paging {
        Paging::Two => put(&mut made.memory, at + 0x300 * 4, 0, 4),
        Paging::Pae => {
            let last = index(get(&made.memory, at + 3 * 8, 8) & !0xfff);
            put(&mut made.memory, last, 0, 8);
        }
        _ => put(&mut made.memory, at + 0x1ed * 8, 0, 8),
    }
}

fn candidates(answer: &Value) -> &str {
    answer["error"].as_str().unwrap()
}

#[test]
fn words_that_look_like_entries_hide_no_kernel_from_its_own_pdb() {
    for (profile, paging) in [
        ("xp_sp3_x86", Paging::Two),
        ("win10_x86_19041", Paging::Pae),
        ("win7_sp1_x64", Paging::Four),
    ] {
        for (count, in_place) in [(1, false), (100, false), (799, false), (90, true)] {
            let mut made = Guest::new(layout(profile), GUID).make();
            sow(&mut made, paging, count, in_place);
            assert_scan(
                &made,
                false,
                &format!("{profile}, {count} words, in place: {in_place}"),
            );
        }
    }
}

#[test]
fn of_several_ways_none_is_confirmed_unless_the_tables_tell() {
    for (profile, paging) in [
        ("xp_sp3_x86", Paging::Two),
        ("win10_x86_19041", Paging::Pae),
        ("win7_sp1_x64", Paging::Four),
    ] {
        for count in [1, 799] {
            let mut made = Guest::new(layout(profile), GUID).make();
            sow(&mut made, paging, count, false);
            let base = format!("{:#x}", made.base);
            // The tables that map themselves are the kernel's.
            let (status, answer) = Files::of(&made).run(&["identify"], false, &[]);
            assert_eq!(
                (status, &answer["image_base"]),
                (0, &Value::from(base.clone())),
                "{answer}"
            );
            assert_eq!(answer["page_table_root"], format!("{:#x}", made.cr3), "{answer}");
            forget_itself(&mut made, paging);
            let (status, answer) = Files::of(&made).run(&["identify"], false, &[]);
            assert_eq!(status, 3, "{profile}, {count}: {answer}");
            if count == 1 {
                assert!(
                    candidates(&answer).contains(&format!("mapped at {base}")),
                    "{answer}"
                );
            }
            // CR3 is the guest's own word, too.
            let cr3 = format!("{:x}", made.cr3);
            let (status, answer) = Files::of(&made).run(&["identify"], false, &["--cr3", &cr3]);
            assert_eq!(
                (status, &answer["image_base"]),
                (0, &Value::from(base)),
                "{answer}"
            );
        }
    }
}

#[test]
fn of_many_ways_that_were_passed_over_a_few_are_named() {
    let mut made = Guest::new(layout("xp_sp3_x86"), GUID).make();
    sow(&mut made, Paging::Two, 799, false);
    let files = Files::of(&made);
    let output = lacuna(&[
        "scan".as_ref(),
        "--offline".as_ref(),
        "--dump".as_ref(),
        files.path("memory").as_os_str(),
        "--pdb".as_ref(),
        files.path("ntkrnlmp.pdb").as_os_str(),
    ]);
    let said = String::from_utf8(output.stdout).unwrap();
    let lines = || said.lines().filter(|line| line.starts_with("passed over"));
    assert_eq!(lines().count(), 9, "{said}");
    assert!(lines().next_back().unwrap().ends_with(" more"), "{said}");
}

/// A guest with a second kernel that has tables of its own, as one that ran before leaves them. Returns its
/// top-level table and its address, too.
fn with_stale_kernel() -> (Made, u64, u64) {
    let mut guest = Guest::new(layout("xp_sp3_x86"), GUID);
    guest.copy = true;
    let mut made = guest.make();
    let (stale, other) = (0xa0_u64 << 12, made.base - 0x80_0000);
    let root = index(made.cr3);
    let table = made.memory[root..root + PAGE].to_vec();
    made.memory[index(stale)..index(stale) + PAGE].copy_from_slice(&table);
    put(&mut made.memory, index(stale) + 0x300 * 4, stale | 0x63, 4);
    let (at, _, size) = top_entry(Paging::Two, stale, made.base);
    put(&mut made.memory, at, 0, size);
    let (at, _, size) = top_entry(Paging::Two, made.cr3, other);
    put(&mut made.memory, at, 0, size);
    (made, stale, other)
}

#[test]
fn cr3_alone_tells_the_kernel_that_runs_from_a_stale_one() {
    let (made, stale, other) = with_stale_kernel();
    let files = Files::of(&made);
    let (status, answer) = files.run(&["identify"], false, &[]);
    assert_eq!(status, 3, "{answer}");
    for (cr3, base) in [(made.cr3, made.base), (stale, other)] {
        let (status, answer) = files.run(&["identify"], false, &["--cr3", &format!("{cr3:x}")]);
        assert_eq!(
            (status, &answer["image_base"]),
            (0, &Value::from(format!("{base:#x}"))),
            "{answer}"
        );
        assert!(
            answer["confirmed"][1].as_str().unwrap().contains("CR3"),
            "{answer}"
        );
    }
    // A CR3 that leads to none of them chooses none.
    let (status, answer) = files.run(&["identify"], false, &["--cr3", "a1000"]);
    assert_eq!(status, 3, "{answer}");
}

#[test]
fn registers_that_lead_to_no_kernel_in_memory_are_of_another_guest() {
    for profile in ["xp_sp3_x86", "win7_sp1_x64", "win10_x86_19041"] {
        let made = Guest::new(layout(profile), GUID).make();
        let files = Files::of(&made);
        // What lies there is memory of its own, and no table.
        for cr3 in ["0xa1000", "0x3ff000"] {
            let pdb = ["--pdb", "HERE/ntkrnlmp.pdb", "--cr3", cr3];
            let (status, answer) = files.run(&["scan"], false, &pdb);
            assert_eq!(status, 3, "{profile}: {answer}");
            let told = format!("{}", answer["remedy"]);
            assert!(told.contains("of one guest at one moment"), "{profile}: {told}");
            assert!(
                candidates(&answer).contains(&format!("mapped at {:#x}", made.base)),
                "{answer}"
            );
        }
    }
    // A crash dump is of the kernel that wrote it.
    let mut made = Guest::new(layout("win7_sp1_x64"), GUID).make();
    let mut file = full_64(&made);
    file[0x10..0x18].copy_from_slice(&0xa_1000_u64.to_le_bytes());
    made.memory = file;
    let (status, answer) = Files::of(&made).run(&["scan"], false, &["--pdb", "HERE/ntkrnlmp.pdb"]);
    assert_eq!(status, 0, "{answer}");
}

#[test]
fn windows_without_its_kernels_first_page_is_not_told_of_linux() {
    let mut made = Guest::new(layout("win7_sp1_x64"), GUID).make();
    made.memory[0x7f0 * PAGE..][..PAGE].fill(0);
    let (status, answer) = Files::of(&made).run(&["identify"], false, &[]);
    assert_eq!(status, 4, "{answer}");
    let error = candidates(&answer);
    assert!(
        error.contains("of Windows (a debug record that names ntkrnlmp.pdb"),
        "{error}"
    );
    // A crash dump is Windows' even when nothing is left of the kernel.
    made.memory.fill(0);
    made.memory = full_64(&made);
    let (status, answer) = Files::of(&made).run(&["identify"], false, &[]);
    assert_eq!(status, 4, "{answer}");
    let error = candidates(&answer);
    assert!(
        error.contains("crash dump") && !error.contains("VMCOREINFO"),
        "{error}"
    );
}

/// Memory of which it is known how much was read.
struct Counted {
    memory: Vec<u8>,
    bytes: usize,
}

impl GuestMemory for Counted {
    fn read(&mut self, from: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.bytes += into.len();
        let at = index(from.get());
        let there = self.memory.get(at..at + into.len());
        into.copy_from_slice(there.ok_or(ReadError::Absent(from.gfn()))?);
        Ok(())
    }
}

impl GuestSource for Counted {
    fn end(&self) -> Gfn {
        Gfn::new((self.memory.len() / PAGE) as u64)
    }
}

/// A guest of Linux has files in its memory that begin as a Windows kernel does: its own kernel is an image
/// for EFI, without debug records.
#[test]
fn what_maps_an_image_without_debug_records_is_not_searched_for() {
    let made = Guest::new(layout("win7_sp1_x64"), GUID).make();
    let search = |memory: &[u8]| {
        let mut counted = Counted {
            memory: memory.to_vec(),
            bytes: 0,
        };
        let found = by_search(&mut counted, &mut |_, _| {});
        (found.ways.len(), counted.bytes)
    };
    let all = made.memory.len();
    let (ways, bytes) = search(&made.memory);
    assert!(ways > 0 && bytes > 4 * all, "{ways} ways, {bytes} of {all} bytes");
    let mut without = made.memory.clone();
    for page in without
        .chunks_exact_mut(PAGE)
        .filter(|page| page.starts_with(b"MZ"))
    {
        let headers = index(get(page, 0x3c, 4));
        // The debug directory of a 64-bit image: the seventh.
        if headers + 24 + 112 + 7 * 8 <= PAGE {
            page[headers + 24 + 112 + 6 * 8..][..8].fill(0);
        }
    }
    let (ways, bytes) = search(&without);
    assert_eq!(ways, 0);
    assert!(bytes < 2 * all, "{bytes} of {all} bytes");
}
