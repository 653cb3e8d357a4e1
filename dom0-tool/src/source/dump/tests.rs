#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;

use lacuna_core::{Gfn, GuestMemory, GuestPhys};
use proptest::prelude::*;

use super::*;
use cores::{Segment, elf, note, qemu_note, xen};

#[path = "../../../tests/made/cores.rs"]
pub(super) mod cores;

/// A file with `bytes`.
pub(super) fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub(super) fn open(bytes: &[u8]) -> Result<Dump, DumpError> {
    Dump::open(file(bytes).path())
}

pub(super) fn first_word(dump: &mut Dump, gfn: u64) -> Option<u64> {
    dump.read_value(GuestPhys::new(gfn * 4096), 8).ok()
}

pub(super) fn frames(dump: &mut Dump) -> Vec<u64> {
    let mut found = Vec::new();
    let mut at = Gfn::new(0);
    while let Some(gfn) = dump.next_present(at) {
        found.push(gfn.get());
        at = Gfn::new(gfn.get() + 1);
    }
    found
}

#[test]
fn each_format_gives_pages_by_guest_physical_address() {
    let pages = [0, 1, 5, 0x40];
    for bytes in [
        elf(true, &pages, &[], false),
        elf(false, &pages, &[], false),
        elf(true, &pages, &[], true),
        elf(false, &pages, &[], true),
        xen(&pages),
    ] {
        let mut dump = open(&bytes).unwrap();
        for page in pages {
            assert_eq!(first_word(&mut dump, page), Some(page));
        }
        assert_eq!(first_word(&mut dump, 2), None);
        assert_eq!(frames(&mut dump), pages);
        assert_eq!(dump.end(), Gfn::new(0x41));
    }
    let mut raw = open(&[7; 3 * 4096 + 100]).unwrap();
    assert_eq!(frames(&mut raw), [0, 1, 2]);
    assert_eq!(raw.remarks.len(), 1);
}

#[test]
fn a_value_across_two_extents_is_read_whole() {
    let mut dump = open(&elf(true, &[4, 5], &[], false)).unwrap();
    assert_eq!(dump.read_value(GuestPhys::new(5 * 4096 - 4), 8).unwrap(), 5 << 32);
}

#[test]
fn overlapping_segments_count_once() {
    let mut dump = open(&elf(true, &[4, 4, 5, 5], &[], false)).unwrap();
    assert_eq!(frames(&mut dump), [4, 5]);
    assert_eq!(first_word(&mut dump, 5), Some(5));
}

#[test]
fn registers_come_from_qemus_note_and_from_xens_contexts() {
    let notes = [
        qemu_note(0x1000),
        qemu_note(0x2000),
        note(b"VMCOREINFO", 0, b"OSRELEASE=1\n"),
    ]
    .concat();
    let dump = open(&elf(true, &[1], &notes, false)).unwrap();
    assert_eq!(dump.cpus.len(), 2);
    let cpu = dump.cpus[1];
    assert_eq!((cpu.cr3, cpu.cr4), (Some(0x2000), Some(0x6f0)));
    assert_eq!(
        (cpu.idt_base, cpu.idt_limit),
        (Some(0xffff_fe00_0000_0000), Some(0xfff))
    );
    assert_eq!((cpu.efer, cpu.lstar, cpu.long_mode), (None, None, Some(true)));
    assert_eq!(dump.vmcoreinfo.as_deref(), Some(&b"OSRELEASE=1\n"[..]));

    let dump = open(&xen(&[1])).unwrap();
    assert_eq!(
        (dump.cpus[0].cr3, dump.cpus[0].idt_base),
        (Some(0x1234_5000), None)
    );
}

#[test]
fn a_core_that_is_cut_short_keeps_what_is_there_and_says_so() {
    let pages = [0, 1, 2, 3];
    for whole in [elf(true, &pages, &[], false), xen(&pages)] {
        let mut dump = open(&whole[..whole.len() - 4096 - 8]).unwrap();
        assert_eq!(first_word(&mut dump, 1), Some(1));
        assert_eq!(first_word(&mut dump, 3), None);
        assert!(dump.remarks[0].contains("cut short"), "{:?}", dump.remarks);
    }
}

#[test]
fn what_a_core_leaves_out_reads_as_zero_and_is_no_proof_of_zeros() {
    let mut memory = vec![0; 8 * 4096];
    memory[4096..4104].copy_from_slice(&1_u64.to_le_bytes());
    memory[6 * 4096..6 * 4096 + 8].copy_from_slice(&6_u64.to_le_bytes());
    let mut dump = open(&cores::segments(&cores::without_zeros(&memory, 1), &[])).unwrap();
    assert_eq!((dump.end(), dump.bytes()), (Gfn::new(8), 8 * 4096));
    for page in 0..8 {
        let word = if matches!(page, 1 | 6) { page } else { 0 };
        assert_eq!(first_word(&mut dump, page), Some(word));
        let is_zero = dump.is_zero(Gfn::new(page));
        assert_eq!(is_zero.ok(), (word != 0).then_some(false), "{page}");
    }
    // Nothing is there to be searched.
    assert_eq!(frames(&mut dump), [1, 6]);
    assert_eq!(first_word(&mut dump, 8), None);
    // A page of zeros that is in the file is zero.
    let mut dump = open(&cores::segments(&[Segment::whole(0, &memory)], &[])).unwrap();
    assert_eq!(dump.is_zero(Gfn::new(0)), Ok(true));
}

#[test]
fn bytes_in_the_file_count_before_those_that_are_left_out() {
    let left_out = |length| Segment {
        length,
        ..Segment::whole(0, &[])
    };
    let page = |number: u8| Segment::whole(u64::from(number) * 4096, &[number; 4096]);
    let segments = [left_out(4 * 4096), page(1), page(2), left_out(u64::MAX)];
    let mut dump = open(&cores::segments(&segments, &[])).unwrap();
    let words: Vec<Option<u64>> = (0..4).map(|page| first_word(&mut dump, page)).collect();
    assert_eq!(
        words,
        [
            Some(0),
            Some(0x0101_0101_0101_0101),
            Some(0x0202_0202_0202_0202),
            Some(0)
        ]
    );
    // Half of a page is in the file, the rest is left out.
    let half = Segment {
        length: 4096,
        ..Segment::whole(0, &[7; 2048])
    };
    let mut dump = open(&cores::segments(&[half], &[])).unwrap();
    let mut bytes = [1; 4096];
    dump.read(GuestPhys::new(0), &mut bytes).unwrap();
    assert_eq!((&bytes[..2048], &bytes[2048..]), (&[7; 2048][..], &[0; 2048][..]));
    assert!(dump.is_zero(Gfn::new(0)).is_err());
}

#[test]
fn a_segment_absurdly_far_out_is_left_out() {
    let mut dump = open(&elf(true, &[1, 1 << 39], &[], false)).unwrap();
    assert_eq!(dump.end(), Gfn::new(2));
    assert_eq!(first_word(&mut dump, 1), Some(1));
    assert!(dump.remarks[0].contains("damaged"), "{:?}", dump.remarks);
}

#[test]
fn what_is_no_dump_is_named() {
    assert!(matches!(open(b""), Err(DumpError::Empty)));
    assert!(matches!(
        open(b"KDUMP   and more"),
        Err(DumpError::Truncated { .. })
    ));
    assert!(matches!(open(b"\x7fELF"), Err(DumpError::Truncated { .. })));
}

#[test]
fn images_of_disks_are_named_and_memory_is_not() {
    let what = |bytes: &[u8]| match open(bytes) {
        Err(DumpError::OtherFormat { what, .. }) => Some(what),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    let mut disk = vec![0; 0x2_0000];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    // The mark alone is none: memory may hold these two bytes there.
    assert_eq!(what(&disk), None);
    // Active, of type 0x83, from sector 63 on, 0x1000 sectors.
    disk[446] = 0x80;
    disk[450] = 0x83;
    disk[454] = 63;
    disk[459] = 0x10;
    assert!(what(&disk).unwrap().contains("MBR"));
    // What is no entry is no table.
    disk[462] = 7;
    assert_eq!(what(&disk), None);
    for (at, mark, name) in [(0, &b"XFSB"[..], "XFS"), (0x1_0040, b"_BHRfS_M", "btrfs")] {
        let mut disk = vec![0; 0x2_0000];
        disk[at..at + mark.len()].copy_from_slice(mark);
        assert!(what(&disk).unwrap().contains(name));
    }
    let reading = Reading {
        format: Some(Format::WindowsCrash),
        ..Reading::default()
    };
    let told = Dump::open_as(file(&disk).path(), reading)
        .unwrap_err()
        .to_string();
    assert!(told.contains("a Windows crash dump"), "{told}");
}

#[test]
fn the_monitors_text_is_read_for_several_processors() {
    let text = "(qemu) info registers -a\r\n\r\nCPU#0\r\nRAX=0000000000000000 RBX=0\r\n\
        RIP=ffffffff81000010 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        FS =0000 0000000000000000 00000000 00000000\r\nGS =0000 ffff88803ec00000 00000000 00000000\r\n\
        GDT=     fffffe0000001000 0000007f\r\nIDT=     fffffe0000000000 00000fff\r\n\
        CR0=80050033 CR2=00007f0000000000 CR3=0000000001234000 CR4=000006f0\r\nEFER=0000000000000d01\r\n\
        CPU#1\r\nEAX=00000000\r\nIDT=     c0a00000 000007ff\r\nCR0=80050033 CR2=0 CR3=02000000 CR4=00000690\r\n";
    let cpus = parse_registers(text).unwrap();
    assert_eq!(cpus.len(), 2);
    assert_eq!((cpus[0].cr3, cpus[0].efer), (Some(0x0123_4000), Some(0xd01)));
    assert_eq!(
        (cpus[0].idt_base, cpus[0].idt_limit),
        (Some(0xffff_fe00_0000_0000), Some(0xfff))
    );
    assert_eq!(cpus[0].gs_base, Some(0xffff_8880_3ec0_0000));
    assert_eq!((cpus[1].cr3, cpus[1].long_mode), (Some(0x0200_0000), Some(false)));
    assert_eq!(cpus[1].idt_base, Some(0xc0a0_0000));
}

#[test]
fn a_registers_file_without_registers_is_refused() {
    assert!(parse_registers("no registers here").is_err());
    assert!(parse_registers("[{\"cr3\": \"zz\"}]").is_err());
    assert_eq!(
        parse_registers("[{\"cr3\": \"0x1000\"}]").unwrap()[0].cr3,
        Some(0x1000)
    );
}

/// Opens and walks a dump, whatever it is.
pub(super) fn walk_through(bytes: &[u8]) {
    if let Ok(mut dump) = open(bytes) {
        let mut at = Gfn::new(0);
        for _ in 0..1000 {
            let Some(gfn) = dump.next_present(at) else { break };
            assert!(gfn >= at);
            let _ = dump.read_value(gfn.base().unwrap(), 8);
            at = gfn.saturating_add(1);
        }
    }
}

proptest! {
    #[test]
    fn a_damaged_core_is_refused_or_read(
        which in 0..3_usize,
        flips in proptest::collection::vec((0..9000_usize, any::<u8>()), 0..6),
        keep in 0..20_000_usize,
    ) {
        let notes = [qemu_note(0x1000), note(b"CORE", 1, &[0; 336])].concat();
        let mut bytes = match which {
            0 => elf(true, &[1, 2, 9], &notes, true),
            1 => elf(false, &[1, 2, 9], &notes, false),
            _ => xen(&[1, 2, 9]),
        };
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= value;
            }
        }
        bytes.truncate(keep.max(8));
        walk_through(&bytes);
    }

    #[test]
    fn no_text_makes_the_register_parser_panic(text in "[ -~\\n]{0,400}|(CPU#|CR3=|IDT=|GS =|[0-9a-f]{1,20}|[ \\n\\[\\]{}\":,]){0,60}") {
        let _ = parse_registers(&text);
    }
}
