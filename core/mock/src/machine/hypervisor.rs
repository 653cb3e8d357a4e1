//! What the hypervisor does to the mock machine: pause, lock, flush, share, protect and release.

use std::collections::BTreeMap;

use lacuna_core::{BytesRule, Order, PAGE_SIZE, Skip};

use super::{Entry, Frame, Machine, NEIGHBOUR, Owner, REGION, Violation};

impl Machine {
    pub(in super::super) fn pause(&mut self) {
        self.pauses += 1;
    }

    pub(in super::super) fn unpause(&mut self) {
        match self.pauses.checked_sub(1) {
            Some(pauses) => self.pauses = pauses,
            None => self.violations.push(Violation::Unbalanced("unpause")),
        }
    }

    pub(in super::super) fn lock(&mut self) {
        if self.locked {
            self.violations.push(Violation::Unbalanced("lock"));
        }
        self.locked = true;
    }

    pub(in super::super) fn unlock(&mut self) {
        if !self.locked {
            self.violations.push(Violation::Unbalanced("unlock"));
        }
        self.locked = false;
    }

    pub(in super::super) fn flush(&mut self) {
        self.caches.iter_mut().for_each(BTreeMap::clear);
    }

    /// Checks what every change of an entry demands, and returns the frames it covers.
    fn covered(&mut self, gfn: u64, order: Order) -> core::ops::Range<u64> {
        if !self.locked {
            self.violations.push(Violation::Unlocked { gfn });
        }
        let known = order == Order::PAGE || order == Order::SUPERPAGE;
        if !known || gfn & (order.pages() - 1) != 0 {
            self.violations.push(Violation::BadOrder {
                gfn,
                order: order.get(),
            });
        }
        gfn..gfn + order.pages()
    }

    /// As [`lacuna_core::P2m::share_zero`].
    pub(in super::super) fn share_zero(
        &mut self,
        gfn: u64,
        order: Order,
        bytes: BytesRule,
    ) -> Result<u64, Skip> {
        let covered = self.covered(gfn, order);
        if self.log_dirty {
            return Err(Skip::LogDirty);
        }
        if order == Order::PAGE && self.entry(gfn) == Entry::Zero
            || self.order(gfn) == order && covered.clone().all(|gfn| self.entry(gfn) == Entry::Zero)
        {
            return Err(Skip::Already);
        }
        let mut frames = Vec::new();
        for at in covered.clone() {
            match self.entry(at) {
                Entry::Hole | Entry::Shared(_) => return Err(Skip::NotRam),
                Entry::Zero => {}
                Entry::Ram { frame, .. } => {
                    if self.frames[frame].references > 0 {
                        return Err(Skip::Held);
                    }
                    let dirty = self.frames[frame].bytes.as_ref();
                    if bytes == BytesRule::Zero && dirty.is_some_and(|bytes| **bytes != [0; PAGE_SIZE]) {
                        return Err(Skip::NotZero);
                    }
                    frames.push(frame);
                }
            }
        }
        if order == Order::PAGE && self.large.contains(&(gfn / REGION)) {
            let Some(left) = self.pool_pages.checked_sub(1) else {
                self.pool_refused += 1;
                return Err(Skip::NoPool);
            };
            self.pool_pages = left;
            self.break_up(gfn);
        }
        if order == Order::SUPERPAGE {
            self.large.insert(gfn / REGION);
        }
        for at in covered {
            self.set_entry(at, Entry::Zero);
        }
        for frame in &frames {
            self.frames[*frame].owner = Owner::Queued;
        }
        self.queue.extend(&frames);
        Ok(frames.len() as u64)
    }

    /// As [`lacuna_core::Protect::protect`] and [`lacuna_core::Protect::restore`].
    pub(in super::super) fn protect(&mut self, gfn: u64, order: Order, writable: bool) -> Result<(), Skip> {
        let covered = self.covered(gfn, order);
        if covered
            .clone()
            .any(|at| matches!(self.entry(at), Entry::Hole | Entry::Shared(_)))
        {
            return Err(Skip::NotRam);
        }
        for at in covered {
            if let Entry::Ram { frame, .. } = self.entry(at) {
                self.set_entry(at, Entry::Ram { frame, writable });
            }
        }
        Ok(())
    }

    /// As [`lacuna_core::P2m::release`]. A neighbour, if there is one, takes each frame at once.
    pub(in super::super) fn release(&mut self) {
        if self.locked {
            self.violations
                .push(Violation::Unbalanced("release under the lock"));
        }
        for frame in core::mem::take(&mut self.queue) {
            for (vcpu, cache) in self.caches.iter().enumerate() {
                if let Some((gfn, _)) = cache.iter().find(|(_, cached)| cached.target == Some(frame)) {
                    self.violations.push(Violation::ReleasedStale { vcpu, gfn: *gfn });
                }
            }
            self.released += 1;
            let neighbour = self.neighbour;
            self.frames[frame] = Frame {
                owner: if neighbour { Owner::Neighbour } else { Owner::Host },
                references: 0,
                bytes: neighbour.then(|| Box::new([NEIGHBOUR; PAGE_SIZE])),
            };
            if !neighbour {
                self.free.push(frame);
            }
        }
    }
}
