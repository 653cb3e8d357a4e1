//! One guest, stock and with Lacuna, in one run.

use std::time::Instant;

use lacuna_guest::Task;
use lacuna_guest::truth::Capture;

use super::{
    AGENT_LIMIT, OFF, PAGES_PER_MIB, SKIPPED_PER_MILLE, counted, healthy, intact, kept, nothing_lost, tell,
    words, zeroed,
};
use crate::account;
use crate::failure::{Result, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, settled_free_mib};
use crate::migration::{Journey, Standstill, compare, migrate, verify};
use crate::stream::tally::{PageType, Report};

/// Captures in a row that must agree before the guest counts as still.
const STILL: u64 = 4;
/// How far `lacuna estimate` may be off: the guest is idle between it and the migration, and the agent on its
/// own.
const ESTIMATE_PER_MILLE: u64 = 10;
/// What the receiver's host may take beside the pages that were sent: page tables, the domain's own
/// structures.
const OVERHEAD_MIB: u64 = 12;

/// Without Lacuna: every page is sent, arrives, and Xen's own checker accepts the stream.
pub(crate) fn stock(host: &mut Host) -> Result<()> {
    let plan = Plan {
        mib: 192,
        ..Plan::stock("stock", "6.12")
    };
    let mut guest = host.create(&plan)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.note("migrating")?;
    let arrival = migrate(host, &mut guest, kept(), |host, still| {
        let differences = compare(still, u64::from(plan.mib) * PAGES_PER_MIB)?;
        tell(host, "stock", &still.report)?;
        host.figure("frames_changed", differences.changed.len() as u64)?;
        equal("frames skipped", &0, &differences.skipped)?;
        intact(&differences)
    })?;
    host.note("Xen's own checker reads the stream")?;
    verify(&arrival.stream)?;
    healthy(&mut guest, 64)
}

pub(crate) fn one_host(host: &mut Host) -> Result<()> {
    both(
        host,
        &Plan {
            mib: 768,
            ..Plan::stock("moved", "6.12")
        },
    )
}

/// The same in a debug build, where fresh pages are not zero.
pub(crate) fn debug(host: &mut Host) -> Result<()> {
    both(
        host,
        &Plan {
            mib: 256,
            ..Plan::stock("debug", "6.12")
        },
    )
}

/// Moves a guest twice: the stock way, and leaving its free pages behind.
fn both(host: &mut Host, plan: &Plan) -> Result<()> {
    let frames = u64::from(plan.mib) * PAGES_PER_MIB;
    let mut guest = host.create(plan)?;
    host.note("filling the guest's free memory, so that free pages are not zero")?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let mut account = guest.start_account()?;

    host.note("migrating the stock way")?;
    let journey = Journey {
        options: OFF,
        ..Journey::default()
    };
    let stock = migrate(host, &mut guest, journey, |host, still| {
        tell(host, "stock", &still.report)?;
        let differences = compare(still, frames)?;
        equal("frames skipped", &0, &differences.skipped)?;
        intact(&differences)
    })?;
    account.moved(&guest);

    host.lacuna(&["attach", guest.name])?;
    account.wait_still(STILL, AGENT_LIMIT)?;
    let before = account.read()?;
    let estimate = host
        .lacuna(&["estimate", guest.name, "--receiver", "lacuna"])?
        .number("skipped")?;
    let free_before = settled_free_mib()?;
    host.note("migrating with Lacuna")?;
    let gfns = account.gfns().to_vec();
    let lacuna = migrate(host, &mut guest, kept(), |host, still| {
        tell(host, "lacuna", &still.report)?;
        let free_after = settled_free_mib()?;
        // The copy that was sent may have grown meanwhile; the guest is still, so by next to nothing.
        let taken = free_before.saturating_sub(free_after);
        let started = Instant::now();
        let differences = compare(still, frames)?;
        host.figure(
            "compare_ms",
            u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        )?;
        host.figure("frames_skipped", differences.skipped)?;
        host.figure("receiver_mib", taken)?;
        intact(&differences)?;
        zeroed(&differences)?;
        nothing_lost(host, still, &differences)?;
        let after = account::read(still.sender, &gfns)?;
        left_behind(host, still, &before, &after)?;
        let sent = (frames - differences.skipped) / PAGES_PER_MIB;
        ensure(
            taken <= sent + OVERHEAD_MIB,
            "the receiver's memory on its host",
            &format!("at most the {sent} MiB that were sent and {OVERHEAD_MIB} MiB"),
            &format!("{taken} MiB"),
        )
    })?;
    for line in words(&lacuna) {
        host.note(line)?;
    }
    foretold(host, estimate, &lacuna.report)?;
    equal(
        "the stream's version",
        &stock.report.version,
        &lacuna.report.version,
    )?;
    counted(host, guest.domain, &lacuna.report)?;
    host.figure(
        "stock_ms",
        u64::try_from(stock.took.as_millis()).unwrap_or(u64::MAX),
    )?;
    host.figure(
        "lacuna_ms",
        u64::try_from(lacuna.took.as_millis()).unwrap_or(u64::MAX),
    )?;
    host.note("Xen's own checker reads the stream")?;
    verify(&lacuna.stream)?;
    guest.order(Task::TruthStop, AGENT_LIMIT)?;
    healthy(&mut guest, before.free / 2 / PAGES_PER_MIB)
}

/// Fails unless `lacuna estimate` has told what the first iteration would leave behind.
fn foretold(host: &mut Host, estimate: u64, report: &Report) -> Result<()> {
    let first = report.iterations.first();
    let skipped = first.map_or(0, |iteration| iteration.skipped);
    host.figure("estimate", estimate)?;
    host.figure("skipped_at_first", skipped)?;
    ensure(
        estimate.abs_diff(skipped) * 1000 <= skipped * ESTIMATE_PER_MILLE,
        "pages skipped, as `lacuna estimate` foretold them",
        &format!("{skipped}, as in the first iteration, give or take {ESTIMATE_PER_MILLE} of 1000"),
        &estimate.to_string(),
    )
}

/// Fails unless the free pages that stayed free were not sent.
fn left_behind(host: &mut Host, still: &Standstill, before: &Capture, after: &Capture) -> Result<()> {
    let stayed: Vec<u64> = (0..before.pages)
        .filter(|gfn| before.is_free(*gfn) && after.is_free(*gfn))
        .collect();
    let unsent = stayed
        .iter()
        .filter(|gfn| still.frames.last(**gfn) == Some(PageType::Skipped) && !still.frames.sent(**gfn));
    let unsent = unsent.count() as u64;
    host.figure("guest_pages", before.pages)?;
    host.figure("stayed_free", stayed.len() as u64)?;
    host.figure("stayed_free_unsent", unsent)?;
    ensure(
        unsent * 1000 >= stayed.len() as u64 * SKIPPED_PER_MILLE,
        "free pages that stayed free and were not sent",
        &format!("at least {SKIPPED_PER_MILLE} of 1000 of {}", stayed.len()),
        &unsent.to_string(),
    )
}
