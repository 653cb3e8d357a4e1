//! Keeps for each region of 2 MiB how long it has been free, and how long it has to be.

use super::hazard::Hazard;
use super::{REGION_PAGES, Run};

/// Bytes of bitmap of one region.
const REGION_BYTES: usize = (REGION_PAGES / 8) as usize;
/// Scans in a row in which a region must have been left alone, if it was never taken too early. With one
/// scan, whatever is free at an instant would be given back.
pub const LEAST_AGE: u8 = 2;
/// Most scans that a region is made to wait: at one a minute, two hours.
const MOST_AGE: u8 = 128;
/// Giving a region back was right if the host had it for so many times as long as it had to wait, and for
/// long enough to be worth the faults. Otherwise it was too early.
const FAIR: u16 = 4;

/// Least number of free pages of a region that may be given back: five eighths. An allocator serves small
/// requests from small blocks, in regions that are mostly in use; those are left to the guest.
const LEAST_FREE: u64 = REGION_PAGES / 8 * 5;
/// *Small change*: most pages of a region that may be taken between two scans while it still counts as left
/// alone, an eighth. The same few pages come and go. Those that lay on zero frames cost one fault each; the
/// others stay on them.
const SMALL_CHANGE: u32 = 64;

/// One region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// Scans in a row in which most of it was free and no more than small change was taken, up to
    /// [`MOST_AGE`].
    age: u8,
    /// Scans for which that has to hold before it is given back.
    need: u8,
    /// Whether it was given back and no more than small change was taken of it since.
    given_back: bool,
    /// Scans since it was given back.
    kept: u16,
    /// Scans since it was last given back, small change included.
    again: u16,
}

impl Default for Region {
    fn default() -> Self {
        Self {
            age: 0,
            need: LEAST_AGE,
            given_back: false,
            kept: 0,
            again: 0,
        }
    }
}

impl Region {
    /// Records what a scan has shown: whether the region was left alone except for small change, and whether
    /// most of it is free now. A fault is worth a page that the host has for `worth` scans.
    fn learn(&mut self, left_alone: bool, mostly_free: bool, worth: u16) {
        if !left_alone || !mostly_free {
            if self.given_back {
                self.need = if self.kept < self.long_enough(worth) {
                    // Wait longer than it was free this time. If the guest's use of it comes and goes, that
                    // is how long the use stays away.
                    let outlast = self.age.saturating_add(1);
                    self.need.saturating_mul(2).max(outlast).min(MOST_AGE)
                } else {
                    (self.need / 2).max(LEAST_AGE)
                };
            }
            self.age = 0;
            self.given_back = false;
            self.kept = 0;
            self.again = 0;
        }
        if !mostly_free {
            return;
        }
        self.age = self.age.saturating_add(1).min(MOST_AGE);
        if self.given_back {
            self.kept = self.kept.saturating_add(1);
            self.again = self.again.saturating_add(1);
        }
    }

    /// Returns the scans for which the host should have it: long enough for its wait, and to be worth the
    /// faults.
    fn long_enough(self, worth: u16) -> u16 {
        (u16::from(self.need) * FAIR).max(worth)
    }
}

/// All regions of a guest.
#[derive(Clone, Debug, Default)]
pub struct Regions {
    each: Vec<Region>,
    /// The bitmap of the last scan.
    last: Vec<u8>,
    /// Scans for which the host has to have a page so that it is worth a fault.
    worth: u16,
}

impl Regions {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.each.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.each.is_empty()
    }

    /// Learns from the bitmap of a scan. Returns the regions in which something was taken that was free at
    /// the scan before. A page's fault is worth it when the host had the page for `worth` scans. `hazard`
    /// learns what was taken at which age.
    pub fn learn(&mut self, bitmap: &[u8], worth: u16, hazard: &mut Hazard) -> Vec<usize> {
        let count = bitmap.len() / REGION_BYTES;
        self.each.resize(count, Region::default());
        self.worth = worth;
        hazard.fade();
        // Memory that did not exist at the last scan was not free then.
        self.last.resize(bitmap.len(), 0);
        let mut changed = Vec::new();
        let before = self.last.chunks_exact(REGION_BYTES);
        let now = bitmap.chunks_exact(REGION_BYTES);
        for (index, (region, (before, now))) in self.each.iter_mut().zip(before.zip(now)).enumerate() {
            let taken = before.iter().zip(now).map(|(before, now)| before & !now);
            let taken: u32 = taken.map(u8::count_ones).sum();
            if taken > 0 {
                changed.push(index);
            }
            let beyond_small_change = if taken > SMALL_CHANGE { taken } else { 0 };
            if region.age > 0 {
                hazard.learn(region.age, beyond_small_change);
            }
            let free: u64 = now.iter().map(|byte| u64::from(byte.count_ones())).sum();
            region.learn(beyond_small_change == 0, free >= LEAST_FREE, worth);
        }
        self.last.copy_from_slice(bitmap);
        changed
    }

    /// Returns the regions that have been left alone for long enough: every wait is 2^`pressure` times as
    /// long, and at least `safe_age` scans. Regions that were given back are returned again after a while,
    /// because small change is free again by then, and scans do not see what was taken and freed between two
    /// of them, or could not be given back. Pages that are on zero frames already cost the engine only a
    /// look.
    pub fn ripe(&self, pressure: u32, safe_age: u8) -> Vec<usize> {
        let ripe = |region: &Region| {
            let need = u32::from(region.need.max(safe_age)) << pressure.min(8);
            (!region.given_back || region.again >= region.long_enough(self.worth))
                && u32::from(region.age) >= need.min(u32::from(MOST_AGE))
        };
        let regions = self.each.iter().enumerate();
        regions
            .filter(|(_, region)| ripe(region))
            .map(|(index, _)| index)
            .collect()
    }

    /// Returns the scans for which a region has been left alone.
    pub fn age(&self, index: usize) -> u8 {
        self.each.get(index).map_or(0, |region| region.age)
    }

    /// Returns whether a region was given back, and no more than small change has been seen taken since.
    pub fn is_given_back(&self, index: usize) -> bool {
        self.each.get(index).is_some_and(|region| region.given_back)
    }

    /// Records that a run of regions was given back.
    pub fn gave_back(&mut self, run: Run) {
        let end = (run.to / REGION_PAGES).min(self.each.len() as u64);
        for index in run.from.div_ceil(REGION_PAGES)..end {
            if let Some(region) = usize::try_from(index)
                .ok()
                .and_then(|index| self.each.get_mut(index))
            {
                region.again = 0;
                region.given_back = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(free: &[bool]) -> Vec<u8> {
        free.iter()
            .flat_map(|free| [if *free { 0xff } else { 0 }; REGION_BYTES])
            .collect()
    }

    #[test]
    fn a_region_is_ripe_when_most_of_it_was_left_alone_for_long_enough() {
        let mut regions = Regions::default();
        let mut bits = bitmap(&[true, true, true]);
        // Three eighths of the second region are in use, and a page more of the third.
        bits[REGION_BYTES..REGION_BYTES + 24].fill(0);
        bits[2 * REGION_BYTES..2 * REGION_BYTES + 24].fill(0);
        bits[2 * REGION_BYTES + 24] = 0xfe;
        for scan in 1..=3 {
            assert_eq!(regions.learn(&bits, 0, &mut Hazard::default()), [0; 0]);
            let expected: &[usize] = if scan >= LEAST_AGE { &[0, 1] } else { &[] };
            assert_eq!(regions.ripe(0, 0), expected, "after scan {scan}");
        }
        assert_eq!(regions.ripe(1, 0), [0; 0], "twice as long under pressure");
        // Of the first region's free pages 64 are taken, and then one more than that.
        bits[..8].fill(0);
        assert_eq!(regions.learn(&bits, 0, &mut Hazard::default()), [0]);
        assert_eq!(regions.ripe(0, 0), [0, 1], "small change");
        bits[8..16].fill(0);
        bits[16] = 0xef;
        assert_eq!(regions.learn(&bits, 0, &mut Hazard::default()), [0]);
        assert_eq!(regions.ripe(0, 0), [1]);
        assert_eq!(regions.ripe(1, 0), [1]);
    }

    #[test]
    fn a_region_taken_again_at_once_waits_twice_as_long_each_time() {
        let mut regions = Regions::default();
        let (free, used) = (bitmap(&[true]), bitmap(&[false]));
        for expected in [2, 4, 8, 16] {
            let mut waited = 0;
            while regions.ripe(0, 0).is_empty() {
                regions.learn(&free, 0, &mut Hazard::default());
                waited += 1;
            }
            assert_eq!(waited, expected);
            regions.gave_back(Run { from: 0, to: 512 });
            assert_eq!(
                regions.ripe(0, 0),
                [0; 0],
                "what is given back is not given back again"
            );
            assert_eq!(regions.learn(&used, 0, &mut Hazard::default()), [0]);
        }
    }

    #[test]
    fn what_no_scan_shows_is_mended_after_a_while() {
        let mut regions = Regions::default();
        let free = bitmap(&[true]);
        while regions.ripe(0, 0).is_empty() {
            regions.learn(&free, 0, &mut Hazard::default());
        }
        regions.gave_back(Run { from: 0, to: 512 });
        // The guest takes it and frees it between two scans: it is free at each of them.
        for scan in 1..u32::from(u16::from(LEAST_AGE) * FAIR) {
            regions.learn(&free, 0, &mut Hazard::default());
            assert_eq!(regions.ripe(0, 0), [0; 0], "after scan {scan}");
        }
        regions.learn(&free, 0, &mut Hazard::default());
        assert_eq!(regions.ripe(0, 0), [0]);
        regions.gave_back(Run { from: 0, to: 512 });
        regions.learn(&bitmap(&[false]), 0, &mut Hazard::default());
        assert_eq!(
            regions.each[0].need, LEAST_AGE,
            "it was there for long, as far as is known"
        );
    }

    #[test]
    fn a_region_taken_before_it_was_given_back_has_nothing_held_against_it() {
        let mut regions = Regions::default();
        for _ in 0..10 {
            regions.learn(&bitmap(&[true]), 0, &mut Hazard::default());
            regions.learn(&bitmap(&[false]), 0, &mut Hazard::default());
        }
        regions.learn(&bitmap(&[true]), 0, &mut Hazard::default());
        regions.learn(&bitmap(&[true]), 0, &mut Hazard::default());
        assert_eq!(regions.ripe(0, 0), [0]);
    }

    #[test]
    fn a_region_that_the_host_had_for_long_was_rightly_given_back() {
        let mut regions = Regions::default();
        let (free, used) = (bitmap(&[true]), bitmap(&[false]));
        // Scans for which the host has it, and what it has to wait for afterwards.
        for (kept, expected) in [(0, 4), (15, 20), (80, 10), (40, 5), (20, 2), (8, 2), (7, 10)] {
            while regions.ripe(0, 0).is_empty() {
                regions.learn(&free, 0, &mut Hazard::default());
            }
            regions.gave_back(Run { from: 0, to: 512 });
            for _ in 0..kept {
                regions.learn(&free, 0, &mut Hazard::default());
            }
            regions.learn(&used, 0, &mut Hazard::default());
            assert_eq!(regions.each[0].need, expected, "after {kept} scans");
        }
    }

    #[test]
    fn a_swing_is_outlasted_once_it_was_seen() {
        let (free, used) = (bitmap(&[true]), bitmap(&[false]));
        // At 20 scans a minute its faults are not worth the 10 scans that the host has it; at a scan a minute
        // they are.
        for (worth, times) in [(20, 1), (1, 5)] {
            let mut regions = Regions::default();
            let mut given = 0;
            for _ in 0..5 {
                for _ in 0..12 {
                    regions.learn(&free, worth, &mut Hazard::default());
                    if !regions.ripe(0, 0).is_empty() && !regions.is_given_back(0) {
                        regions.gave_back(Run { from: 0, to: 512 });
                        given += 1;
                    }
                }
                for _ in 0..12 {
                    regions.learn(&used, worth, &mut Hazard::default());
                }
            }
            assert_eq!(given, times, "worth {worth} scans");
        }
    }

    #[test]
    fn small_change_comes_again_when_faults_for_it_are_worth_it() {
        let (worth, mut regions) = (60, Regions::default());
        let free = bitmap(&[true]);
        let mut small = free.clone();
        small[..8].fill(0);
        let mut given = Vec::new();
        // Every third scan finds 64 pages in use.
        for scan in 0..200 {
            let bits = if scan % 3 == 2 { &small } else { &free };
            let mut hazard = Hazard::default();
            regions.learn(bits, worth, &mut hazard);
            assert_eq!(hazard.safe_age(u16::MAX), 0, "it is not held against its age");
            if !regions.ripe(0, 0).is_empty() {
                regions.gave_back(Run { from: 0, to: 512 });
                given.push(scan);
            }
        }
        assert_eq!(given, [1, 61, 121, 181]);
        assert_eq!(regions.each[0].need, LEAST_AGE);
    }

    #[test]
    fn a_safe_age_holds_for_every_region() {
        let mut regions = Regions::default();
        for scan in 1..20 {
            regions.learn(&bitmap(&[true]), 0, &mut Hazard::default());
            assert_eq!(!regions.ripe(0, 16).is_empty(), scan >= 16, "after scan {scan}");
        }
    }

    #[test]
    fn a_guest_that_grows_or_shrinks_is_followed() {
        let mut regions = Regions::default();
        regions.learn(&bitmap(&[true; 3]), 0, &mut Hazard::default());
        regions.learn(&bitmap(&[true; 5]), 0, &mut Hazard::default());
        assert_eq!(regions.len(), 5);
        assert_eq!(regions.ripe(0, 0), [0, 1, 2]);
        regions.learn(&bitmap(&[true; 1]), 0, &mut Hazard::default());
        assert_eq!(regions.ripe(0, 0), [0]);
        regions.gave_back(Run { from: 0, to: 1 << 40 });
    }
}
