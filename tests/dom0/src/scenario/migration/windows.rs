//! The Windows-like guest moves. Its zeroed list only nominates, and nobody looks at bytes during a
//! migration: what is left behind is what `lacuna dedup` has put on zero frames, and for that the receiver
//! must be known to be Lacuna's.

use lacuna_guest::Task;

use super::super::windows::{BUSY, LIES, LIMIT, lies_kept, with_symbols};
use super::{PAGES_PER_MIB, SKIPPED_PER_MILLE, intact, zeroed};
use crate::failure::{Result, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::migration::{Arrival, Journey, compare, migrate};

/// A small guest: its lists are queues, so that while it works every page is written between two passes over
/// its memory, and sent again.
const PLAN: Plan = Plan { mib: 64, ..BUSY };
/// What its workload has at most, in MiB.
const WORK_MIB: u32 = 16;
/// What the guest allocates on arrival, in MiB: zeroed pages, most of them. Those that it lied about are at
/// the queue's end.
const GROWN_MIB: u32 = 16;

/// A guest that works while it moves finds all it wrote. The same guest, idle, leaves all behind that is on
/// zero frames, finds zeroes there, and what it held where it lied.
pub(crate) fn windows(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&PLAN)?;
    let zero = share(host, &guest)?;
    // One thread: the second virtual CPU zeroes, and dom0 needs some of the host, too.
    let task = Task::WorkStart {
        threads: 1,
        mib: WORK_MIB,
        seed: 0x3ac4_14a0,
    };
    guest.order(task, LIMIT)?;
    let arrival = moved(host, &mut guest)?;
    let (blocks, pages) = guest.end_work(LIMIT)?;
    host.figure("blocks", blocks)?;
    host.figure("pages_checked", pages)?;
    ensure(
        blocks > 0,
        "blocks the guest went through meanwhile",
        "more than none",
        "none",
    )?;
    told(host, "busy", zero, &arrival)?;
    guest.check_health()?;

    guest.order(Task::Lie { pages: LIES }, LIMIT)?;
    let zero = share(host, &guest)?;
    let arrival = moved(host, &mut guest)?;
    let skipped = told(host, "idle", zero, &arrival)?;
    ensure(
        skipped * 1000 >= zero * SKIPPED_PER_MILLE,
        "pages of an idle guest left behind",
        &format!("{SKIPPED_PER_MILLE} of 1000 of the {zero} on zero frames"),
        &skipped.to_string(),
    )?;
    lies_kept(host, &mut guest)?;
    guest.grow(GROWN_MIB, LIMIT)?;
    guest.order(Task::Shrink, LIMIT)?;
    // What arrived is a guest like any other.
    share(host, &guest)?;
    lies_kept(host, &mut guest)?;
    guest.check_health()
}

/// Attaches, and gives back the zeroed pages; returns how many are on zero frames.
fn share(host: &mut Host, guest: &Guest) -> Result<u64> {
    with_symbols(host, &["attach"], guest)?;
    host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    let zero = host.lacuna(&["status", guest.name])?.number("zero_gfns")?;
    ensure(zero > 0, "pages on zero frames", "some", "none")?;
    Ok(zero)
}

/// Moves the guest to a receiver that says it is Lacuna's, and compares both sides while it stands still.
fn moved(host: &mut Host, guest: &mut Guest) -> Result<Arrival> {
    migrate(host, guest, Journey::default(), |_, still| {
        let differences = compare(still, u64::from(PLAN.mib) * PAGES_PER_MIB)?;
        intact(&differences)?;
        zeroed(&differences)?;
        // Unlike a free page of Linux', one on a zero frame is zero at the sender as well.
        equal(
            "frames left behind that hold something",
            &0,
            &differences.dropped.len(),
        )
    })
}

/// Tells what was sent and what was not; returns the pages left behind.
fn told(host: &mut Host, which: &str, zero: u64, arrival: &Arrival) -> Result<u64> {
    let sum = |of: fn(&crate::stream::tally::Iteration) -> u64| arrival.report.sum(of);
    let skipped = sum(|iteration| iteration.skipped);
    host.figure(&format!("{which}_zero"), zero)?;
    host.figure(&format!("{which}_skipped"), skipped)?;
    host.figure(&format!("{which}_sent"), sum(|iteration| iteration.data))?;
    host.figure(&format!("{which}_bytes"), arrival.report.bytes)?;
    Ok(skipped)
}
