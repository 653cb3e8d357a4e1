//! The daemon, on its own: guests come and go, it is killed and started again, and nobody runs a command.

use std::time::Duration;

use lacuna_guest::Task;

use crate::daemon::{Daemon, Metrics};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{Host, wait_until};

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(180);
/// How long the daemon may take for what it does within seconds when nothing else runs.
const DAEMON_LIMIT: Duration = Duration::from_secs(120);
/// Short intervals, and most of a CPU: what is looked at is that it acts, not how rarely.
const CONFIGURATION: &str = "[daemon]\npoll_seconds = 1\ncpu_percent = 80\nretry_first_seconds = 1\n\
    retry_longest_seconds = 5\n[log]\nformat = \"json\"\nlevel = \"debug\"\n[defaults]\ninterval_seconds = 2.0\n\
    [host]\nreserve_mib = 16\n";
/// Part of what the guest has free that has to be given back.
const PER_CENT: f64 = 90.0;
/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// A guest starts beside a running daemon and is given back; the daemon is killed and started again, and goes on
/// without attaching anew; the guest goes, another one comes.
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

    let (name, domain) = (first.name, first.domain);
    first.destroy(host)?;
    let mut second = host.create(&plan("second"))?;
    second.order(Task::Fill, AGENT_LIMIT)?;
    let metrics = given_back(host, &mut daemon, &second)?;
    equal(
        "whether the guest that is gone is told of",
        &false,
        &metrics.of_guest("given_back_bytes", name, domain).is_some(),
    )?;
    host.figure(
        "daemon_cpu_seconds",
        metrics.of_host("daemon_cpu_seconds_total").unwrap_or(0.0),
    )?;
    second.check_health()?;
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
        let told = ["rounds_total", "free_bytes", "given_back_bytes"].map(|metric| sample(&metrics, metric));
        last = format!("{told:?}");
        let [Some(rounds), Some(free), Some(given_back)] = told else {
            return Ok(None);
        };
        // Whole rounds from here on, not what an earlier one found.
        let done = rounds >= *begun.get_or_insert(rounds) + 2.0
            && free > 64.0 * MIB
            && given_back >= free * PER_CENT / 100.0;
        Ok(done.then_some(metrics))
    })
    .map_err(|failure| {
        differs(
            "the daemon's rounds, and the bytes free and given back",
            "most of what is free given back",
            &format!("{last}; {failure}"),
        )
    })
}
