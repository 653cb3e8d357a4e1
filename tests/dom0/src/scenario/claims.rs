//! Memory that Xen keeps for a domain which is being built (a claim) is not for guests that take back what
//! they were given back.

use std::time::{Duration, Instant};

use lacuna_core::Gfn;
use lacuna_guest::Task;

use crate::engine::Direct;
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{PAGES_PER_MIB, Plan};
use crate::host::{Host, claimed_mib, settled_free_mib, wait_until};

/// How long the agent may take for what touches much of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(240);
/// How long the guest may take to find that there is no memory.
const STARVE_LIMIT: Duration = Duration::from_secs(120);
/// How long the guest is kept waiting: less than half of what Linux takes for a soft lockup.
const STARVED: Duration = Duration::from_secs(6);
/// The memory of the guest, what it takes back at once, and what is free and not claimed then, in MiB.
const GUEST_MIB: u32 = 256;
const TAKEN_MIB: u32 = 128;
const LEFT_MIB: u64 = 24;
/// The memory of the domain with the claim to begin with, in MiB.
const NEIGHBOUR_MIB: u32 = 128;
/// Where the domain with the claim gets more memory, above what it has: 1 GiB.
const MORE_AT: Gfn = Gfn::new(0x4_0000);
/// How much more, in blocks of 2 MiB, and pages of a block.
const MORE_BLOCKS: u64 = 8;
const BLOCK_PAGES: u64 = 512;
/// `ENOMEM` (`xen/include/public/errno.h`).
const ENOMEM: i32 = 12;

/// A guest whose memory was given back takes it again while nearly all of the host's is claimed: it waits,
/// the claim stays whole and is of use to its domain, and the guest goes on unharmed when the claim is given
/// up. What guests were given back cannot be claimed a second time.
pub(crate) fn claims(host: &mut Host) -> Result<()> {
    let empty = settled_free_mib()?;
    let mut guest = host.create(&Plan {
        mib: GUEST_MIB,
        ..Plan::stock("guest", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    guest.give_back(host)?;
    let plan = Plan {
        mib: NEIGHBOUR_MIB,
        ..Plan::stock("neighbour", "6.12")
    };
    host.xl(&["create", "-q", "-p", &plan.write()?])?;
    let neighbour = Direct::open(domain(host, plan.name)?)?;
    let free = settled_free_mib()?;
    host.xl(&["mem-max", plan.name, &format!("{}m", free + u64::from(GUEST_MIB))])?;

    let (own, memory) = (neighbour.pages()?, neighbour.host_memory()?);
    let refused = neighbour.claim(own + memory.free + 1);
    ensure(
        matches!(&refused, Err(error) if error.errno() == Some(ENOMEM)),
        "a claim to more than is free, while more could be taken back",
        "ENOMEM",
        &format!("{refused:?}"),
    )?;
    let claim = memory.free - LEFT_MIB * PAGES_PER_MIB;
    neighbour
        .claim(own + claim)
        .map_err(|error| differs("a claim to less than is free", "granted", &error.to_string()))?;
    equal(
        "what `xl info` calls claimed, in MiB",
        &(claim / PAGES_PER_MIB),
        &claimed_mib()?,
    )?;
    host.note(&format!("{} of {free} MiB are claimed", claim / PAGES_PER_MIB))?;

    let grow = guest.send(Task::Grow { mib: TAKEN_MIB })?;
    wait_until("the guest waits for memory", STARVE_LIMIT, || {
        Ok((guest.waits(host)? > 0).then_some(()))
    })?;
    let until = Instant::now() + STARVED;
    while Instant::now() < until {
        stays_whole(&neighbour, claim)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    host.figure(
        "free_mib_while_claimed",
        neighbour.host_memory()?.free / PAGES_PER_MIB,
    )?;
    host.figure("claimed_mib", claim / PAGES_PER_MIB)?;

    host.note("the domain with the claim makes use of it")?;
    neighbour.populate(MORE_AT, MORE_BLOCKS)?;
    equal(
        "pages of the domain with the claim",
        &(own + MORE_BLOCKS * BLOCK_PAGES),
        &neighbour.pages()?,
    )?;
    stays_whole(&neighbour, claim - MORE_BLOCKS * BLOCK_PAGES)?;
    let waited = guest.waits(host)?;
    host.figure("waits", waited)?;

    host.note("the claim is given up")?;
    neighbour
        .claim(0)
        .map_err(|error| differs("giving up a claim", "done", &error.to_string()))?;
    guest.grown(&grow, TAKEN_MIB, AGENT_LIMIT)?;
    guest.check_health()?;
    guest.destroy(host)?;
    host.xl(&["destroy", plan.name])?;
    host.expect_free(empty)
}

/// Fails unless `claim` pages are claimed, and free.
fn stays_whole(neighbour: &Direct, claim: u64) -> Result<()> {
    let memory = neighbour.host_memory()?;
    equal("pages claimed", &claim, &memory.claimed)?;
    ensure(
        memory.free >= claim,
        "free pages, with a guest that wants some",
        &format!("the {claim} that are claimed, at least"),
        &memory.free.to_string(),
    )
}

/// Returns the number of the domain called `name`.
fn domain(host: &mut Host, name: &str) -> Result<u16> {
    let text = host.xl(&["domid", name])?;
    text.trim()
        .parse()
        .map_err(|_| differs("`xl domid`", "a number", &text))
}
