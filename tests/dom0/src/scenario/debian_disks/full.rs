//! The host is full: what guests read goes to pages that were given back, and it is their disks' backends that
//! find no memory for them.

use std::time::{Duration, Instant};

use lacuna_guest::Task;

use super::machine::{FILES_LIMIT, Machine};
use crate::engine::Direct;
use crate::failure::{Result, ensure};
use crate::guest::{PAGES_PER_MIB, Plan, Sent};
use crate::host::{Host, settled_free_mib, wait_until};
use crate::scenario::disks::{claim, claim_but};

/// How long the daemon may take to give back what the guests' kernels have forgotten.
const GIVEN_BACK_LIMIT: Duration = Duration::from_secs(300);
/// How long a guest's figure has to stand still for that.
const STILL: Duration = Duration::from_secs(15);
/// How long the guests may take to find that there is no memory.
const STARVE_LIMIT: Duration = Duration::from_secs(120);
/// How long the host is left without memory: Linux' backends try again for 33 s before they give up
/// (`gnttab_retry_eagain`).
const STARVED: Duration = Duration::from_secs(45);
/// What the host has left, in pages, each time that it is tried.
const LEFT_PAGES: u64 = 512;
/// How often it is tried: whose access comes first when there is no memory is chance.
const ATTEMPTS: u32 = 8;
/// So often has a guest tried to write by itself when it is certain that it waits: 20 ms apart.
const TRIED: u64 = 50;
/// The domain for which the host's memory is kept. Its kernel has to fit in.
const NEIGHBOUR: Plan = Plan {
    mib: 128,
    ..Plan::stock("neighbour", "6.12")
};

/// The guests read all of their files while the host has no memory, and get what was written there and no
/// error, however long that is.
pub(super) fn full(host: &mut Host, machines: &mut [Machine]) -> Result<()> {
    let mut had = Vec::new();
    for machine in &mut *machines {
        had.push(machine.rest(host)?);
        machine.forget()?;
    }
    host.note("waiting until what the guests have forgotten is given back")?;
    for machine in &*machines {
        given_back(host, machine)?;
    }
    host.xl(&["create", "-q", "-p", &NEIGHBOUR.write()?])?;
    let neighbour = Direct::open(host.domain_number(NEIGHBOUR.name)?)?;
    let limit = format!("{}m", settled_free_mib()? + u64::from(NEIGHBOUR.mib));
    host.xl(&["mem-max", NEIGHBOUR.name, &limit])?;

    host.note("the guests read their files while the host is full")?;
    let before: Vec<u64> = machines
        .iter()
        .map(|machine| machine.status(host, "stood"))
        .collect::<Result<_>>()?;
    claim_but(&neighbour, LEFT_PAGES)?;
    let mut sent = Vec::new();
    for machine in &mut *machines {
        let task = Task::FilesCheck {
            seed: machine.kind.seed,
        };
        sent.push(machine.guest.send(task)?);
    }
    starve(host, machines, &before, &neighbour)?;
    std::thread::sleep(STARVED);
    for (machine, before) in machines.iter().zip(&before) {
        let stood = machine.status(host, "stood")? - before;
        host.figure(&format!("{}_stood", machine.kind.name), stood)?;
        for name in ["reserve", "reserve_full", "unshare_enomem"] {
            let value = machine.status(host, name)?;
            host.figure(&format!("{}_{name}", machine.kind.name), value)?;
        }
    }
    host.note("the claim is given up")?;
    claim(&neighbour, 0)?;
    answered(host, machines, &had, &sent)?;
    host.xl(&["destroy", NEIGHBOUR.name])?;
    for machine in machines {
        machine.work()?;
    }
    Ok(())
}

/// Waits until the daemon has nothing more of the guest's to give back.
fn given_back(host: &mut Host, machine: &Machine) -> Result<()> {
    let mut last = (0, Instant::now());
    let pages = wait_until("the daemon gives all back", GIVEN_BACK_LIMIT, || {
        std::thread::sleep(Duration::from_secs(2));
        let now = machine.status(host, "zero_gfns")?;
        if now.abs_diff(last.0) > PAGES_PER_MIB {
            last = (now, Instant::now());
        }
        Ok((now > 0 && last.1.elapsed() > STILL).then_some(now))
    })?;
    host.figure(&format!("{}_on_zero_frames", machine.kind.name), pages)
}

/// Takes the host's memory away until each guest was made to stand, for its disk's sake.
fn starve(host: &mut Host, machines: &[Machine], before: &[u64], neighbour: &Direct) -> Result<()> {
    let since = Instant::now();
    let mut attempts = 1;
    while !stand(host, machines, before)? {
        ensure(
            attempts < ATTEMPTS,
            "whose access finds no memory first",
            "each guest's disk's, at one of several times",
            "the guests' own",
        )?;
        attempts += 1;
        claim(neighbour, 0)?;
        claim_but(neighbour, LEFT_PAGES)?;
    }
    host.figure("attempts", attempts)?;
    host.figure("seconds_until_they_stood", since.elapsed().as_secs_f64())
}

/// Waits until each guest stands or has stood for its disk's sake, or waits for memory to write to itself;
/// whether each has stood.
fn stand(host: &mut Host, machines: &[Machine], before: &[u64]) -> Result<bool> {
    let waits = |host: &mut Host, machine: &Machine| machine.status(host, "unshare_enomem");
    let at_first: Vec<u64> = machines
        .iter()
        .map(|machine| waits(host, machine))
        .collect::<Result<_>>()?;
    wait_until("the guests find no memory", STARVE_LIMIT, || {
        let (mut stood, mut stopped) = (0, 0);
        for ((machine, before), at_first) in machines.iter().zip(before).zip(&at_first) {
            if machine.status(host, "stood")? > *before {
                stood += 1;
                stopped += 1;
            } else if waits(host, machine)? >= at_first + TRIED {
                stopped += 1;
            }
        }
        Ok((stopped == machines.len()).then_some(stood == machines.len()))
    })
}

/// Waits for what the guests have read, which must be all that they `had`.
fn answered(
    host: &mut Host,
    machines: &mut [Machine],
    had: &[lacuna_guest::FilesSeen],
    sent: &[Sent],
) -> Result<()> {
    let since = Instant::now();
    for ((machine, had), sent) in machines.iter_mut().zip(had).zip(sent) {
        let report = machine.guest.answer(sent, FILES_LIMIT)?;
        let seen = machine.right(report)?;
        machine.same(had, &seen)?;
        let figure = format!("{}_seconds_until_read", machine.kind.name);
        host.figure(&figure, since.elapsed().as_secs_f64())?;
    }
    Ok(())
}
