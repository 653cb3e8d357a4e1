//! The layout of a raw file: where guest-physical memory has holes that the file has not.
//!
//! QEMU's `pmemsave` writes a byte for each guest-physical byte. Files that hold a machine's memory itself
//! (`.vmem`, Firecracker's and cloud-hypervisor's snapshots, QEMU's `memory-backend-file`, `format=raw` of
//! `lime`) leave out the hole below 4 GiB, and what lies above it comes right behind what lies below it.
//! Nothing in such a file says so. The guest does: its kernel says where its note is, and where its memory
//! ends.

use std::ops::Range;

use lacuna_core::{Gfn, PAGE_SIZE};

use super::extents::{Extent, Extents};
use super::{Dump, DumpError, Format};
use crate::failure::Clues;

/// Where the hole that devices have ends.
const END: u64 = 1 << 32;
/// Where it begins, on machines that are known: QEMU's pc (and `.vmem` files, cloud-hypervisor), Firecracker,
/// QEMU's q35, and what QEMU's `max-ram-below-4g` is set to.
const STARTS: [u64; 5] = [0xc000_0000, 0xd000_0000, 0x8000_0000, 0xe000_0000, 0xb000_0000];
/// What a hole's beginning is a multiple of, at least: that of any machine is one of 128 MiB. A note that a
/// process wrote gives a hole, too, where the kernel's own is missing, and hardly such a one.
const ALIGNMENT: u64 = 4 << 20;
/// Most holes accepted.
const MOST: usize = 64;

/// What is known of holes that a raw file leaves out.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// Bytes by which the guest's memory reaches beyond the file, once that is known.
    pub(super) beyond: Option<u64>,
    /// Those that are still to be tried, once one was looked for.
    untried: Option<Vec<Range<u64>>>,
    /// The one that the file is taken to leave out, though nobody named it.
    assumed: Option<Range<u64>>,
    /// Whether they were named.
    are_named: bool,
}

impl Dump {
    /// Takes the file for raw memory that leaves out `holes`.
    ///
    /// # Errors
    /// [`DumpError::Holes`]: it is not raw, or they cannot be.
    pub fn name_holes(&mut self, holes: &[Range<u64>]) -> Result<(), DumpError> {
        if holes.is_empty() {
            return Ok(());
        }
        if self.format != Format::Raw {
            return Err(DumpError::Holes {
                why: format!(
                    "the file is {}, which tells by itself where memory is",
                    self.format.title()
                ),
            });
        }
        self.holes.are_named = true;
        self.lay_out(holes)
    }

    /// Whether the file is raw, no hole of it was named, and it is long enough to have left one out.
    pub fn may_lack_hole(&self) -> bool {
        let is_long = STARTS.iter().any(|start| *start < self.content.length());
        self.format == Format::Raw && !self.holes.are_named && is_long
    }

    /// Holds the holes that the file is taken to leave out against where the guest has memory, by its own
    /// word: runs of frames, with how many each has. One that nobody named must make the file end where the
    /// guest does.
    ///
    /// # Errors
    /// [`DumpError::Holes`].
    pub fn check_holes(&self, runs: impl Iterator<Item = (u64, u64)>) -> Result<(), DumpError> {
        if !self.holes.are_named && self.holes.assumed.is_none() {
            return Ok(());
        }
        let mut end = 0;
        for (first, count) in runs {
            let mut at = first;
            end = end.max(first + count);
            while at < first + count {
                let from = at * PAGE_SIZE as u64;
                let mut extents = self.extents.as_slice().iter();
                let around = extents.find(|one| one.start <= from && from - one.start < one.bytes);
                let Some(room) = around.map(|one| one.bytes - (from - one.start)) else {
                    return Err(DumpError::Holes {
                        why: format!(
                            "the guest has memory at {from:#x}, which would be in a hole or past the file's end"
                        ),
                    });
                };
                at = (from + room).div_ceil(PAGE_SIZE as u64).max(at + 1);
            }
        }
        if self.holes.assumed.is_some() && end != self.end.get() {
            return Err(DumpError::Holes {
                why: format!(
                    "the guest's memory ends with frame {end:#x}, the file would with {:#x}",
                    self.end.get()
                ),
            });
        }
        Ok(())
    }

    fn lay_out(&mut self, holes: &[Range<u64>]) -> Result<(), DumpError> {
        // Without holes, a last, partial frame is left out; with them, it may be a whole one of the guest.
        let partial = if holes.is_empty() { PAGE_SIZE as u64 } else { 1 };
        let length = self.content.length() - self.content.length() % partial;
        let extents = extents(length, holes).map_err(|why| DumpError::Holes { why })?;
        self.extents = Extents::new(extents);
        self.end = Gfn::new(self.extents.end().div_ceil(PAGE_SIZE as u64));
        Ok(())
    }

    /// Takes a raw file for one that leaves out the next hole that it may have, by what `clues` say of
    /// reading it without one. Where there is none left, the file is as it was first.
    pub(super) fn try_next_hole(&mut self, clues: &Clues) -> Option<Range<u64>> {
        if self.format != Format::Raw || self.holes.are_named {
            return None;
        }
        let (length, beyond) = (self.content.length(), self.holes.beyond.take());
        if self.holes.untried.is_none() {
            // Where nothing speaks for a hole, something else may later.
            self.holes.untried = Some(likely(length, clues, beyond)).filter(|holes| !holes.is_empty());
        }
        let next = self.holes.untried.as_mut()?.pop();
        self.lay_out(next.as_slice()).ok()?;
        if let Some(before) = std::mem::replace(&mut self.holes.assumed, next.clone()) {
            self.remarks.retain(|known| *known != remark(&before));
        }
        self.remarks.extend(next.as_ref().map(remark));
        next
    }
}

/// Where guest-physical memory is in a file of `length` bytes that leaves out `holes`.
///
/// # Errors
/// A sentence that says what is wrong with them.
fn extents(length: u64, holes: &[Range<u64>]) -> Result<Vec<Extent>, String> {
    let mut sorted = holes.to_vec();
    sorted.sort_by_key(|hole| hole.start);
    if sorted.len() > MOST {
        return Err(format!("{} holes; at most {MOST} are possible", sorted.len()));
    }
    let (mut start, mut offset) = (0, 0);
    let mut extents = Vec::new();
    for hole in &sorted {
        if hole.start >= hole.end || hole.start < start || hole.end > 1 << 52 {
            return Err(format!(
                "the hole {:#x}:{:#x} is empty, lies in another or ends past what a processor can address",
                hole.start, hole.end
            ));
        }
        let bytes = (hole.start - start).min(length - offset);
        if bytes < hole.start - start {
            return Err(format!(
                "the file's {length} bytes end before the hole at {:#x} begins",
                hole.start
            ));
        }
        extents.push(Extent { start, bytes, offset });
        start = hole.end;
        offset += bytes;
    }
    extents.push(Extent {
        start,
        bytes: length - offset,
        offset,
    });
    extents.retain(|extent| extent.bytes > 0);
    Ok(extents)
}

/// What is said of a file that was read with a hole that nobody named.
fn remark(hole: &Range<u64>) -> String {
    format!(
        "read as memory without its hole: --hole {:#x}:{:#x}, by the guest's own word",
        hole.start, hole.end
    )
}

/// Holes below 4 GiB that a file of `length` bytes may leave out, by what reading it without a hole came to:
/// the likeliest last.
fn likely(length: u64, clues: &Clues, beyond: Option<u64>) -> Vec<Range<u64>> {
    // The kernel's own pointer to its note gives the hole's size, whatever that is. Where its memory ends
    // does, too, but a file that is cut short looks the same, so that it counts only for a hole that machines
    // have.
    let starts = match (clues.displaced, beyond) {
        (Some(bytes), _) => END.checked_sub(bytes).into_iter().collect(),
        (None, Some(bytes)) => STARTS.into_iter().filter(|start| END - start == bytes).collect(),
        (None, None) if clues.is_unconfirmed => STARTS.to_vec(),
        (None, None) => Vec::new(),
    };
    let possible =
        |start: &u64| *start > 0 && *start < length && *start < END && start.is_multiple_of(ALIGNMENT);
    let mut holes: Vec<Range<u64>> = starts
        .into_iter()
        .filter(possible)
        .map(|start| start..END)
        .collect();
    holes.reverse();
    holes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_above_a_hole_comes_right_behind_what_is_below_it() {
        let found = extents(5 * GIB, &[3 * GIB..4 * GIB]).unwrap();
        let expected = [(0, 3 * GIB, 0), (4 * GIB, 2 * GIB, 3 * GIB)];
        assert_eq!(
            found
                .iter()
                .map(|one| (one.start, one.bytes, one.offset))
                .collect::<Vec<_>>(),
            expected
        );
        // Several, in any order, that are no whole pages.
        let found = extents(0x9_0000, &[0x8_0000..0x10_0000, 0x1234..0x5678]).unwrap();
        let all: u64 = found.iter().map(|one| one.bytes).sum();
        assert_eq!(
            (found.len(), all, found[1].start, found[1].offset),
            (3, 0x9_0000, 0x5678, 0x1234)
        );
    }

    #[test]
    fn holes_that_cannot_be_are_refused() {
        assert!(extents(GIB, &[3 * GIB..4 * GIB]).is_err());
        assert!(extents(GIB, &[5..5]).is_err());
        assert!(extents(GIB, &[0x1000..0x3000, 0x2000..0x4000]).is_err());
        assert!(extents(GIB, &[0..u64::MAX]).is_err());
    }

    #[test]
    fn the_guests_own_word_gives_the_one_hole_that_is_tried() {
        let displaced = Clues {
            displaced: Some(GIB),
            is_unconfirmed: true,
            ..Clues::default()
        };
        assert_eq!(likely(4 * GIB, &displaced, None), [3 * GIB..4 * GIB]);
        assert_eq!(
            likely(4 * GIB, &Clues::default(), Some(2 * GIB)),
            [2 * GIB..4 * GIB]
        );
        let odd = Clues {
            displaced: Some(GIB + 0x5000),
            ..displaced
        };
        assert!(likely(4 * GIB, &odd, None).is_empty());
        // A file that ends below it has no such hole.
        assert!(likely(2 * GIB, &displaced, None).is_empty());
        let unconfirmed = Clues {
            is_unconfirmed: true,
            ..Clues::default()
        };
        assert_eq!(
            likely(6 * GIB, &unconfirmed, None).last(),
            Some(&(3 * GIB..4 * GIB))
        );
        assert!(likely(6 * GIB, &Clues::default(), None).is_empty());
    }
}
