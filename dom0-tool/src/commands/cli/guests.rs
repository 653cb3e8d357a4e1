//! How a guest is named on the command line.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::values::{parse_hexadecimal, parse_hole};
use crate::failure::{Class, Failure};
use crate::ops::guest::{self, DumpFile};

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
    /// What of a dump
    #[command(flatten)]
    pub dump: DumpSource,
}

/// A dump, and what completes its registers.
#[derive(Debug, Args)]
pub struct DumpSource {
    /// Read guest memory from a file: raw (byte N is guest-physical byte N), an ELF core (QEMU's dump-guest-memory), or a
    /// Xen core (xl dump-core)
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// A hole of guest-physical memory that a raw file leaves out, hexadecimal; may be given several times. Files that hold
    /// a machine's own memory (.vmem, Firecracker's snapshots, QEMU's memory-backend-file) leave out the hole below 4 GiB,
    /// which is looked for when this is not given
    #[arg(long = "hole", value_name = "START:END", requires = "dump", conflicts_with = "domain",
        value_parser = parse_hole)]
    pub holes: Vec<Range<u64>>,
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

impl Guest {
    /// The guest that was named.
    pub(crate) fn chosen(&self) -> Result<guest::Guest, Failure> {
        self.dump
            .or_domain(self.domain.as_deref())
            // The command line's rules leave no other case.
            .ok_or_else(|| Failure::plain(Class::Failed, "no guest was named"))
    }
}

impl DumpSource {
    /// The domain, or the dump, that was named, if any was.
    pub(super) fn or_domain(&self, domain: Option<&str>) -> Option<guest::Guest> {
        match (domain, &self.dump) {
            (Some(domain), _) => Some(guest::Guest::Domain(domain.to_owned())),
            (None, Some(file)) => Some(guest::Guest::Dump(DumpFile {
                file: file.clone(),
                registers: self.registers.clone(),
                cr3: self.cr3,
                idt: self.idt,
                lstar: self.lstar,
                holes: self.holes.clone(),
            })),
            (None, None) => None,
        }
    }
}
