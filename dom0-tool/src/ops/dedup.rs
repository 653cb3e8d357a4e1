//! Gives a guest's pages back to the host: rounds of the free stage, the content stage, or both.

use std::thread;
use std::time::Duration;

use lacuna_core::abi::Statistics;

use super::Observer;
use super::guest::Live;
use super::scan::until_admitted;
use crate::failure::Failure;
use crate::progress::Step;
use crate::xen::engine::{ContentFigures, ScanFigures, ScanOf, ShareFigures};

/// Most rounds for a guest that never becomes stable.
const MOST_ROUNDS: u64 = 50;
/// The guest is stable if a round gives back less than this part (one in so many) of what is free or was
/// looked at.
const STABLE_PART: u64 = 1000;
/// Rounds that the content stage takes by default. The first one learns which pages do not change.
const CONTENT_ROUNDS: u64 = 2;
/// Most rounds in the report: the last ones, since there may be any number.
const KEPT_ROUNDS: usize = 1024;

/// What to look for; the names are the paper's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Pages that the guest's kernel holds free.
    #[default]
    Intro,
    /// Pages that are zero or equal.
    Dedup,
    /// Free pages first, then equal ones among the rest.
    IntroDedup,
}

impl Mode {
    /// Returns whether free pages are looked for.
    pub const fn has_intro(self) -> bool {
        matches!(self, Self::Intro | Self::IntroDedup)
    }

    /// Returns whether equal pages are looked for.
    pub const fn has_content(self) -> bool {
        matches!(self, Self::Dedup | Self::IntroDedup)
    }

    /// Returns the name of the mode.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intro => "intro",
            Self::Dedup => "dedup",
            Self::IntroDedup => "introdedup",
        }
    }
}

/// For how long to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After as many rounds as the mode needs.
    Usual,
    /// After so many rounds; 0 for never.
    Rounds(u64),
    /// When a round gives back next to nothing, or after 50 rounds.
    Stable,
}

/// How to give back.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What to look for.
    pub mode: Mode,
    /// For how long to go on.
    pub until: Until,
    /// Time between two rounds.
    pub interval: Duration,
}

/// Figures of one round, or of all rounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// The scan.
    pub scanned: ScanFigures,
    /// Free pages.
    pub shared: ShareFigures,
    /// Equal pages.
    pub contents: ContentFigures,
    /// Pages on zero frames after it.
    pub zero_gfns: u64,
    /// Pages on frames shared by content after it.
    pub content_gfns: u64,
}

impl Round {
    fn add(&mut self, other: &Self) {
        self.shared += other.shared;
        self.contents += other.contents;
    }

    /// Returns the number of pages given back.
    pub const fn given_back(&self) -> u64 {
        self.shared.pages + self.contents.zeroed + self.contents.merged
    }

    const fn is_stable(&self) -> bool {
        self.given_back() <= (self.scanned.free + self.contents.hashed) / STABLE_PART
    }
}

/// What was given back.
#[derive(Clone, Debug)]
pub struct DedupReport {
    /// In all.
    pub total: Round,
    /// Whether the guest was stable in the last round.
    pub is_stable: bool,
    /// The last rounds.
    pub rounds: Vec<Round>,
    /// The engine's counters before.
    pub before: Statistics,
    /// The engine's counters after.
    pub after: Statistics,
}

/// Gives pages back, round by round.
///
/// # Errors
/// The engine's refusal. What earlier rounds gave back stays given back.
pub fn dedup<O: Observer + ?Sized>(
    live: &Live,
    options: &Options,
    observer: &mut O,
) -> Result<DedupReport, Failure> {
    let mode = options.mode;
    let most = match options.until {
        Until::Stable => MOST_ROUNDS,
        Until::Rounds(0) => u64::MAX,
        Until::Rounds(rounds) => rounds,
        Until::Usual if mode.has_content() => CONTENT_ROUNDS,
        Until::Usual => 1,
    };
    let before = live.engine.statistics()?;
    let mut rounds = Vec::new();
    let mut total = Round::default();
    let mut is_stable = false;
    for number in 1..=most {
        if number > 1 {
            thread::sleep(options.interval);
        }
        observer.begin(Step::Round(number));
        let round = one_round(live, mode);
        observer.end();
        let round = round?;
        total.add(&round);
        observer.round_done(number, &round);
        if rounds.len() == KEPT_ROUNDS {
            rounds.remove(0);
        }
        rounds.push(round);
        // The content stage shares in the next round what it sees for the first time in this one.
        is_stable = round.is_stable() && (!mode.has_content() || number >= CONTENT_ROUNDS);
        if options.until == Until::Stable && is_stable {
            break;
        }
    }
    Ok(DedupReport {
        total,
        is_stable,
        rounds,
        before,
        after: live.engine.statistics()?,
    })
}

fn one_round(live: &Live, mode: Mode) -> Result<Round, Failure> {
    let mut round = Round::default();
    if mode.has_intro() {
        round.scanned = until_admitted(|| Ok(live.engine.scan(ScanOf::Changes)?))?;
        round.shared = live.engine.share()?;
    }
    if mode.has_content() {
        round.contents = live.engine.content(mode.has_intro())?;
    }
    let now = live.engine.statistics()?;
    (round.zero_gfns, round.content_gfns) = (now.zero_gfns, now.content_gfns);
    Ok(round)
}
