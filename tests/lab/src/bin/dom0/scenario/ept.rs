//! The main job on Intel's nested paging, whose page tables, flushes and faults are other code in Xen than AMD's.

use std::time::Duration;

use lacuna_guest::Task;

use super::reclaim::use_memory;
use crate::failure::{Result, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, settled_free_mib};

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(600);
/// What must be given back of what is free, as on the other machine.
const RECLAIMED_PER_MILLE: u64 = 990;
/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u64 = 256;

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
    host.note("attaching")?;
    host.lacuna(&["attach", guest.name])?;
    let free = host.lacuna(&["scan", guest.name])?.number("free")?;
    let before = settled_free_mib()?;
    host.note("sharing")?;
    let shared = host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    let pages = shared.number("shared")?;
    let after = settled_free_mib()?;
    host.figure("free_found", free)?;
    host.figure("shared", pages)?;
    host.figure("superpages", shared.number("superpages")?)?;
    host.figure("host_free_before", before)?;
    host.figure("host_free_after", after)?;
    ensure(
        pages * 1000 >= free * RECLAIMED_PER_MILLE,
        "pages given back",
        &format!("at least {RECLAIMED_PER_MILLE} of 1000 of {free}"),
        &pages.to_string(),
    )?;
    let risen = after.saturating_sub(before) * PAGES_PER_MIB;
    ensure(
        (risen + PAGES_PER_MIB) * 1000 >= pages * RECLAIMED_PER_MILLE,
        "the rise of the host's free memory",
        &format!("{pages} pages, less 1 % and what rounding to MiB takes"),
        &format!("{risen} pages"),
    )?;
    let unshared = use_memory(host, &mut guest, free)?;
    host.figure("unshared", unshared)?;
    equal(
        "trouble in the guest's kernel log since it booted",
        &at_boot,
        &guest.trouble()?,
    )?;
    host.figure("guest_ok", true)?;
    guest.destroy(host)?;
    let left = settled_free_mib()?;
    // A domain's first structures leave some slack in Xen's own pools.
    ensure(
        left + 1 >= empty,
        "the host's free memory after the guest is gone",
        &format!("{empty} MiB, as before it came"),
        &format!("{left} MiB"),
    )
}
