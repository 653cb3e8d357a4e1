//! The daemon's decisions, on a host of a few numbers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fake_host;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fake_host::{FakeGuest, FakeHost};
use lacuna::daemon::config::Config;
use lacuna::daemon::metrics::{Snapshot, definitions};
use lacuna::daemon::supervisor::Supervisor;
use lacuna::failure::Cause;
use lacuna_core::abi::State;

/// A configuration, in which everything is given back: simpler to count than what the policy would choose.
fn config(text: &str) -> Config {
    let everything = "[defaults]\ngive_back = \"everything\"\n";
    let text = if text.contains("[defaults]\n") {
        text.replace("[defaults]\n", everything)
    } else {
        format!("{text}{everything}")
    };
    Config::parse(&text, Path::new("test.toml")).unwrap()
}

fn supervisor(host: &FakeHost, text: &str) -> Supervisor<FakeHost> {
    Supervisor::new(host.clone(), config(text))
}

/// Lets `seconds` pass.
fn pass(host: &FakeHost, supervisor: &mut Supervisor<FakeHost>, seconds: u64) {
    let end = host.0.borrow().now + Duration::from_secs(seconds);
    for _ in 0..1_000_000 {
        let idle = supervisor.tick();
        let world = &mut *host.0.borrow_mut();
        if world.now + idle > end {
            world.now = world.now.max(end);
            return;
        }
        world.now += idle;
    }
    panic!("the supervisor never rests");
}

fn count(log: &[String], what: &str) -> usize {
    log.iter().filter(|entry| *entry == what).count()
}

#[test]
fn a_new_guest_is_attached_and_given_back_without_an_order() {
    let host = FakeHost::new();
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 10);
    assert_eq!(host.take_log(), [""; 0]);
    host.put(3, FakeGuest::named("web"));
    pass(&host, &mut daemon, 10);
    let log = host.take_log();
    assert_eq!(log[..3], ["attach 3", "scan 3", "scan 3"], "{log:?}");
    assert_eq!(count(&log, "share 3"), 6, "{log:?}");
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
    // Ten more rounds in ten minutes, at the interval of a minute, and no more.
    pass(&host, &mut daemon, 600);
    let log = host.take_log();
    assert_eq!(
        (count(&log, "attach 3"), count(&log, "scan 3")),
        (0, 20),
        "{log:?}"
    );
}

#[test]
fn what_will_stay_free_is_given_back_and_the_headroom_left() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let settled = Config::parse("", Path::new("test.toml")).unwrap();
    let mut daemon = Supervisor::new(host.clone(), settled);
    pass(&host, &mut daemon, 10);
    assert_eq!(
        host.0.borrow().guests[&3].zero,
        0,
        "free at one scan is not yet likely to stay so"
    );
    pass(&host, &mut daemon, 120);
    let headroom = daemon.guests()[&3].policy.headroom();
    let zero = host.0.borrow().guests[&3].zero;
    assert!(
        headroom > 0 && zero + headroom <= 6_000,
        "{zero} given back, {headroom} to be left"
    );
    // Whole regions of 512 pages, eleven of them free.
    assert!(zero >= 5 * 1024, "{zero} given back");
    pass(&host, &mut daemon, 600);
    assert!(host.0.borrow().guests[&3].zero + headroom <= 6_000);
    // A daemon that knows nothing of it neither gives back more nor takes forever to learn.
    let mut second = Supervisor::new(host.clone(), daemon.config().clone());
    pass(&host, &mut second, 300);
    assert!(host.0.borrow().guests[&3].zero + headroom <= 6_000);
}

#[test]
fn a_daemon_that_was_killed_goes_on_where_it_was() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    // Killed after each number of steps that a first round can have.
    for steps in 0..12 {
        host.put(3, FakeGuest::named("web"));
        let mut first = supervisor(&host, "");
        for _ in 0..steps {
            first.tick();
        }
        drop(first);
        let attached = count(&host.take_log(), "attach 3");
        let mut second = supervisor(&host, "");
        pass(&host, &mut second, 10);
        let log = host.take_log();
        assert_eq!(
            attached + count(&log, "attach 3"),
            1,
            "after {steps} steps: {log:?}"
        );
        assert_eq!(host.0.borrow().guests[&3].zero, 6_000, "after {steps} steps");
    }
}

#[test]
fn a_guest_that_has_changed_its_kernel_is_attached_anew() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 10);
    host.change(3, |guest| guest.state = State::Ended);
    pass(&host, &mut daemon, 120);
    assert_eq!(count(&host.take_log(), "attach 3"), 2);
    assert_eq!(host.0.borrow().guests[&3].state, State::Admitted);
}

#[test]
fn a_guest_that_comes_back_under_another_number_is_attached_again() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 10);
    host.0.borrow_mut().guests.remove(&3);
    host.put(4, FakeGuest::named("web"));
    pass(&host, &mut daemon, 10);
    assert_eq!(daemon.guests().keys().copied().collect::<Vec<_>>(), [4]);
    assert_eq!(host.0.borrow().guests[&4].zero, 6_000);
}

#[test]
fn a_refusal_is_named_and_tried_again_ever_more_rarely() {
    let host = FakeHost::new();
    host.put(
        3,
        FakeGuest {
            attach_fails: vec![Cause::UnknownKernel, Cause::NoLayout, Cause::NoLayout],
            ..FakeGuest::named("web")
        },
    );
    let mut daemon = supervisor(&host, "");
    for (wait, reason, tries) in [
        (1, Some("unknown_kernel"), 1),
        (5, Some("no_layout"), 2),
        (8, Some("no_layout"), 2),
        (3, Some("no_layout"), 3),
        (17, Some("no_layout"), 3),
        (3, None, 4),
    ] {
        pass(&host, &mut daemon, wait);
        let watched = &daemon.guests()[&3];
        let seen = watched.exclusion.as_ref().map(|exclusion| exclusion.cause.name());
        assert_eq!(seen, reason);
        let counters = watched.counters;
        assert_eq!(
            counters.attached + counters.attach_failures,
            tries,
            "{counters:?}"
        );
    }
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
}

#[test]
fn a_guest_that_boots_or_is_restored_is_tried_again_soon_however_long_it_takes() {
    let host = FakeHost::new();
    host.put(
        3,
        FakeGuest {
            attach_fails: vec![Cause::Booting; 12],
            ..FakeGuest::named("web")
        },
    );
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 58);
    let watched = &daemon.guests()[&3];
    let seen = watched.exclusion.as_ref().map(|exclusion| exclusion.cause.name());
    assert_eq!((seen, watched.counters.attach_failures), (Some("booting"), 12));
    pass(&host, &mut daemon, 5);
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
}

#[test]
fn what_a_round_gave_back_is_counted_from_its_beginning() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 10);
    assert_eq!(daemon.guests()[&3].gave, 6_000);
    host.change(3, |guest| guest.zero -= 300);
    pass(&host, &mut daemon, 60);
    assert_eq!(daemon.guests()[&3].gave, 300);
}

#[test]
fn one_guest_in_trouble_keeps_no_other_waiting() {
    let host = FakeHost::new();
    for (domain, cause) in [
        (1, Cause::NotHvm),
        (2, Cause::Busy),
        (3, Cause::Blocked),
        (4, Cause::Other),
    ] {
        host.put(
            domain,
            FakeGuest {
                always: Some(cause),
                ..FakeGuest::named("bad")
            },
        );
    }
    host.put(5, FakeGuest::named("good"));
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 20);
    assert_eq!(host.0.borrow().guests[&5].zero, 6_000);
    assert!(daemon.all_served() || daemon.guests()[&2].exclusion.is_none());
}

#[test]
fn each_mode_does_what_it_says() {
    let host = FakeHost::new();
    for (domain, name) in [(1, "left"), (2, "watched"), (3, "given")] {
        host.put(domain, FakeGuest::named(name));
    }
    let text =
        "[defaults]\nmode = \"off\"\n[domain.watched]\nmode = \"observe\"\n[domain.given]\nmode = \"free\"\n";
    let mut daemon = supervisor(&host, text);
    pass(&host, &mut daemon, 30);
    let log = host.take_log();
    assert!(log.iter().all(|entry| !entry.ends_with(" 1")), "{log:?}");
    assert!(
        count(&log, "scan 2") > 0 && count(&log, "share 2") == 0,
        "{log:?}"
    );
    assert!(count(&log, "share 3") > 0, "{log:?}");
    // Another configuration takes effect at once.
    daemon.configure(config(
        "[defaults]\nmode = \"off\"\n[domain.left]\nmode = \"free\"\n",
    ));
    pass(&host, &mut daemon, 120);
    let log = host.take_log();
    assert!(log.iter().all(|entry| entry.ends_with(" 1")), "{log:?}");
    assert!(count(&log, "share 1") > 0, "{log:?}");
}

#[test]
fn equal_pages_are_shared_after_the_free_ones_and_within_the_group_alone() {
    let host = FakeHost::new();
    for (domain, name) in [(1, "one"), (2, "two"), (3, "plain")] {
        host.put(
            domain,
            FakeGuest {
                equal: 1_000,
                ..FakeGuest::named(name)
            },
        );
    }
    let text = "[defaults]\nmode = \"free+content\"\n[domain.two]\ntrust_group = \"build\"\n[domain.plain]\nmode = \"free\"\n";
    let mut daemon = supervisor(&host, text);
    pass(&host, &mut daemon, 30);
    let log = host.take_log();
    let first = |what: &str| log.iter().position(|entry| entry == what).unwrap();
    let last = |what: &str| log.iter().rposition(|entry| entry == what).unwrap();
    assert!(last("share 1") < first("group \"\" 1"), "{log:?}");
    assert!(first("group \"\" 1") < first("content 1"), "{log:?}");
    assert!(first("group \"build\" 2") < first("content 2"), "{log:?}");
    assert_eq!(
        (count(&log, "content 1"), count(&log, "content 3")),
        (2, 0),
        "{log:?}"
    );
    assert_eq!(host.0.borrow().guests[&1].merged, 1_000);
    assert_eq!(host.0.borrow().guests[&3].merged, 0);
    assert_eq!(
        daemon.guests()[&1].given_back(),
        7_000,
        "what a guest may take back counts as promised, however it is shared"
    );
}

#[test]
fn contents_are_looked_at_ever_more_rarely_where_there_is_nothing_to_find() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let mut daemon = supervisor(
        &host,
        "[defaults]\nmode = \"free+content\"\ninterval_seconds = 1.0\n",
    );
    pass(&host, &mut daemon, 200);
    let counters = daemon.guests()[&3].counters;
    assert!(counters.rounds > 190, "{counters:?}");
    assert!((8..=12).contains(&counters.content_rounds), "{counters:?}");
}

#[test]
fn a_guest_that_cannot_leave_its_group_shares_nothing_more_and_its_free_pages_all_the_same() {
    let host = FakeHost::new();
    host.put(
        3,
        FakeGuest {
            equal: 1_000,
            group: "old".to_owned(),
            stays: true,
            ..FakeGuest::named("web")
        },
    );
    let mut daemon = supervisor(&host, "[defaults]\nmode = \"free+content\"\n");
    pass(&host, &mut daemon, 200);
    let log = host.take_log();
    assert_eq!(count(&log, "content 3"), 0, "{log:?}");
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
    let watched = &daemon.guests()[&3];
    assert!(watched.content_trouble.is_some() && watched.exclusion.is_none());
    host.change(3, |guest| guest.stays = false);
    pass(&host, &mut daemon, 600);
    assert_eq!(host.0.borrow().guests[&3].merged, 1_000);
}

#[test]
fn below_the_reserve_nothing_more_is_shared_by_content() {
    let host = FakeHost::new();
    host.put(
        3,
        FakeGuest {
            equal: 2_000,
            ..FakeGuest::named("web")
        },
    );
    host.0.borrow_mut().free = 20_000;
    let mut daemon = supervisor(
        &host,
        "[host]\nreserve_mib = 100\n[defaults]\nmode = \"free+content\"\ninterval_seconds = 1.0\n",
    );
    pass(&host, &mut daemon, 20);
    let log = host.take_log();
    assert_eq!(count(&log, "content 3"), 0, "{log:?}");
    host.0.borrow_mut().free = 60_000;
    pass(&host, &mut daemon, 60);
    assert_eq!(host.0.borrow().guests[&3].merged, 2_000);
}

#[test]
fn a_busy_guest_is_scanned_again_and_a_wrong_profile_replaced() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 10);
    host.take_log();
    host.change(3, |guest| guest.disagrees = 2);
    pass(&host, &mut daemon, 120);
    assert_eq!(
        count(&host.take_log(), "attach 3"),
        0,
        "two disagreements are noise"
    );
    host.change(3, |guest| guest.disagrees = 3);
    pass(&host, &mut daemon, 120);
    assert_eq!(count(&host.take_log(), "attach 3"), 1, "three are not");
    assert_eq!(daemon.guests()[&3].counters.disagreements, 5);
}

#[test]
fn the_share_of_a_cpu_holds_however_much_there_is_to_do() {
    let host = FakeHost::new();
    host.0.borrow_mut().cost = Duration::from_millis(200);
    for domain in 1..=8 {
        host.put(domain, FakeGuest::named("web"));
    }
    let mut daemon = supervisor(
        &host,
        "[daemon]\ncpu_percent = 5\n[defaults]\ninterval_seconds = 1.0\n",
    );
    pass(&host, &mut daemon, 2000);
    let used = host.0.borrow().cpu;
    assert!(used <= Duration::from_secs(102), "{used:?} of 2000 s");
    assert!(
        used >= Duration::from_secs(90),
        "{used:?} of 2000 s: idle for no reason"
    );
    let rounds: Vec<u64> = daemon
        .guests()
        .values()
        .map(|watched| watched.counters.rounds)
        .collect();
    let (least, most) = (rounds.iter().min().unwrap(), rounds.iter().max().unwrap());
    assert!(
        least + 1 >= *most && *least > 0,
        "each guest gets its turn: {rounds:?}"
    );
}

#[test]
fn below_the_reserve_guests_promise_no_more() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web"));
    let mut daemon = supervisor(
        &host,
        "[host]\nreserve_mib = 100\n[defaults]\ninterval_seconds = 1.0\n",
    );
    pass(&host, &mut daemon, 10);
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
    // Other domains take the memory; then the guest frees more, which may not be given back.
    host.0.borrow_mut().free = 20_000;
    host.change(3, |guest| guest.free = 8_000);
    pass(&host, &mut daemon, 10);
    assert!(daemon.reserve().is_low());
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
    // What it has taken back in the meantime it may give back again.
    host.change(3, |guest| guest.zero = 5_000);
    pass(&host, &mut daemon, 10);
    assert_eq!(host.0.borrow().guests[&3].zero, 6_000);
    host.0.borrow_mut().free = 60_000;
    pass(&host, &mut daemon, 10);
    assert!(!daemon.reserve().is_low());
    assert_eq!(host.0.borrow().guests[&3].zero, 8_000);
}

/// Families and samples of a text in the format of `OpenMetrics`; fails where it breaks the rules of the
/// format that matter to a reader.
fn read_metrics(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let (mut types, mut helps) = (BTreeMap::new(), BTreeMap::new());
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# ") {
            let (word, rest) = rest.split_once(' ').unwrap();
            let (family, value) = rest.split_once(' ').unwrap();
            match word {
                "TYPE" => assert!(
                    types.insert(family.to_owned(), value.to_owned()).is_none(),
                    "{line} twice"
                ),
                "HELP" => assert!(
                    helps.insert(family.to_owned(), value.to_owned()).is_none(),
                    "{line} twice"
                ),
                "UNIT" => assert!(family.ends_with(value), "{line}"),
                other => panic!("{other}"),
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        let family = match types.get(name) {
            Some(kind) => {
                assert_eq!(kind, "gauge", "{line}");
                name
            }
            None => name.strip_suffix("_total").unwrap(),
        };
        assert!(helps.contains_key(family), "{line} has no definition");
        let value: f64 = value.parse().unwrap();
        assert!(
            samples.insert(sample.to_owned(), value).is_none(),
            "{sample} twice"
        );
    }
    samples
}

#[test]
#[allow(clippy::float_cmp)] // these values are exact
fn metrics_are_valid_and_say_what_happened() {
    let host = FakeHost::new();
    host.put(3, FakeGuest::named("web \"1\"\n"));
    host.put(
        4,
        FakeGuest {
            attach_fails: vec![Cause::PagePoison; 9],
            ..FakeGuest::named("odd")
        },
    );
    let mut daemon = supervisor(&host, "");
    pass(&host, &mut daemon, 10);
    let text = Snapshot::of(&daemon).text();
    let samples = read_metrics(&text);
    let value = |name: &str| {
        *samples
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in {text}"))
    };
    let web = r#"{domain="3",name="web \"1\"\n"}"#;
    assert_eq!(
        value(&format!("lacuna_guest_given_back_bytes{web}")),
        6_000.0 * 4096.0
    );
    assert_eq!(
        value(&format!("lacuna_guest_shared_bytes_total{web}")),
        6_000.0 * 4096.0
    );
    assert_eq!(value(&format!("lacuna_guest_paused_seconds_total{web}")), 0.0015);
    assert_eq!(value(&format!("lacuna_guest_reserve_bytes{web}")), 24.0 * 4096.0);
    assert_eq!(
        value(&format!("lacuna_guest_reserve_full_bytes{web}")),
        48.0 * 4096.0
    );
    assert_eq!(value(&format!("lacuna_guest_stands_total{web}")), 1.0);
    assert_eq!(value(&format!("lacuna_guest_stood_seconds_total{web}")), 2.5);
    assert_eq!(value("lacuna_host_promised_bytes"), 6_000.0 * 4096.0);
    assert_eq!(value("lacuna_daemon_guests"), 2.0);
    assert_eq!(value("lacuna_daemon_cpu_limit_ratios"), 0.05);
    let odd = r#"lacuna_guest_state{domain="4",name="odd",mode="free",attached="no",reason="page_poison"}"#;
    assert_eq!(value(odd), 1.0);
    // A guest that is gone is told of no more.
    host.0.borrow_mut().guests.remove(&4);
    pass(&host, &mut daemon, 10);
    assert!(!Snapshot::of(&daemon).text().contains("odd"));
}

#[test]
fn every_metric_is_documented_word_for_word() {
    let documentation = include_str!("../../docs/daemon.md");
    for (name, help) in definitions() {
        let row = documentation
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")))
            .unwrap_or_else(|| panic!("docs/daemon.md has no row for {name}"));
        assert!(
            row.contains(help),
            "docs/daemon.md says of {name}\n{row}\nand not\n{help}"
        );
    }
}
