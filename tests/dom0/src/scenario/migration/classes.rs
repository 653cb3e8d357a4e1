//! Guests that care what their free pages hold, and a receiver that knows nothing of Lacuna.

use lacuna_guest::Task;

use super::{
    AGENT_LIMIT, PAGES_PER_MIB, UNKNOWN_RECEIVER, counters, healthy, intact, nothing_lost, tell,
    to_receiver_that, to_stock_receiver, words, zeroed,
};
use crate::engine::Direct;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, settled_free_mib};
use crate::migration::{Journey, Migration, compare, migrate};
use crate::stream::PROMISE;
use crate::tool::{self, REFUSED};

/// The guests' memory in MiB.
const MIB: u32 = 256;
/// What a guest must be able to take at once after its arrival, in MiB: nearly all that is free.
const PRESSURE_MIB: u64 = 128;
/// The memory of the domain with a claim to begin with, and what is free and not claimed then, in MiB: more
/// than the guest has in use, and less than it has.
const NEIGHBOUR_MIB: u32 = 128;
const LEFT_MIB: u64 = 160;

/// Whether the receiver makes skipped pages zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// The stream demands it.
    Promised,
    /// It does so, and nobody asked.
    Unasked,
    /// It is a stock one.
    Unknown,
}

fn guest(host: &mut Host, name: &'static str, extra: &'static str) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        mib: MIB,
        extra,
        ..Plan::stock(name, "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    Ok(guest)
}

/// A migration that must bring over all that is in use, with zeroes for what was skipped where they are
/// promised, which the stream must say; returns how much was skipped.
fn moved(host: &mut Host, guest: &mut Guest, side: &str, journey: Journey, zeros: Zeros) -> Result<u64> {
    let mut skipped = 0;
    let arrival = migrate(host, guest, journey, |host, still| {
        tell(host, side, &still.report)?;
        let differences = compare(still, u64::from(MIB) * PAGES_PER_MIB)?;
        skipped = differences.skipped;
        intact(&differences)?;
        if zeros != Zeros::Unknown {
            zeroed(&differences)?;
        }
        equal(
            "records that say pages without content have to be zero",
            &u64::from(zeros == Zeros::Promised),
            &still.report.records.get(PROMISE).copied().unwrap_or(0),
        )?;
        nothing_lost(host, still, &differences)
    })?;
    for line in words(&arrival) {
        host.note(line)?;
    }
    Ok(skipped)
}

/// A guest whose free pages must be zero: sent in full to a receiver that may not zero them, skipped for one
/// that does, and healthy under memory pressure after both.
pub(crate) fn init_on_free(host: &mut Host) -> Result<()> {
    let mut guest = guest(host, "zeroing", "init_on_free=1")?;
    host.lacuna(&["attach", guest.name])?;
    let journey = Journey {
        options: UNKNOWN_RECEIVER,
        ..Journey::default()
    };
    let unknown = moved(host, &mut guest, "unknown_receiver", journey, Zeros::Unasked)?;
    host.figure("skipped_unknown_receiver", unknown)?;
    equal(
        "pages skipped for a receiver that may not zero them",
        &0,
        &unknown,
    )?;
    healthy(&mut guest, PRESSURE_MIB)?;
    host.lacuna(&["attach", guest.name])?;
    host.note("asking the receiver")?;
    let known = moved(
        host,
        &mut guest,
        "known_receiver",
        Journey::default(),
        Zeros::Promised,
    )?;
    host.figure("skipped_known_receiver", known)?;
    ensure(
        known > PRESSURE_MIB * PAGES_PER_MIB,
        "pages skipped for a receiver that zeroes them",
        &format!("more than {PRESSURE_MIB} MiB"),
        &format!("{known} pages"),
    )?;
    healthy(&mut guest, PRESSURE_MIB)
}

/// A guest that checks its free pages for a pattern: moved the ordinary way, and the log says why.
pub(crate) fn page_poison(host: &mut Host) -> Result<()> {
    let mut guest = guest(host, "poison", "page_poison=1")?;
    let refused = host.ask_lacuna(&["attach", guest.name])?;
    equal("exit status of `lacuna attach`", &REFUSED, &refused.status)?;
    let arrival = migrate(host, &mut guest, Journey::default(), |host, still| {
        tell(host, "poison", &still.report)?;
        let differences = compare(still, u64::from(MIB) * PAGES_PER_MIB)?;
        equal("frames skipped", &0, &differences.skipped)?;
        intact(&differences)
    })?;
    let said = words(&arrival).join(" | ");
    ensure(
        said.contains("everything is sent") && said.contains("poison"),
        "the sender's log",
        "that everything is sent, and a word about poisoning",
        &said,
    )?;
    healthy(&mut guest, PRESSURE_MIB)
}

/// A receiver that has never heard of Lacuna gets an ordinary stream and restores a correct guest; if it gets
/// the other one, for somebody said yes in its place, it refuses it and the guest goes on here. A receiver
/// that is told not to use zero frames makes what was skipped zero by other means.
pub(crate) fn stock_receiver(host: &mut Host) -> Result<()> {
    let mut guest = guest(host, "plain", "")?;
    host.lacuna(&["attach", guest.name])?;
    let skipped = moved(
        host,
        &mut guest,
        "stock_receiver",
        to_stock_receiver(true),
        Zeros::Unknown,
    )?;
    host.figure("skipped", skipped)?;
    ensure(skipped > 0, "pages skipped", "more than none", "none")?;
    healthy(&mut guest, PRESSURE_MIB)?;

    host.lacuna(&["attach", guest.name])?;
    refused(host, &guest)?;
    healthy(&mut guest, PRESSURE_MIB)?;

    host.lacuna(&["attach", guest.name])?;
    let journey = to_receiver_that("clear");
    let skipped = moved(host, &mut guest, "plain_receiver", journey, Zeros::Promised)?;
    ensure(skipped > 0, "pages skipped", "more than none", "none")?;
    let received = counters(guest.domain, "received")?;
    equal(
        "pages put on zero frames",
        &0,
        &tool::number(&received, "zeroed")?,
    )?;
    let cleared = tool::number(&received, "cleared")?;
    ensure(
        cleared > 0,
        "pages allocated and cleared",
        "more than none",
        &cleared.to_string(),
    )?;
    healthy(&mut guest, PRESSURE_MIB)
}

/// A stock library behind an xl that says what it cannot do: it takes no page, and the guest stays.
fn refused(host: &mut Host, guest: &Guest) -> Result<()> {
    host.note("to a receiver that promises too much")?;
    let arrival = Migration::start(host, guest, &to_stock_receiver(false))?.finish(host)?;
    ensure(!arrival.success, "a migration to it", "a failure", "a success")?;
    ensure(
        arrival.words.contains("Mandatory record 0x4c41"),
        "the receiver's reason",
        "a mandatory record that it does not know",
        &arrival.words,
    )?;
    equal(
        "domains",
        &vec!["Domain-0".to_owned(), guest.name.to_owned()],
        &host.domains()?,
    )
}

/// A host whose memory is nearly all claimed gets a guest that is mostly free: refused as long as what it
/// could come to need has to be free, taken when the host may promise more than it has.
pub(crate) fn reserve(host: &mut Host) -> Result<()> {
    let mut guest = guest(host, "thrifty", "")?;
    host.lacuna(&["attach", guest.name])?;
    let neighbour = Plan {
        mib: NEIGHBOUR_MIB,
        ..Plan::stock("neighbour", "6.12")
    };
    host.xl(&["create", "-q", "-p", &neighbour.write()?])?;
    let free = settled_free_mib()?;
    host.xl(&["mem-max", neighbour.name, &format!("{}m", free + u64::from(MIB))])?;
    let claimer = Direct::open(host.domain_number(neighbour.name)?)?;
    let claim = claimer.host_memory()?.free - LEFT_MIB * PAGES_PER_MIB;
    let claimed = |pages| {
        claimer
            .claim(pages)
            .map_err(|error| differs("a claim to less than is free", "granted", &error.to_string()))
    };
    claimed(claimer.pages()? + claim)?;

    host.note("to a receiver that promises no more than it has")?;
    let arrival = Migration::start(host, &guest, &to_receiver_that("zero:100"))?.finish(host)?;
    ensure(
        !arrival.success && arrival.words.contains("100% have to be free"),
        "a migration to a host without the memory",
        "a failure, and the reason",
        &arrival.words,
    )?;
    guest.check_health()?;

    host.note("to one that promises more")?;
    let journey = to_receiver_that("zero:0");
    let skipped = moved(host, &mut guest, "overcommitted", journey, Zeros::Promised)?;
    host.figure("skipped", skipped)?;
    let received = counters(guest.domain, "received")?;
    equal(
        "pages allocated and cleared",
        &0,
        &tool::number(&received, "cleared")?,
    )?;
    ensure(
        skipped > LEFT_MIB * PAGES_PER_MIB / 2,
        "pages without memory",
        &format!("more than {} MiB", LEFT_MIB / 2),
        &skipped.to_string(),
    )?;
    claimed(0)?;
    healthy(&mut guest, PRESSURE_MIB)?;
    guest.destroy(host)?;
    host.xl(&["destroy", neighbour.name]).map(drop)
}
