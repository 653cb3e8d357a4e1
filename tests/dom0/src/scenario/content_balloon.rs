//! Guests that give memory up through their balloon while pages of theirs share frames.
//!
//! `xl mem-set` lowers what the domain may own at once, to less than it does own, and only then does the
//! guest begin to give up. Until it has, each of its writes to a shared page needs a page that is beyond the
//! limit.

use std::time::Duration;

use lacuna_guest::Task;

use super::content::{AGENT_LIMIT, COPIES, KINDS, Known, UNIQUE, all_shared, end_churn, intact, rounds};
use crate::engine::Direct;
use crate::failure::{Result, ensure};
use crate::guest::{Guest, PAGES_PER_MIB, Plan};
use crate::host::{Host, settled_free_mib, wait_until};

/// The guests' memory, and what they are asked to do with, in MiB.
pub(super) const MIB: u64 = 384;
const LESS_MIB: u64 = 208;
/// How long the balloon may take.
const BALLOON_LIMIT: Duration = Duration::from_secs(120);
/// What a domain has beside its memory, in MiB: Xen's tools allow for one.
const BESIDE_MIB: u64 = 2;
/// Equal pages that become free pages which share frames, of each content: 128 MiB.
const FREED_COPIES: u32 = 1024;
/// A kernel that gives up what its free pages hold as it is, so that the balloon hands over pages which still
/// share frames.
pub(super) const UNTOUCHED: &str = "init_on_alloc=0 xen_scrub_pages=0";

/// A guest that writes its shared pages while its balloon grows, and one whose balloon takes pages that share
/// frames.
pub(crate) fn balloon(host: &mut Host) -> Result<()> {
    let empty = settled_free_mib()?;
    writes_meanwhile(host)?;
    gives_up_shared(host)?;
    host.expect_free(empty)
}

fn guest(host: &mut Host, name: &'static str, extra: &'static str) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        mib: u32::try_from(MIB).unwrap_or(u32::MAX),
        extra,
        ..Plan::stock(name, "6.12")
    })?;
    // Pages like no other: what is free has a frame of its own.
    guest.order(Task::Fill, AGENT_LIMIT)?;
    Ok(guest)
}

fn writes_meanwhile(host: &mut Host) -> Result<()> {
    let mut guest = guest(host, "writing", "")?;
    let known = Known::make(&mut guest, KINDS, COPIES, UNIQUE)?;
    rounds(host, &guest, 2)?;
    all_shared(&guest, &known)?;
    guest.order(Task::ChurnStart, AGENT_LIMIT)?;
    give_up(host, &mut guest)?;
    host.figure("pages_written", end_churn(&mut guest)?)?;
    host.xl(&["mem-set", guest.name, &MIB.to_string()])?;
    let wanted = u32::try_from((MIB - LESS_MIB) / 2).unwrap_or(u32::MAX);
    guest.grow(wanted, AGENT_LIMIT)?;
    guest.order(Task::PatternRewrite { every: 1 }, AGENT_LIMIT)?;
    intact(&mut guest, "after all were written")?;
    guest.check_health()?;
    guest.destroy(host).map(drop)
}

fn gives_up_shared(host: &mut Host) -> Result<()> {
    let mut guest = guest(host, "giving", UNTOUCHED)?;
    let known = Known::make(&mut guest, KINDS, FREED_COPIES, 0)?;
    rounds(host, &guest, 2)?;
    all_shared(&guest, &known)?;
    // Frees those pages, which go on sharing frames.
    Known::make(&mut guest, KINDS, 1, UNIQUE)?;
    let before = host.lacuna(&["status", guest.name])?;
    give_up(host, &mut guest)?;
    let after = host.lacuna(&["status", guest.name])?;
    let given = before.number("content_gfns")? - after.number("content_gfns")?;
    let unshared = after.number("content_unshared")? - before.number("content_unshared")?;
    host.figure("shared_pages_given_up", given)?;
    host.figure("copies_made_for_it", unshared)?;
    ensure(
        given > unshared,
        "shared pages given up without a copy",
        "some",
        &format!("{given} given up, {unshared} copied"),
    )?;
    intact(&mut guest, "after the balloon took others")?;
    guest.check_health()?;
    guest.destroy(host).map(drop)
}

/// Makes the guest give memory up, and waits until it has.
pub(super) fn give_up(host: &mut Host, guest: &mut Guest) -> Result<()> {
    let before = settled_free_mib()?;
    host.note(&format!("{} is asked to do with {LESS_MIB} MiB", guest.name))?;
    host.xl(&["mem-set", guest.name, &LESS_MIB.to_string()])?;
    let direct = Direct::open(guest.domain)?;
    let mut seen = 0;
    let done = wait_until("the guest has given memory up", BALLOON_LIMIT, || {
        std::thread::sleep(Duration::from_secs(2));
        let status = host.lacuna(&["status", guest.name])?;
        // What it owns, and what it would own if it shared nothing.
        seen = direct.pages()? + status.number("content_gfns")? + status.number("zero_gfns")?;
        Ok((seen <= (LESS_MIB + BESIDE_MIB) * PAGES_PER_MIB).then_some(()))
    });
    host.figure(&format!("{}_pages", guest.name), seen)?;
    done?;
    let after = settled_free_mib()?;
    host.figure(
        &format!("{}_host_risen_mib", guest.name),
        after.saturating_sub(before),
    )?;
    Ok(())
}
