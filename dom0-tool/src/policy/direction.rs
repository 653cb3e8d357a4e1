//! Learns from which end of its memory a guest allocates.
//!
//! Linux hands out its highest zone first and goes to lower ones when that is used up; within a zone the
//! order follows the history of its free lists. So this is learnt from where the regions lie that stop
//! being free, compared with all regions.

use super::regions::Regions;

/// Weight of the past against one scan in which something was taken.
const MEMORY: f64 = 0.75;
/// A direction with a smaller absolute value is ignored.
const LEAST_LEAN: f64 = 0.1;

/// A running estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Direction {
    /// Where memory is taken: -1 for the lowest frames, 1 for the highest, 0 for everywhere or unknown.
    lean: f64,
}

impl Direction {
    /// Learns from the regions `taken` since the scan before, out of `count`.
    #[allow(clippy::cast_precision_loss)] // region numbers are below 2^33
    pub fn learn(&mut self, taken: &[usize], count: usize) {
        if taken.is_empty() || count < 2 {
            return;
        }
        let middle = (count - 1) as f64 / 2.0;
        let mean = taken.iter().map(|index| *index as f64).sum::<f64>() / taken.len() as f64;
        self.lean = self.lean * MEMORY + (mean - middle) / middle * (1.0 - MEMORY);
    }

    /// Sorts `ripe` regions (which come lowest first): those that are given back already last, for little is
    /// left in them; then the oldest first, and of equally old ones those first that lie away from where the
    /// guest allocates.
    pub fn sort(&self, ripe: &mut [usize], regions: &Regions) {
        if self.lean < -LEAST_LEAN {
            ripe.reverse();
        }
        // Stable: what the direction has ordered stays so among equals.
        ripe.sort_by_key(|index| {
            (
                regions.is_given_back(*index),
                std::cmp::Reverse(regions.age(*index)),
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Run;
    use crate::policy::hazard::Hazard;

    fn sorted(taken: &[usize]) -> Vec<usize> {
        let mut regions = Regions::default();
        regions.learn(&vec![0xff; 64 * 10], 0, &mut Hazard::default());
        let mut direction = Direction::default();
        for _ in 0..5 {
            direction.learn(taken, 10);
        }
        let mut ripe = vec![2, 5, 7];
        direction.sort(&mut ripe, &regions);
        ripe
    }

    #[test]
    fn what_lies_away_from_the_allocations_goes_first() {
        assert_eq!(sorted(&[8, 9]), [2, 5, 7]);
        assert_eq!(sorted(&[0, 1]), [7, 5, 2]);
        assert_eq!(sorted(&[]), [2, 5, 7]);
    }

    #[test]
    fn the_oldest_goes_before_all() {
        let mut regions = Regions::default();
        let mut bits = vec![0xff; 64 * 3];
        bits[..64].fill(0);
        regions.learn(&bits, 0, &mut Hazard::default());
        bits.fill(0xff);
        regions.learn(&bits, 0, &mut Hazard::default());
        let mut ripe = vec![0, 1, 2];
        Direction::default().sort(&mut ripe, &regions);
        assert_eq!(ripe, [1, 2, 0]);
        regions.gave_back(Run { from: 512, to: 1024 });
        Direction::default().sort(&mut ripe, &regions);
        assert_eq!(ripe, [2, 0, 1], "what is given back already comes last");
    }
}
