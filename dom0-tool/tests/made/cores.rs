//! Cores made by hand: ELF as QEMU writes it, and Xen's.
//!
//! Part of the unit tests of `dump` and of the seeds in `tests/hostile`.
#![allow(clippy::unwrap_used)]

/// Writes `value` at `at`, where the file is made longer if need be.
fn put(bytes: &mut Vec<u8>, at: usize, value: &[u8]) {
    if bytes.len() < at + value.len() {
        bytes.resize(at + value.len(), 0);
    }
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// An ELF core: header, program headers, notes, then one page for each of `pages`, whose first bytes are
/// their number.
pub(crate) fn elf(wide: bool, pages: &[u64], notes: &[u8], extended: bool) -> Vec<u8> {
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

/// A piece of memory of an ELF core: the first bytes of it are in the file, or none.
pub(crate) struct Segment {
    /// Where it begins, physically.
    pub(crate) physical: u64,
    /// What of it is in the file.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of memory.
    pub(crate) length: u64,
    /// Whether it has a place in the file, even if no byte there: QEMU gives none to what its filter leaves
    /// out.
    pub(crate) is_placed: bool,
}

impl Segment {
    /// Memory of which every byte is in the file.
    pub(crate) fn whole(physical: u64, bytes: &[u8]) -> Self {
        Self {
            physical,
            bytes: bytes.to_vec(),
            length: bytes.len() as u64,
            is_placed: true,
        }
    }
}

/// `memory` in segments that leave out runs of at least `least` pages of zeros: in each, what is in the file
/// comes first.
pub(crate) fn without_zeros(memory: &[u8], least: usize) -> Vec<Segment> {
    let pages: Vec<&[u8]> = memory.chunks(4096).collect();
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut segments = Vec::new();
    let mut at = 0;
    while at < pages.len() {
        // Up to the next long run of zeros, and that run.
        let (mut end, mut zeros) = (at, 0);
        while end < pages.len() {
            zeros = pages[end..].iter().take_while(|page| is_zero(page)).count();
            if zeros >= least {
                break;
            }
            end += zeros.max(1);
            zeros = 0;
        }
        segments.push(Segment {
            physical: at as u64 * 4096,
            bytes: pages[at..end.min(pages.len())].concat(),
            length: (end + zeros - at) as u64 * 4096,
            is_placed: true,
        });
        at = end + zeros;
    }
    segments
}

/// An ELF core of 64 bits with `notes` and `segments`.
pub(crate) fn segments(segments: &[Segment], notes: &[u8]) -> Vec<u8> {
    let headers = 64 + (segments.len() + 1) * 56;
    let mut bytes = elf(true, &[], notes, false);
    // The notes move behind the headers of the segments.
    bytes.truncate(64 + 56);
    bytes[64 + 8..][..8].copy_from_slice(&(headers as u64).to_le_bytes());
    put(
        &mut bytes,
        56,
        &u16::try_from(segments.len() + 1).unwrap().to_le_bytes(),
    );
    put(&mut bytes, headers, notes);
    let mut offset = bytes.len().next_multiple_of(4096);
    for (index, segment) in segments.iter().enumerate() {
        let at = 64 + (index + 1) * 56;
        put(&mut bytes, at, &1_u32.to_le_bytes());
        let place = if segment.is_placed {
            offset as u64
        } else {
            u64::MAX
        };
        let fields = [
            (8, place),
            (24, segment.physical),
            (32, segment.bytes.len() as u64),
            (40, segment.length),
        ];
        for (field, value) in fields {
            put(&mut bytes, at + field, &value.to_le_bytes());
        }
        put(&mut bytes, offset, &segment.bytes);
        offset += segment.bytes.len();
    }
    bytes
}

/// A note, padded as ELF wants it.
pub(crate) fn note(name: &[u8], kind: u32, body: &[u8]) -> Vec<u8> {
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

/// What QEMU says of a 64-bit virtual CPU (`QEMUCPUState` in its `target/i386/arch_dump.c`).
pub(crate) fn qemu_note(cr3: u64) -> Vec<u8> {
    let mut body = vec![0; 440];
    put(&mut body, 368 + 4, &0xfff_u32.to_le_bytes());
    put(&mut body, 368 + 16, &0xffff_fe00_0000_0000_u64.to_le_bytes());
    put(&mut body, 392, &0x8005_0033_u64.to_le_bytes());
    put(&mut body, 416, &cr3.to_le_bytes());
    put(&mut body, 424, &0x6f0_u64.to_le_bytes());
    note(b"QEMU", 0, &body)
}

/// A Xen core: sections `.xen_prstatus`, `.xen_pfn`, `.xen_pages`.
pub(crate) fn xen(pages: &[u64]) -> Vec<u8> {
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
