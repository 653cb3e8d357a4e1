//! The daemon, on its own: guests come and go, it is killed and started again, and nobody runs a command.

use std::time::Duration;

use lacuna_guest::{Report, Task};

use crate::daemon::{Daemon, Metrics};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, wait_until};
use crate::tool::number;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// How long the daemon may take for what it does within seconds when nothing else runs.
const DAEMON_LIMIT: Duration = Duration::from_secs(120);
/// Short intervals, and most of a CPU: what is looked at is that it acts, not how rarely.
const CONFIGURATION: &str = "[daemon]\npoll_seconds = 1\ncpu_percent = 80\nretry_first_seconds = 1\n\
    retry_longest_seconds = 5\n[log]\nformat = \"json\"\nlevel = \"debug\"\n[defaults]\ninterval_seconds = 2.0\n\
    [host]\nreserve_mib = 16\n";
/// Part of what the guest has free beyond its headroom that has to be given back.
const PER_CENT: f64 = 90.0;
/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// How long after its start a daemon is killed: while it looks for guests, attaches, scans, shares.
const KILLED_AFTER: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1200),
    Duration::from_millis(2100),
    Duration::from_millis(3300),
];
/// What a round may give back beyond its allowance: a slice, the least that the engine does.
const SLICE_MIB: f64 = 16.0;

/// A guest starts beside a running daemon and gives back all but its headroom; the daemon is killed and
/// started again, and goes on without attaching anew; the guest goes, another one of its name comes, and
/// daemons are killed at many moments while it works.
pub(crate) fn unattended(host: &mut Host) -> Result<()> {
    let mut daemon = Daemon::start(CONFIGURATION)?;
    let plan = |name| Plan {
        mib: 256,
        ..Plan::stock(name, "6.12")
    };
    let mut first = host.create(&plan("first"))?;
    first.order(Task::Fill, AGENT_LIMIT)?;
    let metrics = given_back(host, &mut daemon, &first)?;
    host.figure("samples", metrics.len())?;
    let pages = metrics.of_guest("given_back_bytes", first.name, first.domain);
    host.figure("given_back_mib", pages.unwrap_or(0.0) / MIB)?;
    for metric in [
        "host_memory_bytes",
        "host_free_bytes",
        "host_promised_bytes",
        "daemon_cpu_seconds_total",
    ] {
        let value = metrics.of_host(metric);
        ensure(
            value.is_some_and(|value| value > 0.0),
            metric,
            "more than nothing",
            &format!("{value:?}"),
        )?;
    }

    host.note("the daemon is killed; the guest goes on, and takes memory back without it")?;
    daemon.kill()?;
    first.order(Task::Grow { mib: 64 }, AGENT_LIMIT)?;
    first.order(Task::Shrink, AGENT_LIMIT)?;
    let generation = host.lacuna(&["status", first.name])?.number("generation")?;
    let mut daemon = Daemon::start(CONFIGURATION)?;
    let metrics = given_back(host, &mut daemon, &first)?;
    let after = host.lacuna(&["status", first.name])?.number("generation")?;
    equal("profiles that the guest was given", &generation, &after)?;
    let attaches = metrics.of_guest("attaches_total", first.name, first.domain);
    ensure(
        attaches.is_some_and(|attaches| attaches < 0.5),
        "attaches by the second daemon",
        "none",
        &format!("{attaches:?}"),
    )?;
    first.check_health()?;

    let answer = host.lacuna(&["top", "--once"])?;
    let row = |member: &str| number(&answer.body["guests"][0], member);
    equal(
        "the guest's number in `lacuna top`",
        &u64::from(first.domain),
        &row("domain")?,
    )?;
    ensure(
        row("given_back_pages")? > 0 && row("held_pages")? + row("given_back_pages")? <= row("limit_pages")?,
        "the guest's row in `lacuna top`",
        "memory given back, and no more in all than the limit",
        &answer.body.to_string(),
    )?;

    let domain = first.domain;
    first.destroy(host)?;
    let mut again = host.create(&plan("first"))?;
    let metrics = given_back(host, &mut daemon, &again)?;
    equal(
        "whether the guest that is gone is told of",
        &false,
        &metrics.of_guest("given_back_bytes", "first", domain).is_some(),
    )?;
    host.figure(
        "daemon_cpu_seconds",
        metrics.of_host("daemon_cpu_seconds_total").unwrap_or(0.0),
    )?;
    daemon.stop()?;

    host.note("daemons are killed at any moment while the guest works")?;
    host.lacuna(&["detach", again.name])?;
    again.order(
        Task::WorkStart {
            threads: 1,
            mib: 64,
            seed: 0x1ac4_0005,
        },
        AGENT_LIMIT,
    )?;
    for after in KILLED_AFTER {
        let daemon = Daemon::start(CONFIGURATION)?;
        std::thread::sleep(after);
        daemon.kill()?;
    }
    let mut daemon = Daemon::start(CONFIGURATION)?;
    let report = again.order(Task::WorkStop, AGENT_LIMIT)?;
    let Report::Work { blocks, corrupt, .. } = report else {
        return Err(differs(
            "the workload's end",
            "its counters",
            &format!("{report:?}"),
        ));
    };
    host.figure("blocks", blocks)?;
    equal("corrupt words in the guest", &0, &corrupt)?;
    given_back(host, &mut daemon, &again)?;
    again.check_health()?;
    daemon.stop()
}

/// Waits until most of what `guest` has free is given back, and returns what the daemon tells then.
fn given_back(host: &mut Host, daemon: &mut Daemon, guest: &Guest) -> Result<Metrics> {
    host.note(&format!("waiting for the daemon to give back {}", guest.name))?;
    let sample = |metrics: &Metrics, metric| metrics.of_guest(metric, guest.name, guest.domain);
    let mut begun = None;
    let mut last = String::new();
    wait_until("the daemon gives the guest's memory back", DAEMON_LIMIT, || {
        let Some(metrics) = daemon.metrics()? else {
            return Ok(None);
        };
        let names = ["rounds_total", "free_bytes", "given_back_bytes", "headroom_bytes"];
        let told = names.map(|metric| sample(&metrics, metric));
        last = format!("{told:?}");
        let [Some(rounds), Some(free), Some(given_back), Some(headroom)] = told else {
            return Ok(None);
        };
        // Whole rounds from here on, not what an earlier one found.
        let done = rounds >= *begun.get_or_insert(rounds) + 2.0
            && free > 64.0 * MIB
            && given_back >= (free - headroom) * PER_CENT / 100.0;
        if done {
            ensure(
                headroom > 0.0 && given_back + headroom <= free + SLICE_MIB * MIB,
                "what is left to the guest",
                "its headroom",
                &last,
            )?;
        }
        Ok(done.then_some(metrics))
    })
    .map_err(|failure| {
        differs(
            "the daemon's rounds, and the bytes free, given back and left as headroom",
            "most of what is free beyond the headroom given back",
            &format!("{last}; {failure}"),
        )
    })
}
