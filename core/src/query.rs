//! Operations that only tell: registers, the bitmap, and how any answer gets into the caller's buffer.

use zerocopy::IntoBytes;

use crate::abi::Request;
use crate::session::Refusal;
use crate::{Bitmap, Host, Status, VcpuRegisters};

/// Copies an answer into the buffer.
pub(crate) fn put(request: &mut Request, buffer: &mut [u8], answer: &[u8]) -> Result<(), Refusal> {
    let needed = u32::try_from(answer.len()).unwrap_or(u32::MAX);
    let Some(room) = buffer.get_mut(..answer.len()) else {
        request.buffer_size = needed;
        return Err((Status::BufferTooSmall, [u64::from(needed), 0, 0, 0]));
    };
    room.copy_from_slice(answer);
    request.buffer_size = needed;
    Ok(())
}

pub(crate) fn registers<H: Host>(
    host: &mut H,
    request: &mut Request,
    buffer: &mut [u8],
) -> Result<(), Refusal> {
    const EACH: usize = size_of::<VcpuRegisters>();
    let needed = host.vcpus() as usize * EACH;
    let needed_field = u32::try_from(needed).unwrap_or(u32::MAX);
    let Some(room) = buffer.get_mut(..needed) else {
        request.buffer_size = needed_field;
        return Err((Status::BufferTooSmall, [needed as u64, 0, 0, 0]));
    };
    host.pause();
    for (vcpu, slot) in (0..).zip(room.chunks_exact_mut(EACH)) {
        slot.copy_from_slice(host.registers(vcpu).as_bytes());
    }
    host.unpause();
    request.buffer_size = needed_field;
    Ok(())
}

pub(crate) fn read_bitmap<H: Host>(
    host: &mut H,
    request: &mut Request,
    buffer: &mut [u8],
) -> Result<(), Refusal> {
    let words = host
        .bitmap(0)
        .map_err(|bytes| (Status::NoMemory, [bytes, 0, 0, 0]))?;
    let bitmap = Bitmap::new(words.as_ref());
    let covered = bitmap.gfns();
    if request.cursor % 8 != 0 || request.cursor > covered {
        return Err((Status::OutOfRange, [request.cursor, covered, 0, 0]));
    }
    let available = usize::try_from((covered - request.cursor) / 8).unwrap_or(usize::MAX);
    let used = available.min(buffer.len());
    for (at, byte) in (request.cursor / 8..).zip(buffer.iter_mut().take(used)) {
        let word = bitmap.word(at / 8).to_le_bytes();
        *byte = word[usize::try_from(at % 8).unwrap_or(0)];
    }
    request.result[0] = covered;
    request.cursor += used as u64 * 8;
    request.buffer_size = u32::try_from(used).unwrap_or(u32::MAX);
    Ok(())
}
