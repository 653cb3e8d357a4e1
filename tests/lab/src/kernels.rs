//! Debian's stock kernels for guests and dom0, with the headers that guests' profiles are built from.
//!
//! They are fetched with a private apt configuration inside the sysroot and only unpacked: neither the machine's package
//! sources nor the sysroot's are changed, and nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::{Context, Staged};
use crate::error::{Error, IoContext, Result};
use crate::key::KeyBuilder;
use crate::process::{output, run_logged};
use crate::sysroot::{Sysroot, archive_uri};

/// A kernel the lab can boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The release series, which is also its name in the lab.
    pub(crate) series: &'static str,
    /// The Debian release that has it as its standard kernel.
    pub(crate) suite: &'static str,
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
    /// The release as `uname -r` tells it.
    pub(crate) release: String,
    /// The directory that stands for `/`: `boot/`, `usr/src/linux-headers-*`, and the modules of Xen's drivers.
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
        let file = format!("{name}.ko.xz");
        let found = crate::key::files_below(&self.root)?
            .into_iter()
            .find(|path| path.ends_with(&file));
        found
            .map(|path| self.root.join(path))
            .ok_or_else(|| Error::Unexpected {
                what: format!("the modules of {}", self.release),
                expected: file,
                seen: "no such file".to_owned(),
            })
    }
}

/// Fetches and unpacks a kernel and its headers.
pub(crate) fn kernel(context: &Context, sysroot: &Sysroot, wanted: Wanted) -> Result<Kernel> {
    let name = format!("kernel/{}", wanted.series);
    let root = context.cached("kernels").join(wanted.series);
    // Without the sysroot's key: a new sysroot does not change what Debian's kernels are.
    let key = KeyBuilder::new(&name, 1).text(wanted.suite).finish();
    context.step(&name, &key, |progress| {
        let log = context.step_log(&name);
        let apt = PrivateApt::new(context, sysroot, wanted.suite, "amd64")?;
        run_logged(apt.command("apt-get", &["update"]), &log, progress)?;
        let meta = output(apt.command("apt-cache", &["depends", "linux-image-amd64"]), &log)?;
        let image = dependency(&meta, wanted.series)?;
        let release = image.trim_start_matches("linux-image-").to_owned();
        let headers = format!("linux-headers-{release}");
        let common = output(apt.command("apt-cache", &["depends", &headers]), &log)?;
        let common = common
            .split_whitespace()
            .find(|word| word.ends_with("-common"))
            .unwrap_or_default()
            .to_owned();
        run_logged(
            apt.command("apt-get", &["download", &image, &headers, &common]),
            &log,
            progress,
        )?;
        let staged = Staged::directory(root.clone())?;
        for package in packages(&apt.directory)? {
            let to = staged.path.to_string_lossy().into_owned();
            // Of an image's 400 MB only what boots and Xen's own drivers is used.
            let script = if package.contains("linux-image") {
                "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --wildcards './boot/*' '*/drivers/xen/*'"
            } else {
                "dpkg-deb -x \"$1\" \"$2\""
            };
            run_logged(
                sysroot.command(&apt.directory, &["sh", "-c", script, "sh", &package, &to]),
                &log,
                progress,
            )?;
        }
        let stated = staged.path.join("release");
        fs::write(&stated, &release).on("write", &stated)?;
        staged.commit()?;
        fs::remove_dir_all(&apt.directory).on("remove", &apt.directory)
    })?;
    let stated = root.join("release");
    Ok(Kernel {
        release: fs::read_to_string(&stated).on("read", &stated)?,
        root,
    })
}

/// Fetches one more module of the amd64 kernel `release`: what boots everywhere is unpacked with the kernel, which this
/// leaves alone.
pub(crate) fn extra_module(
    context: &Context,
    sysroot: &Sysroot,
    suite: &str,
    release: &str,
    module: &str,
) -> Result<PathBuf> {
    let name = format!("module/{module}");
    let plain = context.cached("kernels").join(format!("{module}.ko"));
    let key = KeyBuilder::new(&name, 1).text(release).finish();
    context.step(&name, &key, |progress| {
        let log = context.step_log(&name);
        let apt = PrivateApt::new(context, sysroot, suite, "amd64")?;
        run_logged(apt.command("apt-get", &["update"]), &log, progress)?;
        let image = format!("linux-image-{release}");
        run_logged(apt.command("apt-get", &["download", &image]), &log, progress)?;
        let packages = packages(&apt.directory)?;
        let package = packages.first().map(String::as_str).unwrap_or_default();
        let staged = Staged::file(plain.clone())?;
        let to = staged.path.to_string_lossy();
        let file = format!("*/{module}.ko*");
        // Since 6.12 Debian compresses them: -f leaves alone what is not.
        let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -x -O --wildcards \"$2\" | xz -dcf > \"$3\"";
        let line = ["sh", "-c", script, "sh", package, &file, &to];
        run_logged(sysroot.command(&apt.directory, &line), &log, progress)?;
        crate::context::remove(&apt.directory)?;
        staged.commit()
    })?;
    Ok(plain)
}

/// An apt that looks at one suite and architecture only and keeps its state to itself.
pub(crate) struct PrivateApt<'a> {
    sysroot: &'a Sysroot,
    /// Where it downloads to.
    pub(crate) directory: PathBuf,
    architecture: &'static str,
}

impl<'a> PrivateApt<'a> {
    /// Its directory is made anew.
    pub(crate) fn new(
        context: &Context,
        sysroot: &'a Sysroot,
        suite: &str,
        architecture: &'static str,
    ) -> Result<Self> {
        let directory = context
            .cached("kernels")
            .join(format!("apt-{suite}-{architecture}"));
        crate::context::remove(&directory)?;
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(below)).on("create", directory.join(below))?;
        }
        let sources = directory.join("sources.list");
        fs::write(&sources, format!("deb {} {suite} main\n", archive_uri(context)?)).on("write", &sources)?;
        let status = directory.join("status");
        fs::write(&status, "").on("write", &status)?;
        Ok(Self {
            sysroot,
            directory,
            architecture,
        })
    }

    /// One of apt's programs with this configuration, in the directory.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> std::process::Command {
        let at = self.directory.display();
        let options = [
            format!("Dir::Etc::sourcelist={at}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::State::status={at}/status"),
            format!("Dir::Cache={at}/cache"),
            // apt's unprivileged download user cannot enter root's own directories.
            "APT::Sandbox::User=root".to_owned(),
            // The archive in use may be a snapshot of an earlier day. Signatures are checked all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures::={}", self.architecture),
        ];
        let mut line = vec![program];
        for option in &options {
            line.extend(["-o", option]);
        }
        line.extend(arguments);
        self.sysroot.command(&self.directory, &line)
    }
}

/// The real package behind the meta-package, which must be of the series the lab knows.
fn dependency(meta: &str, series: &str) -> Result<String> {
    let prefix = format!("linux-image-{series}.");
    let found = meta.split_whitespace().find(|word| word.starts_with(&prefix));
    found.map(ToOwned::to_owned).ok_or_else(|| Error::Unexpected {
        what: "the kernel that linux-image-amd64 depends on".to_owned(),
        expected: format!("{prefix}*"),
        seen: meta.to_owned(),
    })
}

/// The packages in a directory, in order.
pub(crate) fn packages(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).on("list", directory)? {
        let name = entry
            .on("list", directory)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}
