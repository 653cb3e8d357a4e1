//! What the daemon knows of one guest.

use std::collections::VecDeque;
use std::time::Duration;

use crate::daemon::backoff::Backoff;
use crate::daemon::config::{Config, Treatment};
use crate::daemon::pace::Pace;
use crate::failure::{Cause, Failure};
use crate::ops::host::GuestState;
use crate::policy::Policy;

/// What is to be done next for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Ask for its state, and do what that calls for.
    CheckState,
    /// Scan, from this frame on.
    Scan(u64),
    /// Share what is left of the round's plan.
    Share,
    /// Share pages in use that hold the same bytes, from this frame on.
    Content(u64),
}

/// Frames to be shared, and how many pages of them at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Runs of frames: the first one, and one past the last, `None` for all that follow.
    pub runs: VecDeque<(u64, Option<u64>)>,
    /// Pages that may still be put on zero frames.
    pub allowance: u64,
}

/// Why nothing is done with a guest for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// As one word.
    pub cause: Cause,
    /// What happened.
    pub what: String,
    /// What to do, where there is something to do.
    pub remedy: Option<String>,
}

impl From<Failure> for Exclusion {
    fn from(failure: Failure) -> Self {
        Self {
            cause: failure.cause,
            what: failure.what,
            remedy: failure.remedy,
        }
    }
}

/// What the daemon has done for a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DaemonCounters {
    /// Times its profile was made and admitted.
    pub attached: u64,
    /// Times that failed.
    pub attach_failures: u64,
    /// Rounds completed.
    pub rounds: u64,
    /// Scans that disagreed with the guest's own counters.
    pub disagreements: u64,
    /// Looks at the contents of all its pages, completed.
    pub content_rounds: u64,
    /// CPU time spent on it, hypercalls included.
    pub cpu: Duration,
}

/// A guest, and what the daemon does for it.
#[derive(Clone, Debug)]
pub struct WatchedGuest {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// What the configuration wants done.
    pub treatment: Treatment,
    /// When to work on it next.
    pub due: Duration,
    /// What to do then.
    pub work: Work,
    /// What the round under way is still to share.
    pub plan: Plan,
    /// What is known of how the guest uses its memory.
    pub policy: Policy,
    /// How often it is worth to look at the contents of its pages.
    pub pace: Pace,
    /// Why its pages are not shared by content, if so and once told.
    pub content_trouble: Option<String>,
    /// When the round under way began.
    pub round_began: Duration,
    /// Pages that it has given back so far.
    pub gave: u64,
    /// What the hypervisor said of it last.
    pub state: Option<GuestState>,
    /// Why nothing is done with it, if so.
    pub exclusion: Option<Exclusion>,
    /// When to try again after a failure.
    pub backoff: Backoff,
    /// Disagreeing scans in a row.
    pub disagreeing: u32,
    /// What was done.
    pub counters: DaemonCounters,
}

impl WatchedGuest {
    /// Creates the record of a guest that has just been seen.
    pub fn new(name: Option<String>, config: &Config, now: Duration) -> Self {
        Self {
            treatment: config.treatment(name.as_deref()).clone(),
            name,
            due: now,
            work: Work::CheckState,
            plan: Plan::default(),
            policy: Policy::default(),
            pace: Pace::default(),
            content_trouble: None,
            round_began: now,
            gave: 0,
            state: None,
            exclusion: None,
            backoff: Backoff::new(config.retry_first, config.retry_longest),
            disagreeing: 0,
            counters: DaemonCounters::default(),
        }
    }

    /// Applies another configuration.
    pub fn configure(&mut self, config: &Config, now: Duration) {
        self.backoff = Backoff::new(config.retry_first, config.retry_longest);
        let treatment = config.treatment(self.name.as_deref());
        if *treatment == self.treatment {
            return;
        }
        self.treatment = treatment.clone();
        self.content_trouble = None;
        self.work = Work::CheckState;
        self.due = now;
    }

    /// Begins a round, with a scan.
    pub fn begin_round(&mut self, now: Duration) {
        self.work = Work::Scan(0);
        self.round_began = now;
        self.gave = 0;
    }

    /// Returns whether a scan of it has begun and has not come to its end.
    pub const fn is_within_scan(&self) -> bool {
        matches!(self.work, Work::Scan(from) if from > 0)
    }

    /// Returns the name to show, or nothing.
    pub fn title(&self) -> &str {
        self.name.as_deref().unwrap_or("")
    }

    /// Returns [`GuestState::given_back`] of the last state.
    pub fn given_back(&self) -> u64 {
        self.state.map_or(0, |state| state.given_back())
    }
}
