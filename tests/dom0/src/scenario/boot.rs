//! The emulated host itself: a stock guest boots, does its work, and goes away again with all its memory.

use std::fs;
use std::time::Duration;

use lacuna_guest::{Report, Task};

use crate::failure::{Result, differs, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, free_mib, settled_free_mib};

/// How long the agent may take to fill the guest's memory.
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// Pages that the kernel may take for answering `/proc/buddyinfo` and the like, and for refilling its
/// per-processor lists (`high_min` of a pageset is a few hundred on guests of this size).
const ASKING_PAGES: u64 = 512;

pub(crate) fn xl_6_12(host: &mut Host) -> Result<()> {
    boots_and_goes(host, "6.12")
}

pub(crate) fn xl_6_1(host: &mut Host) -> Result<()> {
    boots_and_goes(host, "6.1")
}

pub(crate) fn account_6_12(host: &mut Host) -> Result<()> {
    account(host, "6.12")
}

pub(crate) fn account_6_1(host: &mut Host) -> Result<()> {
    account(host, "6.1")
}

/// The guest's account of its free pages, which other scenarios take for the truth, adds up to what the
/// kernel counts by another way: the block counts of `/proc/buddyinfo`.
fn account(host: &mut Host, series: &'static str) -> Result<()> {
    let mut guest = host.create(&Plan::stock("account", series))?;
    guest.order(Task::Fill, FILL_LIMIT)?;
    let account = guest.start_account()?;
    account.wait_still(20, FILL_LIMIT)?;
    let before = account.read()?;
    let Report::Health { buddy_pages, .. } = guest.order(Task::Health, FILL_LIMIT)? else {
        return Err(differs("the agent's answer", "its health", "something else"));
    };
    account.wait_still(20, FILL_LIMIT)?;
    let after = account.read()?;
    host.figure("guest_pages", after.pages)?;
    host.figure("free_truth", after.free)?;
    host.figure("free_buddyinfo", buddy_pages)?;
    // Asking for the count takes pages itself, so it lies between two stills, give or take what was freed
    // between.
    let slack = before.free.abs_diff(after.free) + ASKING_PAGES;
    ensure(
        buddy_pages.abs_diff(after.free) <= slack,
        "free pages by /proc/buddyinfo",
        &format!("{} by /proc/kpageflags, within {slack}", after.free),
        &buddy_pages.to_string(),
    )
}

fn boots_and_goes(host: &mut Host, series: &'static str) -> Result<()> {
    let before = settled_free_mib()?;
    let mut guest = host.create(&Plan::stock("stock", series))?;
    ensure(
        guest.release.starts_with(series),
        "the guest's kernel",
        series,
        &guest.release,
    )?;
    equal(
        "domains",
        &vec!["Domain-0".to_owned(), "stock".to_owned()],
        &host.domains()?,
    )?;
    let with_guest = free_mib()?;
    ensure(
        with_guest + 512 <= before,
        "host memory with a guest of 512 MiB",
        &format!("at most {} MiB free", before.saturating_sub(512)),
        &format!("{with_guest} MiB free"),
    )?;
    guest.pause(host)?;
    let listing = host.xl(&["list", guest.name])?;
    // The letters are r(unning), b(locked), p(aused), …; one line below the heading.
    let states = listing
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .nth(4)
        .unwrap_or_default();
    ensure(states.contains('p'), "the paused guest's state", "p", states)?;
    guest.unpause(host)?;
    host.note("filling the guest's free memory")?;
    guest.order(Task::Fill, FILL_LIMIT)?;
    guest.grow(100, FILL_LIMIT)?;
    guest.check_health()?;
    let took = guest.destroy(host)?;
    host.figure("destroy_ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX))?;
    let after = settled_free_mib()?;
    // Xen keeps a few pages of its own heap per processor and so on: a guest's worth must not be missing.
    ensure(
        after + 2 >= before,
        "host memory after the guest",
        &format!("{before} MiB free"),
        &format!("{after} MiB free"),
    )
}

/// Dom0 can read the hypervisor's own symbols, and none is longer than the hypervisor has room for: it prints
/// them in call traces, too.
pub(crate) fn symbols(host: &mut Host) -> Result<()> {
    // `KSYM_NAME_LEN` (xen/include/xen/symbols.h).
    const LONGEST: usize = 127;
    let text = fs::read("/proc/xen/xensyms")?;
    let text = String::from_utf8_lossy(&text);
    // An address, a letter for the kind, the name.
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.splitn(3, ' ').nth(2))
        .collect();
    let of_core = names.iter().filter(|name| name.contains("lacuna_core")).count();
    host.figure("symbols", names.len())?;
    host.figure("symbols_of_the_core", of_core)?;
    ensure(of_core > 0, "symbols of the core", "some", "none")?;
    let longest = names
        .iter()
        .max_by_key(|name| name.len())
        .copied()
        .unwrap_or_default();
    host.figure("longest", longest.len())?;
    ensure(
        longest.len() <= LONGEST,
        "the hypervisor's longest symbol",
        &format!("{LONGEST} bytes at most"),
        longest,
    )?;
    // It has come to no harm by being asked.
    host.xl(&["info"]).map(drop)
}
