//! The host and its guests, as the daemon sees them, by hypercall and xenstore.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use lacuna_core::abi::Statistics;
use rustix::time::{ClockId, clock_gettime};

use super::attach;
use super::guest::{Live, open_lacuna};
use crate::failure::{Cause, Class, Failure};
use crate::os::{Sources, SymbolSources};
use crate::progress::Silent;
use crate::xen::domain::{Domain, find};
use crate::xen::engine::{
    ContentFigures, Engine, Part, SCAN_PART, SHARE_PART, ScanFigures, ScanOf, ShareFigures,
};
use crate::xen::privcmd::{DomainId, DomainInfo, HostMemory, Privcmd};
use crate::xen::xenstore::{Xenstore, XenstoreError};

/// Number and name of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestName {
    /// Its number.
    pub domain: u16,
    /// Its name, where xenstore knows it.
    pub name: Option<String>,
}

/// The state of a guest, as the hypervisor reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestState {
    /// Pages that it owns.
    pub pages: u64,
    /// Most pages that it may own.
    pub max_pages: u64,
    /// The engine's counters.
    pub statistics: Statistics,
}

impl GuestState {
    /// Returns the number of the guest's pages on zero frames or on frames shared by content. Each of them
    /// may need a frame of its own again.
    pub const fn given_back(&self) -> u64 {
        self.statistics
            .zero_gfns
            .saturating_add(self.statistics.content_gfns)
    }

    /// Returns the number of pages that the guest has taken off such frames by writing to them.
    pub const fn unshared(&self) -> u64 {
        self.statistics
            .unshared
            .saturating_add(self.statistics.content_unshared)
    }
}

/// What the daemon needs of the host.
pub trait Xen {
    /// Returns the time since some fixed moment. It never steps back.
    fn now(&self) -> Duration;
    /// Returns the CPU time that this process has used, hypercalls included.
    fn cpu_time(&self) -> Duration;
    /// Returns all guests, without dom0.
    ///
    /// # Errors
    /// xenstore could not be asked.
    fn guests(&mut self) -> Result<Vec<GuestName>, Failure>;
    /// Returns the host's memory.
    ///
    /// # Errors
    /// The hypervisor could not be asked.
    fn memory(&mut self) -> Result<HostMemory, Failure>;
    /// Returns the state of a guest.
    ///
    /// # Errors
    /// The hypervisor's refusal; [`Cause::Gone`] for a guest that does not exist.
    fn state(&mut self, domain: u16) -> Result<GuestState, Failure>;
    /// Builds a guest's profile and makes the hypervisor admit it.
    ///
    /// # Errors
    /// Why that is not possible; the guest has no profile then.
    fn attach(&mut self, domain: u16, layouts: &Path, symbols: Option<&str>) -> Result<(), Failure>;
    /// Scans a part of a guest's memory.
    ///
    /// # Errors
    /// The engine's refusal.
    fn scan(&mut self, domain: u16, from: u64) -> Result<Part<ScanFigures>, Failure>;
    /// Returns what the last scan saw: a bit a frame, lowest first, set where the frame was free.
    ///
    /// # Errors
    /// The engine's refusal.
    fn bitmap(&mut self, domain: u16) -> Result<Vec<u8>, Failure>;
    /// Gives back free pages from frame `from` on, before frame `end` (`None`: to the end of memory), about
    /// `most` pages at most.
    ///
    /// # Errors
    /// The engine's refusal.
    fn share(
        &mut self,
        domain: u16,
        from: u64,
        end: Option<u64>,
        most: u64,
    ) -> Result<Part<ShareFigures>, Failure>;
    /// Makes a guest share by content with the members of trust group `name`, with nobody else for an empty
    /// name.
    ///
    /// # Errors
    /// The hypervisor's refusal: pages are shared with members of another group.
    fn set_group(&mut self, domain: u16, name: &str) -> Result<(), Failure>;
    /// Runs the content stage over `frames` frames from `from` on, without the pages that the last scan found
    /// free.
    ///
    /// # Errors
    /// The engine's refusal.
    fn content(&mut self, domain: u16, from: u64, frames: u64) -> Result<Part<ContentFigures>, Failure>;
}

/// The host that this runs on.
#[derive(Debug)]
pub struct ThisHost {
    privcmd: Rc<Privcmd>,
    began: Instant,
}

impl ThisHost {
    /// Opens the hypercall device.
    ///
    /// # Errors
    /// Not a Xen dom0, not root, or a hypervisor without Lacuna.
    pub fn open() -> Result<Self, Failure> {
        Ok(Self {
            privcmd: open_lacuna()?,
            began: Instant::now(),
        })
    }

    fn domain(&self, number: u16) -> Result<(DomainId, DomainInfo), Failure> {
        let gone =
            || Failure::plain(Class::NotFound, format!("domain {number} is gone")).because(Cause::Gone);
        let id = DomainId::new(number).ok_or_else(gone)?;
        let info = self.privcmd.domain_info(id)?.ok_or_else(gone)?;
        if info.flags & DomainInfo::DYING != 0 {
            return Err(gone());
        }
        Ok((id, info))
    }

    fn engine(&self, number: u16) -> Result<Engine, Failure> {
        Ok(Engine::new(&self.privcmd, self.domain(number)?.0))
    }
}

impl Xen for ThisHost {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn cpu_time(&self) -> Duration {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        // A process' CPU time is not negative, nor is a fraction of a second.
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }

    fn guests(&mut self) -> Result<Vec<GuestName>, Failure> {
        let unreachable = |error: XenstoreError| {
            Failure::new(
                Class::Failed,
                error,
                "is xenstored running? lacunad goes on with the guests that it knows",
            )
        };
        let mut store = Xenstore::connect().map_err(unreachable)?;
        let mut seen = Vec::new();
        for entry in store.list("/local/domain").map_err(unreachable)? {
            let Some(domain) = entry.parse::<u16>().ok().filter(|domain| *domain != 0) else {
                continue;
            };
            // xenstore keeps a domain's directory for a while after its end.
            if self.domain(domain).is_err() {
                continue;
            }
            let name = match store.read(&format!("/local/domain/{domain}/name")) {
                Ok(name) => Some(name),
                Err(XenstoreError::Refused { .. }) => None,
                Err(error) => return Err(unreachable(error)),
            };
            seen.push(GuestName { domain, name });
        }
        Ok(seen)
    }

    fn memory(&mut self) -> Result<HostMemory, Failure> {
        Ok(self.privcmd.host_memory()?)
    }

    fn state(&mut self, domain: u16) -> Result<GuestState, Failure> {
        let (id, info) = self.domain(domain)?;
        Ok(GuestState {
            pages: info.pages,
            max_pages: info.max_pages,
            statistics: Engine::new(&self.privcmd, id).statistics()?,
        })
    }

    fn attach(&mut self, domain: u16, layouts: &Path, symbols: Option<&str>) -> Result<(), Failure> {
        let found: Domain = find(&self.privcmd, &domain.to_string())?;
        if found.info.has_not_run() {
            return Err(Failure::new(
                Class::Refused,
                format!("domain {domain} has not run yet: it is being built, restored or received"),
                "nothing to do: it is tried again in a moment",
            )
            .because(Cause::Booting));
        }
        // The command's defaults, but no symbol server is asked.
        let options = attach::Options {
            sources: Sources {
                layouts: layouts.to_owned(),
                symbols: SymbolSources {
                    offline: true,
                    path: symbols.map(str::to_owned),
                    ..SymbolSources::default()
                },
                ..Sources::default()
            },
            ..attach::Options::default()
        };
        attach::attach(&Live::new(&self.privcmd, found), &options, &mut Silent).map(drop)
    }

    fn scan(&mut self, domain: u16, from: u64) -> Result<Part<ScanFigures>, Failure> {
        Ok(self.engine(domain)?.scan_part(ScanOf::Changes, from, SCAN_PART)?)
    }

    fn bitmap(&mut self, domain: u16) -> Result<Vec<u8>, Failure> {
        Ok(self.engine(domain)?.read_bitmap()?.1)
    }

    fn share(
        &mut self,
        domain: u16,
        from: u64,
        end: Option<u64>,
        most: u64,
    ) -> Result<Part<ShareFigures>, Failure> {
        Ok(self.engine(domain)?.share_part(from, end, most.min(SHARE_PART))?)
    }

    fn set_group(&mut self, domain: u16, name: &str) -> Result<(), Failure> {
        Ok(self.engine(domain)?.set_group(name)?)
    }

    fn content(&mut self, domain: u16, from: u64, frames: u64) -> Result<Part<ContentFigures>, Failure> {
        Ok(self.engine(domain)?.content_part(from, frames, true)?)
    }
}
