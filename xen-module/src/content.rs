//! Implements the content stage's traits by Xen's functions.

use lacuna_core::{DomainId, DomainPage, Gfn, Order, PageState, Peers, Protect, Skip};

use crate::mapped_frame::MappedFrame;
use crate::shim;
use crate::xen_domain::XenDomain;

/// Converts a result of the C side: 0, or a negative `LACUNA_SKIP_*`.
fn skip(result: i32) -> Result<(), Skip> {
    if result == 0 {
        Ok(())
    } else {
        Err(Skip::from_result(result))
    }
}

impl Protect for XenDomain {
    fn protect(&mut self, gfn: Gfn, order: Order) -> Result<(), Skip> {
        if order != Order::PAGE {
            return Err(Skip::EntryRefused);
        }
        // Our own mapping holds a reference: it would make the frame look held.
        self.last = None;
        // SAFETY: invariant; the engine holds the p2m lock.
        skip(unsafe { shim::lacuna_x_protect(self.domain, gfn.get()) })
    }

    fn restore(&mut self, gfn: Gfn, _order: Order) {
        // SAFETY: invariant; the engine holds the p2m lock.
        unsafe { shim::lacuna_x_restore(self.domain, gfn.get()) };
    }
}

impl Peers for XenDomain {
    fn id(&mut self) -> DomainId {
        // SAFETY: invariant.
        DomainId::new(unsafe { shim::lacuna_x_domain_id(self.domain) })
    }

    fn page_state(&mut self, gfn: Gfn) -> PageState {
        // Unmap first: the hypervisor has few mapping slots.
        self.last = None;
        let (state, frame) = MappedFrame::of_private(self.domain, gfn);
        // It is going to be hashed.
        self.last = frame;
        PageState::from_code(state).unwrap_or(PageState::Other)
    }

    fn equal(&mut self, gfn: Gfn, partner: DomainPage) -> bool {
        // SAFETY: invariant; the C side finds the partner by its number, and refuses one that is not of the
        // group.
        unsafe { shim::lacuna_x_equal(self.domain, gfn.get(), partner.domain.get(), partner.gfn.get()) }
    }

    fn lock_with(&mut self, partner: DomainId) -> Result<(), Skip> {
        self.last = None;
        // SAFETY: invariant; no p2m lock is held (the engine pairs `lock_with` and `unlock_with`).
        skip(unsafe { shim::lacuna_x_pair_lock(self.domain, partner.get()) })
    }

    fn unlock_with(&mut self) {
        self.last = None;
        // SAFETY: invariant; taken by `lock_with`.
        unsafe { shim::lacuna_x_pair_unlock(self.domain) };
    }

    fn protect_partner(&mut self, partner: DomainPage) -> Result<(), Skip> {
        self.last = None;
        // SAFETY: invariant; the engine holds both locks, so the C side knows the partner.
        skip(unsafe { shim::lacuna_x_protect_partner(self.domain, partner.gfn.get()) })
    }

    fn restore_partner(&mut self, partner: DomainPage) {
        // SAFETY: as in `protect_partner`.
        unsafe { shim::lacuna_x_restore_partner(self.domain, partner.gfn.get()) };
    }

    fn merge(&mut self, gfn: Gfn, partner: DomainPage, most: u32) -> Result<(), Skip> {
        self.last = None;
        // SAFETY: as in `protect_partner`; both pages are protected and were found equal.
        skip(unsafe { shim::lacuna_x_merge(self.domain, gfn.get(), partner.gfn.get(), most) })
    }
}
