//! Decides what to do next, and does it: one bounded piece of work for one guest at a time.
//!
//! Nothing that it remembers matters for safety or is needed after a restart: each piece of work for a guest
//! begins with the state that the hypervisor reports for it, and the hypervisor refuses what is not safe. A
//! guest without a profile is attached, one whose kernel has changed is attached anew, one that another
//! daemon attached goes on with a round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lacuna_core::abi::State;
use tracing::{error, info, warn};

use crate::daemon::budget::Budget;
use crate::daemon::config::{Config, Mode};
use crate::daemon::reserve::{Change, Reserve};
use crate::daemon::watched::{Exclusion, WatchedGuest, Work};
use crate::failure::{Cause, Failure};
use crate::ops::host::Xen;

mod rounds;

/// Number of disagreeing scans in a row after which the profile is taken to be wrong. Fewer mean that the
/// guest is busy.
const MOST_DISAGREEMENTS: u32 = 3;
/// Delay before the next try if somebody else works on the domain.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// The supervisor of all guests of a host.
#[derive(Debug)]
pub struct Supervisor<X> {
    xen: X,
    config: Config,
    guests: BTreeMap<u16, WatchedGuest>,
    budget: Budget,
    reserve: Reserve,
    poll_due: Duration,
    /// The error of the last attempt to list guests, so that it is reported once.
    poll_trouble: Option<String>,
}

impl<X: Xen> Supervisor<X> {
    /// Creates a supervisor that knows no guest yet.
    pub fn new(xen: X, config: Config) -> Self {
        let now = xen.now();
        Self {
            budget: Budget::new(config.cpu_percent, now),
            reserve: Reserve::new(config.reserve_mib),
            poll_due: now,
            poll_trouble: None,
            guests: BTreeMap::new(),
            xen,
            config,
        }
    }

    /// Replaces the configuration, from now on.
    pub fn configure(&mut self, config: Config) {
        let now = self.xen.now();
        self.budget.set_percent(config.cpu_percent, now);
        self.reserve.set_mib(config.reserve_mib);
        self.config = config;
        self.poll_due = now;
        for watched in self.guests.values_mut() {
            watched.configure(&self.config, now);
        }
    }

    /// Returns the guests, by domain number.
    pub const fn guests(&self) -> &BTreeMap<u16, WatchedGuest> {
        &self.guests
    }

    /// Returns the host's memory.
    pub const fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Returns the configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the time since the supervisor's fixed moment.
    pub fn now(&self) -> Duration {
        self.xen.now()
    }

    /// Returns the CPU time used by this process.
    pub fn cpu_time(&self) -> Duration {
        self.xen.cpu_time()
    }

    /// Returns whether every guest has had a round, or is left alone.
    pub fn all_served(&self) -> bool {
        self.guests.values().all(|watched| {
            watched.counters.rounds > 0 || watched.exclusion.is_some() || watched.treatment.mode == Mode::Off
        })
    }

    /// Does the most overdue piece of work, if there is one and the CPU budget allows it; the next part of a
    /// scan comes first. Returns how long there is nothing to do afterwards.
    pub fn tick(&mut self) -> Duration {
        let now = self.xen.now();
        let before = self.xen.cpu_time();
        if now >= self.poll_due {
            self.poll(now);
        }
        let next = self
            .guests
            .iter()
            .filter(|(_, watched)| watched.treatment.mode != Mode::Off)
            // A scan that was begun goes on before anything else: it is compared with the guest's counters. If
            // parts of many guests' scans took turns, each scan would last as long as all of them.
            .min_by_key(|(_, watched)| (!watched.is_within_scan(), watched.due))
            .map(|(domain, watched)| (*domain, watched.due));
        let wait = self.budget.wait(now);
        if let Some((domain, due)) = next
            && due <= now
            && wait.is_zero()
        {
            self.work_on(domain, now);
        }
        let cost = self.xen.cpu_time().saturating_sub(before);
        let now = self.xen.now();
        self.budget.spend(cost, now);
        let due = self
            .guests
            .values()
            .filter(|watched| watched.treatment.mode != Mode::Off)
            .map(|watched| watched.due.saturating_sub(now))
            .min()
            .map(|due| due.max(self.budget.wait(now)));
        let poll = self.poll_due.saturating_sub(now);
        due.map_or(poll, |due| due.min(poll))
    }

    /// Looks which guests there are, and at the host's memory.
    fn poll(&mut self, now: Duration) {
        self.poll_due = now + self.config.poll;
        match self.xen.guests() {
            Ok(seen) => {
                self.poll_trouble = None;
                let there: BTreeSet<u16> = seen.iter().map(|guest| guest.domain).collect();
                let known = self.guests.keys().copied();
                let gone: Vec<u16> = known.filter(|domain| !there.contains(domain)).collect();
                for domain in gone {
                    self.forget(domain);
                }
                for guest in seen {
                    let watched = self.guests.entry(guest.domain).or_insert_with(|| {
                        info!(
                            event = "guest.appeared",
                            domain = guest.domain,
                            name = guest.name.as_deref()
                        );
                        WatchedGuest::new(guest.name.clone(), &self.config, now)
                    });
                    // The toolstack names a domain after it has made it, and may rename it.
                    if watched.name != guest.name {
                        watched.name = guest.name;
                        watched.configure(&self.config, now);
                    }
                }
            }
            Err(failure) => {
                let text = failure.what.clone();
                if self.poll_trouble.as_ref() != Some(&text) {
                    error!(
                        event = "guests.unknown",
                        what = text,
                        remedy = failure.remedy.as_deref()
                    );
                    self.poll_trouble = Some(text);
                }
            }
        }
        // Counters are read even for guests that are left alone: it does not disturb them, what they can take
        // back counts, and metrics have to be fresh.
        for (domain, watched) in &mut self.guests {
            if let Ok(state) = self.xen.state(*domain) {
                watched.state = Some(state);
            }
        }
        self.check_reserve();
    }

    fn check_reserve(&mut self) {
        let promised = self.guests.values().map(WatchedGuest::given_back).sum();
        let memory = match self.xen.memory() {
            Ok(memory) => memory,
            Err(failure) => {
                warn!(event = "host.unknown", what = failure.what);
                return;
            }
        };
        let mib = |pages: u64| pages / 256;
        match self.reserve.update(memory, promised) {
            Some(Change::Low) => error!(
                event = "host.low",
                free_mib = mib(memory.free),
                reserve_mib = mib(self.reserve.pages()),
                promised_mib = mib(promised),
                remedy = "destroy, move or balloon down a guest; until then guests give back no more than they have taken",
            ),
            Some(Change::Recovered) => info!(
                event = "host.recovered",
                free_mib = mib(memory.free),
                reserve_mib = mib(self.reserve.pages()),
                promised_mib = mib(promised),
            ),
            None => {}
        }
    }

    fn forget(&mut self, domain: u16) {
        if let Some(watched) = self.guests.remove(&domain) {
            info!(
                event = "guest.gone",
                domain,
                name = watched.name.as_deref(),
                rounds = watched.counters.rounds,
            );
        }
    }

    fn work_on(&mut self, domain: u16, now: Duration) {
        let before = self.xen.cpu_time();
        let outcome = self.step(domain, now);
        let cost = self.xen.cpu_time().saturating_sub(before);
        if let Some(watched) = self.guests.get_mut(&domain) {
            watched.counters.cpu += cost;
        }
        match outcome {
            Ok(()) => {}
            Err(failure) if failure.cause == Cause::Gone => self.forget(domain),
            Err(failure) => self.failed(domain, failure, now),
        }
    }

    /// Does the next step for a guest.
    fn step(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let state = self.xen.state(domain)?;
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.state = Some(state);
        match State::from_code(state.statistics.state) {
            // A profile that no scan has admitted gets as many scans as a new one.
            Some(State::Loaded) if watched.disagreeing < MOST_DISAGREEMENTS => {
                if !matches!(watched.work, Work::Scan(_)) {
                    watched.begin_round(now);
                }
                self.scan(domain, now)
            }
            Some(State::Admitted) => match watched.work {
                Work::CheckState => {
                    watched.begin_round(now);
                    self.scan(domain, now)
                }
                Work::Scan(_) => self.scan(domain, now),
                Work::Share => self.share(domain, now),
                Work::Content(from) => self.content(domain, from, now),
            },
            state => {
                watched.work = Work::CheckState;
                if state == Some(State::Ended) {
                    info!(
                        event = "guest.changed",
                        domain,
                        name = watched.name.as_deref(),
                        what = "the guest runs another kernel than the profile's; it is attached again",
                    );
                }
                self.attach(domain, now)
            }
        }
    }

    fn attach(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let outcome = {
            let config = &self.config;
            self.xen
                .attach(domain, &config.layouts, config.symbols.as_deref())
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.disagreeing = 0;
        if let Err(failure) = outcome {
            watched.counters.attach_failures += 1;
            return Err(failure);
        }
        watched.counters.attached += 1;
        watched.due = now;
        info!(
            event = "guest.attached",
            domain,
            name = watched.name.as_deref(),
            mode = watched.treatment.mode.name(),
        );
        self.succeeded(domain);
        Ok(())
    }

    fn succeeded(&mut self, domain: u16) {
        let Some(watched) = self.guests.get_mut(&domain) else {
            return;
        };
        watched.backoff.succeeded();
        if let Some(exclusion) = watched.exclusion.take() {
            info!(
                event = "guest.included",
                domain,
                name = watched.name.as_deref(),
                reason = exclusion.cause.name(),
            );
        }
    }

    fn failed(&mut self, domain: u16, failure: Failure, now: Duration) {
        let Some(watched) = self.guests.get_mut(&domain) else {
            return;
        };
        watched.work = Work::CheckState;
        match failure.cause {
            Cause::Busy => {
                watched.due = now + BUSY_WAIT;
                return;
            }
            // Booting is no failure and ends soon, so the delay does not grow. A guest that was restored is
            // not kept waiting.
            Cause::Booting => watched.due = now + self.config.retry_first,
            // A PV guest stays one. The poll notices when it is gone.
            Cause::NotHvm => watched.due = now + self.config.retry_longest,
            _ => watched.due = now + watched.backoff.failed(),
        }
        let exclusion = Exclusion::from(failure);
        if exclusion.cause == Cause::Booting {
            // The message has a time in it that differs with each try.
            if watched.exclusion.as_ref().map(|before| before.cause) != Some(Cause::Booting) {
                info!(
                    event = "guest.booting",
                    domain,
                    name = watched.name.as_deref(),
                    what = exclusion.what,
                    retry_seconds = self.config.retry_first.as_secs(),
                );
            }
        } else if watched.exclusion.as_ref() != Some(&exclusion) {
            warn!(
                event = "guest.excluded",
                domain,
                name = watched.name.as_deref(),
                reason = exclusion.cause.name(),
                what = exclusion.what,
                remedy = exclusion.remedy.as_deref(),
                retry_seconds = watched.due.saturating_sub(now).as_secs(),
            );
        }
        watched.exclusion = Some(exclusion);
    }
}
