//! Where the memory map lies: the memory models of Linux (`include/asm-generic/memory_model.h`, `include/linux/mmzone.h`).
//!
//! * SPARSEMEM keeps a `struct mem_section` for each 128 MiB or so, whose `section_mem_map` says where that section's
//!   descriptors are, encoded as if the array began with frame 0. With `CONFIG_SPARSEMEM_VMEMMAP` all of them lie in one
//!   virtual array, so each section says the same; its start is also a variable of the kernel (`vmemmap_base`) and in
//!   VMCOREINFO from 6.12 on (`SYMBOL(vmemmap)`). All that are to be had must agree.
//! * FLATMEM has one array, `mem_map`; DISCONTIGMEM one for each node, `node_mem_map`.

use lacuna_core::{Extent, Gfn, GuestMemory, GuestVirt, MAX_EXTENTS, MemoryMap, Sections};
use thiserror::Error;

use super::facts::{FactError, Facts};
use super::identify::Identified;
use super::kallsyms::Symbols;
use super::vmcoreinfo::{Kind, VmcoreInfoError};
use super::zones::{Node, ZonesError, find_nodes};
use crate::os::view::{KernelView, ViewError};

/// Most root pointers read: 5-level x86 has 2^52 bytes of memory, 2^25 sections, 128 to a root.
const MAX_ROOTS: u64 = 1 << 18;
/// Most present sections looked at: 8 TiB at 128 MiB each.
const MAX_PRESENT: usize = 1 << 16;
/// Sections to a root occupy a page (`SECTIONS_PER_ROOT`).
const ROOT_BYTES: u64 = 4096;
/// `SECTION_MARKED_PRESENT` and `SECTION_HAS_MEM_MAP`, bits 0 and 1 of `section_mem_map` in every version.
const PRESENT_WITH_MAP: u64 = 3;
/// `SECTION_IS_ONLINE`, bit 2 since 4.13; before, no flag and always clear.
const IS_ONLINE: u64 = 4;
/// `SECTION_TAINT_ZONE_DEVICE`, bit 4 since 5.16; before, no flag and always clear: memory of devices.
const ZONE_DEVICE: u64 = 16;
/// Bits of `section_mem_map` that can hold flags: 6 at most so far; the arrays are aligned to at least a cache line.
const FLAG_BITS: u64 = 0x3f;

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

/// A node's first frame, and how many it spans. `node_mem_map` is the first one's descriptor (`alloc_node_mem_map()`).
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
    let (sections, found) = read_sections(view, kernel, facts)?;
    let mut bases: Vec<(u64, u64)> = found
        .iter()
        .map(|(number, encoded)| (encoded & !FLAG_BITS, *number))
        .collect();
    let Some((first_base, first_section)) = bases.first().copied() else {
        return Err(MemoryModelError::NoSection);
    };
    let mut sources: Vec<(u64, String)> = Vec::new();
    if let Some(variable) = symbols.and_then(|symbols| symbols.find("vmemmap_base")) {
        sources.push((view.u64(variable)?, "the kernel's vmemmap_base".into()));
    }
    if let Some(stated) = kernel.info.find_symbol("vmemmap") {
        sources.push((stated.get(), "VMCOREINFO's SYMBOL(vmemmap)".into()));
    }
    bases.dedup_by_key(|(base, _)| *base);
    if sources.is_empty() && !is_vmemmap(view, kernel, facts, &sections, &bases) {
        return Ok(MemoryModel {
            name: "sparsemem",
            map: MemoryMap::Sections(sections),
            extents: heapless::Vec::new(),
            anchor: sections.table,
            present: found.len(),
            sources: vec![format!("all {} present memory sections", found.len())],
        });
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
    named.push(format!("all {} present memory sections", found.len()));
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

/// Whether sections without any other source are those of a virtual memory map: they all say the same, and the descriptors
/// do not lie in the linear map of all memory, where a section's array of its own would be.
fn is_vmemmap<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    facts: &Facts,
    sections: &Sections,
    bases: &[(u64, u64)],
) -> bool {
    let ([(base, number)], Ok(page)) = (bases, facts.get("sizeof(struct page)")) else {
        return false;
    };
    if kernel.space.levels.is_32_bit() {
        return false;
    }
    let pfn = number << (u32::from(sections.section_bits).saturating_sub(12));
    let at = GuestVirt::new(base.wrapping_add(pfn.wrapping_mul(page)));
    let Ok(physical) = view.translate(at) else {
        return false;
    };
    // The table of sections is memory of the linear map: the distance of its two addresses is the map's.
    let Ok(table) = view.translate(sections.table) else {
        return false;
    };
    let linear = sections.table.get().wrapping_sub(table.get());
    at.get().wrapping_sub(physical.get()) != linear
}

/// The table of sections for the profile, and number and `section_mem_map` of every section that has descriptors.
fn read_sections<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    facts: &Facts,
) -> Result<(Sections, Vec<(u64, u64)>), MemoryModelError> {
    let levels = kernel.space.levels;
    let word = u64::from(levels.pointer_bytes());
    let roots = kernel.info.unsigned(Kind::Length, "mem_section")?;
    let size = facts.get("sizeof(struct mem_section)")?;
    let member = facts.get("offsetof(struct mem_section,section_mem_map)")?;
    // How the table is laid out belongs to its address, which is the note's in any case.
    let bits = match kernel.info.unsigned(Kind::Number, "SECTION_SIZE_BITS") {
        Ok(bits) => bits,
        Err(_) => facts.get("SECTION_SIZE_BITS")?,
    };
    let impossible = |name, value| MemoryModelError::Impossible { name, value };
    if !(1..=MAX_ROOTS).contains(&roots) {
        return Err(impossible("LENGTH(mem_section)", roots));
    }
    if !(word..=128).contains(&size) || member.checked_add(word).is_none_or(|end| end > size) {
        return Err(impossible("sizeof(struct mem_section)", size));
    }
    if !(20..=40).contains(&bits) {
        return Err(impossible("SECTION_SIZE_BITS", bits));
    }
    // With SPARSEMEM_EXTREME, which every x86-64 kernel has, this is where the root pointers are; SPARSEMEM_STATIC, which
    // every 32-bit one has, has the sections themselves there, one to a root.
    let table = kernel.info.symbol("mem_section")?;
    let per_root = if levels.is_32_bit() { 0 } else { ROOT_BYTES / size };
    let count = roots * per_root.max(1);
    let mut found = Vec::new();
    let mut online = 0;
    let mut pointers = vec![0; usize::try_from(if per_root == 0 { 0 } else { roots * word }).unwrap_or(0)];
    view.read(table, &mut pointers)?;
    for root in 0..roots {
        let first = if per_root == 0 {
            table.get().wrapping_add(root * size)
        } else {
            let at = usize::try_from(root * word).unwrap_or(usize::MAX);
            let bytes = pointers.get(at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        if first == 0 {
            continue;
        }
        for index in 0..per_root.max(1) {
            let at = GuestVirt::new(first.wrapping_add(index * size + member));
            let encoded = view.word(at)?;
            if encoded & PRESENT_WITH_MAP == PRESENT_WITH_MAP && encoded & ZONE_DEVICE == 0 {
                if found.len() >= MAX_PRESENT {
                    return Err(impossible("number of sections", MAX_PRESENT as u64));
                }
                online |= encoded & IS_ONLINE;
                found.push((root * per_root.max(1) + index, encoded));
            }
        }
    }
    let narrow = |name, value: u64| u16::try_from(value).map_err(|_| impossible(name, value));
    let sections = Sections {
        table,
        per_root: u32::try_from(per_root).unwrap_or(0),
        count,
        section_bits: u8::try_from(bits).unwrap_or(0),
        section_bytes: narrow("sizeof(struct mem_section)", size)?,
        map_offset: narrow("offsetof(struct mem_section,section_mem_map)", member)?,
        flag_mask: FLAG_BITS,
        required: PRESENT_WITH_MAP | online,
        refused: ZONE_DEVICE,
    };
    Ok((sections, found))
}
