//! A guest that is not the lab's, taken through what an operator would do before trusting Lacuna with it.
//!
//! Each step is a row of a table. A guest with the lab's agent in it is compared with its own account, page
//! by page; another one against its kernel's counters and its own life: a step says which, and what that
//! leaves open.

mod drives;
mod moved;
mod steps;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lacuna_guest::{Report, Task};
use lacuna_scenarios::wire::{Outcome, Trial};
use serde_json::Value;

use super::race::work;
use super::reclaim;
use crate::failure::{Failure, Result, differs};
use crate::guest::{Account, Guest, Kind, PAGES_PER_MIB};
use crate::host::{Host, settled_free_mib};
use crate::tool::{Answer, REFUSED};
use steps::Steps;

/// The domain's name.
const NAME: &str = "try";
/// Where the device model serves the guest's serial port.
const SERIAL: &str = "/run/try.serial";
/// The same where the guest is moved to: the device model that it leaves behind takes its own socket away.
const MOVED_SERIAL: &str = "/run/try.moved.serial";
/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(300);
/// How long a guest that is up is asked again and again who it is.
const UP_LIMIT: Duration = Duration::from_secs(60);
/// Between two questions to a guest that is still booting.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two rounds with a guest that does what it likes.
const BETWEEN_ROUNDS: &str = "1";

/// A trial under way.
struct Tried<'a> {
    trial: &'a Trial,
    guest: Guest,
    /// Whether the lab's agent answers in it.
    agent: bool,
    /// When it must be up.
    deadline: Instant,
}

/// Tries `trial`. The figure `steps` has what came of it.
///
/// # Errors
/// The first step that did not hold. A guest that Lacuna refuses is no error: the table says so.
pub(crate) fn run(trial: &Trial, host: &mut Host) -> Result<()> {
    let mut steps = Steps::default();
    let ended = whole(trial, host, &mut steps);
    match ended {
        Ok(()) => Ok(()),
        Err(failure) => {
            let (what, expected, seen) = failure.into_parts();
            let detail = format!("{what}: expected {expected}, saw {seen}");
            steps.end(host, Outcome::Bad, &detail)?;
            Err(differs(&what, &expected, &seen))
        }
    }
}

fn whole(trial: &Trial, host: &mut Host, steps: &mut Steps) -> Result<()> {
    let before = settled_free_mib()?;
    let mut tried = Tried::boot(trial, host, steps)?;
    if !tried.identified(host, steps)? || !tried.attached(host, steps)? {
        return Ok(());
    }
    let free = tried.scanned(host, steps)?;
    tried.rounds(host, steps)?;
    tried.equal_pages(host, steps)?;
    tried.takes_again(host, steps, free)?;
    tried.saved(host, steps)?;
    tried.migrated(host, steps)?;
    tried.healthy(host, steps)?;
    steps.begin(host, "ends")?;
    tried.guest.destroy(host)?;
    host.expect_free(before)?;
    steps.end(host, Outcome::Good, "the host has all of its memory again")
}

impl<'a> Tried<'a> {
    /// Creates the domain and waits until it is up, or says that nobody can tell whether it is.
    fn boot(trial: &'a Trial, host: &mut Host, steps: &mut Steps) -> Result<Self> {
        steps.begin(host, "boots")?;
        let limit = Duration::from_secs(trial.boot_seconds.into());
        let started = Instant::now();
        let file = "/root/try.cfg";
        fs::write(file, configuration(trial, SERIAL)?)?;
        let mut guest = Guest::start(host, NAME, file)?;
        if trial.hvm {
            guest.connect_serial(Path::new(SERIAL))?;
        }
        let mut tried = Self {
            trial,
            guest,
            agent: false,
            deadline: started + limit,
        };
        if !trial.agent {
            tried.still_runs()?;
            steps.end(
                host,
                Outcome::Weaker,
                "runs; without the lab's agent in it there is only its own word",
            )?;
            return Ok(tried);
        }
        match tried.guest.wait_ready_for(limit) {
            Ok(()) => {
                tried.agent = true;
                let detail = format!(
                    "Linux {}, in {} s",
                    tried.guest.release,
                    started.elapsed().as_secs()
                );
                steps.end(host, Outcome::Good, &detail)?;
            }
            Err(Failure::Late { seen, .. }) => {
                tried.still_runs()?;
                tried.deadline = Instant::now() + UP_LIMIT;
                let detail = format!("runs, and the lab's agent does not speak; its console ends: {seen}");
                steps.end(host, Outcome::Weaker, &detail)?;
            }
            Err(other) => return Err(other),
        }
        Ok(tried)
    }

    /// Fails when the domain is gone or has shut down.
    fn still_runs(&self) -> Result<()> {
        let privcmd = lacuna::xen::privcmd::Privcmd::open()
            .map_err(|error| differs("the domain", "Xen to ask", &error.to_string()))?;
        self.guest.check_running(&privcmd)
    }

    /// Asks `lacuna` until it says yes, or the guest has had its time. Nothing when it was refused to the
    /// end.
    fn ask(&self, host: &mut Host, steps: &mut Steps, line: &[&str]) -> Result<Option<Answer>> {
        let deadline = if self.agent {
            Instant::now() + UP_LIMIT
        } else {
            self.deadline
        };
        loop {
            let answer = host.ask_lacuna(line)?;
            if answer.status == 0 {
                return Ok(Some(answer));
            }
            self.still_runs()?;
            if Instant::now() < deadline {
                std::thread::sleep(PATIENCE);
                continue;
            }
            let detail = format!("exit status {}: {}", answer.status, why(&answer.body));
            if answer.status == REFUSED {
                steps.end(host, Outcome::Refused, &detail)?;
                return Ok(None);
            }
            return Err(differs(&format!("lacuna {}", line.join(" ")), "success", &detail));
        }
    }

    fn identified(&mut self, host: &mut Host, steps: &mut Steps) -> Result<bool> {
        steps.begin(host, "is identified")?;
        let mut line = vec!["identify", NAME];
        line.extend(self.trial.identify.iter().map(String::as_str));
        let Some(answer) = self.ask(host, steps, &line)? else {
            return Ok(false);
        };
        let text = |name: &str| answer.body.get(name).and_then(Value::as_str).unwrap_or_default();
        let detail = format!("{} {}", text("os"), text("release"));
        let named = self.guest.release.is_empty() || text("release") == self.guest.release;
        if !named {
            return Err(differs(
                "the kernel's release",
                &self.guest.release,
                text("release"),
            ));
        }
        steps.end(host, Outcome::Good, detail.trim())?;
        Ok(true)
    }

    fn attached(&mut self, host: &mut Host, steps: &mut Steps) -> Result<bool> {
        steps.begin(host, "is admitted")?;
        if self.agent {
            // What is free is then not zero by itself, and a page wrongly called free is seen.
            self.guest.order(Task::Fill, AGENT_LIMIT)?;
        }
        let Some(answer) = self.ask(host, steps, &self.attach_line())? else {
            return Ok(false);
        };
        let (outcome, detail) = if answer.body.get("counted") == Some(&Value::Bool(true)) {
            let (from, to) = (
                answer.number("guest_free_before")?,
                answer.number("guest_free_after")?,
            );
            let detail = format!("the scan agrees with the kernel's own counters, {from} to {to} pages");
            (Outcome::Good, detail)
        } else {
            let detail = "the kernel counts nothing; pages of all over are zero".to_owned();
            (Outcome::Weaker, detail)
        };
        steps.end(host, outcome, &detail)?;
        Ok(true)
    }

    /// Returns the arguments with which `lacuna` attaches the guest.
    fn attach_line(&self) -> Vec<&'a str> {
        let mut line = vec!["attach", NAME];
        line.extend(self.trial.attach.iter().map(String::as_str));
        line
    }

    /// Holds a scan against the guest's account, or against its kernel's counters while it stands still. How
    /// many are free.
    fn scanned(&mut self, host: &mut Host, steps: &mut Steps) -> Result<u64> {
        steps.begin(host, "free pages")?;
        if let Some(account) = self.account()? {
            let free = reclaim::compare(host, &self.guest, &account, AGENT_LIMIT)?;
            self.guest.order(Task::TruthStop, AGENT_LIMIT)?;
            let detail = format!("{free}, each as in the guest's /proc/kpageflags; 0 wrong, 0 missed");
            steps.end(host, Outcome::Good, &detail)?;
            return Ok(free);
        }
        self.guest.pause(host)?;
        let scan = host.lacuna(&["scan", NAME])?;
        self.guest.unpause(host)?;
        let (found, counted) = (scan.number("free")?, scan.number("guest_free_after")?);
        let (outcome, detail) = match found.cmp(&counted) {
            _ if counted == 0 && found > 0 => {
                (Outcome::Weaker, format!("{found}; the kernel counts nothing"))
            }
            std::cmp::Ordering::Equal => (Outcome::Good, format!("{found}, as the kernel counts them")),
            std::cmp::Ordering::Less => (
                Outcome::Weaker,
                format!("{found} of the {counted} that the kernel counts"),
            ),
            std::cmp::Ordering::Greater => {
                return Err(differs(
                    "free pages of the guest, which stands still",
                    &format!("{counted}, as its kernel counts them"),
                    &found.to_string(),
                ));
            }
        };
        steps.end(host, outcome, &detail)?;
        Ok(found)
    }

    /// Returns the guest's own account, where its kernel has one.
    fn account(&mut self) -> Result<Option<Account>> {
        if !self.agent {
            return Ok(None);
        }
        match self.guest.start_account() {
            Ok(account) => Ok(Some(account)),
            // Before 2.6.25 there is no /proc/kpageflags; the agent says so.
            Err(Failure::Differs { seen, .. }) if seen.contains("os error 2") => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Share rounds while the guest works.
    fn rounds(&mut self, host: &mut Host, steps: &mut Steps) -> Result<()> {
        steps.begin(host, "rounds while it works")?;
        let rounds = self.trial.rounds.to_string();
        if self.agent {
            work(&mut self.guest, self.trial.mib / 3, 1)?;
        }
        let mut line = vec!["dedup", NAME, "--rounds", &rounds];
        if !self.agent {
            line.extend(["--interval", BETWEEN_ROUNDS]);
        }
        let answer = host.lacuna(&line)?;
        let unshared = host.lacuna(&["status", NAME])?.number("unshared")?;
        let detail = format!(
            "{rounds}: {} pages given back, {unshared} taken again",
            answer.number("shared")?
        );
        if self.agent {
            let (blocks, pages) = self.guest.end_work(AGENT_LIMIT)?;
            let work = format!("; it went through {blocks} blocks, {pages} pages checked, none wrong");
            steps.end(host, Outcome::Good, &(detail + &work))
        } else {
            self.still_runs()?;
            steps.end(host, Outcome::Weaker, &(detail + "; it runs on"))
        }
    }

    fn equal_pages(&mut self, host: &mut Host, steps: &mut Steps) -> Result<()> {
        steps.begin(host, "equal pages")?;
        host.lacuna(&["dedup", NAME, "--mode", "introdedup"])?;
        self.still_runs()?;
        let status = host.lacuna(&["status", NAME])?;
        let detail = format!(
            "{} on shared frames, {} on zero frames",
            status.number("content_gfns")?,
            status.number("zero_gfns")?
        );
        steps.end(host, Outcome::Good, &detail)
    }

    /// The guest allocates half of what is free, which must be zero.
    fn takes_again(&mut self, host: &mut Host, steps: &mut Steps, free: u64) -> Result<()> {
        if !self.agent {
            return Ok(());
        }
        steps.begin(host, "takes memory again")?;
        let mib = u32::try_from(free / 2 / PAGES_PER_MIB).unwrap_or(u32::MAX);
        self.guest.grow(mib, AGENT_LIMIT)?;
        let shrunk = self.guest.order(Task::Shrink, AGENT_LIMIT)?;
        if shrunk != Report::Done {
            return Err(differs("the agent's answer", "done", &format!("{shrunk:?}")));
        }
        steps.end(host, Outcome::Good, &format!("{mib} MiB, all zero"))
    }

    fn healthy(&mut self, host: &mut Host, steps: &mut Steps) -> Result<()> {
        steps.begin(host, "is healthy")?;
        self.still_runs()?;
        if self.agent {
            self.guest.check_health()?;
            return steps.end(host, Outcome::Good, "nothing in its kernel's log");
        }
        let end = self.guest.last_lines();
        let said = if end.is_empty() {
            "runs; it says nothing on its console".to_owned()
        } else {
            format!("runs; its console ends: {end}")
        };
        steps.end(host, Outcome::Weaker, &said)
    }
}

/// Returns the reason from an answer that is an error.
fn why(body: &Value) -> String {
    body.get("error")
        .and_then(|error| error.get("message").or(Some(error)))
        .and_then(Value::as_str)
        .map_or_else(|| body.to_string(), ToOwned::to_owned)
}

/// Returns the guest's configuration for xl, with the socket of its serial port.
fn configuration(trial: &Trial, serial: &str) -> Result<String> {
    let kind = if trial.hvm { Kind::Hvm } else { Kind::Pvh };
    let mut lines = vec![
        format!("name=\"{NAME}\""),
        format!("memory={0}\nmaxmem={0}\nvcpus={1}", trial.mib, trial.vcpus),
        "tsc_mode=\"native\"".to_owned(),
        "on_crash=\"preserve\"\non_reboot=\"preserve\"\non_poweroff=\"preserve\"".to_owned(),
    ];
    let console = if trial.hvm { "ttyS0" } else { "hvc0" };
    if let Some(kernel) = &trial.kernel {
        lines.push(format!(
            "kernel=\"{kernel}\"\nextra=\"console={console} loglevel=4 panic=1 {}\"",
            trial.append
        ));
    }
    if let Some(initrd) = &trial.initrd {
        lines.push(format!("ramdisk=\"{initrd}\""));
    }
    lines.push(kind.machine().to_owned());
    if trial.hvm {
        // Systems that boot by themselves want a screen.
        let screen = if trial.kernel.is_none() { "stdvga" } else { "none" };
        lines.push(format!(
            "vga=\"{screen}\"\nserial=\"unix:{serial},server=on,wait=off\""
        ));
        lines.extend(drives::configured(trial)?);
    }
    Ok(lines.join("\n") + "\n")
}
