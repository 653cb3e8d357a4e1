//! Figure 9's question: what does giving memory back cost a guest whose use of memory swings, and what does
//! it save?

use std::time::{Duration, Instant};

use lacuna_guest::{Report, Task};

use crate::daemon::Daemon;
use crate::engine::Direct;
use crate::failure::{Failure, Result, differs, ensure};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::tool;

/// How long the agent may take for what touches much of the guest's memory.
pub(super) const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// The guest's memory, what its steady work uses, and what comes and goes, in MiB.
const GUEST_MIB: u32 = 512;
const WORK_MIB: u32 = 24;
const SWING_MIB: u32 = 64;
/// Memory is wanted for so long, and then not wanted for as long.
const HALF: Duration = Duration::from_secs(12);
/// Swings before the measurement, in which a policy may learn, and swings measured.
const LEARNT: u32 = 2;
const MEASURED: u32 = 3;
/// Seconds between rounds.
const INTERVALS: [u32; 2] = [1, 3];
/// How often what is given back is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Part of the saving that the policy has to keep.
const SAVING_PER_CENT: f64 = 80.0;
/// Part of the unshares that it may have.
const UNSHARED_PER_CENT: f64 = 50.0;

/// The figures of some swings.
pub(super) struct Outcome {
    /// Pages of its own work that the guest got done, a second.
    pub(super) work: f64,
    /// Pages that it took back, a minute.
    pub(super) unshared: f64,
    /// Pages that the host had, on average.
    pub(super) saved: f64,
    /// How long the guest's virtual CPUs ran, with what Xen did in their name, and how long a slice kept them
    /// from it, in ns a second.
    pub(super) taken: f64,
}

/// The same guest, without sharing, with everything shared, and with what the policy lets share, at two
/// intervals.
pub(crate) fn swing(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: GUEST_MIB,
        ..Plan::stock("swing", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    let task = Task::WorkStart {
        threads: 1,
        mib: WORK_MIB,
        seed: 0x1ac4_0009,
    };
    guest.order(task, AGENT_LIMIT)?;
    let none = none(host, &mut guest, "none")?;
    for interval in INTERVALS {
        let everything = shared(host, &mut guest, "everything", interval, none.work)?;
        let settled = shared(host, &mut guest, "settled", interval, none.work)?;
        let unshared = settled.unshared / everything.unshared * 100.0;
        host.figure(&format!("unshared_per_cent_{interval}s"), unshared)?;
        keeps_saving(host, &settled, &everything, interval)?;
        ensure(
            unshared <= UNSHARED_PER_CENT,
            &format!("the unshares that the policy has at {interval} s"),
            &format!("at most {UNSHARED_PER_CENT} % of those without it"),
            &format!("{unshared:.1} %"),
        )?;
    }
    // What the machine itself changed meanwhile: the ratios of work are no better than this one is near 1.
    let again = self::none(host, &mut guest, "none_again")?;
    host.figure("work_ratio_none_again", again.work / none.work)?;
    guest.end_work(AGENT_LIMIT)?;
    guest.check_health()
}

/// Swings with nothing done; what was given back before is the guest's again after the first ones.
fn none(host: &mut Host, guest: &mut Guest, name: &str) -> Result<Outcome> {
    // All that was given back is taken again, so that the swings meet no zero frame.
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let outcome = swings(host, guest, SWING_MIB, MEASURED)?;
    host.figure(&format!("work_per_second_{name}"), outcome.work)?;
    Ok(outcome)
}

/// Swings beside a daemon that gives back `extent` every `interval` seconds.
fn shared(host: &mut Host, guest: &mut Guest, extent: &str, interval: u32, alone: f64) -> Result<Outcome> {
    host.note(&format!("giving back {extent}, every {interval} s"))?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let daemon = daemon(extent, interval)?;
    swings(host, guest, SWING_MIB, LEARNT)?;
    let outcome = swings(host, guest, SWING_MIB, MEASURED)?;
    daemon.stop()?;
    for (figure, value) in [
        ("work_ratio", outcome.work / alone),
        ("unshared_per_minute", outcome.unshared),
        ("saved_mib", outcome.saved / 256.0),
    ] {
        host.figure(&format!("{figure}_{extent}_{interval}s"), value)?;
    }
    Ok(outcome)
}

/// Fails unless what the policy lets share, `settled`, saves most of what sharing everything does.
pub(super) fn keeps_saving(
    host: &mut Host,
    settled: &Outcome,
    everything: &Outcome,
    interval: u32,
) -> Result<()> {
    let saving = settled.saved / everything.saved * 100.0;
    host.figure(&format!("saving_per_cent_{interval}s"), saving)?;
    ensure(
        saving >= SAVING_PER_CENT,
        &format!("the saving that the policy keeps at {interval} s"),
        &format!("at least {SAVING_PER_CENT} %"),
        &format!("{saving:.1} %"),
    )
}

/// A daemon that gives back `extent` every `interval` seconds.
pub(super) fn daemon(extent: &str, interval: u32) -> Result<Daemon> {
    Daemon::start(&format!(
        "[daemon]\npoll_seconds = 1\ncpu_percent = 80\n[log]\nformat = \"json\"\nlevel = \"debug\"\n\
         [host]\nreserve_mib = 16\n[defaults]\ngive_back = \"{extent}\"\ninterval_seconds = {interval}.0\n"
    ))
}

/// Lets the guest's use of memory swing by `mib` MiB, `times` times.
#[allow(clippy::cast_precision_loss)] // counts of pages and of ns, for ratios
pub(super) fn swings(host: &mut Host, guest: &mut Guest, mib: u32, times: u32) -> Result<Outcome> {
    let direct = Direct::open(guest.domain)?;
    let counters = |host: &mut Host, guest: &mut Guest| {
        let status = host.lacuna(&["status", guest.name])?;
        let taken = direct.cpu_time()? + status.number("pause_total_ns")?;
        Ok::<_, Failure>((status.number("unshared")?, taken, done(guest)?))
    };
    let (first, taken, work) = counters(host, guest)?;
    let began = Instant::now();
    let (mut saved, mut looks) = (0, 0_u32);
    for half in 0..times * 2 {
        let task = if half % 2 == 0 {
            Task::Grow { mib }
        } else {
            Task::Shrink
        };
        let until = began + HALF * (half + 1);
        guest.order(task, AGENT_LIMIT)?;
        while Instant::now() < until {
            saved += tool::ask(&["status", guest.name])?.number("zero_gfns")?;
            looks += 1;
            std::thread::sleep(LOOK);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let (last, taken_by_now, work_by_now) = counters(host, guest)?;
    Ok(Outcome {
        work: work_by_now.saturating_sub(work) as f64 / seconds,
        unshared: last.saturating_sub(first) as f64 / seconds * 60.0,
        saved: saved as f64 / f64::from(looks.max(1)),
        taken: taken_by_now.saturating_sub(taken) as f64 / seconds,
    })
}

/// Pages of work that the guest has done so far.
fn done(guest: &mut Guest) -> Result<u64> {
    match guest.order(Task::WorkStatus, AGENT_LIMIT)? {
        Report::Work { pages, .. } => Ok(pages),
        other => Err(differs(
            "how far the guest's work is",
            "its counters",
            &format!("{other:?}"),
        )),
    }
}
