//! Sharing by content on the mock machine, and the [`Peers`] of a guest that has none but itself.

use super::MockGuest;
use super::faults::Primitive;
use super::machine::{Entry, Machine, Owner, Violation};
use lacuna_core::{DomainId, DomainPage, Gfn, Order, PAGE_SIZE, PageState, Peers, Skip};

/// The guest's own number.
const DOMAIN: DomainId = DomainId::new(3);

/// What [`Primitive::Merge`] fails with, in turn.
const MERGE_SKIPS: [Skip; 4] = [Skip::Held, Skip::Full, Skip::NoMemory, Skip::NoPool];

impl Machine {
    /// Entries that lead to `frame`.
    fn sharers(&self, frame: usize) -> usize {
        let is_one = |entry: &&Entry| **entry == Entry::Shared(frame);
        self.entries().filter(is_one).count()
    }

    /// Entries on frames shared by content.
    pub(super) fn content_gfns(&self) -> u64 {
        let is_one = |entry: &&Entry| matches!(entry, Entry::Shared(_));
        self.entries().filter(is_one).count() as u64
    }

    /// A write to a shared frame: the last sharer keeps it, another gets a copy. `None` without memory.
    pub(super) fn unshare(&mut self, frame: usize) -> Option<usize> {
        let own = if self.sharers(frame) == 1 {
            frame
        } else {
            let Some(own) = self.free.pop() else {
                self.unshare_enomem += 1;
                return None;
            };
            let bytes = self.frames[frame].bytes.clone();
            self.frames[own].bytes = bytes;
            self.frames[own].references = 0;
            own
        };
        self.frames[own].owner = Owner::Guest;
        self.content_unshared += 1;
        Some(own)
    }

    fn same_bytes(&self, one: u64, other: u64) -> bool {
        let mut bytes = [[0; PAGE_SIZE], [1; PAGE_SIZE]];
        let [first, second] = &mut bytes;
        self.peek(one, 0, first) && self.peek(other, 0, second) && first == second
    }

    /// As [`Peers::merge`]; both frames are this guest's.
    fn merge(&mut self, gfn: u64, partner: u64, most: u32) -> Result<(), Skip> {
        if !self.locked() {
            self.violations.push(Violation::Unlocked { gfn });
        }
        if self.log_dirty {
            return Err(Skip::LogDirty);
        }
        let Entry::Ram { frame: old, .. } = self.entry(gfn) else {
            return Err(Skip::NotRam);
        };
        let shared = match self.entry(partner) {
            Entry::Ram { frame, .. } | Entry::Shared(frame) => frame,
            Entry::Hole | Entry::Zero => return Err(Skip::NotRam),
        };
        if shared == old {
            return Err(Skip::Already);
        }
        if self.frames[old].references > 0 || self.frames[shared].references > 0 {
            return Err(Skip::Held);
        }
        if self.sharers(shared) >= most as usize {
            return Err(Skip::Full);
        }
        for at in [gfn, partner] {
            self.split(at)?;
        }
        self.set_entry(partner, Entry::Shared(shared));
        self.frames[shared].owner = Owner::Shared;
        self.set_entry(gfn, Entry::Shared(shared));
        self.frames[old].owner = Owner::Queued;
        self.queue.push(old);
        Ok(())
    }

    /// Makes small entries of a large one. A page of the pool goes into it.
    fn split(&mut self, gfn: u64) -> Result<(), Skip> {
        if self.order(gfn) == Order::SUPERPAGE {
            self.pool_pages = self.pool_pages.checked_sub(1).ok_or(Skip::NoPool)?;
            self.break_up(gfn);
        }
        Ok(())
    }
}

impl MockGuest {
    /// Pages on frames shared by content, counted in the p2m itself.
    pub fn content_gfns(&self) -> u64 {
        self.machine.content_gfns()
    }

    /// Fills a page of the guest's with bytes made of `pattern`, on `vcpu`, and remembers them for
    /// [`MockGuest::verify`]. Equal patterns make equal pages; pattern 0 makes a page of zeros.
    pub fn fill(&mut self, vcpu: usize, gfn: Gfn, pattern: u64) -> super::Access {
        let bytes: Box<[u8]> = (0..PAGE_SIZE as u64 / 8)
            .flat_map(|at| pattern.wrapping_mul(at | 1).to_le_bytes())
            .collect();
        let access = self.machine.store(vcpu, gfn.get(), 0, &bytes);
        if access == super::Access::Done {
            self.stamps.insert(gfn.get(), pattern);
            // What is verified at the end of the page is what is there.
            self.machine
                .store(vcpu, gfn.get(), PAGE_SIZE - 8, &pattern.to_le_bytes());
        }
        access
    }
}

impl Peers for MockGuest {
    fn id(&mut self) -> DomainId {
        DOMAIN
    }

    fn page_state(&mut self, gfn: Gfn) -> PageState {
        self.interlude();
        match self.machine.entry(gfn.get()) {
            Entry::Ram { .. } => PageState::Private,
            Entry::Shared(_) => PageState::Shared,
            Entry::Zero => PageState::Zero,
            Entry::Hole => PageState::Other,
        }
    }

    fn equal(&mut self, gfn: Gfn, partner: DomainPage) -> bool {
        self.interlude();
        let equal = partner.domain == DOMAIN
            && !self.faults.strikes(Primitive::Equal)
            && self.machine.same_bytes(gfn.get(), partner.gfn.get());
        self.interlude();
        equal
    }

    fn lock_with(&mut self, partner: DomainId) -> Result<(), Skip> {
        self.interlude();
        if partner != DOMAIN || self.faults.strikes(Primitive::LockWith) {
            return Err(Skip::NoPartner);
        }
        self.machine.lock();
        self.interlude();
        Ok(())
    }

    fn unlock_with(&mut self) {
        self.machine.unlock();
        self.interlude();
    }

    fn protect_partner(&mut self, partner: DomainPage) -> Result<(), Skip> {
        self.interlude();
        if self.faults.strikes(Primitive::Protect) {
            return Err(Skip::NoPool);
        }
        if matches!(self.machine.entry(partner.gfn.get()), Entry::Shared(_)) {
            return Ok(());
        }
        let result = self.machine.protect(partner.gfn.get(), Order::PAGE, false);
        self.interlude();
        result
    }

    fn restore_partner(&mut self, partner: DomainPage) {
        self.interlude();
        // One that is shared by now has nothing to undo.
        let _ = self.machine.protect(partner.gfn.get(), Order::PAGE, true);
        self.interlude();
    }

    fn merge(&mut self, gfn: Gfn, partner: DomainPage, most: u32) -> Result<(), Skip> {
        self.interlude();
        if self.faults.strikes(Primitive::Merge) {
            self.share_calls += 1;
            return Err(MERGE_SKIPS[(self.share_calls % MERGE_SKIPS.len() as u64) as usize]);
        }
        let result = self.machine.merge(gfn.get(), partner.gfn.get(), most);
        self.interlude();
        result
    }
}
