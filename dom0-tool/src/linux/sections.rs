//! Where the memory map lies: `struct mem_section` of SPARSEMEM (`include/linux/mmzone.h`).
//!
//! With `CONFIG_SPARSEMEM_VMEMMAP` the descriptors form one virtual array. Its start is a variable of the kernel
//! (`vmemmap_base`), is in VMCOREINFO from 6.12 on (`SYMBOL(vmemmap)`), and is what every present section's
//! `section_mem_map` amounts to. All that are to be had must agree.

use lacuna_core::{GuestMemory, GuestVirt};
use thiserror::Error;

use super::kallsyms::Symbols;
use super::kernel_view::{KernelView, ViewError};
use super::vmcoreinfo::{Kind, VmcoreInfo, VmcoreInfoError};

/// Most root pointers read: 5-level x86 has 2^52 bytes of memory, 2^25 sections, 128 to a root.
const MAX_ROOTS: u64 = 1 << 18;
/// Most present sections looked at: 8 TiB at 128 MiB each.
const MAX_PRESENT: usize = 1 << 16;
/// Sections to a root occupy a page (`SECTIONS_PER_ROOT`).
const ROOT_BYTES: u64 = 4096;
/// `SECTION_MARKED_PRESENT` and `SECTION_HAS_MEM_MAP`, bits 0 and 1 of `section_mem_map` in every version.
const PRESENT_WITH_MAP: u64 = 3;
/// Bits of `section_mem_map` that can hold flags: 6 at most so far; the array's start is aligned to far more.
const FLAG_BITS: u64 = 0xfff;

/// Why the memory map's place is not known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SectionsError {
    /// VMCOREINFO lacks a line.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// Kernel memory is not readable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A size or length is impossible.
    #[error("VMCOREINFO says {name} = {value}, which is not possible")]
    Impossible {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// No section has a memory map.
    #[error("no memory section of the guest has page descriptors")]
    NoSection,
    /// Two sources differ on the memory map's start.
    #[error("the memory map begins at {one:#x} by {one_source}, at {other:#x} by {other_source}")]
    Disagree {
        /// By the first source.
        one: u64,
        /// The first source.
        one_source: String,
        /// By the second.
        other: u64,
        /// The second source.
        other_source: String,
    },
}

/// The memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sections {
    /// Virtual address of the descriptor of frame 0.
    pub base: GuestVirt,
    /// Sections that have descriptors.
    pub present: usize,
    /// What says so, for people.
    pub sources: Vec<String>,
}

/// Reads the sections and holds the sources for the memory map's start against each other.
///
/// # Errors
/// [`SectionsError`].
pub fn find_memory_map<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
    symbols: &Symbols,
) -> Result<Sections, SectionsError> {
    let mut sources: Vec<(u64, String)> = Vec::new();
    if let Some(variable) = symbols.find("vmemmap_base") {
        sources.push((view.u64(variable)?, "the kernel's vmemmap_base".into()));
    }
    if let Some(stated) = info.find_symbol("vmemmap") {
        sources.push((stated.get(), "VMCOREINFO's SYMBOL(vmemmap)".into()));
    }
    let mut present = 0;
    let mut by_sections: Option<u64> = None;
    for (number, encoded) in read_sections(view, info)? {
        let base = encoded & !FLAG_BITS;
        present += 1;
        match by_sections {
            None => {
                by_sections = Some(base);
                sources.push((base, format!("section {number}")));
            }
            Some(first) if first != base => sources.push((base, format!("section {number}"))),
            Some(_) => {}
        }
    }
    let Some((base, first_source)) = sources.first().cloned() else {
        return Err(SectionsError::NoSection);
    };
    if by_sections.is_none() {
        return Err(SectionsError::NoSection);
    }
    if let Some((other, other_source)) = sources.iter().find(|(other, _)| *other != base) {
        return Err(SectionsError::Disagree {
            one: base,
            one_source: first_source,
            other: *other,
            other_source: other_source.clone(),
        });
    }
    let mut named: Vec<String> = sources.into_iter().map(|(_, source)| source).collect();
    named.pop();
    named.push(format!("all {present} present memory sections"));
    Ok(Sections {
        base: GuestVirt::new(base),
        present,
        sources: named,
    })
}

/// Number and `section_mem_map` of every section that has descriptors.
fn read_sections<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    info: &VmcoreInfo,
) -> Result<Vec<(u64, u64)>, SectionsError> {
    let roots = info.unsigned(Kind::Length, "mem_section")?;
    let size = info.unsigned(Kind::Size, "mem_section")?;
    let member = info.unsigned(Kind::Offset, "mem_section.section_mem_map")?;
    if !(1..=MAX_ROOTS).contains(&roots) {
        return Err(SectionsError::Impossible {
            name: "LENGTH(mem_section)",
            value: roots,
        });
    }
    if !(8..=ROOT_BYTES).contains(&size) || member + 8 > size {
        return Err(SectionsError::Impossible {
            name: "SIZE(mem_section)",
            value: size,
        });
    }
    // With SPARSEMEM_EXTREME, which every x86-64 kernel has, this is the *value* of the pointer mem_section.
    let table = info.symbol("mem_section")?.get();
    let per_root = ROOT_BYTES / size;
    let mut sections = Vec::new();
    for root in 0..roots {
        let pointer = view.u64(GuestVirt::new(table.wrapping_add(root * 8)))?;
        if pointer == 0 {
            continue;
        }
        for index in 0..per_root {
            let at = GuestVirt::new(pointer.wrapping_add(index * size + member));
            let encoded = view.u64(at)?;
            if encoded & PRESENT_WITH_MAP == PRESENT_WITH_MAP {
                if sections.len() >= MAX_PRESENT {
                    return Err(SectionsError::Impossible {
                        name: "number of sections",
                        value: MAX_PRESENT as u64,
                    });
                }
                sections.push((root * per_root + index, encoded));
            }
        }
    }
    Ok(sections)
}
