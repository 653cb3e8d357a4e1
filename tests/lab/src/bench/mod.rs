//! `cargo lab bench`: counts instructions, and holds the counts against the stored bounds; or measures scans
//! of dumps, live rounds and migrations.

mod dump;
mod gmd;
mod migration;
mod pdb;

use std::path::Path;
use std::process::Command;

use crate::context::{Context, require_root};
use crate::error::{Error, IoContext, Result};
use crate::process::{is_installed, run_logged, start};
use crate::progress::Progress;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// Instructions of the core's hot functions
    Core,
    /// Instructions and peak memory of reading a kernel's PDB
    Pdb,
    /// `lacuna scan` on dumps against makedumpfile, processor time
    Dump,
    /// Rounds of Intro, Dedup and `IntroDedup` against a user-level engine's, from one run
    Gmd,
    /// What a migration sends, stock and with Lacuna, from one run
    Migration,
}

/// Measures `subject`, and writes the figures to `report` where the subject has such.
pub(crate) fn run(context: &Context, subject: Subject, report: Option<&Path>) -> Result<()> {
    match subject {
        Subject::Core => core(context),
        Subject::Pdb => large_pdb(context),
        Subject::Dump => dump::run(context, report),
        Subject::Gmd => gmd::run(context, report),
        Subject::Migration => migration::run(context, report),
    }
}

/// Installs valgrind when it is missing.
fn have_valgrind(context: &Context) -> Result<()> {
    if is_installed("valgrind") {
        return Ok(());
    }
    require_root()?;
    let progress = Progress::begin("installing valgrind on this machine");
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends", "valgrind"]);
    run_logged(install, &context.step_log("bench"), &progress)?;
    progress.done();
    Ok(())
}

/// Counts what reading a kernel's PDB takes.
pub(crate) fn large_pdb(context: &Context) -> Result<()> {
    have_valgrind(context)?;
    pdb::run(context)
}

/// Runs the core's counting benchmarks under valgrind.
pub(crate) fn core(context: &Context) -> Result<()> {
    have_valgrind(context)?;
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
