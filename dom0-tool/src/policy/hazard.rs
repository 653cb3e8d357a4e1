//! How likely free memory is to be taken, by how long it has been free.
//!
//! A guest whose use of memory swings takes what it freed some scans ago, and leaves alone what has been free
//! for longer. That shows in what it keeps as well as in what it gave back, so it costs no fault to learn:
//! for each age, the pages taken at it against the pages that were free at it. Memory is given back from the
//! age on at which the risk is worth taking.

use super::REGION_PAGES;

/// The least age of each group of ages that are looked at together: the longer memory has been free, the
/// fewer pages there are of one age. At 128 scans memory is as old as it gets.
const AGES: [u8; 16] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128];
/// By this part what was seen is forgotten with each scan: after 128 scans a third is left.
const FADE: f64 = 1.0 / 128.0;

/// What was seen of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hazard {
    seen: [AgeGroup; AGES.len()],
}

/// What was seen at the ages of a group: pages taken between two scans, and pages that could have been.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct AgeGroup {
    taken: f64,
    exposed: f64,
}

impl Hazard {
    /// Lets older observations count less, once for each scan.
    pub fn fade(&mut self) {
        for seen in &mut self.seen {
            seen.taken *= 1.0 - FADE;
            seen.exposed *= 1.0 - FADE;
        }
    }

    /// Records that `taken` pages were taken from a region that had been left alone for `age` scans. Not
    /// to be counted: pages that were not free before, which have no age, and small change, which is younger
    /// than its region.
    #[allow(clippy::cast_precision_loss)] // 512
    pub fn learn(&mut self, age: u8, taken: u32) {
        let group = AGES.iter().rposition(|least| age >= *least);
        if let Some(seen) = group.and_then(|group| self.seen.get_mut(group)) {
            seen.taken += f64::from(taken);
            seen.exposed += REGION_PAGES as f64;
        }
    }

    /// Returns the age from which on a page is likely to stay free for `scans` scans: 0 where none is too
    /// young, 128 where none was seen to be old enough.
    pub fn safe_age(&self, scans: u16) -> u8 {
        let risky = |seen: &AgeGroup| seen.taken * f64::from(scans) > seen.exposed;
        // Each but the oldest, which nothing comes after.
        let groups = self.seen.iter().zip(&AGES[1..]);
        groups
            .rev()
            .find(|(seen, _)| risky(seen))
            .map_or(0, |(_, next)| *next)
    }
}

#[cfg(test)]
mod tests {
    use super::Hazard;

    /// Simulates `scans` scans of ten regions. Two of them are free for 12 scans and then in use for as long;
    /// of the others `small` pages are taken at each scan.
    fn swings(hazard: &mut Hazard, scans: u32, small: u32) {
        for scan in 0..scans {
            hazard.fade();
            let age = u8::try_from(scan % 24).unwrap_or(0);
            for _ in 0..2 {
                match age {
                    1..12 => hazard.learn(age, 0),
                    12 => hazard.learn(age, 512),
                    _ => {}
                }
            }
            for _ in 0..8 {
                hazard.learn(u8::try_from(scan).unwrap_or(u8::MAX), small);
            }
        }
    }

    #[test]
    fn a_swing_is_known_from_its_first_time() {
        let mut hazard = Hazard::default();
        assert_eq!(hazard.safe_age(300), 0, "nothing is known");
        swings(&mut hazard, 12, 0);
        assert_eq!(hazard.safe_age(300), 0, "so far nothing was taken");
        swings(&mut hazard, 13, 0);
        assert_eq!(hazard.safe_age(300), 16);
        swings(&mut hazard, 1000, 0);
        assert_eq!(hazard.safe_age(300), 16);
        assert_eq!(
            hazard.safe_age(1),
            0,
            "with rounds so rare it stays for long enough"
        );
    }

    #[test]
    fn small_change_in_old_memory_makes_none_of_it_unsafe() {
        let mut hazard = Hazard::default();
        swings(&mut hazard, 1000, 1);
        assert_eq!(hazard.safe_age(300), 16);
    }

    #[test]
    fn a_swing_that_has_ended_is_forgotten() {
        let mut hazard = Hazard::default();
        swings(&mut hazard, 240, 0);
        for _ in 0..1000 {
            hazard.fade();
            hazard.learn(12, 0);
        }
        assert_eq!(hazard.safe_age(300), 0);
    }

    #[test]
    fn what_is_taken_at_any_age_leaves_only_the_oldest() {
        let mut hazard = Hazard::default();
        for age in 0..=u8::MAX {
            hazard.learn(age, 512);
        }
        assert_eq!(hazard.safe_age(300), 128);
    }
}
