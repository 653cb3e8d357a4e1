//! dom0's images with a guest that runs programs of the distribution's: an initial file system for each kind
//! of program, with what has to come of it, made in the sysroot by the same programs.

mod compile;
mod orders;
mod packages;
mod shop;
mod video;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lacuna_guest::programs::Workload;

use crate::context::{Context, Staged};
use crate::cpio::Archive;
use crate::error::Result;
use crate::image::{Images, libraries_of, start_guest, step_name};
use crate::key::{Key, KeyBuilder};
use crate::process::output;
use crate::setup::Stage;
use crate::sysroot::Sysroot;
use crate::xen::place;

/// What the guests are made in.
struct Workshop<'a> {
    context: &'a Context,
    sysroot: &'a Sysroot,
    stage: &'a Stage<'a>,
}

/// A guest's file system that is being made.
struct Guest {
    archive: Archive,
    libraries: BTreeMap<String, PathBuf>,
}

/// The guest's file system in dom0.
const INITRD: &str = "guests/programs.initrd";

/// Makes the one with `workload`'s programs: an archive behind dom0's, which the kernel unpacks over that.
pub(crate) fn images(
    context: &Context,
    sysroot: &Sysroot,
    stage: &Stage,
    workload: Workload,
) -> Result<Images> {
    let workshop = Workshop {
        context,
        sysroot,
        stage,
    };
    let (name, guest) = match workload {
        Workload::Compile => ("compile", compile::guest(&workshop)?),
        Workload::Banking | Workload::Ecommerce | Workload::Support => ("shop", shop::guest(&workshop)?),
        Workload::Orders => ("orders", orders::guest(&workshop)?),
        Workload::Video => ("video", video::guest(&workshop)?),
    };
    let name = format!("programs-{name}");
    let image = place(context, stage.series(), &format!("images/{name}.cpio"));
    let key = KeyBuilder::new("images/programs", 3)
        .file(&stage.images.dom0)?
        .file(&guest)?;
    context.step(&step_name(stage.series(), &name), &key.finish(), |_| {
        stage
            .images
            .extend(&image, |archive| archive.file(INITRD, &guest))
    })?;
    Ok(stage.images.with_dom0(image))
}

impl Workshop<'_> {
    /// Makes the file system called `name`, unless there is one of the same `key`, and returns it. `fill` puts
    /// in what it needs beside the agent, and may use a directory of its own.
    fn guest(
        &self,
        name: &str,
        key: KeyBuilder,
        fill: impl FnOnce(&mut Guest, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = |file: &str| place(self.context, self.stage.series(), &format!("images/{file}"));
        let path = place(&format!("guest-{name}.cpio"));
        let key: Key = key.key(&self.sysroot.key).file(&self.stage.agent)?.finish();
        let step = step_name(self.stage.series(), &format!("guest-{name}"));
        self.context.step(&step, &key, |_| {
            let made = Staged::directory(place(&format!("made-{name}")))?;
            let staged = Staged::file(path.clone())?;
            let mut guest = Guest {
                archive: start_guest(&staged.path, &self.stage.agent)?,
                libraries: BTreeMap::new(),
            };
            fill(&mut guest, &made.path)?;
            guest.finish()?;
            made.commit()?;
            staged.commit()
        })?;
        Ok(path)
    }

    /// Runs `script` in the sysroot, and returns what it said.
    fn run(&self, script: &str, arguments: &[&str]) -> Result<String> {
        let mut line = vec!["sh", "-c", script, "sh"];
        line.extend(arguments);
        output(self.sysroot.command("/", &line), &self.context.step_log("images"))
    }

    /// The libraries of a program or library of the sysroot's.
    fn libraries(&self, program: &str) -> Result<BTreeMap<String, PathBuf>> {
        libraries_of(self.context, self.sysroot, &self.stage.tools, Path::new(program))
    }

    /// A library of the sysroot's with those that it needs itself.
    fn library(&self, path: &str) -> Result<BTreeMap<String, PathBuf>> {
        let mut all = self.libraries(path)?;
        let from = self.sysroot.root.join(path.trim_start_matches('/'));
        all.insert(path.to_owned(), from);
        Ok(all)
    }
}

impl Guest {
    /// Puts a file in, at a path from the root.
    fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        self.archive.file(name.trim_start_matches('/'), from)
    }

    /// Writes a file, at a path from the root.
    fn bytes(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.archive.bytes(name.trim_start_matches('/'), content, 0o644)
    }

    /// Puts in the libraries, where the loader looks, and ends it.
    fn finish(mut self) -> Result<()> {
        for (name, from) in &self.libraries {
            self.archive.file(name.trim_start_matches('/'), from)?;
        }
        self.archive.link("lib", "usr/lib")?;
        self.archive.link("lib64", "usr/lib64")?;
        self.archive.finish()
    }
}
