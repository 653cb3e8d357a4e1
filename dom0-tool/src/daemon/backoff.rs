//! Decides when to try again after a failure.

use std::time::Duration;

/// Delays that double from a first to a longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Creates delays of `first`, twice that, and so on, never more than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// Counts a failure and returns how long to wait after it.
    pub fn failed(&mut self) -> Duration {
        let factor = 2_u32.saturating_pow(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Returns the number of failures since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Records a success: the delay after the next failure is the first one again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;
    use std::time::Duration;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(5), seconds(60));
        for expected in [5, 10, 20, 40, 60, 60] {
            assert_eq!(backoff.failed(), seconds(expected));
        }
        for _ in 0..100 {
            assert_eq!(backoff.failed(), seconds(60), "without overflow");
        }
        backoff.succeeded();
        assert_eq!((backoff.failures(), backoff.failed()), (0, seconds(5)));
    }
}
