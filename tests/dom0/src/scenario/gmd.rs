//! Rounds of Intro, Dedup and `IntroDedup` against a user-level engine's, in one run on the same guest; and
//! that engine. It is first compared with the guest's own account: a baseline that is wrong measures nothing.
//!
//! Intro is compared twice. *fresh*: two guests as they boot, alike, with memory in entries of 2 MiB, each
//! for one side. And like the other modes on one guest, whose memory the baseline has split into single pages
//! by then, for good.
//!
//! The machine's clock counts instructions and there is one processor, so a round's time is all that the
//! machine did meanwhile, and does not depend on how busy the emulating machine is.

use std::time::{Duration, Instant};

use lacuna::xen::engine::{Engine, EngineError, ScanOf};
use lacuna_guest::{Report, Task};
use serde_json::{Value, json};

use super::content::{Known, intact};
use crate::baseline::{Gmd, Mode, Round};
use crate::engine::{Direct, refused};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Account, Guest, PAGES_PER_MIB, Plan};
use crate::host::{Host, settled_free_mib};

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(600);
/// The guest's memory in MiB.
const PLAN_MIB: u32 = 256;
/// Captures in a row that must agree before the guest counts as still.
const STILL: u64 = 8;
/// Contents that have copies, how many pages have each, and pages that are like no other.
const KINDS: u32 = 32;
const COPIES: u32 = 128;
const UNIQUE: u32 = 1024;
/// Rounds of the baseline while the guest works.
const BUSY_ROUNDS: u32 = 3;
/// Memory that it uses at most meanwhile, in MiB.
const BUSY_MIB: u32 = 100;
/// What the baseline must share of what is free.
const SHARED_PER_MILLE: u64 = 990;
/// Two rounds are alike when their pages are, to this many in a thousand: what a guest has free differs by as
/// much from one moment to another.
const ALIKE_PER_MILLE: u64 = 950;
/// What Xen may keep of the memory that the baseline saves: a node of the reverse map and a part of the
/// paging pool for each page. In thousandths.
const KEPT_PER_MILLE: u64 = 30;
/// By how much Intro must be faster than the baseline on a fresh guest, by the issue that this scenario is
/// for.
const FASTER: u64 = 10;
/// By how much on one whose memory is split: 6.8 to 9.2 were measured, probably by how much of what it had
/// free lay in whole regions.
const FASTER_SPLIT: u64 = 6;
/// Rounds of the content stage until it has shared what it found: the first one learns which pages hold
/// still.
const CONTENT_ROUNDS: u32 = 2;

/// The cost and the result of one side's rounds.
struct Taken {
    instructions: u64,
    /// Of them, those between the call of the driver and its return.
    in_calls: u64,
    calls: u64,
    /// Pages given back.
    pages: u64,
}

impl Taken {
    fn json(&self) -> Value {
        json!({
            "instructions": self.instructions,
            "in_calls": self.in_calls,
            "calls": self.calls,
            "pages": self.pages,
        })
    }
}

pub(crate) fn against_baseline(host: &mut Host) -> Result<()> {
    let guest = filled(host, "fresh")?;
    let lacuna = lacuna_rounds(&Direct::open(guest.domain)?.engine, Mode::Intro, 1)?;
    guest.destroy(host)?;
    let mut guest = filled(host, "gmd")?;
    let mut gmd = Gmd::open(guest.domain)?;
    let engine = Direct::open(guest.domain)?.engine;
    let baseline = truth(host, &mut guest, &mut gmd)?;
    host.figure("intro_fresh_baseline", baseline.json())?;
    host.figure("intro_fresh_lacuna", lacuna.json())?;
    faster("fresh", &baseline, &lacuna, FASTER)?;
    busy(host, &mut guest, &mut gmd)?;
    for mode in [Mode::Intro, Mode::Dedup, Mode::IntroDedup] {
        compare(host, &mut guest, &mut gmd, &engine, mode)?;
    }
    guest.check_health()?;
    let took = guest.destroy(host)?;
    host.figure("destroy_ms", nanoseconds(took) / 1_000_000)
}

/// A guest that has just booted, its free memory written, with a profile.
fn filled(host: &mut Host, name: &'static str) -> Result<Guest> {
    let mut guest = host.create(&Plan {
        mib: PLAN_MIB,
        ..Plan::stock(name, "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    Ok(guest)
}

/// Fails unless Lacuna's round took at most one instruction in `times` of the baseline's, page for page
/// alike.
fn faster(name: &str, baseline: &Taken, lacuna: &Taken, times: u64) -> Result<()> {
    ensure(
        lacuna.pages * 1000 >= baseline.pages * ALIKE_PER_MILLE,
        &format!("pages that Lacuna gives back ({name})"),
        &format!(
            "at least {ALIKE_PER_MILLE} of 1000 of the baseline's {}",
            baseline.pages
        ),
        &lacuna.pages.to_string(),
    )?;
    ensure(
        lacuna.instructions * times <= baseline.instructions,
        &format!("instructions of Lacuna's round ({name})"),
        &format!(
            "at most one in {times} of the baseline's {}",
            baseline.instructions
        ),
        &lacuna.instructions.to_string(),
    )
}

/// Runs the baseline on a guest that stands still, and checks that what it shares was free, that nearly all
/// that was free is shared, that the host has the memory, and that the guest finds it zero.
fn truth(host: &mut Host, guest: &mut Guest, gmd: &mut Gmd) -> Result<Taken> {
    let account = guest.start_account()?;
    account.wait_still(STILL, AGENT_LIMIT)?;
    let before = settled_free_mib()?;
    guest.pause(host)?;
    let looked = paused_round(gmd, &account);
    guest.unpause(host)?;
    let Looked {
        taken,
        round,
        free,
        wrong,
    } = looked?;
    let after = settled_free_mib()?;
    guest.order(Task::TruthStop, AGENT_LIMIT)?;
    let shared = round.zeroed.len() as u64;
    for (name, value) in [
        ("free_truth", free),
        ("free_found", round.free),
        ("baseline_shared", shared),
        ("baseline_refused", round.refused),
        ("baseline_wrongly_shared", wrong),
        ("host_free_before", before),
        ("host_free_after", after),
    ] {
        host.figure(name, value)?;
    }
    equal(
        "pages that the baseline shared and the guest has in use",
        &0,
        &wrong,
    )?;
    ensure(
        shared * 1000 >= free * SHARED_PER_MILLE,
        "pages that the baseline shared",
        &format!("at least {SHARED_PER_MILLE} of 1000 of {free}"),
        &shared.to_string(),
    )?;
    let risen = after.saturating_sub(before) * PAGES_PER_MIB;
    ensure(
        risen + PAGES_PER_MIB >= shared - shared * KEPT_PER_MILLE / 1000,
        "the rise of the host's free memory",
        &format!("{shared} pages, less {KEPT_PER_MILLE} of 1000 and what rounding to MiB takes"),
        &format!("{risen} pages"),
    )?;
    let mib = u32::try_from(free / 2 / PAGES_PER_MIB).unwrap_or(u32::MAX);
    guest.grow(mib, AGENT_LIMIT)?;
    guest.order(Task::Shrink, AGENT_LIMIT)?;
    Ok(taken)
}

/// Compares a round of the baseline with the guest's own account.
struct Looked {
    taken: Taken,
    round: Round,
    /// Pages that are free by that account.
    free: u64,
    /// Pages that were shared and are not.
    wrong: u64,
}

fn paused_round(gmd: &mut Gmd, account: &Account) -> Result<Looked> {
    let capture = account.read()?;
    let (taken, round) = baseline_rounds(gmd, Mode::Intro)?;
    let wrong = round.zeroed.iter().filter(|gfn| !capture.is_free(gfn.get()));
    Ok(Looked {
        taken,
        wrong: wrong.count() as u64,
        free: capture.free,
        round,
    })
}

/// The baseline while the guest allocates, writes, checks and frees: its second look is what keeps the
/// guest's data.
fn busy(host: &mut Host, guest: &mut Guest, gmd: &mut Gmd) -> Result<()> {
    host.note(&format!(
        "{BUSY_ROUNDS} rounds of the baseline while the guest works"
    ))?;
    let task = Task::WorkStart {
        threads: 2,
        mib: BUSY_MIB,
        seed: 1,
    };
    guest.order(task, AGENT_LIMIT)?;
    let (mut shared, mut taken) = (0, 0);
    for _ in 0..BUSY_ROUNDS {
        let round = gmd.round(Mode::Intro)?;
        shared += round.zeroed.len() as u64;
        taken += round.taken;
    }
    let report = guest.order(Task::WorkStop, AGENT_LIMIT)?;
    let Report::Work { pages, corrupt, .. } = report else {
        return Err(differs(
            "the workload's end",
            "its counters",
            &format!("{report:?}"),
        ));
    };
    for (name, value) in [
        ("busy_shared", shared),
        ("busy_taken", taken),
        ("busy_pages_checked", pages),
        ("busy_corrupt", corrupt),
    ] {
        host.figure(name, value)?;
    }
    equal("corrupt words in the guest", &0, &corrupt)?;
    ensure(pages > 0, "pages that the guest checked", "some", "none")
}

/// One mode: the baseline's round and Lacuna's, each on a guest with all of its memory its own and the same
/// pages equal; and after each another round, which finds nothing new.
fn compare(host: &mut Host, guest: &mut Guest, gmd: &mut Gmd, engine: &Engine, mode: Mode) -> Result<()> {
    let name = match mode {
        Mode::Intro => "intro",
        Mode::Dedup => "dedup",
        Mode::IntroDedup => "introdedup",
    };
    host.note(&format!("{name}: the baseline's round"))?;
    let known = fresh(guest)?;
    let (baseline, _) = baseline_rounds(gmd, mode)?;
    let all = if mode == Mode::Intro {
        0
    } else {
        u64::from(KINDS * COPIES)
    };
    equal("known duplicates on shared frames", &all, &look(guest, &known)?)?;
    let (baseline_again, _) = baseline_rounds(gmd, mode)?;
    host.note(&format!("{name}: Lacuna's round"))?;
    let known = fresh(guest)?;
    let lacuna = lacuna_rounds(engine, mode, CONTENT_ROUNDS)?;
    let found = look(guest, &known)?;
    host.figure(&format!("{name}_known_shared"), found)?;
    // The first page of a content can lose its place in the index before the second is met.
    ensure(
        found <= all && found * 100 >= all * 99,
        "known duplicates on Lacuna's shared frames",
        &format!("99 % of {all}"),
        &found.to_string(),
    )?;
    let lacuna_again = lacuna_rounds(engine, mode, 1)?;
    for (side, taken) in [
        ("baseline", &baseline),
        ("lacuna", &lacuna),
        ("baseline_again", &baseline_again),
        ("lacuna_again", &lacuna_again),
    ] {
        host.figure(&format!("{name}_{side}"), taken.json())?;
    }
    if mode == Mode::Intro {
        faster(name, &baseline, &lacuna, FASTER_SPLIT)?;
    }
    Ok(())
}

/// Gives the guest pages with known contents, and random ones to its free pages: writing takes all of them
/// off what they shared.
fn fresh(guest: &mut Guest) -> Result<Known> {
    let known = Known::make(guest, KINDS, COPIES, UNIQUE)?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    Ok(known)
}

/// How many of the pages known to be equal share frames, in a guest that has what it wrote.
fn look(guest: &mut Guest, known: &Known) -> Result<u64> {
    let places = known.places(guest)?;
    intact(guest, "after the round")?;
    Ok(places.shared)
}

fn baseline_rounds(gmd: &mut Gmd, mode: Mode) -> Result<(Taken, Round)> {
    let started = Instant::now();
    let round = gmd.round(mode)?;
    let taken = Taken {
        instructions: nanoseconds(started.elapsed()),
        in_calls: nanoseconds(round.in_calls),
        calls: round.calls,
        pages: (round.zeroed.len() + round.merged.len()) as u64,
    };
    Ok((taken, round))
}

/// Does what `lacuna dedup` does, without starting a program. Where equal pages are looked for, it does
/// `rounds` rounds.
fn lacuna_rounds(engine: &Engine, mode: Mode, rounds: u32) -> Result<Taken> {
    let started = Instant::now();
    let (calls, pages) = engine_rounds(engine, mode, rounds).map_err(|error| refused(&error))?;
    let instructions = nanoseconds(started.elapsed());
    Ok(Taken {
        instructions,
        // Between two calls nothing happens.
        in_calls: instructions,
        calls,
        pages,
    })
}

/// Returns the calls made, and the pages given back.
pub(super) fn engine_rounds(engine: &Engine, mode: Mode, rounds: u32) -> Result<(u64, u64), EngineError> {
    let (mut calls, mut pages) = (0, 0);
    let rounds = if mode == Mode::Intro { 1 } else { rounds };
    for _ in 0..rounds {
        if mode != Mode::Dedup {
            engine.scan(ScanOf::Changes)?;
            pages += engine.share()?.pages;
            calls += 2;
        }
        if mode != Mode::Intro {
            let contents = engine.content(mode == Mode::IntroDedup)?;
            pages += contents.zeroed + contents.merged;
            calls += 1;
        }
    }
    Ok((calls, pages))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
