//! A scan of changes beside a guest that allocates and frees: what it misses, no later one may miss.
//!
//! The engine's thread is a [`Session`] with the mock guest, whose processors cache translations as written
//! to for as long as nobody flushes them. The guest's thread changes descriptors by such translations. Each
//! of its changes is one step, and so is each of the engine's calls that can tell them apart. Afterwards a
//! scan of changes with a guest that stands still has to find what is true.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Cell};

use loom::sync::atomic::AtomicUsize;

use lacuna_core::abi::{GfnInfo, Op, Request, SCAN_CHANGED, ShimCounters};
use lacuna_core::{
    BytesRule, Domain, DomainId, DomainPage, Gfn, GuestMemory, GuestPhys, GuestVirt, IndexSize,
    MAX_PROFILE_BYTES, MemoryMap, Order, Outcome, P2m, PageState, Part, Peers, Protect, ReadError, Session,
    Shortage, Skip, Status, Table, Tables, VcpuRegisters, Writes, walk,
};
use lacuna_mock::{Config, MapPages, MockGuest, TakeWritten};

/// Bytes of a thread's stack: a session takes more than loom gives.
const STACK_BYTES: usize = 1 << 20;

/// When the hypervisor does what [`Writes::take_written`] asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    /// It clears, flushes and returns.
    InOrder,
    /// It flushes when descriptors have been read.
    FlushLate,
    /// It clears when descriptors have been read.
    ClearLate,
}

struct World {
    steps: AtomicUsize,
    /// Not loom's: the threads run one at a time, and change places only in a step.
    guest: Cell<MockGuest>,
    session: Cell<Option<Session>>,
    /// The page that the guest frees and allocates.
    page: Gfn,
    /// The frame with its descriptor.
    descriptor: Gfn,
}

impl World {
    fn new() -> Self {
        let mut guest = MockGuest::new(&Config {
            map_pages: MapPages::Large,
            pages: 2048,
            vcpus: 1,
            ..Config::default()
        });
        guest.split_all();
        let page = guest.alloc(0, 0).unwrap();
        let _its_buddy = guest.alloc(0, 0).unwrap();
        let mut session = Session::new();
        let mut profile = guest
            .profile()
            .encode(&mut [0; MAX_PROFILE_BYTES])
            .unwrap()
            .to_vec();
        let mut request = Request {
            op: Op::SetProfile as u32,
            ..Request::default()
        };
        session.operate(&mut guest, &mut request, &mut profile);
        scan(&mut session, &mut guest, 0);
        // The processor has its translation cached, and the entry says so.
        guest.free(0, page);
        let _again = guest.alloc(0, 0).unwrap();
        let profile = guest.profile();
        let MemoryMap::Vmemmap { base } = profile.memory_map else {
            panic!("another memory model")
        };
        let at = base.get() + page.get() * u64::from(profile.descriptor_bytes);
        let at = GuestVirt::new(at);
        let mapping = walk(&mut guest, profile.root, profile.levels, at).unwrap();
        let descriptor = mapping.translate(at).unwrap().gfn();
        Self {
            steps: AtomicUsize::new(0),
            guest: Cell::new(guest),
            session: Cell::new(Some(session)),
            page,
            descriptor,
        }
    }

    /// Another thread may run before `action`; none does during it.
    fn step<R>(&self, action: impl FnOnce(&mut MockGuest) -> R) -> R {
        self.steps.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
        action(&mut self.guest.lock().unwrap())
    }

    /// The guest frees the page, and takes it again.
    fn run(&self) {
        self.step(|guest| guest.free(0, self.page));
        self.step(|guest| assert_eq!(guest.alloc(0, 0), Some(self.page)));
        self.step(|guest| guest.free(0, self.page));
    }

    fn take_session(&self) -> Session {
        self.session.lock().unwrap().take().unwrap()
    }

    fn judge(&self, session: &mut Session) -> Option<&'static str> {
        let guest = &mut *self.guest.lock().unwrap();
        guest.set_take_written(TakeWritten::Flush);
        scan(session, guest, SCAN_CHANGED);
        let wrong = (0..guest.pages()).any(|gfn| {
            let said = guest.candidates(gfn, gfn + 1) == 1;
            said != guest.is_free(Gfn::new(gfn))
        });
        wrong.then_some("a change that a scan missed is missed by the next one, too")
    }
}

/// A scan of all memory, which is believed.
fn scan<D: Domain + Peers>(session: &mut Session, domain: &mut D, flags: u32) {
    let mut request = Request {
        op: Op::Scan as u32,
        flags,
        ..Request::default()
    };
    assert_eq!(session.operate(domain, &mut request, &mut []), Outcome::Finished);
    assert_eq!(request.status, Status::Done.code());
}

/// The engine's side of the guest: each call is a step.
struct Stepping<'w> {
    world: &'w World,
    take: Take,
    /// What was put off.
    late: Option<(Gfn, u32)>,
}

impl Stepping<'_> {
    fn step<R>(&self, action: impl FnOnce(&mut MockGuest) -> R) -> R {
        self.world.step(action)
    }

    /// No step: what it asks for is nothing that the guest changes meanwhile.
    fn still<R>(&self, action: impl FnOnce(&mut MockGuest) -> R) -> R {
        action(&mut self.world.guest.lock().unwrap())
    }
}

impl GuestMemory for Stepping<'_> {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        let page = self.world.page.get();
        let is_its = at.gfn() == self.world.descriptor && (at.offset() as u64) / 64 == page % 64;
        if is_its {
            self.step(|guest| guest.read(at, into))
        } else {
            self.still(|guest| guest.read(at, into))
        }
    }
}

impl Writes for Stepping<'_> {
    fn take_written(&mut self, first: Gfn, count: u32) -> [u64; 8] {
        match self.take {
            Take::InOrder => self.step(|guest| guest.take_written(first, count)),
            Take::FlushLate => {
                self.late = Some((first, count));
                self.step(|guest| {
                    guest.set_take_written(TakeWritten::NoFlush);
                    guest.take_written(first, count)
                })
            }
            Take::ClearLate => {
                self.late = Some((first, count));
                [u64::MAX; 8]
            }
        }
    }
}

impl P2m for Stepping<'_> {
    fn pause(&mut self) {
        self.still(P2m::pause);
    }

    fn unpause(&mut self) {
        self.still(P2m::unpause);
    }

    fn vcpus(&mut self) -> u32 {
        self.still(P2m::vcpus)
    }

    fn registers(&mut self, vcpu: u32) -> VcpuRegisters {
        self.still(|guest| guest.registers(vcpu))
    }

    fn lock(&mut self) {}

    fn unlock(&mut self) {}

    fn share_zero(&mut self, _gfn: Gfn, _order: Order, _bytes: BytesRule) -> Result<u64, Skip> {
        Err(Skip::NotRam)
    }

    fn flush(&mut self) {}

    fn release(&mut self) {}

    /// The engine looks at the clock behind each part of a scan: what was put off comes then.
    fn now(&mut self) -> u64 {
        match (self.take, self.late.take()) {
            (Take::FlushLate, Some(_)) => self.step(P2m::flush),
            (Take::ClearLate, Some((first, count))) => {
                self.step(|guest| guest.take_written(first, count));
            }
            _ => {}
        }
        self.still(P2m::now)
    }
}

impl Protect for Stepping<'_> {
    fn protect(&mut self, _gfn: Gfn, _order: Order) -> Result<(), Skip> {
        Err(Skip::NotRam)
    }

    fn restore(&mut self, _gfn: Gfn, _order: Order) {}
}

impl Tables for Stepping<'_> {
    type Words = <MockGuest as Tables>::Words;

    fn part(&mut self, table: Table, at: u64) -> Part<Self::Words> {
        self.still(|guest| guest.part(table, at))
    }

    fn extend(&mut self, table: Table, at: u64) -> Result<Part<Self::Words>, Shortage> {
        self.still(|guest| guest.extend(table, at))
    }

    fn index_size(&mut self) -> IndexSize {
        self.still(Tables::index_size)
    }

    fn make_header(&mut self) -> Result<(), Shortage> {
        self.still(Tables::make_header)
    }

    fn header(&mut self) -> Option<Self::Words> {
        self.still(Tables::header)
    }
}

impl Domain for Stepping<'_> {
    fn blocker(&mut self) -> Option<(Status, u64)> {
        self.still(Domain::blocker)
    }

    fn gfns(&mut self) -> u64 {
        self.still(Domain::gfns)
    }

    fn preempted(&mut self) -> bool {
        false
    }

    fn paused_by_toolstack(&mut self) -> bool {
        false
    }

    fn counters(&mut self) -> ShimCounters {
        self.still(Domain::counters)
    }

    fn gfn_info(&mut self, gfn: Gfn) -> GfnInfo {
        self.still(|guest| guest.gfn_info(gfn))
    }
}

/// It shares nothing by content.
impl Peers for Stepping<'_> {
    fn id(&mut self) -> DomainId {
        DomainId::new(1)
    }

    fn page_state(&mut self, _gfn: Gfn) -> PageState {
        PageState::Other
    }

    fn equal(&mut self, _gfn: Gfn, _partner: DomainPage) -> bool {
        false
    }

    fn lock_with(&mut self, _partner: DomainId) -> Result<(), Skip> {
        Err(Skip::NoPartner)
    }

    fn unlock_with(&mut self) {}

    fn protect_partner(&mut self, _partner: DomainPage) -> Result<(), Skip> {
        Err(Skip::NoPartner)
    }

    fn restore_partner(&mut self, _partner: DomainPage) {}

    fn merge(&mut self, _gfn: Gfn, _partner: DomainPage, _most: u32) -> Result<(), Skip> {
        Err(Skip::NoPartner)
    }
}

/// Tries every interleaving; returns their number and the first thing that went wrong.
fn explore(take: Take) -> (u64, Option<&'static str>) {
    let count = Arc::new(AtomicU64::new(0));
    let wrong = Arc::new(Cell::new(None));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = 100_000;
    let (counted, noted) = (Arc::clone(&count), Arc::clone(&wrong));
    builder.check(move || {
        let (counted, noted) = (Arc::clone(&counted), Arc::clone(&noted));
        let engine = loom::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let world = loom::sync::Arc::new(World::new());
                let other = loom::sync::Arc::clone(&world);
                let guest = loom::thread::Builder::new()
                    .stack_size(STACK_BYTES)
                    .spawn(move || other.run())
                    .unwrap();
                let mut session = world.take_session();
                let mut stepping = Stepping {
                    world: &world,
                    take,
                    late: None,
                };
                for _ in 0..2 {
                    scan(&mut session, &mut stepping, SCAN_CHANGED);
                }
                guest.join().unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let mut noted = noted.lock().unwrap();
                *noted = noted.or(world.judge(&mut session));
            });
        engine.unwrap().join().unwrap();
    });
    let wrong = *wrong.lock().unwrap();
    (count.load(Ordering::Relaxed), wrong)
}

#[test]
fn what_a_scan_of_changes_misses_the_next_one_finds() {
    let (count, wrong) = explore(Take::InOrder);
    println!("{count} interleavings");
    assert_eq!(wrong, None);
    assert!(count > 20, "only {count} interleavings");
}

#[test]
fn a_flush_or_a_clearing_after_the_reading_is_noticed() {
    for take in [Take::FlushLate, Take::ClearLate] {
        let (count, wrong) = explore(take);
        println!("{take:?}: {wrong:?} among {count} interleavings");
        assert!(wrong.is_some(), "{take:?}");
    }
}
