//! A kernel's executable: its headers, its debug record (RSDS or NB10) and the name it exports.
//!
//! The same code reads a file and an image that lies in a guest's memory: both are an [`ImageSource`], which
//! answers for addresses relative to the image's base. Everything read is an allegation; each count and
//! length has a bound.

use object::LittleEndian as LE;
use object::pe;
use object::pod::{Pod, from_bytes};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::symbol_key::{Guid, NameError, PdbName, Signature, SymbolKey};

/// Most bytes between the start of the image and its PE header. Microsoft's linker leaves some 200 for the
/// DOS stub.
const MAX_HEADER_OFFSET: u32 = 0x1000;
/// Most sections. Windows' loader takes 96 (`IMAGE_FILE_HEADER`, PE format); kernels have 20 to 35.
const MAX_SECTIONS: u16 = 96;
/// Most entries of the debug directory looked at; kernels have 1 to 5.
const MAX_DEBUG_ENTRIES: u32 = 64;
/// Longest path in a debug record, with its terminating zero: Windows' `MAX_PATH`.
const MAX_RECORD_PATH: usize = 260;
/// Longest exported name looked at.
const MAX_EXPORT_NAME: usize = 64;
/// Largest image: kernels have 2 to 20 MiB.
const MAX_IMAGE: u32 = 1 << 30;
/// Places in the list of directories (`IMAGE_DIRECTORY_ENTRY_*`).
const EXPORTS: u32 = 0;
const DEBUG: u32 = 6;
const RSDS: [u8; 4] = *b"RSDS";
const NB10: [u8; 4] = *b"NB10";

/// Bytes of an image by their address relative to its base.
pub trait ImageSource {
    /// Fills `into` from `rva`, or says that not all of it is there (not in the file, paged out, not mapped).
    fn read(&mut self, rva: u32, into: &mut [u8]) -> bool;

    /// Fills `into` from an offset in the file, where there is a file.
    fn read_file(&mut self, _offset: u32, _into: &mut [u8]) -> bool {
        false
    }

    /// Tells the source where the sections lie, once they are known.
    fn set_sections(&mut self, _headers_end: u32, _sections: &[Section]) {}
}

/// A section of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, up to eight bytes.
    pub name: String,
    /// Where it begins, relative to the image's base.
    pub rva: u32,
    /// Its size in memory, in bytes.
    pub size: u32,
    /// Where it begins in the file.
    pub file_offset: u32,
    /// Its size in the file, in bytes.
    pub file_size: u32,
    /// `IMAGE_SCN_*`.
    pub characteristics: u32,
}

/// Why bytes are not a PE image.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeError {
    /// No `MZ` at the start.
    #[error("it does not begin with MZ")]
    NoMz,
    /// The header's offset leads out of bounds.
    #[error("the PE header is said to be at {0:#x}, past {MAX_HEADER_OFFSET:#x} or off its alignment of 4")]
    HeaderOffset(u32),
    /// No `PE\0\0` where it should be.
    #[error("no PE signature at {0:#x}")]
    NoSignature(u32),
    /// Something ends early.
    #[error("{what} at {at:#x} is cut short or not there")]
    Missing {
        /// What.
        what: &'static str,
        /// Where, relative to the image's base.
        at: u32,
    },
    /// Not a processor on which Xen has Windows guests.
    #[error("machine {0:#06x} is neither x86 (0x014c) nor x64 (0x8664)")]
    Machine(u16),
    /// The optional header is of another kind than the machine wants.
    #[error("optional header {magic:#06x} does not go with machine {machine:#06x}")]
    OptionalHeader {
        /// Its magic number.
        magic: u16,
        /// The machine.
        machine: u16,
    },
    /// A count or size is out of bounds.
    #[error("{what} is {value}; at most {most} is possible")]
    TooMany {
        /// What.
        what: &'static str,
        /// What the image says.
        value: u64,
        /// The bound.
        most: u64,
    },
}

/// Processor of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// 32-bit; whether with PAE, the executable's name tells (`ntkrnlpa`, `ntkrpamp`), and CR4 does.
    X86,
    /// 64-bit.
    X64,
}

impl Machine {
    /// As `--json` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86",
            Self::X64 => "x64",
        }
    }
}

/// Which PDB belongs to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugRecord {
    /// The path as the record has it.
    pub path: String,
    /// Its signature.
    pub signature: Signature,
    /// Its age.
    pub age: u32,
}

impl DebugRecord {
    /// The PDB's key in a symbol store.
    ///
    /// # Errors
    /// [`NameError`] when the record's path has no fit name in it.
    pub fn key(&self) -> Result<SymbolKey, NameError> {
        Ok(SymbolKey {
            name: PdbName::from_path(&self.path)?,
            signature: self.signature,
            age: self.age,
        })
    }
}

/// What the headers of an image say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeImage {
    /// Processor.
    pub machine: Machine,
    /// Where it wants to be loaded.
    pub image_base: u64,
    /// Its size in memory, in bytes.
    pub size: u32,
    /// The linker's time stamp, or a digest in its place.
    pub time_stamp: u32,
    /// Sections.
    pub sections: Vec<Section>,
    /// Whether its headers name debug records. Those of every Windows kernel do.
    pub names_records: bool,
    /// Its debug record, if it has one.
    pub debug: Option<DebugRecord>,
    /// What is wrong with its debug record, where it has one that cannot be read.
    pub damaged_record: Option<&'static str>,
    /// The name in its export directory, where that is to be had: it may be paged out.
    pub export_name: Option<String>,
}

impl PeImage {
    /// Reads the headers, the debug record and the exported name.
    ///
    /// # Errors
    /// [`PeError`] when the headers are not those of a PE image; a missing debug record or export is none.
    pub fn read(source: &mut impl ImageSource) -> Result<Self, PeError> {
        let dos: pe::ImageDosHeader = structure(source, 0).ok_or(PeError::NoMz)?;
        if dos.e_magic.get(LE) != pe::IMAGE_DOS_SIGNATURE {
            return Err(PeError::NoMz);
        }
        let at = dos.e_lfanew.get(LE);
        if at > MAX_HEADER_OFFSET || !at.is_multiple_of(4) {
            return Err(PeError::HeaderOffset(at));
        }
        let signature: object::U32Bytes<LE> = structure(source, at).ok_or(PeError::NoSignature(at))?;
        if signature.get(LE) != pe::IMAGE_NT_SIGNATURE {
            return Err(PeError::NoSignature(at));
        }
        let missing = |what, at| PeError::Missing { what, at };
        let file: pe::ImageFileHeader =
            structure(source, at + 4).ok_or(missing("the file header", at + 4))?;
        let optional_at = at + 24;
        let magic: object::U16Bytes<LE> =
            structure(source, optional_at).ok_or(missing("the optional header", optional_at))?;
        let (machine, magic) = (file.machine.get(LE), magic.get(LE));
        let (kind, image_base, size, directories, directories_at) = match machine {
            pe::IMAGE_FILE_MACHINE_I386 if magic == pe::IMAGE_NT_OPTIONAL_HDR32_MAGIC => {
                let header: pe::ImageOptionalHeader32 =
                    structure(source, optional_at).ok_or(missing("the optional header", optional_at))?;
                let base = u64::from(header.image_base.get(LE));
                let count = header.number_of_rva_and_sizes.get(LE);
                (
                    Machine::X86,
                    base,
                    header.size_of_image.get(LE),
                    count,
                    optional_at + 96,
                )
            }
            pe::IMAGE_FILE_MACHINE_AMD64 if magic == pe::IMAGE_NT_OPTIONAL_HDR64_MAGIC => {
                let header: pe::ImageOptionalHeader64 =
                    structure(source, optional_at).ok_or(missing("the optional header", optional_at))?;
                let base = header.image_base.get(LE);
                let count = header.number_of_rva_and_sizes.get(LE);
                (
                    Machine::X64,
                    base,
                    header.size_of_image.get(LE),
                    count,
                    optional_at + 112,
                )
            }
            pe::IMAGE_FILE_MACHINE_I386 | pe::IMAGE_FILE_MACHINE_AMD64 => {
                return Err(PeError::OptionalHeader { magic, machine });
            }
            _ => return Err(PeError::Machine(machine)),
        };
        check_size(size)?;
        let sections_at = optional_at + u32::from(file.size_of_optional_header.get(LE));
        let sections = read_sections(source, sections_at, file.number_of_sections.get(LE))?;
        source.set_sections(sections.first().map_or(size, |first| first.rva), &sections);

        let mut directory = |index: u32| -> Option<pe::ImageDataDirectory> {
            let is_there = index < directories;
            is_there.then(|| structure(source, directories_at + 8 * index))?
        };
        let (exports, debug) = (directory(EXPORTS), directory(DEBUG));
        let names_records =
            debug.is_some_and(|entry| entry.virtual_address.get(LE) != 0 && entry.size.get(LE) != 0);
        let (debug, damaged_record) = debug.map_or((None, None), |entry| debug_record(source, entry, size));
        Ok(Self {
            machine: kind,
            image_base,
            size,
            time_stamp: file.time_date_stamp.get(LE),
            sections,
            names_records,
            debug,
            damaged_record,
            export_name: exports.and_then(|entry| export_name(source, entry, size)),
        })
    }
}

fn check_size(size: u32) -> Result<(), PeError> {
    if size == 0 || size > MAX_IMAGE {
        return Err(PeError::TooMany {
            what: "the size of the image",
            value: size.into(),
            most: MAX_IMAGE.into(),
        });
    }
    Ok(())
}

fn read_sections(source: &mut impl ImageSource, at: u32, count: u16) -> Result<Vec<Section>, PeError> {
    if count > MAX_SECTIONS {
        return Err(PeError::TooMany {
            what: "the number of sections",
            value: count.into(),
            most: MAX_SECTIONS.into(),
        });
    }
    (0..u32::from(count))
        .map(|index| {
            let at = at + 40 * index;
            let header: pe::ImageSectionHeader = structure(source, at).ok_or(PeError::Missing {
                what: "a section header",
                at,
            })?;
            let name = header.name.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                rva: header.virtual_address.get(LE),
                size: header.virtual_size.get(LE),
                file_offset: header.pointer_to_raw_data.get(LE),
                file_size: header.size_of_raw_data.get(LE),
                characteristics: header.characteristics.get(LE),
            })
        })
        .collect()
}

/// The first RSDS or NB10 record of the debug directory that is whole; where there is none, what is wrong
/// with the first.
fn debug_record(
    source: &mut impl ImageSource,
    directory: pe::ImageDataDirectory,
    size: u32,
) -> (Option<DebugRecord>, Option<&'static str>) {
    let at = directory.virtual_address.get(LE);
    // sizeof(IMAGE_DEBUG_DIRECTORY) is 28.
    let count = (directory.size.get(LE) / 28).min(MAX_DEBUG_ENTRIES);
    if at == 0 || at >= size {
        return (None, None);
    }
    let mut wrong = None;
    for index in 0..count {
        let entry = at.checked_add(28 * index).and_then(|at| structure(source, at));
        let Some(entry): Option<pe::ImageDebugDirectory> = entry else {
            continue;
        };
        if entry.typ.get(LE) != pe::IMAGE_DEBUG_TYPE_CODEVIEW {
            continue;
        }
        let length = (entry.size_of_data.get(LE) as usize).min(24 + MAX_RECORD_PATH);
        let mut record = vec![0; length];
        let rva = entry.address_of_raw_data.get(LE);
        // A record that is not part of the loaded image has no address, only a place in the file.
        let read = (rva != 0 && rva < size && source.read(rva, &mut record))
            || source.read_file(entry.pointer_to_raw_data.get(LE), &mut record);
        match parse_record(&record) {
            Ok(Some(record)) if read => return (Some(record), None),
            Err(why) if read => {
                wrong.get_or_insert(why);
            }
            _ => {}
        }
    }
    (None, wrong)
}

/// `CV_INFO_PDB70` and `CV_INFO_PDB20`, as `cvinfo.h` has no names for them but every debugger knows them.
///
/// # Errors
/// What is wrong with one of these two.
fn parse_record(record: &[u8]) -> Result<Option<DebugRecord>, &'static str> {
    let Some((signature, age, path)) = record_head(record) else {
        return Ok(None);
    };
    let end = path.iter().position(|byte| *byte == 0);
    let end = end.ok_or("the path in it is cut, or longer than 260 bytes")?;
    let path = std::str::from_utf8(&path[..end]).map_err(|_| "the path in it is not UTF-8")?;
    Ok(Some(DebugRecord {
        path: path.to_owned(),
        signature,
        age,
    }))
}

/// Signature, age, and what follows them.
fn record_head(record: &[u8]) -> Option<(Signature, u32, &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
    Some(match record.get(..4)?.try_into().ok()? {
        RSDS => {
            let guid = record.get(4..20)?.try_into().ok()?;
            (
                Signature::Guid(Guid::from_file(guid)),
                word(20)?,
                record.get(24..)?,
            )
        }
        // Signature, offset (always 0), time stamp, age, path.
        NB10 => (Signature::TimeStamp(word(8)?), word(12)?, record.get(16..)?),
        _ => return None,
    })
}

fn export_name(
    source: &mut impl ImageSource,
    directory: pe::ImageDataDirectory,
    size: u32,
) -> Option<String> {
    let at = directory.virtual_address.get(LE);
    if at == 0 || at >= size {
        return None;
    }
    let exports: pe::ImageExportDirectory = structure(source, at)?;
    let name_at = exports.name.get(LE);
    if name_at == 0 || name_at >= size {
        return None;
    }
    let mut name = Vec::new();
    for index in 0..MAX_EXPORT_NAME {
        let mut byte = [0];
        let at = name_at.checked_add(u32::try_from(index).ok()?)?;
        if !source.read(at, &mut byte) {
            return None;
        }
        if byte[0] == 0 {
            break;
        }
        // What is not printable is no name, but what the page holds by now.
        if !byte[0].is_ascii_graphic() {
            return None;
        }
        name.push(byte[0]);
    }
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

fn structure<T: Pod>(source: &mut impl ImageSource, rva: u32) -> Option<T> {
    let mut bytes = vec![0; size_of::<T>()];
    if !source.read(rva, &mut bytes) {
        return None;
    }
    from_bytes(&bytes).ok().map(|(value, _)| *value)
}

/// How an image lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLayout {
    /// As the linker wrote it: sections at their offsets.
    OnDisk,
    /// As a loader laid it out: byte N is N bytes above the base. Somebody saved it from memory.
    Mapped,
}

/// An image in a file.
#[derive(Debug)]
pub struct FileImage<'bytes> {
    bytes: &'bytes [u8],
    layout: FileLayout,
    headers_end: u32,
    sections: Vec<Section>,
}

impl<'bytes> FileImage<'bytes> {
    /// The image in `bytes`, laid out in `layout`.
    pub fn new(bytes: &'bytes [u8], layout: FileLayout) -> Self {
        Self {
            bytes,
            layout,
            headers_end: u32::MAX,
            sections: Vec::new(),
        }
    }

    fn offset_of(&self, rva: u32, length: usize) -> Option<u32> {
        if self.layout == FileLayout::Mapped || rva < self.headers_end {
            return Some(rva);
        }
        self.sections.iter().find_map(|section| {
            let within = rva.checked_sub(section.rva)?;
            let end = u64::from(within) + length as u64;
            (end <= u64::from(section.file_size)).then_some(section.file_offset.checked_add(within)?)
        })
    }
}

impl ImageSource for FileImage<'_> {
    fn read(&mut self, rva: u32, into: &mut [u8]) -> bool {
        match self.offset_of(rva, into.len()) {
            Some(offset) => self.read_file(offset, into),
            None => false,
        }
    }

    fn read_file(&mut self, offset: u32, into: &mut [u8]) -> bool {
        let start = offset as usize;
        let Some(end) = start.checked_add(into.len()) else {
            return false;
        };
        match self.bytes.get(start..end) {
            Some(bytes) => {
                into.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn set_sections(&mut self, headers_end: u32, sections: &[Section]) {
        self.headers_end = headers_end;
        self.sections = sections.to_vec();
    }
}

/// Reads the image in `bytes`: as the linker wrote it, or, when that shows no debug record, as a loader laid
/// it out.
///
/// # Errors
/// [`PeError`].
pub fn read_file(bytes: &[u8]) -> Result<(PeImage, FileLayout), PeError> {
    let on_disk = PeImage::read(&mut FileImage::new(bytes, FileLayout::OnDisk))?;
    if on_disk.debug.is_none() {
        let mapped = PeImage::read(&mut FileImage::new(bytes, FileLayout::Mapped));
        if let Ok(mapped) = mapped
            && mapped.debug.is_some()
        {
            return Ok((mapped, FileLayout::Mapped));
        }
    }
    Ok((on_disk, FileLayout::OnDisk))
}
