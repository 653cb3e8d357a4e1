//! The machine below the mock guest: host frames, the p2m, translation caches, references.
//!
//! Translation caches never forget by themselves, which is the worst that a processor may do.

mod audit;
mod hypervisor;
mod writes;

use std::collections::{BTreeMap, BTreeSet};

use lacuna_core::{Order, PAGE_SIZE};

/// What a mock neighbour writes into each frame it gets. A guest that ever reads it was let into another's
/// memory.
const NEIGHBOUR: u8 = 0xee;

/// Something that must never happen. The mock goes on and remembers it; see [`super::MockGuest::audit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An entry was changed without the p2m lock.
    Unlocked {
        /// The frame.
        gfn: u64,
    },
    /// A frame was given back while a virtual CPU could still reach it.
    ReleasedStale {
        /// Whose translation cache.
        vcpu: usize,
        /// The guest frame.
        gfn: u64,
    },
    /// The guest read or wrote a frame that belongs to somebody else by now.
    Foreign {
        /// The virtual CPU.
        vcpu: usize,
        /// The guest frame.
        gfn: u64,
    },
    /// A write met an entry left read-only after the lock was dropped.
    LeftProtected {
        /// The frame.
        gfn: u64,
    },
    /// Registers were read of a virtual CPU that was running.
    RegistersOfRunning {
        /// The virtual CPU.
        vcpu: u32,
    },
    /// `lock`, `unlock`, `pause` and `unpause` were not paired, or frames were released under the lock.
    Unbalanced(&'static str),
    /// An order, or an alignment, that the p2m does not have.
    BadOrder {
        /// The frame.
        gfn: u64,
        /// The order.
        order: u8,
    },
}

/// Whose a host frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Host,
    Guest,
    /// Nobody's: shared by content.
    Shared,
    /// Taken out of the p2m, not yet given back.
    Queued,
    Neighbour,
}

#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) owner: Owner,
    pub(super) references: u32,
    /// `None`: all zero.
    pub(super) bytes: Option<Box<[u8; PAGE_SIZE]>>,
}

/// One 4 KiB entry of the p2m.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Hole,
    Ram {
        frame: usize,
        writable: bool,
    },
    Zero,
    /// A frame shared by content.
    Shared(usize),
}

/// Where a translation leads; `None` is a zero frame.
type Target = Option<usize>;

#[derive(Clone, Copy, Debug)]
struct Translation {
    target: Target,
    writable: bool,
    /// It was used to write: the entry says so, and is not told again.
    written: bool,
}

/// How a guest's access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It was carried out.
    Done,
    /// The virtual CPU waits for the p2m lock: try again later.
    Blocked,
    /// The guest is paused: nothing of it runs.
    Paused,
    /// A write fault found no host memory: the virtual CPU waits.
    NoMemory,
    /// There is no memory at that frame.
    Absent,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) frames: Vec<Frame>,
    pub(super) free: Vec<usize>,
    p2m: Vec<Entry>,
    /// Entries past those: pages that the guest had populated far away.
    far: BTreeMap<u64, Entry>,
    /// One past the highest frame that ever had an entry (Xen's `max_mapped_pfn`, which never falls).
    gfns: u64,
    /// 2 MiB regions that are one entry.
    pub(super) large: BTreeSet<u64>,
    /// Frames whose entries do not say that they were used to write.
    unwritten: BTreeSet<u64>,
    caches: Vec<BTreeMap<u64, Translation>>,
    pub(super) queue: Vec<usize>,
    locked: bool,
    pauses: u32,
    pub(super) pool_pages: u64,
    pub(super) log_dirty: bool,
    pub(super) neighbour: bool,
    pub(super) violations: Vec<Violation>,
    pub(super) unshared: u64,
    pub(super) unshare_enomem: u64,
    pub(super) released: u64,
    pub(super) pool_refused: u64,
    pub(super) content_unshared: u64,
}

pub(super) const REGION: u64 = 512;

impl Machine {
    /// A machine whose guest has `pages` frames, but for `hole`, and whose host has `host_free` more.
    pub(super) fn new(pages: u64, hole: &core::ops::Range<u64>, vcpus: u32, host_free: usize) -> Self {
        let blank = |owner| Frame {
            owner,
            references: 0,
            bytes: None,
        };
        let mut frames = Vec::new();
        let p2m: Vec<Entry> = (0..pages)
            .map(|gfn| {
                if hole.contains(&gfn) {
                    return Entry::Hole;
                }
                frames.push(blank(Owner::Guest));
                Entry::Ram {
                    frame: frames.len() - 1,
                    writable: true,
                }
            })
            .collect();
        let first_free = frames.len();
        frames.resize_with(first_free + host_free, || blank(Owner::Host));
        let large = p2m
            .chunks_exact(512)
            .zip(0..)
            .filter(|(region, _)| !region.contains(&Entry::Hole))
            .map(|(_, region)| region)
            .collect();
        Self {
            free: (first_free..frames.len()).collect(),
            frames,
            gfns: p2m.len() as u64,
            p2m,
            far: BTreeMap::new(),
            large,
            unwritten: BTreeSet::new(),
            caches: (0..vcpus).map(|_| BTreeMap::new()).collect(),
            queue: Vec::new(),
            locked: false,
            pauses: 0,
            pool_pages: u64::MAX,
            log_dirty: false,
            neighbour: false,
            violations: Vec::new(),
            unshared: 0,
            unshare_enomem: 0,
            released: 0,
            pool_refused: 0,
            content_unshared: 0,
        }
    }

    pub(super) fn pages(&self) -> u64 {
        self.p2m.len() as u64
    }

    /// One past the highest frame that was ever mapped.
    pub(super) const fn gfns(&self) -> u64 {
        self.gfns
    }

    /// Pages that the guest has, be they on frames of its own or shared.
    pub(super) fn owned(&self) -> u64 {
        self.entries().filter(|entry| **entry != Entry::Hole).count() as u64
    }

    pub(super) fn entry(&self, gfn: u64) -> Entry {
        usize::try_from(gfn)
            .ok()
            .and_then(|gfn| self.p2m.get(gfn))
            .or_else(|| self.far.get(&gfn))
            .copied()
            .unwrap_or(Entry::Hole)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.p2m.iter().chain(self.far.values())
    }

    pub(super) fn set_entry(&mut self, gfn: u64, entry: Entry) {
        self.note_written(gfn);
        match usize::try_from(gfn).ok().and_then(|gfn| self.p2m.get_mut(gfn)) {
            Some(slot) => *slot = entry,
            None if entry == Entry::Hole => drop(self.far.remove(&gfn)),
            None => drop(self.far.insert(gfn, entry)),
        }
        if entry != Entry::Hole {
            self.gfns = self.gfns.max(gfn + 1);
        }
    }

    /// The guest has a page populated at `gfn` (`XENMEM_populate_physmap`). `false` without memory, or where
    /// there is one.
    pub(super) fn populate(&mut self, gfn: u64) -> bool {
        if self.entry(gfn) != Entry::Hole {
            return false;
        }
        let Some(frame) = self.free.pop() else {
            return false;
        };
        self.frames[frame] = Frame {
            owner: Owner::Guest,
            references: 0,
            bytes: None,
        };
        self.set_entry(
            gfn,
            Entry::Ram {
                frame,
                writable: true,
            },
        );
        true
    }

    /// The guest gives the page at `gfn` up (`XENMEM_decrease_reservation`). `false` where it has none of its
    /// own.
    pub(super) fn remove(&mut self, gfn: u64) -> bool {
        let Entry::Ram { frame, .. } = self.entry(gfn) else {
            return false;
        };
        self.set_entry(gfn, Entry::Hole);
        for cache in &mut self.caches {
            cache.remove(&gfn);
        }
        self.frames[frame].owner = Owner::Host;
        self.free.push(frame);
        true
    }

    /// The order of the entry at `gfn`; of a hole, that of the largest page table missing there.
    pub(super) fn order_of_entry(&self, gfn: u64) -> u8 {
        if self.entry(gfn) != Entry::Hole {
            return self.order(gfn).get();
        }
        let is_hole = |order: u8| {
            let first = gfn >> order << order;
            let past = first.saturating_add(1 << order);
            self.far.range(first..past).next().is_none()
                && (first..past.min(self.pages())).all(|gfn| self.entry(gfn) == Entry::Hole)
        };
        [27, 18, 9].into_iter().find(|order| is_hole(*order)).unwrap_or(0)
    }

    /// The entry's order as the p2m holds it.
    pub(super) fn order(&self, gfn: u64) -> Order {
        if self.large.contains(&(gfn / REGION)) {
            Order::SUPERPAGE
        } else {
            Order::PAGE
        }
    }

    pub(super) const fn running(&self) -> bool {
        self.pauses == 0
    }

    pub(super) const fn locked(&self) -> bool {
        self.locked
    }

    pub(super) fn host_free(&self) -> u64 {
        self.free.len() as u64
    }

    pub(super) fn references(&mut self, gfn: u64) -> Option<&mut u32> {
        match self.entry(gfn) {
            Entry::Ram { frame, .. } | Entry::Shared(frame) => Some(&mut self.frames[frame].references),
            Entry::Hole | Entry::Zero => None,
        }
    }

    /// Host frames taken from the guest and not yet given back.
    pub(super) fn queued(&self) -> u64 {
        self.queue.len() as u64
    }

    pub(super) fn zero_gfns(&self) -> u64 {
        self.entries().filter(|entry| **entry == Entry::Zero).count() as u64
    }

    pub(super) fn zero_superpages(&self) -> u64 {
        self.large
            .iter()
            .filter(|region| self.entry(*region * REGION) == Entry::Zero)
            .count() as u64
    }

    fn read_frame(&self, target: Target, offset: usize, into: &mut [u8]) {
        match target.and_then(|frame| self.frames[frame].bytes.as_ref()) {
            Some(bytes) => into.copy_from_slice(&bytes[offset..offset + into.len()]),
            None => into.fill(0),
        }
    }

    fn write_frame(&mut self, frame: usize, offset: usize, bytes: &[u8]) {
        let room = self.frames[frame]
            .bytes
            .get_or_insert_with(|| Box::new([0; PAGE_SIZE]));
        room[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// The hypervisor reads: through the p2m, no translation cache. The range lies in one frame.
    pub(super) fn peek(&self, gfn: u64, offset: usize, into: &mut [u8]) -> bool {
        match self.entry(gfn) {
            Entry::Hole => return false,
            Entry::Ram { frame, .. } | Entry::Shared(frame) => self.read_frame(Some(frame), offset, into),
            Entry::Zero => self.read_frame(None, offset, into),
        }
        true
    }

    /// Writes into an ordinary frame behind the guest's back: to build it.
    pub(super) fn poke(&mut self, gfn: u64, offset: usize, bytes: &[u8]) {
        if let Entry::Ram { frame, .. } = self.entry(gfn) {
            self.write_frame(frame, offset, bytes);
        }
    }

    /// A virtual CPU translates. A translation found in its cache is used as it is.
    fn translate(&mut self, vcpu: usize, gfn: u64, write: bool) -> Result<Target, Access> {
        if !self.running() {
            return Err(Access::Paused);
        }
        if let Some(cached) = self.caches[vcpu].get(&gfn)
            && (cached.writable || !write)
            && (cached.written || !write)
        {
            return Ok(cached.target);
        }
        let (target, writable) = match self.entry(gfn) {
            Entry::Hole => return Err(Access::Absent),
            Entry::Ram { frame, writable } => (Some(frame), writable),
            Entry::Zero => (None, false),
            Entry::Shared(frame) => (Some(frame), false),
        };
        if write && !writable {
            return self.fault(vcpu, gfn);
        }
        if write {
            self.note_written(gfn);
        }
        let written = write;
        let translation = Translation {
            target,
            writable,
            written,
        };
        self.caches[vcpu].insert(gfn, translation);
        Ok(target)
    }

    /// A write fault: it waits for the p2m lock, then takes a cleared page.
    fn fault(&mut self, vcpu: usize, gfn: u64) -> Result<Target, Access> {
        if self.locked {
            return Err(Access::Blocked);
        }
        let frame = match self.entry(gfn) {
            Entry::Hole => return Err(Access::Absent),
            Entry::Ram {
                frame,
                writable: true,
            } => frame,
            Entry::Ram { frame, .. } => {
                self.violations.push(Violation::LeftProtected { gfn });
                frame
            }
            Entry::Zero => {
                let Some(frame) = self.free.pop() else {
                    self.unshare_enomem += 1;
                    return Err(Access::NoMemory);
                };
                self.frames[frame] = Frame {
                    owner: Owner::Guest,
                    references: 0,
                    bytes: None,
                };
                self.unshared += 1;
                self.break_up(gfn);
                frame
            }
            Entry::Shared(frame) => match self.unshare(frame) {
                Some(own) => own,
                None => return Err(Access::NoMemory),
            },
        };
        self.set_entry(
            gfn,
            Entry::Ram {
                frame,
                writable: true,
            },
        );
        for cache in &mut self.caches {
            cache.remove(&gfn);
        }
        self.translate(vcpu, gfn, true)
    }

    fn own(&mut self, vcpu: usize, gfn: u64, target: Target, write: bool) {
        let may = |owner| owner == Owner::Guest || !write && owner == Owner::Shared;
        if target.is_some_and(|frame| !may(self.frames[frame].owner)) {
            self.violations.push(Violation::Foreign { vcpu, gfn });
        }
    }

    pub(super) fn load(&mut self, vcpu: usize, gfn: u64, offset: usize, into: &mut [u8]) -> Access {
        match self.translate(vcpu, gfn, false) {
            Ok(target) => {
                self.own(vcpu, gfn, target, false);
                self.read_frame(target, offset, into);
                Access::Done
            }
            Err(access) => access,
        }
    }

    pub(super) fn store(&mut self, vcpu: usize, gfn: u64, offset: usize, bytes: &[u8]) -> Access {
        match self.translate(vcpu, gfn, true) {
            Ok(Some(frame)) => {
                self.own(vcpu, gfn, Some(frame), true);
                self.write_frame(frame, offset, bytes);
                Access::Done
            }
            Ok(None) => Access::Blocked,
            Err(access) => access,
        }
    }
}
