//! Migration on one host: what is on the wire, what arrives, and what is left when something breaks.

mod busy;
mod classes;
mod content;
mod hvm;
mod killed;
mod one_host;
mod remus;
mod stored;
mod two_hosts;
mod windows;

pub(super) use busy::{busy, busy_long, scan_before_clean};
pub(super) use classes::{init_on_free, page_poison, reserve, stock_receiver};
pub(super) use content::{content, content_group, content_save, sharing_guest};
pub(super) use hvm::hvm;
pub(super) use killed::killed;
pub(super) use one_host::{debug, one_host, stock};
pub(super) use remus::remus;
pub(super) use stored::save_restore;
pub(super) use two_hosts::two_hosts;
pub(super) use windows::windows;

use std::fs;
use std::time::Duration;

use lacuna_guest::Task;
use serde_json::Value;

use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, PAGES_PER_MIB};
use crate::host::{Host, run};
use crate::migration::{Arrival, Differences, Journey, Standstill};
use crate::services::xen;
use crate::stream::tally::Report as Streamed;
use crate::stream::tap;
use crate::tool;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// Frames whose content Xen itself changes when a guest is suspended and restored: the shared-info page and
/// the rings.
const XENS_OWN: usize = 8;
/// What the issue asks to be left behind of the free pages that stayed free: 99 %.
const SKIPPED_PER_MILLE: u64 = 990;
/// Where a scan's bitmap is written.
const BITMAP: &str = "/tmp/bitmap";
/// What both helpers say before a line about Lacuna.
const WORDS: &str = "Lacuna: ";

/// Stock behaviour, counters and all: the other side of each comparison.
const OFF: &[&str] = &["--lacuna=off"];
/// A sender that does not ask what its receiver can do.
const UNKNOWN_RECEIVER: &[&str] = &["--lacuna=free"];
/// The library as Xen has it.
const STOCK_LIBRARY: (&str, &str) = ("LD_LIBRARY_PATH", "/usr/local/lib/stock:/usr/local/lib");

/// Plans a migration to a receiver with the library as Xen has it, and an xl that hears the sender's question
/// or, as Xen's does, passes over it.
fn to_stock_receiver(deaf: bool) -> Journey {
    let (name, value) = STOCK_LIBRARY;
    Journey {
        tap: tap::Plan {
            receiver: vec![(name.to_owned(), value.to_owned())],
            deaf,
            ..tap::Plan::default()
        },
        ..Journey::default()
    }
}

/// Plans a migration to a receiver that is told to do `what` with pages that come without data.
fn to_receiver_that(what: &str) -> Journey {
    Journey {
        tap: tap::Plan {
            arguments: vec![format!("--lacuna={what}")],
            ..tap::Plan::default()
        },
        ..Journey::default()
    }
}

/// Plans a migration whose stream is kept for Xen's own checker.
fn kept() -> Journey {
    Journey {
        tap: tap::Plan {
            keep: true,
            ..tap::Plan::default()
        },
        ..Journey::default()
    }
}

/// Tells the lab what was on the wire, as figures that begin with `side`.
fn tell(host: &mut Host, side: &str, report: &Streamed) -> Result<()> {
    host.figure(&format!("{side}_bytes"), report.bytes)?;
    host.figure(&format!("{side}_pages"), report.sum(|iteration| iteration.data))?;
    let iterations = serde_json::to_value(&report.iterations).map_err(std::io::Error::other)?;
    host.figure(&format!("{side}_iterations"), iterations)
}

/// Fails unless every frame that was not skipped is the same on both sides, except Xen's own.
pub(super) fn intact(differences: &Differences) -> Result<()> {
    ensure(
        differences.changed.len() + differences.one_sided.len() <= XENS_OWN,
        "frames that were sent and are not the same",
        &format!("none but Xen's own, at most {XENS_OWN}"),
        &format!(
            "{:x?} and, on one side only, {:x?}",
            differences.changed, differences.one_sided
        ),
    )
}

/// Fails unless every skipped frame reads as zero on the receiver.
pub(super) fn zeroed(differences: &Differences) -> Result<()> {
    ensure(
        differences.not_zero.is_empty(),
        "skipped frames on the receiver",
        &format!("all {} zero", differences.skipped),
        &format!(
            "{} that are not, the first {:x?}",
            differences.not_zero.len(),
            &differences.not_zero[..differences.not_zero.len().min(8)]
        ),
    )
}

/// Returns the frames that were left behind though they are in use and hold something that was written. The
/// guest stands still, so a scan of the copy that was sent is the truth about this very moment. In a guest
/// that was idle each is a write that is lost: its free pages hold what they were filled with. In a busy one
/// it may be a page that was allocated and not written yet (see [`mod@busy`]).
pub(super) fn left_in_use(
    host: &mut Host,
    still: &Standstill,
    differences: &Differences,
) -> Result<Vec<u64>> {
    host.lacuna(&["scan", &still.sender.to_string(), "--bitmap", BITMAP])?;
    let bitmap = fs::read(BITMAP)?;
    let free = |gfn: u64| {
        let byte = usize::try_from(gfn / 8).ok().and_then(|at| bitmap.get(at));
        byte.is_some_and(|byte| byte >> (gfn % 8) & 1 == 1)
    };
    Ok(differences
        .dropped
        .iter()
        .copied()
        .filter(|gfn| !free(*gfn))
        .collect())
}

/// Fails when a write of an idle guest was lost.
fn nothing_lost(host: &mut Host, still: &Standstill, differences: &Differences) -> Result<()> {
    let lost = left_in_use(host, still, differences)?;
    ensure(
        lost.is_empty(),
        "frames in use that were left behind",
        "none",
        &format!(
            "{} of them, the first {:x?}",
            lost.len(),
            &lost[..lost.len().min(8)]
        ),
    )
}

/// Returns the lines in which both ends speak of Lacuna.
fn words(arrival: &Arrival) -> Vec<&str> {
    let lines = arrival.words.lines();
    lines.filter_map(|line| Some(line.split_once(WORDS)?.1)).collect()
}

/// Returns the counters that the sender left behind, `sent`, or the receiver, `received`, for the guest in
/// `domain`.
fn counters(domain: u16, side: &str) -> Result<Value> {
    let vm = run(&mut xen(
        "bin/xenstore-read",
        &[&format!("/local/domain/{domain}/vm")],
    ))?;
    let uuid = vm.trim().rsplit('/').next().unwrap_or_default();
    let path = format!("/run/lacuna/{uuid}.{side}.json");
    let text =
        fs::read(&path).map_err(|error| differs(&path, "the counters of a migration", &error.to_string()))?;
    Ok(serde_json::from_slice(&text).map_err(std::io::Error::other)?)
}

/// Fails unless the sender's own counters say what was seen on the wire.
fn counted(host: &mut Host, domain: u16, report: &Streamed) -> Result<()> {
    let counters = counters(domain, "sent")?;
    host.log("commands.log", &format!("counters: {counters}\n"))?;
    let total = |name: &str| tool::number(&counters, &format!("total.{name}"));
    let skipped = total("free")? + total("zero")?;
    equal(
        "pages sent, by the sender's counters",
        &report.sum(|iteration| iteration.data),
        &total("sent")?,
    )?;
    equal(
        "pages skipped, by the sender's counters",
        &report.sum(|iteration| iteration.skipped),
        &skipped,
    )?;
    equal(
        "pages sent again, by the sender's counters",
        &report.sum(|iteration| iteration.resent),
        &total("resent")?,
    )?;
    host.figure("lookups", total("lookups")?)?;
    host.figure("scans", total("scans")?)?;
    host.figure("looked_at", total("pages")?)
}

/// Lets the guest allocate `mib` MiB, which must all be zero, and give them back; then asks how it is.
fn healthy(guest: &mut Guest, mib: u64) -> Result<()> {
    let wanted = u32::try_from(mib).unwrap_or(u32::MAX);
    guest.grow(wanted, AGENT_LIMIT)?;
    guest.order(Task::Shrink, AGENT_LIMIT)?;
    guest.check_health()
}
