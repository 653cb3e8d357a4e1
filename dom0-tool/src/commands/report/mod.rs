//! `lacuna report`: the host's recent past, as a page of pictures, as text, or as JSON.

mod markup;
mod page;
mod picture;
mod time;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Out;
use super::cli::Report as Arguments;
use super::words::clean;
use crate::failure::{Class, Failure};
use crate::ops::report::{Flows, Happening, Kind, Report, report};
use crate::output;

/// Events at the end of the text.
const LATEST_EVENTS: usize = 10;

/// Runs `lacuna report`.
pub(super) fn run(arguments: &Arguments, out: Out) -> Result<Value, Failure> {
    let file = match &arguments.history {
        Some(file) => file.clone(),
        // Where the daemon of this host keeps it.
        None => {
            crate::daemon::run::load(None)
                .map_err(|error| Failure::plain(Class::Failed, error))?
                .history
                .file
        }
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    // The sample of this very second belongs to it.
    let report = report(&file, now + 1, arguments.since.as_secs())?;
    if let Some(output) = &arguments.output {
        output::refuse_inputs(output, [file.as_path()])?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let page = page::page(&report, host.trim());
        output::write_whole(output, |writer| writer.write_all(page.as_bytes()))
            .map_err(|error| Failure::plain(Class::Failed, format!("{}: {error}", output.display())))?;
        out.line(format!(
            "{}: {} guests, {} events, {} samples",
            output.display(),
            report.guests.len(),
            report.events.len(),
            report.samples
        ));
    } else {
        out.line(text(&report));
    }
    Ok(answer(&report))
}

fn mib(pages: u64) -> u64 {
    pages / 256
}

fn text(report: &Report) -> String {
    let last = report.last.unwrap_or_default();
    let mut text = format!(
        "from {} to {} UTC, {} samples\nhost: {} MiB free; guests could take back {} MiB\n\n{:20} {:>9} {:>9} {:>9} {:>9} {:>8} {:>6}\n",
        time::whole(report.from),
        time::whole(report.to),
        report.samples,
        mib(last.free),
        mib(last.promised),
        "guest, MiB",
        "held",
        "given now",
        "given",
        "taken",
        "rounds",
        "waits"
    );
    // Writing to a String does not fail.
    for guest in &report.guests {
        let _ = writeln!(
            text,
            "{:20} {:>9} {:>9} {:>9} {:>9} {:>8} {:>6}",
            clean(&guest.name),
            mib(guest.last.held),
            mib(guest.last.given_back),
            mib(guest.total.gave),
            mib(guest.total.took),
            guest.total.rounds,
            guest.total.waits
        );
    }
    let told: Vec<&Happening> = report
        .events
        .iter()
        .filter(|event| event.kind != Kind::Gave)
        .collect();
    let _ = writeln!(text, "\n{} events; the latest:", told.len());
    for event in &told[told.len().saturating_sub(LATEST_EVENTS)..] {
        let _ = writeln!(
            text,
            "{} {} {} {}",
            time::whole(event.at),
            clean(&event.guest),
            page::words(&event.event.event),
            clean(event.event.what.as_deref().unwrap_or_default())
        );
    }
    if report.is_damaged {
        text.push_str("a part of the history is damaged and was left out\n");
    }
    text.push_str("\n--output FILE.html draws it");
    text
}

fn flows(flows: &Flows) -> Value {
    json!({
        "gave_pages": flows.gave,
        "took_pages": flows.took,
        "waits": flows.waits,
        "paused_ns": flows.paused_ns,
        "rounds": flows.rounds,
    })
}

fn answer(report: &Report) -> Value {
    let guests: Vec<Value> = report
        .guests
        .iter()
        .map(|guest| {
            let slots: Vec<Value> = guest
                .slots
                .iter()
                .map(|slot| match slot {
                    None => Value::Null,
                    Some(slot) => json!({
                        "used_pages": slot.used,
                        "free_pages": slot.free,
                        "given_back_pages": slot.given_back,
                        "flows": flows(&slot.flows),
                    }),
                })
                .collect();
            json!({
                "name": guest.name,
                "domains": guest.domains,
                "held_pages": guest.last.held,
                "given_back_pages": guest.last.given_back,
                "total": flows(&guest.total),
                "slots": slots,
            })
        })
        .collect();
    let events: Vec<Value> = report
        .events
        .iter()
        .map(|event| {
            json!({
                "at": event.at,
                "event": event.event.event,
                "domain": event.event.domain,
                "guest": event.guest,
                "what": event.event.what,
            })
        })
        .collect();
    json!({
        "from": report.from,
        "to": report.to,
        "slot_seconds": report.slot,
        "samples": report.samples,
        "damaged": report.is_damaged,
        "host": report.host,
        "guests": guests,
        "events": events,
    })
}
