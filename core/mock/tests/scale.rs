//! The engine's work follows a guest's size: no part of a scan or of a round of shares costs more for a page
//! of a large guest than for one of a small guest.
#![allow(clippy::unwrap_used)]

use lacuna_core::abi::{Op, SCAN_CHANGED, State as ProfileState};
use lacuna_core::{FreeCheck, Gfn, Session, Verdict};
use lacuna_mock::{LargeGuest, State, Work, admit, operate, operate_by};

/// GiB. All of it is counted, none of it timed.
const SIZES: [u64; 4] = [1, 4, 16, 64];
/// A fragmented guest of this size has two million free blocks.
const LARGEST_FRAGMENTED: u64 = 16;

/// The work of a scan, of the slices after it, and of a second round that finds nothing to share.
fn measure(gib: u64, state: State) -> [Work; 3] {
    let mut guest = LargeGuest::new(gib, state);
    let mut session = Session::new();
    let scan = admit(&mut session, &mut guest).unwrap();
    assert_eq!(session.state(), ProfileState::Admitted);
    let share = operate(&mut session, &mut guest, Op::Share).unwrap();
    assert_eq!(guest.zero_gfns(), guest.free_pages(), "{gib} GiB, {state:?}");
    let again = operate(&mut session, &mut guest, Op::Share).unwrap();
    assert_eq!(again.entries, 0);
    [scan, share, again]
}

#[test]
fn work_grows_no_faster_than_memory() {
    for state in State::ALL {
        let sizes = SIZES
            .into_iter()
            .filter(|gib| state != State::Fragmented || *gib <= LARGEST_FRAGMENTED);
        let all: Vec<(u64, [Work; 3])> = sizes.map(|gib| (gib, measure(gib, state))).collect();
        for pair in all.windows(2) {
            let [(small, before), (large, after)] = pair else {
                continue;
            };
            for (name, (before, after)) in ["scan", "share", "again"].iter().zip(before.iter().zip(after)) {
                let times = large / small;
                let figures = |work: &Work| [work.total(), work.pauses, work.checks, work.continuations];
                for (at, (before, after)) in figures(before).iter().zip(figures(after)).enumerate() {
                    // A twentieth more, for what the layout of an aged guest owes to chance; and what a
                    // handful of pages cost, where the work is next to nothing.
                    let most = before * times + before * times / 20 + 64;
                    assert!(
                        after <= most,
                        "{name} of {state:?}, figure {at}: {before} for {small} GiB, {after} for {large}"
                    );
                }
                assert!(
                    after.longest <= before.longest + before.longest / 4 + 64,
                    "{name} of {state:?}: between two looks at interrupts {} for {small} GiB, {} for {large}",
                    before.longest,
                    after.longest
                );
            }
        }
    }
}

/// What is on zero frames is known by a bit a page: a search that finds nothing asks the p2m once for 2 MiB
/// that are free as a whole, and for nothing else.
#[test]
fn a_search_that_finds_nothing_asks_the_p2m_for_no_page() {
    for state in State::ALL {
        let mut guest = LargeGuest::new(1, state);
        let mut session = Session::new();
        admit(&mut session, &mut guest).unwrap();
        operate(&mut session, &mut guest, Op::Share).unwrap();
        let again = operate(&mut session, &mut guest, Op::Share).unwrap();
        let regions = guest.pages() / 512;
        assert!(again.lookups <= regions, "{state:?}: {} looks", again.lookups);
        let already = session.statistics(&mut guest).already;
        assert_eq!(already, guest.free_pages(), "{state:?}");
    }
}

/// A scan of changes of a guest that has changed nothing costs a hundredth of one of everything, once what any
/// scan costs (which kernel runs, the kernel's counters) is not most of it: from 4 GiB on where all memory is
/// free, and for the smallest guest otherwise.
#[test]
fn a_scan_of_a_guest_that_changed_nothing_costs_next_to_nothing() {
    for state in [State::Fresh, State::Aged] {
        for gib in SIZES {
            let mut guest = LargeGuest::new(gib, state);
            let mut session = Session::new();
            admit(&mut session, &mut guest).unwrap();
            let everything = operate(&mut session, &mut guest, Op::Scan).unwrap().total();
            let found = session.statistics(&mut guest);
            let changes = |session: &mut Session, guest: &mut LargeGuest| {
                operate_by(session, guest, Op::Scan, SCAN_CHANGED)
                    .unwrap()
                    .total()
            };
            let nothing = changes(&mut session, &mut guest);
            println!("{state:?}, {gib} GiB: {nothing} of {everything}");
            let percent = if (state, gib) == (State::Fresh, 1) { 2 } else { 1 };
            assert!(
                nothing * 100 <= everything * percent,
                "{state:?}, {gib} GiB: {nothing} of {everything}"
            );
            let again = session.statistics(&mut guest);
            assert_eq!(again.scans_partial, 1);
            assert_eq!(
                (again.scan_free, again.scan_in_use),
                (found.scan_free, found.scan_in_use)
            );
            // One descriptor: a stretch of 128 MiB, as its entry has one bit for 2 MiB.
            guest.touch(Gfn::new(guest.pages() / 2));
            let one = changes(&mut session, &mut guest);
            let stretch = everything / (gib * 8) * 2;
            assert!(
                one > nothing && one <= nothing + stretch,
                "{state:?}, {gib} GiB: {one}"
            );
            assert_eq!(changes(&mut session, &mut guest), nothing);
        }
    }
}

#[test]
fn the_tables_follow_the_memory() {
    for state in State::ALL {
        let bytes = [1, 16].map(|gib| {
            let mut guest = LargeGuest::new(gib, state);
            admit(&mut Session::new(), &mut guest).unwrap();
            guest.tables_bytes()
        });
        // Two bits and a half a page: the bitmap, and the nodes by which its pages are found.
        assert!(bytes[1] <= 16 * bytes[0], "{state:?}: {bytes:?}");
        assert!(bytes[1] * 8 <= (16 << 18) * 5 / 2, "{state:?}: {bytes:?}");
    }
}

#[test]
fn what_is_read_of_a_large_guest_is_what_it_says_of_itself() {
    for state in State::ALL {
        let mut guest = LargeGuest::new(1, state);
        let profile = guest.profile();
        let mut check = FreeCheck::new(&profile);
        let mut free = 0;
        for gfn in (0..guest.pages()).map(Gfn::new) {
            let is_free = matches!(check.page(&mut guest, gfn), Verdict::Free { .. });
            assert_eq!(is_free, guest.is_free(gfn), "{state:?}, {gfn:?}");
            free += u64::from(is_free);
        }
        assert_eq!(free, guest.free_pages(), "{state:?}");
        assert!(
            free > guest.pages() / 3 && free < guest.pages(),
            "{state:?}: {free}"
        );
    }
}
