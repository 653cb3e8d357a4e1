//! Decides how much free memory to leave to a guest: what it may need before the next round.

use super::Observed;

/// The least that is left to a guest, as a part of its memory: a sixty-fourth.
const LEAST_PART: u64 = 64;
/// The most that is left to a guest for its demand, as a part of its memory.
const MOST_PART: u64 = 4;
/// The part of the observed demand that is added to it, because the next demand may be larger.
const MARGIN_PART: u64 = 4;
/// The demand that is remembered fades by this part with each round: after eight a third is left.
const FADE_PART: u64 = 8;

/// The demand of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headroom {
    /// Most pages taken between two scans, fading.
    demand: u64,
}

impl Headroom {
    /// Learns from two observations, one after the other.
    pub fn learn(&mut self, last: &Observed, now: &Observed) {
        // What is free by now less what was, and, where the guest took and freed at once, what it took by
        // faults.
        let net = last.free.saturating_sub(now.free);
        let taken = now.unshared.saturating_sub(last.unshared);
        let faded = self.demand - self.demand / FADE_PART;
        self.demand = faded.max(net).max(taken);
    }

    /// Returns the number of free pages to leave to a guest of `total` pages.
    pub const fn pages(&self, total: u64) -> u64 {
        let wanted = self.demand + self.demand / MARGIN_PART;
        let (least, most) = (total / LEAST_PART, total / MOST_PART);
        if wanted < least {
            least
        } else if wanted > most {
            most
        } else {
            wanted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(free: u64, unshared: u64) -> Observed {
        Observed {
            free,
            unshared,
            ..Observed::default()
        }
    }

    #[test]
    fn headroom_follows_demand_and_forgets_slowly() {
        let total = 100_000;
        let mut headroom = Headroom::default();
        assert_eq!(headroom.pages(total), total / LEAST_PART);
        headroom.learn(&observed(50_000, 0), &observed(42_000, 0));
        let after = headroom.pages(total);
        assert!((10_000..=12_000).contains(&after), "{after}");
        for _ in 0..5 {
            headroom.learn(&observed(42_000, 0), &observed(42_000, 0));
        }
        let later = headroom.pages(total);
        assert!(later > after / 3 && later < after * 2 / 3, "{later} of {after}");
    }

    #[test]
    fn faults_are_demand_too() {
        let mut headroom = Headroom::default();
        headroom.learn(&observed(50_000, 100), &observed(50_000, 8_100));
        assert!(headroom.pages(100_000) >= 10_000);
    }

    #[test]
    fn demand_keeps_no_more_than_a_quarter() {
        let mut headroom = Headroom::default();
        headroom.learn(&observed(90_000, 0), &observed(0, 0));
        assert_eq!(headroom.pages(100_000), 25_000);
    }
}
