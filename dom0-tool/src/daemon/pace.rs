//! Decides how often to run a content round on a guest.
//!
//! A content round hashes every page in use. It costs CPU time in proportion to the guest's size, whether or
//! not it finds anything, and a page that is shared and soon written costs a fault and a copy. If the last
//! content round gave little, or the guest has since taken back more than it gave, the number of rounds until
//! the next one doubles. Otherwise it is halved.

/// A content round found little if it gave back less than this part (one in so many) of the pages it hashed.
const LITTLE: u64 = 1000;
/// Most rounds between two content rounds: half an hour at a round a minute.
const MOST_ROUNDS: u32 = 31;

/// The pace of one guest's content stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Rounds between two content rounds.
    rounds: u32,
    /// Rounds until the next content round.
    left: u32,
    /// Figures of the content round under way.
    now: ContentRound,
    /// Pages that the last content round gave back.
    gave: u64,
    /// The hypervisor's count of pages taken off shared frames, at the end of the last content round.
    taken: u64,
}

/// Figures of a content round, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRound {
    /// Pages given back: put on a zero frame, or on the frame of another page.
    pub gave: u64,
    /// Hashed.
    pub hashed: u64,
    /// Of those, pages with another hash than last time, or hashed for the first time. They cannot be shared
    /// yet.
    pub changed: u64,
}

impl Pace {
    /// Records a round that gave free pages back, and returns whether a content round is due now.
    pub const fn is_due(&mut self) -> bool {
        let due = self.left == 0;
        self.left = self.left.saturating_sub(1);
        due
    }

    /// Records that a content round begins.
    pub fn begin(&mut self) {
        self.now = ContentRound::default();
    }

    /// Adds the figures of a part of the content round.
    pub const fn add(&mut self, part: ContentRound) {
        self.now.gave += part.gave;
        self.now.hashed += part.hashed;
        self.now.changed += part.changed;
    }

    /// Ends the content round. `taken` is the number of pages that the guest has taken off shared frames so
    /// far.
    pub fn end(&mut self, taken: u64) {
        let ContentRound {
            gave,
            hashed,
            changed,
        } = self.now;
        let taken_since = taken.saturating_sub(self.taken);
        // If most pages were hashed for the first time, the round says nothing of what there is to find.
        let found_little = gave < hashed / LITTLE && changed < hashed / 2;
        self.rounds = if taken_since > self.gave || found_little {
            (self.rounds * 2 + 1).min(MOST_ROUNDS)
        } else {
            self.rounds / 2
        };
        self.left = self.rounds;
        self.gave = gave;
        self.taken = taken;
    }

    /// Returns the number of rounds between two content rounds.
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::{ContentRound, MOST_ROUNDS, Pace};

    fn content_round(pace: &mut Pace, gave: u64, changed: u64, taken: u64) {
        pace.begin();
        // In two parts, as a large guest's.
        for share in [gave / 2, gave - gave / 2] {
            pace.add(ContentRound {
                gave: share,
                hashed: 50_000,
                changed: changed / 2,
            });
        }
        pace.end(taken);
    }

    /// Rounds until the next look, that one included.
    fn until_due(pace: &mut Pace) -> u32 {
        (1..100).find(|_| pace.is_due()).unwrap_or(0)
    }

    #[test]
    fn the_first_looks_follow_at_once() {
        let mut pace = Pace::default();
        assert_eq!(until_due(&mut pace), 1);
        content_round(&mut pace, 0, 100_000, 0);
        assert_eq!(
            until_due(&mut pace),
            1,
            "what is met for the first time cannot be shared"
        );
        content_round(&mut pace, 20_000, 500, 0);
        assert_eq!(until_due(&mut pace), 1);
    }

    #[test]
    fn looks_that_find_nothing_become_rare_and_return_when_there_is_something() {
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            content_round(&mut pace, 50, 500, 0);
            waits.push(until_due(&mut pace));
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(pace.rounds(), MOST_ROUNDS);
        content_round(&mut pace, 20_000, 500, 0);
        assert_eq!(until_due(&mut pace), 16);
    }

    #[test]
    fn a_guest_that_takes_back_more_than_was_given_is_left_alone_for_longer() {
        let mut pace = Pace::default();
        content_round(&mut pace, 1_000, 500, 0);
        content_round(&mut pace, 1_000, 500, 1_000);
        assert_eq!(pace.rounds(), 0, "as much as was given");
        content_round(&mut pace, 1_000, 500, 2_001);
        assert_eq!(pace.rounds(), 1, "more");
    }
}
