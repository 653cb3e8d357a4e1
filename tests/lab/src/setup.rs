//! Everything a run needs, made in order; what is there and up to date is kept.

use std::path::{Path, PathBuf};

use lacuna_scenarios::catalogue::Boot;

use crate::bochs::Disc;
use crate::context::Context;
use crate::error::Result;
use crate::image::{self, Images};
use crate::kernels::Kernel;
use crate::sysroot::Sysroot;
use crate::variant::{FLASK, MUTANTS, RELEASE, Variant};
use crate::xen::{Hypervisor, Source, Tools};
use crate::{kernels, layouts, module, other_guests, programs, windows_guest, xen};

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
    /// The product's daemon.
    pub(crate) lacunad: PathBuf,
    /// dom0's kernel and file system.
    pub(crate) images: Images,
    dom0_kernel: Kernel,
}

impl<'a> Stage<'a> {
    /// Makes all but the hypervisors.
    pub(crate) fn build(context: &'a Context) -> Result<Self> {
        let sysroot = Sysroot::build(context)?;
        let source = xen::source(context, &sysroot)?;
        let tools = xen::tools(context, &sysroot, &source)?;
        let stock_receiver = xen::stock_receiver(context, &sysroot, &source, &tools)?;
        let dom0_kernel = kernels::kernel(context, &sysroot, kernels::LINUX_6_12)?;
        let mut guests = Vec::new();
        for wanted in kernels::GUESTS {
            guests.push((wanted.series, kernels::kernel(context, &sysroot, *wanted)?));
        }
        let programs = programs::build(context)?;
        let mut files = windows_guest::build(context, &sysroot)?;
        for (_, kernel) in &guests {
            files.push(layouts::layout(
                context,
                &sysroot,
                &programs.lacuna,
                &kernel.release,
                &kernel.headers(),
            )?);
        }
        let images = image::build(
            context,
            &sysroot,
            (&tools, &stock_receiver),
            &programs,
            &dom0_kernel,
            &guests,
            &files,
        )?;
        Ok(Self {
            context,
            sysroot,
            source,
            tools,
            lacuna: programs.lacuna,
            lacunad: programs.lacunad,
            images,
            dom0_kernel,
        })
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
            | Boot::OtherGuests
            | Boot::Ept
            | Boot::Pair
            | Boot::Iommu
            | Boot::PvhDom0 => RELEASE,
            Boot::Mutants | Boot::EptMutants => MUTANTS,
            Boot::Flask => FLASK,
        })
    }

    /// Makes the images of two hosts with a network between them.
    pub(crate) fn pair(&self) -> Result<Images> {
        image::with_network(self.context, &self.sysroot, &self.dom0_kernel, &self.images)
    }

    /// Makes the image with guests of other kinds.
    pub(crate) fn other_guests(&self) -> Result<Images> {
        other_guests::images(self.context, &self.sysroot, self)
    }

    /// Makes the CD from which the machine with EPT boots the hypervisor that `boot` needs.
    pub(crate) fn disc(&self, boot: Boot) -> Result<Disc> {
        let xen = self.hypervisor(boot)?;
        Disc::build(self.context, &self.sysroot, &xen, &self.images)
    }

    /// Makes one variant of the hypervisor.
    pub(crate) fn variant(&self, variant: Variant) -> Result<Hypervisor> {
        let module = module::build(self.context, &self.sysroot, variant.module)?;
        xen::hypervisor(self.context, &self.sysroot, &self.source, variant, &module)
    }
}
