//! A guest that allocates, writes checksummed data and frees during the whole migration. It judges itself: on
//! arrival it checks every word that it holds.
//!
//! What dom0 sees while the guest stands still cannot judge here. A page that was free when it was looked at,
//! and has since been allocated and not written (on a list of free pages of one CPU, or the untouched rest of
//! a slab), is in use, holds something at the sender, and is rightly left behind: nobody has written it, so
//! nobody may rely on it. Such pages are counted.

use std::time::Duration;

use lacuna_guest::{Report, Task};

use super::{AGENT_LIMIT, PAGES_PER_MIB, intact, left_in_use, zeroed};
use crate::failure::{Failure, Result, differs, ensure};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::migration::{Journey, compare, migrate};

/// Migrations in a row in every run, and in a long one.
const ROUNDS: u32 = 2;
const LONG_ROUNDS: u32 = 20;
/// Migrations within which a scan from before CLEAN must have lost a write.
const MUTANT_ROUNDS: u32 = 8;
/// How long the agent may take to check what it holds; a guest without its memory does not answer at all.
const HARM_LIMIT: Duration = Duration::from_secs(60);
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
    work(&mut guest, 0)?;
    Ok(guest)
}

/// Starts the workload; each number makes its data differ from the last one's.
pub(super) fn work(guest: &mut Guest, number: u32) -> Result<()> {
    let task = Task::WorkStart {
        threads: 2,
        mib: 48,
        seed: 0x2ac4_14a0 ^ u64::from(number) << 16,
    };
    guest.order(task, AGENT_LIMIT).map(drop)
}

pub(crate) fn busy(host: &mut Host) -> Result<()> {
    rounds(host, ROUNDS)
}

pub(crate) fn busy_long(host: &mut Host) -> Result<()> {
    rounds(host, LONG_ROUNDS)
}

fn rounds(host: &mut Host, rounds: u32) -> Result<()> {
    let mut guest = busy_guest(host)?;
    let (mut skipped, mut sent, mut resent, mut unwritten) = (0, 0, 0, 0);
    let (mut blocks, mut pages) = (0, 0);
    for round in 1..=rounds {
        host.lacuna(&["attach", guest.name])?;
        host.note(&format!("migration {round} of {rounds}"))?;
        let arrival = migrate(host, &mut guest, Journey::default(), |host, still| {
            let differences = compare(still, u64::from(MIB) * PAGES_PER_MIB)?;
            intact(&differences)?;
            zeroed(&differences)?;
            unwritten += left_in_use(host, still, &differences)?.len();
            Ok(())
        })?;
        skipped += arrival.report.sum(|iteration| iteration.skipped);
        sent += arrival.report.sum(|iteration| iteration.data);
        resent += arrival.report.sum(|iteration| iteration.resent);
        // Ends with a check of every word that the guest holds.
        let (more_blocks, more_pages) = guest.end_work(AGENT_LIMIT)?;
        blocks += more_blocks;
        pages += more_pages;
        host.figure("migrations", round)?;
        work(&mut guest, round)?;
    }
    host.figure("skipped", skipped)?;
    host.figure("sent", sent)?;
    host.figure("resent", resent)?;
    host.figure("in_use_and_unwritten", unwritten as u64)?;
    host.figure("blocks", blocks)?;
    host.figure("pages_checked", pages)?;
    ensure(skipped > 0, "pages skipped", "more than none", "none")?;
    ensure(
        blocks > 0,
        "blocks the guest went through meanwhile",
        "more than none",
        "none",
    )?;
    guest.end_work(AGENT_LIMIT)?;
    guest.check_health()
}

/// A scan from before CLEAN, which only the debug hypervisor's module lets a sender use: a page that is
/// allocated and written between the two is left behind, and the guest finds that out.
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
        let arrival = migrate(host, &mut guest, journey, |_, _| Ok(()))?;
        host.figure("migrations", round)?;
        host.figure("skipped", arrival.report.sum(|iteration| iteration.skipped))?;
        let harm = match guest.order(Task::WorkStop, HARM_LIMIT) {
            Ok(Report::Work { corrupt: 0, .. }) => None,
            Ok(Report::Work { corrupt, .. }) => Some(format!("{corrupt} corrupt words")),
            Ok(other) => Some(format!("{other:?}")),
            // The agent told of a corrupt word by itself, or does not answer any more.
            Err(Failure::Differs { seen, .. } | Failure::Late { seen, .. }) => Some(seen),
            Err(other) => return Err(other),
        };
        if let Some(harm) = harm {
            return host.figure("harm", harm);
        }
        work(&mut guest, round)?;
    }
    Err(differs(
        "migrations with a scan from before CLEAN",
        "lost writes",
        "none lost",
    ))
}
