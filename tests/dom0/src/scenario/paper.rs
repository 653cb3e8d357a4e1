//! The cells of the paper's evaluation (`lacuna_scenarios::paper`), on a machine whose clock counts
//! instructions: a guest whose free memory is full of noise runs programs in phases, and somebody shares its
//! memory meanwhile.
//!
//! What is measured is counted, not timed: how long the guest's virtual CPU ran with what Xen did in its name,
//! and how long a slice kept it from running, and how long dom0's ran for a round.

use std::time::{Duration, Instant};

use lacuna::xen::engine::Engine;
use lacuna_guest::{Report, Task};
use lacuna_scenarios::paper::{Arm, Cell, Question, SMOKE, find};
use serde_json::{Value, json};

use super::gmd::engine_rounds;
use super::swing::daemon;
use crate::baseline::{Gmd, Mode};
use crate::daemon::Daemon;
use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, PAGES_PER_MIB, Plan};
use crate::host::{Host, run as run_command};
use crate::migration::{Journey, migrate};
use crate::services::xen;
use crate::tool;

/// How long the agent may take for an order.
const AGENT_LIMIT: Duration = Duration::from_secs(600);
/// What the balloon's controller leaves a guest beyond what that uses, in MiB: a fifth of the guest. With a
/// tenth the guest ran out of memory between two looks.
const BALLOON_MARGIN_MIB: u64 = 128;
/// The guest rests between two phases for as long, in ms.
const REST_MS: u32 = 3_000;
/// How often a migration looks whether the workload is in its middle.
const LOOK: Duration = Duration::from_millis(500);
/// The phase in whose middle a guest is moved: the steady one of five.
const STEADY: u32 = 2;
/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// How far the guest's programs are.
struct Progress {
    phase: u32,
    done: u32,
    ended: bool,
    free: u64,
    least: u64,
    most: u64,
    average: u64,
}

/// Who shares.
enum Sharing {
    Nobody,
    UserLevel(Box<Gmd>),
    Rounds(Direct, Mode),
    Daemon(Daemon),
    /// By the number of pages that the guest was created with.
    Balloon(Direct, u64),
}

/// What a round came to.
struct Round {
    /// Instructions of dom0 and of the hypervisor in its name.
    instructions: u64,
    /// Pages newly shared.
    pages: u64,
}

/// What is shared, by who shares it.
struct Shared {
    /// Pages of the guest that the host has.
    saved: u64,
    /// Pages that the guest has taken back so far.
    unshared: u64,
    /// Time that slices have kept the guest from running, in ns.
    paused: u64,
}

/// The smallest cell.
pub(crate) fn smoke(host: &mut Host) -> Result<()> {
    let cell = find(SMOKE).ok_or_else(|| differs("the smallest cell", "to be there", "none"))?;
    run(&cell, host)
}

/// Runs one cell.
pub(crate) fn run(cell: &Cell, host: &mut Host) -> Result<()> {
    let mib = cell.workload.guest_mib();
    let mut guest = host.create(&Plan {
        mib,
        initrd: "programs.initrd",
        ..Plan::stock("paper", "6.12")
    })?;
    host.note("filling the guest's free memory with noise")?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    if cell.arm != Arm::Balloon {
        host.lacuna(&["attach", guest.name])?;
    }
    host.figure("guest_pages", u64::from(mib) * PAGES_PER_MIB)?;
    match cell.question {
        Question::Rounds { seconds } => rounds(cell, host, &mut guest, seconds)?,
        Question::Migration => moved(cell, host, &mut guest)?,
    }
    guest.check_health()
}

/// Rounds beside the workload, from its beginning to its end.
fn rounds(cell: &Cell, host: &mut Host, guest: &mut Guest, seconds: u32) -> Result<()> {
    let mut sharing = Sharing::start(cell.arm, guest, seconds)?;
    let direct = Direct::open(guest.domain)?;
    let mut seen = Seen::default();
    let before = (direct.cpu_time()?, seen.look(&sharing, guest)?);
    start(cell, guest)?;
    let began = Instant::now();
    let (mut samples, mut taken) = (Vec::new(), Vec::new());
    let mut number = 0;
    let progress = loop {
        // What was given back and taken again since the last round, too, is part of what the guest takes.
        let earlier = (seen.look(&sharing, guest)?.saved, direct.pages()?);
        if let Some(round) = sharing.round(&mut seen, guest)? {
            taken.push(json!({"instructions": round.instructions, "pages": round.pages}));
        }
        let shared = seen.look(&sharing, guest)?;
        let progress = progress(guest)?;
        samples.push(json!({
            "ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "phase": progress.phase,
            "free": progress.free,
            "saved_before": earlier.0,
            "owned_before": earlier.1,
            "saved": shared.saved,
            "owned": direct.pages()?,
            "unshared": shared.unshared - before.1.unshared,
        }));
        if progress.ended {
            break progress;
        }
        host.note(&format!("phase {}, {} done", progress.phase, progress.done))?;
        number += 1;
        let next = began + Duration::from_secs(u64::from(seconds)) * number;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    };
    let elapsed = began.elapsed().as_secs_f64();
    let after = (direct.cpu_time()?, seen.look(&sharing, guest)?);
    sharing.stop()?;
    expect_done(cell, &progress)?;
    #[allow(clippy::cast_precision_loss)] // a count of pages, for a rate
    let unshared = (after.1.unshared - before.1.unshared) as f64;
    for (name, value) in [
        ("samples", Value::Array(samples)),
        ("rounds", Value::Array(taken)),
        ("free_least", json!(progress.least)),
        ("free_most", json!(progress.most)),
        ("free_average", json!(progress.average)),
        ("programs", json!(progress.done)),
        ("seconds_of_the_machine", json!(elapsed)),
        ("guest_ns", json!(after.0 - before.0)),
        ("paused_ns", json!(after.1.paused - before.1.paused)),
        ("unshared_per_minute", json!(unshared / elapsed * 60.0)),
    ] {
        host.figure(name, value)?;
    }
    if !matches!(cell.arm, Arm::None | Arm::Balloon) {
        ensure(
            after.1.saved > 0,
            "pages that the host has at the end",
            "some",
            "none",
        )?;
    }
    Ok(())
}

/// A migration in the middle of the workload, which goes on at the other end.
fn moved(cell: &Cell, host: &mut Host, guest: &mut Guest) -> Result<()> {
    start(cell, guest)?;
    while progress(guest)?.phase < STEADY {
        std::thread::sleep(LOOK);
    }
    let options: &'static [&'static str] = match cell.arm {
        Arm::None => &["--lacuna=off"],
        _ => &[],
    };
    let journey = Journey {
        options,
        ..Journey::default()
    };
    host.note("migrating")?;
    let at = progress(guest)?;
    let arrival = migrate(host, guest, journey, |_, _| Ok(()))?;
    let report = &arrival.report;
    let iterations = serde_json::to_value(&report.iterations).map_err(std::io::Error::other)?;
    for (name, value) in [
        ("bytes", json!(report.bytes)),
        ("pages", json!(report.sum(|iteration| iteration.data))),
        ("skipped", json!(report.sum(|iteration| iteration.skipped))),
        ("iterations", iterations),
        ("free_before", json!(at.free)),
        ("phase", json!(at.phase)),
        ("instructions", json!(nanoseconds(arrival.took))),
    ] {
        host.figure(name, value)?;
    }
    let progress = loop {
        let progress = progress(guest)?;
        if progress.ended {
            break progress;
        }
        std::thread::sleep(LOOK);
    };
    host.figure("programs", progress.done)?;
    expect_done(cell, &progress)
}

/// Starts the guest's programs.
fn start(cell: &Cell, guest: &mut Guest) -> Result<()> {
    let task = Task::ProgramsStart {
        workload: cell.workload,
        phases: cell.phases.to_vec(),
        rest_ms: REST_MS,
    };
    guest.order(task, AGENT_LIMIT).map(drop)
}

/// Asks the guest how far its programs are; none may have failed.
fn progress(guest: &mut Guest) -> Result<Progress> {
    match guest.order(Task::ProgramsStatus, AGENT_LIMIT)? {
        Report::Programs {
            phase,
            done,
            ended,
            failed: None,
            free,
            least,
            most,
            sum,
            looks,
        } => Ok(Progress {
            phase,
            done,
            ended,
            free,
            least,
            most,
            average: sum / looks.max(1),
        }),
        other => Err(differs(
            "the guest's programs",
            "to do what they do elsewhere",
            &format!("{other:?}"),
        )),
    }
}

/// Fails unless every program has done its work.
fn expect_done(cell: &Cell, progress: &Progress) -> Result<()> {
    let wanted: u32 = cell.phases.iter().sum();
    equal("programs with the expected result", &wanted, &progress.done)
}

impl Sharing {
    fn start(arm: Arm, guest: &Guest, seconds: u32) -> Result<Self> {
        let rounds = |mode| Ok(Self::Rounds(Direct::open(guest.domain)?, mode));
        match arm {
            Arm::None => Ok(Self::Nobody),
            Arm::UserLevel => Ok(Self::UserLevel(Box::new(Gmd::open(guest.domain)?))),
            Arm::Intro => rounds(Mode::Intro),
            Arm::Dedup => rounds(Mode::Dedup),
            Arm::IntroDedup => rounds(Mode::IntroDedup),
            Arm::Policy => Ok(Self::Daemon(daemon("settled", seconds)?)),
            Arm::Balloon => {
                let direct = Direct::open(guest.domain)?;
                let all = direct.pages()?;
                Ok(Self::Balloon(direct, all))
            }
        }
    }

    /// Does a round; the daemon does its own, and nobody does none.
    fn round(&mut self, seen: &mut Seen, guest: &mut Guest) -> Result<Option<Round>> {
        let dom0 = Direct::open(0)?;
        let before = dom0.cpu_time()?;
        let pages = match self {
            Self::Nobody | Self::Daemon(_) => return Ok(None),
            Self::UserLevel(engine) => seen.count(&engine.round(Mode::Intro)?),
            Self::Rounds(direct, mode) => pages(&direct.engine, *mode)?,
            Self::Balloon(direct, all) => follow(direct, *all, guest)?,
        };
        Ok(Some(Round {
            instructions: dom0.cpu_time()? - before,
            pages,
        }))
    }

    fn stop(self) -> Result<()> {
        match self {
            Self::Daemon(daemon) => daemon.stop(),
            _ => Ok(()),
        }
    }
}

/// Sets the balloon's target to what the guest uses and a margin, and returns how many pages less than before
/// that is.
fn follow(direct: &Direct, all: u64, guest: &mut Guest) -> Result<u64> {
    let (owned, free) = (direct.pages()?, progress(guest)?.free);
    let target = (owned.saturating_sub(free) + BALLOON_MARGIN_MIB * PAGES_PER_MIB).min(all);
    let kib = format!("{}k", target * PAGE_KIB);
    run_command(&mut xen("sbin/xl", &["mem-set", guest.name, &kib]))?;
    Ok(owned.saturating_sub(target))
}

/// Does one of Lacuna's rounds, and returns the pages that it shared.
fn pages(engine: &Engine, mode: Mode) -> Result<u64> {
    let (_, pages) = engine_rounds(engine, mode, 1).map_err(|error| refused(&error))?;
    Ok(pages)
}

/// What the user-level engine's rounds have shown: Xen counts for nobody what a guest takes back from it.
#[derive(Default)]
struct Seen {
    saved: u64,
    unshared: u64,
}

impl Seen {
    /// Counts a round of it: what it found still shared, and what it shared. Pages that it had shared and did
    /// not find so any more were taken back.
    fn count(&mut self, round: &crate::baseline::Round) -> u64 {
        let new = round.zeroed.len() as u64;
        self.unshared += self.saved.saturating_sub(round.already);
        self.saved = round.already + new;
        new
    }

    /// Returns what is shared now; of the user-level engine, after its last round.
    fn look(&self, sharing: &Sharing, guest: &Guest) -> Result<Shared> {
        if !matches!(sharing, Sharing::Rounds(..) | Sharing::Daemon(_)) {
            return Ok(Shared {
                saved: self.saved,
                unshared: self.unshared,
                paused: 0,
            });
        }
        let status = tool::ask(&["status", guest.name])?;
        Ok(Shared {
            saved: status.number("zero_gfns")? + status.number("content_gfns")?,
            unshared: status.number("unshared")? + status.number("content_unshared")?,
            paused: status.number("pause_total_ns")?,
        })
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
