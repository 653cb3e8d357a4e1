//! `lacuna top`, and `lacuna status` without a guest: all guests and the host beside each other.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use lacuna_core::abi::State;
use serde_json::{Value, json};

use super::Out;
use crate::commands::cli::Top;
use crate::failure::Failure;
use crate::ops::host::{Look, Seen, ThisHost, Xen};
use crate::xen::privcmd::HostMemory;

/// Clears a terminal's screen and goes to its upper left corner (ECMA-48: ED 2, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";
/// Pages of a MiB.
const PAGES_PER_MIB: u64 = 256;

/// All guests at one moment.
struct Sample {
    at: Duration,
    memory: HostMemory,
    /// Guests, and what the hypervisor says of them; PV guests, of which it says nothing here, are left out.
    guests: Vec<(Seen, Look)>,
}

/// One guest over an interval. Pages are of 4 KiB.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    domain: u16,
    name: String,
    state: &'static str,
    limit: u64,
    held: u64,
    free: u64,
    given_back: u64,
    /// Pages that the guest took back, a second.
    unshared_rate: f64,
    /// Part of the time for which it was stopped.
    paused: f64,
}

/// `lacuna top`.
pub(super) fn run(arguments: &Top, out: Out) -> Result<Value, Failure> {
    let mut host = ThisHost::open()?;
    let mut before = Sample::take(&mut host)?;
    loop {
        thread::sleep(arguments.interval.max(Duration::from_millis(100)));
        let after = Sample::take(&mut host)?;
        let rows = rows(&before, &after);
        let answer = answer(&after, &rows);
        if arguments.once {
            out.line(table(&after, &rows));
            return Ok(answer);
        }
        out.line(format!("{CLEAR}{}", table(&after, &rows)));
        out.json_line(&answer);
        before = after;
    }
}

/// `lacuna status` without a guest.
pub(super) fn host(out: Out) -> Result<Value, Failure> {
    let sample = Sample::take(&mut ThisHost::open()?)?;
    let promised = sample.promised();
    out.line(sample.host_line());
    out.line(match promised.saturating_sub(sample.memory.free) {
        0 => "the host could serve all of it now".to_owned(),
        short => format!(
            "were all of it wanted at once, {} MiB would be missing: guests would wait until memory is there",
            short / PAGES_PER_MIB
        ),
    });
    for (seen, look) in &sample.guests {
        out.line(format!(
            "{:>5} {:20} could take back {} MiB",
            seen.domain,
            seen.name.as_deref().unwrap_or("-"),
            look.given_back() / PAGES_PER_MIB
        ));
    }
    Ok(answer(&sample, &rows(&sample, &sample)))
}

impl Sample {
    fn take<X: Xen>(host: &mut X) -> Result<Self, Failure> {
        let at = host.now();
        let memory = host.memory()?;
        let mut guests = Vec::new();
        for seen in host.guests()? {
            // One that is going, or a PV guest.
            if let Ok(look) = host.look(seen.domain) {
                guests.push((seen, look));
            }
        }
        Ok(Self { at, memory, guests })
    }

    /// Pages that guests could take back.
    fn promised(&self) -> u64 {
        self.guests.iter().map(|(_, look)| look.given_back()).sum()
    }

    fn host_line(&self) -> String {
        format!(
            "host: {} MiB, {} MiB free; guests could take back {} MiB",
            self.memory.total / PAGES_PER_MIB,
            self.memory.free / PAGES_PER_MIB,
            self.promised() / PAGES_PER_MIB
        )
    }
}

/// The guests of `after`, with rates since `before` where they were there.
#[allow(clippy::cast_precision_loss)] // rates, for reading
fn rows(before: &Sample, after: &Sample) -> Vec<Row> {
    let seconds = after.at.saturating_sub(before.at).as_secs_f64();
    let row = |(seen, look): &(Seen, Look)| {
        let now = look.statistics;
        let earlier = before
            .guests
            .iter()
            .find(|(other, _)| other.domain == seen.domain)
            .map_or(look, |(_, look)| look);
        let rate = |now: u64, earlier: u64| {
            let difference = now.saturating_sub(earlier) as f64;
            if seconds > 0.0 { difference / seconds } else { 0.0 }
        };
        Row {
            domain: seen.domain,
            name: seen.name.clone().unwrap_or_default(),
            state: match State::from_code(now.state) {
                Some(State::Admitted) => "attached",
                Some(State::Loaded) => "loaded",
                Some(State::Ended) => "ended",
                Some(State::Empty) | None => "-",
            },
            limit: look.max_pages,
            held: look.pages,
            free: now.scan_free,
            given_back: look.given_back(),
            unshared_rate: rate(look.unshared(), earlier.unshared()),
            paused: rate(now.pause_total_ns, earlier.statistics.pause_total_ns) / 1e9,
        }
    };
    after.guests.iter().map(row).collect()
}

fn table(sample: &Sample, rows: &[Row]) -> String {
    let mut text = format!(
        "{}\n\n{:>5} {:20} {:9} {:>9} {:>9} {:>9} {:>10} {:>12} {:>8}\n",
        sample.host_line(),
        "domid",
        "name",
        "state",
        "limit MiB",
        "held MiB",
        "free MiB",
        "given back",
        "unshared/s",
        "paused %"
    );
    for row in rows {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:>5} {:20} {:9} {:>9} {:>9} {:>9} {:>10} {:>12.1} {:>8.3}",
            row.domain,
            row.name,
            row.state,
            row.limit / PAGES_PER_MIB,
            row.held / PAGES_PER_MIB,
            row.free / PAGES_PER_MIB,
            row.given_back / PAGES_PER_MIB,
            row.unshared_rate,
            row.paused * 100.0
        );
    }
    text.truncate(text.trim_end().len());
    text
}

fn answer(sample: &Sample, rows: &[Row]) -> Value {
    let guests: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "domain": row.domain,
                "name": row.name,
                "state": row.state,
                "limit_pages": row.limit,
                "held_pages": row.held,
                "free_pages": row.free,
                "given_back_pages": row.given_back,
                "unshared_pages_per_second": row.unshared_rate,
                "paused_ratio": row.paused,
            })
        })
        .collect();
    json!({
        "host_pages": sample.memory.total,
        "host_free_pages": sample.memory.free,
        "promised_pages": sample.promised(),
        "short_pages": sample.promised().saturating_sub(sample.memory.free),
        "guests": guests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_core::abi::Statistics;

    fn sample(seconds: u64, unshared: u64, pause_total_ns: u64) -> Sample {
        let seen = Seen {
            domain: 3,
            name: Some("web".to_owned()),
        };
        let look = Look {
            pages: 100_000,
            max_pages: 131_072,
            statistics: Statistics {
                state: State::Admitted as u64,
                scan_free: 40_000,
                zero_gfns: 31_000,
                content_gfns: 72,
                unshared: unshared / 2,
                content_unshared: unshared - unshared / 2,
                pause_total_ns,
                ..Statistics::default()
            },
        };
        Sample {
            at: Duration::from_secs(seconds),
            memory: HostMemory {
                total: 1 << 20,
                free: 30_000,
                claimed: 0,
            },
            guests: vec![(seen, look)],
        }
    }

    #[test]
    #[allow(clippy::float_cmp)] // these values are exact
    fn rates_are_those_of_the_interval() {
        let (before, after) = (sample(10, 500, 0), sample(12, 600, 10_000_000));
        let rows = rows(&before, &after);
        assert_eq!((rows[0].unshared_rate, rows[0].paused), (50.0, 0.005));
        let table = table(&after, &rows);
        for part in [
            "web",
            "attached",
            "121",
            "50.0",
            "0.500",
            "117 MiB free",
            "take back 121 MiB",
        ] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
        let answer = answer(&after, &rows);
        assert_eq!(answer["short_pages"], 1_072);
        assert_eq!(answer["guests"][0]["unshared_pages_per_second"], 50.0);
    }

    #[test]
    #[allow(clippy::float_cmp)]
    fn a_guest_that_has_just_come_has_no_rates() {
        let mut before = sample(10, 0, 0);
        before.guests.clear();
        assert_eq!(rows(&before, &sample(11, 900, 9))[0].unshared_rate, 0.0);
    }
}
