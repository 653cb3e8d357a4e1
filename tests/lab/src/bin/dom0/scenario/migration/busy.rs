//! A guest that allocates, writes checksummed data and frees during the whole migration.

use lacuna_guest::{Report, Task};

use super::{AGENT_LIMIT, PAGES_PER_MIB, intact, lost, nothing_lost, zeroed};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::migration::{Journey, compare, migrate};

/// Migrations in a row in every run, and in a long one.
const ROUNDS: u32 = 2;
const LONG_ROUNDS: u32 = 20;
/// Migrations within which a scan from before CLEAN must have lost a write.
const MUTANT_ROUNDS: u32 = 5;
/// The guest's memory in MiB.
const MIB: u32 = 256;

/// Starts a guest with a workload on both its vCPUs.
pub(super) fn busy_guest(host: &mut Host) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        vcpus: 2,
        mib: MIB,
        ..Plan::stock("busy", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    guest.order(
        Task::WorkStart {
            threads: 2,
            mib: 40,
            seed: 0x2ac4_14a0,
        },
        AGENT_LIMIT,
    )?;
    Ok(guest)
}

pub(crate) fn busy(host: &mut Host) -> Result<()> {
    rounds(host, ROUNDS)
}

pub(crate) fn busy_long(host: &mut Host) -> Result<()> {
    rounds(host, LONG_ROUNDS)
}

fn rounds(host: &mut Host, rounds: u32) -> Result<()> {
    let mut guest = busy_guest(host)?;
    let (mut skipped, mut sent, mut resent) = (0, 0, 0);
    for round in 1..=rounds {
        host.lacuna(&["attach", guest.name])?;
        host.note(&format!("migration {round} of {rounds}"))?;
        let arrival = migrate(host, &mut guest, Journey::default(), |host, still| {
            let differences = compare(still, u64::from(MIB) * PAGES_PER_MIB)?;
            intact(&differences)?;
            zeroed(&differences)?;
            nothing_lost(host, still, &differences)
        })?;
        skipped += arrival.report.sum(|iteration| iteration.skipped);
        sent += arrival.report.sum(|iteration| iteration.data);
        resent += arrival.report.sum(|iteration| iteration.resent);
        // Reads what the workload has found wrong by itself, and shows that it goes on.
        progress(guest.order(Task::WorkStatus, AGENT_LIMIT)?)?;
    }
    let (blocks, pages) = progress(guest.order(Task::WorkStop, AGENT_LIMIT)?)?;
    host.figure("migrations", rounds)?;
    host.figure("skipped", skipped)?;
    host.figure("sent", sent)?;
    host.figure("resent", resent)?;
    host.figure("blocks", blocks)?;
    host.figure("pages_checked", pages)?;
    ensure(skipped > 0, "pages skipped", "more than none", "none")?;
    ensure(
        blocks > 0,
        "blocks the guest went through meanwhile",
        "more than none",
        "none",
    )?;
    guest.check_health()
}

/// The workload's counters, which must not tell of corruption.
pub(super) fn progress(report: Report) -> Result<(u64, u64)> {
    match report {
        Report::Work {
            blocks,
            pages,
            corrupt,
        } => {
            equal("corrupt words in the guest", &0, &corrupt)?;
            Ok((blocks, pages))
        }
        other => Err(differs("the workload", "its counters", &format!("{other:?}"))),
    }
}

/// A scan from before CLEAN, which only the debug hypervisor's module lets a sender use: writes are lost, and the tests
/// above see it. The guest is not let run after that.
pub(crate) fn scan_before_clean(host: &mut Host) -> Result<()> {
    const SENDER: &[(&str, &str)] = &[("LACUNA_MIGRATION_TEST", "scan-before-clean")];
    let mut guest = busy_guest(host)?;
    for round in 1..=MUTANT_ROUNDS {
        host.lacuna(&["attach", guest.name])?;
        let journey = Journey {
            sender: SENDER,
            ..Journey::default()
        };
        host.note(&format!("migration {round} of at most {MUTANT_ROUNDS}"))?;
        let mut harm = 0;
        let moved = migrate(host, &mut guest, journey, |host, still| {
            let differences = compare(still, u64::from(MIB) * PAGES_PER_MIB)?;
            host.figure("skipped", differences.skipped)?;
            harm = lost(host, still, &differences)?.len();
            equal("frames in use that were left behind", &0, &harm)
        });
        if harm > 0 {
            host.figure("migrations", round)?;
            return host.figure("lost_frames", harm as u64);
        }
        moved?;
    }
    Err(differs(
        "migrations with a scan from before CLEAN",
        "lost writes",
        "none lost",
    ))
}
