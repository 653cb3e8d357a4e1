//! `lacuna dedup`: rounds of the free stage, the content stage, or both.

use std::thread;

use lacuna_core::abi::Statistics;
use serde_json::{Value, json};

use super::engine::statistics_json;
use super::scan::{patiently, scanned_json};
use super::{Out, duration, pages, progress};
use crate::commands::cli::{Dedup, Mode};
use crate::failure::Failure;
use crate::ops::guest::{Live, open_domain};
use crate::xen::engine::{Contents, Scanned, Shared};

/// Rounds after which `--until-stable` gives up on a guest that never settles.
const MOST_ROUNDS: u64 = 50;
/// `--until-stable`: a round that gives back less than this part of what is free, or was looked at, is the last.
const STABLE_PART: u64 = 1000;
/// Rounds that the content stage takes by default: the first one learns which pages hold still.
const CONTENT_ROUNDS: u64 = 2;

/// What one round, or all of them, came to.
#[derive(Clone, Copy, Default)]
struct Round {
    scanned: Scanned,
    shared: Shared,
    contents: Contents,
}

pub(super) fn dedup(arguments: &Dedup, out: Out) -> Result<Value, Failure> {
    let live = open_domain(&arguments.domain)?;
    if let Some(group) = &arguments.trust_group {
        live.engine.set_group(group)?;
        out.line(format!(
            "{} may share pages by content with the members of {group:?}, and they with it",
            live.title()
        ));
    } else if arguments.no_trust_group {
        live.engine.set_group("")?;
        out.line(format!("{} shares pages with no other guest", live.title()));
    }
    let mode = arguments.mode;
    let default_rounds = if mode.has_content() { CONTENT_ROUNDS } else { 1 };
    let most = match (arguments.until_stable, arguments.rounds.unwrap_or(default_rounds)) {
        (true, _) => MOST_ROUNDS,
        (false, 0) => u64::MAX,
        (false, rounds) => rounds,
    };
    let before = live.engine.statistics()?;
    let mut rounds = Vec::new();
    let mut total = Round::default();
    let mut stable = false;
    for number in 1..=most {
        if number > 1 {
            thread::sleep(arguments.interval);
        }
        let spinner = progress::spinner(format!("round {number}"));
        let round = one_round(&live, mode);
        spinner.finish_and_clear();
        let (round, now) = round?;
        total.add(&round);
        for line in round.lines(number, mode) {
            out.line(line);
        }
        // For ever is long: only the last rounds are kept for the answer.
        if rounds.len() == 1024 {
            rounds.remove(0);
        }
        let mut figures = round.json(mode);
        figures["zero_gfns"] = json!(now.zero_gfns);
        figures["content_gfns"] = json!(now.content_gfns);
        rounds.push(figures);
        // What the content stage sees for the first time it shares in the next round.
        stable = round.is_stable() && (!mode.has_content() || number >= CONTENT_ROUNDS);
        if arguments.until_stable && stable {
            break;
        }
    }
    let after = live.engine.statistics()?;
    out.line(format!(
        "given back  {} in all; now {} on zero frames, {} on frames shared by content",
        pages(total.given_back()),
        pages(after.zero_gfns),
        pages(after.content_gfns),
    ));
    if mode != Mode::Dedup {
        out.line(format!(
            "pauses      {} of the guest, longest {}, {} in all",
            after.pauses - before.pauses.min(after.pauses),
            duration(after.pause_longest_ns),
            duration(after.pause_total_ns.saturating_sub(before.pause_total_ns)),
        ));
    }
    Ok(json!({
        "domain": live.domain.id.get(),
        "mode": mode.name(),
        "shared": total.shared.pages,
        "superpages": total.shared.superpages,
        "rejected": total.shared.rejected,
        "held": total.shared.held,
        "zeroed": total.contents.zeroed,
        "merged": total.contents.merged,
        "hashed": total.contents.hashed,
        "changed": total.contents.changed,
        "stable": stable,
        "rounds": rounds,
        "statistics": statistics_json(&after),
    }))
}

fn one_round(live: &Live, mode: Mode) -> Result<(Round, Statistics), Failure> {
    let mut round = Round::default();
    if mode.has_intro() {
        round.scanned = patiently(|| Ok(live.engine.scan()?))?;
        round.shared = live.engine.share()?;
    }
    if mode.has_content() {
        round.contents = live.engine.content(mode.has_intro())?;
    }
    Ok((round, live.engine.statistics()?))
}

impl Round {
    fn add(&mut self, other: &Self) {
        self.shared += other.shared;
        self.contents += other.contents;
    }

    const fn given_back(&self) -> u64 {
        self.shared.pages + self.contents.zeroed + self.contents.merged
    }

    const fn is_stable(&self) -> bool {
        self.given_back() <= (self.scanned.free + self.contents.hashed) / STABLE_PART
    }

    fn lines(&self, number: u64, mode: Mode) -> Vec<String> {
        let mut lines = Vec::new();
        if mode.has_intro() {
            let shared = &self.shared;
            lines.push(format!(
                "round {number:<5} {} free, gave back {} in {} 2 MiB entries and {} single pages; {} no longer free, {} held by something",
                pages(self.scanned.free),
                pages(shared.pages),
                shared.superpages,
                shared.pages.saturating_sub(shared.superpages * 512),
                shared.rejected,
                shared.held,
            ));
        }
        if mode.has_content() {
            let contents = &self.contents;
            lines.push(format!(
                "round {number:<5} {} hashed, {} of them new or changed; {} zero, {} equal to another",
                pages(contents.hashed),
                pages(contents.changed),
                pages(contents.zeroed),
                pages(contents.merged),
            ));
        }
        lines
    }

    fn json(&self, mode: Mode) -> Value {
        let scan = mode.has_intro().then(|| scanned_json(&self.scanned));
        json!({
            "scan": scan,
            "shared": self.shared.pages,
            "superpages": self.shared.superpages,
            "rejected": self.shared.rejected,
            "held": self.shared.held,
            "zeroed": self.contents.zeroed,
            "merged": self.contents.merged,
            "hashed": self.contents.hashed,
            "changed": self.contents.changed,
        })
    }
}
