//! The project's own programs that run inside the emulation, built by the machine's cargo.

use std::path::PathBuf;
use std::process::Command;

use crate::context::Context;
use crate::error::Result;
use crate::process::run_logged;
use crate::progress::Progress;

/// The only target that a plain toolchain has everywhere the lab runs.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the built programs are.
pub(crate) struct Programs {
    /// dom0's first process, static.
    pub(crate) driver: PathBuf,
    /// The guests' first process, static.
    pub(crate) agent: PathBuf,
    /// The product's command, linked as on a real host.
    pub(crate) lacuna: PathBuf,
    /// The product's daemon, likewise.
    pub(crate) lacunad: PathBuf,
}

/// Builds them. cargo itself knows what is up to date.
pub(crate) fn build(context: &Context) -> Result<Programs> {
    let progress = Progress::begin("programs");
    let log = context.step_log("programs");
    let target = context.repository.join("target/lab");
    let cargo = || {
        let mut command = Command::new("cargo");
        command
            .current_dir(&context.repository)
            .args(["build", "--locked", "--release"]);
        command.arg("--target-dir").arg(&target);
        command
    };
    let mut fixed = cargo();
    // Static: they are the first process, in images with nothing else in them.
    fixed.args(["--target", TARGET, "--config"]);
    fixed.arg(format!(
        "target.{TARGET}.rustflags=[\"-Ctarget-feature=+crt-static\"]"
    ));
    // Nothing in them is hot, and optimising them across crates takes longer than the rest of their build.
    fixed.args(["--config", "profile.release.lto=\"off\""]);
    fixed.args([
        "--package",
        "lacuna-guest",
        "--package",
        "lacuna-lab",
        "--bin",
        "lacuna-guest",
        "--bin",
        "lab-dom0",
    ]);
    run_logged(fixed, &log, &progress)?;
    let mut product = cargo();
    product.args(["--package", "lacuna", "--bin", "lacuna", "--bin", "lacunad"]);
    run_logged(product, &log, &progress)?;
    progress.done();
    let fixed = target.join(TARGET).join("release");
    Ok(Programs {
        driver: fixed.join("lab-dom0"),
        agent: fixed.join("lacuna-guest"),
        lacuna: target.join("release/lacuna"),
        lacunad: target.join("release/lacunad"),
    })
}
