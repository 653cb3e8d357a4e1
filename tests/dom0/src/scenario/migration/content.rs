//! Guests whose pages in use share frames, moved and saved. Whoever shares a frame, what arrives is the
//! guest's own, and who stays behind keeps what it has.

use lacuna_guest::Task;

use super::super::content::{
    COPIES, KINDS, Known, UNIQUE, all_shared, copies_shared, end_churn, intact as pages_intact,
};
use super::stored::saved;
use super::{AGENT_LIMIT, PAGES_PER_MIB, healthy, intact, left_in_use, nothing_lost, zeroed};
use crate::failure::{Result, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, settled_free_mib};
use crate::migration::{Journey, Standstill, compare, migrate};
use crate::stream::tally::PageType;

/// The guest's memory in MiB.
const MIB: u32 = 256;
/// What the guest allocates at the end, in MiB.
const AGAIN_MIB: u64 = 64;
/// Pages of each content in each of two guests that share.
const GROUP_COPIES: u32 = 4;
/// The members' memory in MiB.
const GROUP_MIB: u32 = 192;

/// A guest whose known duplicates share frames and whose free pages are on zero frames.
pub(in super::super) fn sharing_guest(host: &mut Host, name: &'static str) -> Result<(Guest, Known)> {
    let mut guest = host.create(&Plan {
        mib: MIB,
        vcpus: 2,
        ..Plan::stock(name, "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let known = Known::make(&mut guest, KINDS, COPIES, UNIQUE)?;
    share(host, &guest, &known)?;
    Ok((guest, known))
}

/// Gives back what is free and what is equal.
fn share(host: &mut Host, guest: &Guest, known: &Known) -> Result<()> {
    host.lacuna(&["attach", guest.name])?;
    let answer = host.lacuna(&["dedup", guest.name, "--mode", "introdedup"])?;
    host.figure("shared", answer.number("shared")?)?;
    host.figure("merged", answer.number("merged")?)?;
    all_shared(guest, known).map(drop)
}

/// Every known page was sent with its content; sending it, and looking at it, has ended no sharing; and the
/// copy has a frame for each.
fn sent_in_full(still: &Standstill, known: &Known, shared: u64) -> Result<()> {
    let unsent = known
        .gfns()
        .iter()
        .filter(|gfn| still.frames.last(**gfn) != Some(PageType::Data));
    equal("known pages not sent with their content", &0, &unsent.count())?;
    equal(
        "known pages on shared frames at the sender",
        &shared,
        &known.places_in(still.sender)?.shared,
    )?;
    equal(
        "known pages on shared frames at the receiver",
        &0,
        &known.places_in(still.receiver)?.shared,
    )
}

/// A guest on shared frames and zero frames moves while it is idle, and while it writes the shared pages;
/// each page arrives as it was, and can be shared again.
pub(crate) fn content(host: &mut Host) -> Result<()> {
    let empty = settled_free_mib()?;
    let (mut guest, known) = sharing_guest(host, "sharing")?;
    let copies = u64::from(KINDS * COPIES);
    let frames = u64::from(MIB) * PAGES_PER_MIB;

    host.note("migrating, idle")?;
    let arrival = migrate(host, &mut guest, Journey::default(), |host, still| {
        let differences = compare(still, frames)?;
        intact(&differences)?;
        zeroed(&differences)?;
        nothing_lost(host, still, &differences)?;
        sent_in_full(still, &known, copies)
    })?;
    host.figure("idle_skipped", arrival.report.sum(|iteration| iteration.skipped))?;
    host.figure("idle_sent", arrival.report.sum(|iteration| iteration.data))?;
    pages_intact(&mut guest, "when they have moved")?;

    share(host, &guest, &known)?;
    let before = host.lacuna(&["status", guest.name])?.number("content_unshared")?;
    guest.order(Task::ChurnStart, AGENT_LIMIT)?;
    host.note("migrating, while the guest writes its shared pages")?;
    let arrival = migrate(host, &mut guest, Journey::default(), |host, still| {
        let status = host.lacuna(&["status", &still.sender.to_string()])?;
        let unshared = status.number("content_unshared")? - before;
        host.figure("unshared_meanwhile", unshared)?;
        ensure(unshared > 0, "shared pages written meanwhile", "some", "none")?;
        let differences = compare(still, frames)?;
        intact(&differences)?;
        zeroed(&differences)?;
        let unwritten = left_in_use(host, still, &differences)?.len();
        host.figure("in_use_and_unwritten", unwritten as u64)?;
        sent_in_full(still, &known, known.places_in(still.sender)?.shared)
    })?;
    host.figure("busy_skipped", arrival.report.sum(|iteration| iteration.skipped))?;
    host.figure("busy_resent", arrival.report.sum(|iteration| iteration.resent))?;
    host.lacuna(&["attach", guest.name])?;
    host.lacuna(&["dedup", guest.name, "--mode", "introdedup"])?;
    host.figure("pages_written", end_churn(&mut guest)?)?;

    guest.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
    pages_intact(&mut guest, "after every second was written")?;
    healthy(&mut guest, AGAIN_MIB)?;
    guest.destroy(host)?;
    host.expect_free(empty)
}

/// Of two guests that share frames one is moved away. Both keep their own, also when they write, and when the
/// one that stayed is gone the host has everything back.
pub(crate) fn content_group(host: &mut Host) -> Result<()> {
    const GROUP: &str = "tenant-a";
    let empty = settled_free_mib()?;
    let mut guests = Vec::new();
    for name in ["leaver", "stayer"] {
        let mut guest = host.create(&Plan {
            mib: GROUP_MIB,
            ..Plan::stock(name, "6.12")
        })?;
        let known = Known::make(&mut guest, KINDS, GROUP_COPIES, 64)?;
        host.lacuna(&["dedup", name, "--mode", "dedup", "--trust-group", GROUP])?;
        let frames = copies_shared(&guest, &known)?.all_frames();
        guests.push((guest, known, frames));
    }
    let (Some((mut stayer, stays, frames)), Some((mut leaver, leaves, others))) =
        (guests.pop(), guests.pop())
    else {
        return Ok(());
    };
    let in_common = frames.intersection(&others).count();
    equal("frames in common", &(KINDS as usize), &in_common)?;

    leaver.order(Task::ChurnStart, AGENT_LIMIT)?;
    stayer.order(Task::ChurnStart, AGENT_LIMIT)?;
    host.note("migrating one of them, while both write")?;
    migrate(host, &mut leaver, Journey::default(), |_, still| {
        let differences = compare(still, u64::from(GROUP_MIB) * PAGES_PER_MIB)?;
        intact(&differences)?;
        sent_in_full(still, &leaves, leaves.places_in(still.sender)?.shared)
    })?;
    host.figure("stayer_written", end_churn(&mut stayer)?)?;
    host.figure("leaver_written", end_churn(&mut leaver)?)?;
    for guest in [&mut stayer, &mut leaver] {
        pages_intact(guest, "after one of two has moved")?;
    }
    // It comes back to the group as a new domain.
    host.lacuna(&["dedup", "leaver", "--mode", "dedup", "--trust-group", GROUP])?;
    host.lacuna(&["dedup", "stayer", "--mode", "dedup"])?;
    let (here, there) = (stays.places(&stayer)?, leaves.places(&leaver)?);
    let again = here.all_frames().intersection(&there.all_frames()).count();
    host.figure("frames_in_common_again", again as u64)?;
    ensure(again > 0, "frames in common again", "some", "none")?;
    stayer.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
    for guest in [&mut stayer, &mut leaver] {
        pages_intact(guest, "after one of two wrote")?;
    }
    stayer.check_health()?;
    stayer.destroy(host)?;
    leaver.order(Task::PatternRewrite { every: 1 }, AGENT_LIMIT)?;
    pages_intact(&mut leaver, "after the other was destroyed")?;
    leaver.check_health()?;
    leaver.destroy(host)?;
    host.expect_free(empty)
}

/// A guest on shared frames and zero frames is saved and comes back, and can be shared again.
pub(crate) fn content_save(host: &mut Host) -> Result<()> {
    let empty = settled_free_mib()?;
    let (mut guest, known) = sharing_guest(host, "stored")?;
    saved(host, &mut guest, "sharing")?;
    equal(
        "known pages on shared frames after the restore",
        &0,
        &known.places(&guest)?.shared,
    )?;
    pages_intact(&mut guest, "after the restore")?;
    share(host, &guest, &known)?;
    guest.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
    pages_intact(&mut guest, "after every second was written")?;
    healthy(&mut guest, AGAIN_MIB)?;
    guest.destroy(host)?;
    host.expect_free(empty)
}
