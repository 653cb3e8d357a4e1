//! Finds the kernel of a Windows guest in its memory.
//!
//! With registers: from where the processor enters the kernel (LSTAR, the handlers of exceptions, the
//! instruction pointer) down through the vCPU's own page tables to the image that address lies in. User
//! memory cannot forge that. Without: by [`super::ways`], from every page that looks like an image up through
//! every page table that leads to it; then several may remain, and [`super::search`] has to tell which one
//! runs.
//!
//! A PE without a debug record is never the kernel, whatever it calls itself: the kernel's own record is not
//! pageable.

use std::fmt::Write as _;

use lacuna_core::{GuestMemory, GuestPhys, GuestVirt, PAGE_SIZE, PagingLevels};
use thiserror::Error;

use super::loaded_image::LoadedImage;
use super::pe::{Machine, PeImage};
use super::symbol_key::SymbolKey;
use crate::os::view::AddressSpace;
use crate::source::Cpu;
use crate::source::GuestSource;

/// How far below an address of the kernel its image may begin. Windows 11's has 17 MiB.
const MAX_IMAGE: u64 = 64 << 20;
/// Exceptions whose handlers are looked at: all that Intel defines and Windows handles in the kernel itself.
/// The first is the page fault.
const VECTORS: [u64; 9] = [14, 0, 1, 3, 4, 5, 6, 7, 13];
/// Address bits of CR3.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// With PAE the top-level table is aligned to 32 bytes only.
const CR3_ADDRESS_PAE: u64 = 0xffff_ffe0;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
/// What an address is that the processor was at.
const INSTRUCTION: &str = "the instruction pointer";
/// PDBs of kernels since Windows XP: one or several processors, with and without PAE, and for page tables of
/// five levels (Windows 11 and Server 2022 have a kernel of its own for those).
pub const KERNEL_PDBS: [&str; 5] = [
    "ntoskrnl.pdb",
    "ntkrnlmp.pdb",
    "ntkrnlpa.pdb",
    "ntkrpamp.pdb",
    "ntkrla57.pdb",
];

/// A kernel's image in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The address space that it was reached through.
    pub space: AddressSpace,
    /// Where it begins.
    pub base: GuestVirt,
    /// What its headers say.
    pub image: PeImage,
    /// Its PDB.
    pub key: SymbolKey,
    /// What was confirmed, for people.
    pub confirmed: Vec<String>,
}

/// An image that is not the kernel, or was not shown to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it begins in physical memory.
    pub physical: GuestPhys,
    /// Where a page table maps it in the kernel's half, if one does.
    pub mapped_at: Option<GuestVirt>,
    /// Its PDB, if it names one.
    pub pdb: Option<String>,
    /// The name it exports, if it is to be had.
    pub export_name: Option<String>,
    /// Why it was not chosen.
    pub why: String,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "at physical {:#x}", self.physical.get())?;
        if let Some(at) = self.mapped_at {
            write!(formatter, ", mapped at {:#x}", at.get())?;
        }
        let name = self.export_name.as_deref().unwrap_or("no export name");
        let pdb = self.pdb.as_deref().unwrap_or("no debug record");
        write!(formatter, ", {name}, {pdb}: {}", self.why)
    }
}

/// Why no kernel was found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LocateError {
    /// Nothing in memory looks like one.
    #[error("no kernel of Windows in {frames} frames")]
    Nothing {
        /// Frames looked at.
        frames: u64,
    },
    /// It is Windows by another sign, and its kernel is not there.
    #[error("the memory is of Windows ({sign}), and no page of its {frames} frames begins a kernel")]
    Headless {
        /// What tells that it is Windows.
        sign: String,
        /// Frames looked at.
        frames: u64,
    },
    /// More looks like page tables than can be told apart.
    #[error("more than {most} words of memory look like entries that lead to a kernel")]
    TooManyWays {
        /// How many are followed.
        most: usize,
    },
    /// Something does, and none of it could be shown to run.
    #[error("{} way(s) lead to what looks like a Windows kernel, and none is shown to be that of the one that runs:{}", candidates.len(), list(candidates))]
    Unconfirmed {
        /// Each, with the reason.
        candidates: Vec<Candidate>,
    },
    /// Virtual CPUs run on page tables that lead to none of the kernels in memory.
    #[error(
        "no virtual CPU's page tables lead to a Windows kernel that is in memory:{}",
        list(candidates)
    )]
    OtherRegisters {
        /// Each kernel, and what else looks like one.
        candidates: Vec<Candidate>,
    },
    /// The virtual CPUs are in kernels that differ.
    #[error("the virtual CPUs' registers lead to different kernels, at {:#x} and {:#x}", first.get(), second.get())]
    Disagree {
        /// One.
        first: GuestVirt,
        /// Another.
        second: GuestVirt,
    },
}

/// Most candidates that are named one by one.
pub(super) const MOST_NAMED: usize = 8;

fn list(candidates: &[Candidate]) -> String {
    let mut text = String::new();
    for candidate in candidates.iter().take(MOST_NAMED) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {candidate}");
    }
    if candidates.len() > MOST_NAMED {
        let _ = write!(text, "\n  and {} more", candidates.len() - MOST_NAMED);
    }
    text
}

/// Follows the virtual CPUs' registers. `None` when they lead to no image: there are none, or this is no
/// Windows, or every CPU was stopped in user mode on page tables without the kernel (KVA shadow).
///
/// # Errors
/// [`LocateError::Disagree`].
pub fn by_registers<M: GuestSource>(memory: &mut M, cpus: &[Cpu]) -> Result<Option<Located>, LocateError> {
    let mut found: Option<Located> = None;
    for (number, cpu) in cpus.iter().enumerate().filter(|(_, cpu)| cpu.is_paging()) {
        let Some(one) = by_cpu(memory, number, cpu) else {
            continue;
        };
        match &mut found {
            None => found = Some(one),
            Some(first) if first.base != one.base || first.key != one.key => {
                return Err(LocateError::Disagree {
                    first: first.base,
                    second: one.base,
                });
            }
            Some(first) => first.confirmed.extend(one.confirmed),
        }
    }
    Ok(found)
}

fn by_cpu<M: GuestMemory>(memory: &mut M, number: usize, cpu: &Cpu) -> Option<Located> {
    let cr3 = cpu.cr3?;
    for levels in possible_levels(cpu) {
        let space = AddressSpace {
            root: GuestPhys::new(table_of(cr3, levels)),
            levels,
        };
        for (what, address) in entries(memory, space, cpu) {
            if let Some((base, image)) = image_around(memory, space, address) {
                let Some(key) = image.debug.as_ref().and_then(|record| record.key().ok()) else {
                    continue;
                };
                // A processor may be in a driver at any moment; it enters the kernel in the kernel alone.
                if what == INSTRUCTION && !is_named_kernel(&image) {
                    continue;
                }
                return Some(Located {
                    space,
                    base,
                    image,
                    key,
                    confirmed: vec![format!(
                        "virtual CPU {number}: {what} ({:#x}) lies in the image at {:#x}",
                        address.get(),
                        base.get()
                    )],
                });
            }
        }
    }
    None
}

/// The physical address of the top-level table in `cr3`.
pub(super) fn table_of(cr3: u64, levels: PagingLevels) -> u64 {
    match levels {
        PagingLevels::Pae => cr3 & CR3_ADDRESS_PAE,
        _ => cr3 & CR3_ADDRESS,
    }
}

/// The forms of page table that go with what is known of a virtual CPU.
pub(super) fn possible_levels(cpu: &Cpu) -> Vec<PagingLevels> {
    let long = match (cpu.efer, cpu.long_mode) {
        (Some(efer), _) if efer != 0 => Some(efer & EFER_LMA != 0),
        (_, Some(long)) => Some(long),
        // A registers file may leave EFER out; these have no other meaning in 32 bits.
        _ if cpu.lstar.is_some_and(|lstar| lstar >> 47 != 0) => Some(true),
        _ => None,
    };
    let wide: &[PagingLevels] = match cpu.cr4.filter(|cr4| *cr4 != 0) {
        Some(cr4) if cr4 & CR4_LA57 != 0 => &[PagingLevels::Five],
        Some(_) => &[PagingLevels::Four],
        None => &[PagingLevels::Four, PagingLevels::Five],
    };
    let narrow: &[PagingLevels] = match cpu.cr4 {
        Some(cr4) if cr4 & CR4_PAE != 0 => &[PagingLevels::Pae],
        Some(_) => &[PagingLevels::Two],
        None => &[PagingLevels::Pae, PagingLevels::Two],
    };
    match long {
        Some(true) => wide.to_vec(),
        Some(false) => narrow.to_vec(),
        // Without PAE there is no long mode.
        None if cpu.cr4.is_some_and(|cr4| cr4 != 0 && cr4 & CR4_PAE == 0) => narrow.to_vec(),
        None => [wide, narrow].concat(),
    }
}

/// Addresses at which the processor enters the kernel, or is in it.
fn entries<M: GuestMemory>(memory: &mut M, space: AddressSpace, cpu: &Cpu) -> Vec<(String, GuestVirt)> {
    let mut found = Vec::new();
    let wide = !space.levels.is_32_bit();
    let mut add = |what: String, address: GuestVirt| {
        if in_kernel(space.levels, address) {
            found.push((what, address));
        }
    };
    if let (true, Some(lstar)) = (wide, cpu.lstar) {
        add("LSTAR".to_owned(), GuestVirt::new(lstar));
    }
    if let (false, Some(entry)) = (wide, cpu.sysenter_eip) {
        add("SYSENTER_EIP".to_owned(), GuestVirt::new(entry));
    }
    if let Some(idt) = cpu.idt_base {
        for vector in VECTORS {
            if let Some(handler) = gate(memory, space, GuestVirt::new(idt), vector) {
                add(format!("the handler of exception {vector}"), handler);
            }
        }
    }
    if let Some(rip) = cpu.rip {
        add(INSTRUCTION.to_owned(), GuestVirt::new(rip));
    }
    found
}

/// Whether Windows keeps an address for its kernel: the upper half, on 32 bits too (the upper quarter with
/// `/3GB`).
pub(super) fn in_kernel(levels: PagingLevels, address: GuestVirt) -> bool {
    let address = address.get();
    levels.in_kernel_half(address) && (!levels.is_32_bit() || address >= 0x8000_0000)
}

/// Where a gate of the interrupt descriptor table leads (Intel SDM volume 3, 6.11 and 6.14.1).
pub fn gate<M: GuestMemory>(
    memory: &mut M,
    space: AddressSpace,
    idt: GuestVirt,
    vector: u64,
) -> Option<GuestVirt> {
    if space.levels.is_32_bit() {
        let gate = space.number(memory, idt, 8 * vector, 8)?;
        return Some(GuestVirt::new(gate & 0xffff | gate >> 32 & 0xffff_0000));
    }
    let low = space.number(memory, idt, 16 * vector, 8)?;
    let high = space.number(memory, idt, 16 * vector + 8, 4)?;
    Some(GuestVirt::new(
        low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
    ))
}

/// The image that `address` lies in: the nearest below it that is whole enough, large enough to reach it, of
/// the right machine, and has a debug record.
fn image_around<M: GuestMemory>(
    memory: &mut M,
    space: AddressSpace,
    address: GuestVirt,
) -> Option<(GuestVirt, PeImage)> {
    let page = PAGE_SIZE as u64;
    let address = address.get();
    let lowest = address.saturating_sub(MAX_IMAGE);
    let mut at = address & !(page - 1);
    while at >= lowest {
        let mut magic = [0; 2];
        let here = GuestVirt::new(at);
        if space.read(memory, here, &mut magic) {
            if magic == *b"MZ"
                && let Some(image) = kernel_image(memory, space, here)
                && address - at < u64::from(image.size)
            {
                return Some((here, image));
            }
        } else if let Some(start) = space.unmapped_below(memory, here) {
            at = start.get();
        }
        at = at.checked_sub(page)?;
    }
    None
}

/// The image at `base`, if it is one that can be a kernel.
pub(super) fn kernel_image<M: GuestMemory>(
    memory: &mut M,
    space: AddressSpace,
    base: GuestVirt,
) -> Option<PeImage> {
    let image = PeImage::read(&mut LoadedImage { memory, space, base }).ok()?;
    let machine = if space.levels.is_32_bit() {
        Machine::X86
    } else {
        Machine::X64
    };
    (image.machine == machine && image.debug.is_some()).then_some(image)
}

/// Whether an image calls itself a kernel, by its PDB or by what it exports.
pub fn is_named_kernel(image: &PeImage) -> bool {
    let pdb = image
        .debug
        .as_ref()
        .and_then(|record| record.key().ok())
        .is_some_and(|key| {
            KERNEL_PDBS
                .iter()
                .any(|name| key.name.as_str().eq_ignore_ascii_case(name))
        });
    pdb || exports_kernel(image)
}

fn exports_kernel(image: &PeImage) -> bool {
    image.export_name.as_deref().is_some_and(|name| {
        KERNEL_PDBS.iter().any(|pdb| {
            let stem = pdb.trim_end_matches(".pdb");
            name.strip_suffix(".exe")
                .is_some_and(|own| own.eq_ignore_ascii_case(stem))
        })
    })
}
