//! The kernels that are known: which one runs in a guest, and the profile of it.
//!
//! A [`Kernel`] stands for any of them. [`linux`] and [`windows`] know what is particular to each; callers
//! meet the difference only where they show it.

pub mod linux;
mod sources;
pub mod view;
pub mod windows;

use std::path::Path;
use std::time::{Duration, Instant};

use lacuna_core::{GuestMemory, GuestVirt, Profile, VcpuRegisters};

use crate::failure::{Class, Clues, Failure};
use crate::progress::{Progress, Remark, Step};
use crate::source::{Cpu, GuestSource};
use linux::by_system_map;
use linux::find_layout::wanted_layout;
use linux::identify::{Identified, IdentifyError};
use linux::spaces::spaces_of;
use windows::locate::{self, LocateError, Located};
use windows::pdb::PdbFacts;
use windows::shadowed;

pub use sources::{LayoutChoice, Sources, SymbolSources};

/// How long a moment is waited for in which a virtual CPU is in the kernel, where all are in programs on page
/// tables without it. A program that never waits is interrupted at least 64 times a second (Windows' clock).
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Pause between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// A kernel that runs in a guest.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// A Linux kernel.
    Linux(Box<Identified>),
    /// A Windows kernel.
    Windows(Box<Located>),
}

/// The profile of a kernel, and what is worth telling about how it was made.
#[derive(Clone, Debug)]
pub enum BuiltProfile {
    /// Of a Linux kernel.
    Linux(Box<linux::profile::LinuxProfile>),
    /// Of a Windows kernel.
    Windows {
        /// The profile.
        built: Box<windows::profile::WindowsProfile>,
        /// What the kernel's PDB says.
        facts: Box<PdbFacts>,
    },
}

impl BuiltProfile {
    /// The profile, as the engine takes it once it is encoded.
    pub fn profile(&self) -> &Profile {
        match self {
            Self::Linux(built) => &built.profile,
            Self::Windows { built, .. } => &built.profile,
        }
    }

    /// What is missing for use on a live guest, if anything is.
    pub fn unusable(&self) -> Option<&'static str> {
        match self {
            Self::Linux(built) => built.unusable,
            Self::Windows { .. } => None,
        }
    }
}

impl Kernel {
    /// Makes the kernel's profile.
    ///
    /// # Errors
    /// Why there is none.
    pub fn build<M: GuestMemory, P: Progress + ?Sized>(
        &self,
        memory: &mut M,
        cpus: &[Cpu],
        sources: &Sources,
        progress: &mut P,
    ) -> Result<BuiltProfile, Failure> {
        match self {
            Self::Linux(kernel) => {
                let layout = wanted_layout(sources, kernel, progress)?;
                let choice = sources.choice;
                let wanted = linux::profile::Sources {
                    layout: layout.as_ref(),
                    vmcoreinfo: matches!(choice, LayoutChoice::Auto | LayoutChoice::Vmcoreinfo),
                    btf: matches!(choice, LayoutChoice::Auto | LayoutChoice::Btf),
                    system_map: sources.system_map.as_deref(),
                    config: sources.config.as_deref(),
                };
                let built = linux::profile::build(memory, kernel, &wanted, cpus)?;
                Ok(BuiltProfile::Linux(Box::new(built)))
            }
            Self::Windows(kernel) => {
                let facts = windows::symbols::facts_of(kernel, sources, false, progress)?;
                let vcpus: Vec<VcpuRegisters> = cpus.iter().map(Cpu::registers).collect();
                let built = windows::profile::build(memory, kernel, &facts, &vcpus, None)?;
                Ok(BuiltProfile::Windows {
                    built: Box::new(built),
                    facts: Box::new(facts),
                })
            }
        }
    }
}

/// Identifies the kernel of a guest that runs. `look` stops the guest for a moment and returns its virtual
/// CPUs; it is called once, and again only while all of them are in programs of Windows. `system_map` is the
/// kernel's, where it is a Linux kernel and the file is to be had. Returns the kernel and what it was
/// identified by.
///
/// # Errors
/// Why no kernel was identified, or what `look` returns.
pub fn identify_running<M: GuestSource, P: Progress + ?Sized>(
    memory: &mut M,
    system_map: Option<&Path>,
    mut look: impl FnMut() -> Result<Vec<Cpu>, Failure>,
    progress: &mut P,
) -> Result<(Kernel, Vec<Cpu>), Failure> {
    let begun = Instant::now();
    let cpus = loop {
        let cpus = look()?;
        if let Some(kernel) = locate::by_registers(memory, &cpus)? {
            return Ok((Kernel::Windows(Box::new(kernel)), cpus));
        }
        if begun.elapsed() > LOOK_AGAIN || !shadowed::seems_so(memory, &cpus) {
            break cpus;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    };
    let kernel = identify_linux(memory, &cpus, system_map, progress)?;
    Ok((Kernel::Linux(Box::new(kernel)), cpus))
}

/// Identifies the kernel of a guest that stands still, and does `work` with it.
///
/// Where the virtual CPUs' registers do not lead to a Windows kernel, Linux is tried first. If that comes to
/// nothing, and nothing says that Linux was right, a Windows kernel is searched for in all of memory, and
/// `work` is done with that. Where the memory can be laid out in other ways, each is tried that what was
/// found speaks for.
///
/// # Errors
/// Why no kernel was identified, or what `work` returns.
pub fn with_standing_kernel<M: GuestSource, P: Progress + ?Sized, T>(
    memory: &mut M,
    cpus: &[Cpu],
    sources: &Sources,
    progress: &mut P,
    mut work: impl FnMut(&mut M, Kernel, &mut P) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // Tables that lead nowhere are elsewhere.
    let are_elsewhere = cpus.iter().any(Cpu::is_paging) && !tables_lead_somewhere(memory, cpus);
    let is_likely = |memory: &mut M| !are_elsewhere || tables_lead_somewhere(memory, cpus);
    // Whether there was a kernel under some layout, of either kind.
    let mut is_known = false;
    let at_once = |memory: &mut M, progress: &mut P| {
        let kernel = if let Some(kernel) = locate::by_registers(memory, cpus)? {
            Kernel::Windows(Box::new(kernel))
        } else {
            let map = sources.system_map.as_deref();
            Kernel::Linux(Box::new(identify_linux(memory, cpus, map, progress)?))
        };
        is_known = true;
        work(memory, kernel, progress)
    };
    let clues = |failure: &Failure| Clues {
        is_unconfirmed: failure.clues.is_unconfirmed || are_elsewhere,
        ..failure.clues
    };
    let failure = match in_any_layout(memory, progress, (is_likely, clues), at_once) {
        Err(failure) => failure,
        done => return done,
    };
    // Looking through all memory for Windows takes long: not where a kernel is there, or was.
    is_known |= failure.clues.is_linux;
    if is_known || failure.class != Class::NotFound && cpus.iter().any(Cpu::is_paging) {
        return Err(failure);
    }
    // What the search came to in the memory as it was first.
    let mut first = None;
    let search = |memory: &mut M, progress: &mut P| {
        let found = windows::search::search(memory, cpus, sources, progress);
        first.get_or_insert(match &found {
            Ok(_) => Found::Kernel,
            Err(LocateError::Nothing { .. }) => Found::Nothing,
            Err(_) => Found::Signs,
        });
        work(memory, Kernel::Windows(Box::new(found?)), progress)
    };
    let any = |_: &mut M| true;
    in_any_layout(memory, progress, (any, |failure: &Failure| failure.clues), search).map_err(|other| {
        match first {
            Some(Found::Kernel) => other,
            Some(Found::Signs) if failure.class == Class::NotFound => other,
            _ => failure,
        }
    })
}

/// What a search for Windows came to.
enum Found {
    Kernel,
    /// Something of a kernel, but none that runs.
    Signs,
    Nothing,
}

/// Does `attempt` with the memory as it is, and where that fails with each other layout that is likely and
/// that the failure's clues, as `clues` has them, speak for.
///
/// # Errors
/// What the first attempt failed with, once all have.
fn in_any_layout<M: GuestSource, P: Progress + ?Sized, T>(
    memory: &mut M,
    progress: &mut P,
    (mut is_likely, clues): (impl FnMut(&mut M) -> bool, impl Fn(&Failure) -> Clues),
    mut attempt: impl FnMut(&mut M, &mut P) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let first = match attempt(memory, progress) {
        Err(failure) => failure,
        done => return done,
    };
    while let Some(hole) = memory.lay_out_again(&clues(&first)) {
        if !is_likely(memory) {
            continue;
        }
        progress.remark(Remark::Hole(hole));
        if let Ok(done) = attempt(memory, progress) {
            return Ok(done);
        }
    }
    Err(first)
}

/// Whether the page tables of a virtual CPU lead from where the processor enters the kernel, or is, to memory
/// that is there.
fn tables_lead_somewhere<M: GuestSource>(memory: &mut M, cpus: &[Cpu]) -> bool {
    cpus.iter().any(|cpu| {
        let known = [cpu.lstar, cpu.sysenter_eip, cpu.idt_base, cpu.rip];
        let spaces = spaces_of(std::slice::from_ref(cpu));
        spaces.into_iter().any(|space| {
            let mut byte = [0];
            if memory.read(space.root, &mut byte).is_err() {
                return false;
            }
            let mut known = known.into_iter().flatten().filter(|at| *at != 0).peekable();
            // The address of the tables alone leaves nothing to follow.
            known.peek().is_none() || known.any(|at| space.read(memory, GuestVirt::new(at), &mut byte))
        })
    })
}

/// Identifies a Linux kernel, in a guest that runs or stands still: by its note, or where it has none by the
/// System.map that was given.
///
/// # Errors
/// Why none was identified.
pub fn identify_linux<M: GuestSource, P: Progress + ?Sized>(
    memory: &mut M,
    cpus: &[Cpu],
    system_map: Option<&Path>,
    progress: &mut P,
) -> Result<Identified, Failure> {
    progress.begin(Step::SearchForLinux);
    let mut advance = |at, end| progress.advance(at, end);
    let by_map =
        system_map.and_then(|file| by_system_map::identify_without_note(memory, cpus, file, &mut advance));
    if let Some(kernel) = by_map {
        progress.end();
        return Ok(kernel);
    }
    let found = linux::identify::identify(memory, cpus, &mut advance);
    let found = match (found, system_map) {
        (
            Err(without @ (IdentifyError::NothingFound { .. } | IdentifyError::NoneConfirmed { .. })),
            Some(file),
        ) => by_system_map::identify(memory, cpus, file, &mut advance).map_err(|by_map| {
            let without = Box::new(without);
            IdentifyError::NotByMap { without, by_map }
        }),
        (found, _) => found,
    };
    progress.end();
    match (found, memory.trouble()) {
        (Err(IdentifyError::NothingFound { .. }), Some(trouble)) => Err(Failure::new(
            Class::Failed,
            format!("the guest's memory cannot be read: {trouble}"),
            "see `xl dmesg`; with XSM, the policy has to allow Dom0 to map the guest's memory",
        )),
        (found, _) => Ok(found?),
    }
}
