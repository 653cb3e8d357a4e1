//! Limits how much of a CPU the daemon uses.
//!
//! Credit grows with time and is spent by work, as measured by the process' own CPU clock, in which a
//! hypercall counts as long as it takes. A piece of work begins only while there is credit; it may overdraw,
//! and then nothing begins until the debt has been waited off. So the share holds in the long run whatever a
//! piece costs.

use std::time::Duration;

/// Most credit that can accumulate, as time without work. It lets an idle daemon do a short burst of work.
const BURST: Duration = Duration::from_secs(10);

/// The account.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The share of one CPU, in per cent.
    percent: u32,
    /// Credit, or debt, in nanoseconds of CPU time.
    credit: i128,
    /// When the credit was last brought up to date.
    at: Duration,
}

impl Budget {
    /// Creates a budget of `percent` of one CPU from `now` on, with the credit of a full burst.
    pub fn new(percent: u32, now: Duration) -> Self {
        let mut budget = Self {
            percent,
            credit: 0,
            at: now,
        };
        budget.credit = budget.most();
        budget
    }

    /// Changes the share from `now` on. Credit and debt stay.
    pub fn set_percent(&mut self, percent: u32, now: Duration) {
        self.grow(now);
        self.percent = percent;
        self.credit = self.credit.min(self.most());
    }

    /// Returns how long to wait before work may begin; zero if it may begin now.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.grow(now);
        if self.credit > 0 {
            return Duration::ZERO;
        }
        let debt = 1 - self.credit;
        let nanoseconds = debt * 100 / i128::from(self.percent.max(1)) + 1;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Records that work which took `cost` of CPU time has ended at `now`.
    pub fn spend(&mut self, cost: Duration, now: Duration) {
        self.grow(now);
        self.credit -= i128::try_from(cost.as_nanos()).unwrap_or(i128::MAX / 2);
    }

    fn most(&self) -> i128 {
        share(BURST, self.percent)
    }

    fn grow(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = now.max(self.at);
        self.credit = (self.credit + share(passed, self.percent)).min(self.most());
    }
}

fn share(time: Duration, percent: u32) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 1000) * i128::from(percent) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn in_the_long_run_no_more_than_the_share_is_used() {
        for (percent, cost) in [(5, 30), (5, 7000), (50, 1), (100, 1000), (1, 300)] {
            let mut budget = Budget::new(percent, Duration::ZERO);
            let (mut now, mut used) = (Duration::ZERO, Duration::ZERO);
            while now < Duration::from_secs(200).max(20 * ms(cost)) {
                now += budget.wait(now);
                assert!(budget.wait(now).is_zero(), "waiting was enough");
                now += ms(cost);
                budget.spend(ms(cost), now);
                used += ms(cost);
            }
            let allowed = now.mul_f64(f64::from(percent) / 100.0) + BURST.mul_f64(f64::from(percent) / 100.0);
            assert!(used <= allowed + ms(cost), "{percent} %: {used:?} of {now:?}");
            assert!(
                used + ms(cost) >= allowed.mul_f64(0.9),
                "{percent} %: idle for no reason, {used:?} of {now:?}"
            );
        }
    }

    #[test]
    fn an_idle_daemon_saves_up_one_burst_only() {
        let mut budget = Budget::new(10, Duration::ZERO);
        let later = Duration::from_secs(86_400);
        assert!(budget.wait(later).is_zero());
        budget.spend(ms(1000), later);
        assert!(!budget.wait(later).is_zero(), "a second is 10 % of the burst");
        assert!(budget.wait(later) <= ms(20), "and hardly more than it");
    }

    #[test]
    fn a_clock_that_steps_back_takes_nothing_away() {
        let mut budget = Budget::new(10, Duration::from_secs(5));
        assert!(budget.wait(Duration::from_secs(1)).is_zero());
    }
}
