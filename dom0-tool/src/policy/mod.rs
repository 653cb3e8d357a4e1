//! Decides which of a guest's free memory to give back: what will probably stay free.
//!
//! Giving back everything that is free saves most, and costs a write fault for each page that the guest takes
//! again soon after. The paper left that open (section 6.1.3, figure 9: rarer rounds cost less, but the
//! slowdown does not reach zero). This module watches each guest from scan to scan, in regions of 2 MiB:
//!
//! * **order**: only regions that are mostly free are given back. An allocator serves small requests from
//!   small blocks in regions that are mostly in use. Those stay with the guest, so most of its allocations
//!   meet no zero frame;
//! * **age**: a region has to be left alone, small change apart, for several scans in a row, and for longer
//!   than the guest usually leaves memory alone before it takes it again ([`hazard`]);
//! * **refaults**: a region that was taken again soon after it was given back has to wait twice as long next
//!   time, and longer than it was free before, so a use that swings costs only once ([`regions`]);
//! * **direction**: regions away from where the guest allocates are given back first ([`direction`]);
//! * **headroom**: as much free memory as the guest recently demanded is not given back ([`headroom`]);
//! * **cost**: if faults cost the guest more than the memory was worth, every region waits longer
//!   ([`pressure`]).
//!
//! Nothing here talks to a hypervisor: [`Policy::decide`] turns the bitmap of a scan into frames to share.
//! A wrong decision costs time, never data: the engine checks every page again.
//!
//! The policy needs of the engine only a share operation over a range of frames, and the bitmap: one bit a
//! page once a round, which is 32 MiB for a guest of 1 TiB.

pub mod direction;
pub mod hazard;
pub mod headroom;
pub mod pressure;
pub mod regions;

use std::time::Duration;

use direction::Direction;
use hazard::Hazard;
use headroom::Headroom;
use pressure::Pressure;
use regions::Regions;

/// Pages of a region.
pub const REGION_PAGES: u64 = 512;

/// How long the host has to have a page so that it is worth a fault, which costs the guest some microseconds.
pub const WORTH: Duration = Duration::from_secs(60);
/// How long memory should probably stay free to be given back: five times [`WORTH`], because some of it is
/// taken sooner.
pub const LIKELY: Duration = Duration::from_secs(300);

/// What is known of a guest after a scan. Pages are of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When, since some fixed moment.
    pub at: Duration,
    /// Pages of memory that the guest has, those on zero frames included. Its frame numbers go further: any
    /// PVH guest has some just below 4 GiB.
    pub total: u64,
    /// Pages free by the scan.
    pub free: u64,
    /// Pages on zero frames now.
    pub given_back: u64,
    /// Pages that the guest took back by writing to them, since its beginning.
    pub unshared: u64,
    /// Write faults by which it did. They are fewer than the pages if one fault took a block of 2 MiB.
    pub faults: u64,
}

/// Frames `from..to`, to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first frame.
    pub from: u64,
    /// One past the last.
    pub to: u64,
}

impl Run {
    /// Returns the number of frames in the run.
    pub const fn pages(self) -> u64 {
        self.to - self.from
    }
}

/// What to do after a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Runs that may be shared, the oldest and least likely to be used first.
    pub runs: Vec<Run>,
    /// Most pages to put on zero frames now. Pages that are there already do not count.
    pub allowance: u64,
}

/// The policy for one guest.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    regions: Regions,
    hazard: Hazard,
    direction: Direction,
    headroom: Headroom,
    pressure: Pressure,
    last: Option<Observed>,
}

impl Policy {
    /// Learns from a scan, whose `bitmap` has a bit for each frame, lowest first, and says what to share.
    pub fn decide(&mut self, bitmap: &[u8], observed: Observed) -> Decision {
        let interval = self
            .last
            .map_or(Duration::MAX, |last| observed.at.saturating_sub(last.at));
        let worth = scans(WORTH, interval);
        let taken = self.regions.learn(bitmap, worth, &mut self.hazard);
        self.direction.learn(&taken, self.regions.len());
        if let Some(last) = self.last {
            self.headroom.learn(&last, &observed);
            self.pressure.learn(&last, &observed);
        }
        self.last = Some(observed);
        // The guest can use free memory on zero frames only at the cost of a fault for each page.
        let spare = observed.free.saturating_sub(observed.given_back);
        let safe_age = self.hazard.safe_age(scans(LIKELY, interval));
        let mut ripe = self.regions.ripe(self.pressure.level(), safe_age);
        self.direction.sort(&mut ripe, &self.regions);
        Decision {
            runs: runs(&ripe),
            allowance: spare.saturating_sub(self.headroom()),
        }
    }

    /// Records that the decision has been carried out for this run.
    pub fn gave_back(&mut self, run: Run) {
        self.regions.gave_back(run);
    }

    /// Returns how many times longer than usual every region has to wait, as a power of two.
    pub const fn pressure(&self) -> u32 {
        self.pressure.level()
    }

    /// Returns the number of free pages that are left to the guest.
    pub fn headroom(&self) -> u64 {
        self.headroom.pages(self.last.map_or(0, |last| last.total))
    }
}

/// Returns the number of scans in `time`, with `interval` between two scans.
fn scans(time: Duration, interval: Duration) -> u16 {
    let scans = time.as_millis().div_ceil(interval.as_millis().max(1));
    u16::try_from(scans).unwrap_or(u16::MAX)
}

/// Regions in an order, as runs in that order: neighbours that follow one another, in either direction, are
/// one run.
fn runs(regions: &[usize]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for region in regions {
        let from = *region as u64 * REGION_PAGES;
        let to = from + REGION_PAGES;
        match runs.last_mut() {
            Some(run) if run.to == from => run.to = to,
            Some(run) if run.from == to => run.from = from,
            _ => runs.push(Run { from, to }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_run_in_either_direction() {
        let run = |from: u64, to: u64| Run {
            from: from * REGION_PAGES,
            to: to * REGION_PAGES,
        };
        assert_eq!(runs(&[0, 1, 2, 5]), [run(0, 3), run(5, 6)]);
        assert_eq!(runs(&[9, 8, 7, 2]), [run(7, 10), run(2, 3)]);
        assert_eq!(runs(&[]), []);
    }

    #[test]
    fn headroom_stays_with_the_guest() {
        let mut policy = Policy::default();
        // A hundred regions of memory, and frames far beyond them.
        let mut bitmap = vec![0xff; 100 * 64];
        bitmap.resize(2000 * 64, 0);
        let observed = Observed {
            total: 100 * REGION_PAGES,
            free: 100 * REGION_PAGES,
            ..Observed::default()
        };
        assert_eq!(
            policy.decide(&bitmap, observed).runs,
            [],
            "nothing is old enough at once"
        );
        let decision = policy.decide(&bitmap, observed);
        assert_eq!(decision.allowance, 100 * REGION_PAGES - policy.headroom());
        assert_eq!(
            policy.headroom(),
            100 * REGION_PAGES / 64,
            "of memory, not of frames"
        );
        // With all but the headroom given back, nothing more is.
        let observed = Observed {
            given_back: decision.allowance,
            ..observed
        };
        assert_eq!(policy.decide(&bitmap, observed).allowance, 0);
    }
}
