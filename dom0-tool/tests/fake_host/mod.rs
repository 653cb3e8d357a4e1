//! A host of a few numbers: guests that are attached, scanned and shared, and a clock that moves when told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use lacuna::failure::{Cause, Class, Failure};
use lacuna::ops::host::{GuestName, GuestState, Xen};
use lacuna::xen::engine::{ContentFigures, Part, ScanFigures, ShareFigures};
use lacuna::xen::privcmd::HostMemory;
use lacuna_core::abi::{State, Statistics};

/// Pages of one part of an operation.
const PART: u64 = 1000;

/// A guest of the fake host.
#[derive(Clone, Debug)]
pub(crate) struct FakeGuest {
    pub(crate) name: Option<String>,
    pub(crate) state: State,
    pub(crate) pages: u64,
    pub(crate) free: u64,
    pub(crate) zero: u64,
    /// Pages in use that are like others, and of those, how many share.
    pub(crate) equal: u64,
    pub(crate) merged: u64,
    /// Pages taken off shared frames.
    pub(crate) taken: u64,
    /// The trust group that it is in, and whether it can leave it.
    pub(crate) group: String,
    pub(crate) stays: bool,
    /// What the next attempts to attach fail with.
    pub(crate) attach_fails: Vec<Cause>,
    /// How many of the next scans disagree with its counters.
    pub(crate) disagrees: u32,
    /// Fails every operation.
    pub(crate) always: Option<Cause>,
    pub(crate) scans: u64,
    /// When the last scan of all of it began, when it ended, and the longest that one took.
    pub(crate) scan_began: Duration,
    pub(crate) scanned: Duration,
    pub(crate) longest_scan: Duration,
    /// When its state was asked for last.
    pub(crate) looked: Duration,
}

impl FakeGuest {
    /// A guest of 10,000 pages, 6,000 of them free.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: Some(name.to_owned()),
            state: State::Empty,
            pages: 10_000,
            free: 6_000,
            zero: 0,
            equal: 0,
            merged: 0,
            taken: 0,
            group: String::new(),
            stays: false,
            attach_fails: Vec::new(),
            disagrees: 0,
            always: None,
            scans: 0,
            scan_began: Duration::ZERO,
            scanned: Duration::ZERO,
            longest_scan: Duration::ZERO,
            looked: Duration::ZERO,
        }
    }
}

/// CPU time of each kind of operation, beside [`World::cost`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) look: Duration,
    /// Of a part.
    pub(crate) scan: Duration,
    pub(crate) bitmap: Duration,
    pub(crate) share: Duration,
}

impl Costs {
    fn of(&self, what: &str) -> Duration {
        match what {
            "scan" => self.scan,
            "bitmap" => self.bitmap,
            "share" => self.share,
            _ => Duration::ZERO,
        }
    }
}

/// What the fake host is and has seen.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) cpu: Duration,
    /// CPU time of one operation.
    pub(crate) cost: Duration,
    pub(crate) costs: Costs,
    /// Pages of one part of a scan.
    pub(crate) part: u64,
    pub(crate) free: u64,
    pub(crate) guests: BTreeMap<u16, FakeGuest>,
    /// Operations in their order, without looks.
    pub(crate) log: Vec<String>,
}

impl World {
    /// Lets an operation take `cost`.
    fn take(&mut self, cost: Duration) {
        self.now += cost;
        self.cpu += cost;
    }
}

/// A handle on the world, of which there may be several.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeHost(pub(crate) Rc<RefCell<World>>);

impl FakeHost {
    /// A host with a gibibyte free.
    pub(crate) fn new() -> Self {
        let host = Self::default();
        {
            let world = &mut *host.0.borrow_mut();
            world.free = 1 << 18;
            world.part = PART * 5;
        }
        host
    }

    /// Adds or replaces a guest.
    pub(crate) fn put(&self, domain: u16, guest: FakeGuest) {
        self.0.borrow_mut().guests.insert(domain, guest);
    }

    /// The operations since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.borrow_mut().log)
    }

    /// Changes a guest.
    #[allow(dead_code, reason = "not every test changes one")]
    pub(crate) fn change(&self, domain: u16, change: impl FnOnce(&mut FakeGuest)) {
        change(self.0.borrow_mut().guests.get_mut(&domain).unwrap());
    }

    fn operate<T>(
        &self,
        domain: u16,
        what: &str,
        act: impl FnOnce(&mut FakeGuest, &mut u64) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let world = &mut *self.0.borrow_mut();
        world.take(world.cost + world.costs.of(what));
        world.log.push(format!("{what} {domain}"));
        let guest = world.guests.get_mut(&domain).ok_or_else(|| fail(Cause::Gone))?;
        if let Some(cause) = guest.always {
            return Err(fail(cause));
        }
        act(guest, &mut world.free)
    }
}

fn fail(cause: Cause) -> Failure {
    Failure::plain(Class::Refused, format!("{cause:?}")).because(cause)
}

impl Xen for FakeHost {
    fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn cpu_time(&self) -> Duration {
        self.0.borrow().cpu
    }

    fn guests(&mut self) -> Result<Vec<GuestName>, Failure> {
        let world = self.0.borrow();
        Ok(world
            .guests
            .iter()
            .map(|(domain, guest)| GuestName {
                domain: *domain,
                name: guest.name.clone(),
            })
            .collect())
    }

    fn memory(&mut self) -> Result<HostMemory, Failure> {
        Ok(HostMemory {
            total: 1 << 20,
            free: self.0.borrow().free,
            claimed: 0,
        })
    }

    fn state(&mut self, domain: u16) -> Result<GuestState, Failure> {
        let world = &mut *self.0.borrow_mut();
        world.take(world.costs.look);
        let now = world.now;
        let guest = world.guests.get_mut(&domain).ok_or_else(|| fail(Cause::Gone))?;
        if let Some(cause) = guest.always {
            return Err(fail(cause));
        }
        guest.looked = now;
        Ok(GuestState {
            pages: guest.pages - guest.zero - guest.merged,
            max_pages: guest.pages,
            statistics: Statistics {
                state: guest.state as u64,
                scan_free: guest.free,
                zero_gfns: guest.zero,
                content_gfns: guest.merged,
                content_merged: guest.merged + guest.taken,
                content_unshared: guest.taken,
                shared: guest.zero,
                scans: guest.scans,
                pause_total_ns: 1_500_000,
                reserve: 24,
                reserve_full: 48,
                stood: 1,
                stood_ns: 2_500_000_000,
                ..Statistics::default()
            },
        })
    }

    fn attach(&mut self, domain: u16, _layouts: &Path, _symbols: Option<&str>) -> Result<(), Failure> {
        self.operate(domain, "attach", |guest, _| {
            if !guest.attach_fails.is_empty() {
                return Err(fail(guest.attach_fails.remove(0)));
            }
            guest.state = State::Admitted;
            Ok(())
        })
    }

    fn scan(&mut self, domain: u16, from: u64) -> Result<Part<ScanFigures>, Failure> {
        let (part, now) = (self.0.borrow().part, self.0.borrow().now);
        self.operate(domain, "scan", |guest, _| {
            if from == 0 {
                guest.scan_began = now;
            }
            let next = (from + part < guest.pages).then_some(from + part);
            if next.is_none() {
                if guest.disagrees > 0 {
                    guest.disagrees -= 1;
                    guest.state = State::Loaded;
                    return Err(fail(Cause::CountsDisagree));
                }
                guest.scans += 1;
                guest.scanned = now;
                guest.longest_scan = guest.longest_scan.max(now.saturating_sub(guest.scan_began));
                guest.state = State::Admitted;
            }
            Ok(Part {
                figures: ScanFigures::default(),
                next,
            })
        })
    }

    fn bitmap(&mut self, domain: u16) -> Result<Vec<u8>, Failure> {
        self.operate(domain, "bitmap", |guest, _| {
            let free = |at: u64| at * 8 + 8 <= guest.free;
            Ok((0..guest.pages / 8)
                .map(|at| if free(at) { 0xff } else { 0 })
                .collect())
        })
    }

    fn share(
        &mut self,
        domain: u16,
        from: u64,
        end: Option<u64>,
        most: u64,
    ) -> Result<Part<ShareFigures>, Failure> {
        self.operate(domain, "share", |guest, free| {
            if guest.state != State::Admitted {
                return Err(fail(Cause::Contradiction));
            }
            // The lowest frames are the free ones, and the lowest of those are on zero frames.
            let to = end.unwrap_or(guest.pages).min(guest.free);
            let wanted = to.saturating_sub(from.max(guest.zero));
            let pages = wanted.min(PART).min(most);
            guest.zero += pages;
            *free += pages;
            Ok(Part {
                figures: ShareFigures {
                    pages,
                    ..ShareFigures::default()
                },
                next: (pages < wanted).then_some(guest.zero),
            })
        })
    }

    fn set_group(&mut self, domain: u16, name: &str) -> Result<(), Failure> {
        self.operate(domain, &format!("group {name:?}"), |guest, _| {
            if guest.stays && guest.group != name {
                return Err(fail(Cause::Other));
            }
            name.clone_into(&mut guest.group);
            Ok(())
        })
    }

    fn content(&mut self, domain: u16, from: u64, frames: u64) -> Result<Part<ContentFigures>, Failure> {
        self.operate(domain, "content", |guest, free| {
            let to = (from + frames.min(PART * 5)).min(guest.pages);
            // The highest frames are the equal ones.
            let in_range = to.saturating_sub(from.max(guest.pages - guest.equal));
            let merged = in_range.min(guest.equal - guest.merged);
            guest.merged += merged;
            *free += merged;
            Ok(Part {
                figures: ContentFigures {
                    merged,
                    hashed: (to - from.min(to)).saturating_sub(guest.free.saturating_sub(from)),
                    ..ContentFigures::default()
                },
                next: (to < guest.pages).then_some(to),
            })
        })
    }
}
