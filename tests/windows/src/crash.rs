//! Writes Windows crash dumps of a made guest.

use crate::guest::{Made, PAGE};

/// A full dump of 64 bits: the runs of memory behind the header.
pub fn full_64(made: &Made) -> Vec<u8> {
    let mut file = header_64(made, 1);
    for (first, count) in &made.runs {
        file.extend_from_slice(pages(made, *first, *count));
    }
    file
}

/// A dump of 64 bits with a bitmap of pages.
pub fn bitmap_64(made: &Made) -> Vec<u8> {
    let mut file = header_64(made, 5);
    let total = made.memory.len() / PAGE;
    let mut bits = vec![0_u8; total.div_ceil(8)];
    let mut content = Vec::new();
    for (first, count) in &made.runs {
        for page in *first..first + count {
            let index = usize::try_from(page).expect("small");
            bits[index / 8] |= 1 << (index % 8);
        }
        content.extend_from_slice(pages(made, *first, *count));
    }
    let start = (0x2000 + 0x38 + bits.len()).next_multiple_of(PAGE);
    file.extend_from_slice(b"SDMPDUMP");
    file.resize(0x2020, 0);
    for number in [start, content.len() / PAGE, total] {
        file.extend_from_slice(&(number as u64).to_le_bytes());
    }
    file.extend_from_slice(&bits);
    file.resize(start, 0);
    file.extend_from_slice(&content);
    file
}

/// A dump of 64 bits with a list of ranges: of kind 8 or 9 (`.dump /k` and `/ka` of the debugger) or 10
/// (`/f`).
pub fn ranges_64(made: &Made, kind: u64) -> Vec<u8> {
    let mut file = header_64(made, kind);
    let length = 16 * made.runs.len();
    let metadata = (length + 0x20).next_multiple_of(PAGE);
    for word in [0x40_u32, 0x504d_4452, 0x504d_5544, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    let first = metadata - 0x20 + 0x2040;
    for number in [metadata, first] {
        file.extend_from_slice(&(number as u64).to_le_bytes());
    }
    let pages_of: u64 = made.runs.iter().map(|(_, count)| count).sum();
    file.extend_from_slice(&(made.runs.len() as u64).to_le_bytes());
    file.extend_from_slice(&pages_of.to_le_bytes());
    for (first, count) in &made.runs {
        file.extend_from_slice(&first.to_le_bytes());
        file.extend_from_slice(&count.to_le_bytes());
    }
    file.resize(first, 0);
    for (first, count) in &made.runs {
        file.extend_from_slice(pages(made, *first, *count));
    }
    file
}

/// A kernel's dump as Windows wrote it before Windows 8: `SUMMARY_DUMP`, of which there are two sizes. `file`
/// is a full dump.
pub fn summary(made: &Made, file: &[u8]) -> Vec<u8> {
    let (header, kind, bits_at) = if file.starts_with(b"PAGEDU64") {
        (0x2000, 0xf98, 0x28)
    } else {
        (0x1000, 0xf88, 0x20)
    };
    let total = made.memory.len() / PAGE;
    let mut bits = vec![0_u8; total.div_ceil(8)];
    for page in made.runs.iter().flat_map(|(first, count)| *first..first + count) {
        let index = usize::try_from(page).expect("small");
        bits[index / 8] |= 1 << (index % 8);
    }
    let start = (header + bits_at + bits.len()).next_multiple_of(PAGE);
    let content = &file[header..];
    let mut file = file[..header].to_vec();
    file[kind] = 2;
    file.extend_from_slice(b"SDMPDUMP\0\0\0\0");
    for number in [start, total, content.len() / PAGE] {
        let number = u32::try_from(number).expect("small");
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.resize(header + bits_at, 0);
    file.extend_from_slice(&bits);
    file.resize(start, 0);
    file.extend_from_slice(content);
    file
}

/// A full dump of 32 bits.
pub fn full_32(made: &Made, pae: bool) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, value: u64| {
        let value = u32::try_from(value).expect("32 bits");
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    put(0x10, made.cr3);
    put(0x18, made.base + 0x4800);
    put(0x20, 0x14c);
    put(0x5c, pae.into());
    put(0x64, made.runs.len() as u64);
    for (index, (first, count)) in made.runs.iter().enumerate() {
        put(0x6c + 8 * index, *first);
        put(0x70 + 8 * index, *count);
    }
    put(0xf88, 1);
    file[..8].copy_from_slice(b"PAGEDUMP");
    for (first, count) in &made.runs {
        file.extend_from_slice(pages(made, *first, *count));
    }
    file
}

fn header_64(made: &Made, kind: u64) -> Vec<u8> {
    let mut file = vec![0; 0x2000];
    let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0x10, made.cr3);
    put(0x20, made.base + 0x4800);
    put(0x30, 0x8664);
    put(0x88, made.runs.len() as u64);
    put(0x90, made.runs.iter().map(|(_, count)| count).sum());
    for (index, (first, count)) in made.runs.iter().enumerate() {
        put(0x98 + 16 * index, *first);
        put(0xa0 + 16 * index, *count);
    }
    put(0xf98, kind);
    file[..8].copy_from_slice(b"PAGEDU64");
    file
}

fn pages(made: &Made, first: u64, count: u64) -> &[u8] {
    let at = |page: u64| usize::try_from(page).expect("small") * PAGE;
    &made.memory[at(first)..at(first + count)]
}
