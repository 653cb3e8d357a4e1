//! `cargo lab try`: any guest on the lab's Xen, taken through what an operator would do before trusting
//! Lacuna with it.

mod drives;
mod image;
mod kernel;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lacuna_scenarios::wire::{Event, Order, Outcome, STEPS, Step, TRIAL, Trial};
use serde_json::{Value, json};

use crate::context::Context;
use crate::emulator::Emulator;
use crate::error::{Error, IoContext, Result};
use crate::live;
use crate::progress::Progress;
use crate::setup::{Stage, Wish};
use lacuna_scenarios::catalogue::Boot;

/// The most memory that a guest may have, in MiB: a migration has two of it, a save puts it into dom0's own
/// memory.
const MOST_MIB: u32 = 896;
/// The least with which the guest's own work has room.
const LEAST_MIB: u32 = 96;
/// How long everything after the boot may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// What `cargo lab try` is given.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// The guest's kernel: a bzImage, or what else xl's `kernel=` takes
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's header tree
    #[arg(long, value_name = "DIR", conflicts_with = "source")]
    headers: Option<PathBuf>,
    /// The kernel's sources, in place of headers
    #[arg(long, value_name = "DIR", requires = "config")]
    source: Option<PathBuf>,
    /// The kernel's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The kernel's System.map
    #[arg(long, value_name = "FILE")]
    system_map: Option<PathBuf>,
    /// An initial file system of the guest's own; the lab's, with its agent, where none is given
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Added to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// An HVM guest with a device model, instead of a PVH one; its kernel needs no drivers for Xen
    #[arg(long)]
    hvm: bool,
    /// A raw image of a disk; what the guest writes is thrown away
    #[arg(long, value_name = "FILE", requires = "hvm")]
    disk: Option<PathBuf>,
    /// An image of a CD
    #[arg(long, value_name = "FILE", requires = "hvm")]
    cdrom: Option<PathBuf>,
    /// A Windows kernel's PDB
    #[arg(long, value_name = "FILE")]
    pdb: Option<PathBuf>,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(i64::from(LEAST_MIB)..=i64::from(MOST_MIB)))]
    memory: u32,
    /// Virtual processors of the guest
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    vcpus: u32,
    /// How long the guest may take to come up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    boot_limit: u32,
    /// Rounds while the guest works
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Write the table to this file as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The exit status where Lacuna refused the guest, as `lacuna`'s own is.
pub(crate) const REFUSED: i32 = 3;

/// What came of a trial.
pub(crate) enum Verdict {
    /// Every step held.
    Good,
    /// Lacuna refused the guest, and left it alone.
    Refused,
}

/// Tries a guest, and prints the table.
///
/// # Errors
/// Where a step did not hold, and where the lab itself fails.
pub(crate) fn run(context: &Context, options: &Options) -> Result<Verdict> {
    options.check()?;
    let stage = Stage::build(context, Wish::demo(context.options.series))?;
    let plan = image::build(&stage, options)?;
    let logs = context.repository.join("target/lab-logs").join(TRIAL);
    let progress = Progress::begin(TRIAL);
    let mut machine = plan.boot(&stage, &logs)?;
    let ended = watch(&mut machine, &plan.trial, &logs, &progress);
    machine.off();
    progress.done();
    let (steps, failure) = ended?;
    println!("\n{}", table::rendered(&steps, failure.is_none()));
    if let Some(file) = &options.json {
        let mut report = json!({ "steps": steps, "passed": failure.is_none() });
        for (name, value) in stage.made_of() {
            report[name] = value;
        }
        std::fs::write(file, format!("{report:#}\n")).on("write", file)?;
    }
    match failure {
        Some(failure) => {
            println!("{failure}\n  logs:     {}", logs.display());
            if !options.hvm && steps.len() < 2 {
                println!("  help:     a kernel without an entry for PVH guests needs --hvm");
            }
            let (failed, total) = (1, steps.len());
            Err(Error::Failed { failed, total })
        }
        None if steps.iter().any(|step| step.outcome == Outcome::Refused) => Ok(Verdict::Refused),
        None => Ok(Verdict::Good),
    }
}

impl Options {
    /// Fails where what is given makes no guest, before anything is built.
    fn check(&self) -> Result<()> {
        let files = [
            &self.kernel,
            &self.config,
            &self.system_map,
            &self.initrd,
            &self.disk,
            &self.cdrom,
            &self.pdb,
        ];
        for file in files.into_iter().flatten() {
            let found = std::fs::metadata(file).on("read", file)?;
            if !found.is_file() {
                return Err(not(file, "a file"));
            }
        }
        for directory in [&self.headers, &self.source].into_iter().flatten() {
            if !std::fs::metadata(directory).on("read", directory)?.is_dir() {
                return Err(not(directory, "a directory"));
            }
        }
        if let Some(file) = self.kernel.as_ref().filter(|_| !self.hvm) {
            kernel::require_pvh(file, self.config.as_deref(), self.system_map.as_deref())?;
        }
        if self.kernel.is_none() && self.disk.is_none() && self.cdrom.is_none() {
            return Err(Error::Unexpected {
                what: "what the guest boots from".to_owned(),
                expected: "--kernel FILE, or with --hvm --disk FILE or --cdrom FILE".to_owned(),
                seen: "none of them".to_owned(),
            });
        }
        Ok(())
    }
}

fn not(path: &Path, expected: &str) -> Error {
    Error::Unexpected {
        what: path.display().to_string(),
        expected: expected.to_owned(),
        seen: "something else".to_owned(),
    }
}

/// Orders the trial and follows it to its end: the rows, and why it failed.
fn watch(
    machine: &mut Emulator,
    trial: &Trial,
    logs: &Path,
    progress: &Progress,
) -> Result<(Vec<Step>, Option<String>)> {
    let deadline = Instant::now() + LIMIT + Duration::from_secs(trial.boot_seconds.into());
    machine.order(&Order::Try { trial: trial.clone() })?;
    let mut steps = Vec::new();
    loop {
        match machine.next_event(deadline, "the trial ends")? {
            Event::Figure { name, value } if name == STEPS => {
                steps = rows(value)?;
                if let Some(step) = steps.last() {
                    progress.line(&format!("  {}", table::row(step)));
                }
            }
            // Of a step's own; its row has what matters of it.
            Event::Figure { .. } => {}
            event => {
                if let Some(ended) = live::follow(event, logs, progress)? {
                    return Ok((steps, ended.failure));
                }
            }
        }
    }
}

fn rows(value: Value) -> Result<Vec<Step>> {
    serde_json::from_value(value).map_err(|error| Error::Unexpected {
        what: "the rows that dom0 tells".to_owned(),
        expected: "steps".to_owned(),
        seen: error.to_string(),
    })
}

/// The machine that a trial runs on, and the order for it.
struct Plan {
    trial: Trial,
    images: crate::image::Images,
    drives: Vec<crate::emulator::Drive>,
}

impl Plan {
    fn boot(&self, stage: &Stage, logs: &Path) -> Result<Emulator> {
        let xen = stage.hypervisor(Boot::Release)?;
        Emulator::boot_with_drives(&stage.sysroot, &xen, &self.images, &self.drives, logs)
    }
}
