//! The content stage over guests whose duplicates are known: all of them are found and nothing else, what the
//! guest wrote stays, and no single failed call leaves anything half done.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use lacuna_core::abi::{ContentFlags, Op, Request, Statistics};
use lacuna_core::{
    Domain, DomainId, DomainPage, Gfn, MAX_PROFILE_BYTES, MAX_SHARERS, Outcome, PageState, Peers, Session,
    Skip, Status, Steps, merge_protected, share_zero_protected,
};
use lacuna_mock::{Access, Config, MockGuest, Primitive};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One stretch of the stage, over all its continuations.
fn run(session: &mut Session, guest: &mut MockGuest, mut request: Request) -> (Status, Request) {
    request.op = Op::Content as u32;
    for _ in 0..100_000 {
        if session.operate(guest, &mut request, &mut []) == Outcome::Finished {
            return (Status::from_code(request.status).unwrap(), request);
        }
    }
    panic!("the stage never ends");
}

/// The frames from the first of `pages` to the last. The mock kernel's own tables, elsewhere, have duplicates
/// of their own.
fn over(pages: &[Gfn]) -> Request {
    Request {
        cursor: pages.iter().min().unwrap().get(),
        end: pages.iter().max().unwrap().get() + 1,
        ..Request::default()
    }
}

fn round(session: &mut Session, guest: &mut MockGuest, pages: &[Gfn]) -> Request {
    let (status, request) = run(session, guest, over(pages));
    assert_eq!(status, Status::Done);
    guest.audit().unwrap();
    request
}

/// The look at the end of a round.
fn again(session: &mut Session, guest: &mut MockGuest, pages: &[Gfn]) -> Request {
    let asked = Request {
        flags: ContentFlags::AGAIN.bits(),
        ..over(pages)
    };
    let (status, request) = run(session, guest, asked);
    assert_eq!(status, Status::Done);
    guest.audit().unwrap();
    request
}

fn statistics(session: &Session, guest: &mut MockGuest) -> Statistics {
    session.statistics(guest)
}

/// A guest with `pages` allocated pages, and they. Its other pages hold zeros for the most part.
fn guest_with(pages: usize) -> (MockGuest, Vec<Gfn>) {
    let mut guest = MockGuest::new(&Config {
        pages: 4096,
        host_free: 4096,
        ..Config::default()
    });
    let used = (0..pages).map(|_| guest.alloc(0, 0).unwrap()).collect();
    (guest, used)
}

/// Fills `pages` with `kinds` different patterns.
fn fill(guest: &mut MockGuest, pages: &[Gfn], kinds: u64) {
    for (at, gfn) in (0..).zip(pages) {
        assert_eq!(guest.fill(0, *gfn, 1 + at % kinds), Access::Done);
    }
}

#[test]
fn every_duplicate_is_found_in_the_second_round_and_nothing_else() {
    let (mut guest, pages) = guest_with(300);
    fill(&mut guest, &pages[..200], 10);
    fill(&mut guest, &pages[200..], 10_000);
    // The second hundred has patterns of its own, but for the first ten.
    let mut session = Session::new();
    let first = round(&mut session, &mut guest, &pages);
    assert_eq!(first.result[..2], [0, 0], "nothing is shared at first sight");
    let before = guest.host_free();
    let second = round(&mut session, &mut guest, &pages);
    // 210 pages with ten contents: 200 frames less.
    assert_eq!(second.result[1], 200);
    assert_eq!(guest.content_gfns(), 210);
    let s = statistics(&session, &mut guest);
    assert_eq!(guest.host_free() - before, s.content_merged + s.content_zeroed);
    assert_eq!(s.content_gfns, 210);
    guest.verify().unwrap();
    let third = round(&mut session, &mut guest, &pages);
    assert_eq!(third.result[..2], [0, 0], "a third round finds nothing new");
}

#[test]
fn what_stood_still_during_the_first_round_is_shared_at_its_end() {
    let (mut guest, pages) = guest_with(300);
    fill(&mut guest, &pages[..200], 10);
    fill(&mut guest, &pages[200..], 10_000);
    for gfn in &pages[50..60] {
        assert_eq!(guest.fill(0, *gfn, 0), Access::Done);
    }
    let mut session = Session::new();
    let first = round(&mut session, &mut guest, &pages);
    assert_eq!(first.result, [0, 0, 300, 300]);
    // Two of them do not stand still.
    assert_eq!(guest.fill(0, pages[17], 5000), Access::Done);
    assert_eq!(guest.fill(0, pages[55], 5001), Access::Done);
    let second = again(&mut session, &mut guest, &pages);
    // Ten contents, ten of whose pages are among the last hundred. Pages like no other are not looked at.
    assert_eq!(second.result, [9, 189, 200, 2]);
    assert_eq!((guest.content_gfns(), guest.zero_gfns()), (199, 9));
    guest.verify().unwrap();
    let third = again(&mut session, &mut guest, &pages);
    assert_eq!(third.result, [0; 4], "nothing is marked any more");
    assert_eq!(round(&mut session, &mut guest, &pages).result[..2], [0, 0]);
}

#[test]
fn a_page_that_was_another_in_the_last_round_is_not_looked_at_again() {
    let (mut guest, pages) = guest_with(40);
    let mut session = Session::new();
    // Like no other at first.
    fill(&mut guest, &pages, 40);
    round(&mut session, &mut guest, &pages);
    for pattern in 100..104 {
        for gfn in &pages {
            guest.fill(0, *gfn, pattern);
        }
        round(&mut session, &mut guest, &pages);
        assert_eq!(again(&mut session, &mut guest, &pages).result, [0; 4]);
    }
    assert_eq!(guest.content_gfns(), 0);
}

/// A round from frame 0 on in which pages rest.
fn resting_round(session: &mut Session, guest: &mut MockGuest) -> Request {
    let asked = Request {
        flags: ContentFlags::REST.bits(),
        ..Request::default()
    };
    let (status, request) = run(session, guest, asked);
    assert_eq!(status, Status::Done);
    guest.audit().unwrap();
    request
}

/// A round that finds nothing new hashes an eighth of the pages in the end; newcomers find those that rest;
/// and what has changed among these is noticed within eight rounds, and shared in the one after.
#[test]
fn pages_that_stand_still_rest_and_are_found_all_the_same() {
    let (mut guest, pages) = guest_with(800);
    fill(&mut guest, &pages, 800);
    let mut session = Session::new();
    let hashed: Vec<u64> = (0..30)
        .map(|_| resting_round(&mut session, &mut guest).result[2])
        .collect();
    // In the first two there are pages of zeros.
    let (all, last) = (hashed[2], *hashed.last().unwrap());
    assert!(all >= 800 && last <= all / 6, "{hashed:?}");
    // As one of those that rest.
    let newcomer = guest.alloc(0, 0).unwrap();
    assert_eq!(guest.fill(0, newcomer, 1 + 500), Access::Done);
    let merged = |session: &mut Session, guest: &mut MockGuest, rounds: u32| -> u64 {
        (0..rounds).map(|_| resting_round(session, guest).result[1]).sum()
    };
    assert_eq!(merged(&mut session, &mut guest, 9), 1);
    assert_eq!(guest.page_state(newcomer), PageState::Shared);
    // Two of those that rest become alike.
    for page in [3, 700] {
        assert_eq!(guest.fill(0, pages[page], 9000), Access::Done);
    }
    assert_eq!(merged(&mut session, &mut guest, 10), 1);
    assert_eq!(guest.page_state(pages[3]), PageState::Shared);
    guest.verify().unwrap();
    // A round in which nothing rests looks at all of them.
    let rest = round(&mut session, &mut guest, &pages).result[2];
    assert_eq!(rest, 800 - 3);
}

#[test]
fn the_look_at_the_end_can_be_taken_in_parts() {
    let (mut guest, pages) = guest_with(100);
    fill(&mut guest, &pages, 1);
    let mut session = Session::new();
    round(&mut session, &mut guest, &pages);
    let (mut asked, mut parts, mut merged) = (over(&pages), 0, 0);
    let end = asked.end;
    while asked.cursor < end {
        (asked.flags, asked.budget, asked.result) = (ContentFlags::AGAIN.bits(), 10, [0; 4]);
        let (status, answer) = run(&mut session, &mut guest, asked);
        assert_eq!(status, Status::Done);
        assert!(
            answer.result[2] <= 10 && answer.cursor > asked.cursor,
            "{answer:?}"
        );
        (asked, parts, merged) = (answer, parts + 1, merged + answer.result[1]);
    }
    assert!((10..=20).contains(&parts), "{parts} parts");
    assert_eq!(merged, 99);
    guest.audit().unwrap();
    guest.verify().unwrap();
}

#[test]
fn zero_pages_go_onto_zero_frames_not_onto_one_another() {
    let (mut guest, pages) = guest_with(20);
    for gfn in &pages {
        assert_eq!(guest.fill(0, *gfn, 0), Access::Done);
    }
    let mut session = Session::new();
    round(&mut session, &mut guest, &pages);
    let second = round(&mut session, &mut guest, &pages);
    assert!(second.result[0] >= 20);
    assert_eq!(second.result[1], 0);
    assert_eq!(guest.zero_gfns(), second.result[0]);
    assert_eq!(guest.content_gfns(), 0);
    guest.verify().unwrap();
}

#[test]
fn a_page_that_changes_between_rounds_is_left_alone() {
    let (mut guest, pages) = guest_with(40);
    let mut session = Session::new();
    for pattern in 1..6 {
        for gfn in &pages {
            guest.fill(0, *gfn, pattern);
        }
        let request = round(&mut session, &mut guest, &pages);
        assert_eq!(request.result[1], 0);
    }
    assert_eq!(guest.content_gfns(), 0);
    assert_eq!(round(&mut session, &mut guest, &pages).result[1], 39);
}

#[test]
fn every_page_reads_as_written_after_each_is_written_again() {
    let (mut guest, pages) = guest_with(200);
    guest.set_neighbour(true);
    fill(&mut guest, &pages, 4);
    let mut session = Session::new();
    round(&mut session, &mut guest, &pages);
    // The neighbour took what was free: the copies need memory.
    guest.set_neighbour(false);
    round(&mut session, &mut guest, &pages);
    assert_eq!(guest.content_gfns(), 200);
    for (at, gfn) in (0..).zip(&pages) {
        assert_eq!(guest.stamp(1, *gfn, 0xabc0 + at), Access::Done);
        guest.verify().unwrap();
    }
    guest.audit().unwrap();
    assert_eq!(guest.content_gfns(), 0);
    assert_eq!(statistics(&session, &mut guest).content_unshared, 200);
}

#[test]
fn a_frame_has_no_more_sharers_than_the_cap() {
    let count = MAX_SHARERS as usize * 2 + 50;
    let (mut guest, pages) = guest_with(count);
    fill(&mut guest, &pages, 1);
    let mut session = Session::new();
    for _ in 0..3 {
        round(&mut session, &mut guest, &pages);
    }
    // Three frames for them.
    assert_eq!(guest.content_gfns(), count as u64);
    let s = statistics(&session, &mut guest);
    assert_eq!(s.content_merged, count as u64 - 3);
    assert_eq!(s.content_full, 2);
    guest.verify().unwrap();
}

#[test]
fn pages_found_free_are_left_to_the_free_stage_on_demand() {
    let (mut guest, pages) = guest_with(10);
    fill(&mut guest, &pages, 1);
    let mut session = Session::new();
    let mut room = [0; MAX_PROFILE_BYTES];
    let length = guest.profile().encode(&mut room).unwrap().len();
    for (op, bytes) in [(Op::SetProfile, length), (Op::Scan, 0)] {
        let mut request = Request {
            op: op as u32,
            ..Request::default()
        };
        while session.operate(&mut guest, &mut request, &mut room[..bytes]) == Outcome::Again {}
        assert_eq!(request.status, 0);
    }
    for _ in 0..2 {
        let request = Request {
            flags: ContentFlags::LEAVE_FREE.bits(),
            ..Request::default()
        };
        assert_eq!(run(&mut session, &mut guest, request).0, Status::Done);
    }
    guest.audit().unwrap();
    let looked_at = statistics(&session, &mut guest).content_pages;
    assert_eq!(looked_at, 2 * (4096 - guest.free_pages()));
    assert!(
        (0..4096).all(|gfn| !guest.is_free(Gfn::new(gfn)) || guest.gfn_info(Gfn::new(gfn)).zero_frame == 0)
    );
    assert!(
        pages
            .iter()
            .all(|gfn| guest.page_state(*gfn) == PageState::Shared)
    );
}

#[test]
fn budget_and_range_hold() {
    let (mut guest, _) = guest_with(100);
    let mut session = Session::new();
    let asked = Request {
        cursor: 100,
        end: 1000,
        budget: 37,
        ..Request::default()
    };
    let (status, request) = run(&mut session, &mut guest, asked);
    assert_eq!((status, request.cursor, request.budget), (Status::Done, 137, 0));
    assert_eq!(statistics(&session, &mut guest).content_pages, 37);
    let (status, request) = run(
        &mut session,
        &mut guest,
        Request {
            end: 5000,
            ..Request::default()
        },
    );
    assert_eq!((status, request.result[0]), (Status::OutOfRange, 5000));
    let (status, _) = run(
        &mut session,
        &mut guest,
        Request {
            flags: 8,
            ..Request::default()
        },
    );
    assert_eq!(status, Status::BadRequest);
}

#[test]
fn a_held_page_is_left_alone() {
    let (mut guest, pages) = guest_with(2);
    fill(&mut guest, &pages, 1);
    guest.hold(pages[1]);
    let mut session = Session::new();
    for _ in 0..3 {
        round(&mut session, &mut guest, &pages);
    }
    assert_eq!(guest.content_gfns(), 0);
    assert_eq!(statistics(&session, &mut guest).content_held, 2);
    guest.unhold(pages[1]);
    round(&mut session, &mut guest, &pages);
    assert_eq!(guest.content_gfns(), 2);
}

#[test]
fn a_stranger_is_no_partner() {
    let (mut guest, pages) = guest_with(1);
    fill(&mut guest, &pages, 1);
    let stranger = DomainPage {
        domain: DomainId::new(9),
        gfn: pages[0],
    };
    assert!(!guest.equal(pages[0], stranger));
    assert_eq!(
        merge_protected(&mut guest, pages[0], stranger, 8, Steps::default()),
        Err(Skip::NoPartner)
    );
    guest.audit().unwrap();
}

/// The guest writes to one of the two pages between any two calls of the engine: what it wrote is never lost,
/// nor seen by the other page.
#[test]
fn a_page_written_between_hash_and_compare_is_never_shared() {
    // The second round, and the look at the end of the first.
    for (victim, flags) in [
        (0, 0),
        (1, 0),
        (0, ContentFlags::AGAIN.bits()),
        (1, ContentFlags::AGAIN.bits()),
    ] {
        let mut moments = 0;
        for moment in 0.. {
            let (mut guest, pages) = guest_with(2);
            fill(&mut guest, &pages, 1);
            // Every virtual CPU has a writable translation of both.
            let mut session = Session::new();
            round(&mut session, &mut guest, &pages);
            let page = pages[victim];
            let reached = Arc::new(AtomicBool::new(false));
            let (mut calls, mut written, told) = (0, false, Arc::clone(&reached));
            guest.set_interlude(move |guest| {
                calls += 1;
                // From this moment on until it succeeds: it may have to wait for the lock.
                if calls > moment && !written {
                    told.store(true, Ordering::Relaxed);
                    written = guest.stamp(0, page, 0xdead) == Access::Done;
                }
            });
            let asked = Request {
                flags,
                ..over(&pages)
            };
            run(&mut session, &mut guest, asked);
            guest.clear_interlude();
            guest.verify().unwrap();
            guest.audit().unwrap();
            if !reached.load(Ordering::Relaxed) {
                break;
            }
            moments += 1;
        }
        assert!(moments > 70, "{moments} moments");
    }
}

#[test]
fn each_call_failing_in_turn_leaves_nothing_half_done() {
    for (primitive, flags) in Primitive::ALL
        .iter()
        .flat_map(|one| [(*one, 0), (*one, ContentFlags::AGAIN.bits())])
    {
        for call in 0.. {
            let (mut guest, pages) = guest_with(12);
            fill(&mut guest, &pages, 3);
            assert_eq!(guest.fill(0, pages[11], 0), Access::Done);
            let mut session = Session::new();
            round(&mut session, &mut guest, &pages);
            let failing_call = guest.calls(primitive) + call;
            guest.fail(primitive, failing_call);
            let asked = Request {
                flags,
                ..over(&pages)
            };
            run(&mut session, &mut guest, asked);
            // There is no such call any more: all have had their turn.
            if guest.calls(primitive) <= failing_call {
                break;
            }
            guest.clear_faults();
            guest.audit().unwrap();
            guest.verify().unwrap();
            // The trouble has passed: two rounds make up for it.
            for _ in 0..3 {
                round(&mut session, &mut guest, &pages);
            }
            // A frame that lost its place in the index to a page that failed once is not entered again, and
            // that page may stay without a partner.
            let found = guest.content_gfns();
            assert!((10..=11).contains(&found), "{primitive:?} {call}: {found}");
            for (at, gfn) in (0..).zip(&pages) {
                assert_eq!(guest.stamp(0, *gfn, 0x100 + at), Access::Done);
            }
            guest.verify().unwrap();
            guest.audit().unwrap();
        }
    }
}

#[test]
fn without_host_memory_a_sharer_waits_and_nothing_is_lost() {
    let mut guest = MockGuest::new(&Config {
        host_free: 0,
        ..Config::default()
    });
    guest.set_neighbour(true);
    let pages: Vec<Gfn> = (0..8).map(|_| guest.alloc(0, 0).unwrap()).collect();
    fill(&mut guest, &pages, 1);
    let mut session = Session::new();
    for _ in 0..2 {
        round(&mut session, &mut guest, &pages);
    }
    assert_eq!(guest.content_gfns(), 8);
    assert_eq!(guest.stamp(0, pages[0], 5), Access::NoMemory);
    guest.verify().unwrap();
    guest.audit().unwrap();
}

#[test]
fn a_zero_page_that_was_written_is_not_taken() {
    let (mut guest, pages) = guest_with(1);
    fill(&mut guest, &pages, 1);
    assert_eq!(
        share_zero_protected(&mut guest, pages[0], Steps::default()),
        Err(Skip::NotZero)
    );
    guest.audit().unwrap();
    assert_eq!(guest.stamp(0, pages[0], 2), Access::Done);
    guest.verify().unwrap();
}

#[derive(Clone, Debug)]
enum Action {
    Fill(usize, u64, usize),
    Stamp(usize, u64, usize),
    Hold(usize),
    Unhold(usize),
    Round,
    Again,
    Part(u64, u64),
    Pool(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0_usize..64, 0_u64..6, 0_usize..2).prop_map(|(page, pattern, vcpu)| Action::Fill(page, pattern, vcpu)),
        2 => (0_usize..64, 0_u64..1000, 0_usize..2).prop_map(|(page, value, vcpu)| Action::Stamp(page, value, vcpu)),
        1 => (0_usize..64).prop_map(Action::Hold),
        1 => (0_usize..64).prop_map(Action::Unhold),
        5 => Just(Action::Round),
        2 => (0_u64..4096, 0_u64..400).prop_map(|(from, pages)| Action::Part(from, pages)),
        2 => Just(Action::Again),
        1 => (0_u64..3).prop_map(Action::Pool),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_guest_reads_what_it_wrote(actions in prop::collection::vec(action(), 1..60)) {
        let (mut guest, pages) = guest_with(64);
        guest.set_neighbour(false);
        let mut held = [0_u32; 64];
        let mut session = Session::new();
        for action in actions {
            match action {
                Action::Fill(page, pattern, vcpu) => {
                    guest.fill(vcpu, pages[page], pattern);
                }
                Action::Stamp(page, value, vcpu) => {
                    guest.stamp(vcpu, pages[page], value);
                }
                Action::Hold(page) => {
                    // A reference for writing comes after unsharing, as in Xen.
                    if guest.page_state(pages[page]) == PageState::Private && guest.hold(pages[page]) {
                        held[page] += 1;
                    }
                }
                Action::Unhold(page) => {
                    if held[page] > 0 {
                        guest.unhold(pages[page]);
                        held[page] -= 1;
                    }
                }
                Action::Round => {
                    round(&mut session, &mut guest, &pages);
                }
                Action::Again => {
                    again(&mut session, &mut guest, &pages);
                }
                Action::Part(from, count) => {
                    let asked = Request { cursor: from, budget: count, ..Request::default() };
                    run(&mut session, &mut guest, asked);
                }
                Action::Pool(left) => guest.set_pool_pages(if left == 0 { 0 } else { u64::MAX }),
            }
            prop_assert_eq!(guest.audit(), Ok(()));
            prop_assert_eq!(guest.verify(), Ok(()));
        }
    }
}
