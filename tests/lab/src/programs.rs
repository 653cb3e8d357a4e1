//! The project's own programs that run inside the emulation, built by the machine's cargo.

use std::path::PathBuf;
use std::process::Command;

use crate::context::Context;
use crate::error::Result;
use crate::process::run_logged;
use crate::progress::Progress;

/// The only target that a plain toolchain has everywhere the lab runs.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// cargo's profile for what runs in the lab alone.
const PROFILE: &str = "lab";

/// The target of the agent in 32-bit guests: it comes with its own C library and linker.
const TARGET_I386: &str = "i686-unknown-linux-musl";
/// The same for 64-bit guests of any age: the machine's own C library asks for Linux 3.2.
const TARGET_OLD: &str = "x86_64-unknown-linux-musl";

/// Where the built programs are.
pub(crate) struct Programs {
    /// dom0's first process, linked as the product is: dom0's image has the libraries.
    pub(crate) driver: PathBuf,
    /// The guests' first process, static.
    pub(crate) agent: PathBuf,
    /// The product's command, linked as on a real host.
    pub(crate) lacuna: PathBuf,
    /// The product's daemon, likewise.
    pub(crate) lacunad: PathBuf,
}

fn cargo(context: &Context, profile: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&context.repository);
    // What cargo told the lab of the lab's own package. Build scripts that look at it run again, and with
    // them what they are part of is built again, whenever a cargo that has it and one that has not take turns
    // here.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.args(["build", "--locked", "--profile", profile]);
    // Where `cargo lab` itself was built: they have crates in common.
    command.arg("--target-dir").arg(target(context));
    if context.options.offline {
        command.arg("--offline");
    }
    command
}

fn target(context: &Context) -> PathBuf {
    context.repository.join("target")
}

/// Builds the product as a real host installs it, and returns where its command is; the daemon lies beside
/// it.
pub(crate) fn product(context: &Context) -> Result<PathBuf> {
    let progress = Progress::begin("product");
    let mut product = cargo(context, "release");
    product.args(["--package", "lacuna", "--bin", "lacuna", "--bin", "lacunad"]);
    run_logged(product, &context.step_log("product"), &progress)?;
    progress.done();
    Ok(target(context).join("release/lacuna"))
}

/// Builds the product's command for use in the lab, and returns where it is. cargo itself knows what is up to
/// date.
///
/// The daemon and dom0's driver are built along: they are made of the same crates, which are so compiled
/// once.
pub(crate) fn command(context: &Context) -> Result<PathBuf> {
    let progress = Progress::begin("programs");
    let mut programs = cargo(context, PROFILE);
    programs.args(["--package", "lacuna", "--package", "lab-dom0"]);
    programs.args(["--bin", "lacuna", "--bin", "lacunad", "--bin", "lab-dom0"]);
    run_logged(programs, &context.step_log("programs"), &progress)?;
    progress.done();
    Ok(target(context).join(PROFILE).join("lacuna"))
}

/// Builds them all.
pub(crate) fn build(context: &Context) -> Result<Programs> {
    let lacuna = command(context)?;
    Ok(Programs {
        driver: lacuna.with_file_name("lab-dom0"),
        agent: agent(context, "agent", TARGET, "+crt-static")?,
        lacunad: lacuna.with_file_name("lacunad"),
        lacuna,
    })
}

/// Builds the guests' first process for `triple`.
///
/// It is static: there is nothing else in a guest's image.
fn agent(context: &Context, name: &str, triple: &str, feature: &str) -> Result<PathBuf> {
    let progress = Progress::begin(name);
    let mut agent = cargo(context, PROFILE);
    agent.args(["--target", triple, "--config"]);
    agent.arg(format!(
        "target.{triple}.rustflags=[\"-Ctarget-feature={feature}\"]"
    ));
    if triple != TARGET {
        agent.args(["--config", &format!("target.{triple}.linker=\"rust-lld\"")]);
    }
    agent.args(["--package", "lacuna-guest", "--bin", "lacuna-guest"]);
    run_logged(agent, &context.step_log("programs"), &progress)?;
    progress.done();
    Ok(target(context).join(triple).join(PROFILE).join("lacuna-guest"))
}

/// Builds the agent of 32-bit guests, and returns where it is.
pub(crate) fn agent_i386(context: &Context) -> Result<PathBuf> {
    agent_with_own_libc(context, "i386", TARGET_I386)
}

/// Builds the agent of 64-bit guests whose kernel may be older than the machine's C library allows, and
/// returns where it is.
pub(crate) fn agent_of_old_kernels(context: &Context) -> Result<PathBuf> {
    agent_with_own_libc(context, "old", TARGET_OLD)
}

fn agent_with_own_libc(context: &Context, name: &str, triple: &str) -> Result<PathBuf> {
    let progress = Progress::begin(&format!("programs/{name}"));
    let log = context.step_log("programs");
    let mut target_of = Command::new("rustup");
    target_of.args(["target", "add", triple]);
    run_logged(target_of, &log, &progress)?;
    progress.done();
    agent(context, &format!("agent/{name}"), triple, "+crt-static")
}
