//! The subcommands that ask the engine, and detach.

use lacuna_core::abi::{Explanation, State, Statistics};
use lacuna_core::{Gfn, Profile};
use serde_json::{Map, Value, json};

use super::Out;
use super::cli::{Explain, OneDomain};
use super::words::{duration, pages};
use crate::failure::Failure;
use crate::ops::guest::Live;
use crate::ops::migration::Side;
use crate::ops::status::{self, detach as take_away};
use crate::xen::answer::mismatch;

pub(super) fn detach(arguments: &OneDomain, out: Out) -> Result<Value, Failure> {
    let live = Live::open(&arguments.domain)?;
    let was_attached = take_away(&live)?;
    let words = if was_attached {
        "has no profile any more"
    } else {
        "was not attached: it had no profile"
    };
    out.line(format!("{} {words}", live.title()));
    Ok(json!({ "domain": live.domain.id.get(), "state": "empty", "was_attached": was_attached }))
}

fn state_name(code: u64) -> &'static str {
    match State::from_code(code) {
        Some(State::Empty) => "empty",
        Some(State::Loaded) => "loaded",
        Some(State::Admitted) => "admitted",
        Some(State::Ended) => "ended",
        None => "unknown",
    }
}

pub(super) fn statistics_json(statistics: &Statistics) -> Value {
    let mut members = Map::new();
    for (name, _, value) in statistics.each() {
        members.insert(name.to_owned(), json!(value));
    }
    members.insert("state".into(), json!(state_name(statistics.state)));
    Value::Object(members)
}

pub(super) fn status(domain: &str, out: Out) -> Result<Value, Failure> {
    let live = Live::open(domain)?;
    let known = status::status(&live)?;
    let statistics = known.statistics;
    out.line(live.title());
    let words = match State::from_code(statistics.state) {
        Some(State::Empty) => "no profile: `lacuna attach` gives it one",
        Some(State::Loaded) => "a profile is set, no scan has agreed with the guest's own counters yet",
        Some(State::Admitted) => "in use",
        Some(State::Ended) => "the guest runs another kernel than the profile's; attach again",
        None => "unknown to this version of the tool",
    };
    out.line(format!(
        "state                  {}: {words}",
        state_name(statistics.state)
    ));
    let refusal = (statistics.identity_check != 0).then(|| {
        let why = mismatch(
            statistics.identity_check,
            statistics.identity_found,
            statistics.identity_expected,
        );
        format!("virtual CPU {}: {why}", statistics.identity_vcpu)
    });
    if let Some(refusal) = &refusal {
        out.line(format!("last refusal           {refusal}"));
    }
    for line in summary(&statistics, live.memory_pages(&statistics)?) {
        out.line(line);
    }
    out.line("\ncounters (docs/hypercall.md; --json has their names)");
    for (name, meaning, value) in statistics.each().filter(|(name, ..)| *name != "state") {
        let (words, shown) = in_words(name, value);
        out.line(format!("{words:22} {shown:>14}  {meaning}"));
    }
    let mut answer = statistics_json(&statistics);
    answer["last_refusal"] = json!(refusal);
    answer["migration"] = json!({
        "sent": show_migration(known.sent, Side::Sent, out),
        "received": show_migration(known.received, Side::Received, out),
    });
    answer["domain"] = json!(live.domain.id.get());
    Ok(answer)
}

/// Returns the summary that comes before the counters, for a guest of `memory` pages.
fn summary(statistics: &Statistics, memory: u64) -> Vec<String> {
    let given_back = statistics.zero_gfns + statistics.content_gfns;
    let mut lines = vec![
        format!("memory                 {}", pages(memory)),
        format!("  given back           {}", pages(given_back)),
        format!(
            "  held                 {}",
            pages(memory.saturating_sub(given_back))
        ),
    ];
    if statistics.scans > 0 {
        lines.push(format!("free by the last scan  {}", pages(statistics.scan_free)));
    }
    lines.push(format!(
        "taken back so far      {}, by {} writes; {} waited for memory of the host",
        pages(statistics.unshared + statistics.content_unshared),
        statistics.faults() + statistics.content_unshared,
        statistics.unshare_enomem,
    ));
    lines.push(format!(
        "stopped so far         {} times, {} in all, {} at the longest",
        statistics.pauses,
        duration(statistics.pause_total_ns),
        duration(statistics.pause_longest_ns),
    ));
    lines
}

/// Returns a counter's name and value in words: `pause_total_ns`, 73600000 is "pause total", "73.6 ms".
fn in_words(name: &str, value: u64) -> (String, String) {
    let (words, shown) = match name.strip_suffix("_ns") {
        Some(words) => (words, duration(value)),
        None => (name, value.to_string()),
    };
    (words.replace('_', " "), shown)
}

/// Shows the counters of the guest's latest migration on one side of it, and returns them.
fn show_migration(counters: Option<Value>, side: Side, out: Out) -> Value {
    let Some(counters) = counters else {
        return Value::Null;
    };
    // The sums; the iterations are in the JSON. The receiver's file is flat.
    let sums = counters.get("total").unwrap_or(&counters);
    let figures: Vec<String> = sums
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| value.is_u64() && !matches!(name.as_str(), "version" | "domid"))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let word = match side {
        Side::Sent => "sent by migration",
        Side::Received => "received by migration",
    };
    out.line(format!("{word:22} {}", figures.join(", ")));
    if let Some(reason) = counters.get("refused").and_then(Value::as_str) {
        out.line(format!("{:22} everything was sent: {reason}", ""));
    }
    counters
}

pub(super) fn explain(arguments: &Explain, out: Out) -> Result<Value, Failure> {
    let live = Live::open(&arguments.domain)?;
    let answer = live.engine.explain(Gfn::new(arguments.gfn))?;
    // Whether the profile judges by blocks or by entries. A domain without a profile has no verdict either.
    let by_blocks = live
        .engine
        .get_profile()
        .ok()
        .and_then(|bytes| Profile::decode(&bytes).ok())
        .is_none_or(|profile| profile.free.blocks.is_some());
    let verdict = if by_blocks {
        verdict(&answer)
    } else {
        verdict_by_entries(&answer)
    };
    out.line(format!("page        {:#x} of {}", arguments.gfn, live.title()));
    out.line(format!("verdict     {verdict}"));
    if answer.descriptor != 0 {
        out.line(format!(
            "descriptor  {:#x}, marked by {:#x}",
            answer.descriptor, answer.predicate
        ));
    }
    out.line(format!(
        "candidate   {}",
        if answer.candidate == 1 {
            "yes, by the last scan"
        } else {
            "no"
        }
    ));
    let kind = p2m_type(answer.p2m_type);
    if answer.mfn == u64::MAX {
        out.line(format!("in Xen      mapped to nothing ({kind})"));
    } else {
        let zero = if answer.zero_frame == 1 {
            ", a zero frame"
        } else {
            ""
        };
        out.line(format!(
            "in Xen      machine frame {:#x}{zero}, {kind}, entry of order {}",
            answer.mfn, answer.p2m_order
        ));
        out.line(format!(
            "references  count_info {:#x}, type_info {:#x}",
            answer.count_info, answer.type_info
        ));
    }
    Ok(json!({
        "domain": live.domain.id.get(),
        "gfn": arguments.gfn,
        "verdict": verdict_name(answer.verdict),
        "explanation": verdict,
        "reason": answer.reason,
        "value": answer.value,
        "order": answer.order,
        "descriptor": format!("{:#x}", answer.descriptor),
        "predicate": format!("{:#x}", answer.predicate),
        "candidate": answer.candidate == 1,
        "mfn": (answer.mfn != u64::MAX).then(|| format!("{:#x}", answer.mfn)),
        "zero_frame": answer.zero_frame == 1,
        "p2m_type": kind,
        "p2m_order": answer.p2m_order,
        "count_info": format!("{:#x}", answer.count_info),
        "type_info": format!("{:#x}", answer.type_info),
    }))
}

fn verdict_name(verdict: u64) -> &'static str {
    match verdict {
        0 => "free",
        1 => "in_use",
        2 => "unknown",
        _ => "not_asked",
    }
}

/// Returns the verdict in words; the numbers are those of `lacuna_core::abi::Explanation`.
fn verdict(answer: &Explanation) -> String {
    match (answer.verdict, answer.reason) {
        (0, _) => format!(
            "free: in the block of order {} that begins at {:#x}",
            answer.order, answer.value
        ),
        (1, 1) => "in use: the kernel does not mark it, nor a block around it, as free".into(),
        (1, 2) => "in use: it lies past the end of the free block before it".into(),
        (1, 3) => format!(
            "in use: it is marked as free, but its value {:#x} breaks condition {} of the profile",
            answer.value, answer.order
        ),
        (2, 1) => format!(
            "unknown: the kernel has no descriptor for it (nor for any below {:#x})",
            answer.value
        ),
        (2, 2) => "unknown: its descriptor cannot be read".into(),
        (2, 3) => format!(
            "unknown: its descriptor claims the impossible order {}",
            answer.value
        ),
        (2, 4) => format!(
            "unknown: it is marked as a free block of order {}, to which it is not aligned",
            answer.order
        ),
        (2, 5) => format!(
            "unknown: it is marked as a free block, but its value {:#x} breaks condition {} of the profile (0: references)",
            answer.value, answer.order
        ),
        (3, _) => "not asked: the domain has no profile".into(),
        (verdict, reason) => {
            format!("verdict {verdict}, reason {reason}: unknown to this version of the tool")
        }
    }
}

/// Returns the verdict in words for a Windows guest, where each page is judged by its own entry and its
/// bytes.
fn verdict_by_entries(answer: &Explanation) -> String {
    match (answer.verdict, answer.reason) {
        (0, _) => {
            "free by its entry, if all of its bytes are zero: they are looked at when it is given back".into()
        }
        (1, 1 | 2) => "in use: its entry does not say that it is on the zeroed list".into(),
        (2, 1) if answer.value == u64::MAX => {
            "unknown: it lies behind the memory that the guest's page-frame database describes".into()
        }
        (2, 1) => format!(
            "unknown: the guest's page-frame database has no entry for it (the next that it has is that of {:#x})",
            answer.value
        ),
        _ => verdict(answer),
    }
}

/// Xen's name for a p2m type (`p2m_type_t`, `xen/arch/x86/include/asm/p2m.h`, the same in 4.17 and 4.20).
fn p2m_type(code: u32) -> &'static str {
    match code {
        0 => "ordinary memory",
        1 => "nothing",
        2 => "memory whose writes are tracked",
        3 => "read-only memory",
        4 => "emulated device memory",
        5 => "device memory",
        6 => "populate on demand",
        7 => "a granted page",
        8 => "a page granted read-only",
        9..=11 => "memory being paged",
        12 => "shared memory",
        13 => "broken memory",
        14 => "another domain's memory",
        15 => "memory of an ioreq server",
        _ => "a type unknown to this version of the tool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_unit_in_the_value_alone() {
        let shown = in_words("pause_total_ns", 73_600_000);
        assert_eq!(shown, ("pause total".to_owned(), "73.6 ms".to_owned()));
        assert_eq!(in_words("zero_gfns", 7), ("zero gfns".to_owned(), "7".to_owned()));
    }

    #[test]
    fn the_summary_adds_up() {
        let statistics = Statistics {
            zero_gfns: 2048,
            content_gfns: 512,
            unshared: 600,
            refilled: 1,
            content_unshared: 4,
            ..Statistics::default()
        };
        let text = summary(&statistics, 10_240).join("\n");
        for part in [
            "(40.0 MiB)",
            "(10.0 MiB)",
            "(30.0 MiB)",
            "604 pages",
            "by 93 writes",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("last scan"), "there was none:\n{text}");
    }

    #[test]
    fn of_windows_nothing_is_said_of_blocks() {
        for (verdict, reason, value) in [
            (0, 0, 5),
            (1, 1, 0),
            (1, 2, 0),
            (1, 3, 7),
            (2, 1, 0x900),
            (2, 1, u64::MAX),
            (2, 2, 0),
            (3, 0, 0),
        ] {
            let answer = Explanation {
                verdict,
                reason,
                value,
                ..Explanation::default()
            };
            let text = verdict_by_entries(&answer);
            assert!(!text.contains("block") && !text.contains("ffff"), "{text}");
        }
    }
}
