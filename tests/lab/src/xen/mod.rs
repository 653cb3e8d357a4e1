//! Xen: its source, the patches, the hypervisor's variants, and the tools.

pub(crate) mod check;
mod compile;
pub(crate) mod given;
pub(crate) mod own_tests;
pub(crate) mod patches;
pub(crate) mod prefixes;
pub(crate) mod series;
pub(crate) mod source;

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
use compile::Compile;
use patches::Patch;
use series::Series;
use source::{Origin, Pristine};

/// The source of [`old_glibc`]'s object.
const OLD_GLIBC: &str = include_str!("old_glibc.c");

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

/// The patched source.
#[derive(Clone)]
pub(crate) struct Source {
    /// The release series.
    pub(crate) series: Series,
    /// Where it came from.
    pub(crate) origin: Origin,
    /// The source without patches.
    pristine: PathBuf,
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
    /// The release series.
    pub(crate) series: Series,
    /// The directory that stands for `/`.
    pub(crate) root: PathBuf,
    /// Names what they were built from.
    pub(crate) key: Key,
}

/// A path of `series` in the cache.
pub(crate) fn place(context: &Context, series: Series, name: &str) -> PathBuf {
    context.cached("xen").join(series.name()).join(name)
}

/// The name of a step of `series`.
fn step_name(series: Series, name: &str) -> String {
    format!("xen/{}/{name}", series.name())
}

/// Patches a source.
pub(crate) fn source(context: &Context, sysroot: &Sysroot, pristine: Pristine) -> Result<Source> {
    let series = pristine.series;
    let mut files = patches::product(&context.repository, series)?;
    files.extend(patches::lab_only(&context.repository, series)?);
    let mut key = KeyBuilder::new("xen/patched", 3).key(&pristine.key());
    for patch in &files {
        key = key.text(&patch.name).file(&patch.file)?;
    }
    let patched = place(context, series, "patched");
    let build = place(context, series, "build");
    let name = step_name(series, "patched");
    context.step(&name, &key.finish(), |progress| {
        let log = context.step_log(&name);
        let staged = Staged::directory(patched.clone())?;
        mirror(&pristine.directory, &staged.path)?;
        for patch in &files {
            apply(sysroot, &staged.path, patch, &log, progress)?;
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
    let mut tools_key = KeyBuilder::new("xen/tools", 1)
        .key(&sysroot.key)
        .tree(&patched, |path| !path.starts_with("xen/arch"))?;
    if has_old_glibc(series) {
        tools_key = tools_key.text(OLD_GLIBC);
    }
    let tools_key = tools_key.finish();
    Ok(Source {
        series,
        origin: pristine.origin,
        pristine: pristine.directory,
        build,
        hypervisor_key,
        tools_key,
    })
}

/// Applies one patch to the source at `tree`, where its context has to fit exactly.
fn apply(sysroot: &Sysroot, tree: &Path, patch: &Patch, log: &Path, progress: &Progress) -> Result<()> {
    let file = patch.file.to_string_lossy();
    let line = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-i", &file];
    run_logged(sysroot.command(tree, &line), log, progress)
}

/// Builds one variant of the hypervisor, with `module`, the Rust object, linked in.
pub(crate) fn hypervisor(
    context: &Context,
    sysroot: &Sysroot,
    source: &Source,
    variant: Variant,
    module: &Path,
) -> Result<Hypervisor> {
    let objects = place(context, source.series, "hypervisor").join(variant.name);
    let name = step_name(source.series, &format!("hypervisor/{}", variant.name));
    let config: Vec<&str> = [BASE_CONFIG, variant.config].concat();
    let mut key = KeyBuilder::new(&name, 1)
        .key(&source.hypervisor_key)
        .file(module)?;
    for line in &config {
        key = key.text(line);
    }
    context.step(&name, &key.finish(), |progress| {
        let log = context.step_log(&name);
        // Xen's dependency files hold whole paths: in a cache that was moved or copied they name files that
        // are not there.
        let named = source.build.to_string_lossy();
        let home = objects.join(".lab-tree");
        if fs::read_to_string(&home).ok().as_deref() != Some(&*named) {
            remove(&objects)?;
        }
        fs::create_dir_all(&objects).on("create", &objects)?;
        fs::write(&home, &*named).on("write", &home)?;
        let compile = Compile {
            sysroot,
            tree: &source.build.join("xen"),
            objects: &objects,
            config: &config,
            module,
        };
        compile.run(&log, progress)?;
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
    let root = place(context, source.series, "tools");
    let name = step_name(source.series, "tools");
    context.step(&name, &source.tools_key, |progress| {
        let log = context.step_log(&name);
        let configured = KeyBuilder::new("xen/configure", 1)
            .key(&sysroot.key)
            .text(&CONFIGURE.join(" "));
        let configured = configured
            .tree(&source.build, |path| path.ends_with("configure"))?
            .finish();
        context.step(&step_name(source.series, "configure"), &configured, |progress| {
            run_logged(sysroot.command(&source.build, CONFIGURE), &log, progress)
        })?;
        let jobs = jobs();
        let linked = if has_old_glibc(source.series) {
            Some(old_glibc(sysroot, source, &log, progress)?)
        } else {
            None
        };
        // Not `make -C tools`: the top makefile makes the public headers that the tools include.
        let mut build = vec!["make", &jobs, "build-tools", "CONFIG_TESTS=n"];
        build.extend(linked.as_deref());
        run_logged(sysroot.command(&source.build, &build), &log, progress)?;
        let staged = Staged::directory(root.clone())?;
        let destination = format!("DESTDIR={}", staged.path.display());
        let mut install = vec!["make", "-C", "tools", &destination, "install", "CONFIG_TESTS=n"];
        install.extend(linked.as_deref());
        run_logged(sysroot.command(&source.build, &install), &log, progress)?;
        staged.commit()
    })?;
    Ok(Tools {
        series: source.series,
        root,
        key: source.tools_key.clone(),
    })
}

/// Whether the Debian with this series of Xen has an older glibc than the sysroot, with which its tools have to
/// run all the same.
const fn has_old_glibc(series: Series) -> bool {
    matches!(series, Series::V4_17)
}

/// Compiles what has a program run with an older glibc, and returns the setting of `make` that links it into
/// each of the tools.
fn old_glibc(sysroot: &Sysroot, tree: &Source, log: &Path, progress: &Progress) -> Result<String> {
    let (source, object) = (tree.build.join("old-glibc.c"), tree.build.join("old-glibc.o"));
    let linked = format!("APPEND_LDFLAGS={}", object.display());
    if fs::read_to_string(&source).is_ok_and(|text| text == OLD_GLIBC) && object.exists() {
        return Ok(linked);
    }
    // What was linked without it, or with another one, is not linked again by itself.
    let tools = tree.build.join("tools");
    run_logged(
        sysroot.command(&tools, &["make", "clean", "CONFIG_TESTS=n"]),
        log,
        progress,
    )?;
    fs::write(&source, OLD_GLIBC).on("write", &source)?;
    let (from, to) = (source.to_string_lossy(), object.to_string_lossy());
    let line = [
        "gcc",
        "-std=c99",
        "-O2",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Werror",
        "-c",
        "-o",
        &to,
        &from,
    ];
    run_logged(sysroot.command("/", &line), log, progress)?;
    Ok(linked)
}

/// Builds the library that receives guests from the source as Debian has it, in a copy of the built tree: a
/// receiver that knows nothing of Lacuna.
pub(crate) fn stock_receiver(
    context: &Context,
    sysroot: &Sysroot,
    source: &Source,
    tools: &Tools,
) -> Result<PathBuf> {
    // Only what differs is copied, or make would build all of it again.
    const SCRIPT: &str = "set -e\ncp -a \"$1\" \"$2\"\ncd \"$3/tools/libs/guest\"\nfor file in *; do\n\
        cmp -s \"$file\" \"$2/tools/libs/guest/$file\" || cp \"$file\" \"$2/tools/libs/guest/$file\"\ndone\n\
        make -C \"$2/tools/libs/guest\" \"$4\"";
    let library = place(context, source.series, "stock-libxenguest.so");
    let key = KeyBuilder::new("xen/stock-receiver", 1).key(&tools.key).finish();
    let name = step_name(source.series, "stock-receiver");
    context.step(&name, &key, |progress| {
        let log = context.step_log(&name);
        let tree = Staged::file(place(context, source.series, "stock-receiver"))?;
        let names = [&source.build, &tree.path, &source.pristine].map(|path| path.to_string_lossy());
        let jobs = jobs();
        let line = ["sh", "-c", SCRIPT, "sh", &names[0], &names[1], &names[2], &jobs];
        run_logged(sysroot.command("/", &line), &log, progress)?;
        let staged = Staged::file(library.clone())?;
        let built = tree
            .path
            .join("tools/libs/guest")
            .join(guest_library(source.series));
        fs::copy(&built, &staged.path).on("copy", &built)?;
        staged.commit()?;
        remove(&tree.path)
    })?;
    Ok(library)
}

/// The file name of the library that saves and restores guests.
pub(crate) fn guest_library(series: Series) -> String {
    format!("libxenguest.so.{}", series.name())
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
