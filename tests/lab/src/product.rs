//! `cargo lab build`: what a real host installs, in one directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::context::Staged;
use crate::debs::{self, Parts};
use crate::error::{IoContext, Result};
use crate::process::run_logged;
use crate::programs;
use crate::progress::Progress;
use crate::setup::Stage;
use crate::variant::PRODUCT;
use crate::xen::Hypervisor;

/// The hypervisor's files: the one for GRUB, the one for UEFI firmware, and the one with symbols for crash
/// analysis.
const HYPERVISOR: &[&str] = &["xen.gz", "xen.efi", "xen-syms"];

/// Writes the product into `out`, with `debs` as Debian packages, too.
pub(crate) fn build(stage: &Stage, out: &Path, debs: bool) -> Result<()> {
    let xen = stage.variant(PRODUCT)?;
    let lacuna = programs::product(stage.context())?;
    let out = lay_out(stage, &xen, &lacuna, out)?;
    println!(
        "{} holds {}, lacuna, lacunad with its configuration and unit, and xen-tools.tar.gz",
        out.display(),
        HYPERVISOR.join(", ")
    );
    if debs {
        for file in pack(stage, &out)? {
            println!("{}", file.display());
        }
    }
    Ok(())
}

/// Writes the product into `out` with this hypervisor and this command, which has the daemon beside it.
/// Returns the directory's whole path.
pub(crate) fn lay_out(stage: &Stage, xen: &Hypervisor, lacuna: &Path, out: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out).on("create", out)?;
    let out = out.canonicalize().on("find", out)?;
    for name in HYPERVISOR {
        copy(&xen.directory.join(name), &out.join(name))?;
    }
    copy(lacuna, &out.join("lacuna"))?;
    copy(&lacuna.with_file_name("lacunad"), &out.join("lacunad"))?;
    for name in ["lacunad.toml", "lacunad.service"] {
        copy(&stage.repository().join("dom0-tool").join(name), &out.join(name))?;
    }
    let progress = Progress::begin("tools archive");
    let archive = Staged::file(out.join("xen-tools.tar.gz"))?;
    // Owned by root whoever unpacks the cache, and without the lab's own directory in the names.
    let mut tar = std::process::Command::new("tar");
    tar.args(["--create", "--gzip", "--owner=0", "--group=0", "--file"])
        .arg(&archive.path);
    tar.arg("--directory").arg(&stage.tools.root).arg(".");
    run_logged(tar, &stage.log("product"), &progress)?;
    archive.commit()?;
    progress.done();
    Ok(out)
}

/// Packs what [`lay_out`] has written into Debian packages there, and returns their files.
pub(crate) fn pack(stage: &Stage, out: &Path) -> Result<Vec<PathBuf>> {
    let progress = Progress::begin("packages");
    let files = debs::pack(&Parts {
        out,
        repository: stage.repository(),
        series: stage.series(),
        xen_version: stage.xen_version(),
        log: &stage.log("debs"),
    })?;
    progress.done();
    Ok(files)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let staged = Staged::file(to.to_path_buf())?;
    fs::copy(from, &staged.path).on("copy", from)?;
    staged.commit()
}
