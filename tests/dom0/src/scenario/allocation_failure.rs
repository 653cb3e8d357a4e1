//! Allocations of the hypervisor fail on purpose: each that an operation of Lacuna makes, and many of those
//! that guests need which take back memory.
//!
//! A site is an operation with a chain of callers of an allocator. Each site is made to fail by itself, at
//! its first allocation and at later ones (a `vmalloc()` half way has more to undo), and then once more: what
//! the first failure has cost the second must not cost again, or it has leaked.

use std::time::Duration;

use lacuna_guest::Task;

use super::content::{AGENT_LIMIT, Known, end_churn, intact};
use super::content_balloon::{MIB, UNTOUCHED, give_up};
use super::race::work;
use crate::alloc_failure::{Fail, Failures};
use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{FLOOR_MIB, Host, free_mib, settled_free_mib, wait_until};
use crate::tool::Answer;

/// Which allocation of a site fails.
const NTHS: [u64; 3] = [1, 2, 5];
/// Sites of a command, at most: it would never end otherwise.
const MOST_SITES: u64 = 100;
/// Allocations without which two pages cannot be merged, at least: two for each page.
const MERGE_SITES: u64 = 4;
/// Pages by which the host's free memory may differ between two failures at the same site: what Xen's
/// allocator of small blocks keeps for next time, and what other work in dom0 needs meanwhile.
const SLACK_PAGES: u64 = 2;
/// Equal pages: so many contents, so many pages of each, and pages like no other.
const KINDS: u32 = 32;
const COPIES: u32 = 48;
const UNIQUE: u32 = 256;
/// The trust group of the guests.
const GROUP: &str = "tenants";
/// A guest that is in none, and what shares its pages.
const THREE: &str = "three";
const OWN_INDEX: [&str; 4] = ["dedup", THREE, "--mode", "dedup"];
/// `lacuna`'s exit status for what is neither a refusal nor a mistake of the caller.
const FAILED: i32 = 1;
/// Of the allocations made for guests, one in so many fails while a guest takes so many MiB again. A failed
/// one is tried again after 20 ms.
const ROUNDS: [(u64, u32); 3] = [(2, 16), (3, 24), (7, 64)];
/// The same while the guest works, and how much it works with, in MiB.
const WORK_FAILS: u64 = 5;
const WORK_MIB: u32 = 96;
/// The same while its balloon gives memory up.
const BALLOON_FAILS: u64 = 3;
/// The same while the host has no memory left.
const STARVED_FAILS: u64 = 7;
/// What a neighbour leaves of the host's memory, in MiB.
const LEFT_MIB: u64 = 32;
/// What a guest takes then: more than there is.
const WANTED_MIB: u32 = 96;
/// How long the host is left without memory: less than Linux takes for a soft lockup.
const STARVED: Duration = Duration::from_secs(8);
/// How long waiting may take.
const HOST_LIMIT: Duration = Duration::from_secs(240);

/// Functions in which allocations, or calls that lead to them, must have failed, and how many of these at
/// least. Which functions are inlined is up to the compiler.
const EXPECTED: &[(&str, usize)] = &[
    // The domain's state, the core's, and the buffer: get_state() and do_op() are inlined.
    ("lacuna_domctl", 3),
    // The header; and a chunk of the bitmap: the page of numbers, its own, and the nodes of two trees.
    ("lacuna_x_make_header", 1),
    ("lacuna_bitmap_extend", 2),
    // The group and its index: join_group() is inlined.
    ("lacuna_set_group", 2),
    // A page of the last round's hashes, or of a domain's own index, and the nodes on the way to it.
    ("lacuna_x_extend", 2),
    // What a shared frame has, and what each page on it has.
    ("nominate_page", 2),
    // A page table, to break up a superpage with: for both stages, and for the balloon.
    ("map_zero", 1),
    ("protect", 1),
    ("lacuna_remove", 1),
    // The same and a page for a guest's writes, a copy, and a block.
    ("lacuna_unshare", 2),
    ("__mem_sharing_unshare_page", 2),
    ("lacuna_refill_block", 1),
];

/// All of it.
pub(crate) fn everywhere(host: &mut Host) -> Result<()> {
    let empty = settled_free_mib()?;
    let mut failures = Failures::open()?;
    let mut one = guest(host, "one")?;
    let mut two = guest(host, "two")?;
    let contents = [&mut one, &mut two].map(|guest| Known::make(guest, KINDS, COPIES, UNIQUE));
    for known in contents {
        known?;
    }
    operations(host, &mut failures, &mut one)?;
    own_index(host, &mut failures)?;
    new_guests(host, &mut failures)?;
    no_merge(host, &mut failures)?;
    host.lacuna(&["dedup", two.name, "--mode", "dedup", "--trust-group", GROUP])?;
    guests(host, &mut failures, &mut one, &mut two)?;
    overcommit(host, &mut failures, &mut one, &mut two)?;

    host.note(&format!(
        "one in {BALLOON_FAILS} fails while a guest gives memory up"
    ))?;
    failures.begin(Fail::Guests, BALLOON_FAILS)?;
    let given = give_up(host, &mut one);
    let report = failures.end()?;
    given?;
    host.figure("failed_ballooning", report.failures)?;
    ensure(report.failures > 0, "allocations that failed", "some", "none")?;

    for guest in [&mut one, &mut two] {
        intact(guest, "in the end")?;
        guest.check_health_after_waiting()?;
    }
    failures.tell(host, EXPECTED)?;
    one.destroy(host)?;
    two.destroy(host)?;
    host.expect_free(empty)
}

fn guest(host: &mut Host, name: &'static str) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        mib: u32::try_from(MIB).unwrap_or(u32::MAX),
        vcpus: 2,
        // The balloon's pages are then given up as they are, be they on shared frames.
        extra: UNTOUCHED,
        ..Plan::stock(name, "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    Ok(guest)
}

/// Every operation, with each of its sites failing.
fn operations(host: &mut Host, failures: &mut Failures, guest: &mut Guest) -> Result<()> {
    let name = guest.name;
    // The first one makes what Xen keeps for the domain.
    sweep(host, failures, guest, "status", &["status", name])?;
    let had = consistent(host, guest, None)?;
    sweep(host, failures, guest, "attach", &["attach", name])?;
    sweep(
        host,
        failures,
        guest,
        "scan",
        &["scan", name, "--bitmap", "/tmp/bitmap"],
    )?;
    sweep(host, failures, guest, "explain", &["explain", name, "0x1000"])?;
    sweep(host, failures, guest, "share", &["dedup", name])?;
    sweep(host, failures, guest, "estimate", &["estimate", name])?;
    let content = ["dedup", name, "--mode", "introdedup", "--trust-group", GROUP];
    sweep(host, failures, guest, "content", &content)?;
    content_of_a_writer(host, failures, guest)?;
    sweep(host, failures, guest, "detach", &["detach", name])?;
    host.lacuna(&["attach", name])?;
    consistent(host, guest, Some(had))?;
    intact(guest, "after the operations that failed")
}

/// Runs `command` again and again, each time with another site failing, until it has none left and so
/// succeeds.
fn sweep(
    host: &mut Host,
    failures: &mut Failures,
    guest: &Guest,
    label: &str,
    command: &[&str],
) -> Result<()> {
    host.note(&format!(
        "each allocation of `lacuna {}` fails",
        command.join(" ")
    ))?;
    let mut failed = 0;
    let mut errors = 0;
    let mut lost = 0;
    for nth in NTHS {
        if command[0] == "attach" {
            host.lacuna(&["detach", guest.name])?;
        }
        failures.forget()?;
        let mut sites = 0;
        while let (true, answer) = once(host, failures, command, Fail::NewSite, nth)? {
            errors += u64::from(answer.status != 0);
            if answer.status != 0 && command[0] == "attach" {
                let state = host.lacuna(&["status", guest.name])?.body["state"].clone();
                equal(
                    "the profile's state after a failed attach",
                    &"empty".into(),
                    &state,
                )?;
            }
            let before = Held::of(failures, guest, command)?;
            once(host, failures, command, Fail::SameSite, nth)?;
            lost = lost.max(before.lost(&Held::of(failures, guest, command)?, command)?);
            sites += 1;
            ensure(
                sites <= MOST_SITES,
                "sites of one command",
                &format!("at most {MOST_SITES}"),
                "more",
            )?;
        }
        failed += sites;
    }
    host.figure(&format!("sites_{label}"), failed)?;
    host.figure(&format!("errors_{label}"), errors)?;
    host.figure(&format!("lost_{label}"), lost)
}

/// The content stage of a guest that is in no trust group, and has an index of its own.
fn own_index(host: &mut Host, failures: &mut Failures) -> Result<()> {
    let three = three(host)?;
    sweep(host, failures, &three, "own_index", &OWN_INDEX)?;
    three.destroy(host).map(drop)
}

/// The same of guests of which nothing is shared so far, each with another site failing: superpages are
/// broken up once.
fn new_guests(host: &mut Host, failures: &mut Failures) -> Result<()> {
    host.note("each allocation of the content stage fails in a new guest")?;
    failures.forget()?;
    let mut sites = 0_u64;
    loop {
        let three = three(host)?;
        // Without an index the command fails, and changes nothing. The first one that has it shares all that
        // is equal.
        let failed = loop {
            let (failed, answer) = once(host, failures, &OWN_INDEX, Fail::NewSite, 1)?;
            if answer.status == 0 {
                break failed;
            }
        };
        three.destroy(host)?;
        if !failed {
            return host.figure("sites_new_guests", sites);
        }
        sites += 1;
        ensure(
            sites <= MOST_SITES,
            "sites of one command",
            &format!("at most {MOST_SITES}"),
            "more",
        )?;
    }
}

/// The content stage of new guests in which all allocations of a site fail, one site after another. Where no
/// two pages could be merged, none has come to be shared.
fn no_merge(host: &mut Host, failures: &mut Failures) -> Result<()> {
    host.note("all allocations of a site fail in a new guest")?;
    failures.forget()?;
    let mut without = 0_u64;
    for _ in 0..MOST_SITES {
        let three = three(host)?;
        let (failed, answer) = once(host, failures, &OWN_INDEX, Fail::WholeSite, 1)?;
        let status = host.lacuna(&["status", THREE])?;
        let merged = status.number("content_merged")?;
        let sharing = status.number("content_gfns")?;
        three.destroy(host)?;
        if !failed {
            ensure(merged > 0, "pages merged without a failure", "some", "none")?;
            host.figure("sites_without_a_merge", without)?;
            // What a shared frame has and what each page on it has, for both pages.
            return ensure(
                without >= MERGE_SITES,
                "sites without which nothing is merged",
                &format!("at least {MERGE_SITES}"),
                &without.to_string(),
            );
        }
        if answer.status == 0 && merged == 0 {
            equal("pages that share a frame, with none merged", &0, &sharing)?;
            without += 1;
        }
    }
    Err(differs(
        "sites of one command",
        &format!("at most {MOST_SITES}"),
        "more",
    ))
}

fn three(host: &mut Host) -> Result<Guest> {
    let three = host.create(&Plan {
        mib: 128,
        ..Plan::stock(THREE, "6.12")
    })?;
    // What Xen keeps for the domain is made once: failing there once more would have a whole command succeed.
    host.lacuna(&["status", THREE])?;
    Ok(three)
}

/// The content stage while the guest writes pages that are equal to others: each round has some to merge, and
/// so all that merging allocates can fail.
fn content_of_a_writer(host: &mut Host, failures: &mut Failures, guest: &mut Guest) -> Result<()> {
    host.note("each allocation of the content stage fails while the guest writes")?;
    let command = ["dedup", guest.name, "--mode", "dedup", "--rounds", "1"];
    guest.order(Task::ChurnStart, AGENT_LIMIT)?;
    let mut sites = 0_u64;
    failures.forget()?;
    while once(host, failures, &command, Fail::NewSite, 1)?.0 {
        sites += 1;
    }
    host.figure("sites_content_written", sites)?;
    host.figure("pages_written", end_churn(guest)?)
}

/// Runs `command` once, with one allocation failing: it says so and fails, or does with less. Returns whether
/// there was an allocation to fail, and the answer.
fn once(
    host: &mut Host,
    failures: &mut Failures,
    command: &[&str],
    what: Fail,
    nth: u64,
) -> Result<(bool, Answer)> {
    failures.begin(what, nth)?;
    let answer = host.ask_lacuna(command)?;
    let report = failures.end()?;
    let failed = report.failures > 0;
    if answer.status != 0 {
        let why = answer.body["error"].as_str().unwrap_or_default();
        ensure(
            failed && answer.status == FAILED && why.contains("no memory"),
            &format!("lacuna {} without memory", command.join(" ")),
            "exit status 1, and a word about memory",
            &format!("{}, {}", answer.status, answer.body),
        )?;
    }
    Ok((failed, answer))
}

/// What the host has and the guest holds, or what is put aside for it, which a failure must not change.
struct Held {
    free: u64,
    guest: u64,
    sharing: u64,
}

impl Held {
    fn of(failures: &mut Failures, guest: &Guest, command: &[&str]) -> Result<Self> {
        let direct = Direct::open(guest.domain)?;
        // Asking makes what Xen keeps for the domain, which is for `status` to do: it comes first, and shares
        // nothing.
        let (sharing, reserve) = if command[0] == "status" {
            (0, 0)
        } else {
            let statistics = direct.engine.statistics().map_err(|error| refused(&error))?;
            (statistics.content_gfns, statistics.reserve)
        };
        Ok(Self {
            free: failures.end()?.free_pages,
            guest: direct.pages()? + reserve,
            sharing,
        })
    }

    /// Pages that are gone, neither free nor the guest's; fails if they are too many. Where pages have begun
    /// to share frames, these frames are nobody's.
    fn lost(&self, after: &Self, command: &[&str]) -> Result<u64> {
        let lost = (self.free + self.guest).saturating_sub(after.free + after.guest);
        if after.sharing > self.sharing {
            return Ok(0);
        }
        ensure(
            lost <= SLACK_PAGES,
            &format!("pages lost by a second failure of {}", command.join(" ")),
            &format!("at most {SLACK_PAGES}"),
            &lost.to_string(),
        )?;
        Ok(lost)
    }
}

/// Fails unless the counters of the paused guest agree with one another, and its pages with those that it was
/// given: `had`, where that is known. Returns what it has.
fn consistent(host: &mut Host, guest: &Guest, had: Option<u64>) -> Result<u64> {
    guest.pause(host)?;
    let status = host.lacuna(&["status", guest.name])?;
    let pages = Direct::open(guest.domain)?.pages()?;
    guest.unpause(host)?;
    let counter = |name: &str| status.number(name);
    equal(
        "pages shared, against those taken back and those that are still given back",
        &(counter("shared")? + counter("content_zeroed")?),
        &(counter("unshared")? + counter("zero_gfns")?),
    )?;
    let has = pages + counter("zero_gfns")? + counter("content_gfns")?;
    equal("pages of its own and on shared frames", &had.unwrap_or(has), &has)?;
    Ok(has)
}

/// Guests that take back memory, and one that works, while allocations fail at random.
fn guests(host: &mut Host, failures: &mut Failures, one: &mut Guest, two: &mut Guest) -> Result<()> {
    let had = consistent(host, one, None)?;
    for (nth, mib) in ROUNDS {
        host.lacuna(&["dedup", one.name, "--mode", "introdedup", "--until-stable"])?;
        host.note(&format!("one in {nth} fails while a guest takes {mib} MiB"))?;
        let waits = one.waits(host)?;
        failures.begin(Fail::Guests, nth)?;
        let grown = one.grow(mib, AGENT_LIMIT);
        let rewritten = two.order(Task::PatternRewrite { every: 4 }, AGENT_LIMIT);
        let report = failures.end()?;
        grown?;
        rewritten?;
        let waits = one.waits(host)? - waits;
        host.figure(&format!("allocations_one_in_{nth}"), report.allocations)?;
        host.figure(&format!("failed_one_in_{nth}"), report.failures)?;
        host.figure(&format!("waits_one_in_{nth}"), waits)?;
        ensure(waits > 0, "writes that found no memory", "some", "none")?;
        for guest in [&mut *one, &mut *two] {
            intact(guest, "after allocations failed")?;
        }
        consistent(host, one, Some(had))?;
        one.order(Task::Shrink, AGENT_LIMIT)?;
        host.lacuna(&["dedup", two.name, "--mode", "dedup"])?;
    }
    host.note(&format!("one in {WORK_FAILS} fails while guests work"))?;
    failures.begin(Fail::Guests, WORK_FAILS)?;
    let worked = both_work(host, one, two);
    let report = failures.end()?;
    worked?;
    host.figure("failed_working", report.failures)
}

/// Work in one guest and writing in the other, through rounds over both.
fn both_work(host: &mut Host, one: &mut Guest, two: &mut Guest) -> Result<()> {
    work(one, WORK_MIB, 7)?;
    two.order(Task::ChurnStart, AGENT_LIMIT)?;
    host.lacuna(&["dedup", one.name, "--mode", "introdedup", "--rounds", "4"])?;
    host.lacuna(&["dedup", two.name, "--mode", "dedup", "--rounds", "4"])?;
    let (blocks, pages) = one.end_work(AGENT_LIMIT)?;
    host.figure("blocks_working", blocks)?;
    host.figure("pages_checked_working", pages)?;
    host.figure("pages_written_working", end_churn(two)?)
}

/// The same on a host that has too little memory as it is.
fn overcommit(host: &mut Host, failures: &mut Failures, one: &mut Guest, two: &mut Guest) -> Result<()> {
    for guest in [&*one, &*two] {
        host.lacuna(&["dedup", guest.name, "--mode", "dedup"])?;
    }
    host.lacuna(&["dedup", one.name, "--until-stable"])?;
    host.crowd(settled_free_mib()?, LEFT_MIB)?;
    failures.begin(Fail::Guests, STARVED_FAILS)?;
    let grow = one.send(Task::Grow { mib: WANTED_MIB })?;
    let rewrite = two.send(Task::PatternRewrite { every: 3 })?;
    wait_until("the host has no memory left for guests", HOST_LIMIT, || {
        Ok((free_mib()? <= FLOOR_MIB + 1).then_some(()))
    })?;
    std::thread::sleep(STARVED);
    host.figure("free_mib_starved", free_mib()?)?;
    host.note("the neighbour goes")?;
    host.xl(&["destroy", "neighbour"])?;
    let grown = one.grown(&grow, WANTED_MIB, HOST_LIMIT);
    let rewritten = two.answer(&rewrite, HOST_LIMIT);
    let report = failures.end()?;
    host.figure("failed_overcommitted", report.failures)?;
    rewritten?;
    grown?;
    for guest in [&mut *one, &mut *two] {
        intact(guest, "after the host was short of memory")?;
    }
    one.order(Task::Shrink, AGENT_LIMIT).map(drop)
}
