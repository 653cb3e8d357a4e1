//! LiME's dumps (its documentation, chapter "Format") and AVML's, which are the same with the ranges packed
//! (its source, module `image`): a header before each range of memory, with its first and its last byte.

use super::extents::Extent;
use super::file::ReadFile;
use super::packed::{Chunk, MAX_CHUNK, Pieces};
use super::{DumpError, Parts};

/// `LiME` and `AVML` as numbers, least significant byte first.
pub(super) const LIME: &[u8] = b"EMiL";
pub(super) const AVML: &[u8] = b"AVML";
/// Bytes of a header: magic, version, first byte, last byte, nothing.
const HEADER: u64 = 32;
/// Types of chunks (Snappy's `framing_format.txt`, 4): packed, as it is, the first that a reader may pass
/// over, the stream's beginning.
const PACKED: u8 = 0;
const PLAIN: u8 = 1;
const MAY_PASS: u8 = 0x80;
/// Bytes of a chunk's header: type and length. Data have a check sum of four bytes before them.
const CHUNK_HEADER: u64 = 4;
const CHECK_SUM: u64 = 4;
/// AVML puts the number of packed bytes behind each range.
const TRAILER: u64 = 8;

/// A range, by its header.
struct Range {
    is_packed: bool,
    start: u64,
    bytes: u64,
}

/// Reads where ranges are.
///
/// # Errors
/// [`DumpError::Impossible`] for a header that cannot be.
pub(super) fn read(file: &ReadFile) -> Result<Parts, DumpError> {
    let mut parts = Parts::default();
    let mut chunks = Vec::new();
    let mut at = 0;
    let mut unpacked = 0;
    while at + HEADER <= file.length() {
        let range = range(file, at)?;
        at += HEADER;
        if range.is_packed {
            let (end, there) = stream(file, at, range.bytes, unpacked, &mut chunks)?;
            parts.extents.push(Extent {
                start: range.start,
                bytes: there,
                offset: unpacked,
            });
            unpacked += there;
            parts.missing = parts.missing.saturating_add(range.bytes - there);
            at = end + TRAILER;
        } else {
            let there = range.bytes.min(file.length() - at);
            parts.extents.push(Extent {
                start: range.start,
                bytes: there,
                offset: at,
            });
            parts.missing = parts.missing.saturating_add(range.bytes - there);
            at += there;
        }
        if parts.missing > 0 {
            break;
        }
    }
    if parts.missing > 0 {
        parts.remarks.push(format!(
            "the file is cut short: {} bytes of a range of memory are missing",
            parts.missing
        ));
    }
    if !chunks.is_empty() {
        if parts.extents.len() > 1 && file_is_mixed(file)? {
            return Err(DumpError::Impossible {
                what: "kind of its second range, which is not that of the first,",
                value: 1,
            });
        }
        parts.pieces = Some(Pieces::Chunks(chunks));
    }
    Ok(parts)
}

fn range(file: &ReadFile, at: u64) -> Result<Range, DumpError> {
    let header = file.bytes("header of a range", at, HEADER)?;
    let number = |from: usize, bytes: usize| {
        let bytes = header[from..from + bytes].iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let damaged = |what, value| DumpError::Impossible { what, value };
    let (version, first, last) = (number(4, 4), number(8, 8), number(16, 8));
    let is_packed = match (&header[..4], version) {
        (LIME | AVML, 1) => false,
        (AVML, 2) => true,
        (LIME | AVML, _) => return Err(damaged("version of a range of memory", version)),
        _ => return Err(damaged("header of a range of memory", number(0, 4))),
    };
    let bytes = last.checked_sub(first).and_then(|bytes| bytes.checked_add(1));
    Ok(Range {
        is_packed,
        start: first,
        bytes: bytes.ok_or_else(|| damaged("last byte of a range of memory", last))?,
    })
}

/// Whether ranges of both kinds are in the file: nobody writes such.
fn file_is_mixed(file: &ReadFile) -> Result<bool, DumpError> {
    Ok(!range(file, 0)?.is_packed)
}

/// Takes the chunks of a range of `bytes` bytes, whose stream is at `at` and whose unpacked bytes follow
/// `before` others. Returns where the stream ends, and how many bytes of the range are there.
fn stream(
    file: &ReadFile,
    at: u64,
    bytes: u64,
    before: u64,
    chunks: &mut Vec<Chunk>,
) -> Result<(u64, u64), DumpError> {
    let mut at = at;
    let mut done = 0;
    while done < bytes {
        let mut header = [0; 4];
        if !file.read(at, &mut header) {
            return Ok((at, done));
        }
        let length = u64::from(u32::from_le_bytes([header[1], header[2], header[3], 0]));
        let damaged = DumpError::Impossible {
            what: "chunk of an AVML range (Snappy), by its place in the file,",
            value: at,
        };
        if at + CHUNK_HEADER + length > file.length() {
            return Ok((at, done));
        }
        let unpacked = match header[0] {
            PLAIN => length.saturating_sub(CHECK_SUM),
            PACKED => {
                let head = length.saturating_sub(CHECK_SUM).min(5);
                let mut bytes = [0; 5];
                let bytes = &mut bytes[..usize::try_from(head).unwrap_or(0)];
                if bytes.is_empty() || !file.read(at + CHUNK_HEADER + CHECK_SUM, bytes) {
                    return Err(damaged);
                }
                let bytes = snap::raw::decompress_len(bytes).map_err(|_| damaged)?;
                bytes as u64
            }
            kind if kind >= MAY_PASS => {
                at += CHUNK_HEADER + length;
                continue;
            }
            _ => return Err(damaged),
        };
        if unpacked == 0 || unpacked > MAX_CHUNK || unpacked > bytes - done {
            return Err(DumpError::Impossible {
                what: "length of a chunk of an AVML range (Snappy)",
                value: unpacked,
            });
        }
        chunks.push(Chunk {
            start: before + done,
            bytes: unpacked,
            offset: at,
            packed: CHUNK_HEADER + length,
        });
        done += unpacked;
        at += CHUNK_HEADER + length;
    }
    Ok((at, done))
}
