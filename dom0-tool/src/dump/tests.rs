#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;

use lacuna_core::{Gfn, GuestMemory, GuestPhys};
use proptest::prelude::*;

use super::*;

/// A file with `bytes`.
fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<Dump, DumpError> {
    Dump::open(file(bytes).path())
}

fn put(bytes: &mut Vec<u8>, at: usize, value: &[u8]) {
    if bytes.len() < at + value.len() {
        bytes.resize(at + value.len(), 0);
    }
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// An ELF core: header, program headers, notes, then one page for each of `pages`, whose first bytes are their number.
fn elf(wide: bool, pages: &[u64], notes: &[u8], extended: bool) -> Vec<u8> {
    let word = |value: u64| {
        if wide {
            value.to_le_bytes().to_vec()
        } else {
            u32::try_from(value).unwrap().to_le_bytes().to_vec()
        }
    };
    let (header, entry, section) = if wide { (64, 56, 64) } else { (52, 32, 40) };
    let mut bytes = vec![0; header];
    put(&mut bytes, 0, b"\x7fELF");
    put(&mut bytes, 4, &[if wide { 2 } else { 1 }, 1, 1]);
    put(&mut bytes, 16, &4_u16.to_le_bytes());
    put(&mut bytes, 18, &(if wide { 62_u16 } else { 3 }).to_le_bytes());
    let rest = if wide { 52 } else { 40 };
    let count = pages.len() + 1;
    let short = if extended {
        0xffff
    } else {
        u16::try_from(count).unwrap()
    };
    put(&mut bytes, if wide { 32 } else { 28 }, &word(header as u64));
    put(&mut bytes, rest + 2, &u16::try_from(entry).unwrap().to_le_bytes());
    put(&mut bytes, rest + 4, &short.to_le_bytes());
    put(
        &mut bytes,
        rest + 6,
        &u16::try_from(section).unwrap().to_le_bytes(),
    );
    let notes_at = header + count * entry;
    let pages_at = (notes_at + notes.len()).next_multiple_of(4096);
    let mut segment = |index: usize, kind: u32, offset: usize, physical: u64, length: u64| {
        let at = header + index * entry;
        put(&mut bytes, at, &kind.to_le_bytes());
        let places = if wide { [8, 24, 32] } else { [4, 12, 16] };
        for (place, value) in places.into_iter().zip([offset as u64, physical, length]) {
            put(&mut bytes, at + place, &word(value));
        }
    };
    segment(0, 4, notes_at, 0, notes.len() as u64);
    for (index, page) in pages.iter().enumerate() {
        segment(index + 1, 1, pages_at + index * 4096, page * 4096, 4096);
    }
    put(&mut bytes, notes_at, notes);
    for (index, page) in pages.iter().enumerate() {
        let mut contents = vec![0; 4096];
        contents[..8].copy_from_slice(&page.to_le_bytes());
        put(&mut bytes, pages_at + index * 4096, &contents);
    }
    if extended {
        let at = bytes.len();
        put(&mut bytes, if wide { 40 } else { 32 }, &word(at as u64));
        bytes.resize(at + section, 0);
        put(
            &mut bytes,
            at + if wide { 44 } else { 28 },
            &u32::try_from(count).unwrap().to_le_bytes(),
        );
    }
    bytes
}

fn note(name: &[u8], kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(name.len() + 1).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(name);
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn qemu_note(cr3: u64) -> Vec<u8> {
    let mut body = vec![0; 440];
    put(&mut body, 368 + 4, &0xfff_u32.to_le_bytes());
    put(&mut body, 368 + 16, &0xffff_fe00_0000_0000_u64.to_le_bytes());
    put(&mut body, 392, &0x8005_0033_u64.to_le_bytes());
    put(&mut body, 416, &cr3.to_le_bytes());
    put(&mut body, 424, &0x6f0_u64.to_le_bytes());
    note(b"QEMU", 0, &body)
}

/// A Xen core: sections `.xen_prstatus`, `.xen_pfn`, `.xen_pages`.
fn xen(pages: &[u64]) -> Vec<u8> {
    let names = b"\0.shstrtab\0.xen_prstatus\0.xen_pfn\0.xen_pages\0";
    let mut bytes = vec![0; 64 + 5 * 64];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 18, &62_u16.to_le_bytes());
    put(&mut bytes, 40, &64_u64.to_le_bytes());
    put(&mut bytes, 54, &56_u16.to_le_bytes());
    for (at, value) in [(58, 64_u16), (60, 5), (62, 1)] {
        put(&mut bytes, at, &value.to_le_bytes());
    }
    let mut context = vec![0; 5168];
    for (index, value) in [(0, 0x8005_0033_u64), (3, 0x1234_5000), (4, 0x6f0)] {
        put(&mut context, 4984 + index * 8, &value.to_le_bytes());
    }
    let names_at = bytes.len();
    bytes.extend(names);
    let context_at = bytes.len();
    bytes.extend(&context);
    let numbers_at = bytes.len();
    for page in pages {
        bytes.extend(page.to_le_bytes());
    }
    let pages_at = bytes.len().next_multiple_of(4096);
    bytes.resize(pages_at, 0);
    for page in pages {
        let mut contents = vec![0; 4096];
        contents[..8].copy_from_slice(&page.to_le_bytes());
        bytes.extend(contents);
    }
    for (index, name, offset, length, entry) in [
        (1, 1, names_at, names.len(), 0),
        (2, 11, context_at, 5168, 5168),
        (3, 25, numbers_at, pages.len() * 8, 8),
        (4, 34, pages_at, pages.len() * 4096, 4096),
    ] {
        let at = 64 + index * 64;
        put(&mut bytes, at, &u32::try_from(name).unwrap().to_le_bytes());
        for (place, value) in [(24, offset), (32, length), (56, entry)] {
            put(&mut bytes, at + place, &(value as u64).to_le_bytes());
        }
    }
    bytes
}

fn first_word(dump: &mut Dump, gfn: u64) -> Option<u64> {
    dump.read_value(GuestPhys::new(gfn * 4096), 8).ok()
}

fn frames(dump: &mut Dump) -> Vec<u64> {
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
        Err(DumpError::OtherFormat { .. })
    ));
    assert!(matches!(open(b"\x7fELF"), Err(DumpError::Truncated { .. })));
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
fn walk_through(bytes: &[u8]) {
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
