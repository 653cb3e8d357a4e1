//! kdump-compressed dumps: `makedumpfile`'s own form, which kdump leaves on every distribution, and QEMU's
//! `dump-guest-memory -z`, `-l` and `-s`.
//!
//! The layout is that of makedumpfile's `diskdump_mod.h` and QEMU's `include/sysemu/dump.h`: a header and a
//! second one of a block each or more, two bitmaps (pages that there are, pages that are in the file), a
//! description of each page, pages.

use super::elf::Fields;
use super::extents::Extent;
use super::file::ReadFile;
use super::notes::Gathered;
use super::packed::{DESCRIPTION, PAGE, Pieces};
use super::{DumpError, Parts};

/// How such a file begins.
pub(super) const MAGIC: &[u8] = b"KDUMP   ";
/// Where `utsname.machine` is.
const MACHINE: usize = 12 + 4 * 65;
/// What follows the time stamp, whose size is that of the processor's words.
const WIDE: usize = 424;
const NARROW: usize = 412;
/// Bytes of a block: those of a page.
const BLOCK: u32 = 4096;
/// Most bytes of a bitmap read at once.
const BITMAP_PIECE: u64 = 1 << 20;
/// Most bytes of notes and of the note of the kernel.
const MAX_NOTE_BYTES: u64 = 64 << 20;
/// `DUMP_DH_COMPRESSED_INCOMPLETE`: the dumper ran out of room.
const INCOMPLETE: u64 = 8;
/// Of the dump level: pages of zeros are left out.
const NO_ZEROS: u64 = 1;
/// Most descriptions looked at from the end, for pages behind the end of the file.
const LAST: u64 = 4096;
/// Processors of other kinds, and what a dump of one is called.
const OTHERS: [(&str, &str); 6] = [
    ("aarch64", "a kdump-compressed dump of an arm64 machine"),
    ("ppc64", "a kdump-compressed dump of a POWER machine"),
    ("s390", "a kdump-compressed dump of an IBM Z machine"),
    ("riscv", "a kdump-compressed dump of a RISC-V machine"),
    ("loongarch", "a kdump-compressed dump of a LoongArch machine"),
    ("ia64", "a kdump-compressed dump of an Itanium machine"),
];

/// What the two headers say.
struct Header {
    wide: bool,
    status: u64,
    bitmap_at: u64,
    bitmap_bytes: u64,
    /// One past the last page.
    pages: u64,
    dump_level: u64,
    note: (u64, u64),
    vmcoreinfo: (u64, u64),
}

/// Reads the headers and where pages are.
///
/// # Errors
/// [`DumpError`].
pub(super) fn read(file: &ReadFile) -> Result<Parts, DumpError> {
    let header = Header::read(file)?;
    let descriptions = header.bitmap_at + header.bitmap_bytes;
    let mut parts = Parts::default();
    let half = header.bitmap_bytes / 2;
    let in_file = runs(file, header.bitmap_at + half, header.pages)?;
    let mut before = 0;
    for (first, count) in in_file {
        parts.extents.push(Extent {
            start: first * PAGE as u64,
            bytes: count * PAGE as u64,
            offset: before * PAGE as u64,
        });
        before += count;
    }
    if header.dump_level & NO_ZEROS != 0 {
        // What the kernel keeps for itself is left out for no other reason.
        for (first, count) in runs(file, header.bitmap_at, header.pages)? {
            parts.zeros.push(Extent {
                start: first * PAGE as u64,
                bytes: count * PAGE as u64,
                offset: first * PAGE as u64,
            });
        }
    }
    let cut = behind_the_end(file, descriptions, before)?;
    let is_cut = header.status & INCOMPLETE != 0 || !file.is_whole() || cut > 0;
    if is_cut {
        parts.missing = cut.max(1) * PAGE as u64;
        parts
            .remarks
            .push("the file is cut short, or its dumper ran out of room".to_owned());
    }
    parts.pieces = Some(Pieces::Pages(descriptions));
    let mut gathered = Gathered::default();
    let (at, bytes) = header.note;
    if bytes > 0 {
        match file.bytes("notes", at, bytes.min(MAX_NOTE_BYTES)) {
            Ok(notes) => gathered.take(&notes, header.wide),
            Err(error) => parts.remarks.push(error.to_string()),
        }
    }
    gathered.into_parts(&mut parts)?;
    let (at, bytes) = header.vmcoreinfo;
    if bytes > 0 && parts.vmcoreinfo.is_none() {
        parts.vmcoreinfo = file.bytes("VMCOREINFO", at, bytes.min(MAX_NOTE_BYTES)).ok();
    }
    Ok(parts)
}

impl Header {
    fn read(file: &ReadFile) -> Result<Self, DumpError> {
        let first = file.bytes("header", 0, 464)?;
        let end = first[MACHINE..].iter().position(|byte| *byte == 0).unwrap_or(0);
        let machine = String::from_utf8_lossy(&first[MACHINE..MACHINE + end.min(65)]).into_owned();
        if let Some((_, what)) = OTHERS.iter().find(|(name, _)| machine.starts_with(name)) {
            return Err(DumpError::OtherFormat {
                what,
                remedy: "only dumps of x86 machines can be read",
            });
        }
        let wide = is_wide(&machine, &first);
        let first = Fields { bytes: &first, wide };
        let rest = if wide { WIDE } else { NARROW };
        let number = |index: usize| first.number(rest + 4 * index, 4);
        let damaged = |what, value| DumpError::Impossible { what, value };
        let (version, status, block) = (first.number(8, 4), number(0), number(1));
        if block != PAGE as u64 {
            return Err(damaged("block size", block));
        }
        let (sub_blocks, bitmap_blocks) = (number(2), number(3));
        let second = file.bytes("second header", block, if wide { 104 } else { 80 })?;
        let second = Fields { bytes: &second, wide };
        let word = if wide { 8 } else { 4 };
        let (level, split, note, vmcoreinfo, last) = if wide {
            (8, 12, 48, 32, 96)
        } else {
            (4, 8, 32, 20, 72)
        };
        if version >= 2 && second.number(split, 4) != 0 {
            return Err(DumpError::OtherFormat {
                what: "one part of a kdump-compressed dump that was split",
                remedy: "put the parts together: `makedumpfile --reassemble PART1 PART2 ... FILE`",
            });
        }
        let place = |at: usize, since: u64| {
            if version >= since {
                (second.number(at, 8), second.number(at + 8, word))
            } else {
                (0, 0)
            }
        };
        let bitmap_bytes = bitmap_blocks * block;
        let pages = if version >= 6 {
            second.number(last, 8)
        } else {
            number(4)
        };
        if pages == 0 || pages > bitmap_bytes / 2 * 8 || bitmap_bytes > file.length() {
            return Err(damaged("number of pages", pages));
        }
        Ok(Self {
            wide,
            status,
            bitmap_at: (1 + sub_blocks) * block,
            bitmap_bytes,
            pages,
            dump_level: if version >= 1 { second.number(level, 4) } else { 0 },
            note: place(note, 4),
            vmcoreinfo: place(vmcoreinfo, 3),
        })
    }
}

/// Whether a dump is one of a 64-bit processor. QEMU writes "Unknown" for the machine of a guest without its
/// `vmcoreinfo` device; then the size of a block tells, by where it stands.
fn is_wide(machine: &str, first: &[u8]) -> bool {
    let block = |rest: usize| first.get(rest + 4..rest + 8) == Some(&BLOCK.to_le_bytes()[..]);
    machine.contains("64") || !machine.ends_with("86") && block(WIDE) && !block(NARROW)
}

/// Runs of set bits among the first `pages` of a bitmap: first page, number of pages.
fn runs(file: &ReadFile, at: u64, pages: u64) -> Result<Vec<(u64, u64)>, DumpError> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let bytes = pages.div_ceil(8);
    let mut done = 0;
    while done < bytes {
        let length = BITMAP_PIECE.min(bytes - done);
        let piece = file.bytes("bitmap", at.saturating_add(done), length)?;
        for (index, byte) in piece.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                let page = (done + index as u64) * 8 + bit;
                match runs.last_mut() {
                    _ if page >= pages => break,
                    Some((first, count)) if *first + *count == page => *count += 1,
                    _ => runs.push((page, 1)),
                }
            }
        }
        done += length;
    }
    Ok(runs)
}

/// How many of the last pages are behind the end of the file. They are written one after the other.
fn behind_the_end(file: &ReadFile, descriptions: u64, count: u64) -> Result<u64, DumpError> {
    let end = descriptions.saturating_add(count.saturating_mul(DESCRIPTION));
    if end > file.length() {
        return Ok((end - file.length()).div_ceil(DESCRIPTION));
    }
    let looked_at = count.min(LAST);
    let table = file.bytes(
        "descriptions of pages",
        end - looked_at * DESCRIPTION,
        looked_at * DESCRIPTION,
    )?;
    let behind = table.chunks_exact(24).filter(|bytes| {
        let description = Fields { bytes, wide: true };
        let (offset, size) = (description.number(0, 8), description.number(8, 4));
        offset.saturating_add(size) > file.length()
    });
    Ok(behind.count() as u64)
}
