//! How long a share round stops the guest, on a machine whose clock counts instructions.

use std::time::Duration;

use lacuna_core::{MAX_SLICE_NS, MAX_SLICE_PAGES, MAX_SLICE_UNITS};
use lacuna_guest::Task;

use crate::failure::{Result, ensure};
use crate::guest::Plan;
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(300);
/// What a slice may take beyond [`MAX_SLICE_NS`]: it looks at its clock between two pages or regions, and the flush and
/// the way out come after the last look.
const LAST_LOOK_NS: u64 = 500_000;

/// Every slice keeps to its bounds of work and of time.
pub(crate) fn bounded(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: 384,
        ..Plan::stock("pause", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    let status = host.lacuna(&["status", guest.name])?;
    let shared = status.number("shared")?;
    for name in ["shared", "slices", "pauses", "pause_total_ns", "pause_longest_ns"] {
        host.figure(name, status.number(name)?)?;
    }
    let units = status.number("slice_most_units")?;
    let pages = status.number("slice_most_pages")?;
    let longest = status.number("pause_longest_ns")?;
    host.figure("slice_most_units", units)?;
    host.figure("slice_most_pages", pages)?;
    host.figure(
        "instructions_a_shared_page",
        status.number("pause_total_ns")? / shared.max(1),
    )?;
    ensure(
        units <= MAX_SLICE_UNITS,
        "the most work of a slice",
        &format!("at most {MAX_SLICE_UNITS} units"),
        &units.to_string(),
    )?;
    ensure(
        (1..=MAX_SLICE_PAGES).contains(&pages),
        "the most pages of a slice",
        &format!("1 to {MAX_SLICE_PAGES}"),
        &pages.to_string(),
    )?;
    ensure(
        longest <= MAX_SLICE_NS + LAST_LOOK_NS,
        "the longest pause",
        &format!("at most {} instructions", MAX_SLICE_NS + LAST_LOOK_NS),
        &format!("{longest} instructions"),
    )?;
    guest.check_health()
}
