//! Debian's stock kernels for guests and dom0, with the headers that guests' profiles are built from.
//!
//! Which versions there are is what the archive's index lists now; the newest that is served whole is taken.
//! Its packages are only unpacked: neither the machine's package sources nor the sysroot's are changed, and
//! nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::{self, Archive, Kind, Limits, Runner, entries};
use crate::context::{Context, Staged, remove};
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder, files_below};
use crate::process::run_logged;
use crate::sysroot::Sysroot;

/// A kernel the lab can boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The release series, which is also its name in the lab.
    pub(crate) series: &'static str,
    /// The Debian release that has it as its standard kernel.
    pub(crate) suite: &'static str,
}

impl Wanted {
    /// Its packages; `of_image` says what of the image's is unpacked.
    const fn packages(self, of_image: &'static [&'static str]) -> Packages<'static> {
        Packages {
            suite: self.suite,
            architecture: "amd64",
            kernel: archive::Wanted {
                series: Some(self.series),
                flavour: "amd64",
            },
            of_image,
        }
    }
}

/// The kernel of dom0 and of the newest stock guest.
pub(crate) const LINUX_6_12: Wanted = Wanted {
    series: "6.12",
    suite: "trixie",
};
/// The oldest stock kernel that gets guests in the quick runs.
pub(crate) const LINUX_6_1: Wanted = Wanted {
    series: "6.1",
    suite: "bookworm",
};

/// The guests' kernels.
pub(crate) const GUESTS: &[Wanted] = &[LINUX_6_12, LINUX_6_1];

/// A kernel, unpacked.
pub(crate) struct Kernel {
    /// The release series, which is also its name in dom0.
    pub(crate) series: &'static str,
    /// The release as `uname -r` tells it.
    pub(crate) release: String,
    /// The directory that stands for `/`: `boot/`, `usr/src/linux-headers-*`, and the modules of Xen's
    /// drivers.
    pub(crate) root: PathBuf,
}

impl Kernel {
    /// The compressed kernel image.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The headers that belong to it, the generated half; the other half lies beside it.
    pub(crate) fn headers(&self) -> PathBuf {
        self.root
            .join("usr/src")
            .join(format!("linux-headers-{}", self.release))
    }

    /// The compressed module `name`, wherever its package has it.
    pub(crate) fn module(&self, name: &str) -> Result<PathBuf> {
        module_below(&self.root, name)
    }
}

/// Finds the module `name` among the unpacked packages below `root`, compressed as its package has it.
pub(crate) fn module_below(root: &Path, name: &str) -> Result<PathBuf> {
    let plain = format!("{name}.ko");
    // Since 6.12 Debian compresses them.
    let packed = format!("{name}.ko.xz");
    let found = files_below(root)?
        .into_iter()
        .find(|path| path.ends_with(&packed) || path.ends_with(&plain));
    found
        .map(|path| root.join(path))
        .ok_or_else(|| Error::Unexpected {
            what: format!("the modules below {}", root.display()),
            expected: packed,
            seen: "no such file".to_owned(),
        })
}

/// Unpacks the module `name` that lies below `root`, into the cache.
pub(crate) fn plain_module(
    context: &Context,
    sysroot: &Sysroot,
    root: &Path,
    release: &str,
    name: &str,
) -> Result<PathBuf> {
    let plain = context.cached("kernels").join(format!("{release}-{name}.ko"));
    let packed = module_below(root, name)?;
    let step = format!("module/{release}-{name}");
    let key = KeyBuilder::new(&step, 2).file(&packed)?.finish();
    context.step(&step, &key, |progress| {
        let staged = Staged::file(plain.clone())?;
        let (from, to) = (packed.to_string_lossy(), staged.path.to_string_lossy());
        // -f leaves alone what is not compressed.
        let line = ["sh", "-c", "xz -dcf < \"$1\" > \"$2\"", "sh", &from, &to];
        run_logged(sysroot.command("/", &line), &context.step_log(&step), progress)?;
        staged.commit()
    })?;
    Ok(plain)
}

/// Names the step that fetches a kernel, and what it depends on.
pub(crate) fn step(wanted: Wanted) -> (String, Key) {
    let name = format!("kernel/{}", wanted.series);
    // Without the sysroot's key: a new sysroot does not change what Debian's kernels are.
    let key = KeyBuilder::new(&name, 2).text(wanted.suite).finish();
    (name, key)
}

/// Fetches and unpacks a kernel and its headers.
pub(crate) fn kernel(context: &Context, sysroot: &Sysroot, wanted: Wanted) -> Result<Kernel> {
    let (name, key) = step(wanted);
    let root = context.cached("kernels").join(wanted.series);
    // Of an image's 400 MB only what boots, Xen's own drivers, and the network card's that QEMU emulates.
    let packages = wanted.packages(&["./boot/*", "*/drivers/xen/*", "*/e1000/*"]);
    let release = packages.unpacked(context, sysroot, (&name, &key), &root)?;
    Ok(Kernel {
        series: wanted.series,
        release,
        root,
    })
}

/// Fetches and unpacks, of the packages of dom0's kernel, the drivers of the disks that QEMU emulates, with
/// what they need; returns where they are, and the release.
pub(crate) fn with_disks(context: &Context, sysroot: &Sysroot, wanted: Wanted) -> Result<(PathBuf, String)> {
    let name = format!("kernel/{}-disks", wanted.series);
    let root = context.cached("kernels").join(format!("{}-disks", wanted.series));
    let key = KeyBuilder::new(&name, 1).text(wanted.suite).finish();
    let packages = wanted.packages(&["*/drivers/nvme/*", "*/crypto/*", "*/lib/*"]);
    let release = packages.unpacked(context, sysroot, (&name, &key), &root)?;
    Ok((root, release))
}

/// Likewise, both ends of Xen's virtual disks, and a disk in memory.
pub(crate) fn with_xen_disks(
    context: &Context,
    sysroot: &Sysroot,
    wanted: Wanted,
) -> Result<(PathBuf, String)> {
    let name = format!("kernel/{}-xen-disks", wanted.series);
    let root = context
        .cached("kernels")
        .join(format!("{}-xen-disks", wanted.series));
    let key = KeyBuilder::new(&name, 1).text(wanted.suite).finish();
    let packages = wanted.packages(&["*/drivers/block/*"]);
    let release = packages.unpacked(context, sysroot, (&name, &key), &root)?;
    Ok((root, release))
}

/// A kernel's packages: which, and what of them is used.
pub(crate) struct Packages<'a> {
    /// The Debian release.
    pub(crate) suite: &'static str,
    /// Debian's architecture.
    pub(crate) architecture: &'static str,
    /// The kernel.
    pub(crate) kernel: archive::Wanted<'a>,
    /// Patterns, as tar understands them, of what is unpacked of the image; headers are unpacked whole.
    pub(crate) of_image: &'a [&'a str],
}

impl Packages<'_> {
    /// Downloads the newest that is served and unpacks it below `root`; returns its release, as `uname -r`
    /// tells it. What is there already is kept.
    pub(crate) fn unpacked(
        &self,
        context: &Context,
        sysroot: &Sysroot,
        (name, key): (&str, &Key),
        root: &Path,
    ) -> Result<String> {
        let stated = root.join("release");
        context.download(name, key, |progress| {
            let suites = suites_of(self.suite);
            let archive = Archive::open(
                context,
                &format!("linux-{}-{}", self.suite, self.architecture),
                Runner::Sysroot(sysroot),
                &entries(
                    context,
                    &suites.iter().map(String::as_str).collect::<Vec<_>>(),
                    &[Kind::Binaries(self.architecture)],
                )?,
                Limits::default(),
                progress,
            )?;
            let what = format!(
                "Linux {} ({}) of {} with its headers",
                self.kernel.series.unwrap_or("of any version"),
                self.kernel.flavour,
                self.suite
            );
            let download = root.with_extension("download");
            fs::create_dir_all(&download).on("create", &download)?;
            let chosen = archive.first_served(
                &what,
                archive.kernels(self.kernel)?,
                &download,
                "fill the cache on a machine whose archive serves one, and move it here (docs/lab.md)",
                progress,
            )?;
            progress.line(&format!("lab: {what}: {}", chosen.candidate));
            let staged = Staged::directory(root.to_path_buf())?;
            let to = staged.path.to_string_lossy().into_owned();
            for path in &chosen.paths {
                let package = path.to_string_lossy();
                let is_headers = path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("linux-headers"));
                let line = if is_headers {
                    vec!["dpkg-deb", "-x", &*package, &*to]
                } else {
                    // A pattern without a match is no failure here: whoever needs the file says so.
                    let script = "package=$1 to=$2; shift 2\n\
                        dpkg-deb --fsys-tarfile \"$package\" | tar -x -C \"$to\" --wildcards \"$@\" 2>&1 | \
                        grep -v -e 'Not found in archive' -e 'Exiting with failure status' || true";
                    let mut line = vec!["sh", "-c", script, "sh", &*package, &*to];
                    line.extend(self.of_image);
                    line
                };
                run_logged(sysroot.command("/", &line), &context.step_log(name), progress)?;
            }
            let stated = staged.path.join("release");
            fs::write(&stated, chosen.candidate.kernel_release()).on("write", &stated)?;
            staged.commit()?;
            remove(&download)
        })?;
        fs::read_to_string(&stated).on("read", &stated)
    }
}

/// The suites in which packages of a Debian release are looked for.
fn suites_of(release: &str) -> Vec<String> {
    // What is not released has no such companions.
    if release == "sid" {
        return vec![release.to_owned()];
    }
    ["", "-updates", "-security", "-proposed-updates"]
        .iter()
        .map(|companion| format!("{release}{companion}"))
        .collect()
}
