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

use lacuna_core::{GuestMemory, Profile, VcpuRegisters};

use crate::failure::{Class, Failure};
use crate::progress::{Progress, Remark, Step};
use crate::source::{Cpu, GuestSource};
use linux::by_system_map;
use linux::find_layout::wanted_layout;
use linux::identify::{Identified, IdentifyError};
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
/// `work` is done with that.
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
    if let Some(kernel) = locate::by_registers(memory, cpus)? {
        return work(memory, Kernel::Windows(Box::new(kernel)), progress);
    }
    let mut is_linux = false;
    let mut linux = |memory: &mut M, progress: &mut P| {
        let kernel = identify_linux(memory, cpus, sources.system_map.as_deref(), progress)?;
        is_linux = true;
        work(memory, Kernel::Linux(Box::new(kernel)), progress)
    };
    let failure = match linux(memory, progress) {
        Err(failure) => failure,
        done => return done,
    };
    while failure.class != Class::NotFound
        && let Some(hole) = memory.lay_out_again(&failure.clues)
    {
        progress.remark(Remark::Hole(hole));
        if let Ok(done) = linux(memory, progress) {
            return Ok(done);
        }
    }
    // Looking through all memory for Windows takes long: not where a Linux kernel is there, or was.
    is_linux |= failure.clues.is_linux;
    if is_linux || failure.class != Class::NotFound && cpus.iter().any(Cpu::is_paging) {
        return Err(failure);
    }
    match windows::search::search(memory, cpus, sources, progress) {
        Ok(kernel) => work(memory, Kernel::Windows(Box::new(kernel)), progress),
        Err(LocateError::Nothing { .. }) => Err(failure),
        Err(other) if failure.class == Class::NotFound => Err(other.into()),
        Err(_) => Err(failure),
    }
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
