//! Everything a run needs, made in an order that keeps two processors busy; what is there and up to date is
//! kept.
//!
//! ```text
//!  host's cargo ─ programs ──────────────────────────┐
//!  sysroot ─┬─ kernels ──────────────────────────────┼─ layouts ─┐
//!           ├─ module ──────────┐                    │           ├─ images
//!           └─ source, patched ─┼─ hypervisor        │           │
//!                               └─ tools ────────────┴───────────┘
//! ```

use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use lacuna_guest::programs::Workload;
use lacuna_scenarios::catalogue::Boot;
use serde_json::{Value, json};

use crate::bochs::Disc;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::image::{self, Images, More};
use crate::kernels::Kernel;
use crate::process::Halt;
use crate::programs::Programs;
use crate::sysroot::Sysroot;
use crate::variant::{FLASK, MUTANTS, RELEASE, Variant};
use crate::xen::series::Series;
use crate::xen::{Hypervisor, Source, Tools};
use crate::{
    guest_programs, kernels, layouts, module, other_guests, programs, windows_guest, xen, xen_disks,
};

/// The parts of the work, as they are told.
const PROGRAMS: &str = "the programs";
const SYSROOT: &str = "the sysroot";
const KERNELS: &str = "the kernels";
const SOURCE: &str = "Xen's source";
const HYPERVISOR: &str = "the hypervisor";
const TOOLS: &str = "Xen's tools";
const IMAGES: &str = "the images";
const PARTS: &[&str] = &[SYSROOT, SOURCE, KERNELS, PROGRAMS, HYPERVISOR, TOOLS, IMAGES];

/// How much is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What one guest with the newest kernel needs.
    Demo,
    /// What the live scenarios of a plain test run need.
    Tests,
}

/// What is wanted of [`Stage::build`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    /// The series of Xen; the first that can be had where none is named.
    pub(crate) series: Option<Series>,
    /// How much is made.
    pub(crate) extent: Extent,
    /// The hypervisors that are made along with the rest; others are made when they are asked for.
    pub(crate) variants: &'a [Variant],
}

impl Wish<'_> {
    /// What the demonstration takes.
    pub(crate) const fn demo(series: Option<Series>) -> Self {
        Self {
            series,
            extent: Extent::Demo,
            variants: &[RELEASE],
        }
    }

    /// What a plain test run takes.
    pub(crate) const fn tests(series: Option<Series>) -> Self {
        Self {
            series,
            extent: Extent::Tests,
            variants: &[RELEASE],
        }
    }
}

/// What is ready for booting and for taking away.
pub(crate) struct Stage<'a> {
    context: &'a Context,
    /// Where QEMU runs.
    pub(crate) sysroot: Sysroot,
    source: Source,
    /// Xen's tools.
    pub(crate) tools: Tools,
    /// The product's command.
    pub(crate) lacuna: PathBuf,
    /// The guests' first process.
    pub(crate) agent: PathBuf,
    /// dom0's kernel and file system.
    pub(crate) images: Images,
    dom0_kernel: Kernel,
    guests: Vec<String>,
}

impl<'a> Stage<'a> {
    /// Makes what `wish` names.
    pub(crate) fn build(context: &'a Context, wish: Wish) -> Result<Self> {
        let halt = Halt::new(PARTS);
        let guests = match wish.extent {
            Extent::Demo => &kernels::GUESTS[..1],
            Extent::Tests => kernels::GUESTS,
        };
        thread::scope(|scope| {
            // The host's own compiler needs nothing of the rest.
            let programs = scope.spawn(|| halt.guard(PROGRAMS, || programs::build(context)));
            let sysroot = halt.guard(SYSROOT, || Sysroot::build(context))?;
            let halting = &halt;
            let inside = sysroot.clone();
            let fetched = scope.spawn(move || {
                halting.guard(KERNELS, || {
                    let fetch = |wanted: &kernels::Wanted| kernels::kernel(context, &inside, *wanted);
                    guests.iter().map(fetch).collect::<Result<Vec<_>>>()
                })
            });
            let source = halt.guard(SOURCE, || {
                let pristine = xen::source::choose(context, &sysroot, wish.series)?;
                xen::source(context, &sysroot, pristine)
            })?;
            let (inside, from) = (sysroot.clone(), source.clone());
            let hypervisors = scope.spawn(move || {
                halting.guard(HYPERVISOR, || {
                    for variant in wish.variants {
                        let module = module::build(context, &inside, variant.module)?;
                        xen::hypervisor(context, &inside, &from, *variant, &module)?;
                    }
                    Ok(())
                })
            });
            let tools = halt.guard(TOOLS, || xen::tools(context, &sysroot, &source))?;
            let programs = ended(programs)?;
            let kernels = ended(fetched)?;
            let images = halt.guard(IMAGES, || {
                let parts = Parts {
                    context,
                    sysroot: &sysroot,
                    source: &source,
                    tools: &tools,
                    programs: &programs,
                    kernels: &kernels,
                };
                parts.images(wish.extent)
            })?;
            ended(hypervisors)?;
            let guests = kernels.iter().map(|kernel| kernel.release.clone()).collect();
            Ok(Self {
                context,
                tools,
                lacuna: programs.lacuna,
                agent: programs.agent,
                images,
                dom0_kernel: kernels.into_iter().next().ok_or(Error::Ended)?,
                guests,
                source,
                sysroot,
            })
        })
        .map_err(|error| halt.cause(error))
    }

    /// Names what this was made of, for reports: the source of Xen, and the kernels.
    pub(crate) fn made_of(&self) -> Vec<(String, Value)> {
        [
            ("xen_series", json!(self.source.series.name())),
            ("xen_version", json!(self.source.origin.version)),
            ("xen_source", json!(self.source.origin.from)),
            ("dom0_kernel", json!(self.dom0_kernel.release)),
            ("guest_kernels", json!(self.guests)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// The series of Xen.
    pub(crate) fn series(&self) -> Series {
        self.source.series
    }

    /// The release of dom0's kernel.
    pub(crate) fn dom0_release(&self) -> &str {
        &self.dom0_kernel.release
    }

    /// The version of Xen's source, such as `4.20.4`.
    pub(crate) fn xen_version(&self) -> &str {
        &self.source.origin.version
    }

    /// What this was made in.
    pub(crate) const fn context(&self) -> &Context {
        self.context
    }

    /// The checkout.
    pub(crate) fn repository(&self) -> &Path {
        &self.context.repository
    }

    /// Where the output of the work called `name` is kept.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.context.step_log(name)
    }

    /// Makes the hypervisor that `boot` needs.
    pub(crate) fn hypervisor(&self, boot: Boot) -> Result<Hypervisor> {
        self.variant(match boot {
            Boot::Release
            | Boot::Counted
            | Boot::Programs(_)
            | Boot::OtherGuests
            | Boot::XenDisks
            | Boot::Ept
            | Boot::Pair
            | Boot::Iommu
            | Boot::PvhDom0
            | Boot::DebianHost => RELEASE,
            Boot::Mutants | Boot::EptMutants => MUTANTS,
            Boot::Flask => FLASK,
        })
    }

    /// Makes the images of two hosts with a network between them.
    pub(crate) fn pair(&self) -> Result<Images> {
        let images = (self.series(), &self.images);
        image::with_network(self.context, &self.sysroot, &self.dom0_kernel, images)
    }

    /// Makes the image with guests of other kinds.
    pub(crate) fn other_guests(&self) -> Result<Images> {
        other_guests::images(self.context, &self.sysroot, self)
    }

    /// Makes the image with a guest that has the workload's programs.
    pub(crate) fn programs(&self, workload: Workload) -> Result<Images> {
        guest_programs::images(self.context, &self.sysroot, self, workload)
    }

    /// Makes the image with virtual disks for guests.
    pub(crate) fn xen_disks(&self) -> Result<Images> {
        xen_disks::images(self.context, &self.sysroot, self)
    }

    /// Makes the CD from which the machine with EPT boots the hypervisor that `boot` needs.
    pub(crate) fn disc(&self, boot: Boot) -> Result<Disc> {
        let xen = self.hypervisor(boot)?;
        Disc::build(self.context, &self.sysroot, &xen, &self.images)
    }

    /// Builds Xen's own test programs. Returns the directory with them.
    pub(crate) fn own_tests(&self) -> Result<PathBuf> {
        xen::own_tests::own_tests(self.context, &self.sysroot, &self.source, &self.tools)
    }

    /// Makes one variant of the hypervisor.
    pub(crate) fn variant(&self, variant: Variant) -> Result<Hypervisor> {
        let module = module::build(self.context, &self.sysroot, variant.module)?;
        xen::hypervisor(self.context, &self.sysroot, &self.source, variant, &module)
    }
}

/// What the images are made of.
struct Parts<'a> {
    context: &'a Context,
    sysroot: &'a Sysroot,
    source: &'a Source,
    tools: &'a Tools,
    programs: &'a Programs,
    /// The guests' kernels; the first one is dom0's as well.
    kernels: &'a [Kernel],
}

impl Parts<'_> {
    fn images(&self, extent: Extent) -> Result<Images> {
        let (context, sysroot) = (self.context, self.sysroot);
        let (first, rest) = self.kernels.split_first().ok_or(Error::Ended)?;
        let base = image::base(
            context,
            sysroot,
            self.tools,
            self.programs,
            (first, &self.layout(first)?),
        )?;
        if extent == Extent::Demo {
            return Ok(base);
        }
        let stock_receiver = xen::stock_receiver(context, sysroot, self.source, self.tools)?;
        let mut files = windows_guest::build(context, sysroot)?;
        for kernel in rest {
            files.push(self.layout(kernel)?);
            files.push((format!("guests/{}/vmlinuz", kernel.series), kernel.image()));
        }
        let more = More {
            tools: self.tools,
            agent: &self.programs.agent,
            stock_receiver: &stock_receiver,
            kernel: first,
            files: &files,
        };
        image::with_more(context, sysroot, &base, &more)
    }

    fn layout(&self, kernel: &Kernel) -> Result<(String, PathBuf)> {
        layouts::layout(
            self.context,
            self.sysroot,
            &self.programs.lacuna,
            &kernel.release,
            &kernel.headers(),
        )
    }
}

/// Waits for a part of the work.
fn ended<T>(part: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    // A panic there has been printed by its own thread.
    part.join().unwrap_or(Err(Error::Ended))
}
