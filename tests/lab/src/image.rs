//! The initial file systems of dom0 and of the guests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::context::{Context, Staged};
use crate::cpio::Archive;
use crate::error::{Error, IoContext, Result};
use crate::kernels::{Kernel, plain_module};
use crate::key::KeyBuilder;
use crate::process::output;
use crate::programs::Programs;
use crate::sysroot::Sysroot;
use crate::xen::series::Series;
use crate::xen::{Tools, guest_library, place};

/// Xen's drivers that dom0 loads, in this order.
const MODULES: &[&str] = &["xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc"];

/// The driver of the network card that QEMU emulates for two hosts.
const NETWORK_CARD: &str = "e1000";

/// Xen's programs in dom0, below the tools' root.
const XEN_PROGRAMS: &[&str] = &[
    "usr/local/sbin/xenstored",
    "usr/local/sbin/xenconsoled",
    "usr/local/sbin/xl",
    "usr/local/bin/xenstore-ls",
    "usr/local/bin/xenstore-read",
    "usr/local/lib/xen/bin/xen-init-dom0",
    "usr/local/lib/xen/bin/libxl-save-helper",
    "usr/local/lib/xen/bin/xenctx",
];

/// Xen's own checker of migration streams, and the modules that it is made of, below the tools' root.
const CHECKER: &str = "usr/local/lib/xen/bin/verify-stream-v2";
const CHECKER_MODULES: &[&str] = &["__init__.py", "util.py", "migration"];

/// The directory of the library of a receiver without Lacuna, which is found there by a search path of its
/// own.
const STOCK_LIBRARIES: &str = "usr/local/lib/stock";

/// Lists the files of the smallest Python that Debian has, in the version that the sysroot has. The packages'
/// own list leaves out what Python makes when it runs.
const PYTHON_FILES: &str = "version=$(basename $(readlink -f /usr/bin/python3)) && \
    dpkg-query --listfiles lib$version-minimal $version-minimal | grep -E \"^/usr/(bin|lib)/$version(/|\\$)\"";

/// Loaded by name at run time, so no program's list of libraries has it: without it `pthread_cancel` aborts
/// xl.
const LOADED_BY_NAME: &str = "usr/lib/x86_64-linux-gnu/libgcc_s.so.1";

/// Debian's kexec, in the sysroot and in the guests that use it.
const KEXEC: &str = "usr/sbin/kexec";

/// Directories that Xen's programs expect.
const DIRECTORIES: &[&str] = &[
    "proc",
    "sys",
    "dev",
    "run/xen",
    "run/lock",
    "tmp",
    "root",
    "var/log/xen/console",
    "var/lib/xen",
];

/// The images that an emulation boots.
pub(crate) struct Images {
    /// dom0's initial file system.
    pub(crate) dom0: PathBuf,
    /// dom0's kernel.
    pub(crate) kernel: PathBuf,
}

impl Images {
    /// Writes dom0's image with what `fill` adds to `image`: an archive behind dom0's own, which the kernel
    /// unpacks over that.
    pub(crate) fn extend(&self, image: &Path, fill: impl FnOnce(&mut Archive) -> Result<()>) -> Result<()> {
        let staged = Staged::file(image.to_owned())?;
        let mut archive = Archive::create(&staged.path)?;
        fill(&mut archive)?;
        archive.finish()?;
        let mut both = fs::read(&self.dom0).on("read", &self.dom0)?;
        // An archive begins at a multiple of four bytes.
        both.resize(both.len().next_multiple_of(4), 0);
        both.extend(fs::read(&staged.path).on("read", &staged.path)?);
        fs::write(&staged.path, both).on("write", &staged.path)?;
        staged.commit()
    }

    /// The same kernel with another image of dom0.
    pub(crate) fn with_dom0(&self, dom0: PathBuf) -> Self {
        Self {
            dom0,
            kernel: self.kernel.clone(),
        }
    }
}

/// Writes dom0's image, with one guest's kernel inside it, which is dom0's own, and that kernel's `layout`:
/// its name in dom0, and where it comes from.
pub(crate) fn base(
    context: &Context,
    sysroot: &Sysroot,
    tools: &Tools,
    programs: &Programs,
    (kernel, layout): (&Kernel, &(String, PathBuf)),
) -> Result<Images> {
    let image = place(context, tools.series, "images/dom0.cpio");
    let mut key = KeyBuilder::new("images", 6)
        .key(&sysroot.key)
        .key(&tools.key)
        .text(&kernel.release)
        .text(&layout.0)
        .file(&layout.1)?;
    for part in [
        &programs.driver,
        &programs.agent,
        &programs.lacuna,
        &programs.lacunad,
    ] {
        key = key.file(part)?;
    }
    context.step(&step_name(tools.series, "dom0"), &key.finish(), |_| {
        let agent = Staged::file(place(context, tools.series, "images/guest.cpio"))?;
        guest(&agent.path, &programs.agent)?;
        let staged = Staged::file(image.clone())?;
        let mut archive = Archive::create(&staged.path)?;
        for directory in DIRECTORIES {
            archive.directory(directory)?;
        }
        archive.link("var/run", "/run")?;
        archive.link("var/lock", "/run/lock")?;
        archive.file("init", &programs.driver)?;
        archive.file("usr/bin/lacuna", &programs.lacuna)?;
        archive.file("usr/bin/lacunad", &programs.lacunad)?;
        archive.file("bin/busybox", &sysroot.root.join("usr/bin/busybox"))?;
        archive.bytes("etc/xen/xl.conf", b"autoballoon=\"off\"\n", 0o644)?;
        archive.bytes("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
        let mut libraries = BTreeMap::new();
        for program in XEN_PROGRAMS {
            let path = tools.root.join(program);
            archive.file(program, &path)?;
            libraries.extend(libraries_of(context, sysroot, tools, &path)?);
        }
        libraries.extend(libraries_of(context, sysroot, tools, &programs.lacuna)?);
        libraries.insert(format!("/{LOADED_BY_NAME}"), sysroot.root.join(LOADED_BY_NAME));
        for (name, from) in &libraries {
            archive.file(name.trim_start_matches('/'), from)?;
        }
        // Where the loader looks first; the packages have their libraries below /usr.
        archive.link("lib", "usr/lib")?;
        archive.link("lib64", "usr/lib64")?;
        for (order, module) in MODULES.iter().enumerate() {
            let packed = kernel.module(module)?;
            let plain = place(context, tools.series, "images").join(format!("{module}.ko"));
            let script = "xz -dc \"$1\" > \"$2\"";
            let (from, to) = (packed.to_string_lossy(), plain.to_string_lossy());
            let arguments = ["sh", "-c", script, "sh", &from, &to];
            output(sysroot.command("/", &arguments), &context.step_log("images"))?;
            archive.file(&format!("modules/{order}-{module}.ko"), &plain)?;
        }
        archive.file(&layout.0, &layout.1)?;
        archive.file(&format!("guests/{}/vmlinuz", kernel.series), &kernel.image())?;
        archive.file("guests/initrd", &agent.path)?;
        archive.finish()?;
        agent.commit()?;
        staged.commit()
    })?;
    Ok(Images {
        dom0: image,
        kernel: kernel.image(),
    })
}

/// What the scenarios of a plain test run need beyond one guest.
pub(crate) struct More<'a> {
    /// Xen's tools.
    pub(crate) tools: &'a Tools,
    /// The guests' first process.
    pub(crate) agent: &'a Path,
    /// The library of a receiver without Lacuna.
    pub(crate) stock_receiver: &'a Path,
    /// The kernel that a guest with kexec has.
    pub(crate) kernel: &'a Kernel,
    /// Files that go in as they are: their names in dom0, and where they come from.
    pub(crate) files: &'a [(String, PathBuf)],
}

/// Writes an archive with `more` behind the one of `base`.
pub(crate) fn with_more(context: &Context, sysroot: &Sysroot, base: &Images, more: &More) -> Result<Images> {
    let series = more.tools.series;
    let image = place(context, series, "images/tests.cpio");
    let mut key = KeyBuilder::new("images/tests", 1)
        .file(&base.dom0)?
        .file(more.agent)?
        .file(more.stock_receiver)?
        .text(&more.kernel.release);
    for (name, file) in more.files {
        key = key.text(name).file(file)?;
    }
    context.step(&step_name(series, "tests"), &key.finish(), |_| {
        // One kernel is enough: what is shown is Lacuna's identity check, not Linux' kexec.
        let agent = Staged::file(place(context, series, "images/guest-again.cpio"))?;
        guest(&agent.path, more.agent)?;
        let kexec = Staged::file(place(context, series, "images/kexec.cpio"))?;
        kexec_guest(context, sysroot, more, &kexec.path, &agent.path)?;
        base.extend(&image, |archive| {
            let python = Path::new("/usr/bin/python3");
            for (name, from) in &libraries_of(context, sysroot, more.tools, python)? {
                archive.file(name.trim_start_matches('/'), from)?;
            }
            checker(context, sysroot, more.tools, archive)?;
            let library = format!("{STOCK_LIBRARIES}/{}", guest_library(series));
            archive.file(&library, more.stock_receiver)?;
            for (name, file) in more.files {
                archive.file(name, file)?;
            }
            archive.file("guests/kexec.initrd", &kexec.path)
        })?;
        agent.commit()?;
        kexec.commit()
    })?;
    Ok(base.with_dom0(image))
}

/// The name of the step that makes the image called `name`.
pub(crate) fn step_name(series: Series, name: &str) -> String {
    format!("images/{}/{name}", series.name())
}

/// The same images with the driver of the emulator's network card: an archive behind the other, which the
/// kernel unpacks over it.
pub(crate) fn with_network(
    context: &Context,
    sysroot: &Sysroot,
    kernel: &Kernel,
    (series, images): (Series, &Images),
) -> Result<Images> {
    let module = plain_module(context, sysroot, &kernel.root, &kernel.release, NETWORK_CARD)?;
    let image = place(context, series, "images/network.cpio");
    let key = KeyBuilder::new("images/network", 1)
        .file(&images.dom0)?
        .file(&module)?;
    context.step(&step_name(series, "network"), &key.finish(), |_| {
        images.extend(&image, |archive| {
            archive.file(&format!("modules/{}-{NETWORK_CARD}.ko", MODULES.len()), &module)
        })
    })?;
    Ok(images.with_dom0(image))
}

/// Xen's checker of migration streams, as `/usr/local/lib/xen/bin/verify-stream-v2`, with the Python that
/// runs it.
fn checker(context: &Context, sysroot: &Sysroot, tools: &Tools, archive: &mut Archive) -> Result<()> {
    let log = context.step_log("images");
    let listing = output(sysroot.command("/", &["sh", "-c", PYTHON_FILES]), &log)?;
    let mut packages = String::new();
    for name in listing.lines().map(|name| name.trim_start_matches('/')) {
        let from = sysroot.root.join(name);
        if !from.is_file() {
            continue;
        }
        archive.file(name, &from)?;
        if let Some(program) = name.strip_prefix("usr/bin/") {
            archive.link("usr/bin/python3", program)?;
            packages = format!("usr/local/lib/{program}/dist-packages/xen");
        }
    }
    archive.file(CHECKER, &tools.root.join(CHECKER))?;
    for module in CHECKER_MODULES {
        let path = tools.root.join(&packages).join(module);
        let files = if path.is_dir() {
            let entries = fs::read_dir(&path).on("list", &path)?;
            let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.sort();
            files
        } else {
            vec![path]
        };
        for file in files
            .iter()
            .filter(|file| file.extension().is_some_and(|kind| kind == "py"))
        {
            let name = file.strip_prefix(&tools.root).unwrap_or(file).to_string_lossy();
            archive.file(&name, file)?;
        }
    }
    Ok(())
}

/// A guest's whole file system: the agent.
fn guest(path: &Path, agent: &Path) -> Result<()> {
    start_guest(path, agent)?.finish()
}

/// The same for a guest that replaces its kernel: with kexec, and the next kernel and file system.
fn kexec_guest(context: &Context, sysroot: &Sysroot, more: &More, path: &Path, initrd: &Path) -> Result<()> {
    let mut archive = start_guest(path, more.agent)?;
    archive.file(KEXEC, &sysroot.root.join(KEXEC))?;
    let program = Path::new("/").join(KEXEC);
    for (name, from) in &libraries_of(context, sysroot, more.tools, &program)? {
        archive.file(name.trim_start_matches('/'), from)?;
    }
    archive.link("lib", "usr/lib")?;
    archive.link("lib64", "usr/lib64")?;
    archive.file("boot/vmlinuz", &more.kernel.image())?;
    archive.file("boot/initrd", initrd)?;
    archive.finish()
}

/// Begins a guest's file system, with `agent` as its first process.
pub(crate) fn start_guest(path: &Path, agent: &Path) -> Result<Archive> {
    let mut archive = Archive::create(path)?;
    for directory in ["proc", "sys", "dev", "tmp"] {
        archive.directory(directory)?;
    }
    archive.file("init", agent)?;
    Ok(archive)
}

/// The libraries that a program needs: their paths in dom0, and the files. As the sysroot's own loader finds
/// them.
pub(crate) fn libraries_of(
    context: &Context,
    sysroot: &Sysroot,
    tools: &Tools,
    program: &Path,
) -> Result<BTreeMap<String, PathBuf>> {
    let search = format!("LD_LIBRARY_PATH={}/usr/local/lib", tools.root.display());
    let program = program.to_string_lossy();
    let listing = output(
        sysroot.command("/", &["env", &search, "ldd", &program]),
        &context.step_log("images"),
    )?;
    let mut found = BTreeMap::new();
    for line in listing.lines() {
        if line.contains("not found") {
            return Err(Error::Unexpected {
                what: format!("the libraries of {program}"),
                expected: "all of them in the sysroot or among Xen's tools".to_owned(),
                seen: line.trim().to_owned(),
            });
        }
        // `name => /path (address)`, or `/path (address)` for the loader itself; the kernel's vdso has no
        // path.
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let inside = path.strip_prefix(&*tools.root.to_string_lossy()).unwrap_or(path);
        let from = if inside == path {
            sysroot.root.join(path.trim_start_matches('/'))
        } else {
            PathBuf::from(path)
        };
        // One tree in dom0, as in Debian: /lib is a link to /usr/lib.
        let name = if inside.starts_with("/lib") {
            format!("/usr{inside}")
        } else {
            inside.to_owned()
        };
        found.insert(name, from);
    }
    Ok(found)
}
