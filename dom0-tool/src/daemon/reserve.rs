//! The host's memory: what is free, what guests may take back, and when to stop promising more.
//!
//! A guest may take back at any moment what it has given back. When the host's free memory falls below the
//! reserve, the amount that guests may take back must not grow beyond what it was at that moment. Pages that
//! a guest has taken since and freed again may be given back once more; that fills the reserve.

use crate::xen::privcmd::HostMemory;

/// Pages of a MiB.
const PAGES_PER_MIB: u64 = 256;
/// The reserve counts as full again when it is exceeded by this part of its size. Without the gap a host at
/// the limit would report a change at every update.
const RECOVERY_PART: u64 = 8;

/// A change to report to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The host's free memory has fallen below the reserve.
    Low,
    /// It is above it again.
    Recovered,
}

/// The watch over the host's memory. Pages are of 4 KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reserve {
    size: u64,
    memory: HostMemory,
    promised: u64,
    /// While the host is low: most that guests may be able to take back.
    cap: Option<u64>,
    lows: u64,
}

impl Reserve {
    /// Creates a watch over a reserve of `mib` MiB.
    pub fn new(mib: u64) -> Self {
        Self {
            size: mib.saturating_mul(PAGES_PER_MIB),
            ..Self::default()
        }
    }

    /// Changes the size, in MiB. This takes effect with the next call of [`Self::update`].
    pub fn set_mib(&mut self, mib: u64) {
        self.size = mib.saturating_mul(PAGES_PER_MIB);
    }

    /// Records that the host has `memory` and that guests may take back `promised` pages. Returns what
    /// changed, if anything did.
    pub fn update(&mut self, memory: HostMemory, promised: u64) -> Option<Change> {
        self.memory = memory;
        self.promised = promised;
        // Memory that is claimed for a domain being built does not count as free.
        let free = memory.free.saturating_sub(memory.claimed);
        match self.cap {
            None if free < self.size => {
                self.cap = Some(promised);
                self.lows += 1;
                Some(Change::Low)
            }
            Some(_) if free >= self.size + self.size / RECOVERY_PART => {
                self.cap = None;
                Some(Change::Recovered)
            }
            _ => None,
        }
    }

    /// Records that a guest has given back `pages`.
    pub fn gave_back(&mut self, pages: u64) {
        self.promised += pages;
    }

    /// Returns the most pages that may be given back now.
    pub fn allowance(&self) -> u64 {
        self.cap.map_or(u64::MAX, |cap| cap.saturating_sub(self.promised))
    }

    /// Returns whether the host is low.
    pub const fn is_low(&self) -> bool {
        self.cap.is_some()
    }

    /// Times the host became low.
    pub const fn lows(&self) -> u64 {
        self.lows
    }

    /// Returns the reserve, in pages.
    pub const fn pages(&self) -> u64 {
        self.size
    }

    /// Returns the host's memory at the last update.
    pub const fn memory(&self) -> HostMemory {
        self.memory
    }

    /// Returns the number of pages that guests may take back.
    pub const fn promised(&self) -> u64 {
        self.promised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn free(free: u64) -> HostMemory {
        HostMemory {
            total: 1_000_000,
            free,
            claimed: 0,
        }
    }

    #[test]
    fn a_low_host_promises_no_more_than_it_had() {
        let mut reserve = Reserve::new(1);
        assert_eq!(reserve.update(free(1000), 5000), None);
        assert_eq!(reserve.allowance(), u64::MAX);
        assert_eq!(reserve.update(free(255), 5000), Some(Change::Low));
        assert_eq!(
            (reserve.allowance(), reserve.is_low(), reserve.lows()),
            (0, true, 1)
        );
        // A guest takes 100 pages back, and later frees them: those may be given back, and no more.
        assert_eq!(reserve.update(free(155), 4900), None);
        assert_eq!(reserve.allowance(), 100);
        reserve.gave_back(60);
        assert_eq!(reserve.allowance(), 40);
    }

    #[test]
    fn a_host_at_the_limit_is_reported_once() {
        let mut reserve = Reserve::new(1);
        assert_eq!(reserve.update(free(255), 0), Some(Change::Low));
        for pages in [256, 255, 287] {
            assert_eq!(reserve.update(free(pages), 0), None);
        }
        assert_eq!(reserve.update(free(288), 0), Some(Change::Recovered));
        assert_eq!(reserve.update(free(256), 0), None);
    }

    #[test]
    fn claimed_memory_is_not_free() {
        let claimed = HostMemory {
            claimed: 900,
            ..free(1000)
        };
        assert_eq!(Reserve::new(1).update(claimed, 0), Some(Change::Low));
    }

    #[test]
    fn without_a_reserve_nothing_is_ever_low() {
        assert_eq!(Reserve::new(0).update(free(0), 9), None);
    }
}
