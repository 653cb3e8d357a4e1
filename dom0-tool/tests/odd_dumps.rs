//! Dumps that are whole and yet not plain memory of a plain guest: without registers, of a kernel that is
//! dead, with pages of zeros or holes left out, of kernels that say less; and what is said of those that
//! cannot be read.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
#[path = "made/cores.rs"]
mod cores;
#[allow(dead_code)]
mod fake_kernel;

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use fake_kernel::{DIRECT, FakeKernel, IMAGE, IMAGE_AT, NOTE, VMEMMAP, VMEMMAP_AT, at};
use lacuna::os::linux::layout::Layout;
use serde_json::Value;

/// The free blocks of a healthy [`FakeKernel`]: first frame and order.
const BLOCKS: [(usize, usize); 4] = [(1024, 10), (2048, 10), (3080, 3), (3333, 0)];
/// A frame of a guest that it does not call free and that holds nothing.
const ELSEWHERE: u64 = 0xb0_0000;

/// What `lacuna` made of a dump.
struct Answer {
    status: i32,
    json: Value,
    /// The bitmap, where there is one.
    bits: Option<Vec<u8>>,
}

impl Answer {
    /// What it says went wrong, and what to do.
    fn told(&self) -> String {
        format!(
            "{}\n{}",
            self.json["error"].as_str().unwrap_or_default(),
            self.json["remedy"].as_str().unwrap_or_default()
        )
    }
}

/// Scans a file with `bytes`.
fn scan(bytes: &[u8], more: &[&str]) -> Answer {
    scan_with(bytes, &FakeKernel::layout(), more)
}

/// The same with this layout.
fn scan_with<S: AsRef<OsStr>>(bytes: &[u8], layout: &Layout, more: &[S]) -> Answer {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    fs::write(place("dump"), bytes).unwrap();
    layout.save(&place("layout")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["scan", "--json", "--dump"]).arg(place("dump"));
    command.arg("--layout").arg(place("layout"));
    let output = command
        .arg("--bitmap")
        .arg(place("bits"))
        .args(more)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    // A panic would be 101, a signal none at all.
    let status = output.status.code().unwrap_or_else(|| panic!("killed: {told}"));
    assert!([0, 1, 3, 4, 9].contains(&status), "exit status {status}: {told}");
    Answer {
        status,
        json: serde_json::from_slice(&output.stdout).unwrap(),
        bits: fs::read(place("bits")).ok(),
    }
}

/// The bitmap of a healthy guest.
fn right_bits() -> Vec<u8> {
    let mut bits = vec![0; 4096 / 8];
    for (head, order) in BLOCKS {
        for frame in head..head + (1 << order) {
            bits[frame / 8] |= 1 << (frame % 8);
        }
    }
    bits
}

/// Puts the first task of another kernel into `guest`: its name at physical `name`, its members before that.
fn another_first_task(guest: &mut FakeKernel, name: u64) {
    let (before, task) = (
        0x268,
        0xffff_ffff_9900_0000 | (name - at::NAME_IN_TASK) & 0xfff & !63,
    );
    for member in [0, 8, 0x48] {
        guest.u64(name - before + member, task);
    }
    guest.write(name, b"swapper/0\0");
}

/// The CR3 that ties the guest to its kernel, as an option.
fn cr3() -> [String; 2] {
    ["--cr3".to_owned(), format!("{:#x}", IMAGE_AT + at::TOP)]
}

fn with_cr3(bytes: &[u8]) -> Answer {
    let [option, value] = cr3();
    scan(bytes, &[&option, &value])
}

#[test]
fn without_registers_nothing_is_exact_and_the_status_says_so() {
    let guest = FakeKernel::new();
    let untied = scan(&guest.memory, &[]);
    assert_eq!(untied.status, 9, "{}", untied.json);
    assert_eq!(untied.json["verdict"], "untied");
    assert_eq!(untied.json["tied_by"], Value::Null);
    assert_eq!(untied.json["free_pages"], FakeKernel::FREE_PAGES);
    assert_eq!(untied.bits.unwrap(), right_bits());
    let tied = with_cr3(&guest.memory);
    assert_eq!((tied.status, &tied.json["verdict"]), (0, &Value::from("exact")));
    assert_eq!(tied.json["tied_by"], "page tables");
    assert_eq!(tied.bits.unwrap(), right_bits());
}

#[test]
fn a_kernel_that_crashed_into_another_is_refused_without_registers() {
    let crashed = format!("{}CRASHTIME=1790000000\n", FakeKernel::note_text());
    let mut by_note = FakeKernel::new();
    by_note.note(NOTE, &crashed);
    let mut cases = vec![("CRASHTIME", by_note)];
    // Of kernels whose note says nothing of it: the other's first task, in a frame, across two, and in memory
    // called free.
    for name in [ELSEWHERE + 0xb80, ELSEWHERE + 0x1000 - 4, 1024 * 4096 + 0xb80] {
        let mut guest = FakeKernel::new();
        another_first_task(&mut guest, name);
        cases.push(("first task", guest));
    }
    for (sign, guest) in cases {
        let answer = scan(&guest.memory, &[]);
        let told = answer.told();
        assert_eq!(answer.status, 3, "{told}");
        assert!(told.contains(sign) && told.contains("--registers"), "{told}");
        assert!(answer.bits.is_none());
        // A register says which of the two runs.
        assert_eq!(with_cr3(&guest.memory).status, 0);
    }
}

#[test]
fn what_only_looks_like_another_kernel_is_no_reason_to_refuse() {
    let mut guest = FakeKernel::new();
    // The name alone, as logs and traces have it, and a task of the kernel's own under it.
    guest.write(ELSEWHERE, b"comm: swapper/0\0 Not tainted");
    guest.write(ELSEWHERE + 0x1000, b"Linux version 5.10.0 (another)\n");
    assert_eq!(scan(&guest.memory, &[]).status, 9);
}

#[test]
fn a_core_of_kdumps_is_tied_by_its_instruction_pointers() {
    let mut guest = FakeKernel::new();
    // Such a core is of the kernel that has crashed.
    guest.note(
        NOTE,
        &format!("{}CRASHTIME=1790000000\n", FakeKernel::note_text()),
    );
    let mut registers = vec![0; 336];
    registers[112 + 16 * 8..][..8].copy_from_slice(&(IMAGE + 0x1234).to_le_bytes());
    let answer = scan(&core(&guest.memory, &cores::note(b"CORE", 1, &registers)), &[]);
    assert_eq!(answer.status, 0, "{}", answer.json);
    assert_eq!(answer.json["tied_by"], "instruction pointers");
    // An instruction of a program's is of no kernel.
    registers[112 + 16 * 8..][..8].copy_from_slice(&0x40_1234_u64.to_le_bytes());
    let answer = scan(&core(&guest.memory, &cores::note(b"CORE", 1, &registers)), &[]);
    assert_eq!(answer.status, 3, "{}", answer.json);
    // With the other kernel in it, it is not kdump's, and the instruction may be the other's at the same
    // address.
    another_first_task(&mut guest, ELSEWHERE + 0xb80);
    registers[112 + 16 * 8..][..8].copy_from_slice(&(IMAGE + 0x1234).to_le_bytes());
    let answer = scan(&core(&guest.memory, &cores::note(b"CORE", 1, &registers)), &[]);
    assert_eq!(answer.status, 3, "{}", answer.json);
}

/// `memory` as an ELF core with `notes`.
fn core(memory: &[u8], notes: &[u8]) -> Vec<u8> {
    cores::segments(&[cores::Segment::whole(0, memory)], notes)
}

/// The notes of two virtual CPUs.
fn qemu_notes() -> Vec<u8> {
    let cpus = FakeKernel::vcpus();
    cpus.iter().flat_map(|cpu| cores::qemu_note(cpu.cr3)).collect()
}

#[test]
fn pages_of_zeros_that_a_core_leaves_out_read_as_zero() {
    let memory = FakeKernel::new().memory;
    let whole = scan(&core(&memory, &qemu_notes()), &[]);
    assert_eq!(whole.status, 0, "{}", whole.json);
    // Runs of so many pages and more, as makedumpfile leaves them out (256), and every page.
    for least in [256, 3, 1] {
        let segments = cores::without_zeros(&memory, least);
        assert!(segments.len() > 3, "nothing is left out");
        let answer = scan(&cores::segments(&segments, &qemu_notes()), &[]);
        assert_eq!(answer.status, 0, "{least}: {}", answer.told());
        for member in ["verdict", "free_pages", "pages", "bitmap_frames"] {
            assert_eq!(answer.json[member], whole.json[member], "{least}: {member}");
        }
        assert_eq!(answer.bits, whole.bits);
    }
}

#[test]
fn what_a_filter_of_qemus_left_out_is_absent_and_not_zero() {
    let memory = FakeKernel::new().memory;
    for (is_placed, pages) in [(true, 4096 + 16_384), (false, 4096)] {
        let more = cores::Segment {
            physical: memory.len() as u64,
            bytes: Vec::new(),
            length: 64 << 20,
            is_placed,
        };
        let bytes = cores::segments(&[cores::Segment::whole(0, &memory), more], &qemu_notes());
        let answer = scan(&bytes, &[]);
        assert_eq!(answer.status, 0, "{}", answer.told());
        assert_eq!(answer.json["pages"], pages);
    }
}

#[test]
fn a_core_that_is_cut_in_what_it_has_is_cut_short_and_not_zero() {
    let memory = FakeKernel::new().memory;
    let bytes = cores::segments(&cores::without_zeros(&memory, 1), &qemu_notes());
    let answer = scan(&bytes[..bytes.len() - 4096], &[]);
    assert_eq!(answer.status, 3, "{}", answer.json);
    assert!(answer.told().contains("cut short"), "{}", answer.told());
}

#[test]
fn how_large_a_section_is_need_not_be_said() {
    let mut guest = FakeKernel::new();
    guest.edit_note("NUMBER(SECTION_SIZE_BITS)=27\n", "");
    let mut layout = FakeKernel::layout();
    layout.facts.remove("SECTION_SIZE_BITS");
    let answer = scan_with(&guest.memory, &layout, &cr3());
    assert_eq!(answer.status, 0, "{}", answer.told());
    assert_eq!(answer.bits.unwrap(), right_bits());
    // A guest whose memory does not end in its last section has others. 128 MiB of descriptors are not in
    // this one.
    guest.u64(0x61_0000 + 4624, (128 << 8) + 1);
    let answer = scan_with(&guest.memory, &layout, &cr3());
    assert_eq!(answer.status, 3);
    assert!(answer.told().contains("SECTION_SIZE_BITS"), "{}", answer.told());
}

#[test]
fn a_number_that_no_source_gives_is_the_headers_to_give() {
    let mut guest = FakeKernel::new();
    guest.edit_note("SIZE(zone)=1536\n", "");
    let mut layout = FakeKernel::layout();
    layout.facts.remove("sizeof(struct zone)");
    let answer = scan_with(&guest.memory, &layout, &cr3());
    assert_eq!(answer.status, 3, "{}", answer.json);
    assert!(answer.told().contains("--headers"), "{}", answer.told());
    is_for_a_file(&answer);
}

#[test]
fn headers_without_a_stack_protector_do_not_refuse_a_dump() {
    let mut layout = FakeKernel::layout();
    layout.facts.remove("offsetof(struct task_struct,stack_canary)");
    let answer = scan_with(&FakeKernel::new().memory, &layout, &cr3());
    assert_eq!(answer.status, 0, "{}", answer.told());
    assert_eq!(answer.bits.unwrap(), right_bits());
}

#[test]
fn descriptors_in_the_linear_map_are_no_virtual_memory_map() {
    let mut guest = FakeKernel::new();
    guest.edit_note(&format!("SYMBOL(vmemmap)={VMEMMAP:x}\n"), "");
    // A kernel without VMEMMAP that randomises its memory: vmemmap_base is there, and nothing lies at it.
    guest.u64(0x60_1000, (DIRECT + VMEMMAP_AT) | 0xf);
    let answer = with_cr3(&guest.memory);
    assert_eq!(answer.status, 0, "{}", answer.told());
    assert_eq!(answer.json["memory_model"], "sparsemem");
    assert_eq!(answer.bits.unwrap(), right_bits());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let [option, value] = cr3();
    for (options, status) in [
        ("CONFIG_SPARSEMEM=y\n", 0),
        ("CONFIG_SPARSEMEM=y\nCONFIG_SPARSEMEM_VMEMMAP=y\n", 3),
        ("CONFIG_FLATMEM=y\n", 3),
    ] {
        fs::write(&file, format!("CONFIG_X86_64=y\n{options}")).unwrap();
        let answer = scan(
            &guest.memory,
            &[&option, &value, "--config", file.to_str().unwrap()],
        );
        assert_eq!(answer.status, status, "{options}{}", answer.told());
    }
}

#[test]
fn a_raw_file_is_read_without_the_holes_that_are_named() {
    let memory = FakeKernel::new().memory;
    // Memory that nothing is in: what lies behind it moves down in the file, and is put back by the holes.
    let place = 0x30_0000;
    assert!(memory[place..place + 0x10_0000].iter().all(|byte| *byte == 0));
    let mut file = memory.clone();
    file.drain(place + 0x1234..place + 0x5678);
    file.drain(place + 0x8000..place + 0x2_0000);
    // What is left out is no whole number of pages; the file's end is.
    file.extend(std::iter::repeat_n(
        0,
        file.len().next_multiple_of(4096) - file.len(),
    ));
    let answer = with_cr3(&file);
    assert_ne!(answer.status, 0, "{}", answer.json);
    is_for_a_file(&answer);
    let [option, value] = cr3();
    let first = format!("{:#x}:{:#x}", place + 0x1234, place + 0x5678);
    let second = place + 0x8000 + (0x5678 - 0x1234);
    let second = format!("{second:#x}:{:#x}", second + 0x1_8000);
    // In any order.
    let answer = scan(&file, &[&option, &value, "--hole", &second, "--hole", &first]);
    assert_eq!(answer.status, 0, "{}", answer.told());
    assert_eq!(answer.bits.unwrap()[..512], right_bits());
    // A hole is of a raw file.
    let elf = core(&memory, &qemu_notes());
    let answer = scan(&elf, &["--hole", &first]);
    assert_eq!(answer.status, 1);
    assert!(answer.told().contains("an ELF core"), "{}", answer.told());
    let answer = scan(&memory, &["--hole", "0x2000000:0x3000000"]);
    assert_eq!(answer.status, 1, "{}", answer.told());
}

/// A guest whose memory from file byte `START` on lies above 4 GiB, the kernel's note with it: `file` is all
/// of its memory.
fn above_4_gib() -> FakeKernel {
    let (above, note) = (4_u64 << 30, 0xf0_0000);
    let mut guest = FakeKernel::new();
    guest.map_large(DIRECT + above + 0x20_0000, above + 0x20_0000);
    guest.write(NOTE, &[0; 4096]);
    guest.note(note, &FakeKernel::note_text());
    guest.u64(IMAGE_AT + at::NOTE_POINTER, DIRECT + above + note - START);
    // node_spanned_pages: up to the end of what lies above.
    guest.u64(0x61_0000 + 4624, (above + 0x100_0000 - START) / 4096);
    guest
}

/// Where the hole of [`above_4_gib`] begins.
const START: u64 = 0xc0_0000;

#[test]
fn a_raw_file_without_its_hole_is_read_by_the_kernels_own_word() {
    let guest = above_4_gib();
    let answer = with_cr3(&guest.memory);
    assert_eq!(answer.status, 0, "{}", answer.told());
    let remarks = answer.json["dump"]["remarks"].to_string();
    assert!(remarks.contains("--hole 0xc00000:0x100000000"), "{remarks}");
    assert_eq!(answer.bits.unwrap()[..512], right_bits());
    // Named, it is read at once; another one is not taken for it.
    let [option, value] = cr3();
    let answer = scan(
        &guest.memory,
        &[&option, &value, "--hole", "0xc00000:0x100000000"],
    );
    assert_eq!(answer.status, 0, "{}", answer.told());
    assert_eq!(answer.json["dump"]["remarks"], Value::Array(Vec::new()));
    let answer = scan(
        &guest.memory,
        &[&option, &value, "--hole", "0x800000:0x100000000"],
    );
    assert_ne!(answer.status, 0, "{}", answer.json);
    is_for_a_file(&answer);
}

#[test]
fn a_note_that_a_process_wrote_makes_no_hole() {
    let mut guest = above_4_gib();
    // The kernel's own is nowhere, and the copy would have it elsewhere than any hole has.
    guest.u64(IMAGE_AT + at::NOTE_POINTER, DIRECT + (4 << 30) + 0x30_5000);
    let answer = with_cr3(&guest.memory);
    assert_ne!(answer.status, 0, "{}", answer.json);
    is_for_a_file(&answer);
}

/// Fails where `answer` says what only a live guest can be told.
fn is_for_a_file(answer: &Answer) {
    let told = answer.told();
    for word in [
        "try again",
        "lying",
        "booting",
        "Absent(",
        "Read(",
        "NotPresent",
        "{ ",
    ] {
        assert!(!told.contains(word), "{word:?} in {told}");
    }
}

#[test]
fn what_is_said_of_a_file_fits_a_file() {
    let memory = FakeKernel::new().memory;
    let whole = core(&memory, &qemu_notes());
    // Cut: less and less of it.
    for part in 1..8 {
        let answer = scan(&whole[..whole.len() * part / 8], &[]);
        assert!([1, 3].contains(&answer.status), "{part}: {}", answer.json);
        assert!(answer.told().contains("cut short"), "{part}: {}", answer.told());
        is_for_a_file(&answer);
        let answer = scan(&memory[..memory.len() * part / 8], &[]);
        assert_ne!(answer.status, 0);
        is_for_a_file(&answer);
    }
    // Two kernels.
    let mut two = FakeKernel::new();
    two.hide_symbol("vmcoreinfo_note");
    two.note(
        0x5000,
        &FakeKernel::note_text().replace("SIZE(page)=64", "SIZE(page)=56"),
    );
    two.u64(IMAGE_AT + at::NOTE_POINTER + 0x400, DIRECT + 0x5000);
    let answer = scan(&two.memory, &[]);
    assert_eq!(answer.status, 3);
    assert!(answer.told().contains("--registers"), "{}", answer.told());
    is_for_a_file(&answer);
    // Registers of another guest, and none where the tables are not there.
    let answer = scan(&memory, &["--cr3", "0x123000"]);
    assert_eq!(answer.status, 3);
    assert!(answer.told().contains("registers"), "{}", answer.told());
    is_for_a_file(&answer);
    let mut without = FakeKernel::new();
    without.write(IMAGE_AT + at::TOP, &[0; 4096]);
    let answer = scan(&without.memory, &[]);
    assert_eq!(answer.status, 3);
    assert!(!answer.told().contains("virtual CPU 0"), "{}", answer.told());
    is_for_a_file(&answer);
}

#[test]
fn a_dump_of_another_processor_is_named_and_not_called_damaged() {
    let core = core(&FakeKernel::new().memory, &[]);
    // e_machine, and whether it is little-endian.
    for (machine, is_little, name) in [
        (183_u16, true, "arm64"),
        (21, true, "ppc64le"),
        (21, false, "ppc64 "),
        (22, false, "s390x"),
        (243, true, "riscv"),
        (0x1234, true, "4660"),
    ] {
        let mut bytes = core.clone();
        bytes[5] = if is_little { 1 } else { 2 };
        let bytes_of = |value: u16| {
            if is_little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        bytes[16..18].copy_from_slice(&bytes_of(4));
        bytes[18..20].copy_from_slice(&bytes_of(machine));
        let answer = scan(&bytes, &[]);
        assert_eq!(answer.status, 1, "{}", answer.json);
        let told = answer.told();
        assert!(told.contains(name) && told.contains("amd64"), "{told}");
        assert!(!told.contains("damaged") && !told.contains("again"), "{told}");
    }
    // Raw memory of one: its kernel's note tells.
    let mut guest = FakeKernel::new();
    guest.note(
        NOTE,
        "OSRELEASE=6.1.0-arm64\nSYMBOL(_stext)=ffff800008010000\nSYMBOL(init_uts_ns)=ffff800009000000\n\
         NUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)=0xffff7fffc8000000\n",
    );
    let answer = scan(&guest.memory, &[]);
    assert_eq!(answer.status, 1, "{}", answer.json);
    assert!(answer.told().contains("arm64"), "{}", answer.told());
    is_for_a_file(&answer);
    // A program is no core.
    let mut program = core;
    program[16] = 2;
    assert!(scan(&program, &[]).told().contains("no core"));
}
