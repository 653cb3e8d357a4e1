//! `cargo lab bench`: counts instructions, and holds the counts against the stored bounds.

use std::process::Command;

use crate::context::{Context, require_root};
use crate::error::{Error, IoContext, Result};
use crate::process::{is_installed, run_logged, start};
use crate::progress::Progress;

/// Runs the counting benchmarks under valgrind, which is installed when missing.
pub(crate) fn run(context: &Context) -> Result<()> {
    if !is_installed("valgrind") {
        require_root()?;
        let progress = Progress::begin("installing valgrind on this machine");
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "--no-install-recommends", "valgrind"]);
        run_logged(install, &context.step_log("bench"), &progress)?;
        progress.done();
    }
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&context.repository)
        .args(["bench", "--locked", "--package", "lacuna-core"]);
    let status = start(&mut cargo)?.wait().on("wait for", "cargo bench")?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed { failed: 1, total: 1 })
    }
}
