//! The de-duplication stage: hash, nominate, compare, share.

use std::collections::HashMap;
use std::time::Instant;

use lacuna::source::GuestSource;
use lacuna::xen::lab::sharing::{MergeOutcome, NominatedPage};
use lacuna_core::{Gfn, PAGE_SIZE};

use super::{Free, Gmd, Round, unusable};
use crate::failure::Result;

/// Pages compared with one other at a time: what is mapped at once.
const BATCH: usize = 255;

/// A page, and the first one that was met with its hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Copied {
    first: Gfn,
    gfn: Gfn,
}

impl Gmd {
    /// Runs the whole stage, without the pages in `leave`.
    pub(super) fn deduplicate(&self, leave: Option<&Free>, round: &mut Round) -> Result<()> {
        let mut copies = self.hash(leave, round)?;
        copies.sort_unstable();
        for group in copies.chunk_by(|one, other| one.first == other.first) {
            for batch in group.chunks(BATCH) {
                self.merge(batch, round)?;
            }
        }
        Ok(())
    }

    /// Hashes pages, and finds those whose hash another one had before.
    fn hash(&self, leave: Option<&Free>, round: &mut Round) -> Result<Vec<Copied>> {
        let mut memory = self.memory()?;
        let mut firsts = HashMap::new();
        let mut copies = Vec::new();
        let mut at = Gfn::new(0);
        while let Some(gfn) = memory.next_present(at) {
            at = gfn.saturating_add(1);
            if leave.is_some_and(|free| free.bitmap().get(gfn)) {
                continue;
            }
            let Ok(digest) = self.seed.digest(&mut memory, gfn) else {
                continue;
            };
            round.hashed += 1;
            let first = *firsts.entry(digest.get()).or_insert(gfn);
            if first != gfn {
                copies.push(Copied { first, gfn });
            }
        }
        Ok(copies)
    }

    /// Puts the pages of `batch` onto the frame of the one that all of them are copies of, if they are.
    fn merge(&self, batch: &[Copied], round: &mut Round) -> Result<()> {
        let Some(first) = batch.first().map(|copied| copied.first) else {
            return Ok(());
        };
        let Some(source) = self.nominate(std::iter::once(first), round).pop() else {
            return Ok(());
        };
        let mut clients = self.nominate(batch.iter().map(|copied| copied.gfn), round);
        let before = clients.len();
        clients.retain(|client| client.handle != source.handle);
        round.already += (before - clients.len()) as u64;
        if clients.is_empty() {
            return Ok(());
        }
        let equal = self.equal(source, clients, round)?;
        let started = Instant::now();
        for client in equal {
            round.calls += 1;
            match self
                .sharing
                .share(source, client)
                .map_err(|error| unusable(&error))?
            {
                MergeOutcome::Done => round.merged.push(client.gfn),
                MergeOutcome::ClientChanged => {}
                // The rest will find each other in the next round.
                MergeOutcome::SourceChanged => break,
            }
        }
        round.in_calls += started.elapsed();
        Ok(())
    }

    /// Those of `clients` that hold the same bytes as `source`. Nobody writes to a page without ending its
    /// nomination.
    fn equal(
        &self,
        source: NominatedPage,
        mut clients: Vec<NominatedPage>,
        round: &mut Round,
    ) -> Result<Vec<NominatedPage>> {
        let gfns: Vec<u64> = std::iter::once(source)
            .chain(clients.iter().copied())
            .map(|page| page.gfn.get())
            .collect();
        let frames = self
            .privcmd
            .map_frames(self.domain, &gfns)
            .map_err(|error| unusable(&error))?;
        let (mut one, mut other) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        if !frames.copy(0, 0, &mut one) {
            return Ok(Vec::new());
        }
        let before = clients.len();
        let mut index = 0;
        clients.retain(|_| {
            index += 1;
            frames.copy(index, 0, &mut other) && one == other
        });
        round.differed += (before - clients.len()) as u64;
        Ok(clients)
    }
}
