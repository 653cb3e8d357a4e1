//! Making a profile: a layout, this boot's addresses and what ties them together, each held against another source.

use std::path::Path;

use lacuna_core::{
    BootValue, CounterReading, Guard, GuardMismatch, GuestMemory, GuestVirt, Kernel, MAX_ROOT_SLOTS,
    MemoryMap, PagingLevels, Profile, ProfileError, RootSlot, VcpuRegisters, check_guard, free_by_counters,
};
use thiserror::Error;

use super::agreement::{AgreementError, compare};
use super::contents::{ContentsError, FreeContents, free_contents};
use super::identify::{Identified, WANTED};
use super::kallsyms::Symbols;
use super::kernel_view::{KernelView, ViewError};
use super::layout::{Layout, LayoutError};
use super::sections::{Sections, SectionsError, find_memory_map};
use super::system_map::{self, SystemMapError};
use super::vmcoreinfo::VmcoreInfoError;
use super::zones::{Zone, ZonesError, find_zones};

/// Accessed and dirty, which the processor sets by itself.
const ACCESSED_DIRTY: u64 = 0x60;

/// Why there is no profile.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The layout is for another kernel.
    #[error("the layout is for {layout}, the guest runs {guest}")]
    OtherKernel {
        /// The layout's release.
        layout: String,
        /// The guest's.
        guest: String,
    },
    /// The headers and the running kernel differ.
    #[error(transparent)]
    Agreement(#[from] AgreementError),
    /// The System.map and the running kernel differ.
    #[error("{what}: {by_file:#x} by the System.map, {by_kernel:#x} by the running kernel")]
    MapDisagrees {
        /// On what.
        what: &'static str,
        /// By the file.
        by_file: u64,
        /// By the kernel.
        by_kernel: u64,
    },
    /// This kernel offers no symbol table, without which the switches and the boot value cannot be read.
    #[error(
        "the guest's kernel does not say where its symbol table is (kernels before 6.0 do not), and no System.map was given"
    )]
    NoSymbols,
    /// The System.map given is of no use.
    #[error(transparent)]
    SystemMap(#[from] SystemMapError),
    /// A symbol is not in the kernel's table.
    #[error("the kernel's symbol table has no {0}, or several")]
    NoSymbol(&'static str),
    /// The memory model is one that profiles do not cover.
    #[error("the kernel's memory model is not SPARSEMEM_VMEMMAP, the only one supported")]
    MemoryModel,
    /// The value that ties a profile to a boot is not there.
    #[error("the kernel is built without a stack protector, so no random value ties a profile to this boot")]
    NoBootValue,
    /// A line of VMCOREINFO is missing.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// A number of the layout is missing.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The memory map.
    #[error(transparent)]
    Sections(#[from] SectionsError),
    /// The zones.
    #[error(transparent)]
    Zones(#[from] ZonesError),
    /// The contents of free pages matter.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// Kernel memory is not readable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A virtual CPU does not run this kernel.
    #[error(
        "virtual CPU {vcpu} does not fit the profile just built: {failure:?}, found {found:#x}, expected {expected:#x}"
    )]
    Guard {
        /// Which.
        vcpu: u32,
        /// What does not fit.
        failure: lacuna_core::GuardFailure,
        /// Found.
        found: u64,
        /// Expected.
        expected: u64,
    },
    /// The guest's counters cannot be read through the profile.
    #[error("the guest's free-block counters at {:#x} (zone {zone}) cannot be read", at.get())]
    Counters {
        /// Number of the zone in the profile.
        zone: u64,
        /// Where.
        at: GuestVirt,
    },
    /// The profile breaks its own rules.
    #[error("the profile would be refused by the hypervisor: {0:?}")]
    Profile(ProfileError),
}

impl From<GuardMismatch> for BuildError {
    fn from(mismatch: GuardMismatch) -> Self {
        let GuardMismatch {
            vcpu,
            failure,
            found,
            expected,
        } = mismatch;
        Self::Guard {
            vcpu,
            failure,
            found,
            expected,
        }
    }
}

/// A profile and what is worth telling about how it was made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The profile, checked.
    pub profile: Profile,
    /// The memory map's sources.
    pub sections: Sections,
    /// The zones.
    pub zones: Vec<Zone>,
    /// The kernel's switches.
    pub contents: FreeContents,
    /// The guest's own count of free pages, at this moment.
    pub counted: CounterReading,
    /// Numbers on which headers and kernel agree.
    pub agreed: Vec<String>,
    /// Whether `LSTAR` is known; without it the profile is for looking at and not for use.
    pub usable: bool,
}

/// Makes the profile of the kernel `kernel`, whose layout is `layout`, in the guest whose virtual CPUs are `vcpus`.
///
/// # Errors
/// [`BuildError`].
pub fn build<M: GuestMemory>(
    memory: &mut M,
    kernel: &Identified,
    layout: &Layout,
    system_map: Option<&Path>,
    vcpus: &[VcpuRegisters],
) -> Result<Built, BuildError> {
    if layout.release != kernel.release {
        return Err(BuildError::OtherKernel {
            layout: layout.release.clone(),
            guest: kernel.release.clone(),
        });
    }
    if layout.find_fact("CONFIG_SPARSEMEM_VMEMMAP").is_none() {
        return Err(BuildError::MemoryModel);
    }
    let agreed = compare(layout, &kernel.info)?;
    let symbols = &all_symbols(memory, kernel, system_map)?;
    let mut view = KernelView::new(memory, kernel.space);
    let contents = free_contents(&mut view, symbols, layout)?;
    let sections = find_memory_map(&mut view, &kernel.info, symbols)?;
    let zones = find_zones(&mut view, &kernel.info, layout)?;

    let canary = layout
        .find_fact("offsetof(struct task_struct,stack_canary)")
        .ok_or(BuildError::NoBootValue)?;
    let init_task = symbols
        .find("init_task")
        .ok_or(BuildError::NoSymbol("init_task"))?;
    let boot_value_at = GuestVirt::new(init_task.get().wrapping_add(canary));
    let boot_value = view.u64(boot_value_at)?;

    let first = vcpus
        .iter()
        .find(|cpu| cpu.flags & VcpuRegisters::ONLINE != 0)
        .copied()
        .unwrap_or_default();
    // What must be mapped alike for every virtual CPU: the kernel itself, the memory map, and the counters.
    let mut needed = vec![boot_value_at, sections.base];
    needed.extend(zones.iter().map(|zone| zone.counter.array));
    let root_slots = root_slots(&mut view, &needed)?;

    // A file of registers may lack LSTAR; the symbol then stands in for it, so that the rest can be checked.
    let usable = first.lstar != 0;
    let lstar = if usable {
        first.lstar
    } else {
        symbols
            .find("entry_SYSCALL_64")
            .ok_or(BuildError::NoSymbol("entry_SYSCALL_64"))?
            .get()
    };
    let profile = Profile {
        kernel: Kernel {
            release: heapless_text(&kernel.release),
            layout: layout.id(),
        },
        root: kernel.space.root,
        levels: kernel.space.levels,
        memory_map: MemoryMap::Vmemmap { base: sections.base },
        extents: heapless::Vec::new(),
        descriptor_bytes: layout.descriptor_bytes,
        free: layout.free.clone(),
        contents: contents.contents,
        zones: zones.iter().map(|zone| zone.counter).collect(),
        guard: Guard {
            idt_base: first.idt_base,
            idt_limit: first.idt_limit,
            lstar,
            root_slots,
            sysenter_eip: 0,
            gate: None,
            anchors: heapless::Vec::new(),
            boot_value: Some(BootValue {
                at: boot_value_at,
                bytes: 8,
                value: boot_value,
            }),
        },
    };
    profile.check().map_err(BuildError::Profile)?;
    for (vcpu, cpu) in (0..).zip(vcpus) {
        let filled = VcpuRegisters {
            lstar: if cpu.lstar == 0 { lstar } else { cpu.lstar },
            ..*cpu
        };
        check_guard(memory, &profile, vcpu, &filled)?;
    }
    let counted = free_by_counters(memory, &profile).map_err(|error| BuildError::Counters {
        zone: error.zone,
        at: error.at,
    })?;
    Ok(Built {
        profile,
        sections,
        zones,
        contents,
        counted,
        agreed,
        usable,
    })
}

/// The kernel's own symbols, those of a System.map, or, with both, the former once the latter agrees.
fn all_symbols<M: GuestMemory>(
    memory: &mut M,
    kernel: &Identified,
    system_map: Option<&Path>,
) -> Result<Symbols, BuildError> {
    let by_file = system_map
        .map(|file| system_map::read(file, &kernel.info, WANTED))
        .transpose()?;
    if kernel.symbols.is_some() && !kernel.pointed_at {
        // Good enough to show which kernel it may be; a profile wants the kernel's own word for its note.
        return Err(BuildError::NoSymbol("vmcoreinfo_note"));
    }
    match (&kernel.symbols, by_file) {
        (Some(own), None) => Ok(own.clone()),
        (Some(own), Some(by_file)) => match own.differ(&by_file, WANTED) {
            None => Ok(own.clone()),
            Some((name, one, two)) => Err(BuildError::MapDisagrees {
                what: name,
                by_file: two.get(),
                by_kernel: one.get(),
            }),
        },
        (None, Some(by_file)) => {
            // Now that the pointer to the note can be found, it has its say here as it has in `identify`.
            let pointer = by_file
                .find("vmcoreinfo_note")
                .ok_or(BuildError::NoSymbol("vmcoreinfo_note"))?;
            let mut view = KernelView::new(memory, kernel.space);
            let own = GuestVirt::new(view.u64(pointer)?);
            let own = view.translate(own)?;
            if own == kernel.note_at {
                Ok(by_file)
            } else {
                Err(BuildError::MapDisagrees {
                    what: "place of the VMCOREINFO note",
                    by_file: own.get(),
                    by_kernel: kernel.note_at.get(),
                })
            }
        }
        (None, None) => Err(BuildError::NoSymbols),
    }
}

/// The top-level entries through which `needed` are reached, from the kernel's reference table.
fn root_slots<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    needed: &[GuestVirt],
) -> Result<heapless::Vec<RootSlot, MAX_ROOT_SLOTS>, BuildError> {
    let space = view.space();
    let shift = match space.levels {
        PagingLevels::Five => 48,
        // Identification admits no 32-bit kernel.
        PagingLevels::Four | PagingLevels::Pae | PagingLevels::Two => 39,
    };
    let mut slots: heapless::Vec<RootSlot, MAX_ROOT_SLOTS> = heapless::Vec::new();
    for at in needed {
        let index = at.get() >> shift & 0x1ff;
        if slots.iter().any(|slot| u64::from(slot.index) == index) {
            continue;
        }
        let entry_at = space.root.checked_add(index * 8);
        let entry = entry_at
            .and_then(|entry_at| view.memory().read_value(entry_at, 8).ok())
            .ok_or(ViewError {
                at: *at,
                cause: lacuna_core::WalkError::NotPresent { shift },
            })?;
        let slot = RootSlot {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            entry: entry & !ACCESSED_DIRTY,
        };
        // More than fit would be a guest spread over eight times 512 GiB: the first ones guard enough.
        if slots.push(slot).is_err() {
            break;
        }
    }
    Ok(slots)
}

/// A release of more than 64 bytes is cut: it serves people only.
fn heapless_text(text: &str) -> heapless::String<64> {
    let mut out = heapless::String::new();
    for letter in text.chars() {
        if out.push(letter).is_err() {
            break;
        }
    }
    out
}
