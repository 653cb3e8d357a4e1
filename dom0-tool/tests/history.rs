//! The history that the daemon keeps, and what `lacuna report` makes of it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
mod fake_host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use fake_host::{FakeGuest, FakeHost};
use lacuna::daemon::config::{Config, History};
use lacuna::daemon::recorder::{EventQueue, Recorder};
use lacuna::daemon::supervisor::Supervisor;
use lacuna::failure::Cause;
use lacuna::ops::history::{Entry, read};
use serde_json::Value;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};

const HOSTILE: &str = "<script src='https://evil.example'>\u{1b}[2J";
const DAY: u64 = 86_400;
/// The day ended a moment ago, so it began a little more than a day ago.
const LONGER: &str = "25h";

/// Lets a daemon run for a day that ends now, on a host on which guests come, go, swing and are refused. It is
/// ended and started again at noon.
fn a_day(file: &Path) {
    let host = FakeHost::new();
    host.put(1, FakeGuest::named("web"));
    host.put(2, FakeGuest::named(HOSTILE));
    let refused = FakeGuest {
        always: Some(Cause::PagePoison),
        ..FakeGuest::named("poisoned")
    };
    host.put(3, refused);
    let began = SystemTime::now() - Duration::from_secs(DAY);
    for half in [0..720_u64, 720..1440] {
        let queue = EventQueue::default();
        // As the daemon's own log has it.
        let subscriber = Registry::default().with(queue.clone().with_filter(LevelFilter::INFO));
        tracing::subscriber::with_default(subscriber, || {
            let config = Config::parse("[defaults]\ngive_back = \"everything\"\n", Path::new("x")).unwrap();
            let history = History {
                file: file.to_owned(),
                mib: 1,
            };
            let mut recorder = Recorder::open(&history, queue);
            let mut supervisor = Supervisor::new(host.clone(), config);
            for minute in half {
                swing(&host, minute);
                let end = Duration::from_secs((minute + 1) * 60);
                loop {
                    let idle = supervisor.tick();
                    let now = host.0.borrow().now;
                    recorder.record(&supervisor, began + now);
                    if now + idle >= end {
                        host.0.borrow_mut().now = end;
                        break;
                    }
                    host.0.borrow_mut().now = now + idle;
                }
            }
        });
    }
}

/// What guests do in a minute: `web` uses and frees memory by the hour, and starts again at six.
fn swing(host: &FakeHost, minute: u64) {
    if minute == 360 {
        host.0.borrow_mut().guests.remove(&1);
        host.put(7, FakeGuest::named("web"));
    }
    let domain = if minute < 360 { 1 } else { 7 };
    host.change(domain, |guest| {
        let wanted = if minute % 60 < 20 { 3000 } else { 6000 };
        guest.taken += guest.zero.saturating_sub(wanted);
        guest.zero = guest.zero.min(wanted);
        guest.free = wanted;
    });
}

fn report(history: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(["report", "--history"])
        .arg(history)
        .args(arguments)
        .output()
        .unwrap()
}

/// A folder that stays, so that people can look at the page.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_day_of_the_daemon_becomes_a_page() {
    let folder = folder();
    let history = folder.join("history");
    a_day(&history);
    let past = read(&history, 0).unwrap();
    let samples = past
        .records
        .iter()
        .filter(|record| matches!(record.entry, Entry::Sample { .. }))
        .count();
    // A sample a minute, and one more for each start.
    assert!((1440..=1443).contains(&samples), "{samples} samples");

    let page = folder.join("day.html");
    let output = report(&history, &["--since", LONGER, "--output", page.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let html = fs::read_to_string(&page).unwrap();
    // The guest that cannot be looked at has events, and no figures.
    assert_eq!(html.matches("<section class=\"guest\">").count(), 2);
    assert_eq!(html.matches("<svg ").count(), 6);
    for part in ["left alone", "page_poison", "restarted", "Domain 1, then 7"] {
        assert!(html.contains(part), "{part} is not in the page");
    }
    assert!(!html.contains("<script") && !html.contains('\u{1b}'));

    let output = report(&history, &["--since", LONGER, "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let web = answer["guests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|guest| guest["name"] == "web")
        .unwrap();
    assert_eq!(web["domains"], serde_json::json!([1, 7]));
    // 3,000 pages in each of about 24 hours.
    let took = web["total"]["took_pages"].as_u64().unwrap();
    assert!((60_000..=72_000).contains(&took), "{took} pages taken again");

    // What the journal shows at its usual level has the rounds that gave memory back, and no more of rounds.
    let events = answer["events"].as_array().unwrap();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert!(count("round.gave_back") >= 23, "{}", count("round.gave_back"));
    assert_eq!(
        (count("round.ended"), count("guest.excluded")),
        (0, 2),
        "refused once by each daemon"
    );

    let output = report(&history, &["--since", "2h"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("web") && text.contains("?[2J") && !text.contains('\u{1b}'),
        "{text}"
    );
    assert!(!text.contains("restarted"), "{text}");
}

#[test]
fn without_a_history_the_status_says_so_and_no_page_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("day.html");
    let output = report(&folder.path().join("none"), &["--output", page.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("lacunad writes it")
    );
    assert!(!page.exists());
}

#[test]
fn the_history_is_not_overwritten_by_its_own_report() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    fs::write(&history, "lacuna history 1\n").unwrap();
    let output = report(&history, &["--output", history.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(fs::read_to_string(&history).unwrap(), "lacuna history 1\n");
}

#[test]
fn a_history_that_cannot_be_kept_does_not_stop_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    // A file where a folder would have to be.
    fs::write(folder.path().join("state"), "").unwrap();
    let history = History {
        file: folder.path().join("state/history"),
        mib: 1,
    };
    let queue = EventQueue::default();
    let subscriber = Registry::default().with(queue.clone());
    tracing::subscriber::with_default(subscriber, || {
        let mut recorder = Recorder::open(&history, queue);
        let host = FakeHost::new();
        let mut supervisor = Supervisor::new(host, Config::default());
        supervisor.tick();
        recorder.record(&supervisor, SystemTime::now());
    });
}
