//! `lacuna top`, and `lacuna status` without a guest: compares all guests and the host.

mod draw;
mod screen;
mod view;

use std::fmt::Write;
use std::io::IsTerminal;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::draw::Look;
use self::view::View;
use super::Out;
use super::cli::Top;
use super::words::clean;
use crate::daemon::client::headrooms;
use crate::daemon::config::Listen;
use crate::failure::Failure;
use crate::ops::host::ThisHost;
use crate::ops::top::{Row, Sample, rows};

/// Pages of a MiB.
const PAGES_PER_MIB: u64 = 256;
/// Shortest interval.
const SHORTEST: Duration = Duration::from_millis(100);
/// Between two questions to the daemon: what it leaves to guests changes with a round at most.
const ASK_DAEMON: Duration = Duration::from_secs(5);

/// Runs `lacuna top`: as a live view on a terminal, as plain tables elsewhere.
pub(super) fn run(arguments: &Top, out: Out) -> Result<Value, Failure> {
    let mut host = ThisHost::open()?;
    let before = Sample::take(&mut host)?;
    if !arguments.once && !out.is_json() && is_for_people() {
        let look = Look::of(arguments.no_color, |name| std::env::var(name).ok());
        live(&mut host, before, arguments.interval.max(SHORTEST), look)?;
        return Ok(Value::Null);
    }
    tables(&mut host, before, arguments, out)
}

/// Returns whether standard output is a terminal on which a cursor can be moved.
fn is_for_people() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|name| name != "dumb")
}

impl Look {
    /// Returns the look that the user and the terminal want; `variable` reads the environment.
    fn of(is_plain: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        // https://no-color.org: present and not empty, whatever its value.
        let is_refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
        // The first of these that is set and not empty rules (POSIX, 8.2).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(variable)
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_uppercase();
        Self {
            has_colour: !is_plain && !is_refused,
            is_unicode: locale.contains("UTF-8") || locale.contains("UTF8"),
        }
    }
}

/// Shows the live view until it is ended. A host that cannot be asked in between is reported there, and asked
/// again.
fn live(host: &mut ThisHost, first: Sample, interval: Duration, look: Look) -> Result<(), Failure> {
    let listen = daemon_listens();
    let mut view = View::default();
    let mut kept = headrooms(&listen).unwrap_or_default();
    let mut asked = Instant::now();
    view.update(&first, rows(&first, &first), &kept);
    let mut before = first;
    screen::show(&mut view, interval, look, |view| {
        let after = Sample::take(host)?;
        if asked.elapsed() >= ASK_DAEMON {
            kept = headrooms(&listen).unwrap_or_default();
            asked = Instant::now();
        }
        view.update(&after, rows(&before, &after), &kept);
        before = after;
        Ok(())
    })?;
    Ok(())
}

/// Returns where a daemon of this host serves its metrics. If its file is wrong there is none to ask.
fn daemon_listens() -> Listen {
    crate::daemon::run::load(None).map_or(Listen::Off, |config| config.listen)
}

/// Prints a table for each interval, or one.
fn tables(host: &mut ThisHost, mut before: Sample, arguments: &Top, out: Out) -> Result<Value, Failure> {
    loop {
        thread::sleep(arguments.interval.max(SHORTEST));
        let after = Sample::take(host)?;
        let rows = rows(&before, &after);
        let answer = answer(&after, &rows);
        out.line(table(&after, &rows));
        if arguments.once {
            return Ok(answer);
        }
        // An empty line between two tables.
        out.line("");
        out.json_line(&answer);
        before = after;
    }
}

/// Runs `lacuna status` without a guest.
pub(super) fn host(out: Out) -> Result<Value, Failure> {
    let sample = Sample::take(&mut ThisHost::open()?)?;
    let promised = sample.promised();
    out.line(host_line(&sample));
    out.line(match promised.saturating_sub(sample.memory.free) {
        0 => "the host could serve all of it now".to_owned(),
        short => format!(
            "were all of it wanted at once, {} MiB would be missing: guests would wait until memory is there",
            short / PAGES_PER_MIB
        ),
    });
    for (seen, state) in &sample.guests {
        out.line(format!(
            "{:>5} {:20} could take back {} MiB",
            seen.domain,
            clean(seen.name.as_deref().unwrap_or("-")),
            state.given_back() / PAGES_PER_MIB
        ));
    }
    Ok(answer(&sample, &rows(&sample, &sample)))
}

fn host_line(sample: &Sample) -> String {
    format!(
        "host: {} MiB, {} MiB free; guests could take back {} MiB",
        sample.memory.total / PAGES_PER_MIB,
        sample.memory.free / PAGES_PER_MIB,
        sample.promised() / PAGES_PER_MIB
    )
}

fn table(sample: &Sample, rows: &[Row]) -> String {
    let mut text = format!(
        "{}\n\n{:>5} {:20} {:9} {:>9} {:>9} {:>9} {:>10} {:>12} {:>8}\n",
        host_line(sample),
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
            clean(&row.name),
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
    use crate::ops::host::{GuestName, GuestState};
    use crate::xen::privcmd::HostMemory;
    use lacuna_core::abi::{State, Statistics};

    fn sample(seconds: u64, unshared: u64, pause_total_ns: u64) -> Sample {
        let seen = GuestName {
            domain: 3,
            name: Some("web".to_owned()),
        };
        let state = GuestState {
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
            guests: vec![(seen, state)],
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
    fn a_look_is_what_the_user_and_the_locale_say() {
        let look = |plain, set: &[(&str, &str)]| {
            let look = Look::of(plain, |name| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            });
            (look.has_colour, look.is_unicode)
        };
        assert_eq!(look(false, &[("LANG", "en_US.UTF-8")]), (true, true));
        assert_eq!(look(true, &[("LANG", "C.utf8")]), (false, true));
        assert_eq!(look(false, &[("NO_COLOR", "1")]), (false, false));
        assert_eq!(look(false, &[("NO_COLOR", "")]), (true, false));
        assert_eq!(
            look(false, &[("LC_ALL", "C"), ("LANG", "C.UTF-8")]),
            (true, false)
        );
    }

    #[test]
    #[allow(clippy::float_cmp)]
    fn a_guest_that_has_just_come_has_no_rates() {
        let mut before = sample(10, 0, 0);
        before.guests.clear();
        assert_eq!(rows(&before, &sample(11, 900, 9))[0].unshared_rate, 0.0);
    }
}
