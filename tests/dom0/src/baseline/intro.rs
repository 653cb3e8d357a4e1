//! The introspection stage: look, nominate, look again, share with a page of zeros.

use std::time::Instant;

use lacuna::source::GuestSource;
use lacuna::xen::lab::sharing::{MergeOutcome, NominatedPage};
use lacuna_core::{Gfn, GuestMemory};

use super::{Free, Gmd, Round, unusable};
use crate::failure::Result;

/// Pages of zeros that are tried, one after another, until Xen lets one be nominated.
const CANDIDATES: usize = 64;

/// The pages on the frame of zeros, of which any can stand for it. Xen knows a frame by a page that is on it,
/// and a guest that writes to that page takes it off.
struct Zeros(Vec<NominatedPage>);

impl Gmd {
    /// Runs the whole stage. Returns the pages that the second look found free.
    pub(super) fn introspect(&mut self, round: &mut Round) -> Result<Free> {
        let first = self.look()?;
        let free = first.bitmap();
        round.free = free.count(Gfn::new(0), first.end());
        let mut zeros = self.page_of_zeros(&first, round)?;
        let mut at = Gfn::new(0);
        let pages = std::iter::from_fn(|| {
            let gfn = free.next_set(at, first.end())?;
            at = gfn.saturating_add(1);
            Some(gfn)
        });
        let nominated = self.nominate(pages, round);
        let second = self.look()?;
        let started = Instant::now();
        for page in nominated {
            if !second.bitmap().get(page.gfn) {
                round.taken += 1;
            } else if zeros.has(page) {
                round.already += 1;
            } else if self.put(page, &mut zeros, round)? {
                round.zeroed.push(page.gfn);
            }
        }
        round.in_calls += started.elapsed();
        Ok(second)
    }

    /// Puts `page` onto the frame of zeros; false when the guest has written to it, or to all that stood for
    /// that frame.
    fn put(&self, page: NominatedPage, zeros: &mut Zeros, round: &mut Round) -> Result<bool> {
        while let Some(source) = zeros.0.last().copied() {
            round.calls += 1;
            match self
                .sharing
                .share(source, page)
                .map_err(|error| unusable(&error))?
            {
                MergeOutcome::Done => {
                    zeros.0.push(NominatedPage {
                        gfn: page.gfn,
                        handle: source.handle,
                    });
                    return Ok(true);
                }
                MergeOutcome::SourceChanged => {
                    zeros.0.pop();
                }
                MergeOutcome::ClientChanged => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Nominates a page of zeros among those that are not free. It is looked at again after that, when nobody
    /// can write to it without ending the nomination.
    fn page_of_zeros(&mut self, free: &Free, round: &mut Round) -> Result<Zeros> {
        if let Some(gfn) = self.zeros
            && let Some(page) = self.nominate_zero(gfn, round)?
        {
            return Ok(Zeros(vec![page]));
        }
        for gfn in self.find_zeros(free)? {
            if let Some(page) = self.nominate_zero(gfn, round)? {
                self.zeros = Some(gfn);
                return Ok(Zeros(vec![page]));
            }
        }
        Err(unusable(&"the guest has no page of zeros that can be nominated"))
    }

    /// Nominates page `gfn` if it can be, and is one of zeros.
    fn nominate_zero(&self, gfn: Gfn, round: &mut Round) -> Result<Option<NominatedPage>> {
        let page = self.nominate(std::iter::once(gfn), round).pop();
        let zero = self.memory()?.is_zero(gfn) == Ok(true);
        Ok(page.filter(|_| zero))
    }

    /// Returns the first pages of zeros that are in use.
    fn find_zeros(&self, free: &Free) -> Result<Vec<Gfn>> {
        let mut memory = self.memory()?;
        let mut found = Vec::new();
        let mut at = Gfn::new(0);
        while let Some(gfn) = memory.next_present(at) {
            at = gfn.saturating_add(1);
            if !free.bitmap().get(gfn) && memory.is_zero(gfn) == Ok(true) {
                found.push(gfn);
                if found.len() == CANDIDATES {
                    break;
                }
            }
        }
        Ok(found)
    }
}

impl Zeros {
    fn has(&self, page: NominatedPage) -> bool {
        self.0.last().is_some_and(|source| source.handle == page.handle)
    }
}
