//! A busy guest that goes from one host to another over a network, and back.

use super::AGENT_LIMIT;
use super::busy::{busy_guest, work};
use crate::failure::{Result, ensure, equal};
use crate::host::{Host, settled_free_mib};
use crate::migration::{Journey, Migration};
use crate::peer::{FIRST, SECOND, ask};
use crate::stream::tap;

/// How often it goes there and back.
const ROUNDS: u32 = 2;
/// Rounding, and what Xen keeps for itself for a while.
const SLACK_MIB: u64 = 2;

pub(crate) fn two_hosts(host: &mut Host) -> Result<()> {
    // It may still be booting.
    let there_before = free_there()?;
    let here_before = settled_free_mib()?;
    let mut guest = busy_guest(host)?;
    let (mut sent, mut skipped, mut blocks, mut pages) = (0, 0, 0, 0);
    for round in 1..=ROUNDS {
        host.lacuna(&["attach", guest.name])?;
        host.note(&format!("round {round} of {ROUNDS}: from {FIRST} to {SECOND}"))?;
        let journey = Journey {
            tap: tap::Plan {
                to: Some(SECOND.to_owned()),
                ..tap::Plan::default()
            },
            ..Journey::default()
        };
        let arrival = Migration::start(host, &guest, &journey)?.finish(host)?;
        arrival.expect_success()?;
        sent += arrival.report.sum(|iteration| iteration.data);
        skipped += arrival.report.sum(|iteration| iteration.skipped);
        equal("domains here", &vec!["Domain-0".to_owned()], &host.domains()?)?;
        host.note(&format!("round {round} of {ROUNDS}: back"))?;
        let words = ask(SECOND, &format!("send {}", guest.name))?;
        host.log("migrations.log", &words)?;
        guest.arrived(host.domain_number(guest.name)?);
        // Ends with a check of every word that the guest holds.
        let (more_blocks, more_pages) = guest.end_work(AGENT_LIMIT)?;
        blocks += more_blocks;
        pages += more_pages;
        work(&mut guest, round)?;
    }
    guest.end_work(AGENT_LIMIT)?;
    host.figure("rounds", ROUNDS)?;
    host.figure("sent", sent)?;
    host.figure("skipped", skipped)?;
    host.figure("blocks", blocks)?;
    host.figure("pages_checked", pages)?;
    ensure(skipped > 0, "pages skipped", "more than none", "none")?;
    guest.check_health()?;
    guest.destroy(host)?;
    for (which, before, after) in [
        ("this host", here_before, settled_free_mib()?),
        ("the other host", there_before, free_there()?),
    ] {
        ensure(
            after + SLACK_MIB >= before,
            &format!("the free memory of {which} afterwards"),
            &format!("{before} MiB"),
            &format!("{after} MiB"),
        )?;
    }
    Ok(())
}

/// Returns the other host's free memory in MiB.
fn free_there() -> Result<u64> {
    let text = ask(SECOND, "free")?;
    text.trim()
        .parse()
        .map_err(|_| crate::failure::differs("the other host's free memory", "a number", &text))
}
