//! The layouts and the PDBs of real kernels, as facts (`data/`).

use crate::types::{PVOID32, PVOID64, Types, UCHAR, ULONG, UQUAD, USHORT};

/// `_MMLISTS` of every kernel seen.
pub const LISTS: [(&str, u32); 8] = [
    ("ZeroedPageList", 0),
    ("FreePageList", 1),
    ("StandbyPageList", 2),
    ("ModifiedPageList", 3),
    ("ModifiedNoWritePageList", 4),
    ("BadPageList", 5),
    ("ActiveAndValid", 6),
    ("TransitionPage", 7),
];

/// Where some bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// Where their storage begins, in bytes.
    pub offset: u32,
    /// Bytes of the storage.
    pub storage: u32,
    /// The first bit in it.
    pub bit: u8,
    /// How many.
    pub width: u8,
}

/// The layout of `_MMPFN` in one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Which kernel.
    pub profile: String,
    /// Whether it is a 64-bit one.
    pub x64: bool,
    /// Whether its page tables have 64-bit entries.
    pub pae: bool,
    /// `sizeof(_MMPFN)`.
    pub size: u32,
    /// `PageLocation`.
    pub page_location: Bits,
    /// `ReferenceCount`, 16 bits.
    pub reference_count: u32,
    /// `Rom`.
    pub rom: Option<Bits>,
    /// `PfnExists`.
    pub pfn_exists: Option<Bits>,
    /// `LockBit`.
    pub lock_bit: Option<Bits>,
    /// `PteFrame`.
    pub pte_frame: Bits,
    /// `u1`, `u2`, `u3`, `u4`, `PteAddress`, `OriginalPte`.
    pub offsets: [u32; 6],
    /// The name of the type that `PageLocation` is in.
    pub entry: String,
}

/// A real kernel's PDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the PDB.
    pub pdb: String,
    /// GUID, 32 digits.
    pub guid: String,
    /// Age.
    pub age: u32,
    /// Where `MmPfnDatabase` is, relative to the image's base.
    pub pfn_database: u32,
}

/// All 48 layouts.
pub fn layouts() -> Vec<Layout> {
    rows(include_str!("../data/layouts.tsv"))
        .map(|row| {
            let numeric = |column: usize| row[column].parse().expect("a number");
            Layout {
                profile: row[0].to_owned(),
                x64: row[1] == "x64",
                pae: row[1] == "x64" || row[2] == "pae",
                size: numeric(3),
                page_location: bits(row[4]).expect("every kernel has it"),
                reference_count: numeric(5),
                rom: bits(row[6]),
                pfn_exists: bits(row[7]),
                lock_bit: bits(row[8]),
                pte_frame: bits(row[9]).expect("every kernel has it"),
                offsets: std::array::from_fn(|index| numeric(10 + index)),
                entry: row[16].to_owned(),
            }
        })
        .collect()
}

/// All 1,894 kernels.
pub fn kernels() -> Vec<Kernel> {
    rows(include_str!("../data/kernels.tsv"))
        .map(|row| {
            let numeric = |column: usize| row[column].parse().expect("a number");
            Kernel {
                pdb: row[0].to_owned(),
                guid: row[1].to_owned(),
                age: numeric(2),
                pfn_database: numeric(3),
            }
        })
        .collect()
}

fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').collect())
}

fn bits(text: &str) -> Option<Bits> {
    let numbers: Vec<u32> = text.split(':').map_while(|number| number.parse().ok()).collect();
    let [offset, storage, bit, width] = numbers.try_into().ok()?;
    let small = |number| u8::try_from(number).expect("a bit of a 64-bit word");
    Some(Bits {
        offset,
        storage,
        bit: small(bit),
        width: small(width),
    })
}

impl Layout {
    /// Writes `_MMLISTS` and `_MMPFN`, nested as kernels nest them.
    pub fn write(&self, types: &mut Types) {
        types.enumeration("_MMLISTS", ULONG, &LISTS);
        // As in a real PDB: announced first, used through a pointer, defined later.
        let announced = types.forward("_MMPFN");
        types.pointer(announced, if self.x64 { 8 } else { 4 });
        let word = if self.x64 { UQUAD } else { ULONG };
        let word_size = if self.x64 { 8 } else { 4 };
        let pointer = if self.x64 { PVOID64 } else { PVOID32 };
        let pte_size = if self.pae { 8 } else { 4 };
        let [u1, u2, u3, u4, pte_address, original_pte] = self.offsets;

        let pte_word = if self.pae { UQUAD } else { ULONG };
        let pte_union = types.union("__unnamed", pte_size, &[("Long", pte_word, 0)]);
        let pte = types.structure("_MMPTE", pte_size, &[("u", pte_union, 0)]);
        let first = types.union(
            "__unnamed",
            word_size,
            &[("Flink", word, 0), ("WsIndex", word, 0)],
        );
        let second = self.second(types, word, word_size);
        let third = self.third(types);
        let fourth = self.fourth(types, word);
        let fourth_size = self.size - u4;
        let fourth = types.union("__unnamed", fourth_size, &fourth);
        // Split in two, as long lists are: the second half is written first.
        let more = types.field_list(&[("OriginalPte", pte, original_pte), ("u4", fourth, u4)], None);
        let list = types.field_list(
            &[
                ("u1", first, u1),
                ("u2", second, u2),
                ("PteAddress", pointer, pte_address),
                ("u3", third, u3),
            ],
            Some(more),
        );
        types.structure_of("_MMPFN", list, 6, self.size);
    }

    fn second(&self, types: &mut Types, word: u32, size: u32) -> u32 {
        let mut members = vec![("Blink", word, 0), ("ShareCount", word, 0)];
        if let Some(lock) = self.lock_bit {
            let bit = types.bit_field(word, lock.bit, lock.width);
            members.push(("LockBit", bit, lock.offset - self.offsets[1]));
        }
        types.union("__unnamed", size, &members)
    }

    fn third(&self, types: &mut Types) -> u32 {
        let start = self.offsets[2];
        let location = self.page_location;
        let bits = types.bit_field(underlying(location.storage), location.bit, location.width);
        // Enumerations and qualifiers may stand between a member and its bits.
        let mut flags = vec![("PageLocation", bits, 0)];
        if let Some(rom) = self.rom {
            let bits = types.bit_field(underlying(rom.storage), rom.bit, rom.width);
            flags.push(("Rom", bits, rom.offset - location.offset));
        }
        let size = start + 4 - location.offset;
        types.structure(&self.entry, size, &flags);
        let announced = types.forward(&self.entry);
        let flags = types.volatile(announced);
        let count_at = self.reference_count - start;
        let count = types.structure("__unnamed", 4, &[("ReferenceCount", USHORT, count_at)]);
        // Anonymous in C: its members are the union's own.
        types.union(
            "__unnamed",
            4,
            &[
                ("ReferenceCount", USHORT, count_at),
                ("e1", flags, location.offset - start),
                ("e2", count, 0),
            ],
        )
    }

    fn fourth(&self, types: &mut Types, word: u32) -> Vec<(&'static str, u32, u32)> {
        let mut members = Vec::new();
        for (name, bits) in [("PteFrame", Some(self.pte_frame)), ("PfnExists", self.pfn_exists)] {
            if let Some(bits) = bits {
                let kind = types.bit_field(word, bits.bit, bits.width);
                members.push((name, kind, bits.offset - self.offsets[3]));
            }
        }
        members
    }
}

fn underlying(storage: u32) -> u32 {
    match storage {
        1 => UCHAR,
        2 => USHORT,
        4 => ULONG,
        _ => UQUAD,
    }
}
