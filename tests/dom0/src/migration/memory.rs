//! Compares the memory of a guest that stands still on two sides, frame by frame, from dom0.

use std::rc::Rc;

use lacuna::xen::privcmd::{DomainId, ForeignFrames, Privcmd};
use lacuna_guest::filling::is_filled;
use lacuna_guest::truth::PAGE_SIZE;

use super::Standstill;
use crate::failure::{Result, differs};
use crate::stream::tally::PageType;

/// Frames mapped at once on each side.
const WINDOW: usize = 1024;
/// How many frames of a kind are kept by number.
const KEPT: usize = 1 << 20;

/// How the receiver's memory differs from the sender's.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// Frames compared.
    pub(crate) frames: u64,
    /// Frames that the stream skipped at last.
    pub(crate) skipped: u64,
    /// Of those, the ones that the receiver has and that are not zero there.
    pub(crate) not_zero: Vec<u64>,
    /// Of the skipped, those that hold something at the sender that somebody wrote: nothing anyone needs, if
    /// they are free.
    pub(crate) dropped: Vec<u64>,
    /// Likewise, but still what free memory was filled with: nobody has written them since.
    pub(crate) filled: Vec<u64>,
    /// Frames that were not skipped and are not the same.
    pub(crate) changed: Vec<u64>,
    /// Frames that one side has and the other has not.
    pub(crate) one_sided: Vec<u64>,
}

/// Compares the first `frames` frames of both copies.
pub(crate) fn compare(still: &Standstill, frames: u64) -> Result<Differences> {
    let mut differences = Differences::default();
    let (sender, receiver) = (Side::open(still.sender)?, Side::open(still.receiver)?);
    let (mut here, mut there) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    for first in (0..frames).step_by(WINDOW) {
        let gfns: Vec<u64> = (first..frames.min(first + WINDOW as u64)).collect();
        let (from, to) = (sender.map(&gfns)?, receiver.map(&gfns)?);
        for (index, gfn) in gfns.iter().copied().enumerate() {
            differences.frames += 1;
            let skipped = still.frames.last(gfn) == Some(PageType::Skipped);
            differences.skipped += u64::from(skipped);
            let (has_sender, has_receiver) = (from.copy(index, 0, &mut here), to.copy(index, 0, &mut there));
            let list = match (has_sender, has_receiver) {
                (false, false) => continue,
                (true, true) => {
                    let zero = !skipped || there.iter().all(|byte| *byte == 0);
                    if !zero {
                        keep(&mut differences.not_zero, gfn);
                    }
                    match (here == there, skipped) {
                        (true, _) => continue,
                        (false, true) if is_filled(&here) => &mut differences.filled,
                        (false, true) => &mut differences.dropped,
                        (false, false) => &mut differences.changed,
                    }
                }
                _ => &mut differences.one_sided,
            };
            keep(list, gfn);
        }
    }
    Ok(differences)
}

fn keep(list: &mut Vec<u64>, gfn: u64) {
    if list.len() < KEPT {
        list.push(gfn);
    }
}

/// One copy of the guest.
pub(crate) struct Side {
    privcmd: Rc<Privcmd>,
    domain: DomainId,
}

impl Side {
    /// Opens the way to the memory of `domain`.
    pub(crate) fn open(domain: u16) -> Result<Self> {
        Ok(Self {
            domain: DomainId::new(domain).ok_or_else(|| unreadable(domain, &"no such domain"))?,
            privcmd: Rc::new(Privcmd::open().map_err(|error| unreadable(domain, &error))?),
        })
    }

    /// Maps frames for reading.
    pub(crate) fn map(&self, gfns: &[u64]) -> Result<ForeignFrames> {
        self.privcmd
            .map_frames(self.domain, gfns)
            .map_err(|error| unreadable(self.domain.get(), &error))
    }
}

fn unreadable(domain: u16, why: &dyn std::fmt::Display) -> crate::failure::Failure {
    differs(
        &format!("the memory of domain {domain}"),
        "readable",
        &why.to_string(),
    )
}
