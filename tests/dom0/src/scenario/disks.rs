//! A guest with a disk that dom0 serves, on a host without memory: what is read goes to pages that were given
//! back, and it is the disk's backend that takes them off the zero frames.

use std::fs::File;
use std::time::{Duration, Instant};

use lacuna_guest::{Report, Task};

use crate::engine::Direct;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, settled_free_mib, wait_until};

/// How long the agent may take for what touches much of the guest's memory, or all of its disk.
const AGENT_LIMIT: Duration = Duration::from_secs(300);
/// How long the guest may take to find that there is no memory.
const STARVE_LIMIT: Duration = Duration::from_secs(180);
/// How long the host is left without memory. Linux' backends try an access again for 33 s
/// (`gnttab_retry_eagain` in `drivers/xen/grant-table.c`: 1 + 2 + … + 256 ms) before they give it up.
const STARVED: Duration = Duration::from_secs(50);
/// The disk's size in MiB: more than the host has left, and less than the guest has free.
const DISK_MIB: u64 = 64;
/// What the host has left, in pages, each time that it is tried.
const LEFT_PAGES: u64 = 512;
/// How often it is tried: whose access comes first when there is no memory is chance.
const ATTEMPTS: u32 = 12;
/// So often has the guest tried to write by itself when it is certain that it waits: 20 ms apart.
const TRIED: u64 = 50;
/// The domain for which the host's memory is kept. Its kernel has to fit in.
const NEIGHBOUR: Plan = Plan {
    mib: 128,
    ..Plan::stock("neighbour", "6.12")
};
/// Makes the contents of the disk.
const SEED: u64 = 0x0d15_c0de;
/// One page in so many is written anew while it is read.
const WRITTEN: u64 = 64;
/// dom0's drivers, with their parameters. Grants that the frontend keeps for good would be of memory that it
/// has written to before: then nothing of the disk's would ever reach a page that was given back.
const DRIVERS: &[(&str, &std::ffi::CStr)] = &[
    // In KiB.
    ("brd", c"rd_nr=1 rd_size=65536"),
    ("xen-blkback", c"feature_persistent=0"),
];

/// A guest's memory is given back; all of the host's is claimed for a neighbour; the guest reads all of its
/// disk, and writes to it. It gets what was written there and no error, however long memory is missing, and
/// goes on when there is some.
pub(crate) fn without_memory(host: &mut Host) -> Result<()> {
    load_drivers()?;
    let empty = settled_free_mib()?;
    let mut guest = host.create(&Plan {
        mib: 256,
        initrd: "disks.initrd",
        // Debian's kernels clear each page when they hand it out: then it is the guest that takes it off its
        // zero frame, and never its disk.
        extra: "init_on_alloc=0",
        configuration: "disk=[\"format=raw, vdev=xvda, access=rw, script=/disks/hand-over, target=/dev/ram0\"]",
        ..Plan::stock("guest", "6.12")
    })?;
    host.note("the guest writes its disk")?;
    let written = of_disk(guest.order(Task::DiskFill { seed: SEED }, AGENT_LIMIT)?)?;
    equal("pages of the disk", &(DISK_MIB * 256), &written)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let shared = guest.give_back(host)?;
    equal(
        "the guest's reserve",
        &of_status(host, &guest, "reserve_full")?,
        &of_status(host, &guest, "reserve")?,
    )?;
    ensure(
        shared > DISK_MIB * 256,
        "pages given back",
        "more than the disk has",
        &shared.to_string(),
    )?;

    host.xl(&["create", "-q", "-p", &NEIGHBOUR.write()?])?;
    let neighbour = Direct::open(host.domain_number(NEIGHBOUR.name)?)?;
    let limit = format!("{}m", settled_free_mib()? + u64::from(NEIGHBOUR.mib));
    host.xl(&["mem-max", NEIGHBOUR.name, &limit])?;
    host.note("the guest reads its disk")?;
    claim_but(&neighbour, LEFT_PAGES)?;
    let sent = guest.send(Task::DiskCheck {
        seed: SEED,
        every: WRITTEN,
    })?;
    starve(host, &guest, &neighbour)?;
    let since = Instant::now();
    let mut least = u64::MAX;
    while since.elapsed() < STARVED {
        std::thread::sleep(Duration::from_secs(1));
        least = least.min(of_status(host, &guest, "reserve")?);
    }
    host.figure("reserve_at_least", least)?;
    for name in ["reserve_full", "stood", "stood_ns"] {
        let value = of_status(host, &guest, name)?;
        host.figure(name, value)?;
    }
    host.note("the claim is given up")?;
    claim(&neighbour, 0)?;
    let since = Instant::now();
    let read = of_disk(guest.answer(&sent, AGENT_LIMIT)?)?;
    host.figure("seconds_until_all_was_read", since.elapsed().as_secs_f64())?;
    equal("pages read", &(DISK_MIB * 256), &read)?;
    guest.check_health_after_waiting()?;
    guest.destroy(host)?;
    host.xl(&["destroy", NEIGHBOUR.name])?;
    host.expect_free(empty)
}

/// Loads dom0's drivers of virtual disks, where they are not loaded yet.
fn load_drivers() -> Result<()> {
    for (name, parameters) in DRIVERS {
        let module = File::open(format!("/disks/{name}.ko"))?;
        match rustix::system::finit_module(module, parameters, 0) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
    Ok(())
}

/// Takes the host's memory away until it is the disk's access that finds none first.
fn starve(host: &mut Host, guest: &Guest, neighbour: &Direct) -> Result<()> {
    let since = Instant::now();
    let mut attempts = 1;
    while !stands(host, guest)? {
        ensure(
            attempts < ATTEMPTS,
            "whose access finds no memory first",
            "the disk's, at one of several times",
            "the guest's own, each time",
        )?;
        attempts += 1;
        claim(neighbour, 0)?;
        claim_but(neighbour, LEFT_PAGES)?;
    }
    host.figure("attempts", attempts)?;
    host.figure("seconds_until_it_stands", since.elapsed().as_secs_f64())?;
    Ok(())
}

/// Waits until the guest stands for its disk's sake, or waits for memory to write to itself; whether it
/// stands.
fn stands(host: &mut Host, guest: &Guest) -> Result<bool> {
    let before = guest.waits(host)?;
    wait_until("the guest finds no memory", STARVE_LIMIT, || {
        if of_status(host, guest, "stood")? > 0 {
            return Ok(Some(true));
        }
        Ok((guest.waits(host)? >= before + TRIED).then_some(false))
    })
}

/// Has Xen keep all of the host's free memory for the domain, but `left` pages.
pub(super) fn claim_but(neighbour: &Direct, left: u64) -> Result<()> {
    let (own, memory) = (neighbour.pages()?, neighbour.host_memory()?);
    claim(neighbour, own + memory.free.saturating_sub(left))
}

/// Has Xen keep memory for the domain, until it has `pages`.
pub(super) fn claim(neighbour: &Direct, pages: u64) -> Result<()> {
    neighbour
        .claim(pages)
        .map_err(|error| differs("a claim to what is free", "granted", &error.to_string()))
}

/// A figure of the guest's status.
fn of_status(host: &mut Host, guest: &Guest, name: &str) -> Result<u64> {
    host.lacuna(&["status", guest.name])?.number(name)
}

/// The pages of an answer about the disk, which must tell of no error and of no page that is not as it was
/// written.
fn of_disk(report: Report) -> Result<u64> {
    match report {
        Report::Disk {
            pages,
            wrong: 0,
            errors: 0,
            ..
        } => Ok(pages),
        other => Err(differs(
            "the guest's disk",
            "no error, and what was written to it",
            &format!("{other:?}"),
        )),
    }
}
