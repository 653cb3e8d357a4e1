//! `lacuna dedup`: rounds of the free stage, the content stage, or both.

use serde_json::{Value, json};

use super::Out;
use super::cli::Dedup;
use super::engine::statistics_json;
use super::render::scan::scanned_json;
use super::terminal::Terminal;
use super::words::{duration, pages};
use crate::failure::Failure;
use crate::ops::dedup::{DedupReport, Mode, Options, Round, Until, dedup};
use crate::ops::guest::Live;

pub(super) fn run(arguments: &Dedup, out: Out) -> Result<Value, Failure> {
    let live = Live::open(&arguments.domain)?;
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
    let mode = arguments.mode.into();
    let options = Options {
        mode,
        until: match (arguments.until_stable, arguments.rounds) {
            (true, _) => Until::Stable,
            (false, Some(rounds)) => Until::Rounds(rounds),
            (false, None) => Until::Usual,
        },
        interval: arguments.interval,
    };
    let mut terminal = Terminal::new(out);
    terminal.mode = mode;
    let done = dedup(&live, &options, &mut terminal)?;
    show(&done, mode, out);
    let total = &done.total;
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
        "stable": done.is_stable,
        "rounds": done.rounds.iter().map(|round| round_json(round, mode)).collect::<Vec<_>>(),
        "statistics": statistics_json(&done.after),
    }))
}

fn show(done: &DedupReport, mode: Mode, out: Out) {
    let (before, after) = (&done.before, &done.after);
    out.line(format!(
        "given back  {} in all; now {} on zero frames, {} on frames shared by content",
        pages(done.total.given_back()),
        pages(after.zero_gfns),
        pages(after.content_gfns),
    ));
    if mode.has_intro() {
        out.line(format!(
            "pauses      {} of the guest, longest {}, {} in all",
            after.pauses - before.pauses.min(after.pauses),
            duration(after.pause_longest_ns),
            duration(after.pause_total_ns.saturating_sub(before.pause_total_ns)),
        ));
    }
}

/// Describes the result of the `number`th round.
pub(super) fn lines(round: &Round, number: u64, mode: Mode) -> Vec<String> {
    let mut lines = Vec::new();
    if mode.has_intro() {
        let shared = &round.shared;
        lines.push(format!(
            "round {number:<5} {} free, gave back {} in {} 2 MiB entries and {} single pages; {} no longer free, {} held by something",
            pages(round.scanned.free),
            pages(shared.pages),
            shared.superpages,
            shared.pages.saturating_sub(shared.superpages * 512),
            shared.rejected,
            shared.held,
        ));
    }
    if mode.has_content() {
        let contents = &round.contents;
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

fn round_json(round: &Round, mode: Mode) -> Value {
    let scan = mode.has_intro().then(|| scanned_json(&round.scanned));
    json!({
        "scan": scan,
        "shared": round.shared.pages,
        "superpages": round.shared.superpages,
        "rejected": round.shared.rejected,
        "held": round.shared.held,
        "zeroed": round.contents.zeroed,
        "merged": round.contents.merged,
        "hashed": round.contents.hashed,
        "changed": round.contents.changed,
        "zero_gfns": round.zero_gfns,
        "content_gfns": round.content_gfns,
    })
}
