//! `cargo lab bench`: counts instructions, and holds the counts against the stored bounds; or measures scans
//! of dumps, live rounds and migrations, or what large guests take.

mod dump;
mod gmd;
mod migration;
pub(crate) mod paper;
mod pdb;
mod scale;

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
    /// Where the instructions of the core's hot functions go, by function and source file
    Where,
    /// Instructions and peak memory of reading a kernel's PDB
    Pdb,
    /// `lacuna scan` on dumps against makedumpfile, processor time
    Dump,
    /// Rounds of Intro, Dedup and `IntroDedup` against a user-level engine's, from one run
    Gmd,
    /// What a migration sends, stock and with Lacuna, from one run
    Migration,
    /// What a scan and rounds of shares take on mock guests of 1 GiB to 4 TiB
    Scale,
    /// The evaluation of the paper, cell by cell: hours in all
    Paper,
}

/// What the hypervisor is asked to do. The core has no part in an unshare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Operation {
    /// A scan of blocks of eight pages, every other one free
    Scan,
    /// Slices over every other page
    Share,
    /// A round of the content stage over pages that are as they were
    Content,
}

impl Operation {
    /// The program under `core/benches`, and its case.
    const fn case(self) -> (&'static str, &'static str) {
        match self {
            Self::Scan => ("scan", "mixed"),
            Self::Share => ("share", "fragmented"),
            Self::Content => ("content", "same"),
        }
    }
}

/// Measures `subject`, and writes the figures to `report` and the plot to `plot` where the subject has such.
///
/// # Errors
/// A subject that has no operations was given one, one that has no plot was asked for it, or one without
/// cells was given the options of cells.
pub(crate) fn run(
    context: &Context,
    subject: Subject,
    operation: Option<Operation>,
    report: Option<&Path>,
    plot: Option<&Path>,
    cells: &paper::Options,
) -> Result<()> {
    if plot.is_some() && subject != Subject::Scale {
        return Err(Error::NoPlot);
    }
    if subject != Subject::Paper && !cells.is_empty() {
        return Err(Error::NoCells {
            subject: format!("{subject:?}").to_lowercase(),
        });
    }
    if let (Some(operation), true) = (operation, subject != Subject::Where) {
        return Err(Error::NoOperation {
            operation: format!("{operation:?}").to_lowercase(),
        });
    }
    match subject {
        Subject::Core => core(context),
        Subject::Where => tell_where(context, operation),
        Subject::Pdb => large_pdb(context),
        Subject::Dump => dump::run(context, report),
        Subject::Gmd => gmd::run(context, report),
        Subject::Migration => migration::run(context, report),
        Subject::Scale => scale::run(context, report, plot),
        Subject::Paper => paper::run(context, cells, report),
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

/// Has the core's counting benchmarks tell where instructions go.
fn tell_where(context: &Context, operation: Option<Operation>) -> Result<()> {
    have_valgrind(context)?;
    let all = [Operation::Scan, Operation::Share, Operation::Content];
    for operation in all
        .into_iter()
        .filter(|one| operation.is_none_or(|wanted| wanted == *one))
    {
        let (program, case) = operation.case();
        bench(context, &["--bench", program, "--", "--where", case])?;
    }
    Ok(())
}

/// Runs the core's counting benchmarks under valgrind.
pub(crate) fn core(context: &Context) -> Result<()> {
    have_valgrind(context)?;
    bench(
        context,
        &["--bench", "scan", "--bench", "share", "--bench", "content"],
    )
}

fn bench(context: &Context, arguments: &[&str]) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&context.repository)
        .args(["bench", "--locked", "--package", "lacuna-core"])
        .args(arguments);
    let status = start(&mut cargo)?.wait().on("wait for", "cargo bench")?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed { failed: 1, total: 1 })
    }
}
