//! The tests of Windows files and memory, with the tool chain that a part of them needs.

use std::process::Command;

use crate::context::{Context, require_root};
use crate::error::{Error, IoContext, Result};
use crate::process::{is_installed, run_logged, start};
use crate::progress::Progress;

/// Runs all of them, those that need clang and lld-link too. Both are installed when missing.
pub(crate) fn run(context: &Context) -> Result<()> {
    if !is_installed("clang") || !is_installed("lld-link") {
        require_root()?;
        let progress = Progress::begin("installing clang and lld on this machine");
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "--no-install-recommends", "clang", "lld"]);
        run_logged(install, &context.step_log("windows"), &progress)?;
        progress.done();
    }
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&context.repository).args([
        "test",
        "--locked",
        "--package",
        "lacuna",
        "--test",
        "windows",
        "--",
        "--include-ignored",
    ]);
    let status = start(&mut cargo)?.wait().on("wait for", "cargo test")?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed { failed: 1, total: 1 })
    }
}
