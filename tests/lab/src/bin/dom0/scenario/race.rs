//! A guest that allocates, writes, checks and frees on two vCPUs without pause goes through share rounds; and the same
//! with a step of the round left out, which must be seen.

use std::time::Duration;

use lacuna_guest::{Report, Task};

use crate::engine::{Direct, LeftOut, refused};
use crate::failure::{Failure, Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// Share rounds while the guest works.
const ROUNDS: u64 = 200;
/// Rounds after which a missing step must have been seen.
const MUTANT_ROUNDS: u64 = 100;
/// Between a scan and the round that trusts it: the scan is stale by then, as it is on a busy host.
const STALE: Duration = Duration::from_millis(20);

/// Starts a guest with an attached profile and a workload on both its vCPUs.
fn busy_guest(host: &mut Host) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        vcpus: 2,
        ..Plan::stock("race", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    guest.order(
        Task::WorkStart {
            threads: 2,
            mib: 200,
            seed: 0x1ac4_14a0,
        },
        AGENT_LIMIT,
    )?;
    Ok(guest)
}

/// All steps: nothing is lost.
pub(crate) fn complete(host: &mut Host) -> Result<()> {
    let mut guest = busy_guest(host)?;
    host.note(&format!("{ROUNDS} share rounds while the guest works"))?;
    let shared = host.lacuna(&["dedup", guest.name, "--rounds", &ROUNDS.to_string()])?;
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
    host.figure("rounds", ROUNDS)?;
    host.figure("shared", shared.number("shared")?)?;
    host.figure("rejected", shared.number("rejected")?)?;
    let status = host.lacuna(&["status", guest.name])?;
    host.figure("unshared", status.number("unshared")?)?;
    host.figure("pause_longest_ns", status.number("pause_longest_ns")?)?;
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

/// The re-check left out: the workload must lose data, or this test could not see a loss at all.
///
/// Runs under `--full` only, because it has not been seen to hold: in its one run 100 rounds went by without a loss,
/// though rounds with the re-check reject 28 pages each. Why is not known yet; the model of the engine (`lacuna-core`)
/// does lose data with the same step left out.
pub(crate) fn without_recheck(host: &mut Host) -> Result<()> {
    let harm = harm_without(host, LeftOut::Recheck)?;
    host.figure("harm", harm.clone().unwrap_or_default())?;
    harm.map(drop)
        .ok_or_else(|| differs("share rounds without the re-check", "lost data", "none lost"))
}

/// The flush left out. What is seen depends on the machine's TLB, and an emulator's may hide it: the outcome is told.
pub(crate) fn without_flush(host: &mut Host) -> Result<()> {
    let harm = harm_without(host, LeftOut::Flush)?;
    host.figure("harm", harm.unwrap_or_else(|| "none seen".to_owned()))
}

/// Runs rounds with `step` left out until the guest is harmed, and says how it was.
fn harm_without(host: &mut Host, step: LeftOut) -> Result<Option<String>> {
    let mut guest = busy_guest(host)?;
    let direct = Direct::open(guest.domain)?;
    for round in 1..=MUTANT_ROUNDS {
        direct.engine.scan().map_err(|error| refused(&error))?;
        std::thread::sleep(STALE);
        direct.share_without(step)?;
        match guest.order(Task::WorkStatus, Duration::from_secs(20)) {
            Ok(Report::Work { corrupt: 0, .. }) => {}
            Ok(Report::Work { corrupt, .. }) => {
                return Ok(Some(format!("round {round}: {corrupt} corrupt words")));
            }
            Ok(other) => return Ok(Some(format!("round {round}: {other:?}"))),
            // The agent told of a corrupt word by itself, or does not answer any more.
            Err(Failure::Differs { seen, .. } | Failure::Late { seen, .. }) => {
                return Ok(Some(format!("round {round}: {seen}")));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}
