//! Where the memory map lies: the memory models of Linux (`include/asm-generic/memory_model.h`,
//! `include/linux/mmzone.h`).
//!
//! * SPARSEMEM keeps a `struct mem_section` for each 128 MiB or so, whose `section_mem_map` says where that
//!   section's descriptors are, encoded as if the array began with frame 0. With `CONFIG_SPARSEMEM_VMEMMAP`
//!   all of them lie in one virtual array, so each section says the same; its start is also a variable of the
//!   kernel (`vmemmap_base`) and in VMCOREINFO from 6.12 on (`SYMBOL(vmemmap)`). All that are to be had must
//!   agree. A kernel without `VMEMMAP` that randomises its memory has the variable as well, and makes nothing
//!   of it: its descriptors lie in the linear map.
//! * FLATMEM has one array, `mem_map`; DISCONTIGMEM one for each node, `node_mem_map`.

use lacuna_core::{Extent, Gfn, GuestMemory, GuestVirt, MAX_EXTENTS, MemoryMap, Sections};
use thiserror::Error;

use super::facts::{FactError, Facts};
use super::identify::Identified;
use super::kallsyms::Symbols;
use super::sections::{FLAG_BITS, Table, read_sections};
use super::vmcoreinfo::VmcoreInfoError;
use super::zones::{Node, ZonesError, find_nodes};
use crate::os::view::{KernelView, ViewError};

/// Why the memory map's place is not known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryModelError {
    /// VMCOREINFO lacks a line.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// A number of a structure is missing.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// Kernel memory is not readable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The nodes.
    #[error(transparent)]
    Nodes(#[from] ZonesError),
    /// A size or length is impossible.
    #[error("{name} is {value:#x}, which is not possible")]
    Impossible {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// No source says how large a section is, and what it is in every kernel of this kind does not fit.
    #[error(
        "SECTION_SIZE_BITS is given by no source, and with {}, as kernels of this architecture have it, the last memory section, {section}, is not where the guest's memory ends, at frame {frame:#x}",
        tried.iter().map(u64::to_string).collect::<Vec<_>>().join(" or ")
    )]
    SectionSize {
        /// What was tried.
        tried: &'static [u64],
        /// The last section that has descriptors.
        section: u64,
        /// One past the last frame of memory.
        frame: u64,
    },
    /// No section has a memory map.
    #[error("no memory section of the guest has page descriptors")]
    NoSection,
    /// No symbol says which model the kernel has.
    #[error("neither mem_section nor mem_map nor node_data is known, so the kernel's memory model is not")]
    NoModel,
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
pub struct MemoryModel {
    /// What the kernel calls it, as `--json` has it.
    pub name: &'static str,
    /// For the profile.
    pub map: MemoryMap,
    /// For the profile, with FLATMEM and DISCONTIGMEM.
    pub extents: heapless::Vec<Extent, MAX_EXTENTS>,
    /// A descriptor's address that is mapped whenever the map is.
    pub anchor: GuestVirt,
    /// Sections or extents that have descriptors.
    pub present: usize,
    /// What says so, for people.
    pub sources: Vec<String>,
}

/// Reads where the descriptors are and holds the sources for it against each other.
///
/// # Errors
/// [`MemoryModelError`].
pub fn find_memory_map<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    symbols: Option<&Symbols>,
    facts: &Facts,
) -> Result<MemoryModel, MemoryModelError> {
    let info = &kernel.info;
    let named = |name: &str| {
        info.find_symbol(name)
            .or_else(|| symbols.and_then(|symbols| symbols.find(name)))
    };
    if info.find_symbol("mem_section").is_some() {
        return sparse(view, kernel, symbols, facts);
    }
    if let Some(variable) = named("mem_map").filter(|_| info.find_symbol("node_data").is_none()) {
        return flat(view, kernel, facts, variable);
    }
    if info.find_symbol("node_data").is_some()
        && facts.find("offsetof(struct pglist_data,node_mem_map)")?.is_some()
    {
        return discontiguous(view, kernel, facts);
    }
    Err(MemoryModelError::NoModel)
}

fn flat<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    facts: &Facts,
    variable: GuestVirt,
) -> Result<MemoryModel, MemoryModelError> {
    let array = view.word(variable)?;
    let mut sources = vec!["mem_map".to_owned()];
    let mut extents = heapless::Vec::new();
    for node in find_nodes(view, &kernel.info)? {
        let (first, count) = span(view, facts, node)?;
        let at = array.wrapping_add(first.wrapping_mul(facts.at_most("sizeof(struct page)", 512)?));
        // Where the node has a pointer of its own, it is to the descriptor of its first frame.
        if let Some(member) = facts.find("offsetof(struct pglist_data,node_mem_map)")? {
            let own = view.word(GuestVirt::new(node.data.wrapping_add(member)))?;
            if own != at {
                return Err(MemoryModelError::Disagree {
                    one: at,
                    one_source: "mem_map".into(),
                    other: own,
                    other_source: "node_mem_map".into(),
                });
            }
            sources.push("node_mem_map".to_owned());
        }
        push(&mut extents, first, count, at)?;
    }
    Ok(MemoryModel {
        name: "flatmem",
        map: MemoryMap::Extents,
        anchor: GuestVirt::new(array),
        present: extents.len(),
        extents,
        sources,
    })
}

fn discontiguous<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    facts: &Facts,
) -> Result<MemoryModel, MemoryModelError> {
    let member = facts.get("offsetof(struct pglist_data,node_mem_map)")?;
    let mut spans = Vec::new();
    for node in find_nodes(view, &kernel.info)? {
        let (first, count) = span(view, facts, node)?;
        let array = view.word(GuestVirt::new(node.data.wrapping_add(member)))?;
        if count > 0 && array != 0 {
            spans.push((first, count, array));
        }
    }
    spans.sort_unstable();
    let mut extents = heapless::Vec::new();
    for (first, count, array) in &spans {
        push(&mut extents, *first, *count, *array)?;
    }
    let anchor = spans
        .first()
        .map(|(_, _, array)| *array)
        .ok_or(MemoryModelError::NoSection)?;
    Ok(MemoryModel {
        name: "discontigmem",
        map: MemoryMap::Extents,
        anchor: GuestVirt::new(anchor),
        present: extents.len(),
        extents,
        sources: vec![format!("node_mem_map of {} node(s)", spans.len())],
    })
}

/// A node's first frame, and how many it spans. `node_mem_map` is the first one's descriptor
/// (`alloc_node_mem_map()`).
fn span<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    facts: &Facts,
    node: Node,
) -> Result<(u64, u64), MemoryModelError> {
    let at = |member: u64| GuestVirt::new(node.data.wrapping_add(member));
    let start = view.word(at(facts.get("offsetof(struct pglist_data,node_start_pfn)")?))?;
    let spanned = view.word(at(facts.get("offsetof(struct pglist_data,node_spanned_pages)")?))?;
    let end = start.checked_add(spanned).filter(|end| *end < 1 << 40);
    let end = end.ok_or(MemoryModelError::Impossible {
        name: "node_spanned_pages",
        value: spanned,
    })?;
    Ok((start, end - start))
}

fn push(
    extents: &mut heapless::Vec<Extent, MAX_EXTENTS>,
    first: u64,
    count: u64,
    array: u64,
) -> Result<(), MemoryModelError> {
    let extent = Extent {
        first: Gfn::new(first),
        count,
        array: GuestVirt::new(array),
    };
    extents.push(extent).map_err(|_| MemoryModelError::Impossible {
        name: "number of nodes",
        value: MAX_EXTENTS as u64 + 1,
    })
}

fn sparse<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    symbols: Option<&Symbols>,
    facts: &Facts,
) -> Result<MemoryModel, MemoryModelError> {
    let Table {
        sections,
        found,
        group,
        notes,
    } = read_sections(view, kernel, facts)?;
    let mut bases: Vec<(u64, u64)> = found
        .iter()
        .map(|(number, encoded)| (encoded & !FLAG_BITS, *number))
        .collect();
    let Some((first_base, first_section)) = bases.first().copied() else {
        return Err(MemoryModelError::NoSection);
    };
    let stated = kernel.info.find_symbol("vmemmap");
    bases.dedup_by_key(|(base, _)| *base);
    let of_all = format!("all {} present memory sections", found.len());
    let variable = symbols.and_then(|symbols| symbols.find("vmemmap_base"));
    let is_classic = kernel.space.levels.is_32_bit()
        || variable.is_none() && bases.len() > 1
        || lie_in_linear_map(view, facts, &sections, &bases, group);
    if stated.is_none() && is_classic {
        return Ok(MemoryModel {
            name: "sparsemem",
            map: MemoryMap::Sections(sections),
            extents: heapless::Vec::new(),
            anchor: sections.table,
            present: found.len(),
            sources: [vec![of_all], notes].concat(),
        });
    }
    let mut sources: Vec<(u64, String)> = Vec::new();
    if let Some(variable) = variable {
        sources.push((view.u64(variable)?, "the kernel's vmemmap_base".into()));
    }
    if let Some(stated) = stated {
        sources.push((stated.get(), "VMCOREINFO's SYMBOL(vmemmap)".into()));
    }
    sources.push((first_base, format!("section {first_section}")));
    sources.extend(
        bases
            .iter()
            .skip(1)
            .map(|(base, number)| (*base, format!("section {number}"))),
    );
    let (base, first_source) = sources[0].clone();
    if let Some((other, other_source)) = sources.iter().find(|(other, _)| *other != base) {
        return Err(MemoryModelError::Disagree {
            one: base,
            one_source: first_source,
            other: *other,
            other_source: other_source.clone(),
        });
    }
    sources.pop();
    let mut named: Vec<String> = sources.into_iter().map(|(_, source)| source).collect();
    named.push(of_all);
    named.extend(notes);
    Ok(MemoryModel {
        name: "sparsemem-vmemmap",
        map: MemoryMap::Vmemmap {
            base: GuestVirt::new(base),
        },
        extents: heapless::Vec::new(),
        anchor: GuestVirt::new(base),
        present: found.len(),
        sources: named,
    })
}

/// Most sections whose descriptors are looked for in the linear map.
const MOST_TRANSLATED: usize = 64;

/// Whether descriptors of sections lie in the linear map of all memory, as a section's array of its own does
/// (`sparse_mem_map_populate()` without `VMEMMAP`), but for some of memory that was plugged in
/// (`kvmalloc_node()`). `group` lies there: groups of sections are allocated.
fn lie_in_linear_map<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    facts: &Facts,
    sections: &Sections,
    bases: &[(u64, u64)],
    group: GuestVirt,
) -> bool {
    let (Ok(page), Ok(physical)) = (facts.get("sizeof(struct page)"), view.translate(group)) else {
        return false;
    };
    // The distance of the two addresses is the map's.
    let linear = group.get().wrapping_sub(physical.get());
    let shift = u32::from(sections.section_bits).saturating_sub(12);
    bases.iter().take(MOST_TRANSLATED).any(|(base, number)| {
        let at = GuestVirt::new(base.wrapping_add((number << shift).wrapping_mul(page)));
        view.translate(at)
            .is_ok_and(|physical| at.get().wrapping_sub(physical.get()) == linear)
    })
}
