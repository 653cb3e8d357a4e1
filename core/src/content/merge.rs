//! How a page changes hands while its guest runs: protect, flush, compare, share or restore, flush.

// Where mutations do not exist, `mutated!` is the constant `false`.
#![allow(clippy::nonminimal_bool)]

use super::{Peers, Place};
use crate::share::steps::{Steps, mutated};
use crate::{BytesRule, Gfn, Order, Protect, Skip};

/// Puts a page that holds nothing but zeros on a zero frame. The hypervisor looks at its bytes while it is
/// protected.
///
/// Returns the pages newly shared, 1.
///
/// # Errors
/// [`Skip`] when it cannot be protected or shared, or is no longer zero; it is as before then.
pub fn share_zero_protected<P: Protect>(host: &mut P, gfn: Gfn, steps: Steps) -> Result<u64, Skip> {
    let locked = !mutated!(steps, NoLock);
    if locked {
        host.lock();
    }
    let result = share_zero_locked(host, gfn, steps);
    if mutated!(steps, ReleaseFirst) {
        host.release();
    }
    if !mutated!(steps, NoFlush) {
        host.flush();
    }
    if locked {
        host.unlock();
    }
    host.release();
    result
}

fn share_zero_locked<P: Protect>(host: &mut P, gfn: Gfn, steps: Steps) -> Result<u64, Skip> {
    if !mutated!(steps, NoProtect) {
        host.protect(gfn, Order::PAGE)?;
    }
    // Until the flush is acknowledged a stale translation can still write.
    if !mutated!(steps, NoProtectFlush) {
        host.flush();
    }
    let bytes = if mutated!(steps, NoRecheck) {
        BytesRule::Any
    } else {
        BytesRule::Zero
    };
    let shared = host.share_zero(gfn, Order::PAGE, bytes);
    if shared.is_err() && !mutated!(steps, NoRestore) {
        host.restore(gfn, Order::PAGE);
    }
    shared
}

/// Has the page share its partner's frame, if they are equal and that frame has fewer than `most` sharers.
///
/// # Errors
/// [`Skip`] when either cannot be protected or shared, or they are not equal; no byte of either has changed
/// then.
pub fn merge_protected<P: Peers>(
    host: &mut P,
    gfn: Gfn,
    partner: Place,
    most: u32,
    steps: Steps,
) -> Result<(), Skip> {
    let locked = !mutated!(steps, NoLock);
    if locked {
        host.lock_with(partner.domain)?;
    }
    let result = merge_locked(host, gfn, partner, most, steps);
    if mutated!(steps, ReleaseFirst) {
        host.release();
    }
    if !mutated!(steps, NoFlush) {
        host.flush();
    }
    if locked {
        host.unlock_with();
    }
    host.release();
    result
}

fn merge_locked<P: Peers>(
    host: &mut P,
    gfn: Gfn,
    partner: Place,
    most: u32,
    steps: Steps,
) -> Result<(), Skip> {
    let early = mutated!(steps, RecheckFirst).then(|| host.equal(gfn, partner));
    if !mutated!(steps, NoProtect) {
        host.protect(gfn, Order::PAGE)?;
    }
    if !mutated!(steps, NoProtectPartner) {
        if let Err(skip) = host.protect_partner(partner) {
            host.restore(gfn, Order::PAGE);
            return Err(skip);
        }
    }
    // Until the flush is acknowledged a stale translation can still write.
    if !mutated!(steps, NoProtectFlush) {
        host.flush();
    }
    let equal = early.unwrap_or_else(|| mutated!(steps, NoRecheck) || host.equal(gfn, partner));
    let result = if equal {
        host.merge(gfn, partner, most)
    } else {
        Err(Skip::Differs)
    };
    if result.is_err() && !mutated!(steps, NoRestore) {
        host.restore(gfn, Order::PAGE);
        host.restore_partner(partner);
    }
    result
}
