//! A guest that waits for memory on a full host is sent away, which is what its operator is told to do.

use std::fs;
use std::time::Duration;

use lacuna_guest::Task;

use crate::failure::{Result, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{FLOOR_MIB, Host, free_mib, wait_until};

/// Small: the saved guest goes into dom0's memory.
const PLAN_MIB: u32 = 256;
/// What each guest works with, in MiB: more than the full host can serve, and more than what the other one
/// uses beside it.
const WORK_MIB: u32 = 112;
/// What the neighbour leaves free, in MiB: the host's floor, and a little that the guests use up at once.
const LEFT_MIB: u64 = FLOOR_MIB + 16;
/// Where the saved guest is put.
const FILE: &str = "/root/sent-away";
/// How long the agent may take for what touches much of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(240);
/// How long the host may take for what takes it seconds.
const HOST_LIMIT: Duration = Duration::from_secs(240);
/// Waits of a guest in a row until it is taken to stand: each is of 20 ms (`lacuna/wait.c`).
const STANDS: u64 = 50;

/// Two guests use all that they gave back, on a host that has none of it left. The one that is saved while it
/// waits leaves the other one its memory, comes back when there is some again, and neither has lost a word.
pub(crate) fn of_a_full_host(host: &mut Host) -> Result<()> {
    let mut leaves = working_guest(host, "leaves")?;
    let mut stays = working_guest(host, "stays")?;
    host.crowd(free_mib()?, LEFT_MIB)?;
    for (guest, seed) in [(&mut leaves, 0x1ea5_e000), (&mut stays, 0x57a1_5000)] {
        let task = Task::WorkStart {
            threads: 1,
            mib: WORK_MIB,
            seed,
        };
        guest.order(task, AGENT_LIMIT)?;
    }
    for guest in [&leaves, &stays] {
        stands(host, guest)?;
    }
    host.figure("free_mib_while_both_wait", free_mib()?)?;

    host.note("the one that leaves is saved")?;
    host.xl(&["save", leaves.name, FILE])?;
    host.figure("saved_bytes", fs::metadata(FILE)?.len())?;
    equal(
        "whether a domain that was saved is still there",
        &false,
        &host.domains()?.iter().any(|name| name == leaves.name),
    )?;

    host.note("the other one goes on with its memory")?;
    let (before, _) = stays.work_so_far(AGENT_LIMIT)?;
    wait_until("the guest that stays works", HOST_LIMIT, || {
        let (now, _) = stays.work_so_far(AGENT_LIMIT)?;
        Ok((now > before).then_some(()))
    })?;

    host.note("the neighbour goes, and the saved one comes back")?;
    host.xl(&["destroy", "neighbour"])?;
    host.xl(&["restore", FILE])?;
    fs::remove_file(FILE)?;
    leaves.domain = host.domain_number(leaves.name)?;
    for guest in [&mut leaves, &mut stays] {
        let (blocks, pages) = guest.end_work(AGENT_LIMIT)?;
        host.figure(&format!("blocks_{}", guest.name), blocks)?;
        ensure(
            pages > 0,
            &format!("pages that {} checked", guest.name),
            "some",
            &pages.to_string(),
        )?;
        guest.check_health_after_waiting()?;
    }
    Ok(())
}

/// A guest whose free memory is given back, none of it zero by itself.
fn working_guest(host: &mut Host, name: &'static str) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        mib: PLAN_MIB,
        ..Plan::stock(name, "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    guest.give_back(host)?;
    Ok(guest)
}

/// Waits until the guest's writes find no memory, again and again.
fn stands(host: &mut Host, guest: &Guest) -> Result<()> {
    let begun = guest.waits(host)?;
    wait_until(&format!("{} waits for memory", guest.name), HOST_LIMIT, || {
        Ok((guest.waits(host)? >= begun + STANDS).then_some(()))
    })
}
