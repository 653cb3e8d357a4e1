//! What a file is: by how it begins, unless the format is named or registers are given beside it.

use lacuna_core::PAGE_SIZE;

use super::extents::Extent;
use super::file::ReadFile;
use super::{DumpError, Format, Parts, Reading, crash, elf, kdump, lime, names, xen};

/// The format of a file, and what its reader finds in it.
///
/// # Errors
/// [`DumpError`].
pub(super) fn parts(file: &ReadFile, reading: Reading) -> Result<(Format, Parts), DumpError> {
    let begins = |magic: &[u8]| {
        let mut head = vec![0; magic.len()];
        file.read(0, &mut head) && head == magic
    };
    let found = if is_core(file) {
        Some(Format::Elf)
    } else if begins(crash::MAGIC_64) || begins(crash::MAGIC_32) {
        Some(Format::WindowsCrash)
    } else if begins(kdump::MAGIC) {
        Some(Format::Kdump)
    } else if begins(lime::LIME) {
        Some(Format::Lime)
    } else if begins(lime::AVML) {
        Some(Format::Avml)
    } else {
        None
    };
    let in_format = |format| -> Result<(Format, Parts), DumpError> {
        Ok(match format {
            Format::Raw => (Format::Raw, raw(file)),
            Format::Elf | Format::Xen => {
                let elf = elf::Elf::parse(file)?;
                match xen::read(file, &elf)? {
                    Some(parts) => (Format::Xen, parts),
                    None => (Format::Elf, elf::read(file, &elf)?),
                }
            }
            Format::WindowsCrash => (format, crash::read(file, begins(crash::MAGIC_64))?),
            Format::Kdump => (format, kdump::read(file)?),
            Format::Lime | Format::Avml => (format, lime::read(file)?),
        })
    };
    if let Some(wanted) = reading.format {
        let is_it = match wanted {
            Format::Raw => true,
            Format::Xen => found == Some(Format::Elf),
            other => found == Some(other),
        };
        return if is_it {
            in_format(wanted)
        } else {
            Err(DumpError::NotThatFormat { wanted })
        };
    }
    let outcome = match found {
        Some(format) => in_format(format),
        // Its beginning is put down last.
        None if file.is_flattened() => Err(DumpError::OtherFormat {
            what: "a flattened dump that is cut short, or of no format that is known here",
            remedy: "take the dump again, or copy it again whole",
        }),
        None => match names::named(file) {
            Some(other) => Err(other),
            None if begins(elf::MAGIC) => Err(DumpError::OtherFormat {
                what: "an ELF file and no core",
                remedy: "memory whose first page begins so, as that of a small virtual machine does: --format raw",
            }),
            None => return in_format(Format::Raw),
        },
    };
    match outcome {
        Err(error) if reading.has_registers => {
            let (format, mut parts) = in_format(Format::Raw)?;
            parts.remarks.push(format!(
                "registers are given, so the file is taken for raw memory, however it begins ({error})"
            ));
            Ok((format, parts))
        }
        outcome => outcome,
    }
}

/// Whether a file begins as an ELF core does: by class, byte order and type, which some leave 0. Other ELF
/// files are programs, and memory can begin as one.
fn is_core(file: &ReadFile) -> bool {
    let mut head = [0; 18];
    let length = usize::try_from(file.length())
        .unwrap_or(usize::MAX)
        .min(head.len());
    file.read(0, &mut head[..length]);
    // What is too short is left to the reader.
    head.starts_with(elf::MAGIC)
        && (length < head.len()
            || matches!(head[4], 1 | 2)
                && matches!((head[5], head[16], head[17]), (1, 0 | 4, 0) | (2, 0, 0 | 4)))
}

/// A raw dump is one extent. A last, partial frame is left out.
fn raw(file: &ReadFile) -> Parts {
    let whole = file.length() - file.length() % PAGE_SIZE as u64;
    let mut parts = Parts::default();
    parts.extents.push(Extent {
        start: 0,
        bytes: whole,
        offset: 0,
    });
    if whole != file.length() {
        parts.remarks.push(format!(
            "the file's last {} bytes are less than a page and left out",
            file.length() - whole
        ));
    }
    parts
}
