//! `cargo lab`: builds patched Xen, dom0 and guests, boots them under emulation and checks what they do.

#[allow(dead_code, unused_imports)]
mod archive;
mod bench;
mod bochs;
mod context;
mod cpio;
mod debian_host;
mod debs;
mod demo;
mod device_model;
mod doctor;
mod emulator;
mod error;
mod gates;
mod guest_programs;
mod image;
mod kernels;
mod key;
mod layouts;
mod live;
mod matrix;
mod module;
mod offline;
mod other_guests;
mod process;
mod product;
mod programs;
mod progress;
mod report_page;
mod selection;
mod setup;
mod suite;
mod sysroot;
mod tree;
mod trial;
mod variant;
mod windows;
mod windows_guest;
mod xen;
mod xen_disks;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use lacuna_scenarios::catalogue::Boot;

use crate::context::{Context, Options};
use crate::error::Result;
use crate::setup::{Stage, Wish};
use crate::xen::given::Given;
use crate::xen::series::Series;

/// Builds patched Xen, dom0 and guests, boots them under emulation and checks what they do.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Task,
}

/// What every command takes.
#[derive(clap::Args)]
struct Common {
    /// Build Xen from this source: a tarball, an unpacked tree, or a git directory with @REVISION
    #[arg(long, global = true, value_name = "FILE|DIR", env = "LACUNA_XEN_SOURCE")]
    xen_source: Option<String>,
    /// The release series of Xen; the newest that can be had where none is named
    #[arg(long, global = true, value_name = "SERIES")]
    xen: Option<Series>,
    /// Download nothing: use what the cache holds, and fail where something is missing
    #[arg(long, global = true)]
    offline: bool,
}

impl Common {
    fn options(self) -> Result<Options> {
        let xen_source = self.xen_source.filter(|value| !value.is_empty());
        Ok(Options {
            xen_source: xen_source.as_deref().map(Given::parse).transpose()?,
            series: self.xen,
            offline: self.offline,
        })
    }
}

/// What the lab is asked to do.
#[derive(Subcommand)]
enum Task {
    /// Make everything that the other commands need; what is there and up to date is kept
    Setup,
    /// Leave what a real host installs in a directory: patched Xen, its tools, lacuna
    Build {
        /// The directory; made if need be
        #[arg(long)]
        out: PathBuf,
        /// Pack all of it into Debian packages there, too
        #[arg(long)]
        debs: bool,
    },
    /// Run the tests: the host's own, then the live scenarios
    Test {
        /// Run only the tests with one of these in their name; `host` stands for those that need no emulation
        filters: Vec<String>,
        /// Run the long ones as well
        #[arg(long)]
        full: bool,
    },
    /// Reclaim a live guest's free memory and show the figures
    Demo {
        /// Write the figures to this file as JSON, too
        #[arg(long)]
        json: Option<PathBuf>,
        /// Draw the guest's memory before, after and in use again into this SVG file
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
    },
    /// Try a guest of yours: identify, attach, scan, rounds while it works, save, migrate, with a table at
    /// the end
    Try {
        #[command(flatten)]
        options: Box<trial::Options>,
    },
    /// Boot distributions' kernels under QEMU alone and score `lacuna scan` on their dumps
    Matrix {
        /// Only the cases with one of these in their name
        filters: Vec<String>,
        /// Put what came of these cases into the table in docs/support-matrix.md; other cases keep what it
        /// says of them
        #[arg(long)]
        table: bool,
    },
    /// Count instructions and hold the counts against the stored bounds; or measure scans of dumps, rounds,
    /// migrations or large guests
    Bench {
        /// What to measure
        #[arg(default_value = "core")]
        subject: bench::Subject,
        /// Of `where`: which operation; all of them if not given
        operation: Option<bench::Operation>,
        /// Write the figures of `dump`, `gmd`, `migration` and `scale` to this file as JSON, too; those of
        /// `paper` into this directory, a file for each cell (target/paper if not given)
        #[arg(long)]
        json: Option<PathBuf>,
        /// Draw the figures of `scale` into this SVG file
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
        #[command(flatten)]
        cells: bench::paper::Options,
    },
    /// Look at the machine, the archive and the cache, in half a minute, before anything is downloaded or
    /// built
    Doctor {
        /// Print the checks as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say how the patches fit a tree of Xen
    Patches {
        #[command(subcommand)]
        command: PatchTask,
    },
    /// Boot Xen and get a shell in dom0 on this terminal; `poweroff -f` ends it
    Shell,
}

/// What is asked about the patches.
#[derive(Subcommand)]
enum PatchTask {
    /// Try every patch on the source given, or else on each series that can be had: clean, with offset, or
    /// not, hunk by hunk
    Check {
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> miette::Result<()> {
    let arguments = Arguments::parse();
    let options = arguments.common.options()?;
    let context = match arguments.command {
        Task::Doctor { .. } => Context::look(options)?,
        _ => Context::open(options)?,
    };
    run(&context, arguments.command)?;
    Ok(())
}

fn run(context: &Context, task: Task) -> Result<()> {
    let series = context.options.series;
    if !matches!(task, Task::Doctor { .. }) {
        doctor::quick(context)?;
    }
    match task {
        Task::Setup => {
            if context.options.offline {
                offline::report(context)?;
            }
            let stage = Stage::build(context, Wish::tests(series))?;
            // The two that a plain `cargo lab test` boots.
            stage.hypervisor(Boot::Release)?;
            stage.hypervisor(Boot::Mutants)?;
            Ok(())
        }
        Task::Build { out, debs } => {
            let stage = Stage::build(context, Wish::tests(series))?;
            product::build(&stage, &out, debs)
        }
        Task::Test { filters, full } => suite::run(context, &filters, full),
        Task::Demo { json, picture } => demo::run(context, json.as_deref(), picture.as_deref()),
        Task::Try { options } => match trial::run(context, &options)? {
            trial::Verdict::Good => Ok(()),
            trial::Verdict::Refused => std::process::exit(trial::REFUSED),
        },
        Task::Matrix { filters, table } => matrix::run(context, &filters, table),
        Task::Bench {
            subject,
            operation,
            json,
            plot,
            cells,
        } => bench::run(
            context,
            subject,
            operation,
            json.as_deref(),
            plot.as_deref(),
            &cells,
        ),
        Task::Doctor { json } => doctor::run(context, json),
        Task::Patches {
            command: PatchTask::Check { json },
        } => xen::check::run(context, json),
        Task::Shell => {
            let stage = Stage::build(context, Wish::tests(series))?;
            let xen = stage.hypervisor(Boot::Release)?;
            emulator::shell(&stage.sysroot, &xen, &stage.images)
        }
    }
}
