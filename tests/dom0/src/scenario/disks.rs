//! A guest with a disk that dom0 serves, on a host without memory: what is read goes to pages that were given
//! back, and it is the disk's backend that takes them off the zero frames.

use std::fs::File;
use std::time::{Duration, Instant};

use lacuna_guest::{Report, Task};

use crate::failure::{Result, differs, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, free_mib, settled_free_mib, wait_until};

/// How long the agent may take for what touches much of the guest's memory, or all of its disk.
const AGENT_LIMIT: Duration = Duration::from_secs(300);
/// How long the guest may take to find that there is no memory.
const STARVE_LIMIT: Duration = Duration::from_secs(180);
/// How long the host is left without memory. Linux' backends try an access again for 33 s (`gnttab_retry_eagain`
/// in `drivers/xen/grant-table.c`: 1 + 2 + … + 256 ms) before they give it up.
const STARVED: Duration = Duration::from_secs(60);
/// The disk's size in MiB: more than the host has left, and less than the guest has free.
const DISK_MIB: u64 = 128;
/// What the neighbour leaves free, in MiB: the floor, and some.
const LEFT_MIB: u64 = 24;
/// Makes the contents of the disk.
const SEED: u64 = 0x0d15_c0de;
/// One page in so many is written anew while it is read.
const WRITTEN: u64 = 64;
/// dom0's drivers, with their parameters. Grants that the frontend keeps for good would be of memory that it
/// has written to before: then nothing of the disk's would ever reach a page that was given back.
const DRIVERS: &[(&str, &std::ffi::CStr)] = &[
    // In KiB.
    ("brd", c"rd_nr=1 rd_size=131072"),
    ("xen-blkback", c"feature_persistent=0"),
];

/// A guest's memory is given back; a neighbour takes it; the guest reads all of its disk, and writes to it.
/// It gets what was written there and no error, and goes on when there is memory.
///
/// That is no proof that a backend never fails: with one virtual CPU and little read ahead the guest comes to
/// wait for a page of its own before the backend has used up what there is for it (decision 12).
pub(crate) fn without_memory(host: &mut Host) -> Result<()> {
    for (name, parameters) in DRIVERS {
        let module = File::open(format!("/disks/{name}.ko"))?;
        match rustix::system::finit_module(module, parameters, 0) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
    let empty = settled_free_mib()?;
    let mut guest = host.create(&Plan {
        mib: 256,
        initrd: "disks.initrd",
        configuration: "disk=[\"format=raw, vdev=xvda, access=rw, script=/disks/hand-over, target=/dev/ram0\"]",
        ..Plan::stock("guest", "6.12")
    })?;
    host.note("the guest writes its disk")?;
    let written = of_disk(guest.order(Task::DiskFill { seed: SEED }, AGENT_LIMIT)?)?;
    equal("pages of the disk", &(DISK_MIB * 256), &written)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    let shared = guest.give_back(host)?;
    ensure(
        shared > DISK_MIB * 256,
        "pages given back",
        "more than the disk has",
        &shared.to_string(),
    )?;

    host.crowd(free_mib()?, LEFT_MIB)?;
    host.figure("free_mib", free_mib()?)?;
    host.note("the guest reads its disk")?;
    let sent = guest.send(Task::DiskCheck {
        seed: SEED,
        every: WRITTEN,
    })?;
    let since = Instant::now();
    wait_until("the guest's memory is missing", STARVE_LIMIT, || {
        Ok((guest.waits(host)? > 0).then_some(()))
    })?;
    host.figure("seconds_until_missing", since.elapsed().as_secs_f64())?;
    let since = Instant::now();
    while since.elapsed() < STARVED {
        std::thread::sleep(Duration::from_secs(1));
        host.lacuna(&["status", guest.name])?;
    }
    host.figure("free_mib_while_starved", free_mib()?)?;
    host.note("the neighbour goes")?;
    host.xl(&["destroy", "neighbour"])?;
    let since = Instant::now();
    let read = of_disk(guest.answer(&sent, AGENT_LIMIT)?)?;
    host.figure("seconds_until_all_was_read", since.elapsed().as_secs_f64())?;
    equal("pages read", &(DISK_MIB * 256), &read)?;
    guest.check_health_after_waiting()?;
    guest.destroy(host)?;
    host.expect_free(empty)
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
