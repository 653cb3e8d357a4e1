//! VMCOREINFO: what a Linux kernel says of itself, for crash tools.
//!
//! At boot the kernel fills an ELF note with its release, sizes, offsets and a few symbols
//! (`kernel/vmcore_info.c`, before 6.9 `kernel/crash_core.c`; `arch/x86/kernel/vmcore_info_64.c`). The note
//! begins at a page boundary and may lie anywhere in memory.
//!
//! Any process in the guest can write a page that looks just like it. What this parser returns is therefore
//! an *allegation*: `identify` holds it against what user memory cannot forge before anything is done with
//! it.

use std::collections::BTreeMap;
use std::fmt;

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, ReadError};
use thiserror::Error;

use crate::os::view::unreadable;

/// `VMCOREINFO_NOTE_NAME` with its terminator (`include/linux/vmcore_info.h`).
const NAME: &[u8] = b"VMCOREINFO\0";
/// Bytes of the note's header and of its name, padded to four bytes.
const TEXT_OFFSET: usize = 24;
/// `VMCOREINFO_BYTES`: the kernel reserves one page for the text.
const MAX_TEXT: usize = PAGE_SIZE;
/// Most lines accepted. A 6.12 kernel has about 120.
const MAX_LINES: usize = 1024;

/// Kind of a `KIND(name)=value` line (`include/linux/vmcore_info.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Address of a symbol; of an array, its first element. Hexadecimal.
    Symbol,
    /// Size of a type, in bytes.
    Size,
    /// Offset of a member, in bytes.
    Offset,
    /// Number of elements of an array.
    Length,
    /// Any other number, possibly negative.
    Number,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Symbol => "SYMBOL",
            Self::Size => "SIZE",
            Self::Offset => "OFFSET",
            Self::Length => "LENGTH",
            Self::Number => "NUMBER",
        })
    }
}

/// Why bytes are not a VMCOREINFO note, or lack a line that is needed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VmcoreInfoError {
    /// The note's header does not have the size, type and name of VMCOREINFO.
    #[error("no VMCOREINFO note begins here")]
    NotANote,
    /// The note claims more text than the kernel reserves, or none.
    #[error("a VMCOREINFO note claims {0} bytes of text (1 to {MAX_TEXT} are possible)")]
    TextSize(u32),
    /// A page of the note could not be read.
    #[error("a page of the VMCOREINFO note could not be read: {}", unreadable(*.0))]
    Unreadable(ReadError),
    /// A line is not printable ASCII, has no `=`, or a value that is no number.
    #[error("line {line} of a VMCOREINFO note is malformed: {text:?}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The line, shortened and with odd bytes escaped.
        text: String,
    },
    /// The same key occurs twice with different values.
    #[error("a VMCOREINFO note gives two values for {0}")]
    Contradiction(String),
    /// More than `MAX_LINES` lines.
    #[error("a VMCOREINFO note has more than {MAX_LINES} lines")]
    TooManyLines,
    /// A line that is needed is not there.
    #[error("the kernel's VMCOREINFO has no {0}")]
    Missing(String),
}

/// The parsed text of one note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmcoreInfo {
    numbers: BTreeMap<(Kind, String), i128>,
    words: BTreeMap<String, String>,
}

impl VmcoreInfo {
    /// Whether the first bytes of a page can begin a note. Cheap: made for scanning all of a guest's memory.
    pub fn may_begin(bytes: &[u8]) -> bool {
        bytes.len() >= TEXT_OFFSET
            && bytes[..4] == 11_u32.to_le_bytes()
            && bytes[12..12 + NAME.len()] == *NAME
    }

    /// Reads and parses the note that begins at `at`. Its text may run into the next frame.
    ///
    /// # Errors
    /// [`VmcoreInfoError`].
    pub fn read<M: GuestMemory + ?Sized>(memory: &mut M, at: GuestPhys) -> Result<Self, VmcoreInfoError> {
        let mut header = [0; TEXT_OFFSET];
        read_across(memory, at, &mut header)?;
        let mut text = vec![0; Self::text_length(&header)?];
        let begin = at
            .checked_add(TEXT_OFFSET as u64)
            .ok_or(VmcoreInfoError::Unreadable(ReadError::CrossesFrame(at)))?;
        read_across(memory, begin, &mut text)?;
        Self::parse_text(&text)
    }

    fn text_length(header: &[u8]) -> Result<usize, VmcoreInfoError> {
        if !Self::may_begin(header) || header[8..12] != [0; 4] {
            return Err(VmcoreInfoError::NotANote);
        }
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        match usize::try_from(length) {
            Ok(bytes) if (1..=MAX_TEXT).contains(&bytes) => Ok(bytes),
            _ => Err(VmcoreInfoError::TextSize(length)),
        }
    }

    /// Parses the text of a note.
    ///
    /// # Errors
    /// [`VmcoreInfoError`].
    pub fn parse_text(text: &[u8]) -> Result<Self, VmcoreInfoError> {
        let mut info = Self {
            numbers: BTreeMap::new(),
            words: BTreeMap::new(),
        };
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if index >= MAX_LINES {
                return Err(VmcoreInfoError::TooManyLines);
            }
            if line.is_empty() {
                continue;
            }
            let malformed = || VmcoreInfoError::Line {
                line: index + 1,
                text: line
                    .iter()
                    .take(60)
                    .flat_map(|&byte| std::ascii::escape_default(byte))
                    .map(char::from)
                    .collect(),
            };
            let printable = line.iter().all(|&byte| (0x20..0x7f).contains(&byte));
            let line = std::str::from_utf8(line)
                .ok()
                .filter(|_| printable)
                .ok_or_else(malformed)?;
            let (key, value) = line.split_once('=').ok_or_else(malformed)?;
            info.insert(key, value, malformed)?;
        }
        Ok(info)
    }

    fn insert(
        &mut self,
        key: &str,
        value: &str,
        malformed: impl Fn() -> VmcoreInfoError,
    ) -> Result<(), VmcoreInfoError> {
        let named = key
            .split_once('(')
            .and_then(|(kind, rest)| Some((kind, rest.strip_suffix(')')?)));
        let kind = match named {
            Some(("SYMBOL", _)) => Some(Kind::Symbol),
            Some(("SIZE", _)) => Some(Kind::Size),
            Some(("OFFSET", _)) => Some(Kind::Offset),
            Some(("LENGTH", _)) => Some(Kind::Length),
            Some(("NUMBER", _)) => Some(Kind::Number),
            // CONFIG(...) lines and whatever comes later: kept as words.
            _ => None,
        };
        let (Some(kind), Some((_, name))) = (kind, named) else {
            return match self.words.insert(key.to_owned(), value.to_owned()) {
                Some(earlier) if earlier != value => Err(VmcoreInfoError::Contradiction(key.to_owned())),
                _ => Ok(()),
            };
        };
        let number = parse_number(kind, value).ok_or_else(malformed)?;
        match self.numbers.insert((kind, name.to_owned()), number) {
            Some(earlier) if earlier != number => Err(VmcoreInfoError::Contradiction(key.to_owned())),
            _ => Ok(()),
        }
    }

    /// What a note would say of a kernel that has none: its release and `symbols`. See
    /// [`by_system_map`](super::by_system_map).
    pub(super) fn without_note<'s>(
        release: &str,
        symbols: impl IntoIterator<Item = (&'s str, GuestVirt)>,
    ) -> Self {
        let mut info = Self {
            numbers: BTreeMap::new(),
            words: BTreeMap::from([("OSRELEASE".to_owned(), release.to_owned())]),
        };
        for (name, at) in symbols {
            info.state(Kind::Symbol, name, at.get());
        }
        info
    }

    /// Adds what a note would say, or replaces it.
    pub(super) fn state(&mut self, kind: Kind, name: &str, value: u64) {
        self.numbers.insert((kind, name.to_owned()), value.into());
    }

    /// `OSRELEASE`: the release as `uname -r` gives it.
    ///
    /// # Errors
    /// [`VmcoreInfoError::Missing`].
    pub fn release(&self) -> Result<&str, VmcoreInfoError> {
        self.word("OSRELEASE")
            .ok_or_else(|| VmcoreInfoError::Missing("OSRELEASE".into()))
    }

    /// The processor that the kernel is for, where a line tells that it is none of x86
    /// (`arch/*/kernel/vmcore_info.c`, `crash_core.c`, `machine_kexec.c`).
    pub fn other_processor(&self) -> Option<&'static str> {
        let has = |kind, name: &str| self.find(kind, name).is_some();
        let number = |name| has(Kind::Number, name);
        if number("kimage_voffset") {
            Some("arm64")
        } else if number("va_kernel_pa_offset") || number("satp") || number("phys_ram_base") {
            Some("riscv")
        } else if has(Kind::Symbol, "mmu_psize_defs") || has(Kind::Symbol, "vmemmap_list") {
            Some("ppc64")
        } else if self.word("CONFIG_ARM_LPAE").is_some() || self.word("CONFIG(ARM_LPAE)").is_some() {
            Some("arm")
        } else {
            None
        }
    }

    /// A line without a kind, such as `BUILD-ID` or `KERNELOFFSET`.
    pub fn word(&self, key: &str) -> Option<&str> {
        self.words.get(key).map(String::as_str)
    }

    /// The value of `KIND(name)`, if there is such a line.
    pub fn find(&self, kind: Kind, name: &str) -> Option<i128> {
        self.numbers.get(&(kind, name.to_owned())).copied()
    }

    /// The address `SYMBOL(name)`, if there is such a line.
    pub fn find_symbol(&self, name: &str) -> Option<GuestVirt> {
        self.find(Kind::Symbol, name)
            .and_then(|value| u64::try_from(value).ok())
            .map(GuestVirt::new)
    }

    /// The address `SYMBOL(name)`.
    ///
    /// # Errors
    /// [`VmcoreInfoError::Missing`].
    pub fn symbol(&self, name: &str) -> Result<GuestVirt, VmcoreInfoError> {
        self.find_symbol(name).ok_or_else(|| missing(Kind::Symbol, name))
    }

    /// A value that cannot be negative: a size, an offset or a length.
    ///
    /// # Errors
    /// [`VmcoreInfoError::Missing`], also for a negative value.
    pub fn unsigned(&self, kind: Kind, name: &str) -> Result<u64, VmcoreInfoError> {
        self.find(kind, name)
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| missing(kind, name))
    }

    /// `NUMBER(name)` as 64 bits in two's complement, the way the kernel adds it to addresses.
    ///
    /// # Errors
    /// [`VmcoreInfoError::Missing`], also for a value that 64 bits cannot hold.
    #[allow(clippy::cast_sign_loss)] // two's complement is what is wanted
    pub fn wrapping_number(&self, name: &str) -> Result<u64, VmcoreInfoError> {
        let value = self
            .find(Kind::Number, name)
            .ok_or_else(|| missing(Kind::Number, name))?;
        i64::try_from(value)
            .map(|signed| signed as u64)
            .or_else(|_| u64::try_from(value))
            .map_err(|_| missing(Kind::Number, name))
    }

    /// Symbols and their addresses, in the order of their names.
    pub fn symbols(&self) -> impl Iterator<Item = (&str, GuestVirt)> {
        self.numbers
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::Symbol)
            .filter_map(|((_, name), value)| {
                Some((name.as_str(), GuestVirt::new(u64::try_from(*value).ok()?)))
            })
    }
}

/// Reads physical memory across frames.
fn read_across<M: GuestMemory + ?Sized>(
    memory: &mut M,
    at: GuestPhys,
    into: &mut [u8],
) -> Result<(), VmcoreInfoError> {
    let mut done = 0;
    while done < into.len() {
        let here = at
            .checked_add(done as u64)
            .ok_or(VmcoreInfoError::Unreadable(ReadError::CrossesFrame(at)))?;
        let length = (into.len() - done).min(PAGE_SIZE - here.offset());
        memory
            .read(here, &mut into[done..done + length])
            .map_err(VmcoreInfoError::Unreadable)?;
        done += length;
    }
    Ok(())
}

fn missing(kind: Kind, name: &str) -> VmcoreInfoError {
    VmcoreInfoError::Missing(format!("{kind}({name})"))
}

/// Symbols are hexadecimal without a prefix, the rest decimal; newer kernels write some numbers as `0x...`.
fn parse_number(kind: Kind, text: &str) -> Option<i128> {
    let number = if kind == Kind::Symbol {
        i128::from(u64::from_str_radix(text, 16).ok()?)
    } else if let Some(digits) = text.strip_prefix("0x") {
        i128::from(u64::from_str_radix(digits, 16).ok()?)
    } else {
        text.parse().ok()?
    };
    (i128::from(i64::MIN)..=i128::from(u64::MAX))
        .contains(&number)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] =
        b"OSRELEASE=6.12.1-test\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffff81000000\nSIZE(page)=64\n\
        OFFSET(page.private)=40\nLENGTH(node_data)=1024\nNUMBER(phys_base)=-60817408\n\
        NUMBER(VMALLOC_START)=0xffffcfe680000000\nKERNELOFFSET=7800000\n";

    #[test]
    fn each_kind_of_line_is_read_in_its_own_base() {
        let info = VmcoreInfo::parse_text(TEXT).unwrap();
        assert_eq!(info.release().unwrap(), "6.12.1-test");
        assert_eq!(
            info.symbol("_stext").unwrap(),
            GuestVirt::new(0xffff_ffff_8100_0000)
        );
        assert_eq!(info.unsigned(Kind::Size, "page").unwrap(), 64);
        assert_eq!(info.unsigned(Kind::Length, "node_data").unwrap(), 1024);
        assert_eq!(
            info.wrapping_number("phys_base").unwrap(),
            0_u64.wrapping_sub(60_817_408)
        );
        assert_eq!(
            info.wrapping_number("VMALLOC_START").unwrap(),
            0xffff_cfe6_8000_0000
        );
        assert_eq!(info.word("KERNELOFFSET"), Some("7800000"));
        assert_eq!(
            info.symbol("page"),
            Err(VmcoreInfoError::Missing("SYMBOL(page)".into()))
        );
    }

    #[test]
    fn a_malformed_line_is_named() {
        for (bad, line) in [
            (&b"A=1\nSIZE(page)=sixty\n"[..], 2),
            (b"A=1\nB=2\nno sign\n", 3),
            (b"A=\xff\n", 1),
        ] {
            match VmcoreInfo::parse_text(bad) {
                Err(VmcoreInfoError::Line { line: found, .. }) => assert_eq!(found, line),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn two_values_for_one_key_are_refused() {
        assert_eq!(
            VmcoreInfo::parse_text(b"SIZE(page)=64\nSIZE(page)=56\n"),
            Err(VmcoreInfoError::Contradiction("SIZE(page)".into()))
        );
        assert!(VmcoreInfo::parse_text(b"SIZE(page)=64\nSIZE(page)=64\n").is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let _ = VmcoreInfo::parse_text(&text);
        }

        #[test]
        fn damaged_text_parses_or_is_refused(at in 0..TEXT.len(), byte in any::<u8>()) {
            let mut text = TEXT.to_vec();
            text[at] = byte;
            let _ = VmcoreInfo::parse_text(&text);
        }
    }
}
