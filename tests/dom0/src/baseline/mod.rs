//! The paper's own engine (section 4), against which Lacuna is measured: a program in dom0 that reads the
//! guest's memory through mappings and shares page by page, with two hypercalls for each.
//!
//! It is no part of the product. It uses the product's own parts where both need the same, so that the two
//! differ in design alone: the profile, the free check and the hash are those of `lacuna-core`,
//! the mappings those of `lacuna::xen`. It is faster than the paper's in two ways: a free block's head
//! speaks for the block, where the paper's asked the guest's code for every page, and one buffer serves all
//! hypercalls.
//!
//! # A round
//!
//! *Introspection*: look which pages are free, nominate them (which makes them read-only), look again, and
//! share those that were free both times with a page of zeros, without a comparison. A guest takes a page off
//! its free lists before it writes to it: a write before the second look is seen by it, and one after it ends
//! the nomination, so that sharing fails.
//!
//! *De-duplication*: hash every other page; nominate those with equal hashes; compare them byte by byte;
//! share the equal ones.
//!
//! No mapping may be held meanwhile: Xen does not nominate a page that dom0 has mapped.

mod content;
mod intro;

use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use lacuna::source::GuestSource;
use lacuna::source::live::DomainMemory;
use lacuna::xen::engine::Engine;
use lacuna::xen::lab::sharing::{NominatedPage, Sharing};
use lacuna::xen::privcmd::{DomainId, Privcmd};
use lacuna_core::{Bitmap, FrameCopies, Gfn, Profile, Seed, scan_offline};

use crate::failure::{Failure, Result, differs};

/// What the hashes begin with. The paper's engine has no secret, and the cost is the same.
const SEED: u64 = 0x1ac4_14a0;

/// What a round does: the paper's configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Free pages.
    Intro,
    /// Equal pages, the free ones among them.
    Dedup,
    /// Free pages, then equal ones among the others.
    IntroDedup,
}

/// The figures of a round.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Pages free at the first look.
    pub(crate) free: u64,
    /// Pages that Xen refused to nominate, because something holds them.
    pub(crate) refused: u64,
    /// Pages free at the first look and not at the second.
    pub(crate) taken: u64,
    /// Pages put onto the page of zeros.
    pub(crate) zeroed: Vec<Gfn>,
    /// Pages put onto another one's frame.
    pub(crate) merged: Vec<Gfn>,
    /// Pages that were on that frame already.
    pub(crate) already: u64,
    /// Pages hashed.
    pub(crate) hashed: u64,
    /// Pages with another one's hash and not with its bytes.
    pub(crate) differed: u64,
    /// Hypercalls that nominate or share.
    pub(crate) calls: u64,
    /// Time in them.
    pub(crate) in_calls: Duration,
}

/// The engine, for one domain.
pub(crate) struct Gmd {
    privcmd: Rc<Privcmd>,
    domain: DomainId,
    /// Most frames that the domain can have.
    most_frames: u64,
    profile: Profile,
    sharing: Sharing,
    seed: Seed,
    /// A page of zeros that served in an earlier round.
    zeros: Option<Gfn>,
}

/// Which pages a look found free.
struct Free(Vec<AtomicU64>);

impl Free {
    fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::new(&self.0)
    }

    fn end(&self) -> Gfn {
        Gfn::new(self.bitmap().gfns())
    }
}

impl Gmd {
    /// Returns the engine for `domain`, which `lacuna attach` has given a profile.
    pub(crate) fn open(domain: u16) -> Result<Self> {
        let id = DomainId::new(domain).ok_or_else(|| unusable(&format!("domain {domain}")))?;
        let privcmd = Rc::new(Privcmd::open().map_err(|error| unusable(&error))?);
        let known = privcmd.domain_info(id).map_err(|error| unusable(&error))?;
        let encoded = Engine::new(&privcmd, id)
            .get_profile()
            .map_err(|error| unusable(&error))?;
        Ok(Self {
            domain: id,
            most_frames: known.ok_or_else(|| unusable(&"no such domain"))?.max_pages,
            profile: Profile::decode(&encoded).map_err(|error| unusable(&format!("{error:?}")))?,
            sharing: Sharing::open(&privcmd, id).map_err(|error| unusable(&error))?,
            seed: Seed::new(SEED),
            zeros: None,
            privcmd,
        })
    }

    /// Runs one round over all of the guest.
    pub(crate) fn round(&mut self, mode: Mode) -> Result<Round> {
        let mut round = Round::default();
        let free = match mode {
            Mode::Intro | Mode::IntroDedup => Some(self.introspect(&mut round)?),
            Mode::Dedup => None,
        };
        if mode != Mode::Intro {
            self.deduplicate(free.as_ref(), &mut round)?;
        }
        Ok(round)
    }

    /// Returns the guest's memory, through mappings that last as long as what this returns.
    fn memory(&self) -> Result<DomainMemory> {
        DomainMemory::open(&self.privcmd, self.domain, self.most_frames).map_err(|error| unusable(&error))
    }

    /// Looks which pages are free.
    fn look(&self) -> Result<Free> {
        let memory = self.memory()?;
        let end = memory.end();
        let words = (0..end.get().div_ceil(64)).map(|_| AtomicU64::new(0));
        let free = Free(words.collect());
        // The guest runs, so a copy of its descriptors is as good as reading them one by one: both are out of
        // date at once.
        let mut copies = FrameCopies::new(memory);
        scan_offline(&mut copies, &self.profile, &free.bitmap(), end, |_| ())
            .map_err(|error| unusable(&format!("{error:?}")))?;
        Ok(free)
    }

    /// Nominates `pages`; those that Xen refuses are counted and left out.
    fn nominate(&self, pages: impl Iterator<Item = Gfn>, round: &mut Round) -> Vec<NominatedPage> {
        let mut nominated = Vec::new();
        let started = Instant::now();
        for gfn in pages {
            round.calls += 1;
            match self.sharing.nominate(gfn) {
                Ok(page) => nominated.push(page),
                Err(_) => round.refused += 1,
            }
        }
        round.in_calls += started.elapsed();
        nominated
    }
}

/// Returns the failure for something that the engine needs and every scenario has.
fn unusable(seen: &dyn std::fmt::Display) -> Failure {
    differs("the baseline's engine in dom0", "to work", &seen.to_string())
}
