//! What an HVM guest needs in dom0: Debian's QEMU for Xen, its libraries and ROMs, a BIOS, and hvmloader.
//!
//! The libraries of Xen are those that the lab builds; their versions are the same.

use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::{Archive, Kind, Limits, Runner, SUITES, entries};
use crate::context::{Context, Staged, remove};
use crate::error::{IoContext, Result};
use crate::image::libraries_of;
use crate::key::KeyBuilder;
use crate::process::run_logged;
use crate::sysroot::Sysroot;
use crate::xen::Tools;
use crate::xen::series::Series;

/// The series of Xen whose libraries Debian 13's QEMU is linked with, and whose hvmloader Debian 13 has. With
/// another one there is no HVM guest in the lab.
pub(crate) const SERIES: Series = Series::V4_20;

/// Installed in the sysroot, which has QEMU's own ROMs already.
const PACKAGES: &[&str] = &["qemu-system-xen", "seabios"];
/// Has hvmloader, and is only unpacked: its tools are not those that the lab builds.
const FIRMWARE: &str = "xen-utils-4.20";
/// Where that has it.
const LOADER: &str = "usr/lib/xen-4.20/boot/hvmloader";

/// The device model, in the sysroot and in dom0 (`device_model_override` of xl's configuration).
const PROGRAM: &str = "usr/libexec/xen-qemu-system-i386";
/// What it reads: ROMs that start a kernel and drive a screen, and a keyboard, without which it does not run.
const DATA: &[&str] = &[
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/keymaps/en-us",
    "usr/share/seabios/bios-256k.bin",
    "usr/share/seabios/vgabios-stdvga.bin",
];
/// Where hvmloader is in dom0 (`firmware_override`).
const LOADER_IN_DOM0: &str = "usr/local/lib/xen/boot/hvmloader";

/// Makes it available: names in dom0, and where the files are.
pub(crate) fn files(context: &Context, sysroot: &Sysroot, tools: &Tools) -> Result<Vec<(String, PathBuf)>> {
    let mut key = KeyBuilder::new("device-model", 1)
        .key(&sysroot.key)
        .text(FIRMWARE);
    for package in PACKAGES {
        key = key.text(package);
    }
    let unpacked = context.cached("device-model");
    context.download("device-model", &key.finish(), |progress| {
        let log = context.step_log("device-model");
        let mut install = vec!["apt-get", "install", "-y", "--no-install-recommends"];
        install.extend(PACKAGES);
        sysroot.refresh(&log, progress)?;
        run_logged(sysroot.command("/", &install), &log, progress)?;
        let archive = Archive::open(
            context,
            "firmware",
            Runner::Sysroot(sysroot),
            &entries(context, SUITES, &[Kind::Binaries("amd64")])?,
            Limits::default(),
            progress,
        )?;
        let download = context.cached("device-model.download");
        fs::create_dir_all(&download).on("create", &download)?;
        let chosen = archive.first_served(
            FIRMWARE,
            archive.binaries(|name| name == FIRMWARE)?,
            &download,
            "fill the cache on a machine whose archive serves one, and move it here (docs/lab.md)",
            progress,
        )?;
        let staged = Staged::directory(unpacked.clone())?;
        let to = staged.path.to_string_lossy();
        for package in &chosen.paths {
            let line = ["dpkg-deb", "-x", &package.to_string_lossy(), &*to];
            run_logged(sysroot.command("/", &line), &log, progress)?;
        }
        staged.commit()?;
        remove(&download)
    })?;
    let mut files = vec![(LOADER_IN_DOM0.to_owned(), unpacked.join(LOADER))];
    for file in std::iter::once(&PROGRAM).chain(DATA) {
        files.push(((*file).to_owned(), sysroot.root.join(file)));
    }
    for (name, from) in libraries_of(context, sysroot, tools, &Path::new("/").join(PROGRAM))? {
        files.push((name.trim_start_matches('/').to_owned(), from));
    }
    Ok(files)
}
