//! What the content stage asks of the hypervisor.

use crate::{Gfn, PageState, Protect, Skip};

/// A domain's number in Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(u16);

impl DomainId {
    /// Names domain `number`.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A page of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainPage {
    /// Whose.
    pub domain: DomainId,
    /// Which.
    pub gfn: Gfn,
}

/// The domain and those with which it may share: itself, and the members of its trust group. What may share
/// with what is the hypervisor's to decide; a place of another domain gets [`Skip::NoPartner`].
pub trait Peers: Protect {
    /// Its number.
    fn id(&mut self) -> DomainId;
    /// What is at `gfn`. A hint.
    fn page_state(&mut self, gfn: Gfn) -> PageState;
    /// Whether the page has the same bytes as its partner, as far as can be said while either may be written
    /// to. [`Peers::lock_with`] and protection make the answer final.
    fn equal(&mut self, gfn: Gfn, partner: DomainPage) -> bool;
    /// Takes the p2m locks of this domain and of `partner`.
    ///
    /// # Errors
    /// [`Skip::NoPartner`]; neither is locked then.
    fn lock_with(&mut self, partner: DomainId) -> Result<(), Skip>;
    /// Drops both.
    fn unlock_with(&mut self);
    /// As [`Protect::protect`] for a page of the partner's. One that is shared already is read-only for good.
    ///
    /// # Errors
    /// [`Skip`]; nothing has changed then.
    fn protect_partner(&mut self, partner: DomainPage) -> Result<(), Skip>;
    /// As [`Protect::restore`] for a page of the partner's. One that is shared by now stays as it is.
    fn restore_partner(&mut self, partner: DomainPage);
    /// Makes `gfn` another entry for the partner's frame, unless that has `most` already, and queues its own
    /// frame for [`crate::P2m::release`]. Both are protected and equal.
    ///
    /// # Errors
    /// [`Skip`]; no bytes of either have changed then, and the page is still on a frame of its own.
    fn merge(&mut self, gfn: Gfn, partner: DomainPage, most: u32) -> Result<(), Skip>;
}
