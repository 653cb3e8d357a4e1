//! How often it is worth to look at the contents of all of a guest's pages.
//!
//! A look hashes every page that is in use, so it costs CPU time by the size of the guest, whether or not it
//! finds anything; and a page that is shared and soon written costs a fault and a copy. Where the last look
//! gave little, or the guest has taken back more since than it gave, twice as many rounds go by before the
//! next one; where it paid, half as many.

/// A look that gives back less than this part of the pages it hashed found nothing to speak of.
const LITTLE: u64 = 1000;
/// Most rounds that go by without a look: half an hour at a round a minute.
const MOST_ROUNDS: u32 = 31;

/// The pace of one guest's content stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Rounds to go by after each look.
    rounds: u32,
    /// Rounds still to go by.
    left: u32,
    /// What the look under way has come to.
    now: Look,
    /// Pages that the look before gave back.
    gave: u64,
    /// The hypervisor's count of pages taken off shared frames, at the end of the look before.
    taken: u64,
}

/// What a look at all pages came to, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Shared, with a zero frame or another page.
    pub gave: u64,
    /// Hashed.
    pub hashed: u64,
    /// Of those, not as in the last look, or met for the first time: these cannot be shared yet.
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
        self.now = Look::default();
    }

    /// Adds the figures of a part of the content round.
    pub const fn add(&mut self, part: Look) {
        self.now.gave += part.gave;
        self.now.hashed += part.hashed;
        self.now.changed += part.changed;
    }

    /// The look has ended. The guest has taken `taken` pages off shared frames so far.
    pub fn end(&mut self, taken: u64) {
        let Look {
            gave,
            hashed,
            changed,
        } = self.now;
        let taken_since = taken.saturating_sub(self.taken);
        // A look that mostly meets pages for the first time says nothing of what there is to find.
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

    /// Rounds that go by between two looks.
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::{Look, MOST_ROUNDS, Pace};

    fn look(pace: &mut Pace, gave: u64, changed: u64, taken: u64) {
        pace.begin();
        // In two parts, as a large guest's.
        for share in [gave / 2, gave - gave / 2] {
            pace.add(Look {
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
        look(&mut pace, 0, 100_000, 0);
        assert_eq!(
            until_due(&mut pace),
            1,
            "what is met for the first time cannot be shared"
        );
        look(&mut pace, 20_000, 500, 0);
        assert_eq!(until_due(&mut pace), 1);
    }

    #[test]
    fn looks_that_find_nothing_become_rare_and_return_when_there_is_something() {
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            look(&mut pace, 50, 500, 0);
            waits.push(until_due(&mut pace));
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(pace.rounds(), MOST_ROUNDS);
        look(&mut pace, 20_000, 500, 0);
        assert_eq!(until_due(&mut pace), 16);
    }

    #[test]
    fn a_guest_that_takes_back_more_than_was_given_is_left_alone_for_longer() {
        let mut pace = Pace::default();
        look(&mut pace, 1_000, 500, 0);
        look(&mut pace, 1_000, 500, 1_000);
        assert_eq!(pace.rounds(), 0, "as much as was given");
        look(&mut pace, 1_000, 500, 2_001);
        assert_eq!(pace.rounds(), 1, "more");
    }
}
