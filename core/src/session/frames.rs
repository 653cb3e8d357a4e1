//! Which frames an operation goes through: the range that is asked for, holes to pass over, and what has to
//! be forgotten.

use super::{Outcome, Refusal};
use crate::abi::Request;
use crate::tables::{MAX_GFNS, bitmap_at};
use crate::{Domain, Gfn};

/// Parts of the bitmap that are cleared between two looks at pending interrupts: 64 KiB.
const CLEAR_CHUNK: u32 = 16;
/// Clears the bitmap from frame `cursor` on: the candidates of an earlier profile mean nothing under another
/// one.
///
/// Nothing is shared on what a caller makes this pass over: until a profile is admitted nothing is shared,
/// and the scan that admits it writes every bit.
pub(super) fn forget_candidates<D: Domain>(domain: &mut D, cursor: &mut u64) -> Outcome {
    let mut cleared = 0;
    while *cursor < MAX_GFNS {
        let part = bitmap_at(domain, *cursor);
        let bitmap = part.bitmap();
        let next = bitmap.gfns().max(cursor.saturating_add(1));
        if !part.is_absent() {
            if cleared == CLEAR_CHUNK {
                cleared = 0;
                if domain.preempted() {
                    return Outcome::Again;
                }
            }
            bitmap.clear_range(Gfn::new(*cursor), Gfn::new(next));
            cleared += 1;
        }
        *cursor = next;
    }
    Outcome::Finished
}

/// One past the last frame of the hole in guest-physical memory that begins at `gfn`, where the hypervisor
/// has whole page tables missing, and `to` at most; `gfn` if there is none.
///
/// Passing over holes by it makes the time that an operation takes follow from the guest's memory and its
/// page tables, for both of which it is charged, and not from its frame numbers.
pub(super) fn hole_end<D: Domain>(domain: &mut D, gfn: u64, to: u64) -> u64 {
    let info = domain.gfn_info(Gfn::new(gfn));
    if info.mfn != u64::MAX || info.order == 0 {
        return gfn;
    }
    let last = gfn | 1_u64.checked_shl(info.order).unwrap_or(0).wrapping_sub(1);
    last.saturating_add(1).min(to)
}

/// The frames that a request covers: first, one past the last, and one past the guest's last.
pub(super) fn range<D: Domain>(domain: &mut D, request: &Request) -> Result<(u64, u64, u64), Refusal> {
    let gfns = domain.gfns();
    if gfns > MAX_GFNS {
        return Err(Refusal::out_of_range(gfns, MAX_GFNS));
    }
    let end = if request.end == 0 { gfns } else { request.end };
    if end > gfns {
        return Err(Refusal::out_of_range(end, gfns));
    }
    if request.cursor > end {
        return Err(Refusal::out_of_range(request.cursor, end));
    }
    Ok((request.cursor, end, gfns))
}
