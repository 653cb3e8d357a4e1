//! Dumps in which memory lies packed, made by hand: kdump-compressed as makedumpfile and QEMU write it,
//! flattened files, LiME's and AVML's.
#![allow(clippy::unwrap_used)]

use std::io::Write;

const PAGE: usize = 4096;

/// What packs the pages of a kdump-compressed dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

impl Codec {
    pub(crate) const ALL: [Self; 5] = [Self::None, Self::Zlib, Self::Lzo, Self::Snappy, Self::Zstd];

    /// A packed page, and its flag. What does not get smaller is kept as it is.
    fn pack(self, page: &[u8]) -> (u32, Vec<u8>) {
        let (flag, packed) = match self {
            Self::None => (0, page.to_vec()),
            Self::Zlib => {
                let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(page).unwrap();
                (1, writer.finish().unwrap())
            }
            Self::Lzo => (2, lzokay::compress::compress(page).unwrap()),
            Self::Snappy => (4, snap::raw::Encoder::new().compress_vec(page).unwrap()),
            Self::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                (0x20, ruzstd::encoding::compress_to_vec(page, level))
            }
        };
        if packed.len() < PAGE {
            (flag, packed)
        } else {
            (0, page.to_vec())
        }
    }
}

/// A kdump-compressed dump to be made.
#[derive(Clone, Debug)]
pub(crate) struct Kdump<'d> {
    pub(crate) wide: bool,
    pub(crate) machine: &'d str,
    pub(crate) codec: Codec,
    /// Pages in it, by number, lowest first.
    pub(crate) pages: &'d [(u64, Vec<u8>)],
    /// Pages that there are and that were left out.
    pub(crate) left_out: &'d [u64],
    pub(crate) dump_level: u32,
    pub(crate) notes: &'d [u8],
    pub(crate) vmcoreinfo: &'d [u8],
    pub(crate) split: bool,
}

impl<'d> Kdump<'d> {
    pub(crate) fn new(codec: Codec, pages: &'d [(u64, Vec<u8>)]) -> Self {
        Self {
            wide: true,
            machine: "x86_64",
            codec,
            pages,
            left_out: &[],
            dump_level: 0,
            notes: &[],
            vmcoreinfo: &[],
            split: false,
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let numbers = self.pages.iter().map(|(number, _)| *number);
        let end = numbers
            .clone()
            .chain(self.left_out.iter().copied())
            .max()
            .unwrap()
            + 1;
        let bitmap_blocks = usize::try_from(end).unwrap().div_ceil(8 * PAGE);
        let mut bytes = vec![0; PAGE * (2 + 2 * bitmap_blocks)];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"KDUMP   ");
        put(8, &6_u32.to_le_bytes());
        put(12 + 4 * 65, self.machine.as_bytes());
        let rest = if self.wide { 424 } else { 412 };
        let blocks = u32::try_from(2 * bitmap_blocks).unwrap();
        for (index, value) in [0, 4096, 1, blocks, 0].into_iter().enumerate() {
            put(rest + 4 * index, &u32::to_le_bytes(value));
        }
        // The second header: level, whether it was split, then the notes' places.
        let (level, split, note, info, last, word) = if self.wide {
            (8, 12, 48, 32, 96, 8)
        } else {
            (4, 8, 32, 20, 72, 4)
        };
        put(PAGE + level, &self.dump_level.to_le_bytes());
        put(PAGE + split, &u32::from(self.split).to_le_bytes());
        put(PAGE + last, &end.to_le_bytes());
        let notes_at = PAGE + 512;
        let info_at = notes_at + self.notes.len();
        for (at, place, what) in [(note, notes_at, self.notes), (info, info_at, self.vmcoreinfo)] {
            put(PAGE + at, &(place as u64).to_le_bytes());
            put(PAGE + at + 8, &(what.len() as u64).to_le_bytes()[..word]);
            put(place, what);
        }
        let mut set = |bitmap: usize, page: u64| {
            let page = usize::try_from(page).unwrap();
            bytes[PAGE * (2 + bitmap * bitmap_blocks) + page / 8] |= 1 << (page % 8);
        };
        for number in self.left_out {
            set(0, *number);
        }
        for number in numbers {
            set(0, number);
            set(1, number);
        }
        let mut at = bytes.len() + 24 * self.pages.len();
        let mut packed = Vec::new();
        for (_, page) in self.pages {
            let (flag, page) = self.codec.pack(page);
            bytes.extend((at as u64).to_le_bytes());
            bytes.extend(u32::try_from(page.len()).unwrap().to_le_bytes());
            bytes.extend(flag.to_le_bytes());
            bytes.extend([0; 8]);
            at += page.len();
            packed.extend(page);
        }
        bytes.extend(packed);
        bytes
    }
}

/// A file, flattened in records of `length` bytes, of which the first is put down last, as makedumpfile does
/// with its header.
pub(crate) fn flattened(file: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = b"makedumpfile\0\0\0\0".to_vec();
    bytes.extend(1_u64.to_be_bytes());
    bytes.extend(1_u64.to_be_bytes());
    bytes.resize(PAGE, 0);
    let mut record = |at: usize, part: &[u8]| {
        bytes.extend((at as u64).to_be_bytes());
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part);
    };
    record(0, &vec![0xee; length.min(file.len())]);
    for (index, part) in file.chunks(length).enumerate().skip(1) {
        record(index * length, part);
    }
    record(0, &file[..length.min(file.len())]);
    bytes.extend([0xff; 16]);
    bytes
}

/// LiME's header of a range.
fn range(magic: [u8; 4], version: u32, first: u64, bytes: usize) -> Vec<u8> {
    let mut header = magic.to_vec();
    header.extend(version.to_le_bytes());
    header.extend(first.to_le_bytes());
    header.extend((first + bytes as u64 - 1).to_le_bytes());
    header.resize(32, 0);
    header
}

/// A dump of LiME's: first byte and bytes of each range.
pub(crate) fn lime(ranges: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let parts = ranges
        .iter()
        .map(|(first, bytes)| [range(*b"EMiL", 1, *first, bytes.len()), bytes.clone()].concat());
    parts.collect::<Vec<_>>().concat()
}

/// A dump of AVML's, packed.
pub(crate) fn avml(ranges: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    for (first, bytes) in ranges {
        file.extend(range(*b"AVML", 2, *first, bytes.len()));
        let before = file.len();
        let mut writer = snap::write::FrameEncoder::new(&mut file);
        writer.write_all(bytes).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let packed = (file.len() - before) as u64;
        file.extend(packed.to_le_bytes());
    }
    file
}
