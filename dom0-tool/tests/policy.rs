//! The policy against giving everything back, on a model of a guest whose memory use swings.
//!
//! The model is a kernel's page allocator in small: free pages on a stack, so that what was freed last is
//! used first, as per-processor lists and buddy lists do. A trace says how much the guest has in use at each
//! second, and how many pages it takes and frees meanwhile. Where it shrinks, some of what it frees is not
//! what it took last: its memory fragments. Each page it takes that lies on a zero frame costs a fault.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use lacuna::policy::{Observed, Policy, REGION_PAGES};

/// The guest: 256 MiB.
const PAGES: usize = 128 * 512;
/// Seconds between two rounds, where nothing else is said.
const INTERVAL: u64 = 60;

/// A guest's memory, a page at a time.
struct Guest {
    /// Free pages; the last is used next.
    free: Vec<usize>,
    used: Vec<usize>,
    is_free: Vec<bool>,
    zero: Vec<bool>,
    zeros: u64,
    faults: u64,
    /// State of the generator that picks which page is freed.
    seed: u64,
}

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    faults: u64,
    /// Page-seconds that the host had.
    saved: u64,
}

impl Guest {
    fn new() -> Self {
        Self {
            free: (0..PAGES).collect(),
            used: Vec::new(),
            is_free: vec![true; PAGES],
            zero: vec![false; PAGES],
            zeros: 0,
            faults: 0,
            seed: 1,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        // Knuth's multiplier; the upper bits are good enough here.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.seed >> 33).unwrap() % below
    }

    fn take(&mut self) {
        let page = self.free.pop().unwrap();
        self.is_free[page] = false;
        if std::mem::take(&mut self.zero[page]) {
            self.zeros -= 1;
            self.faults += 1;
        }
        self.used.push(page);
    }

    /// Frees the page that was taken last, or, one time in `scatter`, any.
    fn give(&mut self, scatter: usize) {
        let last = self.used.len() - 1;
        let index = if self.random(scatter) == 0 {
            self.random(last + 1)
        } else {
            last
        };
        let page = self.used.swap_remove(index);
        self.is_free[page] = true;
        self.free.push(page);
    }

    fn share(&mut self, from: u64, to: u64, most: u64) -> u64 {
        let mut shared = 0;
        for page in usize::try_from(from).unwrap()..usize::try_from(to).unwrap() {
            if shared < most && self.is_free[page] && !self.zero[page] {
                self.zero[page] = true;
                shared += 1;
            }
        }
        self.zeros += shared;
        shared
    }

    fn bitmap(&self) -> Vec<u8> {
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        self.is_free.chunks_exact(8).map(byte).collect()
    }
}

/// Runs `trace` (second to pages in use and pages taken and freed) for `seconds`, with a round every
/// `interval` seconds.
fn run(
    seconds: u64,
    interval: u64,
    trace: &dyn Fn(u64) -> (usize, usize),
    mut policy: Option<Policy>,
) -> Outcome {
    let mut guest = Guest::new();
    let mut saved = 0;
    for second in 0..seconds {
        let (wanted, churn) = trace(second);
        while guest.used.len() < wanted {
            guest.take();
        }
        while guest.used.len() > wanted {
            guest.give(50);
        }
        for _ in 0..churn {
            guest.take();
        }
        for _ in 0..churn {
            guest.give(2);
        }
        saved += guest.zeros;
        if second % interval != interval - 1 {
            continue;
        }
        let Some(policy) = &mut policy else {
            guest.share(0, PAGES as u64, u64::MAX);
            continue;
        };
        let observed = Observed {
            at: Duration::from_secs(second),
            total: PAGES as u64,
            free: guest.free.len() as u64,
            given_back: guest.zeros,
            unshared: guest.faults,
            faults: guest.faults,
        };
        let mut decision = policy.decide(&guest.bitmap(), observed);
        for run in decision.runs {
            // As the daemon does it: a run is cut where the allowance ends, and what is left of it comes
            // next.
            let mut from = run.from;
            while from < run.to && decision.allowance > 0 {
                let most = decision.allowance.next_multiple_of(REGION_PAGES);
                let to = run.to.min(from + most);
                decision.allowance -= guest.share(from, to, decision.allowance);
                policy.gave_back(lacuna::policy::Run { from, to });
                from = to;
            }
        }
    }
    Outcome {
        faults: guest.faults,
        saved,
    }
}

/// Compares both on a trace of `minutes`, a round a minute: the policy must have `saving` per cent of the
/// saving for `faults` per cent of the faults.
fn compare(name: &str, minutes: u64, saving: u64, faults: u64, trace: impl Fn(u64) -> (usize, usize)) {
    compare_at(INTERVAL, name, minutes, saving, faults, trace);
}

/// The same with `interval` seconds between rounds.
fn compare_at(
    interval: u64,
    name: &str,
    minutes: u64,
    saving: u64,
    faults: u64,
    trace: impl Fn(u64) -> (usize, usize),
) {
    let everything = run(minutes * 60, interval, &trace, None);
    let policy = run(minutes * 60, interval, &trace, Some(Policy::default()));
    println!(
        "{name}: saved {} %, faults {} % ({} of {})",
        policy.saved * 100 / everything.saved,
        policy.faults * 100 / everything.faults.max(1),
        policy.faults,
        everything.faults
    );
    assert!(
        policy.saved * 100 >= everything.saved * saving,
        "{name}: {policy:?} of {everything:?}"
    );
    assert!(
        policy.faults * 100 <= everything.faults * faults,
        "{name}: {policy:?} of {everything:?}"
    );
}

/// A tenth of the guest's memory in use, or so much more.
const fn part(tenths: usize) -> usize {
    PAGES / 10 * tenths
}

#[test]
fn a_guest_that_is_still_but_for_its_small_change() {
    compare("still", 240, 90, 5, |_| (part(2), 200));
}

#[test]
fn a_guest_whose_use_swings_every_ten_minutes() {
    let swing = |second: u64| part(if (second / 300).is_multiple_of(2) { 2 } else { 4 });
    compare("swing of 10 min", 240, 80, 20, |second| (swing(second), 100));
}

#[test]
fn a_guest_whose_use_swings_every_two_minutes() {
    let swing = |second: u64| part(if (second / 60).is_multiple_of(2) { 2 } else { 3 });
    compare("swing of 2 min", 240, 80, 10, |second| (swing(second), 100));
}

#[test]
fn a_guest_that_climbs_and_falls() {
    // A sawtooth of twenty minutes between two and five tenths.
    let use_at = |second: u64| {
        let minute = usize::try_from(second / 60 % 20).unwrap();
        part(2) + part(3) * minute / 20
    };
    compare("sawtooth of 20 min", 240, 80, 40, |second| (use_at(second), 50));
}

#[test]
fn a_guest_with_a_job_once_an_hour() {
    let busy = |second: u64| part(if second % 3600 < 300 { 6 } else { 2 });
    // A fault a page an hour is worth it: the host has the page for 55 minutes.
    compare("hourly job", 360, 80, 100, |second| (busy(second), 0));
    // Small change that leaves pages in use all over the memory that the job had, and takes others there all
    // the time, is no reason to leave that memory to the guest.
    compare("hourly job, fragmented", 360, 85, 80, |second| (busy(second), 50));
}

#[test]
fn memory_that_is_used_for_good_costs_each_page_once() {
    let growing = |second: u64| part(2) + part(5) * usize::try_from(second).unwrap() / (240 * 60);
    compare("growth", 240, 80, 100, |second| (growing(second), 0));
}

#[test]
fn a_swing_that_rounds_are_fast_against_is_learnt_from_its_first_time() {
    let swing = |second: u64| part(if (second / 12).is_multiple_of(2) { 4 } else { 2 });
    // Ten swings, of which the first is not known to be one.
    for interval in [1, 3, 6] {
        compare_at(
            interval,
            &format!("swing of 24 s, every {interval} s"),
            4,
            80,
            12,
            |second| (swing(second), 1),
        );
    }
}
