//! Guest memory in a raw file: byte N of the file is guest-physical byte N, as QEMU's `pmemsave 0 SIZE` writes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lacuna_core::{Gfn, GuestMemory, GuestPhys, PAGE_SIZE, ReadError, VcpuRegisters};
use serde::Deserialize;
use thiserror::Error;

use super::GuestSource;

/// Most virtual CPUs accepted from a file.
const MAX_VCPUS: usize = 4096;

/// Why a dump cannot be used.
#[derive(Debug, Error)]
pub enum DumpError {
    /// A file could not be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The registers are not what `docs/profile.md` describes.
    #[error("{} does not hold virtual CPU registers: {cause}", file.display())]
    Registers {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// More virtual CPUs than any hypervisor allows.
    #[error("{} holds {found} virtual CPUs; at most {MAX_VCPUS} are possible", file.display())]
    TooMany {
        /// The file.
        file: PathBuf,
        /// How many.
        found: usize,
    },
}

/// An open raw dump.
#[derive(Debug)]
pub struct RawDump {
    file: File,
    frames: u64,
}

impl RawDump {
    /// Opens the dump at `path`. A last, partial frame is left out.
    ///
    /// # Errors
    /// [`DumpError::Io`].
    pub fn open(path: &Path) -> Result<Self, DumpError> {
        let io_error = |cause| DumpError::Io {
            file: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(io_error)?;
        let frames = file.metadata().map_err(io_error)?.len() / PAGE_SIZE as u64;
        Ok(Self { file, frames })
    }
}

impl GuestMemory for RawDump {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        if at.offset() + into.len() > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        if at.gfn().get() >= self.frames {
            return Err(ReadError::Absent(at.gfn()));
        }
        self.file
            .read_exact_at(into, at.get())
            .map_err(|_| ReadError::Absent(at.gfn()))
    }
}

impl GuestSource for RawDump {
    fn end(&self) -> Gfn {
        Gfn::new(self.frames)
    }
}

/// One virtual CPU as a registers file holds it. Numbers are JSON strings in hexadecimal, since JSON numbers lose bits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VcpuInFile {
    cr0: HexNumber,
    cr3: HexNumber,
    cr4: HexNumber,
    efer: HexNumber,
    idt_base: HexNumber,
    idt_limit: HexNumber,
    /// QEMU's monitor does not show it; 0 then, and the checks that need it are left out and said to be.
    #[serde(default)]
    lstar: HexNumber,
    #[serde(default = "online_by_default")]
    online: bool,
}

fn online_by_default() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
struct HexNumber(u64);

impl TryFrom<String> for HexNumber {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(text.trim_start_matches("0x"), 16).map(Self)
    }
}

/// Reads a registers file: a JSON array of objects.
///
/// # Errors
/// [`DumpError`].
pub fn read_registers(path: &Path) -> Result<Vec<VcpuRegisters>, DumpError> {
    let text = std::fs::read_to_string(path).map_err(|cause| DumpError::Io {
        file: path.to_owned(),
        cause,
    })?;
    let vcpus: Vec<VcpuInFile> = serde_json::from_str(&text).map_err(|cause| DumpError::Registers {
        file: path.to_owned(),
        cause,
    })?;
    if vcpus.len() > MAX_VCPUS {
        return Err(DumpError::TooMany {
            file: path.to_owned(),
            found: vcpus.len(),
        });
    }
    Ok(vcpus
        .iter()
        .map(|vcpu| VcpuRegisters {
            cr0: vcpu.cr0.0,
            cr3: vcpu.cr3.0,
            cr4: vcpu.cr4.0,
            efer: vcpu.efer.0,
            idt_base: vcpu.idt_base.0,
            lstar: vcpu.lstar.0,
            idt_limit: u32::try_from(vcpu.idt_limit.0).unwrap_or(u32::MAX),
            flags: if vcpu.online { VcpuRegisters::ONLINE } else { 0 },
        })
        .collect())
}
