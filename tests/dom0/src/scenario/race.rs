//! A guest that allocates, writes, checks and frees on two vCPUs without pause goes through share rounds; and
//! the same with a step of the round left out, which must be seen.

use std::time::{Duration, Instant};

use lacuna::xen::engine::ScanOf;
use lacuna_guest::{Report, Task};

use crate::engine::{Direct, LeftOut};
use crate::failure::{Failure, Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// What the workload has at most at a time, in MiB.
pub(super) const WORK_MIB: u32 = 200;
/// Share rounds while the guest works.
const ROUNDS: u64 = 200;
/// Rounds with a step left out between two checks of all that the guest has written.
const MUTANT_ROUNDS: u64 = 5;
/// Checks after which a missing step must have been seen.
const MUTANT_BATCHES: u64 = 10;
/// How long the agent may take to check what it holds; a guest without its memory does not answer at all.
const HARM_LIMIT: Duration = Duration::from_secs(45);
/// The guest's memory in MiB, and on Bochs, which has a twentieth of QEMU's speed.
const MIB: u32 = 512;
const MIB_ON_EPT: u32 = 320;
/// Between a scan and the round that trusts it: the scan is stale by then, as it is on a busy host.
const STALE: Duration = Duration::from_millis(20);

/// Starts a Linux guest of `mib` MiB with an attached profile and a workload on both its vCPUs.
fn busy_guest(host: &mut Host, mib: u32) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        vcpus: 2,
        mib,
        ..Plan::stock("race", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    work(&mut guest, WORK_MIB, 1)?;
    Ok(guest)
}

/// Starts the workload on two vCPUs, with at most `mib` MiB; each number makes its data differ from the last
/// one's.
pub(super) fn work(guest: &mut Guest, mib: u32, number: u64) -> Result<()> {
    let task = Task::WorkStart {
        threads: 2,
        mib,
        seed: 0x1ac4_14a0 ^ number << 16,
    };
    guest.order(task, AGENT_LIMIT).map(drop)
}

/// All steps: nothing is lost.
pub(crate) fn complete(host: &mut Host) -> Result<()> {
    let guest = busy_guest(host, MIB)?;
    nothing_is_lost(host, guest, 1)
}

/// Share rounds with a guest that has a profile and a workload, in `parts`, each a run of the product's
/// command; how far it has come is told after each.
pub(super) fn nothing_is_lost(host: &mut Host, mut guest: Guest, parts: u64) -> Result<()> {
    let rounds = ROUNDS / parts;
    let (mut shared, mut rejected) = (0, 0);
    let started = Instant::now();
    for part in 1..=parts {
        host.note(&format!(
            "{rounds} share rounds while the guest works, part {part} of {parts}"
        ))?;
        let answer = host.lacuna(&["dedup", guest.name, "--rounds", &rounds.to_string()])?;
        shared += answer.number("shared")?;
        rejected += answer.number("rejected")?;
        host.figure("rounds", part * rounds)?;
        host.figure("rounds_ms", millis(started))?;
    }
    let report = guest.order(Task::WorkStop, AGENT_LIMIT)?;
    let Report::Work {
        blocks,
        pages,
        corrupt,
    } = report
    else {
        return Err(differs(
            "the workload's end",
            "its counters",
            &format!("{report:?}"),
        ));
    };
    host.figure("shared", shared)?;
    host.figure("rejected", rejected)?;
    let status = host.lacuna(&["status", guest.name])?;
    host.figure("unshared", status.number("unshared")?)?;
    for name in ["pause_longest_ns", "pause_total_ns", "scan_ns"] {
        host.figure(name, status.number(name)?)?;
    }
    host.figure("blocks", blocks)?;
    host.figure("pages_checked", pages)?;
    host.figure("corrupt", corrupt)?;
    equal("corrupt words in the guest", &0, &corrupt)?;
    ensure(
        blocks > 0,
        "blocks the guest went through meanwhile",
        "more than none",
        "none",
    )?;
    guest.check_health()
}

/// Milliseconds since `started`.
fn millis(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The re-check left out: the workload must lose data, or this test could not see a loss at all.
pub(crate) fn without_recheck(host: &mut Host) -> Result<()> {
    let guest = busy_guest(host, MIB)?;
    data_is_lost(host, guest)
}

/// Rounds without the re-check, with a guest that has a profile and a workload of [`WORK_MIB`].
pub(super) fn data_is_lost(host: &mut Host, guest: Guest) -> Result<()> {
    let harm = harm_without(host, guest, LeftOut::Recheck)?;
    host.figure("harm", harm.clone().unwrap_or_default())?;
    harm.map(drop)
        .ok_or_else(|| differs("share rounds without the re-check", "lost data", "none lost"))
}

/// Leaves the flush out, and reports what is seen. Nothing is expected to be: Xen's own p2m code flushes
/// whatever replaces a present entry, on NPT as it writes the entry (`hap.c`, `hap_write_p2m_entry_post`), on
/// EPT before the p2m lock is dropped (`mm-locks.h`, `p2m_unlock`). The engine's flush says what it relies
/// on, should that change.
pub(crate) fn without_flush(host: &mut Host) -> Result<()> {
    flush_left_out(host, MIB)
}

/// The same on Intel's nested paging.
pub(crate) fn without_flush_on_ept(host: &mut Host) -> Result<()> {
    flush_left_out(host, MIB_ON_EPT)
}

fn flush_left_out(host: &mut Host, mib: u32) -> Result<()> {
    let guest = busy_guest(host, mib)?;
    let harm = harm_without(host, guest, LeftOut::Flush)?;
    host.figure("harm", harm.unwrap_or_else(|| "none seen".to_owned()))
}

/// Runs rounds with `step` left out until the guest is harmed, and says how it was.
///
/// The workload checks a block when it frees it, a hundred blocks later: it is stopped every few rounds,
/// which makes it check all that it holds.
fn harm_without(host: &mut Host, mut guest: Guest, step: LeftOut) -> Result<Option<String>> {
    let direct = Direct::open(guest.domain)?;
    let mut shared = 0;
    for batch in 1..=MUTANT_BATCHES {
        if batch > 1 {
            work(&mut guest, WORK_MIB, batch)?;
        }
        for _ in 0..MUTANT_ROUNDS {
            // A guest that crashed, or runs wild, may fail the identity check or its own counters: that is
            // harm as well.
            if let Err(error) = direct.engine.scan(ScanOf::Changes) {
                return Ok(Some(format!("batch {batch}: the scan: {error}")));
            }
            std::thread::sleep(STALE);
            shared += direct.share_without(step)?;
        }
        host.figure("rounds", batch * MUTANT_ROUNDS)?;
        host.figure("shared", shared)?;
        match guest.order(Task::WorkStop, HARM_LIMIT) {
            Ok(Report::Work { corrupt: 0, .. }) => {}
            Ok(Report::Work { corrupt, .. }) => {
                return Ok(Some(format!("batch {batch}: {corrupt} corrupt words")));
            }
            Ok(other) => return Ok(Some(format!("batch {batch}: {other:?}"))),
            // The agent told of a corrupt word by itself, or does not answer any more.
            Err(Failure::Differs { seen, .. } | Failure::Late { seen, .. }) => {
                return Ok(Some(format!("batch {batch}: {seen}")));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}
