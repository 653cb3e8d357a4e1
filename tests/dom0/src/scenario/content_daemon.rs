//! The daemon with the mode `free+content`: equal pages are shared with nobody at the keyboard, within trust
//! groups.

use std::time::Duration;

use lacuna_guest::Task;

use super::content::{AGENT_LIMIT, KINDS, Known, intact};
use crate::daemon::Daemon;
use crate::failure::{Result, ensure, equal};
use crate::guest::Plan;
use crate::host::{Host, wait_until};

/// How long the daemon may take for a few looks at all pages of three guests.
const DAEMON_LIMIT: Duration = Duration::from_secs(300);
/// Pages of each content in each guest.
const COPIES: u32 = 4;
/// Looks at all pages after which what holds still has been shared: the first one learns.
const LOOKS: f64 = 3.0;
/// Two guests in a group, one that shares within itself, and one whose pages in use are left alone.
const CONFIGURATION: &str = "[daemon]\npoll_seconds = 1\ncpu_percent = 80\nretry_first_seconds = 1\n\
    retry_longest_seconds = 5\n[log]\nformat = \"json\"\nlevel = \"debug\"\n[defaults]\nmode = \"free+content\"\n\
    interval_seconds = 2.0\n[host]\nreserve_mib = 16\n[domain.one]\ntrust_group = \"tenant-a\"\n[domain.two]\n\
    trust_group = \"tenant-a\"\n[domain.four]\nmode = \"free\"\n";

/// Four guests with the same known contents and one daemon: the members of the group end on the same frames,
/// the third guest on its own, and the fourth keeps a frame for each page. Free pages are given back beside
/// it. Nobody reads wrong data.
pub(crate) fn unattended(host: &mut Host) -> Result<()> {
    let mut guests = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let mut guest = host.create(&Plan {
            mib: 256,
            ..Plan::stock(name, "6.12")
        })?;
        let known = Known::make(&mut guest, KINDS, COPIES, 64)?;
        guests.push((guest, known));
    }
    host.note("the daemon looks at all pages a few times")?;
    let mut daemon = Daemon::start(CONFIGURATION)?;
    let metrics = wait_until("each guest's pages are looked at", DAEMON_LIMIT, || {
        Ok(daemon.metrics()?.filter(|metrics| {
            guests[..3].iter().all(|(guest, _)| {
                metrics
                    .of_guest("content_rounds_total", guest.name, guest.domain)
                    .is_some_and(|rounds| rounds >= LOOKS)
            })
        }))
    })?;
    let pages = u64::from(KINDS * COPIES);
    let mut of = Vec::new();
    for (guest, known) in &guests {
        let sample = |metric| metrics.of_guest(metric, guest.name, guest.domain).unwrap_or(0.0);
        let places = known.places(guest)?;
        host.figure(&format!("content_bytes_{}", guest.name), sample("content_bytes"))?;
        ensure(
            sample("given_back_bytes") > 0.0,
            &format!("free memory given back by {}", guest.name),
            "some",
            "none",
        )?;
        let expected = if guest.name == "four" { 0 } else { pages };
        equal(
            &format!("known duplicates of {} on shared frames", guest.name),
            &expected,
            &places.shared,
        )?;
        of.push(places.all_frames());
    }
    let in_common = |one: usize, other: usize| of[one].intersection(&of[other]).count();
    host.figure("frames_in_common_one_group", in_common(0, 1) as u64)?;
    equal(
        "frames in common, of guests in one group",
        &(KINDS as usize),
        &in_common(0, 1),
    )?;
    equal(
        "frames in common, of guests that are in no group together",
        &0,
        &(in_common(0, 2) + in_common(1, 2) + in_common(0, 3) + in_common(2, 3)),
    )?;
    for (guest, _) in &mut guests {
        intact(guest, "when the daemon has shared them")?;
        guest.order(Task::PatternRewrite { every: 2 }, AGENT_LIMIT)?;
        intact(guest, "after the guest wrote half of them")?;
    }
    host.note("the daemon goes on while the guests write")?;
    wait_until("what was written is told of", DAEMON_LIMIT, || {
        Ok(daemon.metrics()?.filter(|metrics| {
            guests[..3].iter().all(|(guest, _)| {
                metrics
                    .of_guest("content_unshared_bytes_total", guest.name, guest.domain)
                    .is_some_and(|bytes| bytes > 0.0)
            })
        }))
    })?;
    equal(
        "times the hypervisor refused a group",
        &0,
        &Daemon::told("content.refused")?,
    )?;
    daemon.stop()?;
    for (guest, _) in &mut guests {
        intact(guest, "at the end")?;
        guest.check_health()?;
    }
    Ok(())
}
