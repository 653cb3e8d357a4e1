//! The main job on Intel's nested paging, whose page tables, flushes and faults are other code in Xen than
//! AMD's.

use std::time::Duration;

use lacuna_guest::Task;

use super::content::{Known, all_shared, end_churn, intact, rounds};
use super::migration::intact as frames_intact;
use super::reclaim::{compare, give_back, use_memory};
use super::refusals::{keep_profile, on_ept};
use crate::failure::{Result, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, settled_free_mib};
use crate::migration::{Journey, compare as compare_memory, migrate};

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(600);
/// The memory of the guest with equal pages in MiB: as little as it starts with, for it is sent as well.
const CONTENT_MIB: u32 = 160;
/// Contents that have copies, the copies of each, and pages that are like no other.
const CONTENTS: [u32; 3] = [16, 64, 64];
/// Rounds while the guest goes on writing its equal pages.
const RACE_ROUNDS: u64 = 8;

/// A guest's free memory goes to the host and comes back zeroed, and the guest leaves nothing behind.
pub(crate) fn ept(host: &mut Host) -> Result<()> {
    let empty = settled_free_mib()?;
    let mut guest = host.create(&Plan {
        mib: 256,
        ..Plan::stock("ept", "6.12")
    })?;
    // Linux 6.12 warns about Bochs' processor topology when it boots.
    let at_boot = guest.trouble()?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let account = guest.start_account()?;
    host.note("attaching")?;
    host.lacuna(&["attach", guest.name])?;
    let free = compare(host, &guest, &account, AGENT_LIMIT)?;
    guest.order(Task::TruthStop, AGENT_LIMIT)?;
    give_back(host, &guest, free)?;
    keep_profile(&guest)?;
    let unshared = use_memory(host, &mut guest, free)?;
    host.figure("unshared", unshared)?;
    equal(
        "trouble in the guest's kernel log since it booted",
        &at_boot,
        &guest.trouble()?,
    )?;
    host.figure("guest_ok", true)?;
    guest.destroy(host)?;
    on_ept(host)?;
    let left = settled_free_mib()?;
    // A domain's first structures leave some slack in Xen's own pools.
    ensure(
        left + 1 >= empty,
        "the host's free memory after the guest is gone",
        &format!("{empty} MiB, as before it came"),
        &format!("{left} MiB"),
    )
}

/// Equal pages are found and shared, also while the guest goes on writing them, and they move to another
/// domain, with EPT's own way to track writes.
pub(crate) fn content(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: CONTENT_MIB,
        ..Plan::stock("content", "6.12")
    })?;
    let at_boot = guest.trouble()?;
    let [kinds, copies, unique] = CONTENTS;
    let known = Known::make(&mut guest, kinds, copies, unique)?;
    host.note("two rounds over all of the guest")?;
    let merged = rounds(host, &guest, 2)?;
    host.figure("merged", merged)?;
    all_shared(&guest, &known)?;
    intact(&mut guest, "when they share frames")?;
    guest.order(Task::PatternRewrite { every: 3 }, AGENT_LIMIT)?;
    intact(&mut guest, "after every third was written")?;

    guest.order(Task::ChurnStart, AGENT_LIMIT)?;
    host.note(&format!("{RACE_ROUNDS} rounds while the guest writes its pages"))?;
    let merged = rounds(host, &guest, RACE_ROUNDS)?;
    host.figure("merged_meanwhile", merged)?;
    let status = host.lacuna(&["status", guest.name])?;
    host.figure("content_unshared", status.number("content_unshared")?)?;
    host.figure("content_differed", status.number("content_differed")?)?;
    ensure(merged > 0, "pages merged while the guest writes", "some", "none")?;

    host.note("migrating, while the guest writes")?;
    migrate(host, &mut guest, Journey::default(), |host, still| {
        let differences = compare_memory(still, u64::from(CONTENT_MIB) * 256)?;
        host.figure("frames_compared", differences.frames)?;
        let shared = known.places_in(still.sender)?.shared;
        host.figure("shared_at_the_sender", shared)?;
        frames_intact(&differences)
    })?;
    host.figure("pages_written", end_churn(&mut guest)?)?;
    equal(
        "trouble in the guest's kernel log since it booted",
        &at_boot,
        &guest.trouble()?,
    )?;
    guest.destroy(host).map(drop)
}
