//! Making a profile: the sources' facts, this boot's addresses and what ties them together, each held against
//! another.

use std::path::Path;

use lacuna_core::{
    Blocks, BytesRule, Contents, CounterReading, Field, FreeRule, Gfn, GuestMemory, GuestVirt,
    IdentityMismatch, Kernel, Order, PagingLevels, Predicate, Profile, ProfileError, free_by_counters,
};
use thiserror::Error;

use super::btf_in_memory::find_btf;
use super::by_system_map::complete;
use super::config::{Config, ConfigError};
use super::contents::{ContentsError, FreeContents, by_free_pages, free_contents};
use super::facts::{FactError, Facts};
use super::free_lists::value_on_free_lists;
use super::identify::{Identified, WANTED};
use super::kallsyms::Symbols;
use super::layout::Layout;
use super::memory_model::{MemoryModel, MemoryModelError, find_memory_map};
use super::system_map::{self, SystemMapError};
use super::ties::{Registers, boot_value_or_none, mapped_alike};
use super::vmcoreinfo::VmcoreInfoError;
use super::zones::{Zone, ZonesError, find_zones, last_frame};
use crate::os::view::{KernelView, ViewError};
use crate::source::Cpu;
use crate::xen::answer::{explain_status, mismatch};

/// What the hypervisor would say of a profile.
fn refusal(error: &ProfileError) -> String {
    let (status, values) = error.status();
    explain_status(status, &values).what
}

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
    /// Sources differ, or none gives a number that is needed.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// The configuration given is unusable, or not this kernel's.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No source says what marks a free page.
    #[error("no source says what marks a free page ({0} asked)")]
    NoMark(String),
    /// The kernel has no note, and nothing else says what its structures look like.
    #[error("the kernel has no VMCOREINFO note, so only its headers say what its structures look like")]
    NoNote,
    /// The headers' first task is not the kernel's.
    #[error(
        "init_task at {:#x} is not the first task by the headers: they are not those of this build, or the System.map is not",
        at.get()
    )]
    OtherHeaders {
        /// Where the System.map has it.
        at: GuestVirt,
    },
    /// A source that was asked for alone is not to be had.
    #[error("the guest's memory holds no BTF of its kernel")]
    NoBtf,
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
    /// The System.map given is of no use.
    #[error(transparent)]
    SystemMap(#[from] SystemMapError),
    /// A symbol is not in the kernel's table.
    #[error("the kernel's symbol table has no {0}, or several")]
    NoSymbol(&'static str),
    /// A line of VMCOREINFO is missing.
    #[error(transparent)]
    Note(#[from] VmcoreInfoError),
    /// The memory map.
    #[error(transparent)]
    MemoryModel(#[from] MemoryModelError),
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
        "virtual CPU {vcpu} does not fit the profile just built: {}",
        mismatch(failure.code(), *found, *expected)
    )]
    OtherIdentity {
        /// Which.
        vcpu: u32,
        /// What does not fit.
        failure: lacuna_core::IdentityCheck,
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
    #[error("the profile would be refused by the hypervisor: {}", refusal(.0))]
    Profile(ProfileError),
}

impl From<IdentityMismatch> for BuildError {
    fn from(mismatch: IdentityMismatch) -> Self {
        let IdentityMismatch {
            vcpu,
            failure,
            found,
            expected,
        } = mismatch;
        Self::OtherIdentity {
            vcpu,
            failure,
            found,
            expected,
        }
    }
}

/// Which sources of layout to use, and what there is of them.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'s> {
    /// Made from the kernel's headers.
    pub layout: Option<&'s Layout>,
    /// Use the kernel's VMCOREINFO for layout. For addresses it is used in any case.
    pub vmcoreinfo: bool,
    /// Use the kernel's BTF, if it has any; an error if it has none and there is nothing else.
    pub btf: bool,
    /// The kernel's System.map.
    pub system_map: Option<&'s Path>,
    /// The kernel's configuration.
    pub config: Option<&'s Path>,
}

/// A profile and what is worth telling about how it was made.
#[derive(Clone, Debug)]
pub struct LinuxProfile {
    /// The profile. Checked; whether its identity is complete says `usable`.
    pub profile: Profile,
    /// What each source says.
    pub facts: Facts,
    /// The memory map.
    pub memory_model: MemoryModel,
    /// The zones.
    pub zones: Vec<Zone>,
    /// The kernel's switches.
    pub contents: FreeContents,
    /// One past the last frame of memory by the kernel's own account, where a source says where that is.
    pub last_frame: Option<u64>,
    /// The guest's own count of free pages, at this moment.
    pub counted: CounterReading,
    /// Numbers on which sources agree.
    pub agreed: Vec<String>,
    /// Whether the profile may be used on a live guest; otherwise what is missing.
    pub unusable: Option<&'static str>,
}

/// Makes the profile of the kernel `kernel` in the guest whose virtual CPUs are `cpus`.
///
/// # Errors
/// [`BuildError`].
pub fn build<M: GuestMemory>(
    memory: &mut M,
    kernel: &Identified,
    sources: &Sources<'_>,
    cpus: &[Cpu],
) -> Result<LinuxProfile, BuildError> {
    let levels = kernel.space.levels;
    let symbols = all_symbols(memory, kernel, sources.system_map)?;
    let symbols = symbols.as_ref();
    let mut view = KernelView::new(memory, kernel.space);
    let mut facts = gather(&mut view, kernel, sources, symbols)?;
    facts.check()?;
    let kernel = &*complete(&mut view, kernel, &facts)?;
    let mut contents = free_contents(&mut view, symbols, &facts)?;
    let memory_model = find_memory_map(&mut view, kernel, symbols, &facts)?;
    let zones = find_zones(&mut view, &kernel.info, &facts)?;
    let last_frame = last_frame(&mut view, &kernel.info, &facts)?;
    if let Some(file) = sources.config {
        Config::read(file)?.check(levels, memory_model.name)?;
    }
    if facts.mark()?.is_none()
        && let Some(value) = value_on_free_lists(&mut view, &facts, &zones)?
    {
        facts.add_free_lists(value)?;
    }
    let agreed = facts.check()?;
    let free = free_rule(&facts, levels)?;

    let text = kernel.info.symbol("_stext")?;
    let (boot_value, mut unusable) =
        boot_value_or_none(&mut view, symbols, &facts, text, memory_model.anchor)?;
    let registers = Registers::of(cpus, levels, symbols, &mut unusable);
    // What must be mapped alike for every virtual CPU: the kernel itself, the memory map, and the counters.
    let mut needed = vec![boot_value.at, memory_model.anchor];
    needed.extend(zones.iter().map(|zone| zone.counter.array));
    let (root_slots, anchors) = mapped_alike(&mut view, &needed)?;
    let mut profile = Profile {
        kernel: Kernel {
            release: heapless_text(&kernel.release),
            layout: sources.layout.map_or([0; 16], Layout::id),
        },
        root: kernel.space.root,
        levels,
        memory_map: memory_model.map,
        extents: memory_model.extents.clone(),
        descriptor_bytes: u16::try_from(facts.at_most("sizeof(struct page)", 512)?).unwrap_or(0),
        free,
        contents: contents.contents,
        zones: zones.iter().map(|zone| zone.counter).collect(),
        identity: registers.identity(levels, text, unusable, boot_value, root_slots),
    };
    profile.identity.anchors = anchors;
    profile.check().map_err(BuildError::Profile)?;
    if !contents.switch_known || !contents.contents_known {
        ask_free_pages(memory, &profile, last_frame, &mut contents)?;
        profile.contents = contents.contents;
    }
    let is_checkable = registers.are_checkable(unusable);
    if !contents.switch_known {
        unusable.get_or_insert("whether the kernel poisons free pages is not known for want of its symbols");
    }
    if is_checkable {
        registers.check(memory, &profile)?;
    }
    let counted = free_by_counters(memory, &profile).map_err(|error| BuildError::Counters {
        zone: error.zone,
        at: error.at,
    })?;
    Ok(LinuxProfile {
        profile,
        facts,
        memory_model,
        zones,
        contents,
        last_frame,
        counted,
        agreed,
        unusable,
    })
}

/// Has free pages tell what the kernel's switches do not: their places are not known.
fn ask_free_pages<M: GuestMemory>(
    memory: &mut M,
    profile: &Profile,
    last_frame: Option<u64>,
    contents: &mut FreeContents,
) -> Result<(), ContentsError> {
    let told = match last_frame.map(|last| by_free_pages(memory, profile, Gfn::new(last))) {
        Some(Ok(told)) => told,
        // The kernel is known not to poison: then it is a process that filled these pages, and nobody cleared
        // them.
        Some(Err(ContentsError::Pattern { .. })) if contents.switch_known => Some(Contents::DontCare),
        Some(Err(error)) => return Err(error),
        None => None,
    };
    contents.switch_known |= told.is_some();
    if !contents.contents_known {
        contents.contents = told.unwrap_or(Contents::Zero);
    }
    Ok(())
}

/// Asks every source that may be asked.
fn gather<M: GuestMemory>(
    view: &mut KernelView<'_, M>,
    kernel: &Identified,
    sources: &Sources<'_>,
    symbols: Option<&Symbols>,
) -> Result<Facts, BuildError> {
    let mut facts = Facts::default();
    if let Some(layout) = sources.layout {
        if layout.release != kernel.release {
            return Err(BuildError::OtherKernel {
                layout: layout.release.clone(),
                guest: kernel.release.clone(),
            });
        }
        facts.add_layout(layout);
    }
    if sources.vmcoreinfo && kernel.note_at.is_some() {
        facts.add_vmcoreinfo(&kernel.info, u64::from(kernel.space.levels.pointer_bytes()))?;
    }
    if sources.btf {
        let found = find_btf(view, symbols, kernel.info.symbol("_stext")?);
        match found {
            Some((btf, _)) => facts.add_btf(&btf),
            None if facts.sources().is_empty() && kernel.note_at.is_some() => return Err(BuildError::NoBtf),
            None => {}
        }
    }
    Ok(facts)
}

/// What makes a block free, by the facts.
fn free_rule(facts: &Facts, levels: PagingLevels) -> Result<FreeRule, BuildError> {
    let asked = || {
        facts
            .sources()
            .iter()
            .map(|source| source.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let predicate = facts.mark()?.ok_or_else(|| BuildError::NoMark(asked()))?;
    let place = |name: &str| -> Result<u16, BuildError> {
        Ok(u16::try_from(facts.at_most(name, 508)?).unwrap_or(u16::MAX))
    };
    let references = Predicate::zero(Field {
        offset: place("offsetof(struct page,_refcount)")?,
        width: 4,
    });
    let orders = facts.at_most("orders", 19)?;
    let max_order = Order::new(orders.saturating_sub(1)).ok_or_else(|| FactError::Impossible {
        name: "orders".into(),
        value: orders,
    })?;
    Ok(FreeRule {
        predicate,
        conditions: std::iter::once(references).collect(),
        blocks: Some(Blocks {
            order: Field {
                offset: place("offsetof(struct page,private)")?,
                width: levels.pointer_bytes(),
            },
            max_order,
        }),
        bytes: BytesRule::Any,
    })
}

/// The kernel's own symbols, those of a System.map, or, with both, the former once the latter agrees.
fn all_symbols<M: GuestMemory>(
    memory: &mut M,
    kernel: &Identified,
    system_map: Option<&Path>,
) -> Result<Option<Symbols>, BuildError> {
    let Some(note_at) = kernel.note_at else {
        // It was told by them.
        return Ok(kernel.symbols.clone());
    };
    let by_file = system_map
        .map(|file| system_map::read(file, &kernel.info, WANTED))
        .transpose()?;
    match (&kernel.symbols, by_file) {
        (Some(own), None) => Ok(Some(own.clone())),
        (Some(own), Some(by_file)) => match own.differ(&by_file, WANTED) {
            None => Ok(Some(own.clone())),
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
            let own = GuestVirt::new(view.word(pointer)?);
            let own = view.translate(own)?;
            if own == note_at {
                Ok(Some(by_file))
            } else {
                Err(BuildError::MapDisagrees {
                    what: "place of the VMCOREINFO note",
                    by_file: own.get(),
                    by_kernel: note_at.get(),
                })
            }
        }
        (None, None) => Ok(None),
    }
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
