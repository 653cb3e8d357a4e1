//! Making a profile: a layout, this boot's addresses and what ties them together, each held against another source.

use std::fmt::Write as _;

use lacuna_core::{
    CounterReading, Guard, GuardMismatch, GuestMemory, GuestVirt, Kernel, MAX_ROOT_SLOTS, MemoryMap,
    PagingLevels, Profile, ProfileError, RootSlot, VcpuRegisters, check_guard, free_by_counters,
};
use thiserror::Error;

use super::contents::{ContentsError, FreeContents, free_contents};
use super::identify::Identified;
use super::kernel_view::{KernelView, ViewError};
use super::layout::{Layout, LayoutError};
use super::sections::{Sections, SectionsError, find_memory_map};
use super::vmcoreinfo::{Kind, VmcoreInfoError};
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
    #[error("{what}: {by_layout} by the headers, {by_kernel} by the running kernel's VMCOREINFO")]
    Disagree {
        /// On what.
        what: String,
        /// By the layout.
        by_layout: String,
        /// By the kernel.
        by_kernel: String,
    },
    /// This kernel offers no symbol table, without which the switches and the boot value cannot be read.
    #[error("the guest's kernel does not say where its symbol table is (kernels before 6.0 do not)")]
    NoSymbols,
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
    let agreed = compare(layout, kernel)?;
    let symbols = kernel.symbols.as_ref().ok_or(BuildError::NoSymbols)?;
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
        descriptor_bytes: layout.descriptor_bytes,
        free: layout.free,
        contents: contents.contents,
        zones: zones.iter().map(|zone| zone.counter).collect(),
        guard: Guard {
            idt_base: first.idt_base,
            idt_limit: first.idt_limit,
            lstar,
            root_slots,
            boot_value_at,
            boot_value,
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

/// Holds every number that both the headers and VMCOREINFO give against each other.
fn compare(layout: &Layout, kernel: &Identified) -> Result<Vec<String>, BuildError> {
    let info = &kernel.info;
    let mut agreed = Vec::new();
    let mut require = |what: &str, by_layout: u64, by_kernel: u64| {
        if by_layout != by_kernel {
            return Err(BuildError::Disagree {
                what: what.to_owned(),
                by_layout: by_layout.to_string(),
                by_kernel: by_kernel.to_string(),
            });
        }
        agreed.push(format!("{what} = {by_layout}"));
        Ok(())
    };
    // What the free rule rests on: these VMCOREINFO has in every version, and a kernel without them is refused.
    require(
        "sizeof(struct page)",
        u64::from(layout.descriptor_bytes),
        info.unsigned(Kind::Size, "page")?,
    )?;
    let references = info
        .unsigned(Kind::Offset, "page._refcount")
        .or_else(|_| info.unsigned(Kind::Offset, "page._count"))?;
    require(
        "offset of the reference count",
        u64::from(layout.free.references.offset),
        references,
    )?;
    require(
        "offset of the order",
        u64::from(layout.free.order.offset),
        info.unsigned(Kind::Offset, "page.private")?,
    )?;
    let orders = info.unsigned(Kind::Length, "zone.free_area")?;
    require(
        "orders of the allocator",
        u64::from(layout.free.max_order.get()) + 1,
        orders,
    )?;
    for (expression, kind, name) in [
        ("sizeof(struct zone)", Kind::Size, "zone"),
        ("offsetof(struct zone,free_area)", Kind::Offset, "zone.free_area"),
        (
            "offsetof(struct zone,spanned_pages)",
            Kind::Offset,
            "zone.spanned_pages",
        ),
        ("sizeof(struct free_area)", Kind::Size, "free_area"),
        ("sizeof(struct pglist_data)", Kind::Size, "pglist_data"),
        (
            "offsetof(struct pglist_data,node_zones)",
            Kind::Offset,
            "pglist_data.node_zones",
        ),
        (
            "offsetof(struct pglist_data,nr_zones)",
            Kind::Offset,
            "pglist_data.nr_zones",
        ),
        ("sizeof(struct mem_section)", Kind::Size, "mem_section"),
        (
            "offsetof(struct mem_section,section_mem_map)",
            Kind::Offset,
            "mem_section.section_mem_map",
        ),
    ] {
        require(
            expression,
            layout.fact(static_name(expression))?,
            info.unsigned(kind, name)?,
        )?;
    }
    // And what is nice to have.
    for (expression, kind, name) in [
        ("offsetof(struct page,flags)", Kind::Offset, "page.flags"),
        ("offsetof(struct page,lru)", Kind::Offset, "page.lru"),
        ("offsetof(struct page,_mapcount)", Kind::Offset, "page._mapcount"),
        ("SECTION_SIZE_BITS", Kind::Number, "SECTION_SIZE_BITS"),
    ] {
        if let (Some(by_layout), Ok(by_kernel)) = (layout.find_fact(expression), info.unsigned(kind, name)) {
            require(expression, by_layout, by_kernel)?;
        }
    }
    agreed.push(compare_predicate(layout, kernel)?);
    Ok(agreed)
}

/// The names that [`Layout::fact`] reports are literals; these come from a table of them.
fn static_name(name: &'static str) -> &'static str {
    name
}

/// VMCOREINFO gives the number that a free block's `_mapcount` holds: the learnt predicate must be true of it.
fn compare_predicate(layout: &Layout, kernel: &Identified) -> Result<String, BuildError> {
    let predicate = &layout.free.predicate;
    let at = kernel.info.unsigned(Kind::Offset, "page._mapcount")?;
    let stated = kernel.info.wrapping_number("PAGE_BUDDY_MAPCOUNT_VALUE")?;
    let bytes = stated.to_le_bytes();
    let from = u64::from(predicate.field.offset).wrapping_sub(at);
    // _mapcount is an int: the predicate must look at bytes of those four and at no others.
    let inside = from
        .checked_add(u64::from(predicate.field.width))
        .is_some_and(|end| end <= 4);
    let value = (from..from + u64::from(predicate.field.width))
        .rev()
        .filter(|_| inside)
        .fold(0, |value, index| {
            value << 8
                | u64::from(
                    bytes
                        .get(usize::try_from(index).unwrap_or(8))
                        .copied()
                        .unwrap_or(0),
                )
        });
    if !inside || value & predicate.mask != predicate.expected {
        return Err(BuildError::Disagree {
            what: "the mark of a free block".into(),
            by_layout: describe(predicate),
            by_kernel: format!(
                "PAGE_BUDDY_MAPCOUNT_VALUE {:#010x} in the 4 bytes at {at}",
                stated & 0xffff_ffff
            ),
        });
    }
    Ok(format!(
        "{} is true of PAGE_BUDDY_MAPCOUNT_VALUE",
        describe(predicate)
    ))
}

/// A predicate in words.
pub fn describe(predicate: &lacuna_core::Predicate) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "(the {} byte(s) at {} & {:#x}) == {:#x}",
        predicate.field.width, predicate.field.offset, predicate.mask, predicate.expected
    );
    text
}

/// The top-level entries through which `needed` are reached, from the kernel's reference table.
fn root_slots<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    needed: &[GuestVirt],
) -> Result<heapless::Vec<RootSlot, MAX_ROOT_SLOTS>, BuildError> {
    let space = view.space();
    let shift = match space.levels {
        PagingLevels::Four => 39,
        PagingLevels::Five => 48,
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
