//! Opens the guest that an operation works on: a live domain or a dump.

use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use lacuna_core::abi::Statistics;

use super::Observer;
use crate::failure::{Cause, Class, Clues, Failure};
use crate::os::{Kernel, Sources, identify_running, with_standing_kernel};
use crate::source::dump::{Dump, Format, Reading};
use crate::source::live::DomainMemory;
use crate::source::{Cpu, GuestSource};
use crate::xen::domain::{Domain, find};
use crate::xen::engine::{Engine, ScanFigures};
use crate::xen::hypervisor::require_lacuna;
use crate::xen::privcmd::{DomainInfo, Privcmd};

/// Which guest is meant.
#[derive(Clone, Debug)]
pub enum Guest {
    /// A live domain, by number or name.
    Domain(String),
    /// A file of its memory.
    Dump(DumpFile),
}

/// A dump, and registers that the file itself lacks.
#[derive(Clone, Debug, Default)]
pub struct DumpFile {
    /// The dump.
    pub file: PathBuf,
    /// A file of the virtual CPUs' registers.
    pub registers: Option<PathBuf>,
    /// Its format; `None` to recognise it by its first bytes.
    pub format: Option<Format>,
    /// CR3 of the first virtual CPU.
    pub cr3: Option<u64>,
    /// Base of its IDT.
    pub idt: Option<u64>,
    /// Its `IA32_LSTAR`.
    pub lstar: Option<u64>,
    /// Guest-physical holes that a raw file leaves out.
    pub holes: Vec<Range<u64>>,
}

impl DumpFile {
    /// Opens the dump and completes its registers.
    ///
    /// # Errors
    /// What is wrong with one of the files.
    pub fn open<O: Observer + ?Sized>(&self, observer: &mut O) -> Result<Dump, Failure> {
        let reading = Reading {
            format: self.format,
            has_registers: self.registers.is_some() || self.cr3.or(self.idt).or(self.lstar).is_some(),
        };
        let mut dump = Dump::open_as(&self.file, reading)?;
        dump.name_holes(&self.holes)?;
        if let Some(registers) = &self.registers {
            dump.add_registers(registers)?;
        }
        dump.override_registers(self.cr3, self.idt, self.lstar);
        observer.dump_opened(&dump);
        Ok(dump)
    }
}

/// A live domain, ready for hypercalls.
#[derive(Debug)]
pub struct Live {
    /// The way to the hypervisor.
    pub privcmd: Rc<Privcmd>,
    /// The domain.
    pub domain: Domain,
    /// The engine as it concerns the domain.
    pub engine: Engine,
}

/// Opens the hypercall device, and checks that the hypervisor has Lacuna.
///
/// # Errors
/// This is no Dom0, the user is not root, or the hypervisor has no Lacuna, or another version of it.
pub fn open_lacuna() -> Result<Rc<Privcmd>, Failure> {
    let privcmd = Rc::new(Privcmd::open()?);
    require_lacuna(&privcmd)?;
    Ok(privcmd)
}

impl Live {
    /// Finds the domain with this number or name, and opens the engine for it.
    ///
    /// # Errors
    /// This is no Dom0, or there is no such domain.
    pub fn open(text: &str) -> Result<Self, Failure> {
        let privcmd = open_lacuna()?;
        let domain = find(&privcmd, text)?;
        Ok(Self::new(&privcmd, domain))
    }

    /// Creates the handle of a domain that was found before.
    pub fn new(privcmd: &Rc<Privcmd>, domain: Domain) -> Self {
        Self {
            privcmd: Rc::clone(privcmd),
            engine: Engine::new(privcmd, domain.id),
            domain,
        }
    }

    /// Returns the domain's memory. Drop it before sharing: it holds references on what it has mapped.
    ///
    /// # Errors
    /// The domain is a PV guest, or the hypervisor does not let its memory be read.
    pub fn memory(&self) -> Result<DomainMemory, Failure> {
        if self.domain.info.flags & DomainInfo::HVM == 0 {
            return Err(Failure::new(
                Class::Refused,
                format!("domain {} is a PV guest", self.domain.id.get()),
                "only HVM and PVH guests have memory that can be shared",
            )
            .because(Cause::NotHvm));
        }
        Ok(DomainMemory::open(
            &self.privcmd,
            self.domain.id,
            self.domain.info.max_pages,
        )?)
    }

    /// Returns the virtual CPUs. The domain is stopped for the moment that this takes.
    ///
    /// # Errors
    /// The engine's refusal.
    pub fn cpus(&self) -> Result<Vec<Cpu>, Failure> {
        Ok(self.engine.registers()?.iter().map(Cpu::from_registers).collect())
    }

    /// Returns the number of pages that the domain has: its own, and those on frames that it shares.
    ///
    /// # Errors
    /// The domain is gone, or the hypervisor cannot be asked.
    pub fn memory_pages(&self, statistics: &Statistics) -> Result<u64, Failure> {
        let now = self.privcmd.domain_info(self.domain.id)?;
        let own = now.unwrap_or(self.domain.info).pages;
        Ok(own + statistics.zero_gfns + statistics.content_gfns)
    }

    /// Returns the time for which the domain's virtual CPUs have run so far; `None` when it is gone.
    pub fn run_time(&self) -> Option<Duration> {
        let info = self.privcmd.domain_info(self.domain.id).ok()??;
        Some(Duration::from_nanos(info.cpu_time))
    }

    /// Returns the domain's number and name.
    pub fn title(&self) -> String {
        match &self.domain.name {
            Some(name) => format!("domain {} ({name})", self.domain.id.get()),
            None => format!("domain {}", self.domain.id.get()),
        }
    }

    /// Opens the domain's memory, identifies its kernel, and does `work` with both. The memory is closed
    /// afterwards. `sources` may have what tells a kernel that does not speak for itself.
    ///
    /// # Errors
    /// Why no kernel was identified, or what `work` returns.
    pub fn with_kernel<O: Observer + ?Sized, T>(
        &self,
        sources: &Sources,
        observer: &mut O,
        work: impl FnOnce(&mut DomainMemory, &Kernel, &[Cpu], &mut O) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut memory = self.memory()?;
        let (kernel, cpus) = identify_running(
            &mut memory,
            sources.system_map.as_deref(),
            || self.cpus(),
            observer,
        )?;
        observer.identified(&kernel);
        work(&mut memory, &kernel, &cpus, observer)
    }
}

/// Adjusts a scan's figures for display, for a guest with `memory` pages.
///
/// A kernel has descriptors for whole sections (128 MiB on x86, `SECTION_SIZE_BITS`), and marks frames
/// without memory as reserved, which a scan counts as in use. So the pages in use are what is left of the
/// guest's memory; the rest counts as having no memory.
pub fn within_memory(scanned: ScanFigures, memory: u64) -> ScanFigures {
    let in_use = memory
        .saturating_sub(scanned.free + scanned.unknown)
        .min(scanned.in_use);
    ScanFigures {
        in_use,
        no_descriptor: scanned.no_descriptor + (scanned.in_use - in_use),
        ..scanned
    }
}

/// Identifies the kernel of a dump, and does `work` with it.
///
/// # Errors
/// Why no kernel was identified, or what `work` returns.
pub fn with_dumped_kernel<O: Observer + ?Sized, T>(
    dump: &mut Dump,
    sources: &Sources,
    observer: &mut O,
    mut work: impl FnMut(&mut Dump, Kernel, &[Cpu], &mut O) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let cpus = dump.cpus.clone();
    let outcome = with_standing_kernel(dump, &cpus, sources, observer, |dump, kernel, observer| {
        observer.identified(&kernel);
        work(dump, kernel, &cpus, observer)
    });
    // If the file has changed meanwhile, that is the reason for any failure.
    dump.check_unharmed()?;
    outcome.map_err(|failure| of_a_file(failure, dump))
}

/// Adds to a failure what it means for a dump: trying again is useless, but the file may lack what a guest
/// has.
fn of_a_file(failure: Failure, dump: &Dump) -> Failure {
    let Clues {
        remedy,
        absent,
        is_cut_short,
        ..
    } = failure.clues;
    let mut failure = failure;
    if let Some(remedy) = remedy {
        failure.remedy = Some(remedy.to_owned());
    }
    let missing = dump.missing();
    if missing > 0 && failure.class != Class::Failed && !is_cut_short {
        failure.class = Class::Refused;
        failure.what = format!(
            "the dump is cut short, {missing} bytes are missing: {}",
            failure.what
        );
        failure.remedy = Some("take the dump again, of all of memory, or copy it again whole".to_owned());
    } else if let Some(frame) = absent {
        let is_beyond = frame >= dump.end().get();
        failure.remedy = Some(match (is_beyond, dump.format()) {
            (true, Format::Raw) => format!(
                "the file ends before frame {frame:#x}: it is cut short, or it leaves out the hole below 4 GiB (--hole START:END, for example 0xc0000000:0x100000000)"
            ),
            (true, _) => {
                format!("the file ends before frame {frame:#x}: take the dump again, of all of memory")
            }
            (false, _) => format!(
                "frame {frame:#x} was left out of the file: take the dump again, of all of memory, with nothing filtered but pages of zeros and free pages"
            ),
        });
    } else if failure.class == Class::Refused && dump.may_lack_hole() {
        let known = failure.remedy.take().unwrap_or_default();
        failure.remedy = Some(format!(
            "{known}; or the file leaves out the hole below 4 GiB: --hole START:END, for example 0xc0000000:0x100000000"
        ));
    }
    if failure.class == Class::NotFound && dump.format() == Format::Raw {
        failure
            .what
            .push_str("\n  (the file was taken for raw memory: its beginning fits no other known format)");
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_and_not_there_is_not_in_use() {
        // A guest of 512 MiB whose last section is a hole of 128 MiB except for a few pages.
        let scanned = ScanFigures {
            free: 98_150,
            in_use: 65_690,
            no_descriptor: 7,
            unknown: 0,
        };
        let told = within_memory(scanned, 131_080);
        assert_eq!((told.free, told.in_use), (98_150, 32_930));
        assert_eq!(told.no_descriptor, 7 + 32_760);
        // Memory that the kernel does not describe adds nothing.
        assert_eq!(within_memory(scanned, 1 << 20), scanned);
    }
}
