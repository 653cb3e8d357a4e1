//! The same for two pages that come to share a frame: the engine's thread is [`merge_protected`].
//!
//! The guest has two pages, each cached with a writable translation from earlier use. It writes to one of
//! them and reads both, or somebody takes a reference to one for writing. The neighbour takes each released
//! frame at once.

use std::sync::Mutex as Cell;

use loom::sync::atomic::AtomicUsize;
use loom::sync::{Mutex, MutexGuard};

use lacuna_core::{
    BytesRule, DomainId, DomainPage, Gfn, GuestMemory, GuestPhys, MAX_SHARERS, Mutation, Order, P2m,
    PageState, Peers, Protect, ReadError, Skip, Steps, VcpuRegisters, merge_protected,
};

use crate::protection::Protection;

const OLD: u64 = 0x01d;
const WRITTEN: u64 = 0x11fe;
const NEIGHBOUR: u64 = 0xbad;
const DOMAIN: DomainId = DomainId::new(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Guest,
    Shared,
    Queued,
    Neighbour,
    Host,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    owner: Owner,
    held: bool,
    value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    frame: usize,
    writable: bool,
    shared: bool,
}

struct State {
    entries: [Entry; 2],
    frames: [Frame; 3],
    cached: [Option<(usize, bool)>; 2],
    /// A store on its way to memory: frame and value.
    buffer: Option<(usize, u64)>,
    wrong: Option<&'static str>,
}

impl State {
    fn drain(&mut self) {
        if let Some((frame, value)) = self.buffer.take() {
            if self.frames[frame].owner != Owner::Guest {
                self.wrong = Some("the guest wrote to a frame that is not its own");
            }
            self.frames[frame].value = value;
        }
    }

    fn flush(&mut self) {
        self.drain();
        self.cached = [None; 2];
    }

    /// The value that the guest sees: its own store first.
    fn value(&self, frame: usize) -> u64 {
        match self.buffer {
            Some((stored, value)) if stored == frame => value,
            _ => self.frames[frame].value,
        }
    }
}

struct World {
    steps: AtomicUsize,
    p2m_lock: Mutex<()>,
    state: Cell<State>,
}

impl World {
    fn new() -> Self {
        let own = Frame {
            owner: Owner::Guest,
            held: false,
            value: OLD,
        };
        let entry = |frame| Entry {
            frame,
            writable: true,
            shared: false,
        };
        Self {
            steps: AtomicUsize::new(0),
            p2m_lock: Mutex::new(()),
            state: Cell::new(State {
                entries: [entry(0), entry(1)],
                frames: [
                    own,
                    own,
                    Frame {
                        owner: Owner::Host,
                        ..own
                    },
                ],
                cached: [Some((0, true)), Some((1, true))],
                buffer: None,
                wrong: None,
            }),
        }
    }

    fn step<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        self.steps.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
        action(&mut self.state.lock().unwrap())
    }

    fn write(&self, page: usize) {
        loop {
            let written = self.step(|state| {
                let entry = state.entries[page];
                let target = match state.cached[page] {
                    Some((frame, true)) => Some(frame),
                    _ => entry.writable.then_some(entry.frame),
                };
                if let Some(frame) = target {
                    state.cached[page] = Some((frame, true));
                    state.buffer = Some((frame, WRITTEN));
                } else {
                    // A fault leaves the guest.
                    state.drain();
                }
                target.is_some()
            });
            if written {
                return;
            }
            self.fault(page);
        }
    }

    /// The write-fault handler: under the p2m lock, a shared page gets a copy or becomes its last sharer's
    /// own.
    fn fault(&self, page: usize) {
        let lock = self.p2m_lock.lock().unwrap();
        let found = self.step(|state| state.entries[page]);
        self.step(|state| {
            let frame = if found.shared && state.entries[1 - page].frame == found.frame {
                let fresh = state
                    .frames
                    .iter()
                    .position(|frame| frame.owner == Owner::Host)
                    .unwrap();
                state.frames[fresh].value = state.frames[found.frame].value;
                fresh
            } else {
                found.frame
            };
            state.frames[frame].owner = Owner::Guest;
            state.entries[page] = Entry {
                frame,
                writable: true,
                shared: false,
            };
            state.cached[page] = None;
        });
        drop(lock);
    }

    fn read(&self, page: usize) -> u64 {
        self.step(|state| {
            let entry = state.entries[page];
            let (frame, writable) = state.cached[page].unwrap_or((entry.frame, entry.writable));
            state.cached[page] = Some((frame, writable));
            if state.frames[frame].owner == Owner::Neighbour {
                state.wrong = Some("the guest read another domain's memory");
            }
            state.value(frame)
        })
    }

    fn run(&self, program: Program) {
        match program {
            Program::Write(page) => {
                self.write(page);
                let (own, other) = (self.read(page), self.read(1 - page));
                if own != WRITTEN || other != OLD {
                    self.step(|state| state.wrong = Some("the guest does not read what it wrote"));
                }
            }
            Program::Read => {
                for page in [0, 1, 0] {
                    self.read(page);
                }
            }
            Program::Hold(page) => {
                let lock = self.p2m_lock.lock().unwrap();
                let found = self.step(|state| state.entries[page]);
                // One that wants to write to a shared page unshares it first: no part of this program.
                if !found.shared {
                    self.step(|state| {
                        state.frames[found.frame].held = true;
                        if state.frames[found.frame].owner != Owner::Guest {
                            state.wrong =
                                Some("a reference for writing was taken to a frame that is not the guest's");
                        }
                    });
                }
                drop(lock);
                if !found.shared {
                    self.step(|state| {
                        let frame = state.frames[found.frame];
                        if frame.owner != Owner::Guest {
                            state.wrong = Some("the holder writes to a frame that is not the guest's");
                        }
                        state.frames[found.frame].held = false;
                    });
                }
            }
        }
    }

    fn judge(&self, program: Program) -> Option<&'static str> {
        let mut state = self.state.lock().unwrap();
        state.drain();
        if let Some(wrong) = state.wrong {
            return Some(wrong);
        }
        for page in [0, 1] {
            let entry = state.entries[page];
            let expected = if program == Program::Write(page) {
                WRITTEN
            } else {
                OLD
            };
            if state.frames[entry.frame].value != expected {
                return Some("a page does not hold what was written there");
            }
            if entry.shared != (state.frames[entry.frame].owner == Owner::Shared) {
                return Some("a frame has another owner than its entries say");
            }
            if !entry.shared && !entry.writable {
                return Some("a page was left read-only");
            }
        }
        if state.frames.iter().any(|frame| frame.owner == Owner::Queued) {
            return Some("a frame was not released");
        }
        if state
            .frames
            .iter()
            .any(|frame| frame.owner == Owner::Neighbour && frame.value != NEIGHBOUR)
        {
            return Some("another domain's memory was overwritten");
        }
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Write(usize),
    Read,
    Hold(usize),
}

/// The engine's hands.
struct Hands<'w> {
    world: &'w World,
    locked: Option<MutexGuard<'w, ()>>,
    protection: Protection,
}

impl Hands<'_> {
    fn set_writable(&self, gfn: Gfn, writable: bool) -> Result<(), Skip> {
        let page = usize::try_from(gfn.get()).unwrap();
        self.world.step(|state| {
            let entry = &mut state.entries[page];
            if !entry.shared {
                entry.writable = writable;
            }
            Ok(())
        })
    }
}

impl GuestMemory for Hands<'_> {
    fn read(&mut self, at: GuestPhys, _into: &mut [u8]) -> Result<(), ReadError> {
        Err(ReadError::Absent(at.gfn()))
    }
}

impl P2m for Hands<'_> {
    fn pause(&mut self) {}

    fn unpause(&mut self) {}

    fn vcpus(&mut self) -> u32 {
        1
    }

    fn registers(&mut self, _vcpu: u32) -> VcpuRegisters {
        VcpuRegisters::default()
    }

    fn lock(&mut self) {
        self.locked = Some(self.world.p2m_lock.lock().unwrap());
    }

    fn unlock(&mut self) {
        self.locked = None;
    }

    fn share_zero(&mut self, _gfn: Gfn, _order: Order, _bytes: BytesRule) -> Result<u64, Skip> {
        Err(Skip::NotRam)
    }

    fn flush(&mut self) {
        self.world.step(State::flush);
    }

    fn release(&mut self) {
        self.world.step(|state| {
            for frame in &mut state.frames {
                if frame.owner == Owner::Queued {
                    frame.owner = Owner::Neighbour;
                    frame.value = NEIGHBOUR;
                }
            }
        });
    }

    fn now(&mut self) -> u64 {
        0
    }
}

impl Protect for Hands<'_> {
    fn protect(&mut self, gfn: Gfn, _order: Order) -> Result<(), Skip> {
        self.set_writable(gfn, self.protection.is_writable())
    }

    fn restore(&mut self, gfn: Gfn, _order: Order) {
        let _ = self.set_writable(gfn, true);
    }
}

impl Peers for Hands<'_> {
    fn id(&mut self) -> DomainId {
        DOMAIN
    }

    fn page_state(&mut self, _gfn: Gfn) -> PageState {
        PageState::Private
    }

    /// Reads one page, then the other: something may happen between.
    fn equal(&mut self, gfn: Gfn, partner: DomainPage) -> bool {
        let read = |gfn: Gfn| {
            let page = usize::try_from(gfn.get()).unwrap();
            self.world
                .step(|state| state.frames[state.entries[page].frame].value)
        };
        read(gfn) == read(partner.gfn)
    }

    fn lock_with(&mut self, _partner: DomainId) -> Result<(), Skip> {
        self.lock();
        Ok(())
    }

    fn unlock_with(&mut self) {
        self.unlock();
    }

    fn protect_partner(&mut self, partner: DomainPage) -> Result<(), Skip> {
        self.set_writable(partner.gfn, self.protection.is_writable())
    }

    fn restore_partner(&mut self, partner: DomainPage) {
        let _ = self.set_writable(partner.gfn, true);
    }

    fn merge(&mut self, gfn: Gfn, partner: DomainPage, _most: u32) -> Result<(), Skip> {
        let page = usize::try_from(gfn.get()).unwrap();
        let source = usize::try_from(partner.gfn.get()).unwrap();
        // Xen looks at the references, then changes the entries: one step under the lock, two without.
        let frames = self.world.step(|state| {
            let frames = (state.entries[page].frame, state.entries[source].frame);
            (!state.frames[frames.0].held && !state.frames[frames.1].held).then_some(frames)
        });
        let Some((old, shared)) = frames else {
            return Err(Skip::Held);
        };
        self.world.step(|state| {
            for entry in [page, source] {
                state.entries[entry] = Entry {
                    frame: shared,
                    writable: false,
                    shared: true,
                };
            }
            state.frames[shared].owner = Owner::Shared;
            state.frames[old].owner = Owner::Queued;
        });
        Ok(())
    }
}

fn explore(program: Program, steps: Steps) -> (u64, Option<&'static str>) {
    explore_protected(program, Protection::REAL, steps)
}

fn explore_protected(program: Program, protection: Protection, steps: Steps) -> (u64, Option<&'static str>) {
    super::explore_threads(
        World::new,
        move |world| world.run(program),
        |world| world.step(State::drain),
        move |world| {
            let mut hands = Hands {
                world,
                locked: None,
                protection,
            };
            let partner = DomainPage {
                domain: DOMAIN,
                gfn: Gfn::new(1),
            };
            // A refusal is an answer like any other: what counts is what became of the pages.
            let _ = merge_protected(&mut hands, Gfn::new(0), partner, MAX_SHARERS, steps);
        },
        move |world| world.judge(program),
    )
}

const PROGRAMS: [Program; 5] = [
    Program::Write(0),
    Program::Write(1),
    Program::Read,
    Program::Hold(0),
    Program::Hold(1),
];

#[test]
fn no_interleaving_of_a_merge_loses_anything() {
    for program in PROGRAMS {
        let (count, wrong) = explore(program, Steps::default());
        println!("merge {program:?}: {count} interleavings");
        assert_eq!(wrong, None, "{program:?}");
        assert!(count > 20, "{program:?}: only {count} interleavings");
    }
}

#[test]
fn every_step_of_a_merge_left_out_or_moved_is_noticed() {
    for (mutation, programs) in [
        (Mutation::NoProtect, &[Program::Write(0)][..]),
        (Mutation::NoProtectPartner, &[Program::Write(1)]),
        (Mutation::NoProtectFlush, &[Program::Write(0), Program::Write(1)]),
        (Mutation::NoRecheck, &[Program::Write(0), Program::Write(1)]),
        (Mutation::RecheckFirst, &[Program::Write(0), Program::Write(1)]),
        (Mutation::NoFlush, &[Program::Read]),
        (Mutation::ReleaseFirst, &[Program::Read]),
        (
            Mutation::NoLock,
            &[Program::Write(0), Program::Hold(0), Program::Hold(1)],
        ),
        (Mutation::NoRestore, &[Program::Write(0), Program::Write(1)]),
    ] {
        for program in programs {
            let (count, wrong) = explore(*program, Steps::with(mutation));
            println!("merge {mutation:?} {program:?}: {wrong:?} among {count} interleavings");
            assert!(wrong.is_some(), "{mutation:?}: {program:?} does not notice");
        }
    }
}

/// Either of the two, when the processor's way to log writes makes the entry writable.
#[test]
fn a_merge_of_pages_that_stay_writable_is_noticed() {
    for program in [Program::Write(0), Program::Write(1)] {
        for protection in Protection::SAFE {
            let (_, wrong) = explore_protected(program, protection, Steps::default());
            assert_eq!(wrong, None, "{program:?} {protection:?}");
        }
        let (count, wrong) = explore_protected(program, Protection::UNSAFE, Steps::default());
        println!("merge {program:?}: {wrong:?} among {count} interleavings");
        assert!(wrong.is_some(), "{program:?} does not notice");
    }
}
