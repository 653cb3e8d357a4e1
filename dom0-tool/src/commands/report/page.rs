//! The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere.

use super::markup::Markup;
use super::picture::{Chart, LEFT, Series, Span, events};
use super::time;
use crate::ops::history::HostPoint;
use crate::ops::report::{GuestReport, GuestSlot, Happening, Kind, Report};

/// Most events in the table, the latest.
const MOST_EVENTS: usize = 1000;
/// Nothing is fetched, whatever the page may say.
const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
    <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
    <meta name=\"color-scheme\" content=\"light dark\">\n<style>";
const STYLE: &str = include_str!("style.css");

/// Returns what an event is called on the page.
pub(super) fn words(event: &str) -> &str {
    match event {
        "daemon.started" => "lacunad started",
        "daemon.stopped" => "lacunad stopped",
        "config.reloaded" => "settings read again",
        "config.refused" => "wrong settings refused",
        "guest.appeared" => "appeared",
        "guest.gone" => "gone",
        "guest.attached" => "attached",
        "guest.booting" => "booting",
        "guest.changed" => "runs another kernel",
        "guest.excluded" => "left alone",
        "guest.included" => "no longer left alone",
        "guest.restarted" => "restarted",
        "guest.waited" => "waited for memory",
        "round.gave_back" => "gave memory back",
        "host.low" => "free memory below the reserve",
        "host.recovered" => "free memory above the reserve again",
        "content.refused" => "equal pages not shared",
        other => other,
    }
}

#[allow(clippy::cast_precision_loss)] // for reading
fn mebibytes(pages: u64) -> f64 {
    pages as f64 / 256.0
}

fn mib(pages: u64) -> String {
    format!("{:.0}", mebibytes(pages))
}

/// Least, greatest and mean of what there is.
fn spread(values: impl Iterator<Item = u64>) -> [String; 3] {
    let values: Vec<u64> = values.collect();
    let mean = values.iter().sum::<u64>() / (values.len() as u64).max(1);
    let least = values.iter().min().copied().unwrap_or(0);
    let most = values.iter().max().copied().unwrap_or(0);
    [mib(least), mib(mean), mib(most)]
}

/// Makes the page for the host called `host`.
pub(super) fn page(report: &Report, host: &str) -> String {
    let span = Span {
        from: report.from,
        to: report.to,
        slot: report.slot,
        left: LEFT,
    };
    let mut page = Markup::default();
    page.raw(HEAD)
        .raw(STYLE)
        .raw("</style>\n<title>Lacuna on ")
        .text(host)
        .raw("</title></head><body><main>\n");
    page.raw("<h1>Lacuna on ")
        .text(host)
        .raw("</h1>\n<p>From ")
        .text(time::whole(report.from));
    page.raw(" to ")
        .text(time::whole(report.to))
        .raw(" UTC (")
        .text(time::length(report.to - report.from));
    page.raw("), ")
        .text(report.samples)
        .raw(" samples. Memory is in MiB. A gap in a picture means that nothing was recorded then.</p>\n");
    if report.is_damaged {
        page.raw("<p class=\"warning\">A part of the history is damaged and was left out.</p>\n");
    }
    if report.samples == 0 {
        page.raw("<p class=\"warning\">The history has no sample of this time: no lacunad ran, or it keeps no history.</p>\n");
    }
    summary(&mut page, report);
    host_section(&mut page, report, span);
    events_section(&mut page, report, span);
    for (at, guest) in report.guests.iter().enumerate() {
        // Two pictures each, after the host's and that of the events.
        guest_section(&mut page, guest, span, 2 + at * 2);
    }
    page.raw("<footer>Made by lacuna ")
        .text(env!("CARGO_PKG_VERSION"));
    page.raw(
        ". What each figure means: docs/daemon.md, docs/operations.md.</footer>\n</main></body></html>\n",
    );
    page.finish()
}

/// The figures to look at first.
fn summary(page: &mut Markup, report: &Report) {
    let given: u64 = report.guests.iter().map(|guest| guest.total.gave).sum();
    let took: u64 = report.guests.iter().map(|guest| guest.total.took).sum();
    let rounds: u64 = report.guests.iter().map(|guest| guest.total.rounds).sum();
    let waits: u64 = report.guests.iter().map(|guest| guest.total.waits).sum();
    let troubles = report
        .events
        .iter()
        .filter(|event| event.kind == Kind::Trouble)
        .count();
    let last = report.last.unwrap_or_default();
    page.raw("<dl class=\"summary\">");
    for (name, value, is_bad) in [
        (
            "guests could take back now",
            format!("{} MiB", mib(last.promised)),
            last.promised > last.free,
        ),
        (
            "free on the host now",
            format!("{} MiB", mib(last.free)),
            last.free < last.reserve,
        ),
        ("given back", format!("{} MiB", mib(given)), false),
        ("taken again", format!("{} MiB", mib(took)), false),
        ("rounds", rounds.to_string(), false),
        ("writes that waited", waits.to_string(), waits > 0),
        ("troubles", troubles.to_string(), troubles > 0),
    ] {
        page.raw(if is_bad {
            "<div class=\"bad\"><dt>"
        } else {
            "<div><dt>"
        });
        page.text(name).raw("</dt><dd>").text(value).raw("</dd></div>");
    }
    page.raw("</dl>\n");
}

fn host_section(page: &mut Markup, report: &Report, span: Span) {
    let series = |class, value: fn(&HostPoint) -> u64| Series {
        class,
        values: report
            .host
            .iter()
            .map(|point| point.as_ref().map(|point| mebibytes(value(point))))
            .collect(),
    };
    let description = "Free memory of the host as an area; what guests could take back, and the reserve, as lines. The table below has the figures.";
    let chart = Chart {
        id: 0,
        title: "The host's memory",
        description,
        span,
        stacked: vec![series("free", |point| point.free)],
        lines: vec![
            series("promised", |point| point.promised),
            series("reserve", |point| point.reserve),
        ],
        below: None,
    };
    page.raw("<section><h2>The host</h2>\n");
    legend(
        page,
        &[
            ("free", "free"),
            ("promised", "guests could take back"),
            ("reserve", "reserve"),
        ],
    );
    page.with(&chart.draw());
    page.raw("<table>")
        .heads(&["MiB", "last", "least", "mean", "most"]);
    let last = report.last.unwrap_or_default();
    for (name, value) in [
        ("free", (|point: &HostPoint| point.free) as fn(&HostPoint) -> u64),
        ("guests could take back", |point| point.promised),
        ("missing, were all of that wanted at once", |point| {
            point.promised.saturating_sub(point.free)
        }),
        ("reserve", |point| point.reserve),
    ] {
        let mut cells = vec![mib(value(&last))];
        cells.extend(spread(report.host.iter().flatten().map(value)));
        page.row(name, &cells);
    }
    page.raw("</table></section>\n");
}

fn events_section(page: &mut Markup, report: &Report, span: Span) {
    page.raw("<section><h2>Events</h2>\n");
    if report.events.is_empty() {
        page.raw("<p>None.</p></section>\n");
        return;
    }
    legend(
        page,
        &[
            ("change", "came, went or changed"),
            ("gave", "gave memory back"),
            ("trouble", "trouble"),
            ("wait", "waited for memory"),
        ],
    );
    // Of one kind one mark in a slot: more would lie upon each other.
    let mut seen = std::collections::BTreeSet::new();
    let drawn: Vec<&Happening> = report
        .events
        .iter()
        .filter(|event| {
            seen.insert((
                event.guest.as_str(),
                event.kind as u8,
                event.at.saturating_sub(report.from) / report.slot,
            ))
        })
        .collect();
    page.with(&events(
        1,
        span,
        &drawn,
        "When each guest, and the host, had events. The table below lists them.",
    ));
    let told: Vec<&Happening> = report
        .events
        .iter()
        .filter(|event| event.kind != Kind::Gave)
        .collect();
    let skipped = told.len().saturating_sub(MOST_EVENTS);
    page.raw("<p>Rounds that gave memory back are in the pictures only.");
    if skipped > 0 {
        page.raw(" The ")
            .text(skipped)
            .raw(" events before these are in the journal.");
    }
    page.raw("</p>\n<table class=\"events\">")
        .heads(&["time", "guest", "event", "what"]);
    for event in told.into_iter().skip(skipped) {
        let cells = [
            event.guest.clone(),
            words(&event.event.event).to_owned(),
            event.event.what.clone().unwrap_or_default(),
        ];
        page.row(time::whole(event.at), &cells);
    }
    page.raw("</table></section>\n");
}

fn legend(page: &mut Markup, entries: &[(&'static str, &'static str)]) {
    page.raw("<ul class=\"legend\">");
    for (class, name) in entries {
        page.raw("<li><span class=\"")
            .raw(class)
            .raw("\"></span>")
            .raw(name)
            .raw("</li>");
    }
    page.raw("</ul>\n");
}

/// A series of a guest's, by slot.
fn levels(guest: &GuestReport, class: &'static str, value: fn(&GuestSlot) -> u64) -> Series {
    Series {
        class,
        values: guest
            .slots
            .iter()
            .map(|slot| slot.as_ref().map(|slot| mebibytes(value(slot))))
            .collect(),
    }
}

fn guest_section(page: &mut Markup, guest: &GuestReport, span: Span, id: usize) {
    page.raw("<section class=\"guest\"><h2>")
        .text(&guest.name)
        .raw("</h2>\n<p>Domain ");
    let numbers: Vec<String> = guest.domains.iter().map(u16::to_string).collect();
    page.text(numbers.join(", then ")).raw("</p>\n");
    memory(page, guest, span, id);
    moved(page, guest, span, id + 1);
    page.raw("</section>\n");
}

/// What a guest's memory was.
fn memory(page: &mut Markup, guest: &GuestReport, span: Span, id: usize) {
    let title = format!("Memory of {}", guest.name);
    let chart = Chart {
        id,
        title: &title,
        description: "Used, free inside and given back, one upon the other. The table below has the figures.",
        span,
        stacked: vec![
            levels(guest, "used", |slot| slot.used),
            levels(guest, "inside", |slot| slot.free),
            levels(guest, "given", |slot| slot.given_back),
        ],
        lines: Vec::new(),
        below: None,
    };
    let parts = [
        ("used", "used"),
        ("inside", "free inside"),
        ("given", "given back"),
    ];
    legend(page, &parts);
    page.with(&chart.draw()).raw("<table>");
    page.heads(&["MiB", "last", "least", "mean", "most"]);
    let last = &guest.last;
    for (name, now, value) in [
        (
            "used",
            last.held.saturating_sub(last.free),
            (|slot: &GuestSlot| slot.used) as fn(&GuestSlot) -> u64,
        ),
        ("free inside", last.free, |slot| slot.free),
        ("given back", last.given_back, |slot| slot.given_back),
    ] {
        let mut cells = vec![mib(now)];
        cells.extend(spread(guest.slots.iter().flatten().map(value)));
        page.row(name, &cells);
    }
    page.raw("</table>\n");
}

/// What a guest gave back and took again.
fn moved(page: &mut Markup, guest: &GuestReport, span: Span, id: usize) {
    let title = format!("What {} gave back and took again", guest.name);
    let chart = Chart {
        id,
        title: &title,
        description: "Given back upwards, taken again downwards, in each slot of time. The table below has the sums.",
        span,
        stacked: vec![levels(guest, "given", |slot| slot.flows.gave)],
        lines: Vec::new(),
        below: Some(levels(guest, "taken", |slot| slot.flows.took)),
    };
    legend(page, &[("given", "given back"), ("taken", "taken again")]);
    page.with(&chart.draw()).raw("<table>");
    page.heads(&[
        "",
        "given back, MiB",
        "taken again, MiB",
        "rounds",
        "writes that waited",
        "stopped, ms",
    ]);
    let total = guest.total;
    #[allow(clippy::cast_precision_loss)] // for reading
    let stopped = total.paused_ns as f64 / 1e6;
    page.row(
        "in all",
        &[
            mib(total.gave),
            mib(total.took),
            total.rounds.to_string(),
            total.waits.to_string(),
            format!("{stopped:.1}"),
        ],
    );
    page.raw("</table>\n");
}

#[cfg(test)]
mod tests;
