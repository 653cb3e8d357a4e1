//! Whom a scan admits: profiles whose total agrees with the guest's own counters, and nobody else.

use lacuna_core::abi::{Op, Request, State};
use lacuna_core::{Gfn, Session, Status};
use lacuna_mock::{Config, Layout, MockGuest};

use super::{admitted, attached, encoded, request, run, set_profile, status};

#[test]
fn a_scan_of_a_part_admits_nothing() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    for (cursor, end) in [(0, 8191), (1, 0), (4096, 8192)] {
        let request = Request {
            cursor,
            end,
            ..request(Op::Scan)
        };
        assert_eq!(run(&mut session, &mut guest, request).0, Status::Done);
        assert_eq!(session.state(), State::Loaded);
    }
}

#[test]
fn a_scan_begun_under_another_profile_is_not_carried_on() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    let first = Request {
        budget: 50,
        ..request(Op::Scan)
    };
    let (_, rest, _) = run(&mut session, &mut guest, first);
    let bytes = encoded(&guest.profile());
    set_profile(&mut session, &mut guest, &bytes);
    let rest = Request {
        cursor: rest.cursor,
        ..request(Op::Scan)
    };
    assert_eq!(run(&mut session, &mut guest, rest).0, Status::Done);
    assert_eq!(
        session.state(),
        State::Loaded,
        "half a scan under each of two profiles"
    );
}

#[test]
fn a_stopped_guest_has_to_agree_exactly() {
    let mut guest = MockGuest::new(&Config::default());
    guest.set_toolstack_pause(true);
    admitted(&mut guest);
    let free = guest.free_pages();
    let mut session = attached(&mut guest);
    let in_zone = |(head, order): &&(Gfn, u8)| *order == 10 && head.get() < 4096;
    let largest = guest.free_blocks().iter().filter(in_zone).count() as u64;
    guest.corrupt_counter(0, 10, largest + 1);
    let (status, request, _) = run(&mut session, &mut guest, request(Op::Scan));
    assert_eq!(status, Status::CountsDisagree);
    assert!(request.result[0] == free && request.result[1] == request.result[2] && request.result[3] == 0);
    assert_eq!(request.result[1], free + 1024);
    assert_eq!(session.state(), State::Loaded);
}

#[test]
fn a_running_guest_has_some_tolerance_and_no_more() {
    let mut guest = MockGuest::new(&Config::default());
    let real = guest.free_pages();
    for (more, expected) in [
        (0, Status::Done),
        (255, Status::Done),
        (1000, Status::CountsDisagree),
    ] {
        let mut session = attached(&mut guest);
        let singles = guest
            .free_blocks()
            .iter()
            .filter(|(_, order)| *order == 0)
            .count() as u64;
        guest.corrupt_counter(1, 0, singles + more);
        assert_eq!(
            status(&mut session, &mut guest, Op::Scan),
            expected,
            "{more} pages more than {real}"
        );
    }
}

/// A wrong layout in a guest that is nearly out of memory: a fixed tolerance would let it pass.
#[test]
fn a_scan_that_finds_nothing_or_little_admits_nothing() {
    for left in [1_u64, 40, 250] {
        let mut guest = MockGuest::new(&Config::default());
        while guest.free_pages() > left {
            let order = (0..=10_u8)
                .rev()
                .find(|order| guest.free_pages() - left >= 1 << order)
                .unwrap();
            if guest.alloc(0, order).is_none() {
                guest.alloc(0, 0).unwrap();
            }
        }
        // Another kernel's mark: this one's free blocks do not carry it, and some of its used pages do.
        let mut wrong = guest.profile();
        wrong.free.predicate.expected = 0xf100_0000;
        let layout = Layout::modern();
        for used in (600..600 + left / 6).map(Gfn::new) {
            guest.corrupt(used, layout.predicate.field, 0xf100_0000);
            guest.corrupt(used, layout.references, 0);
            guest.corrupt(used, layout.order, 0);
        }
        let mut session = Session::new();
        assert_eq!(
            set_profile(&mut session, &mut guest, &encoded(&wrong)),
            Status::Done
        );
        assert_eq!(
            status(&mut session, &mut guest, Op::Scan),
            Status::CountsDisagree,
            "{left} pages left"
        );
        assert_eq!(session.state(), State::Loaded);
    }
}

#[test]
fn a_profile_that_comes_to_disagree_is_used_no_more() {
    let config = Config::default();
    let mut guest = MockGuest::new(&config);
    let mut session = admitted(&mut guest);
    let (head, _) = guest
        .free_blocks()
        .into_iter()
        .find(|(_, order)| *order == 10)
        .unwrap();
    guest.corrupt(head, config.layout.predicate.field, config.layout.unmarked[0]);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::CountsDisagree);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::NotAdmitted);
    assert_eq!(guest.zero_gfns(), 0);
}

#[test]
fn counters_that_cannot_be_read_are_named() {
    let mut guest = MockGuest::new(&Config::default());
    let mut profile = guest.profile();
    let nowhere = lacuna_core::GuestVirt::new(0xffff_8000_0000_0000);
    profile.zones[1].array = nowhere;
    let mut session = Session::new();
    set_profile(&mut session, &mut guest, &encoded(&profile));
    let (status, request, _) = run(&mut session, &mut guest, request(Op::Scan));
    assert_eq!(status, Status::CountersUnreadable);
    assert_eq!((request.result[0], request.result[1]), (1, nowhere.get() + 56));
}

#[test]
fn a_scan_with_a_gap_admits_nothing() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    let first = Request {
        budget: 50,
        ..request(Op::Scan)
    };
    let (_, stopped, _) = run(&mut session, &mut guest, first);
    // What lies in the gap is in use: the total would come out right.
    let beyond = Request {
        cursor: stopped.cursor + 1,
        ..request(Op::Scan)
    };
    assert_eq!(run(&mut session, &mut guest, beyond).0, Status::Done);
    assert_eq!(session.state(), State::Loaded);
}
