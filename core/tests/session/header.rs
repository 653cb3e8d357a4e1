//! What the header beside the bitmap tells, and when it keeps readers out.

use lacuna_core::abi::{BitmapHeader, Op, Request, State, Statistics};
use lacuna_core::{Domain, Header, Status, Tables};
use lacuna_mock::{Config, MockGuest};

use super::{admitted, answer, attached, encoded, request, run, set_profile, status};

fn header(guest: &mut MockGuest) -> Option<BitmapHeader> {
    let words = guest.header().unwrap();
    Header::new(words.as_ref()).read()
}

#[test]
fn the_header_tells_of_one_complete_scan_and_of_nothing_else() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = attached(&mut guest);
    assert!(
        guest.header().is_none(),
        "before the first scan there is nothing to map"
    );
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    let first = header(&mut guest).unwrap();
    let free = guest.candidates(0, first.gfns);
    assert_eq!((first.version, first.chunks, first.sequence % 2), (2, 1, 0));
    assert_eq!(
        (first.started, first.complete, first.generation, first.state),
        (1, 1, 1, State::Admitted as u64)
    );
    assert_eq!((first.gfns, first.free), (guest.gfns(), free));
    assert!(free > 0);

    // Asking about other things is no news.
    let _: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
    assert_eq!(header(&mut guest), Some(first));

    // A second scan is another one, even if it finds the same.
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    let second = header(&mut guest).unwrap();
    assert_eq!((second.started, second.complete), (2, 2));
    assert!(second.sequence > first.sequence && second.start > first.start);

    // Part of a scan makes the bits those of no scan.
    let part = Request {
        end: 64,
        ..request(Op::Scan)
    };
    assert_eq!(run(&mut session, &mut guest, part).0, Status::Done);
    let mixed = header(&mut guest).unwrap();
    assert_eq!((mixed.started, mixed.complete, mixed.free), (2, 0, 0));
}

#[test]
fn readers_are_kept_out_until_a_scan_in_parts_is_complete() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let part = Request {
        budget: 16,
        ..request(Op::Scan)
    };
    let (_, first, _) = run(&mut session, &mut guest, part);
    assert!(first.cursor > 0 && first.cursor < guest.gfns());
    assert_eq!(header(&mut guest), None);
    // Other operations may run in the gap.
    let _: Statistics = answer(&mut session, &mut guest, request(Op::Statistics));
    assert_eq!(header(&mut guest), None);
    let rest = Request { budget: 0, ..first };
    assert_eq!(run(&mut session, &mut guest, rest).0, Status::Done);
    let done = header(&mut guest).unwrap();
    assert_eq!((done.started, done.complete), (2, 2));

    // Never gone on with: a scan of somebody else's puts it right.
    run(&mut session, &mut guest, part);
    assert_eq!(header(&mut guest), None);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    let other = header(&mut guest).unwrap();
    assert_eq!((other.started, other.complete), (4, 4));
}

/// A caller that scans in parts cannot tell, and asks for one more.
#[test]
fn after_a_part_that_ends_with_memory_there_is_nothing_to_do_and_nothing_is_undone() {
    const PLENTY: u64 = 1 << 40;
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let plenty = Request {
        budget: PLENTY,
        ..request(Op::Scan)
    };
    let (_, measured, _) = run(&mut session, &mut guest, plenty);
    let exact = Request {
        budget: PLENTY - measured.budget,
        ..request(Op::Scan)
    };
    let (status, whole, _) = run(&mut session, &mut guest, exact);
    assert_eq!(
        (status, whole.cursor, whole.budget),
        (Status::Done, guest.gfns(), 0)
    );
    let complete = header(&mut guest).unwrap();
    assert_eq!(complete.complete, complete.started);
    let one_more = Request { budget: 16, ..whole };
    let (status, nothing, _) = run(&mut session, &mut guest, one_more);
    assert_eq!(
        (status, nothing.cursor, nothing.budget),
        (Status::Done, guest.gfns(), 16)
    );
    assert_eq!(header(&mut guest).unwrap(), complete);
}

#[test]
fn bits_that_are_not_believed_are_not_announced() {
    let mut guest = MockGuest::new(&Config::default());
    let mut session = admitted(&mut guest);
    let bytes = encoded(&guest.profile());

    // A new profile: the candidates of the old one are forgotten.
    assert_eq!(set_profile(&mut session, &mut guest, &bytes), Status::Done);
    let loaded = header(&mut guest).unwrap();
    assert_eq!(
        (loaded.complete, loaded.generation, loaded.state),
        (0, 2, State::Loaded as u64)
    );

    // A kernel that is gone.
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    guest.registers_mut(0).lstar += 64;
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Ended);
    let ended = header(&mut guest).unwrap();
    assert_eq!((ended.complete, ended.state), (0, State::Ended as u64));
}
