//! The other half of Figure 9: what giving memory back costs the guest's own work, on a machine whose clock
//! counts instructions.
//!
//! The guest's work is paced and mostly rests, as an emulator that counts is slow; what it costs is measured
//! as the time its virtual CPU runs, which has Xen's part of each fault in it, and the time a slice keeps it
//! from running. What that comes to beyond the same work without sharing is time that a guest with more to do
//! would lack: a second of it in a hundred is a slowdown of 1 %.

use lacuna_guest::Task;

use super::swing::{AGENT_LIMIT, Outcome, daemon, keeps_saving, swings};
use crate::failure::{Result, ensure};
use crate::guest::{Guest, Plan};
use crate::host::Host;

/// The guest's memory, what its steady work uses, and what comes and goes, in MiB.
const GUEST_MIB: u32 = 320;
const WORK_MIB: u32 = 24;
const SWING_MIB: u32 = 48;
/// Rest after each block of work, in ms: the guest is idle for three quarters of the time.
const REST_MS: u32 = 25;
/// The work: each measurement is of the same blocks, as their sizes and kinds differ more than what is
/// sought.
const WORK: Task = Task::WorkPaced {
    mib: WORK_MIB,
    seed: 0x1ac4_000a,
    rest_ms: REST_MS,
};
/// What a daemon gives back, and the swings in which it may learn before the work begins anew.
struct GiveBack {
    extent: &'static str,
    learnt: u32,
}
/// It learns nothing.
const EVERYTHING: GiveBack = GiveBack {
    extent: "everything",
    learnt: 0,
};
const SETTLED: GiveBack = GiveBack {
    extent: "settled",
    learnt: 3,
};
/// Swings before a measurement in which the work, begun anew, finds its memory and the policy gets over that:
/// with rounds 3 s apart it leaves memory that was taken after a minute to the guest for as long. And swings
/// measured.
const BEGUN: u32 = 2;
const MEASURED: u32 = 3;
/// The slowdown that counts as none, in parts of a million. The same work without sharing, repeated, differed
/// by up to 300; giving back everything costs 7,600 and more.
const NONE_PPM: f64 = 1_000.0;
/// Nanoseconds of a second, in parts of a million.
const NS_A_PPM: f64 = 1_000.0;

/// A guest whose use of memory swings, without sharing, with everything shared, and with what the policy lets
/// share.
pub(crate) fn slowdown(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: GUEST_MIB,
        ..Plan::stock("slowdown", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    guest.order(WORK, AGENT_LIMIT)?;
    // The guest's own pace drifts in half an hour: what is compared was measured one after the other.
    let everything_1 = beside(host, &mut guest, &EVERYTHING, 1)?;
    let first = alone(host, &mut guest, "first")?;
    let settled_1 = beside(host, &mut guest, &SETTLED, 1)?;
    let second = alone(host, &mut guest, "second")?;
    let settled_3 = beside(host, &mut guest, &SETTLED, 3)?;
    let third = alone(host, &mut guest, "third")?;
    let everything_3 = beside(host, &mut guest, &EVERYTHING, 3)?;

    host.figure("lacking_ppm_everything_1s", lacking(&everything_1, &first))?;
    host.figure("lacking_ppm_everything_3s", lacking(&everything_3, &third))?;
    // What the pace of the work changes by itself.
    host.figure("lacking_ppm_alone_again", lacking(&second, &first))?;
    host.figure("lacking_ppm_alone_at_last", lacking(&third, &second))?;
    for (settled, everything, [before, after], interval) in [
        (&settled_1, &everything_1, [&first, &second], 1),
        (&settled_3, &everything_3, [&second, &third], 3),
    ] {
        keeps_saving(host, settled, everything, interval)?;
        let slowdown = f64::midpoint(lacking(settled, before), lacking(settled, after));
        host.figure(&format!("lacking_ppm_settled_{interval}s"), slowdown)?;
        ensure(
            slowdown <= NONE_PPM,
            &format!("the guest's slowdown under the policy at {interval} s"),
            &format!("at most {NONE_PPM} ppm"),
            &format!("{slowdown:.0} ppm"),
        )?;
    }
    guest.end_work(AGENT_LIMIT)?;
    guest.check_health()
}

/// Swings beside a daemon with `interval` seconds between its rounds.
fn beside(host: &mut Host, guest: &mut Guest, give_back: &GiveBack, interval: u32) -> Result<Outcome> {
    let GiveBack { extent, learnt } = give_back;
    host.note(&format!("giving back {extent}, every {interval} s"))?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let daemon = daemon(extent, interval)?;
    swings(host, guest, SWING_MIB, *learnt)?;
    let phase = format!("{extent}_{interval}s");
    let outcome = measured(host, guest, &phase)?;
    daemon.stop()?;
    host.figure(&format!("unshared_per_minute_{phase}"), outcome.unshared)?;
    host.figure(&format!("saved_mib_{phase}"), outcome.saved / 256.0)?;
    Ok(outcome)
}

/// Swings with nothing done.
fn alone(host: &mut Host, guest: &mut Guest, name: &str) -> Result<Outcome> {
    host.note("without sharing")?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    measured(host, guest, &format!("alone_{name}"))
}

/// Swings while the same blocks of work are done.
fn measured(host: &mut Host, guest: &mut Guest, phase: &str) -> Result<Outcome> {
    guest.end_work(AGENT_LIMIT)?;
    guest.order(WORK, AGENT_LIMIT)?;
    swings(host, guest, SWING_MIB, BEGUN)?;
    let outcome = swings(host, guest, SWING_MIB, MEASURED)?;
    host.figure(&format!("work_per_second_{phase}"), outcome.work)?;
    host.figure(&format!("busy_ppm_{phase}"), outcome.taken / NS_A_PPM)?;
    Ok(outcome)
}

/// Returns what a guest lacks beside sharing for the work that it did alone, in parts of a million of its
/// time. Work that was not done in the same time is charged at what a page of it cost.
fn lacking(beside: &Outcome, alone: &Outcome) -> f64 {
    (beside.taken * alone.work / beside.work - alone.taken) / NS_A_PPM
}
