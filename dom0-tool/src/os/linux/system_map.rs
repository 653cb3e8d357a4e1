//! System.map: the addresses that the linker gave the kernel's symbols, as a file beside the kernel.
//!
//! It serves kernels that do not say where their own symbol table is (before 6.0), and is a second source for
//! those that do. Distributions differ: Debian's package installs a one-line stub and keeps the real file in
//! the debug package.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lacuna_core::GuestVirt;
use thiserror::Error;

use super::kallsyms::Symbols;
use super::vmcoreinfo::VmcoreInfo;

/// Largest file read, in bytes. A real one has 5 to 15 MiB.
const MAX_FILE: u64 = 64 << 20;
/// Fewest symbols of a real file: a kernel has tens of thousands.
const FEWEST: usize = 1000;
/// Symbols that VMCOREINFO gives the addresses of, to confirm the file by.
const WITNESSES: [&str; 3] = ["init_uts_ns", "init_top_pgt", "node_data"];

/// Why a file is of no use.
#[derive(Debug, Error)]
pub enum SystemMapError {
    /// It could not be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It holds next to nothing: a packaging stub.
    #[error("{} holds {symbols} symbols: it is a stub, not a kernel's System.map", file.display())]
    Stub {
        /// The file.
        file: PathBuf,
        /// Lines that are symbols.
        symbols: usize,
    },
    /// It lacks a symbol without which the kernel is not found.
    #[error("{} does not name {symbol}", file.display())]
    Lacks {
        /// The file.
        file: PathBuf,
        /// What it lacks.
        symbol: &'static str,
    },
    /// It gives a symbol more than one address, without which the kernel is not found. A linker gives one.
    #[error("{} gives {symbol} {addresses} addresses, {first:#x} and {second:#x} among them; take the file as the \
             kernel's build or its debug package has it", file.display())]
    Several {
        /// The file.
        file: PathBuf,
        /// The symbol.
        symbol: &'static str,
        /// How many lines give it.
        addresses: usize,
        /// The first address.
        first: u64,
        /// The second.
        second: u64,
    },
    /// It is another kernel's.
    #[error("{} puts {symbol} at {by_file:#x}, the running kernel's VMCOREINFO at {by_kernel:#x}", file.display())]
    OtherKernel {
        /// The file.
        file: PathBuf,
        /// The symbol.
        symbol: &'static str,
        /// Its address by the file, displaced as `_stext` is.
        by_file: u64,
        /// By the kernel.
        by_kernel: u64,
    },
}

/// The addresses of a file, as the linker gave them.
#[derive(Clone, Debug)]
pub struct SystemMap {
    file: PathBuf,
    linked: Vec<(String, u64)>,
}

impl SystemMap {
    /// Reads `wanted` and `_stext` from `file`.
    ///
    /// # Errors
    /// [`SystemMapError`].
    pub fn open(file: &Path, wanted: &[&[&str]]) -> Result<Self, SystemMapError> {
        let io_error = |cause| SystemMapError::Io {
            file: file.to_owned(),
            cause,
        };
        let size = fs::metadata(file).map_err(io_error)?.len();
        if size > MAX_FILE {
            return Err(io_error(io::Error::other(format!(
                "{size} bytes are too many for a System.map"
            ))));
        }
        let text = String::from_utf8_lossy(&fs::read(file).map_err(io_error)?).into_owned();
        let mut count = 0;
        let mut linked: Vec<(String, u64)> = Vec::new();
        for (name, address) in text.lines().filter_map(parse_line) {
            count += 1;
            if name == "_stext" || wanted.iter().any(|names| names.contains(&name)) {
                linked.push((name.to_owned(), address));
            }
        }
        if count < FEWEST {
            return Err(SystemMapError::Stub {
                file: file.to_owned(),
                symbols: count,
            });
        }
        let map = Self {
            file: file.to_owned(),
            linked,
        };
        map.linked("_stext").map(|_| map)
    }

    /// The address that the linker gave `symbol`.
    ///
    /// # Errors
    /// [`SystemMapError::Lacks`], and [`SystemMapError::Several`].
    pub fn linked(&self, symbol: &'static str) -> Result<u64, SystemMapError> {
        let mut given = self.given(symbol);
        let file = self.file.clone();
        match (given.next(), given.next()) {
            (None, _) => Err(SystemMapError::Lacks { file, symbol }),
            (Some(only), None) => Ok(only),
            (Some(first), Some(second)) => Err(SystemMapError::Several {
                file,
                symbol,
                addresses: self.given(symbol).count(),
                first,
                second,
            }),
        }
    }

    /// The same, if the file gives exactly one. Functions and variables of single files may share a name.
    pub fn find(&self, symbol: &str) -> Option<u64> {
        let mut given = self.given(symbol);
        given.next().filter(|_| given.next().is_none())
    }

    /// Whether the file has `symbol`, at one address or at several.
    pub fn names(&self, symbol: &str) -> bool {
        self.given(symbol).next().is_some()
    }

    fn given(&self, symbol: &str) -> impl Iterator<Item = u64> {
        self.linked
            .iter()
            .filter(move |(name, _)| name == symbol)
            .map(|(_, address)| *address)
    }

    /// The symbols of a kernel that runs `moved` bytes from where it was linked to.
    pub fn moved_by(&self, moved: u64) -> Symbols {
        Symbols::from_pairs(
            self.linked
                .iter()
                .map(|(name, address)| (name.clone(), GuestVirt::new(address.wrapping_add(moved)))),
        )
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// Reads `wanted` from `file`, moved by as much as KASLR has moved `_stext`, and confirms it against
/// VMCOREINFO.
///
/// # Errors
/// [`SystemMapError`].
pub fn read(file: &Path, info: &VmcoreInfo, wanted: &[&str]) -> Result<Symbols, SystemMapError> {
    let map = SystemMap::open(file, &[wanted, &WITNESSES])?;
    let running = info
        .find_symbol("_stext")
        .ok_or_else(|| SystemMapError::Lacks {
            file: file.to_owned(),
            symbol: "_stext",
        })?
        .get();
    let symbols = map.moved_by(running.wrapping_sub(map.linked("_stext")?));
    for symbol in WITNESSES {
        if let (Some(by_file), Some(by_kernel)) = (symbols.find(symbol), info.find_symbol(symbol))
            && by_file != by_kernel
        {
            return Err(SystemMapError::OtherKernel {
                file: file.to_owned(),
                symbol,
                by_file: by_file.get(),
                by_kernel: by_kernel.get(),
            });
        }
    }
    Ok(symbols)
}

/// `ffffffff81000000 T _stext`.
fn parse_line(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?;
    let name = words.next()?;
    (kind.len() == 1 && words.next().is_none()).then_some((name, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    fn file(lines: &[(&str, u64)], filler: u64) -> tempfile::NamedTempFile {
        let mut text = String::new();
        for (name, address) in lines {
            writeln!(text, "{address:016x} T {name}").unwrap();
        }
        for number in 0..filler {
            writeln!(text, "{:016x} t filler_{number}", 0xffff_ffff_8200_0000 + number).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    fn info() -> VmcoreInfo {
        VmcoreInfo::parse_text(b"SYMBOL(_stext)=ffffffff91000000\nSYMBOL(init_uts_ns)=ffffffff92000000\n")
            .unwrap()
    }

    #[test]
    fn symbols_move_with_the_kernel() {
        let lines = [
            ("_stext", 0xffff_ffff_8100_0000),
            ("init_uts_ns", 0xffff_ffff_8200_0000),
            ("init_task", 0xffff_ffff_8210_0000),
        ];
        let symbols = read(file(&lines, 2000).path(), &info(), &["init_task"]).unwrap();
        assert_eq!(
            symbols.find("init_task"),
            Some(GuestVirt::new(0xffff_ffff_9210_0000))
        );
        assert_eq!(symbols.find("filler_7"), None);
    }

    #[test]
    fn a_packaging_stub_and_another_kernels_file_are_refused() {
        let stub = read(file(&[("_stext", 0xffff_ffff_8100_0000)], 3).path(), &info(), &[]);
        assert!(matches!(stub, Err(SystemMapError::Stub { symbols: 4, .. })));
        let lines = [
            ("_stext", 0xffff_ffff_8100_0000),
            ("init_uts_ns", 0xffff_ffff_8200_1000),
        ];
        let other = read(file(&lines, 2000).path(), &info(), &[]);
        assert!(matches!(
            other,
            Err(SystemMapError::OtherKernel {
                symbol: "init_uts_ns",
                ..
            })
        ));
    }

    #[test]
    fn a_name_with_two_addresses_has_none() {
        let twice = |symbol| {
            let lines = [
                ("_stext", 0xffff_ffff_8100_0000),
                ("init_task", 0xffff_ffff_8210_0000),
                (symbol, 0x8100_0000),
            ];
            file(&lines, 2000)
        };
        // libFuzzer found a second `_stext`: the first was believed, and nothing found by that name.
        assert!(matches!(
            read(twice("_stext").path(), &info(), &[]),
            Err(SystemMapError::Several {
                symbol: "_stext",
                addresses: 2,
                second: 0x8100_0000,
                ..
            })
        ));
        let map = SystemMap::open(twice("init_task").path(), &[&["init_task", "node_data"]]).unwrap();
        assert_eq!(map.find("init_task"), None);
        assert_eq!(map.moved_by(0).find("init_task"), None);
        assert!(map.names("init_task") && !map.names("node_data"));
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_answer_or_an_error(
            flips in proptest::collection::vec((0..40_000_usize, any::<u8>()), 0..40),
            keep in 0..60_000_usize,
        ) {
            let lines = [
                ("_stext", 0xffff_ffff_8100_0000),
                ("init_uts_ns", 0xffff_ffff_8200_0000),
            ];
            let whole = file(&lines, 1100);
            let mut bytes = fs::read(whole.path()).unwrap();
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= value;
                }
            }
            bytes.truncate(keep);
            fs::write(whole.path(), bytes).unwrap();
            // What is believed fits the running kernel, whatever the file has become.
            if let Ok(symbols) = read(whole.path(), &info(), &["filler_7"]) {
                prop_assert_eq!(symbols.find("_stext"), info().find_symbol("_stext"));
                let moved = symbols.find("init_uts_ns");
                prop_assert!(moved.is_none() || moved == info().find_symbol("init_uts_ns"));
            }
        }
    }
}
