//! dom0's image with the guest in it.

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_scenarios::wire::Trial;

use super::{Options, Plan, drives, kernel};
use crate::context::Staged;
use crate::device_model;
use crate::error::{Error, IoContext, Result};
use crate::image::{Images, start_guest};
use crate::layouts;
use crate::programs;
use crate::progress::Progress;
use crate::setup::Stage;
use crate::xen::place;

/// Where the guest's files are in dom0.
const FOLDER: &str = "guests/try";

/// Directories that the sysroot's own programs need: none of the machine's is seen in their place.
const NEEDED: &[&str] = &[
    "/",
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/libexec",
    "/usr/share",
    "/var",
];

/// The files that go in, and the options that name them.
#[derive(Default)]
struct Contents {
    files: Vec<(String, PathBuf)>,
    attach: Vec<String>,
    identify: Vec<String>,
}

impl Contents {
    /// Puts `file` in as `name`, and returns its path in dom0.
    fn put(&mut self, name: &str, file: &Path) -> String {
        let inside = format!("{FOLDER}/{name}");
        self.files.push((inside.clone(), file.to_path_buf()));
        format!("/{inside}")
    }

    /// The same for a file that `lacuna attach` takes by `option`.
    fn put_for_attach(&mut self, name: &str, file: &Path, option: &str) -> String {
        let inside = self.put(name, file);
        self.attach.extend([option.to_owned(), inside.clone()]);
        inside
    }
}

/// Makes the image and the order.
pub(super) fn build(stage: &Stage, options: &Options) -> Result<Plan> {
    let mut contents = Contents::default();
    let kernel = options.kernel.as_ref().map(|file| contents.put("kernel", file));
    let (initrd, agent) = initrd(stage, options, &mut contents)?;
    if let Some(tree) = options.headers.as_ref().or(options.source.as_ref()) {
        let layout = layout(stage, tree, options)?;
        contents.put_for_attach("layout.json", &layout, "--layout");
    }
    if let Some(file) = &options.config {
        contents.put_for_attach("config", file, "--config");
    }
    if let Some(file) = &options.system_map {
        let inside = contents.put_for_attach("System.map", file, "--system-map");
        contents.identify.extend(["--system-map".to_owned(), inside]);
    }
    if let Some(file) = &options.pdb {
        let inside = contents.put_for_attach("kernel.pdb", file, "--pdb");
        contents.identify.extend(["--pdb".to_owned(), inside]);
        for list in [&mut contents.attach, &mut contents.identify] {
            list.push("--offline".to_owned());
        }
    }
    if options.hvm {
        contents.files.extend(device_model(stage)?);
    }
    let drives = drives::of(stage, options, &mut contents.files)?;
    let trial = Trial {
        kernel,
        initrd,
        append: options.append.clone(),
        agent,
        hvm: options.hvm,
        mib: options.memory,
        vcpus: options.vcpus,
        disk: drives.disk,
        cdrom: drives.cdrom,
        attach: contents.attach,
        identify: contents.identify,
        boot_seconds: options.boot_limit,
        rounds: options.rounds,
    };
    Ok(Plan {
        trial,
        images: written(stage, &contents.files)?,
        drives: drives.machine,
    })
}

/// The guest's initial file system: the user's, or the lab's, with the agent in it.
fn initrd(stage: &Stage, options: &Options, contents: &mut Contents) -> Result<(Option<String>, bool)> {
    if let Some(file) = &options.initrd {
        return Ok((Some(contents.put("initrd", file)), false));
    }
    let Some(file) = &options.kernel else {
        return Ok((None, false));
    };
    if options.disk.is_some() || options.cdrom.is_some() {
        return Ok((None, false));
    }
    let context = stage.context();
    let agent = if kernel::is_64_bit(file, options.system_map.as_deref())? {
        programs::agent_of_old_kernels(context)?
    } else {
        programs::agent_i386(context)?
    };
    let made = Staged::file(context.cached("trial/initrd.cpio"))?;
    start_guest(&made.path, &agent)?.finish()?;
    made.commit()?;
    Ok((
        Some(contents.put("initrd", &context.cached("trial/initrd.cpio"))),
        true,
    ))
}

/// Has `lacuna` make a layout of the user's headers or sources, with the sysroot's compiler.
fn layout(stage: &Stage, tree: &Path, options: &Options) -> Result<PathBuf> {
    let context = stage.context();
    let tree = fs::canonicalize(tree).on("find", tree)?;
    let config = options
        .config
        .as_ref()
        .map(|file| fs::canonicalize(file).on("find", file))
        .transpose()?;
    let release = options
        .kernel
        .as_deref()
        .map(kernel::release)
        .transpose()?
        .flatten();
    let others = config.iter().cloned().chain([seen_for(&tree)]);
    let made = Staged::file(context.cached("trial/layout.json"))?;
    let progress = Progress::begin("the layout of the guest's kernel");
    let order = layouts::Order {
        lacuna: &stage.lacuna,
        headers: &tree,
        config: config.as_deref(),
        release: release.as_deref(),
        out: &made.path,
    };
    let log = context.step_log("trial-layout");
    order.run(&stage.sysroot.seeing(others), &log, &progress)?;
    progress.done();
    made.commit()?;
    Ok(context.cached("trial/layout.json"))
}

/// What must be seen for the headers in `tree`: the folder that it is in, for distributions put half of a
/// kernel's headers beside the other half.
fn seen_for(tree: &Path) -> PathBuf {
    match tree.parent() {
        Some(parent) if !NEEDED.iter().any(|needed| parent == Path::new(needed)) => parent.to_path_buf(),
        _ => tree.to_path_buf(),
    }
}

/// The device model, where there is one.
fn device_model(stage: &Stage) -> Result<Vec<(String, PathBuf)>> {
    if stage.series() != device_model::SERIES {
        return Err(Error::Unexpected {
            what: "the series of Xen for --hvm".to_owned(),
            expected: format!(
                "{}, which Debian 13's device model is linked with: `cargo lab --xen {0} try …`, with --xen-source where \
                 the archive does not serve it",
                device_model::SERIES.name()
            ),
            seen: stage.series().name().to_owned(),
        });
    }
    device_model::files(stage.context(), &stage.sysroot, &stage.tools)
}

fn written(stage: &Stage, files: &[(String, PathBuf)]) -> Result<Images> {
    let image = place(stage.context(), stage.series(), "images/try.cpio");
    stage.images.extend(&image, |archive| {
        for (name, file) in files {
            archive.file(name, file)?;
        }
        Ok(())
    })?;
    Ok(stage.images.with_dom0(image))
}

#[cfg(test)]
mod tests {
    use super::seen_for;
    use std::path::Path;

    #[test]
    fn the_folder_around_headers_is_seen_but_none_that_hides_the_compiler() {
        for (tree, seen) in [
            ("/usr/src/linux-headers-6.1-amd64", "/usr/src"),
            ("/root/headers", "/root"),
            ("/usr/headers", "/usr/headers"),
            ("/headers", "/headers"),
        ] {
            assert_eq!(seen_for(Path::new(tree)), Path::new(seen));
        }
    }
}
