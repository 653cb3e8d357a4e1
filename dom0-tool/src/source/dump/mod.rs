//! Guest memory in a file: raw, an ELF core (QEMU's `dump-guest-memory`, `/proc/vmcore`), a Xen core
//! (`xl dump-core`), a kdump-compressed dump (flattened, too), a dump of LiME's or AVML's, or a Windows crash
//! dump.
//!
//! The file is read in blocks, not as a whole: what a command touches is what it costs. Nothing in it is
//! trusted: a table that runs past the file's end is an error, a segment that does is cut there and said to
//! be, and each loop is bounded by the size of the file.
//!
//! [`Dump`] is [`GuestMemory`] and [`GuestSource`]; [`Dump::cpus`] holds what the file says of the virtual
//! CPUs, which [`Dump::add_registers`] and [`Dump::override_registers`] complete.

mod beginning;
mod content;
mod crash;
mod elf;
mod extents;
mod file;
mod flat;
mod holes;
mod kdump;
mod lime;
mod names;
mod notes;
mod packed;
mod registers;
mod xen;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lacuna_core::{Gfn, GuestMemory, GuestPhys, PAGE_SIZE, ReadError};
use thiserror::Error;

pub use extents::Extent;
pub use registers::{MAX_CPUS, parse_registers};

use crate::failure::Clues;
use crate::source::{Cpu, GuestSource};
use content::Content;
use extents::Extents;
use file::ReadFile;
use holes::Holes;
use packed::{Packed, Pieces};

/// How the file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte N of the file is guest-physical byte N.
    Raw,
    /// ELF core: `PT_LOAD` segments by physical address.
    Elf,
    /// Xen core: pages in a section, their numbers in another.
    Xen,
    /// kdump-compressed: pages, each packed by itself.
    Kdump,
    /// LiME's: ranges of memory, each behind a header.
    Lime,
    /// AVML's: the same, each packed.
    Avml,
    /// Windows crash dump: all of memory, or a part of it.
    WindowsCrash,
}

impl Format {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Elf => "elf",
            Self::Xen => "xen",
            Self::Kdump => "kdump",
            Self::Lime => "lime",
            Self::Avml => "avml",
            Self::WindowsCrash => "windows",
        }
    }

    /// In words, for sentences.
    const fn title(self) -> &'static str {
        match self {
            Self::Raw => "raw memory",
            Self::Elf => "an ELF core",
            Self::Xen => "a Xen core",
            Self::Kdump => "a kdump-compressed dump",
            Self::Lime => "a dump of LiME's",
            Self::Avml => "a dump of AVML's",
            Self::WindowsCrash => "a Windows crash dump",
        }
    }
}

/// Why a dump cannot be used.
#[derive(Debug, Error)]
pub enum DumpError {
    /// A file could not be opened or read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is a folder, a pipe or a device.
    #[error("{} is no regular file", file.display())]
    NotAFile {
        /// The file.
        file: PathBuf,
    },
    /// The registers are not what `docs/profile.md` describes.
    #[error("{} does not hold virtual CPU registers: {why}", file.display())]
    Registers {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The file is of a kind that is known and cannot be read.
    #[error("the file is {what}, which cannot be read as guest memory")]
    OtherFormat {
        /// What it is.
        what: &'static str,
        /// What makes a usable dump of it.
        remedy: &'static str,
    },
    /// It is a Windows crash dump of a kind that has no memory in a form that is known.
    #[error("the file is a Windows crash dump of type {kind:#x}, {what}")]
    CrashType {
        /// The number.
        kind: u64,
        /// What that is.
        what: &'static str,
    },
    /// It is not of the format that was named.
    #[error("the file does not begin as {} does", wanted.title())]
    NotThatFormat {
        /// Which was named.
        wanted: Format,
    },
    /// A part of the file lies past its end.
    #[error(
        "the file is cut short or damaged: its {what} would end at byte {needed:#x}, the file at {length:#x}"
    )]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Where it would end.
        needed: u64,
        /// Bytes in the file.
        length: u64,
    },
    /// A number in a header is impossible.
    #[error("the file is damaged: its {what} is {value:#x}, which is not possible")]
    Impossible {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The end of guest memory is not in the file.
    #[error("the dump is cut short: at least {bytes} bytes of the guest's memory are missing at its end")]
    CutShort {
        /// How many.
        bytes: u64,
    },
    /// The file became shorter while it was read.
    #[error("{} was cut short while it was read: it had {length} bytes when it was opened", file.display())]
    CutWhileRead {
        /// The file.
        file: PathBuf,
        /// Bytes in it before.
        length: u64,
    },
    /// The file is of a machine with another processor.
    #[error("a dump of {machine}: only i386 and amd64 are read")]
    OtherMachine {
        /// What machine.
        machine: String,
    },
    /// The holes that were named cannot be.
    #[error("--hole does not fit: {why}")]
    Holes {
        /// Why.
        why: String,
    },
    /// No page of guest memory is in the file.
    #[error("the file holds no guest memory")]
    Empty,
}

/// How a file is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// In this format, however it begins.
    pub format: Option<Format>,
    /// Registers are given beside it, as one does for raw memory. That may begin as anything: the first page
    /// of a small virtual machine holds the header of its kernel.
    pub has_registers: bool,
}

/// An open dump.
#[derive(Debug)]
pub struct Dump {
    content: Content,
    format: Format,
    extents: Extents,
    /// Memory that has no byte in the file and reads as zero: all that it overlaps with `extents` is theirs.
    zeros: Extents,
    end: Gfn,
    /// What the file says of each virtual CPU, in its order.
    pub cpus: Vec<Cpu>,
    /// Text of a VMCOREINFO note in the file's own headers: as the dumper was told, so an allegation like any
    /// other.
    pub vmcoreinfo: Option<Vec<u8>>,
    /// What is odd about the file, for people.
    pub remarks: Vec<String>,
    /// Bytes of guest memory that the headers promise and the file does not have.
    missing: u64,
    /// What is known of holes that a raw file leaves out.
    holes: Holes,
}

/// What the reader of one format finds.
#[derive(Debug, Default)]
struct Parts {
    extents: Vec<Extent>,
    zeros: Vec<Extent>,
    cpus: Vec<Cpu>,
    vmcoreinfo: Option<Vec<u8>>,
    remarks: Vec<String>,
    missing: u64,
    /// How memory is packed, if it is; extents then are of the unpacked pieces in a row.
    pieces: Option<Pieces>,
}

/// How far apart a guest's memory is taken to lie: within [`FAR`] bytes and [`SPREAD`] times the file's own.
/// A header that says otherwise is damaged, and believing it would cost a bitmap of petabytes.
const SPREAD: u64 = 1024;
const FAR: u64 = 64 << 30;

impl Dump {
    /// Opens the dump at `path`, of whichever format it is.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn open(path: &Path) -> Result<Self, DumpError> {
        Self::open_as(path, Reading::default())
    }

    /// Opens the dump at `path`.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn open_as(path: &Path, reading: Reading) -> Result<Self, DumpError> {
        let file = ReadFile::open(path)?;
        let (format, parts) = beginning::parts(&file, reading)?;
        let mut parts = parts;
        let farthest = file.length().saturating_mul(SPREAD).saturating_add(FAR);
        let all = parts.extents.len();
        parts.extents.retain(|extent| extent.start < farthest);
        if parts.extents.len() < all {
            parts.remarks.push(format!(
                "{} segment(s) beyond guest-physical {farthest:#x} are left out: damaged headers",
                all - parts.extents.len()
            ));
        }
        let extents = Extents::new(parts.extents);
        let zeros = Extents::new(within(parts.zeros, farthest)).without(&extents);
        // One past the last frame that is there in full or in part.
        let end = Gfn::new(extents.end().max(zeros.end()).div_ceil(PAGE_SIZE as u64));
        if end.get() == 0 {
            return Err(DumpError::Empty);
        }
        let content = match parts.pieces {
            Some(pieces) => Content::Packed(Packed::new(file, pieces)),
            None => Content::Plain(file),
        };
        Ok(Self {
            content,
            format,
            extents,
            zeros,
            end,
            cpus: parts.cpus,
            vmcoreinfo: parts.vmcoreinfo,
            remarks: parts.remarks,
            missing: parts.missing,
            holes: Holes::default(),
        })
    }

    /// Bytes of guest memory that the file's own headers promise and it does not have.
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    /// How the file is laid out.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Whether the file ends before guest memory does: by its own headers, or, where frames of the file are
    /// frames of memory, by the guest's word for its last one. Of a core of Xen's only the headers tell:
    /// frames that a guest has ballooned away are not in it.
    ///
    /// # Errors
    /// [`DumpError::CutShort`].
    pub fn check_whole(&mut self, last_frame: Option<u64>) -> Result<(), DumpError> {
        let beyond = match (self.format, last_frame) {
            (Format::Raw | Format::Elf | Format::Lime | Format::Avml, Some(last)) => last
                .saturating_sub(self.end.get())
                .saturating_mul(PAGE_SIZE as u64),
            _ => 0,
        };
        self.holes.beyond = Some(beyond).filter(|beyond| *beyond > 0);
        match self.missing.max(beyond) {
            0 => Ok(()),
            bytes => Err(DumpError::CutShort { bytes }),
        }
    }

    /// Tells what has gone wrong with the file since it was opened. What was read as absent because of that
    /// proves nothing, so this is asked before anything is made of what was read.
    ///
    /// # Errors
    /// [`DumpError::CutWhileRead`], [`DumpError::Io`].
    pub fn check_unharmed(&self) -> Result<(), DumpError> {
        self.content.check_unharmed()
    }

    /// Where guest memory is, lowest first, without overlap.
    pub fn extents(&self) -> &[Extent] {
        self.extents.as_slice()
    }

    /// Bytes of guest memory that the file tells of: those in it, and those that it says are zero.
    pub fn bytes(&self) -> u64 {
        let all = self.extents.as_slice().iter().chain(self.zeros.as_slice());
        all.map(|extent| extent.bytes).sum()
    }

    /// Copies what is in the file from guest-physical byte `at` on, and zeros where the file says that there
    /// are none.
    fn piece(&mut self, at: u64, into: &mut [u8]) -> Option<usize> {
        let (offset, room) = match self.extents.find(at) {
            Some((offset, room)) => (Some(offset), room),
            None => (None, self.zeros.find(at)?.1),
        };
        let length = usize::try_from(room).unwrap_or(usize::MAX).min(into.len());
        if let Some(offset) = offset {
            return self.content.read(offset, &mut into[..length]).then_some(length);
        }
        into[..length].fill(0);
        Some(length)
    }

    /// Takes the virtual CPUs from a registers file in place of the dump's own: JSON, or the text of QEMU's
    /// `info registers`.
    ///
    /// # Errors
    /// [`DumpError::Io`], [`DumpError::Registers`].
    pub fn add_registers(&mut self, path: &Path) -> Result<(), DumpError> {
        let cpus = registers::read_registers(path)?;
        if !self.cpus.is_empty() {
            self.remarks.push(format!(
                "the registers of {} virtual CPU(s) in the dump give way to those of {}",
                self.cpus.len(),
                path.display()
            ));
        }
        self.cpus = cpus;
        Ok(())
    }

    /// Sets single registers of the first virtual CPU, which is made if there is none.
    pub fn override_registers(&mut self, cr3: Option<u64>, idt_base: Option<u64>, lstar: Option<u64>) {
        if cr3.is_none() && idt_base.is_none() && lstar.is_none() {
            return;
        }
        if self.cpus.is_empty() {
            self.cpus.push(Cpu::default());
        }
        let cpu = &mut self.cpus[0];
        cpu.cr3 = cr3.or(cpu.cr3);
        cpu.idt_base = idt_base.or(cpu.idt_base);
        cpu.lstar = lstar.or(cpu.lstar);
    }
}

/// `extents` below `farthest`: what reaches beyond it is damaged.
fn within(extents: Vec<Extent>, farthest: u64) -> Vec<Extent> {
    let mut kept = extents;
    kept.retain_mut(|extent| {
        extent.bytes = extent.bytes.min(farthest.saturating_sub(extent.start));
        extent.bytes > 0
    });
    kept
}

impl GuestMemory for Dump {
    #[inline]
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        if at.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        let absent = ReadError::Absent(at.gfn());
        let mut done = 0;
        // Once, but where two extents meet inside a frame.
        while done < into.len() {
            let here = at.get() + done as u64;
            done += self.piece(here, &mut into[done..]).ok_or(absent)?;
        }
        Ok(())
    }

    /// What the file has no byte of proves nothing where a page's own bytes must be zero: a filter leaves out
    /// pages that are not, too (`makedumpfile -d 16`).
    fn is_zero(&mut self, gfn: Gfn) -> Result<bool, ReadError> {
        let absent = ReadError::Absent(gfn);
        let base = gfn.base().ok_or(absent)?;
        if self
            .zeros
            .next(base.get())
            .is_some_and(|next| next < base.get().saturating_add(PAGE_SIZE as u64))
        {
            return Err(absent);
        }
        let mut page = [0; PAGE_SIZE];
        self.read(base, &mut page)?;
        Ok(page.iter().all(|byte| *byte == 0))
    }
}

impl GuestSource for Dump {
    fn end(&self) -> Gfn {
        self.end
    }

    fn is_of_windows(&self) -> bool {
        self.format == Format::WindowsCrash
    }

    fn next_present(&mut self, from: Gfn) -> Option<Gfn> {
        let at = from.base()?.get();
        let next = self.extents.next(at)?;
        Some(Gfn::new(next / PAGE_SIZE as u64))
    }

    fn lay_out_again(&mut self, clues: &Clues) -> Option<Range<u64>> {
        self.try_next_hole(clues)
    }
}

#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod tests;
