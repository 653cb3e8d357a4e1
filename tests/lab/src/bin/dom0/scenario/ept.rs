//! The main job on Intel's nested paging, whose page tables, flushes and faults are other code in Xen than AMD's.

use std::time::Duration;

use lacuna_guest::Task;

use super::reclaim::{compare, give_back, use_memory};
use super::refusals::{keep_profile, on_ept};
use crate::failure::{Result, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, settled_free_mib};

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(600);

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
