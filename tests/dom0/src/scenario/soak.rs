//! Many rounds over a guest that works: nothing leaks (frames, Xen's heap, the index of contents), and the
//! counters add up.

use std::time::Duration;

use lacuna_guest::Task;

use crate::failure::{Result, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, settled_free_mib};
use crate::tool;

/// How long the agent may take for what touches much of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(240);
/// Rounds: a day's worth at one a minute, in batches whose answers are not too long.
const BATCHES: u32 = 15;
const ROUNDS_A_BATCH: &str = "96";
/// With equal pages shared as well, which has every page in use hashed: a tenth of that.
const CONTENT_ROUNDS_A_BATCH: &str = "10";
/// What the host's free memory may differ by when the guest is gone: what Xen's own heap keeps for next time.
const KEPT_MIB: u64 = 1;

/// A day's worth of rounds.
pub(crate) fn soak(host: &mut Host) -> Result<()> {
    // A guest that has come and gone once: what Xen allocates for the first one only is no leak.
    host.create(&Plan {
        mib: 128,
        ..Plan::stock("first", "6.12")
    })?
    .destroy(host)?;
    let before = settled_free_mib()?;
    let mut guest = host.create(&Plan {
        mib: 256,
        ..Plan::stock("soak", "6.12")
    })?;
    host.lacuna(&["attach", guest.name])?;
    let task = Task::WorkStart {
        threads: 1,
        mib: 96,
        seed: 0x1ac4_50a4,
    };
    guest.order(task.clone(), AGENT_LIMIT)?;
    host.note("a day's worth of rounds while the guest works")?;
    for _ in 0..BATCHES {
        rounds(&guest, ROUNDS_A_BATCH, "intro")?;
    }
    host.figure("blocks", guest.end_work(AGENT_LIMIT)?.0)?;
    // Paused, so that nothing moves between two counters.
    guest.pause(host)?;
    let status = host.lacuna(&["status", guest.name])?;
    let counter = |name: &str| status.number(name);
    for name in ["shared", "unshared", "zero_gfns", "released", "metadata_bytes"] {
        host.figure(name, counter(name)?)?;
    }
    equal(
        "pages shared, against those taken back and those that are still given back",
        &counter("shared")?,
        &(counter("unshared")? + counter("zero_gfns")?),
    )?;
    equal(
        "frames freed, against pages shared",
        &counter("shared")?,
        &counter("released")?,
    )?;
    equal("writes that found no memory", &0, &counter("unshare_enomem")?)?;
    guest.unpause(host)?;
    host.note("the same with equal pages shared as well")?;
    guest.order(task, AGENT_LIMIT)?;
    for _ in 0..BATCHES {
        rounds(&guest, CONTENT_ROUNDS_A_BATCH, "introdedup")?;
    }
    host.figure("blocks_introdedup", guest.end_work(AGENT_LIMIT)?.0)?;
    guest.check_health()?;
    guest.destroy(host)?;
    let after = settled_free_mib()?;
    host.figure("free_mib_before", before)?;
    host.figure("free_mib_after", after)?;
    ensure(
        after + KEPT_MIB >= before,
        "the host's free memory when the guest is gone",
        &format!("{before} MiB"),
        &format!("{after} MiB"),
    )
}

/// Rounds of `mode`, each of which must be done.
fn rounds(guest: &Guest, number: &str, mode: &str) -> Result<()> {
    let arguments = ["dedup", guest.name, "--mode", mode, "--rounds", number];
    let answer = tool::ask(&arguments)?;
    equal(
        &format!("exit status of lacuna {}", arguments.join(" ")),
        &0,
        &answer.status,
    )
}
