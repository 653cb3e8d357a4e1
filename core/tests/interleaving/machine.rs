//! The model of the machine and of the guest that runs on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex as Cell, OnceLock};

use loom::sync::Mutex;
use loom::sync::atomic::AtomicUsize;

use lacuna_core::{Gfn, GuestMemory, GuestVirt, MemoryMap, Order, PAGE_SIZE, Profile, walk};
use lacuna_mock::{Config, MockGuest};

/// What the page held before, what the guest writes, and what a neighbour writes into a frame it is given.
pub(crate) const OLD: u64 = 0x01d;
pub(crate) const WRITTEN: u64 = 0x11fe;
pub(crate) const NEIGHBOUR: u64 = 0xbad;
/// The guest's own frame; frames after it are the host's.
pub(crate) const OWN: usize = 0;

/// What the guest does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Marks the page not free, writes, reads back.
    Allocate,
    /// Reads the free page, as a check for poison or a speculation does.
    ReadFree,
    /// The old kernel empties the IDT; the new one is copied over a page that the old memory map calls free;
    /// it draws its boot value and sets up the same IDT.
    Kexec,
    /// The end of a kexec alone: a boot value is drawn, then the page is written.
    BootedAnew,
    /// Somebody other than the guest takes a reference to the free page, and gives it back.
    Hold,
}

/// Guest memory as it stands, and the few places in it that change.
pub(crate) struct Snapshot {
    pub(crate) profile: Profile,
    pub(crate) frames: BTreeMap<u64, Vec<u8>>,
    /// A free block of one page, and one that covers a 2 MiB region: the page, and where its head's mark
    /// lies.
    pub(crate) blocks: [(Gfn, Order, u64); 2],
    pub(crate) boot_value_at: u64,
    pub(crate) unmarked: u64,
}

pub(crate) fn snapshot() -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        let config = Config {
            vcpus: 1,
            ..Config::default()
        };
        let mut guest = MockGuest::new(&config);
        let single = guest.alloc(0, 0).unwrap();
        let _its_buddy = guest.alloc(0, 0).unwrap();
        guest.free(0, single);
        let region = guest
            .free_blocks()
            .into_iter()
            .find(|(_, order)| *order == 10)
            .unwrap()
            .0;
        let profile = guest.profile();
        let MemoryMap::Vmemmap { base } = profile.memory_map else {
            panic!("another memory model")
        };
        let physical = |guest: &mut MockGuest, address: u64| {
            let address = GuestVirt::new(address);
            let mapping = walk(guest, profile.root, profile.levels, address).unwrap();
            mapping.translate(address).unwrap().get()
        };
        let mark = |guest: &mut MockGuest, gfn: Gfn| {
            let descriptor = base.get() + gfn.get() * u64::from(profile.descriptor_bytes);
            physical(guest, descriptor + u64::from(profile.free.predicate.field.offset))
        };
        let blocks = [
            (single, Order::PAGE, mark(&mut guest, single)),
            (region, Order::SUPERPAGE, mark(&mut guest, region)),
        ];
        let boot_value_at = physical(&mut guest, profile.identity.boot_value.unwrap().at.get());
        let frames = (0..guest.pages())
            .filter_map(|gfn| {
                let mut bytes = vec![0; PAGE_SIZE];
                guest.read(Gfn::new(gfn).base().unwrap(), &mut bytes).unwrap();
                bytes.iter().any(|byte| *byte != 0).then_some((gfn, bytes))
            })
            .collect();
        Snapshot {
            blocks,
            boot_value_at,
            frames,
            profile,
            unmarked: config.layout.unmarked[0],
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Ram { frame: usize, writable: bool },
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Guest,
    Queued,
    Neighbour,
    Host,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) owner: Owner,
    pub(crate) references: u32,
    pub(crate) value: u64,
}

/// A store on its way to memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Store {
    Mark(u64),
    BootValue(u64),
    Data { frame: usize, value: u64 },
}

/// The machine. Whoever changes or reads it takes a step first; see [`World::step`].
pub(crate) struct State {
    pub(crate) entry: Entry,
    pub(crate) frames: [Frame; 4],
    /// The virtual CPU's cached translation of the page. `None` in `target` is a zero frame.
    pub(crate) cached: Option<(Option<usize>, bool)>,
    pub(crate) buffer: VecDeque<Store>,
    pub(crate) mark: u64,
    pub(crate) boot_value: u64,
    pub(crate) idt_limit: u32,
    /// Nothing will write to descriptors any more: reading them is no step.
    pub(crate) descriptors_settled: bool,
    pub(crate) wrong: Option<&'static str>,
}

impl State {
    pub(crate) fn drain_one(&mut self) {
        match self.buffer.pop_front() {
            Some(Store::Mark(value)) => self.mark = value,
            Some(Store::BootValue(value)) => self.boot_value = value,
            Some(Store::Data { frame, value }) => {
                if self.frames[frame].owner != Owner::Guest {
                    self.wrong = Some("the guest wrote to a frame that it does not own");
                }
                self.frames[frame].value = value;
            }
            None => {}
        }
    }

    pub(crate) fn drain(&mut self) {
        while !self.buffer.is_empty() {
            self.drain_one();
        }
    }

    pub(crate) fn forget_translation(&mut self) {
        // The virtual CPU acknowledges outside the guest: what it wrote is in memory by then.
        self.drain();
        self.cached = None;
    }

    pub(crate) fn value_of(&self, target: Option<usize>) -> u64 {
        let buffered = self.buffer.iter().rev().find_map(|store| match store {
            Store::Data { frame, value } if Some(*frame) == target => Some(*value),
            _ => None,
        });
        buffered.unwrap_or_else(|| target.map_or(0, |frame| self.frames[frame].value))
    }

    pub(crate) fn release(&mut self) {
        for frame in &mut self.frames {
            if frame.owner == Owner::Queued {
                if frame.references > 0 {
                    self.wrong = Some("a frame that something holds was released");
                }
                *frame = Frame {
                    owner: Owner::Neighbour,
                    value: NEIGHBOUR,
                    ..*frame
                };
            }
        }
    }
}

pub(crate) struct World {
    pub(crate) snapshot: &'static Snapshot,
    pub(crate) block: (Gfn, Order, u64),
    /// Every step of every thread is one operation on this, so loom takes all of them to depend on one
    /// another.
    pub(crate) steps: AtomicUsize,
    /// Held while an instruction of the guest runs; held by whoever pauses the guest.
    pub(crate) running: Mutex<()>,
    pub(crate) p2m_lock: Mutex<()>,
    /// Not loom's: the threads run one at a time, and change places only in a step.
    pub(crate) state: Cell<State>,
}

impl World {
    /// A machine whose page is `block` and holds `value`.
    pub(crate) fn new(block: (Gfn, Order, u64), value: u64) -> Self {
        let snapshot = snapshot();
        let host = Frame {
            owner: Owner::Host,
            references: 0,
            value: 0,
        };
        Self {
            snapshot,
            block,
            steps: AtomicUsize::new(0),
            running: Mutex::new(()),
            p2m_lock: Mutex::new(()),
            state: Cell::new(State {
                entry: Entry::Ram {
                    frame: OWN,
                    writable: true,
                },
                frames: [
                    Frame {
                        owner: Owner::Guest,
                        references: 0,
                        value,
                    },
                    host,
                    host,
                    host,
                ],
                cached: Some((Some(OWN), true)),
                buffer: VecDeque::new(),
                mark: snapshot.profile.free.predicate.expected,
                boot_value: snapshot.profile.identity.boot_value.unwrap().value,
                idt_limit: snapshot.profile.identity.idt_limit,
                descriptors_settled: false,
                wrong: None,
            }),
        }
    }

    /// Another thread may run before `action`; none does during it.
    pub(crate) fn step<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        self.steps.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
        action(&mut self.state.lock().unwrap())
    }

    /// One instruction of the guest: waits while it is paused.
    pub(crate) fn instruction<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        let running = self.running.lock().unwrap();
        let result = self.step(action);
        drop(running);
        result
    }

    /// The guest writes to the page.
    pub(crate) fn write(&self, value: u64) {
        loop {
            let written = self.instruction(|state| {
                let (target, writable) = match (state.cached, state.entry) {
                    (Some((target, true)), _) => (target, true),
                    // A cached read-only translation: the processor walks again before it faults.
                    (_, Entry::Ram { frame, writable }) => (Some(frame), writable),
                    (_, Entry::Zero) => (None, false),
                };
                match target {
                    Some(frame) if writable => {
                        state.cached = Some((target, true));
                        state.buffer.push_back(Store::Data { frame, value });
                        true
                    }
                    _ => {
                        // A fault leaves the guest.
                        state.drain();
                        false
                    }
                }
            });
            if written {
                return;
            }
            self.fault();
        }
    }

    /// The hypervisor's write-fault handler. It looks, then acts: both under the p2m lock.
    pub(crate) fn fault(&self) {
        let lock = self.p2m_lock.lock().unwrap();
        let found = self.step(|state| state.entry);
        self.step(|state| {
            match found {
                Entry::Zero => {
                    let fresh = state
                        .frames
                        .iter()
                        .position(|frame| frame.owner == Owner::Host)
                        .unwrap();
                    state.frames[fresh] = Frame {
                        owner: Owner::Guest,
                        references: 0,
                        value: 0,
                    };
                    state.entry = Entry::Ram {
                        frame: fresh,
                        writable: true,
                    };
                }
                Entry::Ram { frame, .. } => {
                    state.entry = Entry::Ram {
                        frame,
                        writable: true,
                    }
                }
            }
            state.cached = None;
        });
        drop(lock);
    }

    pub(crate) fn read(&self) -> u64 {
        self.instruction(|state| {
            let (target, writable) = state.cached.unwrap_or(match state.entry {
                Entry::Ram { frame, writable } => (Some(frame), writable),
                Entry::Zero => (None, false),
            });
            state.cached = Some((target, writable));
            let value = state.value_of(target);
            if target.is_some_and(|frame| state.frames[frame].owner == Owner::Neighbour) {
                state.wrong = Some("the guest read another domain's memory");
            }
            value
        })
    }

    pub(crate) fn run(&self, program: Program) {
        let unmarked = self.snapshot.unmarked;
        let check = |found: u64| {
            if found != WRITTEN {
                self.step(|state| state.wrong = Some("the guest does not read what it wrote"));
            }
        };
        match program {
            Program::Allocate => {
                self.instruction(|state| state.buffer.push_back(Store::Mark(unmarked)));
                self.write(WRITTEN);
                check(self.read());
            }
            Program::ReadFree => {
                for _ in 0..3 {
                    self.read();
                }
            }
            Program::Kexec => {
                // `lidt` serialises: all earlier stores are in memory.
                self.instruction(|state| {
                    state.drain();
                    state.idt_limit = 0;
                });
                self.write(WRITTEN);
                self.instruction(|state| state.buffer.push_back(Store::BootValue(7)));
                let limit = self.snapshot.profile.identity.idt_limit;
                self.instruction(|state| {
                    state.drain();
                    state.idt_limit = limit;
                });
                check(self.read());
            }
            Program::BootedAnew => {
                self.instruction(|state| state.buffer.push_back(Store::BootValue(7)));
                self.write(WRITTEN);
                check(self.read());
            }
            Program::Hold => {
                let lock = self.p2m_lock.lock().unwrap();
                let found = self.step(|state| state.entry);
                let held = self.step(|state| match found {
                    Entry::Ram { frame, .. } => {
                        if state.frames[frame].owner != Owner::Guest {
                            state.wrong = Some("a reference was taken to a frame that is gone");
                        }
                        state.frames[frame].references += 1;
                        Some(frame)
                    }
                    Entry::Zero => None,
                });
                drop(lock);
                if let Some(frame) = held {
                    self.step(|state| state.frames[frame].references -= 1);
                }
            }
        }
    }

    /// What must hold once everything has stopped.
    pub(crate) fn judge(&self, program: Program) -> Option<&'static str> {
        let mut state = self.state.lock().unwrap();
        state.drain();
        let owns = |frame: usize| state.frames[frame].owner == Owner::Guest;
        let now = match state.entry {
            Entry::Ram { frame, .. } => state.frames[frame].value,
            Entry::Zero => 0,
        };
        if let Some(wrong) = state.wrong {
            return Some(wrong);
        }
        if !matches!(program, Program::ReadFree | Program::Hold) && now != WRITTEN {
            return Some("the guest's write is lost");
        }
        if let Entry::Ram { frame, writable } = state.entry {
            if !owns(frame) {
                return Some("the guest's page is another domain's frame");
            }
            if !writable {
                return Some("the page was left read-only");
            }
        }
        if state
            .frames
            .iter()
            .any(|frame| frame.owner == Owner::Neighbour && frame.value != NEIGHBOUR)
        {
            return Some("another domain's memory was overwritten");
        }
        if state.frames.iter().any(|frame| frame.owner == Owner::Queued) {
            return Some("a frame was not released");
        }
        None
    }
}
