//! Xen: its source from Debian, the patches, the hypervisor's variants, and the tools.

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::{Context, Staged, remove};
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder};
use crate::process::run_logged;
use crate::progress::Progress;
use crate::sysroot::Sysroot;
use crate::tree::mirror;
use crate::variant::{BASE_CONFIG, Variant};

/// The release series that the patches are for. Debian moves the point release under us; the patches must still apply.
const SERIES: &str = "4.20.";

/// The tools are configured as Xen's own INSTALL lists it, without what a PVH guest does not need.
const CONFIGURE: &[&str] = &[
    "./configure",
    "--disable-docs",
    "--disable-stubdom",
    "--disable-qemu-traditional",
    "--disable-rombios",
    "--disable-seabios",
    "--disable-ovmf",
    "--disable-ipxe",
    "--disable-golang",
    "--disable-pygrub",
    "--disable-ocamltools",
    "--disable-xsmpolicy",
    "--disable-systemd",
    "--disable-pvshim",
    "--with-system-qemu=/usr/bin/false",
    "--without-vchan",
];

/// Patches for the lab alone: ways round mistakes of the emulator, and allocations that fail on purpose (docs/lab.md).
const LAB_ONLY: &[&str] = &[
    "tests/lab/xen/emulated-svm.patch",
    "tests/lab/xen/emulated-pae.patch",
    "tests/lab/xen/alloc-failure.patch",
];

/// The patched source.
pub(crate) struct Source {
    /// The build tree: source files that keep their times across changes, and the tools' objects.
    build: PathBuf,
    hypervisor_key: Key,
    tools_key: Key,
}

/// A built hypervisor.
pub(crate) struct Hypervisor {
    /// The directory with `xen` (for QEMU's multiboot loader), `xen.gz`, `xen-syms` and `xen.efi`.
    pub(crate) directory: PathBuf,
}

/// Xen's tools, installed below a directory of their own.
pub(crate) struct Tools {
    /// The directory that stands for `/`.
    pub(crate) root: PathBuf,
    /// Names what they were built from.
    pub(crate) key: Key,
}

/// Fetches, unpacks and patches Xen.
pub(crate) fn source(context: &Context, sysroot: &Sysroot) -> Result<Source> {
    let pristine = context.cached("xen/pristine");
    let fetched = KeyBuilder::new("xen/source", 1)
        .key(&sysroot.key)
        .text(SERIES)
        .finish();
    context.step("xen/source", &fetched, |progress| {
        fetch(context, sysroot, &pristine, progress)
    })?;

    let patches = context.repository.join("patches");
    let series = read_series(&patches)?;
    let mut files: Vec<PathBuf> = series.iter().map(|patch| patches.join(patch)).collect();
    // What they add is off in what a real host installs.
    files.extend(LAB_ONLY.iter().map(|patch| context.repository.join(patch)));
    let mut key = KeyBuilder::new("xen/patched", 2).key(&fetched);
    for file in &files {
        key = key
            .text(&file.file_name().unwrap_or_default().to_string_lossy())
            .file(file)?;
    }
    let patched = context.cached("xen/patched");
    let build = context.cached("xen/build");
    context.step("xen/patched", &key.finish(), |progress| {
        let log = context.step_log("xen/patched");
        let staged = Staged::directory(patched.clone())?;
        mirror(&pristine, &staged.path)?;
        for file in &files {
            let arguments = [
                "patch",
                "-p1",
                "--fuzz=0",
                "--no-backup-if-mismatch",
                "-i",
                &file.to_string_lossy(),
            ];
            run_logged(sysroot.command(&staged.path, &arguments), &log, progress)?;
        }
        mirror(&staged.path, &build)?;
        staged.commit()
    })?;
    let hypervisor_key = KeyBuilder::new("xen/hypervisor", 1)
        .key(&sysroot.key)
        .tree(&patched, |path| {
            path.starts_with("xen") || path.starts_with("config")
        })?
        .finish();
    // Nothing of the tools includes the hypervisor's own architecture code, which is where most patches go.
    let tools_key = KeyBuilder::new("xen/tools", 1)
        .key(&sysroot.key)
        .tree(&patched, |path| !path.starts_with("xen/arch"))?
        .finish();
    Ok(Source {
        build,
        hypervisor_key,
        tools_key,
    })
}

/// Builds one variant of the hypervisor, with `module`, the Rust object, linked in.
pub(crate) fn hypervisor(
    context: &Context,
    sysroot: &Sysroot,
    source: &Source,
    variant: Variant,
    module: &Path,
) -> Result<Hypervisor> {
    let objects = context.cached("xen/hypervisor").join(variant.name);
    let name = format!("xen/hypervisor/{}", variant.name);
    let config: Vec<&str> = [BASE_CONFIG, variant.config].concat();
    let mut key = KeyBuilder::new(&name, 1)
        .key(&source.hypervisor_key)
        .file(module)?;
    for line in &config {
        key = key.text(line);
    }
    context.step(&name, &key.finish(), |progress| {
        let log = context.step_log(&name);
        // Xen's dependency files hold whole paths: in a cache that was moved or copied they name files that are not there.
        let named = source.build.to_string_lossy();
        let home = objects.join(".lab-tree");
        if fs::read_to_string(&home).ok().as_deref() != Some(&*named) {
            remove(&objects)?;
        }
        fs::create_dir_all(&objects).on("create", &objects)?;
        fs::write(&home, &*named).on("write", &home)?;
        let settings = objects.join(".config");
        fs::write(&settings, config.join("\n") + "\n").on("write", &settings)?;
        let tree = source.build.join("xen");
        let out = format!("O={}", objects.display());
        run_logged(
            sysroot.command(&tree, &["make", &out, "olddefconfig"]),
            &log,
            progress,
        )?;
        check_config(&settings, &config)?;
        let jobs = jobs();
        let mut build = vec!["make", &out, &jobs];
        let module = format!("LACUNA_MODULE={}", module.display());
        build.push(&module);
        run_logged(sysroot.command(&tree, &build), &log, progress)?;
        for product in ["xen", "xen.gz", "xen-syms", "xen.efi"] {
            let path = objects.join(product);
            fs::metadata(&path).on("find the built", &path)?;
        }
        Ok(())
    })?;
    Ok(Hypervisor { directory: objects })
}

/// Builds the tools and installs them below a directory of the cache.
pub(crate) fn tools(context: &Context, sysroot: &Sysroot, source: &Source) -> Result<Tools> {
    let root = context.cached("xen/tools");
    context.step("xen/tools", &source.tools_key, |progress| {
        let log = context.step_log("xen/tools");
        let configured = KeyBuilder::new("xen/configure", 1)
            .key(&sysroot.key)
            .text(&CONFIGURE.join(" "));
        let configured = configured
            .tree(&source.build, |path| path.ends_with("configure"))?
            .finish();
        context.step("xen/configure", &configured, |progress| {
            run_logged(sysroot.command(&source.build, CONFIGURE), &log, progress)
        })?;
        let jobs = jobs();
        // Not `make -C tools`: the top makefile makes the public headers that the tools include.
        let build = ["make", &jobs, "build-tools", "CONFIG_TESTS=n"];
        run_logged(sysroot.command(&source.build, &build), &log, progress)?;
        let staged = Staged::directory(root.clone())?;
        let destination = format!("DESTDIR={}", staged.path.display());
        let install = ["make", "-C", "tools", &destination, "install", "CONFIG_TESTS=n"];
        run_logged(sysroot.command(&source.build, &install), &log, progress)?;
        staged.commit()
    })?;
    Ok(Tools {
        root,
        key: source.tools_key.clone(),
    })
}

/// Builds the library that receives guests from the source as Debian has it, in a copy of the built tree: a receiver that
/// knows nothing of Lacuna.
pub(crate) fn stock_receiver(
    context: &Context,
    sysroot: &Sysroot,
    source: &Source,
    tools: &Tools,
) -> Result<PathBuf> {
    const BUILT: &str = "tools/libs/guest/libxenguest.so.4.20";
    // Only what differs is copied, or make would build all of it again.
    const SCRIPT: &str = "set -e\ncp -a \"$1\" \"$2\"\ncd \"$3/tools/libs/guest\"\nfor file in *; do\n\
        cmp -s \"$file\" \"$2/tools/libs/guest/$file\" || cp \"$file\" \"$2/tools/libs/guest/$file\"\ndone\n\
        make -C \"$2/tools/libs/guest\" \"$4\"";
    let library = context.cached("xen/stock-libxenguest.so");
    let key = KeyBuilder::new("xen/stock-receiver", 1).key(&tools.key).finish();
    context.step("xen/stock-receiver", &key, |progress| {
        let log = context.step_log("xen/stock-receiver");
        let tree = Staged::file(context.cached("xen/stock-receiver"))?;
        let pristine = context.cached("xen/pristine");
        let names = [&source.build, &tree.path, &pristine].map(|path| path.to_string_lossy());
        let jobs = jobs();
        let line = ["sh", "-c", SCRIPT, "sh", &names[0], &names[1], &names[2], &jobs];
        run_logged(sysroot.command("/", &line), &log, progress)?;
        let staged = Staged::file(library.clone())?;
        let built = tree.path.join(BUILT);
        fs::copy(&built, &staged.path).on("copy", &built)?;
        staged.commit()?;
        remove(&tree.path)
    })?;
    Ok(library)
}

fn fetch(context: &Context, sysroot: &Sysroot, pristine: &Path, progress: &Progress) -> Result<()> {
    let log = context.step_log("xen/source");
    let download = Staged::directory(context.cached("xen/download"))?;
    // Asking for the package's description can fail while the tarball is there: what counts is what arrived.
    let fetched = run_logged(
        sysroot.command(&download.path, &["apt-get", "source", "--tar-only", "xen"]),
        &log,
        progress,
    );
    let arrived = fs::read_dir(&download.path).on("list", &download.path)?;
    let names: Vec<String> = arrived
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    let Some(tarball) = names.iter().find(|name| name.contains(".orig.tar")) else {
        fetched?;
        return Err(unexpected(
            "Xen's source package",
            "a file xen_*.orig.tar.*",
            &names.join(" "),
        ));
    };
    if !tarball.starts_with(&format!("xen_{SERIES}")) {
        return Err(unexpected(
            "Xen's version in Debian",
            &format!("{SERIES}x, for which the patches are"),
            tarball,
        ));
    }
    let staged = Staged::directory(pristine.to_path_buf())?;
    let from = download.path.join(tarball);
    let unpack = ["tar", "-x", "--strip-components=1", "-f", &from.to_string_lossy()];
    run_logged(sysroot.command(&staged.path, &unpack), &log, progress)?;
    staged.commit()?;
    remove(&download.path)
}

/// The patches of the quilt series in `directory`, in order; none when there is no series yet.
fn read_series(directory: &Path) -> Result<Vec<String>> {
    let path = directory.join("series");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).on("read", &path)?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(Into::into)
        .collect())
}

/// Kconfig drops what it does not know or whose dependencies fail without a word: look that each line is still there.
fn check_config(settings: &Path, wanted: &[&str]) -> Result<()> {
    let text = fs::read_to_string(settings).on("read", settings)?;
    match wanted
        .iter()
        .find(|wanted| !text.lines().any(|line| line == **wanted))
    {
        None => Ok(()),
        Some(dropped) => Err(unexpected(
            "Xen's configuration after olddefconfig",
            dropped,
            "the line is gone",
        )),
    }
}

fn jobs() -> String {
    format!(
        "-j{}",
        std::thread::available_parallelism().map_or(1, usize::from)
    )
}

fn unexpected(what: &str, expected: &str, seen: &str) -> Error {
    Error::Unexpected {
        what: what.to_owned(),
        expected: expected.to_owned(),
        seen: seen.to_owned(),
    }
}
