//! The host and its guests: what the daemon asks of them, and the answers by hypercall and xenstore.

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
use crate::xen::engine::{Contents, Engine, Part, SCAN_PART, SHARE_PART, Scanned, Shared};
use crate::xen::privcmd::{DomainId, DomainInfo, HostMemory, Privcmd};
use crate::xen::xenstore::{Xenstore, XenstoreError};

/// A guest that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub domain: u16,
    /// Its name, where xenstore knows it.
    pub name: Option<String>,
}

/// What the hypervisor says of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Pages that it owns.
    pub pages: u64,
    /// Most pages that it may own.
    pub max_pages: u64,
    /// The engine's counters.
    pub statistics: Statistics,
}

impl Look {
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

/// What the daemon asks of the host.
pub trait Xen {
    /// Returns the time since some fixed moment. It never steps back.
    fn now(&self) -> Duration;
    /// Returns the CPU time that this process has used, hypercalls included.
    fn cpu_time(&self) -> Duration;
    /// Returns the guests there are, dom0 left out.
    ///
    /// # Errors
    /// xenstore could not be asked.
    fn guests(&mut self) -> Result<Vec<Seen>, Failure>;
    /// Returns the host's memory.
    ///
    /// # Errors
    /// The hypervisor could not be asked.
    fn memory(&mut self) -> Result<HostMemory, Failure>;
    /// Returns what the hypervisor says of a guest.
    ///
    /// # Errors
    /// Why it does not; [`Cause::Gone`] for a guest that is not there.
    fn look(&mut self, domain: u16) -> Result<Look, Failure>;
    /// Makes a guest's profile and has the hypervisor admit it.
    ///
    /// # Errors
    /// Why that is not possible; the guest has no profile then.
    fn attach(&mut self, domain: u16, layouts: &Path, symbols: Option<&str>) -> Result<(), Failure>;
    /// Scans a part of a guest's memory.
    ///
    /// # Errors
    /// The engine's refusal.
    fn scan(&mut self, domain: u16, from: u64) -> Result<Part<Scanned>, Failure>;
    /// Returns what the last scan saw: a bit a frame, lowest first, set where the frame was free.
    ///
    /// # Errors
    /// The engine's refusal.
    fn bitmap(&mut self, domain: u16) -> Result<Vec<u8>, Failure>;
    /// Gives back free pages of frames `from` to before `end` (`None`: all that follow), about `most` at
    /// most.
    ///
    /// # Errors
    /// The engine's refusal.
    fn share(&mut self, domain: u16, from: u64, end: Option<u64>, most: u64)
    -> Result<Part<Shared>, Failure>;
    /// Makes a guest share by content with the members of trust group `name`, with nobody else for an empty
    /// name.
    ///
    /// # Errors
    /// The hypervisor's refusal: pages are shared with members of another group.
    fn set_group(&mut self, domain: u16, name: &str) -> Result<(), Failure>;
    /// Shares pages that hold the same bytes, but for those that the last scan found free: `frames` frames
    /// from `from` on.
    ///
    /// # Errors
    /// The engine's refusal.
    fn content(&mut self, domain: u16, from: u64, frames: u64) -> Result<Part<Contents>, Failure>;
}

/// The host that this runs on.
#[derive(Debug)]
pub struct ThisHost {
    privcmd: Rc<Privcmd>,
    began: Instant,
}

impl ThisHost {
    /// Opens the way to the hypervisor.
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

    fn guests(&mut self) -> Result<Vec<Seen>, Failure> {
        let unreachable = |error: XenstoreError| {
            Failure::new(
                Class::Failed,
                error,
                "is xenstored running? Guests that are known go on being looked after",
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
            seen.push(Seen { domain, name });
        }
        Ok(seen)
    }

    fn memory(&mut self) -> Result<HostMemory, Failure> {
        Ok(self.privcmd.host_memory()?)
    }

    fn look(&mut self, domain: u16) -> Result<Look, Failure> {
        let (id, info) = self.domain(domain)?;
        Ok(Look {
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
        // What the command does when nothing is said, without asking any server.
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

    fn scan(&mut self, domain: u16, from: u64) -> Result<Part<Scanned>, Failure> {
        Ok(self.engine(domain)?.scan_part(from, SCAN_PART)?)
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
    ) -> Result<Part<Shared>, Failure> {
        Ok(self.engine(domain)?.share_part(from, end, most.min(SHARE_PART))?)
    }

    fn set_group(&mut self, domain: u16, name: &str) -> Result<(), Failure> {
        Ok(self.engine(domain)?.set_group(name)?)
    }

    fn content(&mut self, domain: u16, from: u64, frames: u64) -> Result<Part<Contents>, Failure> {
        Ok(self.engine(domain)?.content_part(from, frames, true)?)
    }
}
