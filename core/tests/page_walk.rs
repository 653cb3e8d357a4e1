//! The page-table walk against a second implementation, written from the manual and not from the first.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use lacuna_core::{Gfn, GuestMemory, GuestPhys, GuestVirt, PagingLevels, ReadError, WalkError, walk};
use proptest::prelude::*;

/// A few frames of memory, and how often they were read.
struct Memory {
    words: BTreeMap<u64, u64>,
    frames: u64,
    reads: u32,
}

impl GuestMemory for Memory {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.reads += 1;
        if at.gfn().get() >= self.frames {
            return Err(ReadError::Absent(at.gfn()));
        }
        let word = self.words.get(&(at.get() & !7)).copied().unwrap_or(0);
        into.copy_from_slice(&word.to_le_bytes()[at.offset() % 8..][..into.len()]);
        Ok(())
    }
}

/// The lowest `bits` bits of `value`, the highest of them repeated upwards.
fn sign_extended(value: u64, bits: u32) -> u64 {
    let low = value & (u64::MAX >> (64 - bits));
    let sign = 1 << (bits - 1);
    (low ^ sign).wrapping_sub(sign)
}

const fn name(error: WalkError) -> &'static str {
    match error {
        WalkError::NotCanonical(_) => "not canonical",
        WalkError::NotPresent { .. } => "not present",
        WalkError::Malformed { .. } => "malformed",
        WalkError::Read(_) => "unreadable",
    }
}

/// What an address means, by Intel SDM volume 3, tables 4-14 to 4-20. `Ok`: physical address and page size.
fn by_the_manual(memory: &Memory, root: u64, levels: u32, address: u64) -> Result<(u64, u64), &'static str> {
    let significant = 12 + 9 * levels;
    if sign_extended(address, significant) != address {
        return Err("not canonical");
    }
    let mut table = root;
    for level in (1..=levels).rev() {
        let page_bytes = 1_u64 << (12 + 9 * (level - 1));
        let index = (address / page_bytes) % 512;
        let at = table + 8 * index;
        if at >> 12 >= memory.frames {
            return Err("unreadable");
        }
        let entry = memory.words.get(&at).copied().unwrap_or(0);
        if entry % 2 == 0 {
            return Err("not present");
        }
        let address_bits = entry & ((1 << 52) - 1);
        let maps_page = level == 1 || entry & 0x80 != 0;
        if maps_page {
            if level > 3 {
                return Err("malformed");
            }
            return Ok((
                address_bits / page_bytes * page_bytes + address % page_bytes,
                page_bytes,
            ));
        }
        table = address_bits / 4096 * 4096;
    }
    unreachable!("level 1 maps a page")
}

/// The same for two levels of 4-byte entries: Intel SDM volume 3, tables 4-4 to 4-6.
fn two_levels_by_the_manual(memory: &Memory, root: u64, address: u64) -> Result<(u64, u64), &'static str> {
    if address > 0xffff_ffff {
        return Err("not canonical");
    }
    let entry = |table: u64, index: u64| {
        let at = table + 4 * index;
        if at / 4096 >= memory.frames {
            return Err("unreadable");
        }
        let word = memory.words.get(&(at / 8 * 8)).copied().unwrap_or(0);
        let entry = if at % 8 == 0 {
            word & 0xffff_ffff
        } else {
            word >> 32
        };
        if entry % 2 == 0 {
            Err("not present")
        } else {
            Ok(entry)
        }
    };
    let directory = entry(root, address / 0x40_0000)?;
    if directory & 0x80 != 0 {
        let low = directory / 0x40_0000 * 0x40_0000;
        let high = directory / 0x2000 % 0x100;
        return Ok(((high << 32) + low + address % 0x40_0000, 0x40_0000));
    }
    let table = entry(directory / 4096 * 4096, address / 4096 % 1024)?;
    Ok((table / 4096 * 4096 + address % 4096, 4096))
}

/// The same for PAE: SDM volume 3, tables 4-8 to 4-11.
fn pae_by_the_manual(memory: &Memory, root: u64, address: u64) -> Result<(u64, u64), &'static str> {
    if address > 0xffff_ffff {
        return Err("not canonical");
    }
    let entry = |table: u64, index: u64| {
        let at = table + 8 * index;
        if at / 4096 >= memory.frames {
            return Err("unreadable");
        }
        let entry = memory.words.get(&at).copied().unwrap_or(0);
        if entry % 2 == 0 {
            Err("not present")
        } else {
            Ok(entry)
        }
    };
    let place = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    let pointer = entry(root, address >> 30)?;
    if pointer & 0x80 != 0 {
        return Err("malformed");
    }
    let directory = entry(place(pointer), address >> 21 & 511)?;
    if directory & 0x80 != 0 {
        return Ok((
            place(directory) / 0x20_0000 * 0x20_0000 + address % 0x20_0000,
            0x20_0000,
        ));
    }
    let table = entry(place(directory), address >> 12 & 511)?;
    Ok((place(table) + address % 4096, 4096))
}

const FRAMES: u64 = 8;

prop_compose! {
    /// An entry that is likely to lead on to another table, or to a page.
    fn entry()(
        present in prop::bool::weighted(0.9),
        large in prop::bool::weighted(0.2),
        frame in 0..FRAMES + 1,
        high in any::<u64>(),
        noise in prop::bool::weighted(0.2),
        flags in any::<u64>(),
    ) -> u64 {
        let address = if noise { high & 0x000f_ffff_ffff_f000 } else { frame << 12 };
        address | u64::from(present) | u64::from(large) << 7 | flags & 0xfff0_0000_0000_0f7e
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_walk_does_what_the_manual_says(
        five in any::<bool>(),
        // Few different indices, so that walks get far.
        entries in prop::collection::vec((0..FRAMES, prop::sample::select(vec![0_u64, 1, 255, 256, 511]), entry()), 1..60),
        indices in prop::array::uniform5(prop::sample::select(vec![0_u64, 1, 255, 256, 511])),
        offset in 0_u64..4096,
        canonical in prop::bool::weighted(0.95),
    ) {
        let mut memory = Memory { words: BTreeMap::new(), frames: FRAMES, reads: 0 };
        for (frame, index, entry) in entries { memory.words.insert(frame << 12 | index << 3, entry); }
        let (levels, count) = if five { (PagingLevels::Five, 5) } else { (PagingLevels::Four, 4) };
        let bits = indices.iter().fold(0_u64, |sum, index| sum << 9 | index) << 12 | offset;
        let address = if canonical { sign_extended(bits, 12 + 9 * count) } else { bits ^ (1 << 62) };

        let expected = by_the_manual(&memory, 0, count, address);
        let found = walk(&mut memory, GuestPhys::new(0), levels, GuestVirt::new(address));
        prop_assert!(memory.reads <= count, "{} reads", memory.reads);
        match (found, expected) {
            (Ok(mapping), Ok((physical, size))) => {
                prop_assert_eq!(mapping.translate(GuestVirt::new(address)), Some(GuestPhys::new(physical)));
                prop_assert_eq!(1_u64 << mapping.shift, size);
                // The page's edges: the first and the last byte translate, their neighbours do not.
                let start = mapping.start.get();
                prop_assert_eq!(mapping.translate(GuestVirt::new(start)), Some(mapping.base));
                prop_assert!(mapping.translate(GuestVirt::new(start + (size - 1))).is_some());
                prop_assert_eq!(mapping.translate(GuestVirt::new(start.wrapping_sub(1))), None);
                prop_assert_eq!(mapping.translate(GuestVirt::new(start.wrapping_add(size))), None);
            }
            (Err(error), Err(expected)) => {
                prop_assert_eq!(name(error), expected);
            }
            (found, expected) => prop_assert!(false, "{:?} but the manual says {:?}", found, expected),
        }
    }

    #[test]
    fn the_walk_of_a_32_bit_kernel_does_what_the_manual_says(
        pae in any::<bool>(),
        // As words of eight bytes: one entry, or two of four.
        entries in prop::collection::vec((0..FRAMES, prop::sample::select(vec![0_u64, 1, 2, 255, 511]), entry(), entry()), 1..60),
        top in prop::sample::select(vec![0_u64, 1, 2, 3, 511, 1022, 1023]),
        middle in prop::sample::select(vec![0_u64, 1, 2, 255, 511]),
        low in prop::sample::select(vec![0_u64, 1, 3, 511, 1023]),
        offset in 0_u64..4096,
        wide in prop::bool::weighted(0.05),
    ) {
        let mut memory = Memory { words: BTreeMap::new(), frames: FRAMES, reads: 0 };
        for (frame, index, first, second) in entries {
            let word = if pae { first } else { first & 0xffff_ffff | second << 32 };
            memory.words.insert(frame << 12 | index << 3, word);
        }
        let address = if pae {
            (top & 3) << 30 | middle << 21 | (low & 511) << 12 | offset
        } else {
            top << 22 | low << 12 | offset
        } | u64::from(wide) << 32;
        // The table of four entries need not lie at the start of its frame.
        let (levels, root, expected) = if pae {
            let root = 0x7e0;
            (PagingLevels::Pae, root, pae_by_the_manual(&memory, root, address))
        } else {
            (PagingLevels::Two, 0, two_levels_by_the_manual(&memory, 0, address))
        };
        let found = walk(&mut memory, GuestPhys::new(root), levels, GuestVirt::new(address));
        prop_assert!(memory.reads <= 3, "{} reads", memory.reads);
        match (found, expected) {
            (Ok(mapping), Ok((physical, size))) => {
                prop_assert_eq!(mapping.translate(GuestVirt::new(address)), Some(GuestPhys::new(physical)));
                prop_assert_eq!(1_u64 << mapping.shift, size);
                prop_assert_eq!(mapping.translate(mapping.start), Some(mapping.base));
            }
            (Err(error), Err(expected)) => prop_assert_eq!(name(error), expected),
            (found, expected) => prop_assert!(false, "{:?} but the manual says {:?}", found, expected),
        }
    }

    /// A hole's span is truthful: nothing in it is mapped.
    #[test]
    fn nothing_in_a_hole_is_mapped(
        depth in 0_u32..4,
        indices in prop::array::uniform4(0_u64..512),
        other in any::<u64>(),
    ) {
        let mut memory = Memory { words: BTreeMap::new(), frames: FRAMES, reads: 0 };
        for level in 0..u64::from(depth) {
            memory.words.insert(level << 12 | indices[level as usize] << 3, (level + 1) << 12 | 1);
        }
        let bits = indices.iter().fold(0_u64, |sum, index| sum << 9 | index) << 12;
        let address = sign_extended(bits, 48);
        let hole = walk(&mut memory, GuestPhys::new(0), PagingLevels::Four, GuestVirt::new(address));
        let shift = 39 - 9 * depth;
        prop_assert_eq!(hole, Err(WalkError::NotPresent { shift }));
        let neighbour = address & !((1 << shift) - 1) | other & ((1 << shift) - 1);
        let there = walk(&mut memory, GuestPhys::new(0), PagingLevels::Four, GuestVirt::new(neighbour));
        prop_assert_eq!(there, Err(WalkError::NotPresent { shift }));
    }
}

#[test]
fn a_value_may_straddle_two_frames() {
    let mut memory = Memory {
        words: BTreeMap::from([(0xff8, 0x1122_3344_5566_7788), (0x1000, 0x99aa_bbcc_ddee_ff00)]),
        frames: 2,
        reads: 0,
    };
    assert_eq!(
        memory.read_value(GuestPhys::new(0xffc), 8),
        Ok(0xddee_ff00_1122_3344)
    );
    assert_eq!(memory.reads, 2);
    assert_eq!(
        memory.read_value(GuestPhys::new(0x1ffc), 8),
        Err(ReadError::Absent(Gfn::new(2)))
    );
}
