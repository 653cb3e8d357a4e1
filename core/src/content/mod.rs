//! The content stage: pages that are in use and hold the same bytes come to share one frame.
//!
//! # A page's way
//!
//! ```text
//! hash -> as in the last round?
//!   no:        remember the hash
//!   yes:       zero -> lock, make read-only, flush -> still zero -> share a zero frame
//!              else, in the index -> lock both, make read-only, flush -> equal -> share, flush
//!              else: remember the page in the index
//!   never met: zero, or others may be equal: mark it; else remember the page in the index
//! ```
//!
//! A page that turns out not to be zero or equal is made writable again.
//!
//! At the end of a round the marked pages are taken once more: those that stood still meanwhile are as in the
//! last round then.
//!
//! The guest runs all the while. Hash, last round's hash and index only name candidates: what they hold may
//! be out of date, be that of another domain that is gone by now, or be made up by a guest. A page changes
//! hands after every byte of it was compared with its partner's while neither could be written: both entries
//! were made read-only, the flush of all processors' translations was acknowledged, and the p2m lock kept
//! write faults waiting. No other proof is needed, so no profile is either.
//!
//! # Lock order
//!
//! The domain's Lacuna lock (held by the caller) < the p2m locks of the domain and of its partner, the one
//! with the lower number first < whatever the p2m needs.
//!
//! # Memory
//!
//! Two tables ([`crate::Tables`]): 4 bytes for the hash of the last round of each frame, where the guest has
//! memory; and 8 for each place of an [`Index`] with at most as many places as the guest has pages (a trust
//! group's index has a fixed size of its own). Their pages are taken where they are needed, and no more of
//! them than a share of the guest's memory.

mod digest;
mod index;
mod merge;
mod peers;
mod rounds;

use crate::share::steps::Steps;
use crate::tables::{IndexSize, Part, Shortage, Table, Tables};
use crate::{Bitmap, Gfn, PageState, Skip};

pub use digest::{Digest, Seed};
pub use index::{Entry, Index, Inserted};
pub use merge::{merge_protected, share_zero_protected};
pub use peers::{DomainId, DomainPage, Peers};
pub use rounds::{Before, Rounds};

/// Most frames that share one. Xen finds the sharers of a frame in a list up to this number, and by a table
/// after it (`RMAP_HEAVY_SHARED_PAGE`, `xen/arch/x86/mm/mem_sharing.c`); the next page with these bytes
/// begins a frame of its own.
pub const MAX_SHARERS: u32 = 255;

/// What a stretch of the stage did, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentReport {
    /// Looked at: all but those that rest or are left to the free stage.
    pub looked_at: u64,
    /// Hashed.
    pub hashed: u64,
    /// Not as in the last round, or met for the first time.
    pub changed: u64,
    /// Newly on zero frames.
    pub zeroed: u64,
    /// Newly on a frame that others share.
    pub merged: u64,
    /// Entered into the index.
    pub indexed: u64,
    /// Entries of the index that gave way to others.
    pub evicted: u64,
    /// On a shared frame already.
    pub shared_already: u64,
    /// Left alone, by [`Skip::index`].
    pub skipped: [u64; Skip::COUNT],
}

/// What the stage knows of one domain, and what it may do.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'w> {
    /// The hashes of the last round.
    pub rounds: Rounds<'w>,
    /// Where pages with a hash were last seen.
    pub index: IndexSize,
    /// What hashes begin with.
    pub seed: Seed,
    /// The number of the round, if pages that stood still for rounds are to rest.
    pub rest: Option<u64>,
    /// Pages to leave to the free stage, if any.
    pub leave: Option<Bitmap<'w>>,
    /// All steps, but for tests.
    pub steps: Steps,
}

impl Stage<'_> {
    /// Hashes the page, and compares, then shares or indexes it, if it is as it was in the last round.
    ///
    /// # Errors
    /// [`Shortage`]: it should have gone into the index, and there is no memory for it.
    pub fn page<P: Peers + Tables>(
        &self,
        domain: &mut P,
        gfn: Gfn,
        report: &mut ContentReport,
    ) -> Result<(), Shortage> {
        if self.leave.is_some_and(|free| free.get(gfn)) {
            return Ok(());
        }
        if self.rest.is_some_and(|number| self.rounds.rests(gfn, number)) {
            return Ok(());
        }
        report.looked_at += 1;
        match domain.page_state(gfn) {
            PageState::Private => {}
            PageState::Shared => {
                report.shared_already += 1;
                return Ok(());
            }
            PageState::Zero | PageState::Other => return Ok(()),
        }
        let Ok(digest) = self.seed.digest(domain, gfn) else {
            return Ok(());
        };
        report.hashed += 1;
        match self.rounds.meet(gfn, digest) {
            Before::Same => {}
            Before::Another => {
                report.changed += 1;
                return Ok(());
            }
            Before::Unknown => {
                report.changed += 1;
                return self.first_sight(domain, gfn, digest, report);
            }
        }
        if digest.is_zero() {
            match share_zero_protected(domain, gfn, self.steps) {
                Ok(pages) => report.zeroed += pages,
                Err(skip) => report.skipped[skip.index()] += 1,
            }
            return Ok(());
        }
        self.find_partner(domain, gfn, digest, report)
    }

    /// Takes the first marked page of `from..end`, which lie in one part of the hashes; passes over the rest.
    /// Returns where to go on.
    ///
    /// # Errors
    /// As [`Stage::page`], and the page: it is marked no longer.
    pub fn marked_page<P: Peers + Tables>(
        &self,
        domain: &mut P,
        from: Gfn,
        end: Gfn,
        report: &mut ContentReport,
    ) -> Result<Gfn, (Gfn, Shortage)> {
        let Some(gfn) = self.rounds.next_marked(from, end) else {
            return Ok(end);
        };
        self.page(domain, gfn, report)
            .map_err(|shortage| (gfn, shortage))?;
        Ok(gfn.saturating_add(1))
    }

    /// Marks a page that is met for the first time if it could be shared, or enters it into the index.
    fn first_sight<P: Peers + Tables>(
        &self,
        domain: &mut P,
        gfn: Gfn,
        digest: Digest,
        report: &mut ContentReport,
    ) -> Result<(), Shortage> {
        let (total, at) = (self.index.words, Index::bucket_at(self.index.words, digest));
        let part = domain.part(Table::Index, at);
        let index = Index::part(total, part.first, part.words.as_ref());
        if digest.is_zero() || index.candidates(digest).next().is_some() {
            self.rounds.mark(gfn);
            return Ok(());
        }
        let here = DomainPage {
            domain: domain.id(),
            gfn,
        };
        enter(domain, part, total, (digest, here), report)
    }

    /// Shares the page with one that the index names, or enters it.
    fn find_partner<P: Peers + Tables>(
        &self,
        domain: &mut P,
        gfn: Gfn,
        digest: Digest,
        report: &mut ContentReport,
    ) -> Result<(), Shortage> {
        let here = DomainPage {
            domain: domain.id(),
            gfn,
        };
        let total = self.index.words;
        let at = Index::bucket_at(total, digest);
        let part = domain.part(Table::Index, at);
        let index = Index::part(total, part.first, part.words.as_ref());
        let mut stale = None;
        for entry in index.candidates(digest) {
            if entry.place == here {
                self.rounds.stood_still(gfn);
                return Ok(());
            }
            // Both may run: no proof, but a page that has changed meanwhile is found out without any flush.
            let result = if domain.equal(gfn, entry.place) {
                merge_protected(domain, gfn, entry.place, MAX_SHARERS, self.steps)
            } else {
                Err(Skip::Differs)
            };
            let Err(skip) = result else {
                report.merged += 1;
                index.credit(&entry);
                return Ok(());
            };
            report.skipped[skip.index()] += 1;
            match skip {
                // What the entry says is no longer so, or leads no further.
                Skip::Differs | Skip::Full | Skip::NoPartner | Skip::NotRam => {
                    stale = stale.or(Some(entry));
                }
                // The trouble is elsewhere and may pass.
                _ => return Ok(()),
            }
        }
        if let Some(entry) = stale {
            index.replace(&entry, digest, here);
            report.indexed += 1;
            return Ok(());
        }
        enter(domain, part, total, (digest, here), report)
    }
}

/// Enters a page into the index of `total` words, whose bucket for it is in `part`.
fn enter<T: Tables>(
    tables: &mut T,
    mut part: Part<T::Words>,
    total: u64,
    (digest, here): (Digest, DomainPage),
    report: &mut ContentReport,
) -> Result<(), Shortage> {
    if part.is_absent() {
        part = tables.extend(Table::Index, Index::bucket_at(total, digest))?;
    }
    match Index::part(total, part.first, part.words.as_ref()).insert(digest, here) {
        Inserted::Free => report.indexed += 1,
        Inserted::Replaced => {
            report.indexed += 1;
            report.evicted += 1;
        }
        Inserted::Refused => {}
    }
    Ok(())
}
