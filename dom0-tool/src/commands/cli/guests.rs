//! How a guest is named on the command line.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::values::{parse_hexadecimal, parse_hole};
use crate::failure::{Class, Failure};
use crate::ops::guest::{self, DumpFile};
use crate::source::dump::Format;

/// A domain.
#[derive(Debug, Args)]
pub struct OneDomain {
    /// Number or name of the domain
    pub domain: String,
}

/// A domain, or a file of its memory.
#[derive(Debug, Args)]
pub struct Guest {
    /// Number or name of the domain
    #[arg(required_unless_present = "dump", conflicts_with = "dump")]
    pub domain: Option<String>,
    /// The dump, and its registers
    #[command(flatten)]
    pub dump: DumpSource,
}

/// A dump, and what completes its registers.
#[derive(Debug, Args)]
pub struct DumpSource {
    /// Read guest memory from a file: an ELF or a Xen core, a kdump-compressed dump, LiME's, AVML's, a
    /// Windows crash dump, or raw (byte N is guest-physical byte N)
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// A hole of guest-physical memory that a raw file leaves out, hexadecimal; may be given several times.
    /// Files that hold a machine's own memory (.vmem, Firecracker's snapshots, QEMU's memory-backend-file)
    /// leave out the hole below 4 GiB; without this option it is searched for
    #[arg(long = "hole", value_name = "START:END", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hole)]
    pub holes: Vec<Range<u64>>,
    /// The file's format [default: recognised by its first bytes; raw if registers are given and the format
    /// is not recognised]
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        requires = "dump",
        conflicts_with = "domain"
    )]
    pub format: Option<DumpFormat>,
    /// The virtual CPUs' registers: the text of QEMU's `info registers -a`, or JSON (docs/profile.md)
    #[arg(long, value_name = "FILE", requires = "dump", conflicts_with = "domain")]
    pub registers: Option<PathBuf>,
    /// CR3 of the first virtual CPU, hexadecimal
    #[arg(long, value_name = "HEX", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hexadecimal)]
    pub cr3: Option<u64>,
    /// Base of the first virtual CPU's IDT, hexadecimal
    #[arg(long, value_name = "HEX", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hexadecimal)]
    pub idt: Option<u64>,
    /// `IA32_LSTAR` of the first virtual CPU, hexadecimal
    #[arg(long, value_name = "HEX", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hexadecimal)]
    pub lstar: Option<u64>,
}

/// Formats of dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DumpFormat {
    /// Byte N is guest-physical byte N
    Raw,
    /// An ELF core (QEMU's dump-guest-memory, /proc/vmcore)
    Elf,
    /// A Xen core (xl dump-core)
    Xen,
    /// A kdump-compressed dump (makedumpfile, QEMU's dump-guest-memory -z)
    Kdump,
    /// LiME's
    Lime,
    /// AVML's
    Avml,
    /// A Windows crash dump
    Windows,
}

impl From<DumpFormat> for Format {
    fn from(format: DumpFormat) -> Self {
        match format {
            DumpFormat::Raw => Self::Raw,
            DumpFormat::Elf => Self::Elf,
            DumpFormat::Xen => Self::Xen,
            DumpFormat::Kdump => Self::Kdump,
            DumpFormat::Lime => Self::Lime,
            DumpFormat::Avml => Self::Avml,
            DumpFormat::Windows => Self::WindowsCrash,
        }
    }
}

impl Guest {
    /// Returns the guest that was named.
    pub(crate) fn chosen(&self) -> Result<guest::Guest, Failure> {
        self.dump
            .or_domain(self.domain.as_deref())
            // The command line's rules leave no other case.
            .ok_or_else(|| Failure::plain(Class::Failed, "no guest was named"))
    }
}

impl DumpSource {
    /// Returns the domain, or the dump, that was named, if any was.
    pub(super) fn or_domain(&self, domain: Option<&str>) -> Option<guest::Guest> {
        match (domain, &self.dump) {
            (Some(domain), _) => Some(guest::Guest::Domain(domain.to_owned())),
            (None, Some(file)) => Some(guest::Guest::Dump(DumpFile {
                file: file.clone(),
                registers: self.registers.clone(),
                format: self.format.map(Format::from),
                cr3: self.cr3,
                idt: self.idt,
                lstar: self.lstar,
                holes: self.holes.clone(),
            })),
            (None, None) => None,
        }
    }
}
