//! ELF notes, and the two that hold registers.

use super::elf::{Fields, impossible};
use super::{DumpError, Parts};
use crate::source::Cpu;

/// `NT_PRSTATUS` (`include/uapi/linux/elf.h`).
pub(super) const NT_PRSTATUS: u32 = 1;
/// Least bytes of QEMU's note: up to the control registers (QEMU `target/i386/arch_dump.c`, `QEMUCPUState`).
const QEMU_STATE: usize = 432;

/// A note.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note<'b> {
    /// Its owner, without the terminator.
    pub(super) name: &'b [u8],
    /// Its type.
    pub(super) kind: u32,
    /// Its contents.
    pub(super) body: &'b [u8],
}

/// All notes of a segment or section, up to the first that is damaged.
pub(super) fn all(bytes: &[u8]) -> impl Iterator<Item = Note<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let head = Fields {
            bytes: rest.get(..12)?,
            wide: false,
        };
        let size = |at| usize::try_from(head.number(at, 4)).unwrap_or(usize::MAX);
        let (name_bytes, body_bytes) = (size(0), size(4));
        let kind = u32::try_from(head.number(8, 4)).unwrap_or(0);
        let padded = |bytes: usize| bytes.checked_next_multiple_of(4);
        let body_at = 12_usize.checked_add(padded(name_bytes)?)?;
        let name = rest.get(12..12_usize.checked_add(name_bytes)?)?;
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        let body = rest.get(body_at..body_at.checked_add(body_bytes)?)?;
        let next = body_at.checked_add(padded(body_bytes)?)?;
        rest = rest.get(next..).unwrap_or_default();
        Some(Note { name, kind, body })
    })
}

/// A virtual CPU as QEMU notes it. The note has no EFER and no LSTAR; whether 64-bit mode is active shows in
/// the file's machine.
pub(super) fn qemu_cpu(body: &[u8], long_mode: bool) -> Option<Cpu> {
    if body.len() < QEMU_STATE {
        return None;
    }
    let state = Fields {
        bytes: body,
        wide: true,
    };
    let word = |at| Some(state.number(at, 8));
    // Segments of 24 bytes from 152 on: selector, limit, flags, padding, base; cs ds es fs gs ss ldt tr gdt
    // idt; then cr0..4.
    Some(Cpu {
        cr0: word(392),
        cr3: word(416),
        cr4: word(424),
        idt_base: word(368 + 16),
        idt_limit: Some(state.number(368 + 4, 4)),
        fs_base: word(224 + 16),
        gs_base: word(248 + 16),
        kernel_gs_base: (body.len() >= QEMU_STATE + 8).then(|| state.number(QEMU_STATE, 8)),
        rip: word(136),
        rsp: word(56),
        long_mode: Some(long_mode),
        ..Cpu::default()
    })
}

/// A CPU of a core that has nothing but general registers (`struct elf_prstatus`, `struct user_regs_struct`).
pub(super) fn prstatus(body: &[u8], long_mode: bool) -> Option<Cpu> {
    let state = Fields {
        bytes: body,
        wide: long_mode,
    };
    // The registers begin after signal numbers, process numbers and times: at 112 on amd64, 72 on i386.
    let (rip, rsp, width, least) = if long_mode {
        (112 + 16 * 8, 112 + 19 * 8, 8, 336)
    } else {
        (72 + 12 * 4, 72 + 15 * 4, 4, 144)
    };
    (body.len() >= least).then(|| Cpu {
        rip: Some(state.number(rip, width)),
        rsp: Some(state.number(rsp, width)),
        long_mode: Some(long_mode),
        ..Cpu::default()
    })
}

/// What notes say, gathered from one or several runs of them.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    cpus: Vec<Cpu>,
    /// Virtual CPUs of which nothing but general registers is said.
    plain: Vec<Cpu>,
    vmcoreinfo: Option<Vec<u8>>,
}

impl Gathered {
    /// Takes what a run of notes says.
    pub(super) fn take(&mut self, bytes: &[u8], long_mode: bool) {
        for note in all(bytes) {
            match note {
                Note {
                    name: b"QEMU",
                    kind: 0,
                    ..
                } => {
                    self.cpus.extend(qemu_cpu(note.body, long_mode));
                }
                Note {
                    name: b"CORE",
                    kind: NT_PRSTATUS,
                    ..
                } => {
                    self.plain.extend(prstatus(note.body, long_mode));
                }
                Note {
                    name: b"VMCOREINFO", ..
                } if self.vmcoreinfo.is_none() => {
                    self.vmcoreinfo = Some(note.body.to_vec());
                }
                _ => {}
            }
        }
    }

    /// Puts it with the other parts of a dump.
    ///
    /// # Errors
    /// [`DumpError::Impossible`] for more virtual CPUs than there can be.
    pub(super) fn into_parts(self, parts: &mut Parts) -> Result<(), DumpError> {
        parts.vmcoreinfo = self.vmcoreinfo;
        parts.cpus = self.cpus;
        if parts.cpus.is_empty() {
            if !self.plain.is_empty() {
                parts.remarks.push(
                    "the file has no control registers (no QEMU note): only general registers of its virtual CPUs"
                        .to_owned(),
                );
            }
            parts.cpus = self.plain;
        }
        if parts.cpus.len() > super::MAX_CPUS {
            return Err(impossible("number of virtual CPUs", parts.cpus.len() as u64));
        }
        Ok(())
    }
}
