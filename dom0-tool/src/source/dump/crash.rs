//! Windows crash dumps: full ones, of 32 and 64 bits, those with a bitmap of pages (kernel, live and
//! automatic dumps), and those of the debugger's newer form, with a list of ranges (`.dump /k`, `/ka`, `/f`).
//!
//! The header's layout is that of `DUMP_HEADER64` and `DUMP_HEADER32`, as `kdmp-parser` and the debuggers
//! read it; the tests hold this reader against `kdmp-parser`. That crate itself keeps an entry for every page
//! and follows the guest's lists of modules, both without a bound that the file does not set.

use super::extents::Extent;
use super::file::ReadFile;
use super::{DumpError, Parts};
use crate::source::Cpu;

const PAGE: u64 = 4096;
/// `PAGEDU64` and `PAGEDUMP`.
pub(super) const MAGIC_64: &[u8] = b"PAGEDU64";
pub(super) const MAGIC_32: &[u8] = b"PAGEDUMP";
const FULL: u64 = 1;
const KERNEL: u64 = 2;
const TRIAGE: u64 = 4;
const BITMAP: u64 = 5;
const LIVE_KERNEL: u64 = 6;
const RANGES_KERNEL: u64 = 8;
const RANGES_USER: u64 = 9;
const RANGES_COMPLETE: u64 = 10;
/// `SDMP` or `FDMP`, then `DUMP`.
const SUMMARY: [u64; 2] = [0x504d_4453, 0x504d_4446];
const VALID: u64 = 0x504d_5544;
/// `RDMP`, behind a mark.
const RANGES_MARK: u64 = 0x40;
const RANGES: u64 = 0x504d_4452;
/// `CR4.PAE`.
const PAE: u64 = 1 << 5;
/// What the header has where it was never filled in.
const UNUSED: u64 = 0x4547_4150;

/// Where things are in a header.
struct Form {
    header: u64,
    pointer: usize,
    directory: u64,
    modules: u64,
    /// `MachineImageType`, a number of the executables' (`IMAGE_FILE_MACHINE_AMD64`).
    machine: u64,
    /// `PHYSICAL_MEMORY_DESCRIPTOR`, in a buffer of 700 bytes.
    memory: u64,
    kind: u64,
}

const FORM_64: Form = Form {
    header: 0x2000,
    pointer: 8,
    directory: 0x10,
    modules: 0x20,
    machine: 0x30,
    memory: 0x88,
    kind: 0xf98,
};
const FORM_32: Form = Form {
    header: 0x1000,
    pointer: 4,
    directory: 0x10,
    modules: 0x18,
    machine: 0x20,
    memory: 0x64,
    kind: 0xf88,
};
/// `PaeEnabled` of the 32-bit header.
const PAE_ENABLED: u64 = 0x5c;
const BUFFER: u64 = 700;
/// Pages of the largest physical memory: 52 bits of address.
const MAX_PAGES: u64 = 1 << 40;
/// `IMAGE_FILE_MACHINE_AMD64` and `_I386`.
const AMD64: u64 = 0x8664;
const I386: u64 = 0x14c;

/// Reads the header and where pages are.
///
/// # Errors
/// [`DumpError::CrashType`] for other kinds of crash dump, [`DumpError::OtherMachine`],
/// [`DumpError::OtherFormat`], [`DumpError::Truncated`], [`DumpError::Impossible`].
pub(super) fn read(file: &ReadFile, wide: bool) -> Result<Parts, DumpError> {
    let form = if wide { FORM_64 } else { FORM_32 };
    let number = |at: u64, bytes: usize| {
        let mut value = [0; 8];
        let read = file.read(at, &mut value[..bytes]);
        read.then(|| u64::from_le_bytes(value))
            .ok_or(DumpError::Truncated {
                what: "header",
                needed: at + bytes as u64,
                length: file.length(),
            })
    };
    // Dumps that a program made may leave it out.
    match number(form.machine, 4)? {
        0 | UNUSED | AMD64 | I386 => {}
        machine => {
            return Err(DumpError::OtherMachine {
                machine: machine_name(machine),
            });
        }
    }
    let kind = number(form.kind, 4)?;
    let extents = match kind {
        FULL => full(file, &form, &number)?,
        KERNEL | BITMAP | LIVE_KERNEL => bitmap(file, &form, &number)?,
        RANGES_KERNEL | RANGES_USER | RANGES_COMPLETE if wide => ranges(file, kind, &number)?,
        kind => {
            let what = match kind {
                TRIAGE => "a minidump, which holds next to nothing of memory",
                _ => "of which it is not known how it holds memory",
            };
            return Err(DumpError::CrashType { kind, what });
        }
    };
    let cr3 = number(form.directory, form.pointer)?;
    let hint = number(form.modules, form.pointer)?;
    let known = |value: u64| Some(value).filter(|value| *value != 0 && *value & 0xffff_ffff != UNUSED);
    // The list of loaded modules is a variable of the kernel's: its address lies in the image, as an
    // instruction pointer would. The one that the header has may lie in a driver.
    let mut cpu = Cpu {
        cr3: known(cr3),
        rip: known(hint),
        long_mode: Some(wide),
        ..Cpu::default()
    };
    if !wide {
        cpu.cr4 = Some(if number(PAE_ENABLED, 1)? == 1 { PAE } else { 0 });
    }
    Ok(Parts {
        extents,
        cpus: vec![cpu],
        ..Parts::default()
    })
}

/// The machine that a number of the executables' stands for, in words.
fn machine_name(machine: u64) -> String {
    let name = match machine {
        0xaa64 => "an arm64 machine",
        0x1c0 | 0x1c2 | 0x1c4 => "a 32-bit arm machine",
        0x200 => "an ia64 machine",
        _ => return format!("a machine with an unknown processor ({machine:#x} in its header)"),
    };
    name.to_owned()
}

/// That the file has the page that ends at `end`.
fn is_there(file: &ReadFile, what: &'static str, end: Option<u64>) -> Result<(), DumpError> {
    match end {
        Some(end) if end <= file.length() => Ok(()),
        _ => Err(DumpError::Truncated {
            what,
            needed: end.unwrap_or(u64::MAX),
            length: file.length(),
        }),
    }
}

/// Where `count` pages from `offset` on end.
fn end_of(offset: u64, count: u64) -> Option<u64> {
    count.checked_mul(PAGE)?.checked_add(offset)
}

/// Runs of pages, one after the other behind the header.
fn full(
    file: &ReadFile,
    form: &Form,
    number: &impl Fn(u64, usize) -> Result<u64, DumpError>,
) -> Result<Vec<Extent>, DumpError> {
    let pointer = form.pointer as u64;
    let runs = number(form.memory, 4)?;
    if runs == UNUSED {
        return Err(DumpError::OtherFormat {
            what: "a Windows crash dump whose header was never filled in: it does not say where memory is",
            remedy: "take the dump again; Windows fills in the header last, so it was not left to finish",
        });
    }
    if runs == 0 || 2 * pointer * (1 + runs) > BUFFER {
        return Err(DumpError::Impossible {
            what: "number of runs",
            value: runs,
        });
    }
    let mut extents = Vec::new();
    let mut offset = form.header;
    for run in 0..runs {
        let at = form.memory + 2 * pointer * (1 + run);
        let (first, count) = (number(at, form.pointer)?, number(at + pointer, form.pointer)?);
        if count > MAX_PAGES || first > MAX_PAGES - count {
            return Err(DumpError::Impossible {
                what: "number of pages in a run",
                value: count,
            });
        }
        is_there(file, "run of pages", end_of(offset, count))?;
        extents.push(Extent {
            start: first * PAGE,
            bytes: count * PAGE,
            offset,
        });
        offset += count * PAGE;
    }
    Ok(extents)
}

/// Where a summary is: pages in the file, pages in the bitmap, the bitmap, the first page.
struct Summary {
    present: u64,
    pages: u64,
    bits: u64,
    first: u64,
}

/// A bit for each page of memory; those that are set lie in the file, one after the other. Windows 8 and
/// later write one header, those before another, of which there are two sizes (`SUMMARY_DUMP`); the bits have
/// to be as many as the header says.
fn bitmap(
    file: &ReadFile,
    form: &Form,
    number: &impl Fn(u64, usize) -> Result<u64, DumpError>,
) -> Result<Vec<Extent>, DumpError> {
    let at = form.header;
    let damaged = |what, value| DumpError::Impossible { what, value };
    let signature = number(at, 4)?;
    if !SUMMARY.contains(&signature) || number(at + 4, 4)? != VALID {
        return Err(damaged("bitmap's signature", signature));
    }
    let late = Summary {
        first: number(at + 0x20, 8)?,
        present: number(at + 0x28, 8)?,
        pages: number(at + 0x30, 8)?,
        bits: at + 0x38,
    };
    let early = Summary {
        first: number(at + 0xc, 4)?,
        pages: number(at + 0x10, 4)?,
        present: number(at + 0x14, 4)?,
        bits: at + if form.pointer == 8 { 0x28 } else { 0x20 },
    };
    let wrong = damaged("bitmap's number of pages", late.pages);
    for summary in [late, early] {
        let end = summary.bits.saturating_add(summary.pages.div_ceil(8));
        if summary.pages == 0 || summary.present == 0 || end > summary.first || summary.first > file.length()
        {
            continue;
        }
        let bits = file.bytes(
            "the bitmap of the crash dump",
            summary.bits,
            summary.pages.div_ceil(8),
        )?;
        let set: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        if set == summary.present {
            return in_a_row(file, &bits, &summary);
        }
    }
    Err(wrong)
}

/// The pages whose bits are set, from the first one's place on.
fn in_a_row(file: &ReadFile, bits: &[u8], summary: &Summary) -> Result<Vec<Extent>, DumpError> {
    // Each page that is present is a bit that is set, so no sum of these runs over.
    is_there(file, "last page", end_of(summary.first, summary.present))?;
    let mut extents: Vec<Extent> = Vec::new();
    let mut offset = summary.first;
    for page in 0..summary.pages {
        let byte = usize::try_from(page / 8).ok().and_then(|index| bits.get(index));
        if byte.is_none_or(|byte| byte >> (page % 8) & 1 == 0) {
            continue;
        }
        match extents.last_mut() {
            Some(last) if last.start + last.bytes == page * PAGE => last.bytes += PAGE,
            _ => extents.push(Extent {
                start: page * PAGE,
                bytes: PAGE,
                offset,
            }),
        }
        offset += PAGE;
    }
    Ok(extents)
}

/// Ranges of pages, whose pages lie one after the other behind the list.
fn ranges(
    file: &ReadFile,
    kind: u64,
    number: &impl Fn(u64, usize) -> Result<u64, DumpError>,
) -> Result<Vec<Extent>, DumpError> {
    let at = FORM_64.header;
    let damaged = |what, value| DumpError::Impossible { what, value };
    let marks = (number(at, 4)?, number(at + 4, 4)?, number(at + 8, 4)?);
    if marks != (RANGES_MARK, RANGES, VALID) {
        return Err(DumpError::CrashType {
            kind,
            what: "and does not have the list of ranges that such a dump has behind its header",
        });
    }
    let mut offset = number(at + 0x18, 8)?;
    let list = at + 0x30;
    let room = offset.checked_sub(list);
    let room = room.ok_or_else(|| damaged("place of the first page", offset))?;
    is_there(file, "first page", Some(offset))?;
    let mut extents = Vec::new();
    for index in 0..room / 16 {
        let (first, count) = (number(list + 16 * index, 8)?, number(list + 16 * index + 8, 8)?);
        if count == 0 {
            break;
        }
        if count > MAX_PAGES || first > MAX_PAGES - count {
            return Err(damaged("number of pages in a range", count));
        }
        is_there(file, "range of pages", end_of(offset, count))?;
        extents.push(Extent {
            start: first * PAGE,
            bytes: count * PAGE,
            offset,
        });
        offset += count * PAGE;
    }
    Ok(extents)
}
