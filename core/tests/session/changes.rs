//! Scans that leave out what the guest has not written to: the same bits as those of a scan of everything, and
//! a scan of everything wherever it has to be one.

use super::*;
use lacuna_core::Header;
use lacuna_core::abi::{BitmapHeader, SCAN_CHANGED};
use lacuna_mock::{MapPages, TakeWritten};

fn changes() -> Request {
    Request {
        flags: SCAN_CHANGED,
        ..request(Op::Scan)
    }
}

/// A scan of changes. Returns whether it left anything out, and how many descriptors it looked at.
fn scan_changes(session: &mut Session, guest: &mut MockGuest) -> (bool, u64) {
    let before = session.statistics(guest).scans_partial;
    let (status, _, _) = run(session, guest, changes());
    assert_eq!(status, Status::Done);
    let after = session.statistics(guest);
    (after.scans_partial > before, after.scan_descriptors)
}

/// The frames that the bitmap has as free, and those that are.
fn bits(guest: &mut MockGuest) -> (Vec<u64>, Vec<u64>) {
    let pages = guest.pages();
    let said = (0..pages).filter(|gfn| guest.candidates(*gfn, gfn + 1) == 1);
    let said = said.collect();
    let truth = (0..pages).filter(|gfn| guest.is_free(Gfn::new(*gfn))).collect();
    (said, truth)
}

fn header(guest: &mut MockGuest) -> BitmapHeader {
    Header::new(&guest.header().unwrap()).read().unwrap()
}

/// Does one thing that a kernel does with pages, chosen by `dice`.
fn act(guest: &mut MockGuest, dice: u64) {
    let order = (dice >> 8 & 0xf).min(10) as u8;
    let allocated: Vec<Gfn> = guest.allocated().map(|(head, _)| head).collect();
    match dice % 3 {
        0 => drop(guest.alloc_from(0, order, dice >> 16 & 1 == 1)),
        1 if !allocated.is_empty() => guest.free(0, allocated[(dice >> 16) as usize % allocated.len()]),
        _ => drop(guest.alloc(1, order / 4)),
    }
}

/// A guest whose kernel maps its memory map by 2 MiB, as those do that are followed. Where the hypervisor has
/// entries of 2 MiB, the memory map has none of them for itself, so that nobody can tell what was written.
fn guest(split: bool) -> MockGuest {
    let mut guest = MockGuest::new(&Config {
        map_pages: MapPages::Large,
        pages: 32768 + 4096,
        ..Config::default()
    });
    if split {
        guest.split_all();
    }
    guest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After whatever the guest did between scans and within them, a scan of changes of a guest that stands
    /// still leaves the bits that are true.
    #[test]
    fn a_scan_of_changes_finds_what_a_scan_of_everything_would(
        split in any::<bool>(),
        rounds in prop::collection::vec(
            (prop::collection::vec(any::<u64>(), 0..20), prop::collection::vec(any::<u64>(), 0..6)), 1..8,
        ),
        budget in 0_u64..3,
    ) {
        let mut guest = guest(split);
        let mut session = admitted(&mut guest);
        for (before, mut within) in rounds {
            for dice in before {
                act(&mut guest, dice);
            }
            let mut calls = 0_u32;
            guest.set_interlude(move |guest| {
                calls += 1;
                let dice = if calls % 41 == 0 { within.pop() } else { None };
                if let Some(dice) = dice {
                    act(guest, dice);
                }
            });
            // It may find numbers that disagree, with a guest that does so much at a time.
            let _ = run(&mut session, &mut guest, changes());
            guest.clear_interlude();
            let mut last = Request { budget: budget * 700, ..changes() };
            loop {
                let (status, answer, _) = run(&mut session, &mut guest, last);
                prop_assert_eq!(status, Status::Done);
                if answer.cursor >= guest.gfns() {
                    break;
                }
                last = Request { budget: 700, ..answer };
            }
            let (said, truth) = bits(&mut guest);
            prop_assert_eq!(said, truth);
            let found = session.statistics(&mut guest);
            prop_assert_eq!(found.scan_free, guest.free_pages());
            prop_assert_eq!(
                found.scan_free + found.scan_in_use + found.scan_no_descriptor + found.scan_unknown,
                guest.gfns()
            );
        }
    }
}

/// The hypervisor has processors forget what they have cached as written to, before anything is read.
/// Otherwise what the guest writes by such a translation stays unseen.
#[test]
fn without_a_flush_a_change_stays_unseen() {
    let differs = |how| {
        let mut guest = guest(true);
        let mut session = admitted(&mut guest);
        guest.set_take_written(how);
        let mut differs = 0;
        for dice in 0..40_u64 {
            let page = guest.alloc(0, 0).unwrap();
            scan_changes(&mut session, &mut guest);
            if dice % 2 == 0 {
                guest.free(0, page);
            }
            scan_changes(&mut session, &mut guest);
            let (said, truth) = bits(&mut guest);
            differs += u64::from(said != truth);
        }
        differs
    };
    assert_eq!(differs(TakeWritten::Flush), 0);
    assert_eq!(differs(TakeWritten::Everything), 0);
    assert!(differs(TakeWritten::NoFlush) > 0);
}

#[test]
fn only_what_changed_is_read_again() {
    let mut guest = guest(true);
    let pages: Vec<Gfn> = (0..2000).map(|_| guest.alloc(0, 0).unwrap()).collect();
    for page in pages.iter().step_by(2) {
        guest.free(0, *page);
    }
    let mut session = admitted(&mut guest);
    let everything = session.statistics(&mut guest).scan_descriptors;
    // What was written since the guest was built was read, and asked for, by the scan that admitted it.
    let (is_partial, none) = scan_changes(&mut session, &mut guest);
    assert!(is_partial && none == 2, "{none} of {everything}");
    guest.free(0, pages[1001]);
    let (is_partial, some) = scan_changes(&mut session, &mut guest);
    assert!(
        is_partial && some > none && some < everything / 4,
        "{some} of {everything}"
    );
    let (said, truth) = bits(&mut guest);
    assert_eq!(said, truth);
}

#[test]
fn where_the_hypervisor_cannot_tell_everything_is_read() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    let everything = session.statistics(&mut guest).scan_descriptors;
    guest.set_take_written(TakeWritten::Everything);
    let (_, read) = scan_changes(&mut session, &mut guest);
    assert!(read >= everything, "{read} of {everything}");
}

#[test]
fn a_scan_without_the_flag_reads_everything() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    let everything = session.statistics(&mut guest).scan_descriptors;
    scan_changes(&mut session, &mut guest);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    let statistics = session.statistics(&mut guest);
    assert_eq!(
        (statistics.scan_descriptors, statistics.scans_partial),
        (everything, 1)
    );
}

#[test]
fn the_scan_that_admits_reads_everything() {
    let mut guest = guest(true);
    let mut session = attached(&mut guest);
    assert!(!scan_changes(&mut session, &mut guest).0);
    assert_eq!(session.state(), State::Admitted);
    assert!(scan_changes(&mut session, &mut guest).0);
}

#[test]
fn the_first_scan_under_a_profile_reads_everything() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    assert!(scan_changes(&mut session, &mut guest).0);
    let bytes = encoded(&guest.profile());
    assert_eq!(set_profile(&mut session, &mut guest, &bytes), Status::Done);
    assert!(!scan_changes(&mut session, &mut guest).0);
    let (said, truth) = bits(&mut guest);
    assert_eq!(said, truth);
}

#[test]
fn a_profile_that_is_not_set_to_the_end_leaves_no_record() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    let everything = session.statistics(&mut guest).scan_descriptors;
    // The bits are being cleared when the caller gives up; the profile in use stays.
    guest.fail_all(Primitive::Preempted);
    let mut set = request(Op::SetProfile);
    let mut bytes = encoded(&guest.profile());
    session.operate(&mut guest, &mut set, &mut bytes);
    guest.clear_faults();
    let (_, read) = scan_changes(&mut session, &mut guest);
    assert!(read >= everything);
    let (said, truth) = bits(&mut guest);
    assert_eq!(said, truth);
}

#[test]
fn in_log_dirty_mode_everything_is_read_and_announced() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    guest.set_log_dirty(true);
    assert!(!scan_changes(&mut session, &mut guest).0);
    let header = header(&mut guest);
    assert_eq!(
        (header.complete, header.free),
        (header.started, guest.free_pages())
    );
}

#[test]
fn one_scan_of_64_reads_everything() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    let partial: Vec<bool> = (0..130)
        .map(|_| scan_changes(&mut session, &mut guest).0)
        .collect();
    let full: Vec<usize> = (0..130).filter(|at| !partial[*at]).collect();
    assert_eq!(full, [63, 127]);
}

/// A migration takes the bits of a complete scan, which one that left things out is not.
#[test]
fn what_left_things_out_is_not_announced_as_complete() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    assert_ne!(header(&mut guest).complete, 0);
    assert!(scan_changes(&mut session, &mut guest).0);
    let partial = header(&mut guest);
    assert_eq!((partial.complete, partial.free, partial.started), (0, 0, 2));
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    assert_eq!(header(&mut guest).complete, 3);
}

/// A scan of a part changes bits, and leaves no record of that.
#[test]
fn after_a_scan_of_a_part_everything_is_read() {
    let mut guest = guest(true);
    let mut session = admitted(&mut guest);
    let everything = session.statistics(&mut guest).scan_descriptors;
    let part = Request {
        end: guest.gfns() / 2,
        ..request(Op::Scan)
    };
    assert_eq!(run(&mut session, &mut guest, part).0, Status::Done);
    let (_, read) = scan_changes(&mut session, &mut guest);
    assert!(read >= everything);
}

/// A scan that nobody goes on with has taken what the hypervisor noted: the next one reads all of the stretch
/// at which it stopped.
#[test]
fn a_scan_given_up_leaves_nothing_unread() {
    for budget in [1, 64, 700, 5000] {
        let mut guest = guest(true);
        let mut session = admitted(&mut guest);
        for _ in 0..8 {
            guest.alloc(0, 3).unwrap();
            let page = guest.alloc_from(0, 0, true).unwrap();
            let given_up = Request { budget, ..changes() };
            run(&mut session, &mut guest, given_up);
            guest.free(0, page);
            run(&mut session, &mut guest, given_up);
            scan_changes(&mut session, &mut guest);
            let (said, truth) = bits(&mut guest);
            assert_eq!(said, truth, "budget {budget}");
        }
    }
}

#[test]
fn without_memory_for_records_everything_is_read() {
    let mut guest = guest(true);
    let mut session = attached(&mut guest);
    // The header, a page of the bitmap for the first stretch, and then that for the records. For the second
    // stretch they are the fourth and the fifth.
    guest.fail(Primitive::Extend, 2);
    guest.fail(Primitive::Extend, 4);
    assert_eq!(status(&mut session, &mut guest, Op::Scan), Status::Done);
    assert_eq!(guest.faults_struck(), 2);
    let everything = session.statistics(&mut guest).scan_descriptors;
    let (_, read) = scan_changes(&mut session, &mut guest);
    assert!(read >= everything, "{read} of {everything}");
}
