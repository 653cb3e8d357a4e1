//! Everything that is known of one frame, for an operator who asks why.

use crate::abi::{Explanation, GfnInfo};
use crate::{FreeCheck, Gfn, GuestMemory, InUseReason, MemoryMapReader, Profile, UnknownReason, Verdict};

/// Explains frame `gfn`: what the guest's descriptors say of it, whether it is a candidate, and what Xen has
/// there.
pub fn explain<M: GuestMemory>(
    memory: &mut M,
    profile: Option<&Profile>,
    candidate: bool,
    info: &GfnInfo,
    gfn: Gfn,
) -> Explanation {
    let mut answer = Explanation {
        verdict: 3,
        predicate: u64::MAX,
        candidate: u64::from(candidate),
        mfn: info.mfn,
        count_info: info.count_info,
        type_info: info.type_info,
        p2m_type: info.p2m_type,
        p2m_order: info.order,
        zero_frame: info.zero_frame,
        ..Explanation::default()
    };
    let Some(profile) = profile else { return answer };
    let mut reader = MemoryMapReader::new(profile);
    answer.descriptor = reader.locate(memory, gfn).map_or(0, |at| at.address().get());
    answer.predicate = reader
        .read(memory, gfn, profile.free.predicate.field)
        .unwrap_or(u64::MAX);
    (answer.verdict, answer.reason, answer.value, answer.order) =
        match FreeCheck::new(profile).page(memory, gfn) {
            Verdict::Free { head, order } => (0, 0, head.get(), u64::from(order.get())),
            Verdict::InUse(InUseReason::NotBuddy) => (1, 1, 0, 0),
            Verdict::InUse(InUseReason::OutsideBlock) => (1, 2, 0, 0),
            Verdict::InUse(InUseReason::Condition { index, value }) => (1, 3, value, u64::from(index)),
            Verdict::Unknown(UnknownReason::NoDescriptor { next }) => (2, 1, next.get(), 0),
            Verdict::Unknown(UnknownReason::Unreadable) => (2, 2, 0, 0),
            Verdict::Unknown(UnknownReason::BadOrder(value)) => (2, 3, value, 0),
            Verdict::Unknown(UnknownReason::Misaligned(order)) => (2, 4, 0, u64::from(order.get())),
            Verdict::Unknown(UnknownReason::Condition { index, value }) => (2, 5, value, u64::from(index)),
        };
    answer
}
