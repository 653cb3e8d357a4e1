//! Tests of dumps in which memory is packed, of formats that are named, and of what a file is taken for.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::tests::cores::{elf, note, qemu_note};
use super::tests::{file, first_word, frames, open, walk_through};
use super::*;
use proptest::prelude::*;

use made::{Codec, Kdump, avml, flattened, lime};

#[path = "../../../tests/made/packed.rs"]
mod made;

/// A page with its number, and something to pack; page 5 cannot be packed.
fn page(number: u64) -> (u64, Vec<u8>) {
    let mut random = number ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = vec![0; PAGE_SIZE];
    for byte in bytes.iter_mut().skip(8) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        *byte = if number == 5 {
            random.to_le_bytes()[3]
        } else {
            random.to_le_bytes()[3] & 1
        };
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    (number, bytes)
}

fn whole(dump: &mut Dump, number: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PAGE_SIZE];
    dump.read(GuestPhys::new(number * 4096), &mut bytes)
        .ok()
        .map(|()| bytes)
}

#[test]
fn kdump_compressed_dumps_are_read_in_place() {
    let pages: Vec<_> = [0, 1, 5, 0x40, 0x9001].into_iter().map(page).collect();
    let notes = [qemu_note(0x1000), qemu_note(0x2000)].concat();
    for codec in Codec::ALL {
        for (wide, machine) in [
            (true, "x86_64"),
            (false, "i686"),
            (true, "Unknown"),
            (false, "Unknown"),
        ] {
            let made = Kdump {
                wide,
                machine,
                notes: &notes,
                vmcoreinfo: b"OSRELEASE=1\n",
                ..Kdump::new(codec, &pages)
            };
            let bytes = made.to_bytes();
            for bytes in [flattened(&bytes, 1000), flattened(&bytes, 5000), bytes] {
                let mut dump = open(&bytes).unwrap();
                assert_eq!(dump.format(), Format::Kdump);
                for (number, page) in &pages {
                    assert_eq!(
                        whole(&mut dump, *number).as_ref(),
                        Some(page),
                        "{codec:?} {number}"
                    );
                }
                assert_eq!(first_word(&mut dump, 2), None);
                assert_eq!(frames(&mut dump), [0, 1, 5, 0x40, 0x9001]);
                assert_eq!(dump.cpus[1].cr3, Some(0x2000));
                assert_eq!(dump.cpus[1].long_mode, Some(wide));
                assert_eq!(dump.vmcoreinfo.as_deref(), Some(&b"OSRELEASE=1\n"[..]));
                dump.check_whole(None).unwrap();
                dump.check_unharmed().unwrap();
            }
        }
    }
}

#[test]
fn pages_of_zeros_that_were_left_out_read_as_zero_and_prove_nothing() {
    let pages: Vec<_> = [0, 1].into_iter().map(page).collect();
    for (level, reads) in [(1, Some(0)), (31, Some(0)), (16, None)] {
        let made = Kdump {
            left_out: &[3, 7],
            dump_level: level,
            ..Kdump::new(Codec::Zlib, &pages)
        };
        let mut dump = open(&made.to_bytes()).unwrap();
        assert_eq!(first_word(&mut dump, 7), reads, "level {level}");
        assert_eq!(first_word(&mut dump, 1), Some(1));
        assert_eq!(first_word(&mut dump, 2), None);
        assert!(dump.is_zero(Gfn::new(7)).is_err());
    }
}

#[test]
fn a_packed_dump_that_is_cut_or_damaged_says_so() {
    let pages: Vec<_> = (0..64).map(page).collect();
    let good = Kdump::new(Codec::Zlib, &pages).to_bytes();
    for bytes in [
        &good[..good.len() - 1],
        &good[..good.len() - 20_000],
        &flattened(&good, 4096)[..60_000],
    ] {
        let outcome = open(bytes).and_then(|mut dump| dump.check_whole(None));
        assert!(outcome.is_err(), "{} of {}", bytes.len(), good.len());
    }
    // Inside of the first page.
    let mut bytes = good.clone();
    let at = 4 * PAGE_SIZE + 24 * pages.len() + 20;
    bytes[at..at + 40].fill(0xff);
    let mut dump = open(&bytes).unwrap();
    assert_eq!(first_word(&mut dump, 0), None);
    assert!(matches!(dump.check_unharmed(), Err(DumpError::Impossible { .. })));

    let ranges = vec![(0x1000, vec![7; 200_000]), (0x8000_0000, vec![9; 8192])];
    for good in [lime(&ranges), avml(&ranges)] {
        let mut dump = open(&good[..good.len() - 5000.min(good.len() / 3)]).unwrap();
        assert!(matches!(dump.check_whole(None), Err(DumpError::CutShort { .. })));
    }
    let mut bytes = avml(&ranges);
    bytes[60..80].fill(0xee);
    let outcome = open(&bytes).and_then(|mut dump| {
        assert_eq!(first_word(&mut dump, 1), None);
        dump.check_unharmed()
    });
    assert!(
        matches!(outcome, Err(DumpError::Impossible { .. })),
        "{outcome:?}"
    );
}

#[test]
fn limes_and_avmls_ranges_are_read_in_place() {
    let ranges: Vec<(u64, Vec<u8>)> = [(0x1000, 50), (0x10_0000, 300), (0x1_0000_0000, 3)]
        .into_iter()
        .map(|(first, count)| {
            let numbers = (0..count).map(|index| page(first / 4096 + index).1);
            (first, numbers.collect::<Vec<_>>().concat())
        })
        .collect();
    for (bytes, format) in [(lime(&ranges), Format::Lime), (avml(&ranges), Format::Avml)] {
        let mut dump = open(&bytes).unwrap();
        assert_eq!(dump.format(), format);
        for number in [1, 50, 0x100, 0x100 + 299, 0x10_0000, 0x10_0002] {
            assert_eq!(
                whole(&mut dump, number),
                Some(page(number).1),
                "{format:?} {number:#x}"
            );
        }
        for number in [0, 51, 0x100 + 300, 0x10_0003] {
            assert_eq!(first_word(&mut dump, number), None, "{format:?} {number:#x}");
        }
        assert_eq!(dump.end(), Gfn::new(0x10_0003));
        dump.check_whole(Some(0x10_0002)).unwrap();
        dump.check_unharmed().unwrap();
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let behind = |head: &[u8], at: usize| {
        let mut bytes = vec![0; 1 << 17];
        bytes[at..at + head.len()].copy_from_slice(head);
        bytes
    };
    for (head, at, name) in [
        (&b"Xen saved domain, xl format\n \0 \r"[..], 0, "xl save"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xffXENF\0\0\0\x03", 0, "libxc"),
        (b"LibvirtQemudSave\x02\0\0\0", 0, "virsh save"),
        (b"\xd2\xbe\xd2\xbe\x08\0\0\0", 0, ".vmss"),
        (b"\xd0\xbe\xd2\xbe\x08\0\0\0", 0, ".vmss"),
        (b"HIBR", 0, "hibernation"),
        (b"wake", 0, "hibernation"),
        (b"\x14\x20\x28\x01", 0, ".vmrs"),
        (b"PK\x03\x04", 0, "AFF4"),
        (b"EVF\x09\x0d\x0a\xff\0", 0, "E01"),
        (b"MDMP\x93\xa7", 0, "minidump"),
        (b"\x04\x22\x4d\x18", 0, "lz4"),
        (b"\x28\xb5\x2f\xfd", 0, "zstd"),
        (b"7z\xbc\xaf\x27\x1c", 0, "7z"),
        (b"ustar\0", 257, "tar"),
        (b"KDMV", 0, "vmdk"),
        (b"vhdxfile", 0, "vhdx"),
        (b"EFI PART", 512, "partition"),
        (b"CD001", 0x8001, "CD"),
    ] {
        let error = open(&behind(head, at)).unwrap_err();
        assert!(
            matches!(error, DumpError::OtherFormat { .. }),
            "{name}: {error:?}"
        );
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    let pages = [page(0)];
    let machine = Kdump {
        machine: "aarch64",
        ..Kdump::new(Codec::None, &pages)
    };
    let split = Kdump {
        split: true,
        ..Kdump::new(Codec::None, &pages)
    };
    for (made, name) in [(machine, "arm64"), (split, "one part")] {
        let error = open(&made.to_bytes()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn registers_given_by_hand_mean_raw_memory_and_the_format_can_be_named() {
    let with_registers = Reading {
        has_registers: true,
        ..Reading::default()
    };
    let named = |format| Reading {
        format: Some(format),
        ..Reading::default()
    };
    let mut program = vec![3; 8 * PAGE_SIZE];
    program[..20].copy_from_slice(&[
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0,
    ]);
    let mut scribbled = vec![3; 8 * PAGE_SIZE];
    scribbled[..4].copy_from_slice(b"\x7fELF");
    let mut packed = vec![3; 8 * PAGE_SIZE];
    packed[..4].copy_from_slice(b"PK\x03\x04");
    for bytes in [program, scribbled, packed] {
        let file = file(&bytes);
        assert!(matches!(
            Dump::open(file.path()),
            Err(DumpError::OtherFormat { .. })
        ));
        for reading in [with_registers, named(Format::Raw)] {
            let dump = Dump::open_as(file.path(), reading).unwrap();
            assert_eq!((dump.format(), dump.end()), (Format::Raw, Gfn::new(8)));
            assert_eq!(dump.remarks.len(), usize::from(reading.has_registers));
        }
        let refused = Dump::open_as(file.path(), named(Format::Kdump));
        assert!(matches!(refused, Err(DumpError::NotThatFormat { .. })));
    }
    // A core is one, whatever is given beside it.
    for (bytes, format) in [
        (elf(true, &[1], &note(b"X", 0, b""), false), Format::Elf),
        (lime(&[(0, vec![1; 4096])]), Format::Lime),
    ] {
        let dump = Dump::open_as(file(&bytes).path(), with_registers).unwrap();
        assert_eq!(dump.format(), format);
        let dump = Dump::open_as(file(&bytes).path(), named(format)).unwrap();
        assert_eq!(dump.format(), format);
    }
}

proptest! {
    #[test]
    fn a_damaged_packed_dump_is_refused_or_read(
        which in 0..8_usize,
        flips in proptest::collection::vec((0..9000_usize, any::<u8>()), 0..6),
        late in proptest::collection::vec((8000..24_000_usize, any::<u8>()), 0..6),
        keep in 0..80_000_usize,
    ) {
        let pages: Vec<_> = (0..8).map(page).collect();
        let ranges = [(0x1000, pages.iter().flat_map(|(_, page)| page.clone()).collect())];
        let mut bytes = match which {
            0 => lime(&ranges),
            1 => avml(&ranges),
            2 => flattened(&Kdump::new(Codec::Lzo, &pages).to_bytes(), 3000),
            other => Kdump::new(Codec::ALL[other - 3], &pages).to_bytes(),
        };
        for (at, value) in flips.into_iter().chain(late) {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= value;
            }
        }
        bytes.truncate(keep.max(64));
        walk_through(&bytes);
    }
}
