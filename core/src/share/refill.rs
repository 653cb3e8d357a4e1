//! When a guest that writes to zero frames gets a whole 2 MiB block back by one fault, not a page.
//!
//! A fault a page is dear for a guest that takes much memory, and each first fault breaks a 2 MiB entry into
//! 4 KiB ones. A kernel that allocates much splits one free block after the other and uses each up (Linux:
//! `expand()` and `rmqueue_bulk()` in `mm/page_alloc.c`; a huge page it even clears from end to end), so its
//! faults run through 2 MiB blocks. Where they have run through one, the next blocks that it enters and that
//! are wholly on zero frames are given back whole: as many as the evidence is worth, twice as many after each
//! block that was run through again, up to 8 of them. A block that is entered and left after a few pages ends
//! that. So a guest is never given much more memory than it has shown by faults to want, and what it does not
//! use of it is found free by the next scan.

/// Pages of a block that the guest must have taken by faults for it to have run through it: three quarters of
/// 512.
const THROUGH: u32 = 384;
/// Most blocks given back whole between two that are run through by faults: 16 MiB.
const MOST_CREDIT: u32 = 8;
/// Blocks whose faults are followed at a time: virtual CPUs and kinds of memory take from blocks of their
/// own.
const FOLLOWED: usize = 4;

/// A block that the guest has begun to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Run {
    /// Its number: the frame number divided by 512.
    block: u64,
    /// Faults in it, the first included; 0 where nothing is followed.
    faults: u32,
    pad: u32,
}

/// What is known of a guest's faults. All zero to begin with; 80 bytes, of which Xen keeps one set for each
/// domain under its p2m lock (`struct lacuna_refill` in `xen/arch/x86/include/asm/lacuna.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Refill {
    runs: [Run; FOLLOWED],
    /// Which of `runs` is forgotten next.
    next: u32,
    /// Blocks granted for the last block that was run through.
    granted: u32,
    /// Blocks that may be given back whole.
    credit: u32,
    pad: u32,
}

static_assertions::const_assert_eq!(size_of::<Refill>(), 80);

impl Refill {
    /// Whether the guest, which writes to a block wholly on zero frames, should get all of it.
    pub const fn wants_block(&self) -> bool {
        self.credit > 0
    }

    /// It got all of the block.
    pub const fn block_given(&mut self) {
        self.credit = self.credit.saturating_sub(1);
    }

    /// It got one page of `block`. `first`: the block was wholly on zero frames until now, in one entry of 2
    /// MiB.
    pub fn page_given(&mut self, block: u64, first: bool) {
        if first {
            self.follow(block);
            return;
        }
        let followed = |run: &&mut Run| run.faults > 0 && run.block == block;
        if let Some(run) = self.runs.iter_mut().find(followed) {
            run.faults = run.faults.saturating_add(1);
            if run.faults == THROUGH {
                self.granted = self.granted.saturating_mul(2).clamp(1, MOST_CREDIT);
                self.credit = self.granted;
            }
        }
    }

    /// Follows `block` from its first fault on, and forgets another one.
    fn follow(&mut self, block: u64) {
        let begun = Run {
            block,
            faults: 1,
            pad: 0,
        };
        let slot = self.next as usize % FOLLOWED;
        self.next = self.next.wrapping_add(1);
        if let Some(run) = self.runs.get_mut(slot) {
            let forgotten = core::mem::replace(run, begun);
            if (1..THROUGH).contains(&forgotten.faults) {
                // Left half way: the guest does not use up what it enters.
                self.granted = 0;
                self.credit = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of a block.
    const PAGES: u32 = 512;

    /// The guest takes `pages` of `block`, from its first one on. Returns the faults that took.
    fn take(refill: &mut Refill, block: u64, pages: u32) -> u32 {
        if pages == 0 {
            return 0;
        }
        if refill.wants_block() {
            refill.block_given();
            return 1;
        }
        for page in 0..pages {
            refill.page_given(block, page == 0);
        }
        pages
    }

    #[test]
    fn a_guest_that_runs_through_blocks_gets_more_and_more_of_them_whole() {
        let mut refill = Refill::default();
        let faults: std::vec::Vec<_> = (0..40).map(|block| take(&mut refill, block, PAGES)).collect();
        let mut expected = std::vec::Vec::new();
        for whole in [1, 2, 4, 8, 8, 8] {
            expected.push(PAGES);
            expected.extend(std::iter::repeat_n(1, whole));
        }
        expected.truncate(40);
        expected.resize(40, 1);
        assert_eq!(faults[..37], expected[..37]);
        let all: u32 = faults.iter().sum();
        assert!(all < 40 * PAGES / 5, "{all} faults for 40 blocks");
    }

    #[test]
    fn blocks_left_half_way_end_it() {
        let mut refill = Refill::default();
        take(&mut refill, 0, PAGES);
        take(&mut refill, 1, PAGES);
        take(&mut refill, 2, PAGES);
        assert!(refill.wants_block(), "two granted, none used yet");
        refill.block_given();
        refill.block_given();
        // Each is entered and left; as the first of them is forgotten, so is what was granted.
        for block in 10..10 + 2 * FOLLOWED as u64 {
            assert_eq!(take(&mut refill, block, 9), 9);
        }
        assert_eq!(take(&mut refill, 40, PAGES), PAGES);
        assert_eq!(refill.credit, 1, "it begins anew");
    }

    #[test]
    fn single_pages_here_and_there_earn_nothing() {
        let mut refill = Refill::default();
        for fault in 0..100_000_u64 {
            // Blocks which are in part in use: they are in entries of 4 KiB already.
            refill.page_given(fault % 977, false);
            assert!(!refill.wants_block());
        }
        for block in 0..10_000 {
            take(&mut refill, block, THROUGH - 1);
            assert!(!refill.wants_block());
        }
    }

    #[test]
    fn several_cpus_may_run_through_blocks_of_their_own() {
        let mut refill = Refill::default();
        for page in 0..PAGES {
            for cpu in 0..FOLLOWED as u64 {
                refill.page_given(100 * cpu, page == 0);
            }
        }
        assert_eq!(refill.credit, 8, "doubled with each of four");
    }

    #[test]
    fn what_is_never_used_up_is_bounded_by_what_was() {
        // A guest that enters blocks for one page each, but now and then runs through one to earn credit.
        let mut refill = Refill::default();
        let (mut through, mut whole) = (0_u32, 0_u32);
        for block in 0..10_000_u64 {
            let pages = if block % 10 == 0 { PAGES } else { 1 };
            if refill.wants_block() {
                refill.block_given();
                whole += 1;
            } else {
                through += u32::from(take(&mut refill, block, pages) >= THROUGH);
            }
        }
        assert!(whole <= through * MOST_CREDIT, "{whole} for {through}");
    }
}
