//! The daemon on a host of 500 and of 2,000 guests: what it does by its own account, how old its knowledge of
//! each guest is, and whether all get the same.
//!
//! Time is the fake host's: each operation costs what `Costs` says, so the figures are the same on every
//! machine. `cargo test -p lacuna --test daemon_scale -- --nocapture` prints the table in docs/daemon.md.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss)]

mod fake_host;

use std::path::Path;
use std::time::Duration;

use fake_host::{Costs, FakeGuest, FakeHost, World};
use lacuna::daemon::config::Config;
use lacuna::daemon::supervisor::Supervisor;
use lacuna_core::abi::State;

/// Pages of a guest, and of a part of its scan. The parts are as many, and cost as much, as those of a guest
/// of 4 GiB, of which the daemon scans 256 MiB at a time. For the policy, whose arithmetic takes real time, it
/// is a sixteenth of that.
const PAGES: u64 = 1 << 16;
const PIECE: u64 = 1 << 12;
/// For how long it is watched.
const WINDOW: Duration = Duration::from_secs(1800);
/// At a twentieth of a CPU the sixteen milliseconds of a scan take a third of a second, and the looks at all
/// guests between its parts take as long again. With parts of all guests' scans in turns it is minutes.
const LONGEST_SCAN: Duration = Duration::from_secs(5);
/// How many steps of the daemon are taken between two looks at how it does.
const STEPS: u32 = 200;

/// What an operation costs the daemon. These are prices that were assumed, and not measured on a host: for a
/// part of a scan, 45 instructions for each of its 65,536 pages at three a nanosecond, where the core takes 5
/// for one of an aged guest and 128 for one of a fragmented guest (docs/scale.md), and the hypervisor something
/// on top. What the tests hold are shares and differences, not the prices.
const COSTS: Costs = Costs {
    look: Duration::from_micros(20),
    scan: Duration::from_millis(1),
    bitmap: Duration::from_millis(1),
    share: Duration::from_micros(300),
};

/// How the daemon did.
#[derive(Debug)]
struct Outcome {
    /// Until every guest had its first round.
    until_served: Duration,
    /// Share of one CPU after that.
    cpu: f64,
    /// Rounds of the guest that had fewest, and most.
    rounds: (u64, u64),
    /// Age of the last complete scan, for the guest for which it is oldest, and for half of them.
    oldest: Duration,
    median: Duration,
    /// Age of the oldest state in the metrics.
    state: Duration,
    /// The longest that a scan took from its beginning to its end.
    scan: Duration,
    /// Operations a second, looks not counted.
    operations: f64,
}

/// Runs a daemon configured by `text` on `count` guests, which an earlier daemon has attached, until each had
/// a round, and for half an hour more.
fn run(count: u16, text: &str) -> Outcome {
    let host = FakeHost::new();
    {
        let world = &mut *host.0.borrow_mut();
        world.costs = COSTS;
        world.part = PIECE;
    }
    for domain in 1..=count {
        let mut guest = FakeGuest::named(&format!("guest-{domain}"));
        guest.pages = PAGES;
        guest.free = PAGES / 4;
        guest.state = State::Admitted;
        host.put(domain, guest);
    }
    let config = Config::parse(text, Path::new("test.toml")).unwrap();
    let mut daemon = Supervisor::new(host.clone(), config);
    let now = |host: &FakeHost| host.0.borrow().now;
    let steps = |daemon: &mut Supervisor<FakeHost>| {
        for _ in 0..STEPS {
            let idle = daemon.tick();
            host.0.borrow_mut().now += idle;
        }
    };
    steps(&mut daemon);
    while !daemon.all_served() {
        steps(&mut daemon);
        assert!(now(&host) < Duration::from_secs(86_400), "not served in a day");
    }
    let begin = now(&host);
    let cpu = host.0.borrow().cpu;
    host.take_log();
    let before: Vec<u64> = daemon
        .guests()
        .values()
        .map(|guest| guest.counters.rounds)
        .collect();
    let end = begin + WINDOW;
    let mut state = Duration::ZERO;
    while now(&host) < end {
        steps(&mut daemon);
        state = state.max(oldest_look(&host.0.borrow()));
    }
    let world = host.0.borrow();
    let mut ages: Vec<Duration> = world
        .guests
        .values()
        .map(|guest| world.now.saturating_sub(guest.scanned))
        .collect();
    ages.sort_unstable();
    let rounds = daemon.guests().values().zip(before);
    let rounds: Vec<u64> = rounds
        .map(|(guest, before)| guest.counters.rounds - before)
        .collect();
    let passed = world.now.saturating_sub(begin).as_secs_f64();
    Outcome {
        until_served: begin,
        cpu: world.cpu.saturating_sub(cpu).as_secs_f64() / passed,
        rounds: (*rounds.iter().min().unwrap(), *rounds.iter().max().unwrap()),
        oldest: *ages.last().unwrap(),
        median: ages[ages.len() / 2],
        state,
        scan: world
            .guests
            .values()
            .map(|guest| guest.longest_scan)
            .max()
            .unwrap_or_default(),
        operations: world.log.len() as f64 / passed,
    }
}

/// How long ago the guest was asked for its state that was not asked for longest.
fn oldest_look(world: &World) -> Duration {
    let looks = world
        .guests
        .values()
        .map(|guest| world.now.saturating_sub(guest.looked));
    looks.max().unwrap_or_default()
}

fn print(name: &str, outcome: &Outcome) {
    println!(
        "| {name} | {:.0} min | {:.1} % | {} to {} | {:.0} s, {:.0} s | {:.1} s | {:.1} s | {:.0} |",
        outcome.until_served.as_secs_f64() / 60.0,
        outcome.cpu * 100.0,
        outcome.rounds.0,
        outcome.rounds.1,
        outcome.median.as_secs_f64(),
        outcome.oldest.as_secs_f64(),
        outcome.scan.as_secs_f64(),
        outcome.state.as_secs_f64(),
        outcome.operations,
    );
}

/// A host as it is by default: the CPU budget holds, and no guest waits longer than the others.
#[test]
fn many_guests_get_the_same_within_the_budget() {
    for count in [500, 2_000] {
        let outcome = run(count, "");
        print(&format!("{count} guests, the defaults"), &outcome);
        assert!(outcome.cpu <= 0.0525, "{outcome:?}");
        assert!(outcome.rounds.0 + 2 >= outcome.rounds.1, "{outcome:?}");
        assert!(outcome.scan <= LONGEST_SCAN, "{outcome:?}");
    }
}

/// What docs/daemon.md tells the operator of such a host to set: rounds come as often as they are wanted.
#[test]
fn with_the_settings_for_many_guests_no_round_is_late() {
    for (count, interval, cpu, poll) in [(500, 300, 10, 10), (2_000, 600, 20, 30)] {
        let text = format!(
            "[daemon]\npoll_seconds = {poll}\ncpu_percent = {cpu}\n[defaults]\ninterval_seconds = {interval}.0\n"
        );
        let outcome = run(count, &text);
        print(
            &format!(
                "{count} guests, `interval_seconds = {interval}`, `cpu_percent = {cpu}`, `poll_seconds = {poll}`"
            ),
            &outcome,
        );
        let wanted = WINDOW.as_secs() / interval;
        assert!(
            outcome.rounds.0 + 1 >= wanted && outcome.rounds.1 <= wanted + 1,
            "{outcome:?}"
        );
        assert!(outcome.cpu < f64::from(cpu) / 100.0, "{outcome:?}");
        assert!(outcome.oldest <= Duration::from_secs(2 * interval), "{outcome:?}");
        assert!(outcome.scan <= LONGEST_SCAN, "{outcome:?}");
        assert!(outcome.state <= Duration::from_secs(2 * poll), "{outcome:?}");
    }
}
