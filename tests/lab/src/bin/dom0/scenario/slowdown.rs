//! The other half of Figure 9: what giving memory back costs the guest's own work, on a machine whose clock counts instructions.
//!
//! The guest's work is paced and mostly rests, as an emulator that counts is slow; what it costs is measured as the time its
//! virtual CPU runs, which has Xen's part of each fault in it, and the time a slice keeps it from running. What that comes to
//! beyond the same work without sharing is time that a guest with more to do would lack: a second of it in a hundred is a
//! slowdown of 1 %.

use lacuna_guest::Task;

use super::swing::{AGENT_LIMIT, Outcome, beside_daemon, keeps_saving, swings};
use crate::failure::{Result, ensure};
use crate::guest::{Guest, Plan};
use crate::host::Host;

/// The guest's memory, what its steady work uses, and what comes and goes, in MiB.
const GUEST_MIB: u32 = 320;
const WORK_MIB: u32 = 24;
const SWING_MIB: u32 = 48;
/// Rest after each block of work, in ms: the guest is idle for three quarters of the time.
const REST_MS: u32 = 25;
/// Swings measured without sharing.
const ALONE: u32 = 3;
/// Seconds between rounds.
const INTERVALS: [u32; 2] = [1, 3];
/// The slowdown that counts as none, in parts of a million. The same work without sharing, repeated, differed by 500; giving back
/// everything costs 7,600 and more.
const NONE_PPM: f64 = 5_000.0;
/// Nanoseconds of a second, in parts of a million.
const NS_A_PPM: f64 = 1_000.0;

/// A guest whose use of memory swings, without sharing, with everything shared, and with what the policy lets share.
pub(crate) fn slowdown(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: GUEST_MIB,
        ..Plan::stock("slowdown", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    let work = Task::WorkPaced {
        mib: WORK_MIB,
        seed: 0x1ac4_000a,
        rest_ms: REST_MS,
    };
    guest.order(work, AGENT_LIMIT)?;
    let alone = alone(host, &mut guest, "alone")?;
    // What the pace of the work changes by itself.
    let again = self::alone(host, &mut guest, "alone_again")?;
    host.figure("slowdown_ppm_alone_again", lacking(&again, &alone))?;
    for interval in INTERVALS {
        let mut beside = |host: &mut Host, extent: &str| -> Result<Outcome> {
            host.note(&format!("giving back {extent}, every {interval} s"))?;
            guest.order(Task::Fill, AGENT_LIMIT)?;
            let outcome = beside_daemon(host, &mut guest, SWING_MIB, extent, interval)?;
            for (figure, value) in [
                ("slowdown_ppm", lacking(&outcome, &alone)),
                ("unshared_per_minute", outcome.unshared),
                ("saved_mib", outcome.saved / 256.0),
            ] {
                host.figure(&format!("{figure}_{extent}_{interval}s"), value)?;
            }
            Ok(outcome)
        };
        let everything = beside(host, "everything")?;
        let settled = beside(host, "settled")?;
        keeps_saving(host, &settled, &everything, interval)?;
        let slowdown = lacking(&settled, &alone);
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

/// Swings with nothing done.
fn alone(host: &mut Host, guest: &mut Guest, name: &str) -> Result<Outcome> {
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let outcome = swings(host, guest, SWING_MIB, ALONE)?;
    host.figure(&format!("work_per_second_{name}"), outcome.work)?;
    host.figure(&format!("busy_ppm_{name}"), outcome.taken / NS_A_PPM)?;
    Ok(outcome)
}

/// What a guest lacks beside sharing for the work that it did alone, in parts of a million of its time. Work that was not done
/// in the same time is charged at what a page of it cost.
fn lacking(beside: &Outcome, alone: &Outcome) -> f64 {
    (beside.taken * alone.work / beside.work - alone.taken) / NS_A_PPM
}
