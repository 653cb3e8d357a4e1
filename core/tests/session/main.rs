//! The operations of the hypercall: what they refuse, how they go on after an interruption, what they tell.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod admission;
mod changes;
mod header;
mod identity;
mod kernels;

use lacuna_core::abi::{CHUNK_GFNS, Explanation, Op, Request, State, Statistics};
use lacuna_core::{
    Domain, Gfn, MAX_PROFILE_BYTES, Outcome, Profile, Session, Status, Table, Tables, VcpuRegisters,
};
use lacuna_mock::{Access, Config, MockGuest, Primitive};
use proptest::prelude::*;
use zerocopy::FromBytes;

fn request(op: Op) -> Request {
    Request {
        op: op as u32,
        ..Request::default()
    }
}

fn encoded(profile: &Profile) -> Vec<u8> {
    profile.encode(&mut [0; MAX_PROFILE_BYTES]).unwrap().to_vec()
}

/// Runs a request to its end; returns its status, itself, and how often it was interrupted.
fn run(session: &mut Session, guest: &mut MockGuest, mut request: Request) -> (Status, Request, u32) {
    for interruptions in 0..1_000_000 {
        let cursor = request.cursor;
        match session.operate(guest, &mut request, &mut []) {
            Outcome::Finished => {
                return (Status::from_code(request.status).unwrap(), request, interruptions);
            }
            Outcome::Again => assert!(request.cursor > cursor, "interrupted without progress"),
        }
    }
    panic!("the operation never ends");
}

fn status(session: &mut Session, guest: &mut MockGuest, op: Op) -> Status {
    run(session, guest, request(op)).0
}

fn set_profile(session: &mut Session, guest: &mut MockGuest, bytes: &[u8]) -> Status {
    let mut request = request(Op::SetProfile);
    session.operate(guest, &mut request, &mut bytes.to_vec());
    Status::from_code(request.status).unwrap()
}

fn attached(guest: &mut MockGuest) -> Session {
    let mut session = Session::new();
    let bytes = encoded(&guest.profile());
    assert_eq!(set_profile(&mut session, guest, &bytes), Status::Done);
    session
}

fn admitted(guest: &mut MockGuest) -> Session {
    let mut session = attached(guest);
    assert_eq!(status(&mut session, guest, Op::Scan), Status::Done);
    assert_eq!(session.state(), State::Admitted);
    session
}

fn answer<T: FromBytes>(session: &mut Session, guest: &mut MockGuest, mut request: Request) -> T {
    let mut buffer = vec![0; size_of::<T>()];
    session.operate(guest, &mut request, &mut buffer);
    assert_eq!(
        (request.status, request.buffer_size as usize),
        (0, size_of::<T>())
    );
    T::read_from_bytes(&buffer).unwrap()
}

#[test]
fn nothing_works_without_a_profile() {
    let (mut session, mut guest) = (Session::new(), MockGuest::new(&Config::default()));
    for op in [Op::Scan, Op::Share, Op::GetProfile] {
        assert_eq!(status(&mut session, &mut guest, op), Status::NoProfile);
    }
    let statistics: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
    assert_eq!(statistics.state, State::Empty as u64);
    let explained: Explanation = answer(&mut session, &mut guest, request(Op::Explain));
    assert_eq!(explained.verdict, 3);
    session.reset();
    assert_eq!(session.state(), State::Empty);
}

#[test]
fn requests_that_mean_nothing_are_refused() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    for bad in [
        Request {
            op: 0,
            ..Request::default()
        },
        Request {
            op: 10,
            ..Request::default()
        },
        Request {
            pad: 1,
            ..request(Op::Scan)
        },
        Request {
            flags: 2,
            ..request(Op::Scan)
        },
        Request {
            flags: 1,
            ..request(Op::Share)
        },
        Request {
            flags: 0xff << 16,
            ..request(Op::Share)
        },
    ] {
        assert_eq!(
            run(&mut session, &mut guest, bad).0,
            Status::BadRequest,
            "{bad:?}"
        );
    }
    for op in [Op::Scan, Op::Share] {
        for (cursor, end) in [(0, 8193), (8193, 0), (5, 4), (u64::MAX, u64::MAX)] {
            let request = Request {
                cursor,
                end,
                ..request(op)
            };
            assert_eq!(
                run(&mut session, &mut guest, request).0,
                Status::OutOfRange,
                "{op:?} {cursor} {end}"
            );
        }
    }
    assert_eq!(session.state(), State::Admitted);
}

#[test]
fn a_bad_profile_does_not_cost_the_good_one() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let good = guest.profile();
    let mut bytes = encoded(&good);
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(
        set_profile(&mut session, &mut guest, &bytes),
        Status::ProfileChecksum
    );
    // Decoded into the spare place up to its last member, and refused there.
    let mut other = good.clone();
    other.descriptor_bytes = 128;
    other.identity.boot_value.as_mut().unwrap().value = 1;
    let mut bytes = encoded(&other);
    bytes.pop();
    assert_eq!(
        set_profile(&mut session, &mut guest, &bytes),
        Status::ProfileTruncated
    );
    assert_eq!(
        (session.state(), session.profile()),
        (State::Admitted, Some(&good))
    );
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
}

#[test]
fn another_profile_has_to_be_admitted_again_and_inherits_no_candidates() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let bytes = encoded(&guest.profile());
    for _ in 0..3 {
        assert_eq!(set_profile(&mut session, &mut guest, &bytes), Status::Done);
        assert_eq!(session.state(), State::Loaded);
        assert_eq!(status(&mut session, &mut guest, Op::Share), Status::NotAdmitted);
        assert_eq!(guest.candidates(0, u64::MAX), 0);
    }
    let mut room = vec![0; MAX_PROFILE_BYTES];
    let mut get = request(Op::GetProfile);
    session.operate(&mut guest, &mut get, &mut room);
    assert_eq!(room[..get.buffer_size as usize], bytes);
    session.operate(&mut guest, &mut get, &mut [0; 10]);
    assert_eq!(get.status, Status::BufferTooSmall.code());
    assert_eq!(
        session.statistics(&mut guest).generation,
        4,
        "one at first, three more"
    );
    assert_eq!(status(&mut session, &mut guest, Op::ClearProfile), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::NoProfile);
}

#[test]
fn candidates_are_forgotten_in_pieces_and_the_old_profile_holds_until_all_are() {
    let mut guest = MockGuest::new(&Config {
        host_free: 60_000,
        ..Config::default()
    });
    let mut session = admitted(&mut guest);
    let bytes = encoded(&guest.profile());
    // As after a scan of a guest with memory up to 8 GiB, 64 pages of bitmap.
    for gfn in 8192.. {
        if !guest.populate(gfn) {
            break;
        }
    }
    let gfns = 1 << 21;
    for gfn in (0..gfns).step_by(CHUNK_GFNS as usize) {
        let part = guest.extend(Table::Bitmap, gfn / 64).unwrap();
        part.bitmap().set_range(Gfn::new(gfn), Gfn::new(gfns));
    }
    assert_eq!(guest.candidates(0, u64::MAX), gfns);
    guest.fail_all(Primitive::Preempted);
    let mut request = request(Op::SetProfile);
    let mut interruptions = 0;
    while session.operate(&mut guest, &mut request, &mut bytes.clone()) == Outcome::Again {
        interruptions += 1;
        assert_eq!(session.state(), State::Admitted);
    }
    assert_eq!((interruptions, request.status), (3, 0));
    assert_eq!(session.state(), State::Loaded);
    assert_eq!(guest.candidates(0, u64::MAX), 0);
}

#[test]
fn a_domain_that_cannot_share_takes_no_profile() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    // Log-dirty mode may be off again later: the profile is taken, and sharing refused.
    guest.set_log_dirty(true);
    let bytes = encoded(&guest.profile());
    assert_eq!(set_profile(&mut session, &mut guest, &bytes), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::LogDirty);
}

#[test]
fn interrupted_at_every_point_an_operation_comes_to_the_same_end() {
    let build = || {
        let mut guest = MockGuest::new(&Config::default());
        for order in [0, 2, 4, 1, 0, 6] {
            let head = guest.alloc_from(0, order, order % 2 == 0).unwrap();
            guest.stamp(0, head, u64::from(order) + 1);
        }
        let session = attached(&mut guest);
        (guest, session)
    };
    let (mut calm, mut session) = build();
    let results = [Op::Scan, Op::Share].map(|op| run(&mut session, &mut calm, request(op)).1.result);
    let (mut hurried, mut hurried_session) = build();
    hurried.fail_all(Primitive::Preempted);
    for (op, expected) in [Op::Scan, Op::Share].into_iter().zip(results) {
        let (status, request, interruptions) = run(&mut hurried_session, &mut hurried, request(op));
        assert_eq!((status, request.result), (Status::Done, expected));
        assert!(
            op == Op::Scan || interruptions > 0,
            "a share of 32 MiB is more than one slice"
        );
    }
    assert_eq!(hurried.zero_gfns(), calm.zero_gfns());
    assert_eq!((hurried.audit(), hurried.verify()), (Ok(()), Ok(())));
}

#[test]
fn budgets_are_kept_and_cursors_lead_on() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    let mut next = Request {
        budget: 50,
        ..request(Op::Scan)
    };
    let mut calls = 0;
    while next.cursor < guest.pages() {
        assert_eq!(
            session.state(),
            State::Loaded,
            "admitted before everything was seen"
        );
        let before = next.cursor;
        next = Request {
            budget: 50,
            cursor: next.cursor,
            result: next.result,
            ..request(Op::Scan)
        };
        let (status, after, _) = run(&mut session, &mut guest, next);
        assert_eq!(status, Status::Done);
        assert!(after.cursor > before);
        next = after;
        calls += 1;
    }
    assert!(calls > 2);
    // Many calls in a row add up to the scan that admits.
    assert_eq!(session.state(), State::Admitted);
    assert_eq!(next.result[0], guest.free_pages());

    let (status, after, _) = run(
        &mut session,
        &mut guest,
        Request {
            budget: 100,
            ..request(Op::Share)
        },
    );
    assert_eq!(status, Status::Done);
    // A slice may exceed the budget, by no more than it can share.
    assert!(after.result[0] >= 100 && after.result[0] <= 100 + 4096);
    assert!(after.cursor < guest.pages());
}

#[test]
fn statistics_say_what_happened() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let page = guest.alloc(0, 0).unwrap();
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
    assert_eq!(guest.stamp(0, page, 1), Access::Done);
    let second = guest.alloc(0, 0).unwrap();
    assert_eq!(guest.stamp(0, second, 2), Access::Done);
    let s: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
    assert_eq!(s.state, State::Admitted as u64);
    assert_eq!(
        (s.scans, s.scan_free, s.guest_free_before),
        (1, guest.free_pages() + 2, guest.free_pages() + 2)
    );
    assert_eq!(s.rejected, 1, "the page allocated after the scan");
    assert_eq!((s.unshared, s.zero_gfns), (1, guest.zero_gfns()));
    assert_eq!(s.shared, guest.free_pages() + 1);
    assert_eq!(s.shared, 512 * s.shared_superpages + s.shared_entries);
    assert_eq!(s.released, s.shared);
    assert!(s.slices > 1 && s.pauses > s.slices && s.pause_longest_ns * s.pauses >= s.pause_total_ns);
    assert_eq!(s.bitmap_gfns, CHUNK_GFNS, "a page of bits");
    assert_eq!(s.each().count() * 8, size_of::<Statistics>());
    for needed in [0, size_of::<Statistics>() - 1] {
        let mut request = request(Op::Statistics);
        session.operate(&mut guest, &mut request, &mut vec![0; needed]);
        assert_eq!(request.status, Status::BufferTooSmall.code());
        assert_eq!(request.result[0], size_of::<Statistics>() as u64);
    }
}

#[test]
fn a_frame_is_explained() {
    let config = Config::default();
    let mut guest = MockGuest::new(&config);
    let mut session = admitted(&mut guest);
    let (head, order) = guest.free_blocks().into_iter().next_back().unwrap();
    let gfn = head.get() + 3;
    let frame = |cursor| Request {
        cursor,
        ..request(Op::Explain)
    };
    let told: Explanation = answer(&mut session, &mut guest, frame(gfn));
    assert_eq!(
        (told.verdict, told.value, told.order),
        (0, head.get(), u64::from(order))
    );
    assert_eq!((told.candidate, told.zero_frame, told.count_info), (1, 0, 1));
    status(&mut session, &mut guest, Op::Share);
    let told: Explanation = answer(&mut session, &mut guest, frame(gfn));
    assert_eq!((told.zero_frame, told.p2m_order, told.mfn), (1, 9, u64::MAX));
    let told: Explanation = answer(&mut session, &mut guest, frame(0));
    assert_eq!((told.verdict, told.reason), (1, 1));
    assert_eq!(run(&mut session, &mut guest, frame(8192)).0, Status::OutOfRange);
}

#[test]
fn registers_and_bitmap_are_copied_out() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let registers: [VcpuRegisters; 2] = answer(&mut session, &mut guest, request(Op::Registers));
    assert_eq!(registers[1], *guest.registers_mut(1));
    assert_eq!(guest.audit(), Ok(()));
    let mut ask = request(Op::Registers);
    session.operate(&mut guest, &mut ask, &mut [0; 60]);
    assert_eq!(
        (ask.status, ask.buffer_size),
        (Status::BufferTooSmall.code(), 128)
    );

    // In pieces of odd sizes.
    let mut bits: Vec<u8> = Vec::new();
    let mut ask = request(Op::ReadBitmap);
    while bits.len() < 1024 {
        let mut piece = [0; 37];
        session.operate(&mut guest, &mut ask, &mut piece);
        assert_eq!((ask.status, ask.result[0]), (0, 8192));
        bits.extend(&piece[..ask.buffer_size as usize]);
    }
    for gfn in 0..8192_u64 {
        let bit = bits[gfn as usize / 8] >> (gfn % 8) & 1 == 1;
        assert_eq!(bit, guest.is_free(Gfn::new(gfn)), "frame {gfn:#x}");
    }
    for cursor in [1, 8200] {
        let ask = Request {
            cursor,
            ..request(Op::ReadBitmap)
        };
        assert_eq!(run(&mut session, &mut guest, ask).0, Status::OutOfRange);
    }
}

#[test]
fn a_guest_is_not_stopped_for_pages_that_are_shared_already() {
    let mut guest = MockGuest::new(&Config::default());
    // A page in use in each of a few regions, so that there are 4 KiB entries too.
    let used: Vec<Gfn> = (0..5).map(|_| guest.alloc(0, 9).unwrap()).collect();
    let mut session = admitted(&mut guest);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
    let first = session.statistics(&mut guest);
    assert!(first.slices > 0 && guest.zero_gfns() == guest.free_pages());

    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
    let again = session.statistics(&mut guest);
    assert_eq!((again.slices, again.shared), (first.slices, first.shared));
    // To see which kernel runs: twice for the scan, once for the share.
    assert_eq!(again.pauses, first.pauses + 3);

    // Something new to share: one slice, which begins there.
    guest.stamp(0, used[3], 1);
    guest.free(0, used[3]);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    assert_eq!(status(&mut session, &mut guest, Op::Share), Status::Done);
    let last = session.statistics(&mut guest);
    assert_eq!((last.slices, last.shared), (first.slices + 1, first.shared + 512));
    assert_eq!(guest.zero_gfns(), guest.free_pages());
    assert_eq!((guest.audit(), guest.verify()), (Ok(()), Ok(())));
}

#[test]
fn a_share_of_a_part_stays_within_it() {
    for (cursor, end) in [
        (1024, 1300),
        (1100, 1536),
        (1100, 1500),
        (1024, 1536),
        (1000, 2100),
    ] {
        let mut guest = MockGuest::new(&Config::default());
        let mut session = admitted(&mut guest);
        let part = Request {
            cursor,
            end,
            ..request(Op::Share)
        };
        let (status, done, _) = run(&mut session, &mut guest, part);
        assert_eq!((status, done.result[0]), (Status::Done, end - cursor));
        for gfn in 0..guest.pages() {
            let zero = guest.gfn_info(Gfn::new(gfn)).zero_frame == 1;
            assert_eq!(
                zero,
                (cursor..end).contains(&gfn),
                "frame {gfn} of {cursor}..{end}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any bytes as a request, in any state: an answer, no panic, nothing left behind.
    #[test]
    fn any_request_gets_an_answer(
        requests in prop::collection::vec((any::<[u8; 88]>(), 0_u32..12, 0_u64..9000, 0_u64..9000, 0_usize..600), 1..20),
    ) {
        let mut guest = MockGuest::new(&Config::default());
        let mut session = admitted(&mut guest);
        for (bytes, op, cursor, end, room) in requests {
            let mut request = Request::read_from_bytes(&bytes).unwrap();
            // Most bits random, but likely to get past the first checks.
            (request.op, request.cursor, request.end, request.pad) = (op, cursor, end, 0);
            request.flags = if request.flags % 4 == 0 { request.flags } else { 0 };
            // A mutation may be asked for in this build; that it does harm is shown elsewhere.
            if op == Op::Share as u32 { request.flags &= 0xffff; }
            let mut buffer = vec![0x5a; room];
            for _ in 0..10_000 {
                if session.operate(&mut guest, &mut request, &mut buffer) == Outcome::Finished { break; }
            }
            prop_assert!(Status::from_code(request.status).is_some());
            prop_assert_eq!(guest.audit(), Ok(()));
        }
    }
}
