//! The table of memory sections (SPARSEMEM, `include/linux/mmzone.h`): where it lies, which sections have
//! descriptors, and how large one is.

use lacuna_core::{GuestMemory, GuestVirt, PagingLevels, Sections};

use super::facts::Facts;
use super::identify::Identified;
use super::memory_model::MemoryModelError;
use super::vmcoreinfo::Kind;
use super::zones::last_frame;
use crate::os::view::KernelView;

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
/// Bits of `section_mem_map` that can hold flags: 6 at most so far; the arrays are aligned to at least a
/// cache line.
pub(super) const FLAG_BITS: u64 = 0x3f;

/// How large a section can be, in bits of its bytes, where no source says
/// (`arch/x86/include/asm/sparsemem.h`): before 5.9 VMCOREINFO does not. With PAE it was 30 in early ones.
const fn usual_section_bits(levels: PagingLevels) -> &'static [u64] {
    match levels {
        PagingLevels::Four | PagingLevels::Five => &[27],
        PagingLevels::Pae => &[29, 30],
        PagingLevels::Two => &[26],
    }
}

/// How large a section is: by a source, or as kernels of this architecture have it, if `last`, the last that
/// has descriptors, is then the section in which the guest's memory ends.
fn section_bits<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    facts: &Facts,
    last: u64,
) -> Result<(u64, Vec<String>), MemoryModelError> {
    // How the table is laid out belongs to its address, which is the note's in any case.
    if let Ok(bits) = kernel.info.unsigned(Kind::Number, "SECTION_SIZE_BITS") {
        return Ok((bits, Vec::new()));
    }
    if let Some(bits) = facts.find("SECTION_SIZE_BITS")? {
        return Ok((bits, Vec::new()));
    }
    let Some(frame) = last_frame(view, &kernel.info, facts)? else {
        facts.get("SECTION_SIZE_BITS")?;
        return Err(MemoryModelError::NoSection);
    };
    let tried = usual_section_bits(kernel.space.levels);
    let fits = |bits: u64| frame.saturating_sub(1) >> (bits - 12) == last;
    match tried.iter().copied().find(|bits| fits(*bits)) {
        Some(bits) => {
            let note = format!(
                "SECTION_SIZE_BITS {bits}, which no source gives: as every such kernel has it, and memory ends in its last section"
            );
            Ok((bits, vec![note]))
        }
        None => Err(MemoryModelError::SectionSize {
            tried,
            section: last,
            frame,
        }),
    }
}

/// The table of memory sections.
pub(super) struct Table {
    /// For the profile.
    pub(super) sections: Sections,
    /// Number and `section_mem_map` of every section that has descriptors.
    pub(super) found: Vec<(u64, u64)>,
    /// Where the first group of sections lies.
    pub(super) group: GuestVirt,
    /// What was not given by a source, and how it is known.
    pub(super) notes: Vec<String>,
}

/// Reads the table of sections.
///
/// # Errors
/// [`MemoryModelError`].
pub(super) fn read_sections<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    facts: &Facts,
) -> Result<Table, MemoryModelError> {
    let levels = kernel.space.levels;
    let word = u64::from(levels.pointer_bytes());
    let roots = kernel.info.unsigned(Kind::Length, "mem_section")?;
    let size = facts.get("sizeof(struct mem_section)")?;
    let member = facts.get("offsetof(struct mem_section,section_mem_map)")?;
    let impossible = |name, value| MemoryModelError::Impossible { name, value };
    if !(1..=MAX_ROOTS).contains(&roots) {
        return Err(impossible("LENGTH(mem_section)", roots));
    }
    if !(word..=128).contains(&size) || member.checked_add(word).is_none_or(|end| end > size) {
        return Err(impossible("sizeof(struct mem_section)", size));
    }
    // With SPARSEMEM_EXTREME, which every x86-64 kernel has, this is where the root pointers are;
    // SPARSEMEM_STATIC, which every 32-bit one has, has the sections themselves there, one to a root.
    let table = kernel.info.symbol("mem_section")?;
    let per_root = if levels.is_32_bit() { 0 } else { ROOT_BYTES / size };
    let count = roots * per_root.max(1);
    let (found, online, group) = present_sections(
        view,
        &Row {
            table,
            roots,
            per_root,
            size,
            member,
        },
    )?;
    let last = found.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let (bits, notes) = section_bits(view, kernel, facts, last)?;
    if !(20..=40).contains(&bits) {
        return Err(impossible("SECTION_SIZE_BITS", bits));
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
    Ok(Table {
        sections,
        found,
        group,
        notes,
    })
}

/// Where the sections are.
struct Row {
    table: GuestVirt,
    roots: u64,
    per_root: u64,
    size: u64,
    member: u64,
}

/// Number and `section_mem_map` of every section that has descriptors.
type Present = Vec<(u64, u64)>;

/// Every section that has descriptors, whether they are marked as online, and where the first group of
/// sections lies.
fn present_sections<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    row: &Row,
) -> Result<(Present, u64, GuestVirt), MemoryModelError> {
    let Row {
        table,
        roots,
        per_root,
        size,
        member,
    } = *row;
    let word = u64::from(view.space().levels.pointer_bytes());
    let mut group = table;
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
        if found.is_empty() {
            group = GuestVirt::new(first);
        }
        for index in 0..per_root.max(1) {
            let at = GuestVirt::new(first.wrapping_add(index * size + member));
            let encoded = view.word(at)?;
            if encoded & PRESENT_WITH_MAP == PRESENT_WITH_MAP && encoded & ZONE_DEVICE == 0 {
                if found.len() >= MAX_PRESENT {
                    return Err(MemoryModelError::Impossible {
                        name: "number of sections",
                        value: MAX_PRESENT as u64,
                    });
                }
                online |= encoded & IS_ONLINE;
                found.push((root * per_root.max(1) + index, encoded));
            }
        }
    }
    Ok((found, online, group))
}
