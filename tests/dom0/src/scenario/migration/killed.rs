//! Migrations that break in the middle: the sender's helper, the receiver, the line.

use std::fs;
use std::time::{Duration, Instant};

use lacuna_guest::Task;
use rustix::process::{Pid, Signal, kill_process};

use super::AGENT_LIMIT;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, settled_free_mib, wait_until};
use crate::migration::{Journey, Migration};
use crate::stream::tap;

/// Pages after which the migration is broken: well inside the first iteration, with and without the free
/// ones.
const MIDDLE: u64 = 4096;
/// How long what is left of a broken migration may take to go away.
const LIMIT: Duration = Duration::from_secs(120);
/// Rounding, and what Xen keeps for itself for a while.
const SLACK_MIB: u64 = 2;

/// An argument of the receiving xl, of which it alone has this one.
const RECEIVER: &str = "migrate-receive";

/// What breaks.
#[derive(Clone, Copy, Debug)]
enum Broken {
    /// The process that reads the guest's memory, named by an argument of its command line.
    Process(&'static str),
    /// The line.
    Line,
}

/// After each: the guest runs on, nothing of the other copy is left, and its memory can still be given back.
pub(crate) fn killed(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: 256,
        ..Plan::stock("killed", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    for broken in [
        Broken::Process("--save-domain"),
        Broken::Process("--restore-domain"),
        Broken::Process(RECEIVER),
        Broken::Line,
    ] {
        one(host, &mut guest, broken)?;
    }
    // Refused while log-dirty mode is on: this shows that none of the migrations left it so.
    let shared = host.lacuna(&["dedup", guest.name])?.number("shared")?;
    host.figure("shared_afterwards", shared)?;
    ensure(
        shared > 0,
        "pages given back afterwards",
        "more than none",
        "none",
    )?;
    guest.check_health()
}

fn one(host: &mut Host, guest: &mut Guest, broken: Broken) -> Result<()> {
    host.note(&format!("breaking {broken:?}"))?;
    let started = Instant::now();
    let before = settled_free_mib()?;
    let journey = Journey {
        tap: match broken {
            Broken::Line => tap::Plan {
                cut_at: Some(MIDDLE),
                ..tap::Plan::default()
            },
            Broken::Process(_) => tap::Plan {
                hold_at: Some(MIDDLE),
                ..tap::Plan::default()
            },
        },
        ..Journey::default()
    };
    let mut migration = Migration::start(host, guest, &journey)?;
    if let Broken::Process(mark) = broken {
        migration.wait_held()?;
        kill(mark)?;
        migration.go_on()?;
    }
    let arrival = migration.finish(host)?;
    if let Broken::Process(RECEIVER) = broken {
        // The receiving xl would have taken its copy away. Nobody else does, and an operator has to.
        host.xl(&["destroy", &format!("{}--incoming", guest.name)])?;
    }
    ensure(!arrival.success, "a broken migration", "a failure", "a success")?;
    let wanted = vec!["Domain-0".to_owned(), guest.name.to_owned()];
    wait_until("only the guest is left", LIMIT, || {
        Ok((host.domains()? == wanted).then_some(()))
    })?;
    guest.check_health()?;
    let after = settled_free_mib()?;
    host.note(&format!(
        "{} MiB free before, {} after, {} s",
        before,
        after,
        started.elapsed().as_secs()
    ))?;
    equal(
        "the difference to the host's free memory before, in MiB, less rounding",
        &0,
        &before.abs_diff(after).saturating_sub(SLACK_MIB),
    )
}

/// Kills the process with `mark` among its arguments.
fn kill(mark: &str) -> Result<()> {
    let mut found = None;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        // Processes come and go meanwhile; the rest of what is there is not a process.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let mut arguments = line.split(|byte| *byte == 0);
        let is_shell = arguments.clone().next().is_some_and(|name| name.ends_with(b"sh"));
        if !is_shell && arguments.any(|argument| argument == mark.as_bytes()) {
            found = entry
                .file_name()
                .to_string_lossy()
                .parse()
                .ok()
                .and_then(Pid::from_raw);
        }
    }
    let process = found.ok_or_else(|| differs("the processes of the migration", mark, "none with it"))?;
    Ok(kill_process(process, Signal::KILL)?)
}
