//! Runs live scenarios: those with the same boot one after another in one emulation, a new one after a crash.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lacuna_scenarios::catalogue::{Boot, Scenario, find};
use lacuna_scenarios::wire::{Event, Order};
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::debian_host;
use crate::emulator::Emulator;
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;
use crate::setup::{Extent, Stage, Wish};

/// How often a scenario runs again for the emulator's sake.
const RERUNS: u32 = 4;

/// What came of one test.
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) name: String,
    /// Why it failed, in lines to print; nothing when it passed.
    pub(crate) failure: Option<String>,
    /// How long it took, in seconds.
    pub(crate) seconds: u64,
    /// What it measured.
    pub(crate) figures: Vec<(String, Value)>,
}

impl Outcome {
    /// What it measured, by name.
    pub(crate) fn by_name(&self) -> Map<String, Value> {
        self.figures.iter().cloned().collect()
    }

    /// Ends a command that ran one scenario for its figures: writes them to `file`, with how it ended, and
    /// fails when the scenario did.
    pub(crate) fn report(&self, mut figures: Map<String, Value>, file: Option<&Path>) -> Result<()> {
        if let Some(path) = file {
            figures.insert("scenario".to_owned(), json!(self.name));
            figures.insert("passed".to_owned(), json!(self.failure.is_none()));
            figures.insert("seconds".to_owned(), json!(self.seconds));
            let text = format!("{:#}\n", Value::Object(figures));
            fs::write(path, text).on("write", path)?;
        }
        match &self.failure {
            None => Ok(()),
            Some(failure) => {
                println!("{} failed\n{failure}", self.name);
                Err(Error::Failed { failed: 1, total: 1 })
            }
        }
    }
}

/// Makes what `extent` says and runs the scenario called `name` for its figures, with what it was made of
/// beside them.
pub(crate) fn measure(context: &Context, name: &str, extent: Extent) -> Result<Outcome> {
    let missing = || Error::NoScenario {
        filter: name.to_owned(),
        known: String::new(),
    };
    let scenario = find(name).ok_or_else(missing)?;
    let wish = Wish {
        extent,
        ..Wish::demo(context.options.series)
    };
    let stage = Stage::build(context, wish)?;
    let logs = context.repository.join("target/lab-logs");
    let mut outcome = run(&stage, &[scenario], &logs).pop().ok_or_else(missing)?;
    outcome.figures.extend(stage.made_of());
    Ok(outcome)
}

/// Runs `scenarios`, in order, and returns an outcome for each. One that fails because the emulator lost a
/// guest runs again on a new machine, see [`shows_a_lost_guest`] and [`shows_an_untouched_death`].
pub(crate) fn run(stage: &Stage, scenarios: &[Scenario], logs: &Path) -> Vec<Outcome> {
    let mut machine = None;
    let outcomes = scenarios
        .iter()
        .map(|scenario| {
            let here = logs.join(scenario.name.replace('/', "-"));
            let (mut outcome, mut guest_lost) = attempt(stage, &mut machine, *scenario, &here);
            for rerun in 1..=RERUNS {
                if outcome.failure.is_none() || !guest_lost {
                    break;
                }
                println!(
                    "lab: {}: the emulator lost a guest (docs/lab.md); again on a new machine",
                    scenario.name
                );
                if let Some((_, running)) = machine.take() {
                    running.off();
                }
                // Kept for whoever looks for the emulator's mistake; only what one looks at is lost when that
                // fails.
                let kept = here.with_extension(format!("lost-{rerun}"));
                let _ = crate::context::remove(&kept);
                let _ = fs::rename(&here, &kept);
                let seconds = outcome.seconds;
                (outcome, guest_lost) = attempt(stage, &mut machine, *scenario, &here);
                outcome.seconds += seconds;
                outcome
                    .figures
                    .push(("guests_lost_by_the_emulator".to_owned(), json!(rerun)));
            }
            outcome
        })
        .collect();
    if let Some((_, running)) = machine {
        running.off();
    }
    outcomes
}

/// Runs `scenario` on `machine`, or on a new one where there is none or another one is needed; leaves there
/// what the next one may use. Tells as well whether the emulator lost a guest meanwhile.
fn attempt(
    stage: &Stage,
    machine: &mut Option<(Boot, Emulator)>,
    scenario: Scenario,
    here: &Path,
) -> (Outcome, bool) {
    let progress = Progress::begin(scenario.name);
    let started = Instant::now();
    let mut told = Told::default();
    let mut running = match machine.take() {
        Some((boot, running)) if boot == scenario.boot => Ok(running),
        other => {
            if let Some((_, running)) = other {
                running.off();
            }
            // Each emulation's console lies with the scenario that it was booted for.
            boot(stage, scenario.boot, here, &progress)
        }
    };
    let before = running.as_ref().map_or(0, Emulator::console_length);
    let ended = match &mut running {
        Ok(running) => one(running, scenario, here, &progress, &mut told),
        Err(_) => Ok(None),
    };
    let guest_lost = running.as_ref().is_ok_and(|running| {
        let console = running.console_from(before);
        shows_a_lost_guest(&console)
            || told
                .died_untouched
                .is_some_and(|domain| shows_an_untouched_death(&console, domain))
    });
    let failure = match (running, ended) {
        (Ok(running), Ok(failure)) => {
            *machine = Some((scenario.boot, running));
            failure
        }
        // The machine is in an unknown state: the next scenario gets a new one.
        (Ok(_), Err(error)) | (Err(error), _) => Some(indented(&error)),
    };
    let failure = failure.map(|text| format!("{text}\n  logs:     {}", here.display()));
    let seconds = started.elapsed().as_secs();
    progress.done();
    let outcome = Outcome {
        name: scenario.name.to_owned(),
        failure,
        seconds,
        figures: told.figures,
    };
    (outcome, guest_lost)
}

/// What Xen says when a guest ends in a triple fault.
const TRIPLE: &str = "Triple fault - invoking HVM shutdown";

/// Whether Xen's console tells of a triple fault of `domain`, of which dom0 says that no operation of Lacuna
/// was ever carried out on it: whatever killed it was not done to its memory by Lacuna.
fn shows_an_untouched_death(console: &str, domain: u16) -> bool {
    let of = format!(" d{domain}v");
    console
        .lines()
        .any(|line| line.contains(TRIPLE) && line.contains(&of))
}

/// Whether Xen's console tells of a guest that the emulated processor has lost: one with Xen's own code
/// segment and instruction pointer as its state, where no guest can get, whatever is done to its memory; or
/// one that died because the processor could not read gate 8 of its interrupt table, where Linux has that
/// table, after it had not been able to read the gate before.
fn shows_a_lost_guest(console: &str) -> bool {
    /// Lines of Xen's dump of a virtual CPU.
    const DUMP: usize = 16;
    let lines: Vec<&str> = console.lines().collect();
    lines.iter().enumerate().any(|(at, line)| {
        let dump = &lines[at..lines.len().min(at + DUMP)];
        let has = |part: &str| dump.iter().any(|line| line.contains(part));
        line.contains(TRIPLE)
            && has("CONTEXT: hvm guest")
            && (has("RIP:    e008:[<ffff82d0") || has("cr2: fffffe0000000080"))
    })
}

/// Makes what the machine needs, and starts it.
fn boot(stage: &Stage, boot: Boot, logs: &Path, progress: &Progress) -> Result<Emulator> {
    let booting = || progress.tick(|| "booting".to_owned());
    if matches!(boot, Boot::Ept | Boot::EptMutants) {
        let disc = stage.disc(boot)?;
        booting();
        return Emulator::boot_bochs(&stage.sysroot, &disc, logs);
    }
    if boot == Boot::DebianHost {
        let drives = debian_host::drives(stage)?;
        booting();
        return Emulator::boot_disk(&stage.sysroot, &drives, logs);
    }
    let xen = stage.hypervisor(boot)?;
    if boot == Boot::Pair {
        let images = stage.pair()?;
        booting();
        return Emulator::boot_pair(&stage.sysroot, &xen, &images, logs);
    }
    if boot == Boot::OtherGuests {
        let images = stage.other_guests()?;
        booting();
        return Emulator::boot(&stage.sysroot, &xen, &images, boot.into(), logs);
    }
    if let Boot::Programs(workload) = boot {
        let images = stage.programs(workload)?;
        booting();
        return Emulator::boot(&stage.sysroot, &xen, &images, boot.into(), logs);
    }
    if boot == Boot::XenDisks {
        let images = stage.xen_disks()?;
        booting();
        return Emulator::boot(&stage.sysroot, &xen, &images, boot.into(), logs);
    }
    booting();
    Emulator::boot(&stage.sysroot, &xen, &stage.images, boot.into(), logs)
}

/// Runs one scenario on a machine that is up. The inner text tells why it failed.
fn one(
    machine: &mut Emulator,
    scenario: Scenario,
    logs: &Path,
    progress: &Progress,
    told: &mut Told,
) -> Result<Option<String>> {
    fs::create_dir_all(logs).on("create", logs)?;
    let deadline = Instant::now() + scenario.limit;
    let run = Order::Run {
        scenario: scenario.name.to_owned(),
    };
    machine.order(&run)?;
    loop {
        match machine.next_event(deadline, &format!("{} ends", scenario.name))? {
            Event::Figure { name, value } => {
                progress.line(&format!("  {name} = {}", shown(&value)));
                told.figures.push((name, value));
            }
            Event::DiedUntouched { domain } => told.died_untouched = Some(domain),
            Event::Rebooting => {
                progress.line("  the host reboots");
                machine.await_reboot(deadline)?;
                machine.order(&run)?;
            }
            event => {
                if let Some(ended) = follow(event, logs, progress)? {
                    return Ok(ended.failure);
                }
            }
        }
    }
}

/// What dom0 told while a scenario ran.
#[derive(Default)]
struct Told {
    figures: Vec<(String, Value)>,
    /// The guest that died while it booted, by its domain's number.
    died_untouched: Option<u16>,
}

/// A figure as a line shows it.
pub(crate) fn shown(value: &Value) -> String {
    /// More than these are for a picture, or for a program.
    const MANY: usize = 32;
    match value.as_array() {
        Some(values) if values.len() > MANY => format!("({} values)", values.len()),
        _ => value.to_string(),
    }
}

/// How a scenario or a trial ended.
pub(crate) struct Ended {
    /// Why it failed, in lines to print; nothing when it passed.
    pub(crate) failure: Option<String>,
}

/// Shows what dom0 tells, and puts what belongs into a log there; figures are the caller's. The end, if this
/// is it.
pub(crate) fn follow(event: Event, logs: &Path, progress: &Progress) -> Result<Option<Ended>> {
    let failure = match event {
        Event::Note { text } => {
            progress.line(&format!("  {text}"));
            return Ok(None);
        }
        Event::Log { file, text } => {
            // The name comes from dom0's own files; only its last part can be meant.
            let path = logs.join(Path::new(&file).file_name().unwrap_or_default());
            let mut log = fs::File::options()
                .create(true)
                .append(true)
                .open(&path)
                .on("open", &path)?;
            log.write_all(text.as_bytes()).on("write", &path)?;
            return Ok(None);
        }
        Event::Passed { .. } => None,
        Event::Failed {
            what, expected, seen, ..
        } => Some(format!(
            "  at:       {what}\n  expected: {expected}\n  saw:      {seen}"
        )),
        other @ (Event::Ready { .. }
        | Event::Broken { .. }
        | Event::Figure { .. }
        | Event::Rebooting
        | Event::DiedUntouched { .. }) => Some(format!("  expected: its end\n  saw:      {other:?}")),
    };
    Ok(Some(Ended { failure }))
}

fn indented(error: &Error) -> String {
    format!("  {}", error.to_string().replace('\n', "\n  "))
}

#[cfg(test)]
mod tests {
    use super::{shows_a_lost_guest, shows_an_untouched_death};

    #[test]
    fn only_a_guest_with_xens_state_or_without_its_interrupt_table_was_lost_by_the_emulator() {
        let dump = |rip: &str, context: &str, cr2: &str| {
            format!(
                "(XEN) d6v0 Triple fault - invoking HVM shutdown action 1\n(XEN) CPU:    0\n(XEN) RIP:    {rip}\n\
                 (XEN) RFLAGS: 0000000000000246   CONTEXT: {context}\n(XEN) cr3: 0000000005cf6000   cr2: {cr2}\n"
            )
        };
        let (xen, guest) = ("e008:[<ffff82d040215c3f>]", "0010:[<ffffffff81d03a03>]");
        let (gate, other) = ("fffffe0000000080", "fffffe0000001ff8");
        assert!(shows_a_lost_guest(&dump(xen, "hvm guest (d6v0)", other)));
        assert!(shows_a_lost_guest(&dump(guest, "hvm guest (d6v0)", gate)));
        assert!(!shows_a_lost_guest(&dump(guest, "hvm guest (d6v0)", other)));
        assert!(!shows_a_lost_guest(&dump(xen, "hypervisor (d6v0)", other)));
        let oops = dump(guest, "hvm guest (d6v0)", gate).replace("Triple fault", "Oops");
        assert!(!shows_a_lost_guest(&oops));
    }

    #[test]
    fn only_the_triple_fault_of_the_guest_that_dom0_names_is_an_untouched_death() {
        let console = "(XEN) d3v0 Triple fault - invoking HVM shutdown action 1\n(XEN) d13v0 lives\n";
        assert!(shows_an_untouched_death(console, 3));
        assert!(!shows_an_untouched_death(console, 1));
        assert!(!shows_an_untouched_death(console, 13));
        assert!(!shows_an_untouched_death("(XEN) d3v0 unhandled\n", 3));
    }
}
