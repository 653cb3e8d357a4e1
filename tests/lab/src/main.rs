//! `cargo lab`: builds patched Xen, dom0 and guests, boots them under emulation and checks what they do.

#[allow(dead_code, unused_imports)]
mod archive;
mod bench;
mod bochs;
mod context;
mod cpio;
mod demo;
mod device_model;
#[allow(dead_code)]
mod doctor;
mod emulator;
mod error;
mod image;
mod kernels;
mod key;
mod layouts;
mod live;
mod matrix;
mod module;
mod other_guests;
mod process;
mod product;
mod programs;
mod progress;
mod selection;
mod setup;
mod suite;
mod sysroot;
mod tree;
mod variant;
mod windows;
mod windows_guest;
mod xen;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use lacuna_scenarios::catalogue::Boot;

use crate::context::Context;
use crate::error::Result;
use crate::setup::Stage;

/// Builds patched Xen, dom0 and guests, boots them under emulation and checks what they do.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
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
    },
    /// Boot distributions' kernels under QEMU alone and score `lacuna scan` on their dumps
    Matrix {
        /// Only the cases with one of these in their name
        filters: Vec<String>,
        /// Put what came of these cases into the table in README.md; rows of other cases stay
        #[arg(long)]
        readme: bool,
    },
    /// Count instructions and hold the counts against the stored bounds; or measure scans of dumps, rounds or migrations
    Bench {
        /// What to measure
        #[arg(default_value = "core")]
        subject: bench::Subject,
        /// Write the figures of `dump`, `gmd` and `migration` to this file as JSON, too
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Boot Xen and get a shell in dom0 on this terminal; `poweroff -f` ends it
    Shell,
}

fn main() -> miette::Result<()> {
    let arguments = Arguments::parse();
    run(arguments.command)?;
    Ok(())
}

fn run(task: Task) -> Result<()> {
    let context = Context::open()?;
    match task {
        Task::Setup => {
            let stage = Stage::build(&context)?;
            // The two that a plain `cargo lab test` boots.
            stage.hypervisor(Boot::Release)?;
            stage.hypervisor(Boot::Mutants)?;
            Ok(())
        }
        Task::Build { out } => {
            let stage = Stage::build(&context)?;
            product::build(&stage, &out)
        }
        Task::Test { filters, full } => suite::run(&context, &filters, full),
        Task::Demo { json } => demo::run(&context, json.as_deref()),
        Task::Matrix { filters, readme } => matrix::run(&context, &filters, readme),
        Task::Bench { subject, json } => bench::run(&context, subject, json.as_deref()),
        Task::Shell => {
            let stage = Stage::build(&context)?;
            let xen = stage.hypervisor(Boot::Release)?;
            emulator::shell(&stage.sysroot, &xen, &stage.images)
        }
    }
}
