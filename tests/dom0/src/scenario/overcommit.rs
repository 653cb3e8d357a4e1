//! More memory promised to guests than the host has, and all of them wanting it at once.

use std::time::{Duration, Instant};

use lacuna_guest::Task;

use crate::daemon::{Daemon, Metrics};
use crate::failure::{Result, differs, ensure, equal};
use crate::guest::{Guest, Plan};
use crate::host::{FLOOR_MIB, Host, free_mib, wait_until};
use crate::tool::number;

/// How long the agent may take for what touches much of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(240);
/// How long the daemon and the host may take for what takes them seconds.
const HOST_LIMIT: Duration = Duration::from_secs(240);
/// How long the host is left without memory: more than half of what Linux takes for a soft lockup.
const STARVED: Duration = Duration::from_secs(12);
/// The daemon's reserve.
const RESERVE_MIB: u64 = 96;
/// What the neighbour leaves free: less than the reserve, and far less than what guests may take back.
const LEFT_MIB: u64 = 64;
/// What the working guests use, in MiB each.
const WORK_MIB: u32 = 128;
/// What another one takes at once, in MiB.
const GROWN_MIB: u32 = 144;
/// What dom0 has (the lab's `dom0_mem`), and what it is asked to do with for a while, in MiB.
const DOM0_MIB: [u64; 2] = [1500, 1420];
/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// Returns the daemon's configuration, with what it does for the guest `late`. The neighbour never runs, so
/// has no kernel to be found: looking for one in all of its memory again and again would keep the daemon
/// from the others.
fn configuration(late: &str) -> String {
    format!(
        "[daemon]\npoll_seconds = 1\ncpu_percent = 80\nretry_first_seconds = 1\nretry_longest_seconds = 5\n\
         [log]\nformat = \"json\"\n[host]\nreserve_mib = {RESERVE_MIB}\n\
         [defaults]\ninterval_seconds = 1.0\ngive_back = \"everything\"\n[domain.late]\nmode = \"{late}\"\n\
         [domain.neighbour]\nmode = \"off\"\n"
    )
}

/// Guests are given back by the daemon; a neighbour takes what that freed; then all guests use their memory
/// at once. None dies, none reads wrong data, the daemon stops sharing and says so, and all go on as memory
/// is added.
pub(crate) fn all_at_once(host: &mut Host) -> Result<()> {
    let names = ["one", "two", "three", "late"];
    let mut guests = Vec::new();
    for name in names {
        guests.push(host.create(&Plan {
            mib: 256,
            ..Plan::stock(name, "6.12")
        })?);
    }
    let mut daemon = Daemon::start(&configuration("observe"))?;
    host.note("waiting for the daemon to give the guests' memory back")?;
    for guest in &guests[..3] {
        wait_for(&mut daemon, "the guest's free memory is given back", |metrics| {
            let sample = |metric| metrics.of_guest(metric, guest.name, guest.domain);
            Some(sample("given_back_bytes")? >= 0.9 * sample("free_bytes")? && sample("rounds_total")? >= 2.0)
        })?;
    }

    host.crowd(free_mib()?, LEFT_MIB)?;
    let metrics = wait_for(&mut daemon, "the daemon is told that memory is low", |metrics| {
        Some(metrics.of_host("host_low")? > 0.5)
    })?;
    ensure(
        Daemon::told("host.low")? == 1,
        "the event host.low",
        "told once",
        &Daemon::told("host.low")?.to_string(),
    )?;
    let promised = metrics.of_host("host_promised_bytes").unwrap_or(0.0);
    host.figure("free_mib", free_mib()?)?;
    host.figure("promised_mib", promised / MIB)?;
    stops_sharing(host, &mut daemon, &guests[3], promised)?;

    let [one, two, three, late] = &mut guests[..] else {
        return Err(differs("the guests", "four", "another number"));
    };
    host.note("all guests use their memory at once")?;
    for (guest, seed) in [(&mut *one, 1), (&mut *two, 2)] {
        let task = Task::WorkStart {
            threads: 1,
            mib: WORK_MIB,
            seed: 0x0bad_c0de ^ seed << 20,
        };
        guest.order(task, AGENT_LIMIT)?;
    }
    let grow = three.send(Task::Grow { mib: GROWN_MIB })?;
    starve(host, &mut daemon, [&*one, &*two, &*three])?;

    host.note("dom0 gives up some of its memory")?;
    let before = held(host, one.name)? + held(host, two.name)? + held(host, three.name)?;
    host.xl(&["mem-set", "0", &format!("{}m", DOM0_MIB[1])])?;
    wait_until("guests use what dom0 gave up", HOST_LIMIT, || {
        let now = held(host, one.name)? + held(host, two.name)? + held(host, three.name)?;
        // Most of it: some goes to the paging pools, and dom0's driver may keep a little.
        Ok((now >= before + (DOM0_MIB[0] - DOM0_MIB[1]) * 256 / 2).then_some(()))
    })?;
    host.note("the neighbour goes")?;
    host.xl(&["destroy", "neighbour"])?;
    three.grown(&grow, GROWN_MIB, AGENT_LIMIT)?;
    for guest in [&mut *one, &mut *two] {
        let (blocks, _) = guest.end_work(AGENT_LIMIT)?;
        host.figure(&format!("blocks_{}", guest.name), blocks)?;
    }
    wait_for(&mut daemon, "the daemon is told that memory is back", |metrics| {
        Some(metrics.of_host("host_low")? < 0.5)
    })?;
    wait_for(&mut daemon, "sharing goes on", |metrics| {
        Some(metrics.of_guest("given_back_bytes", late.name, late.domain)? > 64.0 * MIB)
    })?;
    for guest in [one, two, three, late] {
        guest.check_health_after_waiting()?;
    }
    host.xl(&["mem-set", "0", &format!("{}m", DOM0_MIB[0])])?;
    daemon.stop()
}

/// Makes the daemon give back another guest's memory, which it must not do while the host is low.
fn stops_sharing(host: &mut Host, daemon: &mut Daemon, late: &Guest, promised: f64) -> Result<()> {
    host.note("the daemon is asked to give back more")?;
    daemon.configure(&configuration("free"))?;
    let rounds = |metrics: &Metrics| metrics.of_guest("rounds_total", late.name, late.domain);
    let mut begun = None;
    let metrics = wait_for(daemon, "three rounds go by", |metrics| {
        let now = rounds(metrics)?;
        Some(now >= *begun.get_or_insert(now) + 3.0)
    })?;
    let given_back = metrics.of_guest("given_back_bytes", late.name, late.domain);
    equal(
        "bytes given back by a guest of a low host",
        &Some(0.0),
        &given_back,
    )?;
    let now = metrics.of_host("host_promised_bytes").unwrap_or(0.0);
    ensure(
        now <= promised,
        "bytes promised by a low host",
        &format!("at most {promised}"),
        &now.to_string(),
    )
}

/// Waits until every guest waits for memory, leaves them so for a while, and looks that host and daemon still
/// answer.
fn starve(host: &mut Host, daemon: &mut Daemon, guests: [&Guest; 3]) -> Result<()> {
    wait_until("every guest waits for memory", HOST_LIMIT, || {
        for guest in guests {
            if guest.waits(host)? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    host.note("every guest waits for memory")?;
    let until = Instant::now() + STARVED;
    let (mut looks, mut least, mut most) = (0_u64, u64::MAX, 0);
    while Instant::now() < until {
        let free = free_mib()?;
        least = least.min(free);
        most = most.max(free);
        let listing = host.xl(&["list"])?;
        for guest in guests {
            let line = listing.lines().find(|line| line.starts_with(guest.name));
            // The fifth column: r(unning) b(locked) p(aused) s(hut down) c(rashed) d(ying).
            let state = line
                .and_then(|line| line.split_whitespace().nth(4))
                .unwrap_or("gone");
            ensure(
                !state.contains(['s', 'c', 'd']) && state != "gone",
                &format!("the state of {}", guest.name),
                "alive",
                state,
            )?;
            host.lacuna(&["status", guest.name])?;
        }
        let answer = host.lacuna(&["top", "--once"])?;
        ensure(
            number(&answer.body, "short_pages")? > 0,
            "what `lacuna top` says is missing",
            "more than nothing",
            &answer.body.to_string(),
        )?;
        ensure(
            daemon.metrics()?.is_some(),
            "the daemon on a host without memory",
            "an answer",
            "none",
        )?;
        looks += 1;
    }
    host.figure("looks_while_starved", looks)?;
    host.figure("least_free_mib_while_starved", least)?;
    host.figure("most_free_mib_while_starved", most)?;
    ensure(
        // Xen may have taken some of it.
        least + 1 >= FLOOR_MIB,
        "the host's free memory while guests wait for some",
        &format!("{FLOOR_MIB} MiB, less 1 at most"),
        &format!("{least} MiB"),
    )?;
    for guest in guests {
        let waits = guest.waits(host)?;
        host.figure(&format!("waits_{}", guest.name), waits)?;
    }
    let log = host.xl(&["dmesg"])?;
    ensure(
        log.contains("no memory to unshare frames, waiting"),
        "Xen's log",
        "a word about guests that wait",
        "none",
    )
}

/// Pages of host memory that a guest owns.
fn held(host: &mut Host, name: &str) -> Result<u64> {
    let answer = host.lacuna(&["top", "--once", "--interval", "0.2"])?;
    let guests = answer.body["guests"].as_array().cloned().unwrap_or_default();
    let row = guests.iter().find(|row| row["name"] == name);
    row.map_or_else(
        || Err(differs("`lacuna top`", name, &answer.body.to_string())),
        |row| number(row, "held_pages"),
    )
}

/// Waits until the daemon's metrics are such that `holds`, and returns them. What is not told yet holds
/// nothing.
fn wait_for(
    daemon: &mut Daemon,
    what: &str,
    mut holds: impl FnMut(&Metrics) -> Option<bool>,
) -> Result<Metrics> {
    wait_until(what, HOST_LIMIT, || {
        let metrics = daemon.metrics()?;
        Ok(metrics.filter(|metrics| holds(metrics) == Some(true)))
    })
}
