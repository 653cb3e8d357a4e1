//! Opening what a command is about: a live domain or a dump, and the layout for its kernel.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use lacuna_core::VcpuRegisters;

use crate::commands::Out;
use crate::commands::cli::{DumpSource, LayoutSource, SourceChoice};
use crate::commands::progress;
use crate::failure::{Cause, Class, Failure};
use crate::os::linux::identify::{Identified, IdentifyError, architecture, identify};
use crate::os::linux::layout::Layout;
use crate::os::linux::packages::{HeaderCache, KernelName};
use crate::os::linux::stub::headers::HeaderTree;
use crate::os::linux::stub::{StubOptions, layout_from_headers};
use crate::source::Cpu;
use crate::source::GuestSource;
use crate::source::dump::Dump;
use crate::source::live::DomainMemory;
use crate::xen::domain::{Domain, find};
use crate::xen::engine::Engine;
use crate::xen::privcmd::{DomainInfo, Privcmd};

/// A live domain, ready for hypercalls.
pub(crate) struct Live {
    pub(crate) privcmd: Rc<Privcmd>,
    pub(crate) domain: Domain,
    pub(crate) engine: Engine,
}

/// Finds the domain and opens the way to its engine.
pub(crate) fn open_domain(text: &str) -> Result<Live, Failure> {
    let privcmd = Rc::new(Privcmd::open()?);
    let domain = find(&privcmd, text)?;
    Ok(Live::new(&privcmd, domain))
}

impl Live {
    /// A domain that was found before.
    pub(crate) fn new(privcmd: &Rc<Privcmd>, domain: Domain) -> Self {
        Self {
            privcmd: Rc::clone(privcmd),
            engine: Engine::new(privcmd, domain.id),
            domain,
        }
    }

    /// The domain's memory. Drop it before sharing: it holds references on what it has mapped.
    pub(crate) fn memory(&self) -> Result<DomainMemory, Failure> {
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

    /// Number and name.
    pub(crate) fn title(&self) -> String {
        match &self.domain.name {
            Some(name) => format!("domain {} ({name})", self.domain.id.get()),
            None => format!("domain {}", self.domain.id.get()),
        }
    }
}

/// Opens a dump, with the registers that the command line adds.
pub(crate) fn open_dump(file: &Path, source: &DumpSource, out: Out) -> Result<Dump, Failure> {
    let mut dump = Dump::open(file)?;
    if let Some(registers) = &source.registers {
        dump.add_registers(registers)?;
    }
    dump.override_registers(source.cr3, source.idt, source.lstar);
    out.line(format!(
        "dump        {}, {} extents, registers of {} virtual CPU(s)",
        dump.format().name(),
        dump.extents().len(),
        dump.cpus.len()
    ));
    for remark in &dump.remarks {
        out.line(format!("note        {remark}"));
    }
    Ok(dump)
}

/// The virtual CPUs of a live domain, of which everything is known.
pub(crate) fn cpus_of(vcpus: &[VcpuRegisters]) -> Vec<Cpu> {
    vcpus.iter().map(Cpu::from_registers).collect()
}

/// The layout that `--source` wants: for `auto` the headers', if they are to be had.
pub(crate) fn wanted_layout(
    source: &LayoutSource,
    kernel: &Identified,
    out: Out,
) -> Result<Option<Layout>, Failure> {
    let release = kernel.release.as_str();
    let named = source.layout.is_some() || source.headers.is_some();
    match source.source {
        SourceChoice::Vmcoreinfo | SourceChoice::Btf => return Ok(None),
        SourceChoice::Auto if !named => {
            let places = header_places(source, kernel);
            let there = Layout::file_in(&source.layouts, release).is_file()
                || places.iter().any(|place| place.is_dir());
            if !there {
                out.line("layout      no headers of this kernel here: the guest's own memory has to do");
                return Ok(None);
            }
        }
        SourceChoice::Auto | SourceChoice::Stub => {}
    }
    let (layout, from) = layout_for(source, kernel, out)?;
    out.line(format!("layout      {from}"));
    Ok(Some(layout))
}

/// Where the headers of `kernel` may be: where distributions put them, and where they were fetched to.
fn header_places(source: &LayoutSource, kernel: &Identified) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = HeaderTree::usual_places(&kernel.release).into();
    if let Ok(name) = KernelName::new(&kernel.release, architecture(kernel.space.levels)) {
        places.push(HeaderCache::new(&source.header_cache).place(&name));
    }
    places
}

/// Identifies the guest's kernel, with progress.
pub(crate) fn identify_kernel<M: GuestSource>(memory: &mut M, cpus: &[Cpu]) -> Result<Identified, Failure> {
    let bar = progress::over_memory("searching for the kernel");
    let found = identify(memory, cpus, &mut |at, end| {
        bar.set_length(end);
        bar.set_position(at);
    });
    bar.finish_and_clear();
    match (found, memory.trouble()) {
        (Err(IdentifyError::NothingFound { .. }), Some(trouble)) => Err(Failure::new(
            Class::Failed,
            format!("the guest's memory cannot be read: {trouble}"),
            "see `xl dmesg`; with XSM, the policy has to allow Dom0 to map the guest's memory",
        )),
        (found, _) => Ok(found?),
    }
}

/// The layout for `release`, and where it came from.
pub(crate) fn layout_for(
    source: &LayoutSource,
    kernel: &Identified,
    out: Out,
) -> Result<(Layout, String), Failure> {
    let release = kernel.release.as_str();
    if let Some(file) = &source.layout {
        return Ok((Layout::load(file)?, format!("layout {}", file.display())));
    }
    if let Some(headers) = &source.headers {
        return Ok((
            from_headers(headers, source, Some(release))?,
            format!("headers {}", headers.display()),
        ));
    }
    let file = Layout::file_in(&source.layouts, release);
    if file.is_file() {
        return Ok((Layout::load(&file)?, format!("layout {}", file.display())));
    }
    let places = header_places(source, kernel);
    let Some(headers) = places.iter().find(|place| place.is_dir()) else {
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        return Err(Failure::new(
            Class::NotFound,
            format!(
                "neither a layout nor the headers of the guest's kernel {release} are here: looked for {} and {}",
                file.display(),
                looked.join(", ")
            ),
            format!(
                "`lacuna profile fetch` for this guest, or install linux-headers-{release}, or make the layout elsewhere with `lacuna profile build --headers DIR --out {release}.layout.json` and put it into {}",
                source.layouts.display()
            ),
        )
        .because(Cause::NoLayout));
    };
    let layout = from_headers(headers, source, Some(release))?;
    match layout.save(&file) {
        Ok(()) => out.line(format!("kept the layout as {}", file.display())),
        // Making it again next time costs seconds: not a failure.
        Err(error) => out.line(format!("the layout could not be kept for next time: {error}")),
    }
    Ok((layout, format!("headers {}", headers.display())))
}

/// Makes a layout from headers, with progress. `release` is what the guest calls its kernel, where there is a guest.
pub(crate) fn from_headers(
    headers: &Path,
    source: &LayoutSource,
    release: Option<&str>,
) -> Result<Layout, Failure> {
    let options = StubOptions {
        config: source.config.as_deref(),
        release,
        compiler: source.compiler.map(Into::into),
    };
    let spinner = progress::spinner("asking the kernel headers");
    let layout = layout_from_headers(headers, &options);
    spinner.finish_and_clear();
    Ok(layout?)
}
