//! A guest that does whatever it may to its own pages and to Xen's interfaces, at random, while rounds of
//! both stages go over it and a neighbour in its trust group.

use std::time::Duration;

use lacuna::xen::lab::provoke::LogDirty;
use lacuna_guest::{Report, Task};

use super::windows::{SEVEN, with_symbols};
use crate::engine::Direct;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, settled_free_mib};

/// How long the guests may take for an order.
const LIMIT: Duration = Duration::from_secs(300);
/// Operations of one order: about as many as go on while a round does.
const OPERATIONS: u32 = 1000;
/// Orders, with a round beside each: for a plain run, and for a long one.
const SHORT: u32 = 20;
const LONG: u32 = 200;
/// Chooses the operations; each order adds its number.
const SEED: u64 = 0xca3b_a160;
/// The neighbour's known pages: kinds, copies of each, and pages like no other.
const KNOWN: (u32, u32, u32) = (64, 16, 512);
const KNOWN_SEED: u64 = 0x7e16_4b04;
/// The group in which both share equal pages.
const GROUP: &str = "together";
/// One order in so many goes on in log-dirty mode, in which nothing is shared.
const LOG_DIRTY: u32 = 5;
/// One in so many begins with the guest's profile taken away, and given again.
const ATTACH: u32 = 8;

pub(crate) fn short(host: &mut Host) -> Result<()> {
    campaign(host, SHORT)
}

pub(crate) fn long(host: &mut Host) -> Result<()> {
    campaign(host, LONG)
}

/// Every page that the guest did not give to Xen holds what it must, and so does each of the neighbour's;
/// Xen, a debug build, finds nothing wrong with itself; when both are gone the host has its memory back.
fn campaign(host: &mut Host, orders: u32) -> Result<()> {
    let empty = settled_free_mib()?;
    let mut neighbour = host.create(&Plan::stock("neighbour", "6.12"))?;
    let (kinds, copies, unique) = KNOWN;
    neighbour.order(
        Task::PatternMake {
            kinds,
            copies,
            unique,
            seed: KNOWN_SEED,
        },
        LIMIT,
    )?;
    let mut guest = host.create(&Plan { vcpus: 2, ..SEVEN })?;
    with_symbols(host, &["attach"], &guest)?;
    host.lacuna(&["attach", neighbour.name])?;
    let direct = Direct::open(guest.domain)?;
    let mut last = 0;
    for order in 0..orders {
        host.note(&format!("order {order} of {orders}"))?;
        if order % ATTACH == ATTACH - 1 {
            host.lacuna(&["detach", guest.name])?;
            with_symbols(host, &["attach"], &guest)?;
        }
        let dirty = order % LOG_DIRTY == LOG_DIRTY - 1;
        if dirty {
            direct.set_log_dirty(LogDirty::On)?;
        }
        let sent = guest.send(Task::Operate {
            operations: OPERATIONS,
            seed: SEED + u64::from(order),
        })?;
        if !dirty {
            round(host, guest.name)?;
            round(host, neighbour.name)?;
        }
        let answer = guest.answer(&sent, LIMIT)?;
        if dirty {
            direct.set_log_dirty(LogDirty::Off)?;
        }
        last = operated(&answer)?;
    }
    equal("operations", &u64::from(orders * OPERATIONS), &last)?;
    operated(&guest.order(Task::OperateCheck, LIMIT)?)?;
    report(host, &guest, last)?;
    let checked = neighbour.order(Task::PatternCheck, LIMIT)?;
    equal(
        "the neighbour's known pages",
        &Report::Checked {
            pages: u64::from(kinds * copies + unique),
            wrong: 0,
        },
        &checked,
    )?;
    neighbour.check_health()?;
    guest.check_health()?;
    guest.destroy(host)?;
    neighbour.destroy(host)?;
    host.expect_free(empty)
}

/// One round of both stages over a guest.
fn round(host: &mut Host, name: &str) -> Result<()> {
    host.lacuna(&["dedup", name, "--mode", "introdedup", "--trust-group", GROUP])?;
    Ok(())
}

/// The operations of an answer, which must tell of none that went wrong.
fn operated(answer: &Report) -> Result<u64> {
    match answer {
        Report::Operated {
            operations,
            refused: 0,
            wrong: 0,
        } => Ok(*operations),
        other => Err(differs(
            "what came of operations at random",
            "none refused, and no page that does not hold what it must",
            &format!("{other:?}"),
        )),
    }
}

/// What Lacuna did to the guest meanwhile: a campaign beside which nothing was shared shows nothing.
fn report(host: &mut Host, guest: &Guest, operations: u64) -> Result<()> {
    let status = host.lacuna(&["status", guest.name])?;
    host.figure("operations", operations)?;
    for name in ["shared", "unshared", "content_merged", "content_unshared"] {
        let count = status.number(name)?;
        host.figure(name, count)?;
        ensure(
            count > 0,
            &format!("{name} of the guest"),
            "some",
            &count.to_string(),
        )?;
    }
    Ok(())
}
