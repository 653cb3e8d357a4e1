//! How long a share round stops the guest, and dom0's other work, on a machine whose clock counts
//! instructions and that has one processor for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lacuna_core::{MAX_SLICE_NS, MAX_SLICE_PAGES, MAX_SLICE_UNITS};
use lacuna_guest::Task;

use crate::failure::{Result, differs, ensure};
use crate::guest::Plan;
use crate::host::Host;

/// How long the agent may take for what touches all of the guest's memory.
const AGENT_LIMIT: Duration = Duration::from_secs(300);
/// What a slice may take beyond [`MAX_SLICE_NS`]: it looks at its clock between two pages or regions, and the
/// flush and the way out come after the last look.
const LAST_LOOK_NS: u64 = 500_000;

/// How often another thread of dom0 wants to run while the round goes on.
const BEAT: Duration = Duration::from_millis(1);
/// How much longer it may have to wait than while a command runs that asks Xen for a few numbers: five ticks
/// of dom0's kernel, which are 4 ms each.
const BEAT_LIMIT: Duration = Duration::from_millis(20);

/// A thread that does nothing but look at the clock, and so shows for how long dom0 does nothing else.
struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Pulse {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !seen.load(Ordering::Relaxed) {
                std::thread::sleep(BEAT);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            longest
        });
        Self { stop, thread }
    }

    /// Returns the longest time between two looks.
    fn stop(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join();
        longest.map_err(|_| differs("the thread that looks at the clock", "its answer", "a panic"))
    }
}

/// Every slice keeps to its bounds of work and of time.
pub(crate) fn bounded(host: &mut Host) -> Result<()> {
    let mut guest = host.create(&Plan {
        mib: 384,
        ..Plan::stock("pause", "6.12")
    })?;
    guest.order(Task::Fill, AGENT_LIMIT)?;
    host.lacuna(&["attach", guest.name])?;
    // Starting a program and telling the lab of it take their time, with and without a round in it.
    let pulse = Pulse::start();
    host.lacuna(&["status", guest.name])?;
    let idle_beat = pulse.stop()?;
    let pulse = Pulse::start();
    host.lacuna(&["dedup", guest.name, "--until-stable"])?;
    let beat = pulse.stop()?;
    let status = host.lacuna(&["status", guest.name])?;
    let shared = status.number("shared")?;
    for name in ["shared", "slices", "pauses", "pause_total_ns", "pause_longest_ns"] {
        host.figure(name, status.number(name)?)?;
    }
    let units = status.number("slice_most_units")?;
    let pages = status.number("slice_most_pages")?;
    let longest = status.number("pause_longest_ns")?;
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    host.figure("dom0_longest_wait_ns", nanoseconds(beat))?;
    host.figure("dom0_longest_wait_ns_without", nanoseconds(idle_beat))?;
    host.figure("slice_most_units", units)?;
    host.figure("slice_most_pages", pages)?;
    host.figure(
        "instructions_a_shared_page",
        status.number("pause_total_ns")? / shared.max(1),
    )?;
    ensure(
        beat <= idle_beat + BEAT_LIMIT,
        "the longest time for which dom0 did nothing else",
        &format!("at most {} instructions", nanoseconds(idle_beat + BEAT_LIMIT)),
        &format!("{} instructions", nanoseconds(beat)),
    )?;
    ensure(
        units <= MAX_SLICE_UNITS,
        "the most work of a slice",
        &format!("at most {MAX_SLICE_UNITS} units"),
        &units.to_string(),
    )?;
    ensure(
        (1..=MAX_SLICE_PAGES).contains(&pages),
        "the most pages of a slice",
        &format!("1 to {MAX_SLICE_PAGES}"),
        &pages.to_string(),
    )?;
    ensure(
        longest <= MAX_SLICE_NS + LAST_LOOK_NS,
        "the longest pause",
        &format!("at most {} instructions", MAX_SLICE_NS + LAST_LOOK_NS),
        &format!("{longest} instructions"),
    )?;
    guest.check_health()
}
