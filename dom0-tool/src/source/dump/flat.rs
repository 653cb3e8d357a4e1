//! Flattened files, as `makedumpfile -F` and QEMU's `dump-guest-memory -z` write them to what cannot be
//! sought in: each record says where its bytes belong (makedumpfile, `makedumpfile.h`,
//! `struct makedumpfile_header` and `makedumpfile_data_header`).

use std::cell::Cell;
use std::collections::BTreeMap;

/// How such a file begins.
pub(super) const MAGIC: &[u8] = b"makedumpfile\0";
/// Bytes before the first record.
const HEADER: u64 = 4096;
/// Bytes of a record's own header: where it belongs and how long it is, most significant byte first.
const RECORD: u64 = 16;
/// Most bytes that no record puts anything to, beyond the length of the file.
const MOST_HOLES: u64 = 1 << 20;
/// What stands in both where the file ends.
const END: i64 = -1;

/// Some bytes of what was flattened.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    bytes: u64,
    /// Where they are in the file.
    offset: u64,
}

/// Where the bytes of what was flattened are.
#[derive(Debug)]
pub(super) struct Flat {
    pieces: Vec<Piece>,
    length: u64,
    is_whole: bool,
    last: Cell<usize>,
}

impl Flat {
    /// Goes through the records of a file of `length` bytes. `None` for a version or a type that is not
    /// known, and where records lie absurdly far apart.
    pub(super) fn read(length: u64, mut read: impl FnMut(u64, &mut [u8]) -> bool) -> Option<Self> {
        let mut numbers = [0; 16];
        // Type and version.
        if !read(16, &mut numbers) || pair(numbers) != (1, 1) {
            return None;
        }
        let mut found: BTreeMap<u64, Piece> = BTreeMap::new();
        let mut at = HEADER;
        let mut is_whole = false;
        while read(at, &mut numbers) {
            let (start, bytes) = pair(numbers);
            if (start, bytes) == (END, END) {
                is_whole = true;
                break;
            }
            let (Ok(start), Ok(bytes)) = (u64::try_from(start), u64::try_from(bytes)) else {
                break;
            };
            let offset = at + RECORD;
            let there = bytes.min(length.saturating_sub(offset));
            if start.checked_add(bytes).is_none() {
                break;
            }
            insert(
                &mut found,
                Piece {
                    start,
                    bytes: there,
                    offset,
                },
            );
            if there < bytes {
                break;
            }
            at = offset + bytes;
        }
        let pieces: Vec<Piece> = found.into_values().collect();
        let end = pieces.last().map_or(0, |piece| piece.start + piece.bytes);
        // Dumpers leave no holes of any size. Believing in one would mean reading it.
        (end <= length.saturating_mul(2).saturating_add(MOST_HOLES)).then_some(Self {
            length: end,
            pieces,
            is_whole,
            last: Cell::new(0),
        })
    }

    /// Bytes of what was flattened.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Whether the file has its end.
    pub(super) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Where the byte `at` is in the file, `None` in a hole, which reads as zero; and how many follow it
    /// there.
    pub(super) fn find(&self, at: u64) -> (Option<u64>, u64) {
        let inside = |piece: &Piece| {
            let distance = at.wrapping_sub(piece.start);
            (distance < piece.bytes).then(|| (Some(piece.offset + distance), piece.bytes - distance))
        };
        if let Some(found) = self.pieces.get(self.last.get()).and_then(inside) {
            return found;
        }
        let after = self.pieces.partition_point(|piece| piece.start <= at);
        if let Some(index) = after.checked_sub(1)
            && let Some(found) = inside(&self.pieces[index])
        {
            self.last.set(index);
            return found;
        }
        let next = self.pieces.get(after).map_or(u64::MAX, |piece| piece.start);
        (None, next - at)
    }
}

fn pair(numbers: [u8; 16]) -> (i64, i64) {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | i64::from(*byte));
    (number(&numbers[..8]), number(&numbers[8..]))
}

/// Puts a record over what earlier ones put there.
fn insert(found: &mut BTreeMap<u64, Piece>, piece: Piece) {
    let end = piece.start + piece.bytes;
    let mut over: Vec<Piece> = found
        .range(..end)
        .rev()
        .map(|(_, earlier)| *earlier)
        .take_while(|earlier| earlier.start + earlier.bytes > piece.start)
        .collect();
    for earlier in over.drain(..) {
        found.remove(&earlier.start);
        if earlier.start < piece.start {
            let bytes = piece.start - earlier.start;
            found.insert(earlier.start, Piece { bytes, ..earlier });
        }
        let earlier_end = earlier.start + earlier.bytes;
        if earlier_end > end {
            let cut = end - earlier.start;
            found.insert(
                end,
                Piece {
                    start: end,
                    bytes: earlier_end - end,
                    offset: earlier.offset + cut,
                },
            );
        }
    }
    if piece.bytes > 0 {
        found.insert(piece.start, piece);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_later_record_counts_and_holes_are_zero() {
        let mut file = vec![0; 4096];
        file[..13].copy_from_slice(MAGIC);
        file[16..32].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        for (start, text) in [(0_i64, &b"abcdefgh"[..]), (20, b"xyz"), (2, b"CD"), (6, b"GHIJ")] {
            file.extend(start.to_be_bytes());
            file.extend(i64::try_from(text.len()).unwrap().to_be_bytes());
            file.extend(text);
        }
        let whole = [&file[..], &[0xff; 16]].concat();
        for (bytes, is_whole) in [(&whole, true), (&file, false)] {
            let flat = Flat::read(bytes.len() as u64, |at, into| {
                let at = usize::try_from(at).unwrap();
                let there = bytes.get(at..at + into.len());
                into.copy_from_slice(there.unwrap_or(&[0; 16][..into.len()]));
                there.is_some()
            })
            .unwrap();
            assert_eq!((flat.length(), flat.is_whole()), (23, is_whole));
            let text: Vec<u8> = (0..flat.length())
                .map(|at| {
                    flat.find(at)
                        .0
                        .map_or(b'.', |at| bytes[usize::try_from(at).unwrap()])
                })
                .collect();
            assert_eq!(text, b"abCDefGHIJ..........xyz");
            assert_eq!(flat.find(12), (None, 8));
        }
        // A record far away.
        let mut bytes = whole;
        bytes[4096 + 2] = 1;
        let flat = Flat::read(bytes.len() as u64, |at, into| {
            let at = usize::try_from(at).unwrap();
            let there = bytes.get(at..at + into.len());
            into.copy_from_slice(there.unwrap_or(&[0; 16][..into.len()]));
            there.is_some()
        });
        assert!(flat.is_none());
    }
}
