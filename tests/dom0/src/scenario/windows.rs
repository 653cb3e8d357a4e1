//! A guest that keeps its memory as Windows does: a kernel of the lab's own (`tests/windows/kernel`), in the
//! layouts of two real ones. **It is no Windows**: what is tried here is that Lacuna finds a PE kernel in a
//! running domain, gets its PDB from a symbol store, and acts on a page-frame database that changes all the
//! time.

use std::fs;
use std::time::Duration;

use lacuna_guest::{Report, Task};

use super::race;
use super::reclaim::{Comparison, give_back, use_memory};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::Host;

/// How long the guest may take for what touches all of its memory.
pub(super) const LIMIT: Duration = Duration::from_secs(180);
/// Where the guests' PDBs are: a symbol store in dom0.
const SYMBOLS: &[&str] = &["--symbols", "/guests/symbols", "--offline"];
/// Captures in a row that must agree before the guest counts as still.
const STILL: u64 = 8;
/// Where a scan's bitmap is written.
const BITMAP: &str = "/tmp/bitmap";
/// Pages that the guest lies about.
pub(super) const LIES: u32 = 256;

/// A guest with the layout of Windows 7 SP1, whose kernel counts its zeroed pages.
pub(super) const SEVEN: Plan = Plan {
    initrd: "windows-7",
    ..Plan::stock("windows", "windows")
};

/// A guest with the layout of Windows 10 19041, whose lists lie in partitions: no counter.
const TEN: Plan = Plan {
    initrd: "windows-10",
    ..Plan::stock("windows", "windows")
};

/// Runs `lacuna COMMAND DOMAIN` with the symbol store.
pub(super) fn with_symbols(host: &mut Host, command: &[&str], guest: &Guest) -> Result<crate::tool::Answer> {
    let mut line = command.to_vec();
    line.push(guest.name);
    line.extend_from_slice(SYMBOLS);
    host.lacuna(&line)
}

pub(crate) fn truth_7(host: &mut Host) -> Result<()> {
    truth(host, &SEVEN)
}

pub(crate) fn truth_10(host: &mut Host) -> Result<()> {
    truth(host, &TEN)
}

/// A still guest: its kernel is identified and profiled while it runs, the scan agrees with its zeroed list
/// page for page, the zeroed pages come back to the host, and the guest gets zeroes when it takes them again.
fn truth(host: &mut Host, plan: &Plan) -> Result<()> {
    let mut guest = host.create(plan)?;
    let identified = with_symbols(host, &["identify"], &guest)?;
    equal(
        "the system that `lacuna identify` names",
        &Some("windows"),
        &identified.body.get("os").and_then(|name| name.as_str()),
    )?;
    let built = with_symbols(host, &["profile", "build"], &guest)?;
    host.figure("pages_in_runs", built.number("pages")?)?;
    let account = guest.start_account()?;
    let attached = with_symbols(host, &["attach"], &guest)?;
    equal(
        "whether the scan was held against a counter",
        &Some(true),
        &attached.body.get("counted").and_then(serde_json::Value::as_bool),
    )?;
    account.wait_still(STILL, LIMIT)?;

    guest.pause(host)?;
    let scanned = host.lacuna(&["scan", guest.name, "--bitmap", BITMAP])?;
    let capture = account.read()?;
    guest.unpause(host)?;
    let comparison = Comparison::of(&capture, &fs::read(BITMAP)?);
    host.figure("zeroed_truth", capture.free)?;
    host.figure("zeroed_found", scanned.number("free")?)?;
    host.figure("wrongly_free", comparison.wrongly_free)?;
    host.figure("missed", comparison.missed)?;
    ensure(capture.free > 0, "zeroed pages of the guest", "some", "none")?;
    equal(
        "pages called free that are not on the zeroed list",
        &0,
        &comparison.wrongly_free,
    )?;
    equal(
        "pages of the zeroed list that the scan missed",
        &0,
        &comparison.missed,
    )?;

    give_back(host, &guest, capture.free)?;
    let zero = host.lacuna(&["status", guest.name])?.number("zero_gfns")?;
    // Free, standby and modified pages, and those that only read location 0, are never given back.
    ensure(
        zero <= capture.free,
        "pages of the guest on zero frames",
        &format!("at most the {} of the zeroed list", capture.free),
        &zero.to_string(),
    )?;
    guest.order(Task::TruthStop, LIMIT)?;
    let unshared = use_memory(host, &mut guest, capture.free)?;
    host.figure("unshared", unshared)?;
    guest.check_health()
}

/// A guest that has pages which are not zero where only zeroed ones belong: they are candidates, and keep
/// what they hold.
pub(crate) fn liar(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&SEVEN)?;
    guest.order(Task::Lie { pages: LIES }, LIMIT)?;
    with_symbols(host, &["attach"], &guest)?;
    let shared = host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    host.figure("shared", shared.number("shared")?)?;
    let status = host.lacuna(&["status", guest.name])?;
    host.log("commands.log", &format!("{}\n", status.body))?;
    lies_kept(host, &mut guest)?;
    ensure(
        shared.number("shared")? > 0,
        "pages given back beside them",
        "some",
        "none",
    )?;
    guest.check_health()
}

/// Fails unless each page that the guest lied about holds what it held.
pub(super) fn lies_kept(host: &mut Host, guest: &mut Guest) -> Result<()> {
    match guest.order(Task::LiesCheck, LIMIT)? {
        Report::Lies { pages, lost } => {
            host.figure("lies", pages)?;
            host.figure("lost", lost)?;
            equal("pages that the guest lied about", &u64::from(LIES), &pages)?;
            equal("pages that lost what they held", &0, &lost)
        }
        other => Err(differs(
            "the guest's answer",
            "what became of its lies",
            &format!("{other:?}"),
        )),
    }
}

/// A guest for the races, and what its workload has at most of it. The lists of the guest are queues: every
/// page takes its turn, so a round has as much to share as the guest has memory. With little of it rounds
/// follow each other closely, and more pages are on their way from one list to another when a round looks.
pub(super) const BUSY: Plan = Plan {
    vcpus: 2,
    mib: 128,
    ..SEVEN
};
pub(super) const BUSY_MIB: u32 = 48;
/// Parts of the race, so that its progress is seen.
const PARTS: u64 = 10;

/// The same for the mutant, with more memory: it is harmed within a few rounds.
const HARMED: Plan = Plan { vcpus: 2, ..SEVEN };

/// A guest with a profile, that allocates, writes, checks, frees and zeroes pages on two vCPUs without pause.
fn busy_guest(host: &mut Host, plan: &Plan, mib: u32) -> Result<Guest> {
    let mut guest = host.create(plan)?;
    with_symbols(host, &["attach"], &guest)?;
    race::work(&mut guest, mib, 1)?;
    Ok(guest)
}

/// Share rounds while the guest works: nothing is lost.
pub(crate) fn race(host: &mut Host) -> Result<()> {
    let guest = busy_guest(host, &BUSY, BUSY_MIB)?;
    race::nothing_is_lost(host, guest, PARTS)
}

/// The same without the re-check, of which the look at the page's bytes is a part: data is lost, and seen to
/// be.
pub(crate) fn race_without_recheck(host: &mut Host) -> Result<()> {
    let guest = busy_guest(host, &HARMED, race::WORK_MIB)?;
    race::data_is_lost(host, guest)
}
