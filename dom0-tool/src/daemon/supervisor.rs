//! Decides what is done next, and does it: one bounded piece of work for one guest at a time.
//!
//! Nothing that it remembers matters for safety or is needed after a restart: each piece of work for a guest begins with the
//! state that the hypervisor reports for it, and the hypervisor refuses what is not safe. A guest without a profile is
//! attached, one whose kernel has changed is attached anew, one that another daemon attached goes on with a round.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lacuna_core::abi::State;
use tracing::{debug, error, info, warn};

use crate::daemon::budget::Budget;
use crate::daemon::config::{Config, Extent, Mode};
use crate::daemon::pace;
use crate::daemon::reserve::{Change, Reserve};
use crate::daemon::watched::{Exclusion, Plan, Watched, Work};
use crate::failure::{Cause, Failure};
use crate::ops::host::Xen;
use crate::policy::{Observed, REGION_PAGES, Run};

/// Disagreeing scans in a row after which a profile is believed to be wrong, not the guest to be busy.
const MOST_DISAGREEMENTS: u32 = 3;
/// Runs of frames shared in one piece of work: each stops the guest at least once.
const RUNS_AT_ONCE: u32 = 64;
/// Pages after which a piece of work ends, whatever runs are left: 64 MiB.
const PIECE_PAGES: u64 = 1 << 14;
/// Frame numbers that one piece of work of the content stage goes over: 64 MiB.
const CONTENT_PIECE: u64 = 1 << 14;
/// Until the next try when somebody else works on the domain.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// The supervisor of all guests of a host.
#[derive(Debug)]
pub struct Supervisor<X> {
    xen: X,
    config: Config,
    guests: BTreeMap<u16, Watched>,
    budget: Budget,
    reserve: Reserve,
    poll_due: Duration,
    /// What the last attempt to list guests failed with: told once.
    poll_trouble: Option<String>,
}

impl<X: Xen> Supervisor<X> {
    /// A supervisor that knows no guest yet.
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

    /// Another configuration, from now on.
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

    /// The guests, by domain number.
    pub const fn guests(&self) -> &BTreeMap<u16, Watched> {
        &self.guests
    }

    /// The host's memory.
    pub const fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Time since the supervisor's fixed moment.
    pub fn now(&self) -> Duration {
        self.xen.now()
    }

    /// CPU time used by this process.
    pub fn cpu_time(&self) -> Duration {
        self.xen.cpu_time()
    }

    /// Whether every guest has had a round, or is left alone.
    pub fn all_served(&self) -> bool {
        self.guests.values().all(|watched| {
            watched.deeds.rounds > 0 || watched.exclusion.is_some() || watched.treatment.mode == Mode::Off
        })
    }

    /// Does what is most overdue, if anything is and the CPU budget allows it. Returns how long nothing needs doing then.
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
            .min_by_key(|(_, watched)| watched.due)
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
                let gone: Vec<u16> = self
                    .guests
                    .keys()
                    .copied()
                    .filter(|known| !seen.iter().any(|guest| guest.domain == *known))
                    .collect();
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
                        Watched::new(guest.name.clone(), &self.config, now)
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
        // Reading counters touches no guest: done for those that are otherwise left alone as well, since what they can take
        // back counts, and metrics are to be fresh.
        for (domain, watched) in &mut self.guests {
            if let Ok(look) = self.xen.look(*domain) {
                watched.look = Some(look);
            }
        }
        self.look_at_host();
    }

    fn look_at_host(&mut self) {
        let promised = self.guests.values().map(Watched::given_back).sum();
        let memory = match self.xen.memory() {
            Ok(memory) => memory,
            Err(failure) => {
                warn!(event = "host.unknown", what = failure.what);
                return;
            }
        };
        let mib = |pages: u64| pages / 256;
        match self.reserve.look(memory, promised) {
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
                rounds = watched.deeds.rounds,
            );
        }
    }

    fn work_on(&mut self, domain: u16, now: Duration) {
        let before = self.xen.cpu_time();
        let outcome = self.step(domain, now);
        let cost = self.xen.cpu_time().saturating_sub(before);
        if let Some(watched) = self.guests.get_mut(&domain) {
            watched.deeds.cpu += cost;
        }
        match outcome {
            Ok(()) => {}
            Err(failure) if failure.cause == Cause::Gone => self.forget(domain),
            Err(failure) => self.failed(domain, failure, now),
        }
    }

    /// The next step for a guest.
    fn step(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let look = self.xen.look(domain)?;
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.look = Some(look);
        match State::from_code(look.statistics.state) {
            // A profile of which no scan is believed is given as many scans as a new one would get.
            Some(State::Loaded) if watched.disagreeing < MOST_DISAGREEMENTS => {
                if !matches!(watched.work, Work::Scan(_)) {
                    watched.work = Work::Scan(0);
                    watched.round_began = now;
                }
                self.scan(domain, now)
            }
            Some(State::Admitted) => match watched.work {
                Work::Look => {
                    watched.round_began = now;
                    watched.work = Work::Scan(0);
                    self.scan(domain, now)
                }
                Work::Scan(_) => self.scan(domain, now),
                Work::Share => self.share(domain, now),
                Work::Content(from) => self.content(domain, from, now),
            },
            state => {
                watched.work = Work::Look;
                if state == Some(State::Ended) {
                    info!(
                        event = "guest.changed",
                        domain,
                        name = watched.name.as_deref(),
                        what = "the guest runs another kernel than the profile's; it is attached anew",
                    );
                }
                self.attach(domain, now)
            }
        }
    }

    fn attach(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let outcome = self.xen.attach(domain, &self.config.layouts);
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.disagreeing = 0;
        if let Err(failure) = outcome {
            watched.deeds.attach_failures += 1;
            return Err(failure);
        }
        watched.deeds.attached += 1;
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

    fn scan(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let Some(Work::Scan(from)) = self.guests.get(&domain).map(|watched| watched.work) else {
            return Ok(());
        };
        let outcome = self.xen.scan(domain, from);
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        let part = match outcome {
            Err(failure) if failure.cause == Cause::CountsDisagree => {
                // A guest that allocates fast between two readings of its counters is outside the tolerance now and then.
                watched.disagreeing += 1;
                watched.deeds.disagreements += 1;
                watched.work = Work::Look;
                watched.due = now + self.config.retry_first;
                debug!(event = "scan.disagreed", domain, what = failure.what);
                return Ok(());
            }
            outcome => outcome?,
        };
        if let Some(next) = part.next {
            // At once: the scan is held against counters of the guest, which move on.
            watched.work = Work::Scan(next);
            watched.due = now;
            return Ok(());
        }
        watched.disagreeing = 0;
        if watched.treatment.mode.gives_back() {
            self.plan(domain, now)?;
        } else {
            self.end_round(domain, now);
        }
        Ok(())
    }

    /// A scan is complete: decides what of the free memory to give back.
    fn plan(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        let look = self.xen.look(domain)?;
        let Some(extent) = self.guests.get(&domain).map(|watched| watched.treatment.extent) else {
            return Ok(());
        };
        let bitmap = match extent {
            Extent::Settled => self.xen.bitmap(domain)?,
            Extent::Everything => Vec::new(),
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.look = Some(look);
        watched.plan = match extent {
            Extent::Everything => Plan {
                runs: VecDeque::from([(0, None)]),
                allowance: u64::MAX,
            },
            Extent::Settled => {
                let statistics = look.statistics;
                let decision = watched.policy.decide(
                    &bitmap,
                    Observed {
                        at: now,
                        total: look.pages + statistics.zero_gfns,
                        free: statistics.scan_free,
                        given_back: statistics.zero_gfns,
                        unshared: statistics.unshared,
                        faults: statistics.faults(),
                    },
                );
                Plan {
                    runs: decision
                        .runs
                        .into_iter()
                        .map(|run| (run.from, Some(run.to)))
                        .collect(),
                    allowance: decision.allowance,
                }
            }
        };
        watched.work = Work::Share;
        watched.due = now;
        Ok(())
    }

    /// Carries out the next part of the plan, as many runs as make a piece of work.
    fn share(&mut self, domain: u16, now: Duration) -> Result<(), Failure> {
        self.look_at_host();
        for _ in 0..RUNS_AT_ONCE {
            let Some(plan) = self.guests.get(&domain).map(|watched| &watched.plan) else {
                return Ok(());
            };
            let allowance = plan.allowance.min(self.reserve.allowance());
            let (Some((from, end)), true) = (plan.runs.front().copied(), allowance > 0) else {
                self.after_free(domain, now);
                return Ok(());
            };
            // No further than the allowance reaches: the engine's own limit is one of slices.
            let until = match end {
                Some(end) => {
                    let most = allowance.next_multiple_of(REGION_PAGES);
                    Some(end.min(from.saturating_add(most)))
                }
                None => None,
            };
            let part = self.xen.share(domain, from, until, allowance)?;
            self.reserve.gave_back(part.figures.pages);
            let Some(watched) = self.guests.get_mut(&domain) else {
                return Ok(());
            };
            let plan = &mut watched.plan;
            plan.allowance = plan.allowance.saturating_sub(part.figures.pages);
            plan.runs.pop_front();
            let next = part.next.or(until);
            if let Some(next) = next.filter(|next| end.is_none_or(|end| *next < end)) {
                plan.runs.push_front((next, end));
            }
            if let Some(to) = next.or(end) {
                watched.policy.gave_back(Run { from, to });
            }
            watched.due = now;
            if part.figures.pages >= PIECE_PAGES {
                break;
            }
        }
        Ok(())
    }

    /// The round's free pages are given back: goes on with the contents of the others where that is wanted and due.
    fn after_free(&mut self, domain: u16, now: Duration) {
        if let Some(watched) = self.guests.get_mut(&domain)
            && watched.treatment.mode.has_content()
            && watched.pace.is_due()
        {
            watched.pace.begin();
            watched.work = Work::Content(0);
            watched.due = now;
        } else {
            self.end_round(domain, now);
        }
    }

    /// A piece of the content stage.
    fn content(&mut self, domain: u16, from: u64, now: Duration) -> Result<(), Failure> {
        self.look_at_host();
        let allowance = self.reserve.allowance();
        if allowance == 0 || (from == 0 && !self.joins_group(domain)?) {
            self.end_round(domain, now);
            return Ok(());
        }
        let part = self.xen.content(domain, from, CONTENT_PIECE.min(allowance))?;
        let gave = part.figures.zeroed.saturating_add(part.figures.merged);
        self.reserve.gave_back(gave);
        let look = match part.next {
            Some(_) => None,
            None => Some(self.xen.look(domain)?),
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(());
        };
        watched.pace.add(pace::Look {
            gave,
            hashed: part.figures.hashed,
            changed: part.figures.changed,
        });
        match (part.next, look) {
            (Some(next), _) => {
                watched.work = Work::Content(next);
                watched.due = now;
            }
            (None, look) => {
                let statistics = look.map(|look| look.statistics).unwrap_or_default();
                watched.pace.end(statistics.content_unshared);
                watched.deeds.content_rounds += 1;
                debug!(
                    event = "content.ended",
                    domain,
                    name = watched.name.as_deref(),
                    shared_pages = statistics.content_gfns,
                    taken_back_pages = statistics.content_unshared,
                    rounds_until_next = watched.pace.rounds(),
                );
                self.end_round(domain, now);
            }
        }
        Ok(())
    }

    /// Has the guest share with the members of the group that the configuration names, and with nobody else. False where the
    /// hypervisor refuses that: then nothing is shared by content, since it would be with guests that are not meant.
    fn joins_group(&mut self, domain: u16) -> Result<bool, Failure> {
        let Some(group) = self
            .guests
            .get(&domain)
            .map(|watched| watched.treatment.group.clone())
        else {
            return Ok(false);
        };
        let failure = match self.xen.set_group(domain, &group) {
            Ok(()) => None,
            Err(failure) if matches!(failure.cause, Cause::Gone | Cause::Busy) => return Err(failure),
            Err(failure) => Some(failure),
        };
        let Some(watched) = self.guests.get_mut(&domain) else {
            return Ok(false);
        };
        let trouble = failure.as_ref().map(|failure| failure.what.clone());
        if let Some(failure) = failure
            && watched.content_trouble != trouble
        {
            warn!(
                event = "content.refused",
                domain,
                name = watched.name.as_deref(),
                group,
                what = failure.what,
                remedy = failure.remedy.as_deref(),
            );
        }
        watched.content_trouble = trouble;
        Ok(watched.content_trouble.is_none())
    }

    fn end_round(&mut self, domain: u16, now: Duration) {
        let look = self.xen.look(domain).ok();
        let Some(watched) = self.guests.get_mut(&domain) else {
            return;
        };
        watched.look = look.or(watched.look);
        watched.deeds.rounds += 1;
        watched.work = Work::Look;
        // A round that takes longer than the interval is followed by the next one, after the other guests.
        watched.due = (watched.round_began + watched.treatment.interval).max(now);
        let statistics = watched.look.map(|look| look.statistics).unwrap_or_default();
        debug!(
            event = "round.ended",
            domain,
            name = watched.name.as_deref(),
            free_pages = statistics.scan_free,
            given_back_pages = statistics.zero_gfns,
            unshared_pages = statistics.unshared,
            faults = statistics.faults(),
            headroom_pages = watched.policy.headroom(),
            pressure = watched.policy.pressure(),
        );
        self.succeeded(domain);
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
        watched.work = Work::Look;
        match failure.cause {
            Cause::Busy => {
                watched.due = now + BUSY_WAIT;
                return;
            }
            // A PV guest does not become another kind of guest; that it goes is noticed by the poll.
            Cause::NotHvm => watched.due = now + self.config.retry_longest,
            _ => watched.due = now + watched.backoff.failed(),
        }
        let exclusion = Exclusion::from(failure);
        if watched.exclusion.as_ref() != Some(&exclusion) {
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
