//! Operations that only tell: registers, the bitmap, and how any answer gets into the caller's buffer.

use zerocopy::IntoBytes;

use super::Refusal;
use crate::abi::Request;
use crate::tables::{MAX_GFNS, bitmap_at};
use crate::{Domain, VcpuRegisters};

/// Copies an answer into the buffer.
pub(super) fn put(request: &mut Request, buffer: &mut [u8], answer: &[u8]) -> Result<(), Refusal> {
    let needed = u32::try_from(answer.len()).unwrap_or(u32::MAX);
    let Some(room) = buffer.get_mut(..answer.len()) else {
        request.buffer_size = needed;
        return Err(Refusal::buffer_too_small(u64::from(needed)));
    };
    room.copy_from_slice(answer);
    request.buffer_size = needed;
    Ok(())
}

pub(super) fn registers<D: Domain>(
    domain: &mut D,
    request: &mut Request,
    buffer: &mut [u8],
) -> Result<(), Refusal> {
    const EACH: usize = size_of::<VcpuRegisters>();
    let needed = domain.vcpus() as usize * EACH;
    let needed_field = u32::try_from(needed).unwrap_or(u32::MAX);
    let Some(room) = buffer.get_mut(..needed) else {
        request.buffer_size = needed_field;
        return Err(Refusal::buffer_too_small(needed as u64));
    };
    domain.pause();
    for (vcpu, slot) in (0..).zip(room.chunks_exact_mut(EACH)) {
        slot.copy_from_slice(domain.registers(vcpu).as_bytes());
    }
    domain.unpause();
    request.buffer_size = needed_field;
    Ok(())
}

/// Copies bits out. Where no memory is kept for them they are 0. `result[0]` is one past the last frame of
/// the guest, and `result[1]` the first frame from `cursor` on for which there are bits; a caller may pass
/// over what is before.
pub(super) fn read_bitmap<D: Domain>(
    domain: &mut D,
    request: &mut Request,
    buffer: &mut [u8],
) -> Result<(), Refusal> {
    let covered = domain.gfns().min(MAX_GFNS).next_multiple_of(8);
    if request.cursor % 8 != 0 || request.cursor > covered {
        return Err(Refusal::out_of_range(request.cursor, covered));
    }
    let available = usize::try_from((covered - request.cursor) / 8).unwrap_or(usize::MAX);
    let used = available.min(buffer.len());
    let mut part = bitmap_at(domain, request.cursor);
    request.result[1] = if part.is_absent() {
        part.bitmap().gfns().min(covered)
    } else {
        request.cursor
    };
    for (at, byte) in (request.cursor / 8..).zip(buffer.iter_mut().take(used)) {
        if at / 8 >= part.end {
            part = bitmap_at(domain, at * 8);
        }
        let word = part.bitmap().word(at / 8).to_le_bytes();
        *byte = word[usize::try_from(at % 8).unwrap_or(0)];
    }
    request.result[0] = covered;
    request.cursor += used as u64 * 8;
    request.buffer_size = u32::try_from(used).unwrap_or(u32::MAX);
    Ok(())
}
