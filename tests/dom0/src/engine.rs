//! Calls the engine inside Xen without the product's command, as a hostile or broken caller could.

use std::rc::Rc;

use lacuna::xen::engine::{Engine, EngineError};
use lacuna::xen::lab::provoke::{EmptyDomain, LogDirty};
use lacuna::xen::lab::sharing::Sharing;
use lacuna::xen::privcmd::{DomainId, DomainInfo, HostMemory, Privcmd, PrivcmdError};
use lacuna_core::Gfn;
use lacuna_core::abi::{Op, Request, SHARE_MUTATION_SHIFT, VERSION};

use crate::failure::{Failure, Result, differs, equal};

/// A step that a share round can be made to leave out, by the mutant hypervisor only; the numbers are those
/// of `lacuna_core::Mutation` in a request's flags (`steps` in `core/src/session/mod.rs`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeftOut {
    /// The recheck: the scan is trusted.
    Recheck = 3,
    /// The flush after the new entries are in.
    Flush = 4,
}

/// The engine's side of one domain.
pub(crate) struct Direct {
    privcmd: Rc<Privcmd>,
    domain: DomainId,
    /// The product's own way of calling, without its command's checks.
    pub(crate) engine: Engine,
}

impl Direct {
    /// Opens the way to the engine for `domain`.
    pub(crate) fn open(domain: u16) -> Result<Self> {
        let domain = DomainId::new(domain).ok_or_else(|| unusable(&format!("domain {domain}")))?;
        let privcmd = Rc::new(Privcmd::open().map_err(|error| unusable(&error.to_string()))?);
        let engine = Engine::new(&privcmd, domain);
        Ok(Self {
            privcmd,
            domain,
            engine,
        })
    }

    /// Makes an empty domain, and opens the way to the engine for it.
    pub(crate) fn with_empty(kind: EmptyDomain) -> Result<Self> {
        let privcmd = Privcmd::open().map_err(|error| unusable(&error.to_string()))?;
        let domain = privcmd
            .create_empty(kind)
            .map_err(|error| unusable(&format!("{kind:?}: {error}")))?;
        Self::open(domain.get())
    }

    /// Returns the domain's number, as a command's argument.
    pub(crate) fn number(&self) -> String {
        self.domain.get().to_string()
    }

    /// Ends a domain of [`Self::with_empty`].
    pub(crate) fn destroy(self) -> Result<()> {
        self.privcmd
            .destroy(self.domain)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Returns how long the domain's virtual CPUs have run, in ns.
    pub(crate) fn cpu_time(&self) -> Result<u64> {
        Ok(self.info()?.cpu_time)
    }

    /// Returns the pages that the domain owns.
    pub(crate) fn pages(&self) -> Result<u64> {
        Ok(self.info()?.pages)
    }

    /// Returns why the domain has shut down (`SHUTDOWN_*` of Xen's `public/sched.h`); nothing while it runs.
    pub(crate) fn shutdown_reason(&self) -> Result<Option<u8>> {
        Ok(self.info()?.shutdown_reason())
    }

    fn info(&self) -> Result<DomainInfo> {
        let info = self.privcmd.domain_info(self.domain);
        let info = info.map_err(|error| unusable(&error.to_string()))?;
        info.ok_or_else(|| unusable(&format!("no domain {}", self.domain.get())))
    }

    /// Lets the domain go on after it has shut itself down.
    pub(crate) fn resume(&self) -> Result<()> {
        self.privcmd
            .resume(self.domain)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Makes Xen track the domain's writes, or stops that.
    pub(crate) fn set_log_dirty(&self, mode: LogDirty) -> Result<()> {
        self.privcmd
            .set_log_dirty(self.domain, mode)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Makes Xen look like Hyper-V to the domain, which must not have run yet.
    pub(crate) fn enable_viridian(&self) -> Result<()> {
        self.privcmd
            .enable_viridian(self.domain)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Makes Xen track writes to so many of the domain's pages, as a device model does with video memory.
    pub(crate) fn track_video(&self, first: Gfn, pages: u32) -> Result<()> {
        self.privcmd
            .track_video(self.domain, first, pages)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Tells Xen that a device model has written to pages.
    pub(crate) fn tell_modified(&self, first: Gfn, pages: u32) -> Result<()> {
        self.privcmd
            .tell_modified(self.domain, first, pages)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Injects a memory error in frame `mfn`, whoever owns it.
    pub(crate) fn fail_memory(&self, mfn: u64) -> Result<()> {
        self.privcmd
            .fail_memory(mfn)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Xen's own memory sharing in the domain.
    pub(crate) fn stock_sharing(&self) -> Result<Sharing> {
        Sharing::open(&self.privcmd, self.domain).map_err(|error| unusable(&error.to_string()))
    }

    /// Returns the most pages that the domain may own.
    pub(crate) fn most_pages(&self) -> Result<u64> {
        Ok(self.info()?.max_pages)
    }

    /// Turns altp2m on for the domain.
    pub(crate) fn enable_altp2m(&self) -> Result<()> {
        self.privcmd
            .enable_altp2m(self.domain)
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Returns the host's memory, in pages.
    pub(crate) fn host_memory(&self) -> Result<HostMemory> {
        self.privcmd
            .host_memory()
            .map_err(|error| unusable(&error.to_string()))
    }

    /// Makes Xen keep memory for the domain until it has `pages` pages, and returns Xen's answer.
    pub(crate) fn claim(&self, pages: u64) -> Result<(), PrivcmdError> {
        self.privcmd.claim_pages(self.domain, pages)
    }

    /// Gives the domain `blocks` more blocks of 2 MiB, at `first` and after it.
    pub(crate) fn populate(&self, first: Gfn, blocks: u64) -> Result<()> {
        let got = self.privcmd.populate(self.domain, first, blocks);
        let got = got.map_err(|error| unusable(&error.to_string()))?;
        equal("blocks that the domain got", &blocks, &got)
    }

    /// Makes a call with `request` and `buffer` as they are, which must succeed.
    pub(crate) fn raw(&self, request: &mut Request, buffer: &mut [u8]) -> Result<()> {
        self.privcmd
            .lacuna(self.domain, request, buffer)
            .map_err(|error| unusable(&format!("{error}: {request:?}")))
    }

    /// Does one share round with a step left out, and returns the number of pages that it shared.
    pub(crate) fn share_without(&self, step: LeftOut) -> Result<u64> {
        let flags = (step as u32) << SHARE_MUTATION_SHIFT;
        let mut request = Request {
            version: VERSION,
            op: Op::Share as u32,
            flags,
            ..Request::default()
        };
        let outcome = self.privcmd.lacuna(self.domain, &mut request, &mut []);
        outcome.map(|()| request.result[0]).map_err(|error| {
            differs(
                "a share round with a step left out",
                "to be done",
                &format!("{error}: {request:?}"),
            )
        })
    }
}

/// Returns the failure for a call of the engine that should not fail.
pub(crate) fn refused(error: &EngineError) -> Failure {
    unusable(&error.to_string())
}

fn unusable(seen: &str) -> Failure {
    differs("the engine inside Xen", "an answer", seen)
}
