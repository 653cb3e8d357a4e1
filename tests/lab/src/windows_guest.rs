//! The Windows-like guest: its kernel, built in the sysroot, what it boots from, and the symbol store with
//! its PDBs.

use std::fs;
use std::path::PathBuf;

use lacuna_windows_fixtures::layouts::layouts;
use lacuna_windows_fixtures::live::Live;

use crate::context::{Context, Staged};
use crate::error::{Error, IoContext, Result};
use crate::key::{KeyBuilder, files_below};
use crate::process::run_logged;
use crate::sysroot::Sysroot;

/// Where the guest's source is in the checkout.
const SOURCE: &str = "tests/windows/kernel";

/// The kernel's name in dom0, as every guest's is found there.
const KERNEL: &str = "guests/windows/vmlinuz";

/// The symbol store in dom0.
const SYMBOLS: &str = "guests/symbols";

/// The guests: name of the initial file system, the layout, and whether the kernel counts its zeroed pages
/// where a symbol leads. The second kind keeps its lists in partitions, as Windows does since version 10.
const GUESTS: &[(&str, &str, bool)] = &[
    ("windows-7", "win7_sp1_x64", true),
    ("windows-10", "win10_x64_19041", false),
];

/// How the kernel is compiled: for no operating system, without registers that nobody saves, at the address
/// that it runs at.
const COMPILER: &[&str] = &[
    "gcc",
    "-std=gnu11",
    "-m64",
    "-O2",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-strict-aliasing",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-Wl,--no-warn-rwx-segments",
];

/// Makes all of it and returns the files, with their names in dom0.
pub(crate) fn build(context: &Context, sysroot: &Sysroot) -> Result<Vec<(String, PathBuf)>> {
    let source = context.repository.join(SOURCE);
    let fixtures = context.repository.join("tests/windows");
    let folder = context.cached("images/windows");
    let key = KeyBuilder::new("windows-guest", 1)
        .key(&sysroot.key)
        .tree(&fixtures, |path| {
            path.starts_with("kernel") || path.starts_with("src") || path.starts_with("data")
        })?
        .finish();
    context.step("windows-guest", &key, |progress| {
        let staged = Staged::directory(folder.clone())?;
        let kernel = staged.path.join(KERNEL);
        create_parent(&kernel)?;
        let script = source.join("link.ld");
        let files: Vec<String> = files_below(&source)?
            .into_iter()
            .filter(|file| file.extension().is_some_and(|kind| kind == "c" || kind == "S"))
            .map(|file| source.join(file).to_string_lossy().into_owned())
            .collect();
        let (script, out) = (script.to_string_lossy(), kernel.to_string_lossy());
        let mut line = COMPILER.to_vec();
        line.extend(["-T", &*script, "-o", &*out]);
        line.extend(files.iter().map(String::as_str));
        run_logged(
            sysroot.command("/", &line),
            &context.step_log("windows-guest"),
            progress,
        )?;
        for (name, profile, counted) in GUESTS {
            let layout = layouts().into_iter().find(|layout| layout.profile == *profile);
            let live = Live::new(
                layout.ok_or_else(|| Error::Unexpected {
                    what: format!("the layout of {name}"),
                    expected: (*profile).to_owned(),
                    seen: "no such layout in tests/windows/data/layouts.tsv".to_owned(),
                })?,
                *counted,
            );
            write(&staged.path.join("guests").join(name), &live.package())?;
            write(&staged.path.join(SYMBOLS).join(live.symbol_path()), &live.pdb())?;
        }
        staged.commit()
    })?;
    Ok(files_below(&folder)?
        .into_iter()
        .map(|name| (name.to_string_lossy().into_owned(), folder.join(name)))
        .collect())
}

fn write(path: &PathBuf, bytes: &[u8]) -> Result<()> {
    create_parent(path)?;
    fs::write(path, bytes).on("write", path)
}

fn create_parent(path: &std::path::Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).on("create", parent)
}
