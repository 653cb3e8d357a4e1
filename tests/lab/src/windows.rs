//! The tests of Windows files and memory, with the tool chain that a part of them needs.

use std::process::Command;

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::process::{install_missing, start};
use crate::progress::Progress;

/// Another tool chain for executables and PDBs, each program with Debian's package of it.
const PROGRAMS: &[(&str, &str)] = &[("clang", "clang"), ("lld-link", "lld")];

/// Runs all of them, those that need clang and lld-link too. Both are installed when missing.
pub(crate) fn run(context: &Context) -> Result<()> {
    let progress = Progress::begin("programs for Windows files");
    install_missing(PROGRAMS, &context.step_log("windows"), &progress)?;
    progress.done();
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
