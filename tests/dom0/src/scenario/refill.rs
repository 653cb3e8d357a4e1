//! A guest that takes much of its memory again gets it back by blocks of 2 MiB once its faults have run
//! through some, not a page a fault.

use std::time::Duration;

use lacuna_guest::Task;

use super::race::work;
use crate::failure::{Result, ensure, equal};
use crate::guest::{Guest, PAGES_PER_MIB, Plan};
use crate::host::Host;

/// How long the agent may take for what touches much of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// The guest's memory, what it takes again at once, and what its work uses on two virtual CPUs, in MiB.
const GUEST_MIB: u32 = 512;
const TAKEN_MIB: u32 = 192;
const WORK_MIB: u32 = 192;
/// Pages of a block.
const BLOCK_PAGES: u64 = 512;
/// Pages for each fault, at least. It is more where the guest runs through one block after the other; its
/// kernel takes blocks for things of its own as well.
const PAGES_A_FAULT: u64 = 2;
/// Rounds beside the work.
const ROUNDS: &str = "30";

/// What the guest took off zero frames since it began.
#[derive(Clone, Copy)]
struct Taken {
    pages: u64,
    blocks: u64,
}

impl Taken {
    fn of(host: &mut Host, guest: &Guest) -> Result<Self> {
        let status = host.lacuna(&["status", guest.name])?;
        // Nothing else takes pages off zero frames here: every page shared is still there, or was taken.
        equal(
            "pages shared, against those taken and those that are still given back",
            &status.number("shared")?,
            &(status.number("unshared")? + status.number("zero_gfns")?),
        )?;
        Ok(Self {
            pages: status.number("unshared")?,
            blocks: status.number("refilled")?,
        })
    }

    const fn since(self, before: Self) -> Self {
        Self {
            pages: self.pages - before.pages,
            blocks: self.blocks - before.blocks,
        }
    }

    const fn faults(self) -> u64 {
        self.pages - self.blocks * (BLOCK_PAGES - 1)
    }
}

/// All of it: taking memory once, taking it again after it was given back again, and work on two virtual
/// CPUs.
pub(crate) fn blocks(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: GUEST_MIB,
        vcpus: 2,
        ..Plan::stock("refill", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    for time in ["first", "again"] {
        let shared = host.lacuna(&["dedup", guest.name, "--until-stable"])?;
        host.figure(&format!("superpages_{time}"), shared.number("superpages")?)?;
        take(host, &mut guest, time)?;
        guest.order(Task::Shrink, AGENT_LIMIT)?;
    }
    host.note("share rounds while the guest works on two virtual CPUs")?;
    let before = Taken::of(host, &guest)?;
    work(&mut guest, WORK_MIB, 1)?;
    host.lacuna(&["dedup", guest.name, "--rounds", ROUNDS])?;
    let (_, checked) = guest.end_work(AGENT_LIMIT)?;
    let working = Taken::of(host, &guest)?.since(before);
    host.figure("pages_working", working.pages)?;
    host.figure("blocks_working", working.blocks)?;
    host.figure("pages_checked", checked)?;
    ensure(checked > 0, "pages checked", "more than none", "none")?;
    guest.check_health()
}

/// Lets the guest take memory, which must all be zero, and mostly by blocks.
fn take(host: &mut Host, guest: &mut Guest, time: &str) -> Result<()> {
    let before = Taken::of(host, guest)?;
    guest.grow(TAKEN_MIB, AGENT_LIMIT)?;
    let taken = Taken::of(host, guest)?.since(before);
    host.figure(&format!("pages_{time}"), taken.pages)?;
    host.figure(&format!("blocks_{time}"), taken.blocks)?;
    host.figure(&format!("faults_{time}"), taken.faults())?;
    ensure(
        taken.pages * 4 >= u64::from(TAKEN_MIB) * PAGES_PER_MIB * 3,
        "pages taken off zero frames",
        "three quarters of what the guest allocated, at least",
        &taken.pages.to_string(),
    )?;
    ensure(
        taken.faults() * PAGES_A_FAULT <= taken.pages,
        "faults",
        &format!("at most one for {PAGES_A_FAULT} of {} pages", taken.pages),
        &taken.faults().to_string(),
    )
}
