//! An HVM guest with a device model, QEMU in dom0, which maps the guest's memory as it likes: what Windows
//! runs as.

use std::fs;

use lacuna_guest::Task;

use super::super::reclaim::{self, RECLAIMED_PER_MILLE, use_memory};
use super::{AGENT_LIMIT, PAGES_PER_MIB, SKIPPED_PER_MILLE, healthy, intact, nothing_lost, zeroed};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Kind, Plan};
use crate::host::{Host, wait_until};
use crate::migration::{Journey, compare, migrate};

/// Half of what the machine has besides dom0: a migration has two of it.
const PLAN: Plan = Plan {
    mib: 512,
    kind: Kind::Hvm,
    ..Plan::stock("hvm", "6.12")
};
/// What the device model is made to map, in MiB: most of it is free.
const MAPPED_AT_MIB: u64 = 256;
const MAPPED_MIB: u64 = 16;
/// How often the device model may let go by itself.
const TRIES: u32 = 4;
/// What the guest's balloon is told to give away, in MiB: Xen then has the device model forget its mappings.
const BALLOON_MIB: u32 = 4;
/// What the guest allocates on arrival, in MiB.
const AGAIN_MIB: u64 = 64;
/// Where the device model writes what it sees.
const SEEN: &str = "/root/seen";
/// Bytes of a page.
const PAGE: usize = 4096;

/// Free pages that the device model has mapped are left alone and counted, and given back when it has let go;
/// the others are given back at once. The guest gets zeroed memory again, moves, leaves its free pages
/// behind, and goes on.
pub(crate) fn hvm(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&PLAN)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let account = guest.start_account()?;
    host.lacuna(&["attach", guest.name])?;
    let free = reclaim::compare(host, &guest, &account, AGENT_LIMIT)?;
    guest.order(Task::TruthStop, AGENT_LIMIT)?;
    held(host, &mut guest, free)?;
    let unshared = use_memory(host, &mut guest, free)?;
    host.figure("unshared", unshared)?;
    guest.order(Task::Shrink, AGENT_LIMIT)?;
    guest.check_health()?;
    moved(host, &mut guest)?;
    healthy(&mut guest, AGAIN_MIB)?;
    // What arrived is a guest like any other.
    host.lacuna(&["attach", guest.name])?;
    host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    healthy(&mut guest, AGAIN_MIB)
}

/// Of `free` pages the device model has some mapped; then it lets go.
fn held(host: &mut Host, guest: &mut Guest, free: u64) -> Result<()> {
    let mut tries = 0;
    let (before, mut shared, held) = loop {
        tries += 1;
        let before = seen(host, guest)?;
        host.note("sharing, with pages that the device model has mapped")?;
        let (shared, held) = round(host, guest)?;
        // Whenever the guest gives memory away, as its balloon may do soon after it has booted, the device
        // model forgets all it has mapped; it cannot have done so while its mappings are there.
        if held > 0 || mapped()? >= MAPPED_MIB << 20 || tries == TRIES {
            break (before, shared, held);
        }
        host.note("the device model had let go; once more")?;
        guest.order(Task::Fill, AGENT_LIMIT)?;
    };
    host.figure("shared_at_first", shared)?;
    host.figure("held_at_first", held)?;
    ensure(
        (1..=MAPPED_MIB * PAGES_PER_MIB).contains(&held),
        "free pages held by the device model",
        &format!("some of the {} that it has mapped", MAPPED_MIB * PAGES_PER_MIB),
        &held.to_string(),
    )?;
    given_back(shared + held, free)?;
    // Had one of them been put on a zero frame, the device model would go on with a frame that is no longer
    // the guest's.
    let after = seen(host, guest)?;
    let empty = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let pages = before.chunks_exact(PAGE).zip(after.chunks_exact(PAGE));
    let lost = pages
        .filter(|(before, after)| !empty(before) && empty(after))
        .count();
    equal("pages that the device model sees emptied", &0, &lost)?;

    host.note("the device model lets go")?;
    let smaller = format!("{}m", PLAN.mib - BALLOON_MIB);
    host.xl(&["mem-set", guest.name, &smaller])?;
    wait_until("the device model lets go of free pages", AGENT_LIMIT, || {
        let (more, held) = round(host, guest)?;
        shared += more;
        Ok((held == 0).then_some(()))
    })?;
    host.figure("shared", shared)?;
    given_back(
        shared,
        free.saturating_sub(u64::from(BALLOON_MIB) * PAGES_PER_MIB),
    )
}

/// One round: the pages given back, and the free ones that something holds.
fn round(host: &mut Host, guest: &Guest) -> Result<(u64, u64)> {
    let answer = host.lacuna(&["dedup", guest.name, "--rounds", "1"])?;
    Ok((answer.number("shared")?, answer.number("held")?))
}

/// Checks the pages given back, with a tolerance: even an idle guest's kernel takes and frees a few pages.
fn given_back(pages: u64, free: u64) -> Result<()> {
    ensure(
        pages * 1000 >= free * RECLAIMED_PER_MILLE,
        "pages given back, and held",
        &format!("at least {RECLAIMED_PER_MILLE} of 1000 of {free}"),
        &pages.to_string(),
    )
}

/// Memory as the device model sees it. It maps what it reads, a MiB at a time, and keeps the mapping.
fn seen(host: &mut Host, guest: &Guest) -> Result<Vec<u8>> {
    let (at, bytes) = (MAPPED_AT_MIB << 20, MAPPED_MIB << 20);
    // In quotes, or its slash divides the size.
    let order = format!("pmemsave {at:#x} {bytes:#x} \"{SEEN}\"");
    let answer = host.xl(&["qemu-monitor-command", guest.name, &order])?;
    let seen = fs::read(SEEN).map_err(|_| differs(&order, "a file", answer.trim()))?;
    fs::remove_file(SEEN)?;
    equal("bytes that the device model writes", &bytes, &(seen.len() as u64))?;
    Ok(seen)
}

/// Bytes of guest memory that the device model has mapped.
fn mapped() -> Result<u64> {
    /// Its name as the kernel cuts it, to `TASK_COMM_LEN` (`include/linux/sched.h`).
    const NAME: &str = "xen-qemu-system";
    let mut bytes = 0;
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        if fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == NAME) {
            let maps = fs::read_to_string(process.join("maps"))?;
            bytes += maps
                .lines()
                .filter(|line| line.ends_with("/dev/xen/privcmd"))
                .filter_map(|line| {
                    let (from, to) = line.split_whitespace().next()?.split_once('-')?;
                    let place = |text| u64::from_str_radix(text, 16).ok();
                    place(to)?.checked_sub(place(from)?)
                })
                .sum::<u64>();
        }
    }
    Ok(bytes)
}

/// Moves the guest, and compares both sides while it stands still.
fn moved(host: &mut Host, guest: &mut Guest) -> Result<()> {
    let free = host.lacuna(&["scan", guest.name])?.number("free")?;
    let arrival = migrate(host, guest, Journey::default(), |host, still| {
        let differences = compare(still, u64::from(PLAN.mib) * PAGES_PER_MIB)?;
        intact(&differences)?;
        zeroed(&differences)?;
        nothing_lost(host, still, &differences)
    })?;
    let skipped = arrival.report.sum(|iteration| iteration.skipped);
    host.figure("free_before_the_move", free)?;
    host.figure("skipped", skipped)?;
    host.figure("sent", arrival.report.sum(|iteration| iteration.data))?;
    ensure(
        skipped * 1000 >= free * SKIPPED_PER_MILLE,
        "free pages left behind",
        &format!("{SKIPPED_PER_MILLE} of 1000 of {free}"),
        &skipped.to_string(),
    )
}
