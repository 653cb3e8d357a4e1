//! ELF cores: QEMU's `dump-guest-memory`, with or without `-p`, and `/proc/vmcore`.
//!
//! Segments are taken by physical address. Headers of both word sizes, little-endian, also with more program
//! headers than 16 bits count (`PN_XNUM`: the number is then in the first section header, System V ABI,
//! `elf(5)`).

use super::extents::Extent;
use super::file::ReadFile;
use super::notes::Gathered;
use super::{DumpError, Parts};

pub(super) const MAGIC: &[u8] = b"\x7fELF";
/// `e_machine` of i386 and amd64.
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// `e_type` of what is compiled, from object files to shared objects. Cores have 4.
const ET_REL: u16 = 1;
const ET_DYN: u16 = 3;
/// `e_phnum` when the number does not fit.
const PN_XNUM: u64 = 0xffff;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Most bytes of notes read: one CPU has about 1 KiB of them.
const MAX_NOTE_BYTES: u64 = 64 << 20;

/// A segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    kind: u32,
    offset: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// A section.
#[derive(Clone, Debug)]
pub(super) struct Section {
    name: String,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) entry_bytes: u64,
}

/// The headers of an ELF file.
#[derive(Debug)]
pub(super) struct Elf {
    pub(super) machine: u16,
    pub(super) segments: Vec<Segment>,
    sections: Vec<Section>,
}

impl Elf {
    /// Reads the headers.
    ///
    /// # Errors
    /// [`DumpError::Truncated`], [`DumpError::Impossible`].
    pub(super) fn parse(file: &ReadFile) -> Result<Self, DumpError> {
        let identity = file.bytes("ELF header", 0, 16)?;
        let wide = match identity[4] {
            1 => false,
            2 => true,
            class => return Err(impossible("ELF class", u64::from(class))),
        };
        let is_little = match identity[5] {
            1 => true,
            2 => false,
            order => return Err(impossible("ELF byte order", u64::from(order))),
        };
        let header = file.bytes("ELF header", 0, if wide { 64 } else { 52 })?;
        let header = Fields { bytes: &header, wide };
        let number = |at| {
            if is_little {
                header.u16(at)
            } else {
                header.u16(at).swap_bytes()
            }
        };
        let (kind, machine) = (number(16), number(18));
        if !is_little || machine != EM_386 && machine != EM_X86_64 {
            return Err(DumpError::OtherMachine {
                machine: machine_name(machine, is_little),
            });
        }
        if let ET_REL..=ET_DYN = kind {
            return Err(DumpError::OtherFormat {
                what: "a program (ELF, but no core)",
                remedy: "name a dump of a guest's memory; `dump-guest-memory FILE` in QEMU's monitor writes one",
            });
        }
        // After e_entry: e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum,
        // e_shstrndx.
        let (segments_at, sections_at, rest) = if wide {
            (header.word(32), header.word(40), 52)
        } else {
            (header.word(28), header.word(32), 40)
        };
        let segment_bytes = u64::from(header.u16(rest + 2));
        let mut segment_count = u64::from(header.u16(rest + 4));
        let section_bytes = u64::from(header.u16(rest + 6));
        let mut section_count = u64::from(header.u16(rest + 8));
        let names = u64::from(header.u16(rest + 10));
        let least_section = if wide { 64 } else { 40 };
        if sections_at != 0 && section_bytes >= least_section {
            // Numbers that do not fit the header are in the first section header.
            if segment_count == PN_XNUM || section_count == 0 {
                let first = file.bytes("first section header", sections_at, section_bytes)?;
                let first = Fields { bytes: &first, wide };
                if segment_count == PN_XNUM {
                    segment_count = u64::from(first.u32(if wide { 44 } else { 28 }));
                }
                if section_count == 0 {
                    section_count = first.word(if wide { 32 } else { 20 });
                }
            }
        } else if segment_count == PN_XNUM {
            return Err(impossible(
                "number of program headers without a section header",
                segment_count,
            ));
        }
        let segments = segments(file, wide, segments_at, segment_bytes, segment_count)?;
        let sections = if sections_at != 0 && section_bytes >= least_section && section_count > 0 {
            sections(file, wide, sections_at, section_bytes, section_count, names)
        } else {
            Vec::new()
        };
        Ok(Self {
            machine,
            segments,
            sections,
        })
    }

    /// The section called `name`.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Whether 64-bit mode was active when QEMU wrote the file: it chooses the machine by `EFER.LMA`
    /// (QEMU `target/i386/arch_dump.c`, `cpu_get_dump_info`).
    pub(super) const fn long_mode(&self) -> bool {
        self.machine == EM_X86_64
    }
}

/// The machine that `e_machine` stands for (`include/uapi/linux/elf-em.h`), in words.
fn machine_name(machine: u16, is_little: bool) -> String {
    let name = match (machine, is_little) {
        (183, _) => "an arm64 machine",
        (40, _) => "a 32-bit arm machine",
        (21, true) => "a ppc64le machine",
        (21, false) => "a ppc64 machine",
        (20, _) => "a 32-bit PowerPC machine",
        (22, _) => "an s390x machine",
        (243, _) => "a riscv machine",
        (258, _) => "a loongarch machine",
        (8 | 10, _) => "a mips machine",
        (2 | 18 | 43, _) => "a sparc machine",
        (50, _) => "an ia64 machine",
        _ => return format!("a machine with an unknown processor (ELF machine {machine})"),
    };
    name.to_owned()
}

/// Reads the table of program headers: at most as many as the file has room for.
fn segments(
    file: &ReadFile,
    wide: bool,
    at: u64,
    entry_bytes: u64,
    count: u64,
) -> Result<Vec<Segment>, DumpError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if entry_bytes < if wide { 56 } else { 32 } {
        return Err(impossible("size of a program header", entry_bytes));
    }
    let table = file.bytes("table of program headers", at, count.saturating_mul(entry_bytes))?;
    let entries = table.chunks_exact(usize::try_from(entry_bytes).unwrap_or(usize::MAX));
    let segment = |bytes| {
        let entry = Fields { bytes, wide };
        let (offset, physical, file_bytes, memory_bytes) =
            if wide { (8, 24, 32, 40) } else { (4, 12, 16, 20) };
        Segment {
            kind: entry.u32(0),
            offset: entry.word(offset),
            physical: entry.word(physical),
            file_bytes: entry.word(file_bytes),
            memory_bytes: entry.word(memory_bytes),
        }
    };
    Ok(entries.map(segment).collect())
}

/// Sections are wanted of Xen cores only: a table that is damaged is left out, for an ELF core does not need
/// it.
fn sections(file: &ReadFile, wide: bool, at: u64, entry_bytes: u64, count: u64, names: u64) -> Vec<Section> {
    let Ok(table) = file.bytes("table of section headers", at, count.saturating_mul(entry_bytes)) else {
        return Vec::new();
    };
    let entry_length = usize::try_from(entry_bytes).unwrap_or(usize::MAX);
    let place = |index: u64| {
        let start = usize::try_from(index).ok()?.checked_mul(entry_length)?;
        let entry = Fields {
            bytes: table.get(start..start.checked_add(entry_length)?)?,
            wide,
        };
        Some(if wide {
            (entry.u32(0), entry.word(24), entry.word(32), entry.word(56))
        } else {
            (entry.u32(0), entry.word(16), entry.word(20), entry.word(36))
        })
    };
    let strings = place(names)
        .filter(|(_, _, bytes, _)| *bytes <= 1 << 20)
        .and_then(|(_, offset, bytes, _)| file.bytes("names of the sections", offset, bytes).ok())
        .unwrap_or_default();
    let mut found = Vec::new();
    for index in 0..count {
        let Some((name, offset, bytes, entry_bytes)) = place(index) else {
            break;
        };
        let name = usize::try_from(name)
            .ok()
            .and_then(|start| strings.get(start..))
            .and_then(|rest| rest.split(|byte| *byte == 0).next())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .unwrap_or_default();
        if !name.is_empty() {
            found.push(Section {
                name,
                offset,
                bytes,
                entry_bytes,
            });
        }
    }
    found
}

/// What of a segment's memory has no byte in the file, and reads as zero (System V ABI): pages of zeros, and
/// pages that a filter left out (`makedumpfile -E`). What QEMU's own filter leaves out has no place in the
/// file, and nobody says what is in it.
fn left_out(segment: &Segment) -> Option<Extent> {
    let has_place = segment.offset != u64::MAX && segment.offset != u64::from(u32::MAX);
    let bytes = segment.memory_bytes.checked_sub(segment.file_bytes)?;
    let start = segment.physical.checked_add(segment.file_bytes)?;
    let is_zero = bytes > 0 && has_place && start.checked_add(bytes).is_some();
    // They are nowhere in the file; pieces that follow each other are one.
    is_zero.then_some(Extent {
        start,
        bytes,
        offset: start,
    })
}

/// Takes memory and virtual CPUs out of an ELF core.
///
/// # Errors
/// [`DumpError`].
pub(super) fn read(file: &ReadFile, elf: &Elf) -> Result<Parts, DumpError> {
    let mut parts = Parts::default();
    let mut cut: u64 = 0;
    for segment in elf.segments.iter().filter(|segment| segment.kind == PT_LOAD) {
        let there = file
            .length()
            .saturating_sub(segment.offset)
            .min(segment.file_bytes);
        cut = cut.saturating_add(segment.file_bytes - there);
        // A physical address that wraps belongs to a mapping without one (/proc/vmcore's kernel text has -1
        // there).
        if there > 0 && segment.physical.checked_add(there).is_some() {
            parts.extents.push(Extent {
                start: segment.physical,
                bytes: there,
                offset: segment.offset,
            });
        }
        parts.zeros.extend(left_out(segment));
    }
    parts.missing = cut;
    if cut > 0 {
        parts.remarks.push(format!(
            "the file is cut short: {cut} bytes of guest memory that its headers promise are missing"
        ));
    }
    let mut gathered = Gathered::default();
    for segment in elf.segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let bytes = segment.file_bytes.min(MAX_NOTE_BYTES);
        let bytes = match file.bytes("notes", segment.offset, bytes) {
            Ok(bytes) => bytes,
            Err(error) => {
                parts.remarks.push(error.to_string());
                continue;
            }
        };
        gathered.take(&bytes, elf.long_mode());
    }
    gathered.into_parts(&mut parts)?;
    Ok(parts)
}

pub(super) fn impossible(what: &'static str, value: u64) -> DumpError {
    DumpError::Impossible { what, value }
}

/// Little-endian members of a header; out of bounds reads as 0, and sizes are checked before.
pub(super) struct Fields<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) wide: bool,
}

impl Fields<'_> {
    pub(super) fn number(&self, at: usize, width: usize) -> u64 {
        self.bytes
            .get(at..at.saturating_add(width))
            .unwrap_or_default()
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn u16(&self, at: usize) -> u16 {
        u16::try_from(self.number(at, 2)).unwrap_or(0)
    }

    fn u32(&self, at: usize) -> u32 {
        u32::try_from(self.number(at, 4)).unwrap_or(0)
    }

    fn word(&self, at: usize) -> u64 {
        self.number(at, if self.wide { 8 } else { 4 })
    }
}
