//! Compares what giving memory back is worth with what it costs, over all of a guest.
//!
//! A fault costs the guest time. A page is worth something to the host for as long as the host has it. The
//! exchange rate is a choice: a page that the guest takes back within [`WORTH`] was not worth its fault.

use super::{Observed, WORTH};

/// Largest level: waits are 2^6 times as long.
const MOST_LEVEL: u32 = 6;
/// Rounds in a row that have to be worth their cost before waits become shorter again.
const PATIENCE: u32 = 4;

/// How much longer every region has to wait, as a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    level: u32,
    good: u32,
}

impl Pressure {
    /// Learns from two observations.
    pub fn learn(&mut self, last: &Observed, now: &Observed) {
        let interval = now.at.saturating_sub(last.at);
        let faults = u128::from(now.faults.saturating_sub(last.faults));
        let cost = faults * WORTH.as_millis();
        // A lower bound: the pages that were given back both before and after, for the whole interval.
        let worth = u128::from(last.given_back.min(now.given_back)) * interval.as_millis();
        if cost > worth {
            // Ignore a few faults: they are no reason to give back less for an hour.
            if faults > u128::from(last.given_back / 1024) {
                self.level = (self.level + 1).min(MOST_LEVEL);
            }
            self.good = 0;
        } else if self.level > 0 {
            self.good += 1;
            if self.good >= PATIENCE {
                self.level -= 1;
                self.good = 0;
            }
        }
    }

    /// Returns the level: waits are 2^level times as long.
    pub const fn level(self) -> u32 {
        self.level
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn round(pressure: &mut Pressure, seconds: u64, given_back: u64, faults: u64) -> u32 {
        let last = Observed {
            given_back,
            ..Observed::default()
        };
        let now = Observed {
            at: Duration::from_secs(seconds),
            faults,
            ..last
        };
        pressure.learn(&last, &now);
        pressure.level()
    }

    #[test]
    fn waits_grow_while_faults_cost_more_than_the_memory_was_worth() {
        let mut pressure = Pressure::default();
        assert_eq!(round(&mut pressure, 60, 10_000, 9_000), 0);
        assert_eq!(round(&mut pressure, 60, 10_000, 11_000), 1);
        assert_eq!(
            round(&mut pressure, 6, 10_000, 2_000),
            2,
            "a short interval is worth less"
        );
        for _ in 0..10 {
            round(&mut pressure, 60, 0, 5_000);
        }
        assert_eq!(pressure.level(), MOST_LEVEL);
        for _ in 0..PATIENCE {
            round(&mut pressure, 60, 10_000, 0);
        }
        assert_eq!(pressure.level(), MOST_LEVEL - 1);
    }

    #[test]
    fn a_few_faults_are_no_reason() {
        assert_eq!(round(&mut Pressure::default(), 1, 100_000, 97), 0);
    }
}
