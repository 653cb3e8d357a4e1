//! Dumps with a bit that has flipped, and dumps that are cut short: an error that says so, or an answer that
//! is wrong at most in the block whose descriptor was hit.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
#[path = "made/cores.rs"]
mod cores;
#[allow(dead_code)]
mod fake_kernel;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use lacuna::ops::guest::with_dumped_kernel;
use lacuna::os::Sources;
use lacuna::progress::Silent;
use lacuna::source::dump::Dump;

use fake_kernel::{FRAMES, FakeKernel, IMAGE_AT, NOTE, PROCESS_TOP, VMEMMAP_AT, at};
use serde_json::{Value, json};

/// The free blocks of a healthy [`FakeKernel`]: first frame and order.
const BLOCKS: [(u64, u64); 4] = [(1024, 10), (2048, 10), (3080, 3), (3333, 0)];
/// Bytes of a descriptor, and where it keeps order, type and references.
const DESCRIPTOR: u64 = 64;
const ORDER: u64 = 40;
const TYPE: u64 = 51;
const REFERENCES: u64 = 52;
const PAGE: u64 = 4096;

/// How memory is put into the file.
#[derive(Clone, Copy)]
enum Form {
    Raw,
    Elf,
}

/// A dump in a file of its own, and what goes with it.
struct Damaged {
    folder: tempfile::TempDir,
    file: File,
    /// Where memory begins in the file.
    memory_at: u64,
    form: Form,
    bytes: Vec<u8>,
}

/// What `lacuna scan` made of it.
struct Answer {
    status: i32,
    json: Value,
    /// Frames called free that are not, or not called free and are; `None` after an error.
    wrong: Option<Vec<u64>>,
}

impl Damaged {
    fn new(form: Form) -> Self {
        let memory = FakeKernel::new().memory;
        let (bytes, memory_at) = match form {
            Form::Raw => (memory, 0),
            Form::Elf => elf(&memory),
        };
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("dump"), &bytes).unwrap();
        FakeKernel::layout().save(&place("layout")).unwrap();
        let hex = |value: u64| format!("{value:#x}");
        let registers: Vec<Value> = FakeKernel::vcpus()
            .iter()
            .map(|cpu| {
                json!({
                    "cr0": hex(cpu.cr0), "cr3": hex(cpu.cr3), "cr4": hex(cpu.cr4), "efer": hex(cpu.efer),
                    "idt_base": hex(cpu.idt_base), "idt_limit": hex(cpu.idt_limit.into()), "lstar": hex(cpu.lstar),
                })
            })
            .collect();
        fs::write(place("registers"), serde_json::to_vec(&registers).unwrap()).unwrap();
        let file = File::options().write(true).open(place("dump")).unwrap();
        Self {
            folder,
            file,
            memory_at,
            form,
            bytes,
        }
    }

    fn scan(&self) -> Answer {
        let place = |name: &str| self.folder.path().join(name);
        let _ = fs::remove_file(place("bits"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(["scan", "--json", "--dump"]).arg(place("dump"));
        command.arg("--layout").arg(place("layout"));
        command.arg("--bitmap").arg(place("bits"));
        // An ELF core has its registers in its notes.
        if matches!(self.form, Form::Raw) {
            command.arg("--registers").arg(place("registers"));
        }
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        // A panic would be 101, a signal none at all.
        let status = output.status.code().unwrap_or_else(|| panic!("killed: {told}"));
        assert!([0, 1, 3, 4, 9].contains(&status), "exit status {status}: {told}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        // Where the registers are what is damaged, nothing ties the kernel to a processor any more (9).
        let is_answer = [0, 9].contains(&status);
        let wrong = is_answer.then(|| wrong(&fs::read(place("bits")).unwrap()));
        if !is_answer {
            assert!(!json["error"].as_str().unwrap().is_empty(), "{json}");
        }
        Answer { status, json, wrong }
    }

    /// Scans with one bit of the file flipped: bit `bit` of byte `place`.
    fn with_flip(&self, place: u64, bit: u32) -> Answer {
        let byte = self.bytes[usize::try_from(place).unwrap()];
        self.file.write_all_at(&[byte ^ 1 << bit], place).unwrap();
        let answer = self.scan();
        self.file.write_all_at(&[byte], place).unwrap();
        answer
    }

    /// Flips one bit in each of `places`, and asks that nothing but an error comes of it, or the truth.
    fn true_or_refused(&self, places: impl Iterator<Item = (u64, u32)>) {
        let (mut refused, mut answered) = (0, 0);
        for (place, bit) in places {
            let answer = self.with_flip(place, bit);
            match answer.wrong {
                None => refused += 1,
                Some(wrong) => {
                    let what = format!("bit {bit} of byte {place:#x}: {}", answer.json);
                    assert!(
                        wrong.is_empty(),
                        "{} wrong frames, {:?}: {what}",
                        wrong.len(),
                        wrong.first()
                    );
                    answered += 1;
                }
            }
        }
        println!("{refused} refused, {answered} answered");
    }
}

/// `memory` as one segment of an ELF core with the notes of two virtual CPUs, and where it begins in the
/// file.
fn elf(memory: &[u8]) -> (Vec<u8>, u64) {
    let notes: Vec<u8> = FakeKernel::vcpus()
        .iter()
        .flat_map(|cpu| cores::qemu_note(cpu.cr3))
        .collect();
    let mut bytes = cores::elf(true, &[0], &notes, false);
    let memory_at = bytes.len() - usize::try_from(PAGE).unwrap();
    bytes.truncate(memory_at);
    bytes.extend_from_slice(memory);
    // p_filesz of the second program header.
    bytes[64 + 56 + 32..][..8].copy_from_slice(&(memory.len() as u64).to_le_bytes());
    (bytes, memory_at as u64)
}

fn is_free(frame: u64) -> bool {
    BLOCKS
        .iter()
        .any(|(head, order)| (*head..head + (1 << order)).contains(&frame))
}

fn wrong(bits: &[u8]) -> Vec<u64> {
    let said = |frame: u64| {
        let byte = bits.get(usize::try_from(frame / 8).unwrap());
        byte.is_some_and(|byte| byte >> (frame % 8) & 1 == 1)
    };
    // A header that is hit may give the dump more frames than the guest has.
    let frames = FRAMES.max(bits.len() as u64 * 8);
    (0..frames)
        .filter(|frame| said(*frame) != is_free(*frame))
        .collect()
}

/// Numbers below what is asked for, the same in every run (Marsaglia's xorshift64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) % limit
    }

    fn bit(&mut self) -> u32 {
        u32::try_from(self.below(8)).unwrap()
    }
}

#[test]
fn a_flip_in_a_descriptor_is_wrong_in_its_own_block_at_most() {
    let dump = Damaged::new(Form::Raw);
    assert_eq!(dump.scan().json["verdict"], "exact");
    let mut draw = Draw(0x0b1e_55ed);
    let (mut refused, mut exact, mut local) = (0, 0, 0);
    // The members that count, in each head: order, type, references; then any bit of any descriptor.
    let mut flips = Vec::new();
    for (head, _) in BLOCKS {
        flips.extend((0..8).map(|bit| (head, ORDER, bit)));
        flips.extend([(head, ORDER + 1, 2), (head, ORDER + 7, 7)]);
        flips.extend([0, 4, 7].map(|bit| (head, TYPE, bit)));
        flips.extend([0, 6].map(|bit| (head, REFERENCES, bit)));
    }
    flips.extend((0..20).map(|_| (draw.below(FRAMES), draw.below(DESCRIPTOR), draw.bit())));
    for (frame, byte, bit) in flips {
        let place = VMEMMAP_AT + frame * DESCRIPTOR + byte;
        let answer = dump.with_flip(place, bit);
        let Some(wrong) = answer.wrong else {
            assert_eq!(answer.status, 3, "{}", answer.json);
            refused += 1;
            continue;
        };
        if wrong.is_empty() {
            exact += 1;
            continue;
        }
        // The block as it is, or as large as its head now says.
        let order = BLOCKS
            .iter()
            .find(|(head, _)| *head == frame)
            .map_or(0, |(_, order)| *order);
        let at = usize::try_from(VMEMMAP_AT + frame * DESCRIPTOR + ORDER).unwrap();
        let stated = u64::from(dump.bytes[at]) ^ if byte == ORDER { 1 << bit } else { 0 };
        let own = frame..frame + (1 << order.max(stated.min(10)));
        assert!(
            wrong.iter().all(|frame| own.contains(frame)),
            "bit {bit} of byte {byte} of frame {frame}: {} wrong frames from {:?} on: {}",
            wrong.len(),
            wrong.first(),
            answer.json
        );
        local += 1;
    }
    println!("{refused} refused, {exact} exact, {local} wrong in their own block");
    // Each of the three comes about, or this tries less than it seems to.
    assert!(refused > 0 && exact > 0 && local > 0);
}

#[test]
fn a_flip_in_what_the_kernel_says_of_itself_is_refused_or_changes_nothing() {
    let dump = Damaged::new(Form::Raw);
    let mut draw = Draw(0x00c0_ffee);
    let places = [
        (NOTE, 24 + FakeKernel::note_text().len() as u64, 24),
        // Text, the reference table, names, counters and symbols.
        (IMAGE_AT + at::TOP, 0x1000, 4),
        (IMAGE_AT + at::UTS, 0x200, 6),
        (IMAGE_AT + at::BANNER, 0x40, 2),
        (IMAGE_AT + at::NOTE_POINTER, 8, 3),
        (IMAGE_AT + at::VMEMMAP_BASE, 8, 4),
        (IMAGE_AT + at::NODE_DATA, 8, 3),
        (IMAGE_AT + at::COUNT, 4, 3),
        (IMAGE_AT + at::NAMES, 0x100, 8),
        (IMAGE_AT + at::BASE, 8, 3),
        (IMAGE_AT + at::OFFSETS, 48, 8),
        // Page tables: those that the direct map, the image and the memory map go through.
        (0x10_0000, 0x6000, 8),
        (PROCESS_TOP, 0x1000, 2),
        // Sections, and the node with its zone.
        (0x60_0000, 8, 3),
        (0x60_1000, 16, 4),
        (0x61_0000, 0x1300, 8),
    ];
    let mut flips = Vec::new();
    for (start, length, count) in places {
        flips.extend((0..count).map(|_| (start + draw.below(length), draw.bit())));
    }
    // Where single words are in pages of zeros, those words: a flip next to them tries nothing.
    let busy: Vec<u64> = (0x10_0000..0x10_6000_u64)
        .chain(0x61_0000..0x61_1300)
        .filter(|place| dump.bytes[usize::try_from(*place).unwrap()] != 0)
        .collect();
    flips.extend((0..50).map(|_| {
        (
            busy[usize::try_from(draw.below(busy.len() as u64)).unwrap()],
            draw.bit(),
        )
    }));
    dump.true_or_refused(flips.into_iter());
}

#[test]
fn a_flip_anywhere_else_changes_nothing() {
    let dump = Damaged::new(Form::Raw);
    let mut draw = Draw(0xdead_beef);
    let flips = (0..12).map(|_| (draw.below(FRAMES * PAGE), draw.bit()));
    let descriptors = VMEMMAP_AT..VMEMMAP_AT + FRAMES * DESCRIPTOR;
    dump.true_or_refused(flips.filter(|(place, _)| !descriptors.contains(place)));
}

#[test]
fn a_flip_in_the_headers_of_a_core_is_refused_or_changes_nothing() {
    let dump = Damaged::new(Form::Elf);
    let whole = dump.scan();
    assert_eq!(whole.json["verdict"], "exact", "{}", whole.json);
    let mut draw = Draw(0xe1f0_0e1f);
    // Every other byte of the header and of the program headers, and some of the notes.
    let headers = (0..64 + 2 * 56)
        .step_by(2)
        .map(|place| (place, (place / 2 % 8) as u32));
    let mut flips: Vec<(u64, u32)> = headers.collect();
    flips.extend((0..20).map(|_| (draw.below(dump.memory_at), draw.bit())));
    dump.true_or_refused(flips.into_iter());
}

#[test]
fn a_dump_that_is_cut_short_is_refused_whatever_the_counters_say() {
    for form in [Form::Raw, Form::Elf] {
        let dump = Damaged::new(form);
        let length = dump.bytes.len() as u64;
        // Every free page and every descriptor lies before the first of these.
        let mut cuts = vec![length / 10 * 9, length - PAGE, length - PAGE - 1, length - 1];
        cuts.extend((1..8).map(|part| length * part / 8 + part * 8));
        cuts.extend([dump.memory_at + 1, 100, 8, 1]);
        cuts.sort_unstable_by(|one, other| other.cmp(one));
        for cut in cuts {
            dump.file.set_len(cut).unwrap();
            let answer = dump.scan();
            assert_ne!(answer.status, 0, "cut to {cut} of {length}: {}", answer.json);
            if cut >= length / 10 * 9 {
                assert_eq!(answer.status, 3);
                assert!(
                    answer.json["error"].as_str().unwrap().contains("cut short"),
                    "{}",
                    answer.json
                );
            }
        }
    }
}

#[test]
fn a_dump_that_is_cut_while_it_is_read_is_an_error() {
    let damaged = Damaged::new(Form::Raw);
    let mut dump = Dump::open(&damaged.folder.path().join("dump")).unwrap();
    damaged.file.set_len(PAGE).unwrap();
    let outcome = with_dumped_kernel(&mut dump, &Sources::default(), &mut Silent, |_, _, _, _| Ok(()));
    let failure = outcome.unwrap_err();
    assert_eq!(failure.class.exit_status(), 1, "{failure}");
    assert!(failure.what.contains("cut short while it was read"), "{failure}");
}
