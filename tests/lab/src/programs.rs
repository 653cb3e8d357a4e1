//! The project's own programs that run inside the emulation, built by the machine's cargo.

use std::path::PathBuf;
use std::process::Command;

use crate::context::Context;
use crate::error::Result;
use crate::process::run_logged;
use crate::progress::Progress;

/// The only target that a plain toolchain has everywhere the lab runs.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The target of the agent in 32-bit guests: it comes with its own C library and linker.
const TARGET_I386: &str = "i686-unknown-linux-musl";

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

/// Where cargo builds them.
fn target(context: &Context) -> PathBuf {
    context.repository.join("target/lab")
}

fn cargo(context: &Context) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(&context.repository)
        .args(["build", "--locked", "--release"]);
    command.arg("--target-dir").arg(target(context));
    command
}

/// Builds the product's programs, and returns where its command is. cargo itself knows what is up to date.
pub(crate) fn product(context: &Context) -> Result<PathBuf> {
    let progress = Progress::begin("product");
    let mut product = cargo(context);
    product.args(["--package", "lacuna", "--bin", "lacuna", "--bin", "lacunad"]);
    run_logged(product, &context.step_log("programs"), &progress)?;
    progress.done();
    Ok(target(context).join("release/lacuna"))
}

/// Builds them all.
pub(crate) fn build(context: &Context) -> Result<Programs> {
    let progress = Progress::begin("programs");
    let mut fixed = cargo(context);
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
        "lab-dom0",
        "--bin",
        "lacuna-guest",
        "--bin",
        "lab-dom0",
    ]);
    run_logged(fixed, &context.step_log("programs"), &progress)?;
    progress.done();
    let lacuna = product(context)?;
    let fixed = target(context).join(TARGET).join("release");
    Ok(Programs {
        driver: fixed.join("lab-dom0"),
        agent: fixed.join("lacuna-guest"),
        lacunad: lacuna.with_file_name("lacunad"),
        lacuna,
    })
}

/// Builds the agent of 32-bit guests, and returns where it is.
pub(crate) fn agent_i386(context: &Context) -> Result<PathBuf> {
    let progress = Progress::begin("programs/i386");
    let log = context.step_log("programs");
    let mut target_of = Command::new("rustup");
    target_of.args(["target", "add", TARGET_I386]);
    run_logged(target_of, &log, &progress)?;
    let mut agent = cargo(context);
    agent.args(["--target", TARGET_I386, "--config"]);
    agent.arg(format!("target.{TARGET_I386}.linker=\"rust-lld\""));
    agent.args(["--config", "profile.release.lto=\"off\""]);
    agent.args(["--package", "lacuna-guest", "--bin", "lacuna-guest"]);
    run_logged(agent, &log, &progress)?;
    progress.done();
    Ok(target(context).join(TARGET_I386).join("release/lacuna-guest"))
}
