//! What is kept for a guest follows from the memory that it has, wherever that lies: bytes, bounds, and work
//! between two looks at pending interrupts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use lacuna_core::abi::{CHUNK_GFNS, Op, Request, State, Statistics, chunk_at};
use lacuna_core::{
    Extent, Gfn, GuestVirt, Header, MAX_GFNS, MAX_PROFILE_BYTES, Outcome, Profile, Session, Status, Table,
    Tables, most_bytes,
};
use lacuna_mock::{Config, Layout, MockGuest, Model, Primitive};
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// The guest's memory that a share of 1/1000 is of, in bytes.
const fn permille(pages: u64, of: u64) -> u64 {
    pages * PAGE * of / 1000
}

fn set_profile(session: &mut Session, guest: &mut MockGuest, profile: &Profile) {
    let bytes = profile.encode(&mut [0; MAX_PROFILE_BYTES]).unwrap().to_vec();
    let mut request = Request {
        op: Op::SetProfile as u32,
        ..Request::default()
    };
    while session.operate(guest, &mut request, &mut bytes.clone()) == Outcome::Again {}
    assert_eq!(request.status, 0);
}

/// Most reads of guest memory in a call that is interrupted as soon as it can be: 4,096 descriptors, each
/// behind page tables of its own.
const MOST_READS: u64 = 4096 * 5;

/// Most that one call did, of those that an operation took: pages of tables taken, and reads of guest memory.
#[derive(Debug, Default)]
struct Calls {
    number: u64,
    most_extensions: u64,
    most_reads: u64,
}

fn operate(session: &mut Session, guest: &mut MockGuest, op: Op) -> (Status, Request, Calls) {
    let mut request = Request {
        op: op as u32,
        ..Request::default()
    };
    let mut calls = Calls::default();
    guest.take_extensions();
    for _ in 0..1_000_000 {
        let reads = guest.reads();
        let outcome = session.operate(guest, &mut request, &mut []);
        calls.number += 1;
        calls.most_extensions = calls.most_extensions.max(guest.take_extensions());
        calls.most_reads = calls.most_reads.max(guest.reads() - reads);
        if outcome == Outcome::Finished {
            return (Status::from_code(request.status).unwrap(), request, calls);
        }
    }
    panic!("{op:?} never ends");
}

fn statistics(session: &Session, guest: &mut MockGuest) -> Statistics {
    session.statistics(guest)
}

/// A guest of 256 MiB with a hole, as below 4 GiB, and special pages of Xen's right below 4 GiB.
fn honest() -> MockGuest {
    let mut guest = MockGuest::new(&Config {
        pages: 80_000,
        hole: 20_000..34_464,
        host_free: 64,
        ..Config::default()
    });
    for gfn in 0xfeff8..0xff000 {
        assert!(guest.populate(gfn));
    }
    guest
}

#[test]
fn an_honest_guest_pays_no_more_than_a_share_of_its_memory() {
    let mut guest = honest();
    let pages = 65_536;
    let mut session = Session::new();
    let profile = guest.profile();
    set_profile(&mut session, &mut guest, &profile);
    assert_eq!(operate(&mut session, &mut guest, Op::Scan).0, Status::Done);
    let (free, _) = guest.tables_bytes();
    for _ in 0..2 {
        assert_eq!(operate(&mut session, &mut guest, Op::Content).0, Status::Done);
    }
    let (bitmap, all) = guest.tables_bytes();
    let millionths = |bytes: u64| bytes * 1_000_000 / (pages * PAGE);
    println!(
        "{pages} pages: {free} bytes for the free stage, {} millionths of the guest's memory; {all} with content, {}",
        millionths(free),
        millionths(all),
    );
    assert_eq!(free, bitmap);
    assert!(free <= permille(pages, 1), "{free} bytes");
    assert!(all <= permille(pages, 4), "{all} bytes");
    let s = statistics(&session, &mut guest);
    assert_eq!((s.metadata_bytes, s.bitmap_gfns % CHUNK_GFNS), (all, 0));
    assert_eq!(s.metadata_most, most_bytes(pages + 8).1);
}

/// Nothing but time between pages may depend on where the highest is, and little of that.
#[test]
fn a_page_at_the_highest_frame_costs_nothing_in_the_free_stage() {
    let round = |far: Option<u64>| {
        let mut guest = MockGuest::new(&Config::default());
        if let Some(gfn) = far {
            assert!(guest.populate(gfn));
        }
        guest.fail_all(Primitive::Preempted);
        let mut session = Session::new();
        let profile = guest.profile();
        set_profile(&mut session, &mut guest, &profile);
        let (status, _, calls) = operate(&mut session, &mut guest, Op::Scan);
        assert_eq!((status, session.state()), (Status::Done, State::Admitted));
        assert_eq!(operate(&mut session, &mut guest, Op::Share).0, Status::Done);
        (guest.tables_bytes(), guest.zero_gfns(), calls)
    };
    let (near, near_shared, near_calls) = round(None);
    for far in [MAX_GFNS - 1, 1 << 31, 1 << 20] {
        let (bytes, shared, calls) = round(Some(far));
        assert_eq!((bytes, shared), (near, near_shared));
        assert!(near.0 < 8 * 1024, "a page of bits and the way to it");
        // One call a hole; each is what one missing page table of the hypervisor's is for.
        assert!(calls.number < near_calls.number + 4 * 512, "{calls:?}");
        assert!(
            calls.most_extensions <= 1 && calls.most_reads <= MOST_READS,
            "{calls:?}"
        );
    }
}

#[test]
fn a_page_at_the_highest_frame_costs_the_content_stage_one_page() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = Session::new();
    guest.fail_all(Primitive::Preempted);
    for _ in 0..2 {
        assert_eq!(operate(&mut session, &mut guest, Op::Content).0, Status::Done);
    }
    let (_, near) = guest.tables_bytes();
    assert!(guest.populate(MAX_GFNS - 1));
    for _ in 0..2 {
        let (status, _, calls) = operate(&mut session, &mut guest, Op::Content);
        assert_eq!(status, Status::Done);
        // A page of hashes, and for each page hashed one of the index at most.
        assert!(calls.most_extensions <= 1 + 16, "{calls:?}");
    }
    let (_, far) = guest.tables_bytes();
    assert!(far - near <= PAGE + 3 * 512, "{near} and {far} bytes");
}

#[test]
fn frames_past_the_last_that_a_bitmap_can_have_are_refused() {
    let mut guest = MockGuest::new(&Config::default());
    assert!(guest.populate(MAX_GFNS));
    let mut session = Session::new();
    let profile = guest.profile();
    set_profile(&mut session, &mut guest, &profile);
    for op in [Op::Scan, Op::Content] {
        let (status, request, _) = operate(&mut session, &mut guest, op);
        assert_eq!(
            (status, request.result[..2].to_vec()),
            (Status::OutOfRange, vec![MAX_GFNS + 1, MAX_GFNS])
        );
    }
    assert_eq!(guest.tables_bytes(), (0, 0));
}

/// One page in each stretch: each needs a page of hashes, until that is refused.
#[test]
fn scattered_pages_are_refused_at_the_bound_and_served_when_the_guest_has_more() {
    let config = Config {
        host_free: 20_000,
        ..Config::default()
    };
    let mut guest = MockGuest::new(&config);
    for stretch in 1..76_u64 {
        assert!(guest.populate(stretch << 20));
    }
    let mut session = Session::new();
    let (status, request, _) = operate(&mut session, &mut guest, Op::Content);
    assert_eq!(status, Status::TablesAtBound);
    let [held, most, pages, gfn] = request.result;
    assert_eq!((most, pages), (most_bytes(8192 + 75).1, 8192 + 75));
    assert!(held <= most && held + PAGE + 4 * 512 > most, "{held} of {most}");
    assert_eq!((gfn % (1 << 20), request.cursor), (0, gfn));
    assert_eq!(guest.tables_bytes().1, held);
    // The free stage's share is its own.
    let profile = guest.profile();
    set_profile(&mut session, &mut guest, &profile);
    let (status, ..) = operate(&mut session, &mut guest, Op::Scan);
    assert!(
        matches!(status, Status::Done | Status::TablesAtBound),
        "{status:?}"
    );
    for gfn in 8192.. {
        if !guest.populate(gfn) {
            break;
        }
    }
    assert_eq!(operate(&mut session, &mut guest, Op::Content).0, Status::Done);
    assert_eq!(guest.audit(), Ok(()));
}

/// A guest whose descriptors call frames free in 59 stretches, and its profile.
fn far_and_wide() -> (MockGuest, Profile) {
    let layout = Layout::WINDOWS[0];
    let mut guest = MockGuest::new(&Config {
        layout,
        model: Model::Flat,
        ..Config::default()
    });
    let mut profile = guest.profile();
    let whole = profile.extents[0];
    let size = u64::from(profile.descriptor_bytes);
    let free = (4096..8192)
        .find(|gfn| (*gfn..gfn + 64).all(|gfn| guest.is_free(Gfn::new(gfn))))
        .unwrap();
    profile.extents = (1..60)
        .map(|stretch| Extent {
            first: Gfn::new(stretch * CHUNK_GFNS),
            count: 64,
            array: GuestVirt::new(whole.array.get() + free * size),
        })
        .collect();
    // So that the guest's last frame is past all of them.
    assert!(guest.populate(60 * CHUNK_GFNS));
    (guest, profile)
}

/// Where the guest has no memory its descriptors are not even looked at.
#[test]
fn frames_without_memory_are_not_free_whatever_descriptors_say() {
    let (mut guest, profile) = far_and_wide();
    let mut session = Session::new();
    set_profile(&mut session, &mut guest, &profile);
    let (status, request, _) = operate(&mut session, &mut guest, Op::Scan);
    assert_eq!((status, request.result[0]), (Status::CountsDisagree, 0));
    assert_eq!((guest.tables_bytes().0, guest.candidates(0, u64::MAX)), (0, 0));
}

/// The same, with a page of its own in each stretch.
#[test]
fn a_guest_that_calls_frames_free_far_and_wide_gets_no_more_bits_than_its_share() {
    let (mut guest, profile) = far_and_wide();
    for stretch in 1..60 {
        assert!(guest.populate(stretch * CHUNK_GFNS));
    }
    guest.fail_all(Primitive::Preempted);
    let mut session = Session::new();
    set_profile(&mut session, &mut guest, &profile);
    let (status, request, calls) = operate(&mut session, &mut guest, Op::Scan);
    assert_eq!(status, Status::TablesAtBound);
    assert!(calls.most_extensions <= 1, "{calls:?}");
    let [held, most, pages, gfn] = request.result;
    assert_eq!((most, pages), (most_bytes(8192 + 60).0, 8192 + 60));
    assert!(held <= most && held + PAGE + 4 * 512 > most, "{held} of {most}");
    assert_eq!(gfn % CHUNK_GFNS, 0);
    // Readers do not take half a scan for a whole one.
    let header = guest.header().unwrap();
    assert_eq!(Header::new(header.as_ref()).read().unwrap().complete, 0);
    assert_ne!(session.state(), State::Admitted);
}

/// Each growth fails once. The operation says so, readers are kept out, and done again it comes to the same
/// end.
#[test]
fn a_growth_that_fails_is_told_and_costs_nothing() {
    let whole = |fail: Option<u64>| {
        let mut guest = honest();
        if let Some(call) = fail {
            guest.fail(Primitive::Extend, call);
        }
        let mut session = Session::new();
        let profile = guest.profile();
        set_profile(&mut session, &mut guest, &profile);
        let mut refused = 0;
        for op in [Op::Scan, Op::Share, Op::Content, Op::Content] {
            for _ in 0..2 {
                match operate(&mut session, &mut guest, op).0 {
                    Status::Done => break,
                    Status::NoMemory => refused += 1,
                    status => panic!("{op:?}: {status:?}"),
                }
                let complete = guest
                    .header()
                    .and_then(|words| Header::new(words.as_ref()).read());
                assert!(op != Op::Scan || complete.is_none_or(|header| header.complete == 0));
            }
        }
        assert_eq!((guest.audit(), guest.verify()), (Ok(()), Ok(())));
        let growths = guest.calls(Primitive::Extend);
        (refused, guest.zero_gfns(), guest.tables_bytes(), growths)
    };
    let (refused, shared, bytes, growths) = whole(None);
    assert_eq!(refused, 0);
    for call in (0..growths.min(8)).chain([growths / 2, growths - 1]) {
        let (refused, again, bytes_again, _) = whole(Some(call));
        assert_eq!((refused, again), (1, shared), "growth {call}");
        assert!(bytes_again.1.abs_diff(bytes.1) <= 2 * PAGE, "growth {call}");
    }
}

/// What the hypervisor's C side and `xg_sr_save_lacuna.c` compute by themselves.
#[test]
fn chunks_lie_in_groups_behind_their_numbers() {
    assert_eq!(chunk_at(0), (4096, 2 * 4096));
    assert_eq!(chunk_at(1), (4096 + 4, 3 * 4096));
    assert_eq!(chunk_at(1023), (4096 + 1023 * 4, 1025 * 4096));
    assert_eq!(chunk_at(1024), (1026 * 4096, 1027 * 4096));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A guest that has pages populated and removed at frames of its choice, to have tables grow.
    #[test]
    fn pages_that_come_and_go_never_take_more_than_the_bound(
        moves in prop::collection::vec((0_u32..32, any::<u32>(), any::<bool>()), 1..120),
    ) {
        let mut guest = MockGuest::new(&Config { pages: 2048, host_free: 512, ..Config::default() });
        let mut session = Session::new();
        let mut most_ever = 0;
        for chunk in moves.chunks(12) {
            for (shift, gfn, stays) in chunk {
                let gfn = u64::from(*gfn) >> shift;
                if guest.populate(gfn) && !stays {
                    guest.remove(gfn);
                }
            }
            let s = statistics(&session, &mut guest);
            most_ever = most_ever.max(s.metadata_most);
            let (status, ..) = operate(&mut session, &mut guest, Op::Content);
            prop_assert!(matches!(status, Status::Done | Status::TablesAtBound), "{:?}", status);
            prop_assert!(guest.tables_bytes().1 <= most_ever);
            prop_assert_eq!(guest.part(Table::Bitmap, 0).is_absent(), true);
        }
        prop_assert_eq!(guest.audit(), Ok(()));
    }
}
