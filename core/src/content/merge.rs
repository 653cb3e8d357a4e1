//! How a page changes hands while its guest runs: protect, flush, compare, share or restore, flush.

// Where mutations do not exist, `mutated!` is the constant `false`.
#![allow(clippy::nonminimal_bool)]

use super::{DomainPage, Peers};
use crate::share::steps::{Steps, mutated};
use crate::{BytesRule, Gfn, Order, Protect, Skip};

/// Puts a page that holds nothing but zeros on a zero frame. The hypervisor looks at its bytes while it is
/// protected.
///
/// Returns the pages newly shared, 1.
///
/// # Errors
/// [`Skip`] when it cannot be protected or shared, or is no longer zero; it is as before then.
pub fn share_zero_protected<P: Protect>(domain: &mut P, gfn: Gfn, steps: Steps) -> Result<u64, Skip> {
    let locked = !mutated!(steps, NoLock);
    if locked {
        domain.lock();
    }
    let result = share_zero_locked(domain, gfn, steps);
    if mutated!(steps, ReleaseFirst) {
        domain.release();
    }
    if !mutated!(steps, NoFlush) {
        domain.flush();
    }
    if locked {
        domain.unlock();
    }
    domain.release();
    result
}

fn share_zero_locked<P: Protect>(domain: &mut P, gfn: Gfn, steps: Steps) -> Result<u64, Skip> {
    if !mutated!(steps, NoProtect) {
        domain.protect(gfn, Order::PAGE)?;
    }
    // Until the flush is acknowledged a stale translation can still write.
    if !mutated!(steps, NoProtectFlush) {
        domain.flush();
    }
    let bytes = if mutated!(steps, NoRecheck) {
        BytesRule::Any
    } else {
        BytesRule::Zero
    };
    let shared = domain.share_zero(gfn, Order::PAGE, bytes);
    if shared.is_err() && !mutated!(steps, NoRestore) {
        domain.restore(gfn, Order::PAGE);
    }
    shared
}

/// Has the page share its partner's frame, if they are equal and that frame has fewer than `most` sharers.
///
/// # Errors
/// [`Skip`] when either cannot be protected or shared, or they are not equal; no byte of either has changed
/// then.
pub fn merge_protected<P: Peers>(
    domain: &mut P,
    gfn: Gfn,
    partner: DomainPage,
    most: u32,
    steps: Steps,
) -> Result<(), Skip> {
    let locked = !mutated!(steps, NoLock);
    if locked {
        domain.lock_with(partner.domain)?;
    }
    let result = merge_locked(domain, gfn, partner, most, steps);
    if mutated!(steps, ReleaseFirst) {
        domain.release();
    }
    if !mutated!(steps, NoFlush) {
        domain.flush();
    }
    if locked {
        domain.unlock_with();
    }
    domain.release();
    result
}

fn merge_locked<P: Peers>(
    domain: &mut P,
    gfn: Gfn,
    partner: DomainPage,
    most: u32,
    steps: Steps,
) -> Result<(), Skip> {
    let early = mutated!(steps, RecheckFirst).then(|| domain.equal(gfn, partner));
    if !mutated!(steps, NoProtect) {
        domain.protect(gfn, Order::PAGE)?;
    }
    if !mutated!(steps, NoProtectPartner) {
        if let Err(skip) = domain.protect_partner(partner) {
            domain.restore(gfn, Order::PAGE);
            return Err(skip);
        }
    }
    // Until the flush is acknowledged a stale translation can still write.
    if !mutated!(steps, NoProtectFlush) {
        domain.flush();
    }
    let equal = early.unwrap_or_else(|| mutated!(steps, NoRecheck) || domain.equal(gfn, partner));
    let result = if equal {
        domain.merge(gfn, partner, most)
    } else {
        Err(Skip::Differs)
    };
    if result.is_err() && !mutated!(steps, NoRestore) {
        domain.restore(gfn, Order::PAGE);
        domain.restore_partner(partner);
    }
    result
}
