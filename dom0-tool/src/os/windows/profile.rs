//! The profile of one boot of a Windows guest: the kernel that was found, and what its PDB says, put
//! together.
//!
//! A page is free when its entry in the page-frame database says so and the page's bytes are zero. The entry
//! alone is not enough: a page that was just taken off a list, an entry of firmware memory that was never
//! filled in, and a ROM page all read location 0. So: inside a run of `MmPhysicalMemoryBlock`, no reference,
//! not ROM, present and not locked where the type knows of that, and zero.

use std::collections::BTreeMap;

use lacuna_core::{
    BytesRule, Contents, Extent, Field as CoreField, FreeRule, Gfn, GuestMemory, GuestVirt, Kernel,
    MAX_EXTENTS, MemoryMap, Predicate, Profile, VcpuRegisters, ZoneCounter,
};
use thiserror::Error;

use super::locate::Located;
use super::pdb::PdbFacts;
use super::pdb::types::{Field, TypeError, find};
use super::ties::ties;

/// Most runs accepted. Machines have 2 to 20; a descriptor of more is not believed.
const MAX_RUNS: u64 = 4096;
/// Offsets in the debugger's block, `KDDEBUGGER_DATA64` (`wdbgexts.h`): tag, size, the kernel's base,
/// `&MmPfnDatabase`, `&MmZeroedPageListHead`, `&MmPhysicalMemoryBlock`.
const KDBG_TAG: u64 = 0x10;
const KDBG_SIZE: u64 = 0x14;
const KDBG_KERNEL: u64 = 0x18;
const KDBG_PFN_DATABASE: u64 = 0xc0;
const KDBG_ZEROED_LIST: u64 = 0x180;
const KDBG_MEMORY_BLOCK: u64 = 0x270;
/// The partition that all memory is in, unless programs make their own.
const PARTITION: &str = "MiSystemPartition";
/// `KDBG`, little-endian.
const TAG: u64 = 0x4742_444b;
/// Why no profile can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProfileError {
    /// The PDB lacks something.
    #[error("the PDB does not know {0}")]
    Unknown(&'static str),
    /// The PDB says a thing in two ways.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// It belongs to another kernel.
    #[error("the PDB is of {given}, the guest runs {wanted}")]
    OtherKernel {
        /// Key of the PDB.
        given: String,
        /// Key in the image's debug record.
        wanted: String,
    },
    /// Kernel memory that must be there is not.
    #[error("{what} at {:#x} cannot be read", at.get())]
    Unreadable {
        /// What.
        what: &'static str,
        /// Where.
        at: GuestVirt,
    },
    /// A value that no kernel has.
    #[error("{what} is {value:#x}: {why}")]
    Impossible {
        /// What.
        what: &'static str,
        /// What was read.
        value: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two sources differ.
    #[error("{what}: the PDB leads to {:#x}, the debugger's block to {:#x}", pdb.get(), kdbg.get())]
    Disagree {
        /// What.
        what: &'static str,
        /// By one.
        pdb: GuestVirt,
        /// By the other.
        kdbg: GuestVirt,
    },
    /// A field of the entry that no profile can name.
    #[error(
        "_MMPFN's {name} lies at byte {offset}, {storage} bytes, {width} bits: a profile cannot name that"
    )]
    Field {
        /// Which.
        name: &'static str,
        /// Where.
        offset: u64,
        /// Bytes of storage.
        storage: u64,
        /// Bits.
        width: u64,
    },
}

/// A run of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First frame.
    pub first: u64,
    /// Frames.
    pub count: u64,
}

/// What of a kernel's memory leads to the free pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What `MmPfnDatabase` holds.
    pub pfn_database: GuestVirt,
    /// `MmPhysicalMemoryBlock`.
    pub runs: Vec<Run>,
    /// Where the number of pages on the zeroed list is, if that is known.
    pub zeroed_list: Option<GuestVirt>,
    /// Which source said what.
    pub sources: BTreeMap<&'static str, String>,
}

impl Resolved {
    /// One past the last frame of the guest's memory, by its own account.
    pub fn end(&self) -> Option<u64> {
        self.runs
            .iter()
            .map(|run| run.first.saturating_add(run.count))
            .max()
    }
}

/// Reads the kernel's own structures, as its PDB leads to them, and refuses what cannot be.
///
/// # Errors
/// [`ProfileError`]. For a kernel that does not run (a copy, a decoy) this is the usual outcome.
pub fn resolve<M: GuestMemory>(
    memory: &mut M,
    kernel: &Located,
    facts: &PdbFacts,
    known_runs: Option<&[Run]>,
) -> Result<Resolved, ProfileError> {
    let given = facts.identity;
    if super::symbol_key::Signature::Guid(given.guid) != kernel.key.signature || given.age != kernel.key.age {
        return Err(ProfileError::OtherKernel {
            given: format!("GUID {}, age {}", given.guid, given.age),
            wanted: kernel.key.id(),
        });
    }
    let at = |name: &str| {
        let rva = u64::from(*facts.rva.get(name)?);
        Some(GuestVirt::new(kernel.base.get().wrapping_add(rva)))
    };
    let kdbg = at("KdDebuggerDataBlock").and_then(|block| debugger_block(memory, kernel, block));
    let mut sources = BTreeMap::new();
    let mut one_of = |what: &'static str, offset: u64| -> Result<Option<GuestVirt>, ProfileError> {
        let by_block = kdbg.as_ref().and_then(|block| block.get(&offset)).copied();
        let (place, source) = match (at(what), by_block) {
            (Some(pdb), Some(kdbg)) if pdb != kdbg => return Err(ProfileError::Disagree { what, pdb, kdbg }),
            (Some(pdb), Some(_)) => (pdb, "PDB and KDBG"),
            (Some(pdb), None) => (pdb, "PDB"),
            (None, Some(kdbg)) => (kdbg, "KDBG"),
            (None, None) => return Ok(None),
        };
        sources.insert(what, source.to_owned());
        Ok(Some(place))
    };
    let database_at =
        one_of("MmPfnDatabase", KDBG_PFN_DATABASE)?.ok_or(ProfileError::Unknown("MmPfnDatabase"))?;
    let zeroed_list = one_of("MmZeroedPageListHead", KDBG_ZEROED_LIST)?;
    let block_at = one_of("MmPhysicalMemoryBlock", KDBG_MEMORY_BLOCK)?;
    // Since Windows 10 the lists are the partition's; the old name, where it is still there, is that of a
    // list without use.
    let in_partition = at(PARTITION)
        .zip(facts.zeroed_total)
        .and_then(|(partition, offset)| partition.checked_add(offset));
    if in_partition.is_some() {
        sources.remove("MmZeroedPageListHead");
        sources.insert(PARTITION, "PDB".to_owned());
    }
    let zeroed_list = in_partition.or(zeroed_list);

    let pfn_database = kernel
        .space
        .pointer(memory, database_at)
        .ok_or(ProfileError::Unreadable {
            what: "MmPfnDatabase",
            at: database_at,
        })?;
    let levels = kernel.space.levels;
    if !levels.in_kernel_half(pfn_database.get()) || pfn_database.get() % 4 != 0 {
        return Err(ProfileError::Impossible {
            what: "MmPfnDatabase",
            value: pfn_database.get(),
            why: "it is no address of an array in the kernel",
        });
    }
    let runs = match (block_at, known_runs) {
        (Some(at), _) => memory_block(memory, kernel, at)?,
        (None, Some(runs)) => {
            sources.insert("MmPhysicalMemoryBlock", "the dump's header".to_owned());
            runs.to_vec()
        }
        (None, None) => return Err(ProfileError::Unknown("MmPhysicalMemoryBlock")),
    };
    Ok(Resolved {
        pfn_database,
        runs,
        zeroed_list,
        sources,
    })
}

/// Holds that the entries of the first and the last frame of each run are mapped.
///
/// # Errors
/// [`ProfileError::Unreadable`] for the first that is not.
pub fn is_mapped<M: GuestMemory>(
    memory: &mut M,
    kernel: &Located,
    facts: &PdbFacts,
    resolved: &Resolved,
) -> Result<(), ProfileError> {
    let size = facts.mmpfn_size.ok_or(ProfileError::Unknown("_MMPFN"))?;
    for run in &resolved.runs {
        for frame in [run.first, run.first + run.count - 1] {
            let entry = resolved.pfn_database.get().wrapping_add(frame.wrapping_mul(size));
            let at = GuestVirt::new(entry);
            if kernel.space.translate(memory, at).is_none() {
                return Err(ProfileError::Unreadable {
                    what: "an entry of the page-frame database",
                    at,
                });
            }
        }
    }
    Ok(())
}

/// The pointers of the debugger's block at `at`, by offset, if it is there. Kernels since Windows 8 keep it
/// encoded.
fn debugger_block<M: GuestMemory>(
    memory: &mut M,
    kernel: &Located,
    at: GuestVirt,
) -> Option<BTreeMap<u64, GuestVirt>> {
    let space = kernel.space;
    let size = space.number(memory, at, KDBG_SIZE, 4)?;
    if space.number(memory, at, KDBG_TAG, 4)? != TAG {
        return None;
    }
    // On 32 bits its pointers are widened with their sign.
    let narrow = |value: u64| {
        if space.levels.is_32_bit() {
            value & 0xffff_ffff
        } else {
            value
        }
    };
    if narrow(space.number(memory, at, KDBG_KERNEL, 8)?) != kernel.base.get() {
        return None;
    }
    let mut pointers = BTreeMap::new();
    for offset in [KDBG_PFN_DATABASE, KDBG_ZEROED_LIST, KDBG_MEMORY_BLOCK] {
        if offset + 8 <= size {
            let value = narrow(space.number(memory, at, offset, 8)?);
            if value != 0 {
                pointers.insert(offset, GuestVirt::new(value));
            }
        }
    }
    Some(pointers)
}

/// `PHYSICAL_MEMORY_DESCRIPTOR`, to which the variable at `at` points: a count, a number of pages, and runs.
/// Page numbers have the size of a pointer, with PAE too.
fn memory_block<M: GuestMemory>(
    memory: &mut M,
    kernel: &Located,
    at: GuestVirt,
) -> Result<Vec<Run>, ProfileError> {
    const WHAT: &str = "MmPhysicalMemoryBlock";
    let space = kernel.space;
    let size = usize::from(space.levels.pointer_bytes());
    let unreadable = |at| ProfileError::Unreadable { what: WHAT, at };
    let impossible = |value, why| ProfileError::Impossible {
        what: WHAT,
        value,
        why,
    };
    let block = space.pointer(memory, at).ok_or_else(|| unreadable(at))?;
    let block = block.get();
    if !space.levels.in_kernel_half(block) {
        return Err(impossible(block, "it is no address in the kernel"));
    }
    let mut number = |index: u64| {
        let at = GuestVirt::new(block.wrapping_add(index * size as u64));
        // The count is a ULONG on 64 bits, too, and padded.
        let bytes = if index == 0 { 4 } else { size };
        space.number(memory, at, 0, bytes).ok_or_else(|| unreadable(at))
    };
    let (count, pages) = (number(0)?, number(1)?);
    if count == 0 || count > MAX_RUNS {
        return Err(impossible(count, "it is no number of runs"));
    }
    let mut runs = Vec::new();
    let mut end = 0;
    let mut total = 0_u64;
    for index in 0..count {
        let (first, count) = (number(2 + 2 * index)?, number(3 + 2 * index)?);
        if first < end || count == 0 || count > Gfn::LIMIT || first > Gfn::LIMIT - count {
            return Err(impossible(first, "its runs are out of order or out of bounds"));
        }
        end = first + count;
        total += count;
        runs.push(Run { first, count });
    }
    if total != pages {
        return Err(impossible(
            pages,
            "its number of pages is not the sum of its runs",
        ));
    }
    Ok(runs)
}

/// A profile, and where it comes from.
#[derive(Clone, Debug)]
pub struct WindowsProfile {
    /// The profile.
    pub profile: Profile,
    /// What it was made from.
    pub resolved: Resolved,
    /// Runs that did not fit, in pages: they are left alone.
    pub left_out: u64,
}

/// Makes the profile of a kernel that was found and resolved.
///
/// # Errors
/// [`ProfileError`].
pub fn build<M: GuestMemory>(
    memory: &mut M,
    kernel: &Located,
    facts: &PdbFacts,
    vcpus: &[VcpuRegisters],
    known_runs: Option<&[Run]>,
) -> Result<WindowsProfile, ProfileError> {
    let resolved = resolve(memory, kernel, facts, known_runs)?;
    let size = facts.mmpfn_size.ok_or(ProfileError::Unknown("_MMPFN"))?;
    let descriptor_bytes = u16::try_from(size).map_err(|_| ProfileError::Impossible {
        what: "sizeof(_MMPFN)",
        value: size,
        why: "no entry is so large",
    })?;
    let free = free_rule(facts)?;

    // The largest runs; Windows has a handful.
    let mut runs = resolved.runs.clone();
    runs.sort_by_key(|run| std::cmp::Reverse(run.count));
    let left_out = runs.iter().skip(MAX_EXTENTS).map(|run| run.count).sum();
    runs.truncate(MAX_EXTENTS);
    runs.sort_by_key(|run| run.first);
    let mut extents = heapless::Vec::new();
    for run in runs {
        let array = resolved
            .pfn_database
            .get()
            .wrapping_add(run.first.wrapping_mul(size));
        // Runs were cut to what the profile holds.
        let _ = extents.push(Extent {
            first: Gfn::new(run.first),
            count: run.count,
            array: GuestVirt::new(array),
        });
    }

    let pointer = kernel.space.levels.pointer_bytes();
    let mut zones = heapless::Vec::new();
    // `MMPFNLIST.Total` is the first member. None is a count, too: what the scan finds has to be as little.
    if let Some(list) = resolved.zeroed_list
        && kernel.space.pointer(memory, list).is_some()
    {
        let _ = zones.push(ZoneCounter {
            array: list,
            stride: pointer.into(),
            count_offset: 0,
            count_bytes: pointer,
        });
    }
    let mut release = heapless::String::new();
    let name: String = format!("Windows {}", kernel.key.id()).chars().take(64).collect();
    // It fits: cut to the bound just now.
    let _ = release.push_str(&name);
    let profile = Profile {
        kernel: Kernel {
            release,
            layout: layout_digest(facts),
        },
        root: kernel.space.root,
        levels: kernel.space.levels,
        memory_map: MemoryMap::Extents,
        extents,
        descriptor_bytes,
        free,
        contents: Contents::Zero,
        zones,
        identity: ties(memory, kernel, vcpus),
    };
    Ok(WindowsProfile {
        profile,
        resolved,
        left_out,
    })
}

/// The first 16 bytes of the BLAKE3 hash of what the PDB says.
fn layout_digest(facts: &PdbFacts) -> [u8; 16] {
    let text = format!("{facts:?}");
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    digest
}

/// What makes an entry free, from the fields of *this* kernel's type and the numbers of *its* enumeration.
fn free_rule(facts: &PdbFacts) -> Result<FreeRule, ProfileError> {
    let zeroed = *facts
        .lists
        .get("ZeroedPageList")
        .ok_or(ProfileError::Unknown("_MMLISTS.ZeroedPageList"))?;
    let zeroed = u64::try_from(zeroed).map_err(|_| ProfileError::Unknown("a sane ZeroedPageList"))?;
    let location =
        find(&facts.fields, "PageLocation")?.ok_or(ProfileError::Unknown("_MMPFN.PageLocation"))?;
    let references =
        find(&facts.fields, "ReferenceCount")?.ok_or(ProfileError::Unknown("_MMPFN.ReferenceCount"))?;
    let mut conditions = heapless::Vec::new();
    let mut add = |predicate| {
        // There are four at most.
        let _ = conditions.push(predicate);
    };
    add(test("ReferenceCount", references, 0)?);
    for (name, expected) in [("Rom", 0), ("PfnExists", 1), ("LockBit", 0)] {
        if let Some(field) = find(&facts.fields, name)? {
            add(test(name, field, expected)?);
        }
    }
    Ok(FreeRule {
        predicate: test("PageLocation", location, zeroed)?,
        conditions,
        blocks: None,
        bytes: BytesRule::Zero,
    })
}

/// The test that a member has a value.
fn test(name: &'static str, field: &Field, value: u64) -> Result<Predicate, ProfileError> {
    let error = || ProfileError::Field {
        name,
        offset: field.offset,
        storage: field.storage_bytes,
        width: field.width,
    };
    let width = match field.storage_bytes {
        1 | 2 | 4 | 8 => field.storage_bytes,
        _ => return Err(error()),
    };
    let offset = u16::try_from(field.offset).map_err(|_| error())?;
    let bits = match field.width {
        64 => u64::MAX,
        1..64 => (1 << field.width) - 1,
        _ => return Err(error()),
    };
    if value & !bits != 0 {
        return Err(error());
    }
    Ok(Predicate {
        field: CoreField {
            offset,
            #[allow(clippy::cast_possible_truncation)] // 8 at most
            width: width as u8,
        },
        mask: bits << field.bit,
        expected: value << field.bit,
    })
}
