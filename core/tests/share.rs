//! Share slices over random states: the guest's data stays, the accounting is exact, bounds hold, and no
//! single failed call leaves anything half done.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use lacuna_core::abi::{Op, Request, State};
use lacuna_core::{
    Bitmap, BytesRule, Domain, Gfn, GuestMemory, MAX_PROFILE_BYTES, MAX_SLICE_NS, MAX_SLICE_PAGES,
    MAX_SLICE_UNITS, Order, Outcome, PAGE_SIZE, Profile, SUPERPAGE_UNITS, Session, Skip, Slice, SliceReport,
    Status, Steps, Table, Tables, share_zero_protected,
};
use lacuna_mock::{Access, Config, Damage, Layout, MapPages, MockGuest, Primitive, ZeroBits};
use proptest::prelude::*;

/// Runs one operation to its end, over all its continuations.
fn operate(session: &mut Session, guest: &mut MockGuest, op: Op, range: (u64, u64)) -> (Status, Request) {
    let mut request = Request {
        op: op as u32,
        cursor: range.0,
        end: range.1,
        ..Request::default()
    };
    for _ in 0..100_000 {
        if session.operate(guest, &mut request, &mut []) == Outcome::Finished {
            return (Status::from_code(request.status).unwrap(), request);
        }
    }
    panic!("{op:?} never ends");
}

/// A session that knows the guest's profile.
fn attach(guest: &mut MockGuest, profile: &Profile) -> Session {
    let mut session = Session::new();
    set_profile(&mut session, guest, profile);
    session
}

fn set_profile(session: &mut Session, guest: &mut MockGuest, profile: &Profile) {
    let mut room = [0; MAX_PROFILE_BYTES];
    let length = profile.encode(&mut room).unwrap().len();
    let mut request = Request {
        op: Op::SetProfile as u32,
        ..Request::default()
    };
    session.operate(guest, &mut request, &mut room[..length]);
    assert_eq!(request.status, 0);
}

/// One slice over `from..end`, in a guest that runs the profile's kernel.
fn share_part(
    guest: &mut MockGuest,
    profile: &Profile,
    bitmap: &Bitmap<'_>,
    from: u64,
    end: u64,
) -> SliceReport {
    let slice = Slice::new(
        guest,
        profile,
        bitmap,
        Gfn::new(from),
        Gfn::new(end),
        Steps::default(),
    );
    let (report, identified) = slice.run();
    identified.unwrap();
    report
}

/// Something that happens to the guest or in the hypervisor.
#[derive(Clone, Debug)]
enum Action {
    Alloc {
        order: u8,
        highest: bool,
        vcpu: usize,
    },
    Free(prop::sample::Index, usize),
    Rewrite(prop::sample::Index, usize),
    Read(u64, usize),
    Hold(u64),
    Unhold(u64),
    Scan,
    ScanPart(u64),
    Share,
    SharePart(u64),
    ShareZero(u64),
    /// What the hypervisor's bits of zero frames say from now on.
    ZeroBits(ZeroBits),
}

fn action() -> impl Strategy<Value = Action> {
    let page = 0..4096_u64;
    prop_oneof![
        6 => (prop_oneof![4 => 0_u8..4, 1 => 4_u8..=10], any::<bool>(), 0..2_usize)
            .prop_map(|(order, highest, vcpu)| Action::Alloc { order, highest, vcpu }),
        4 => (any::<prop::sample::Index>(), 0..2_usize).prop_map(|(pick, vcpu)| Action::Free(pick, vcpu)),
        3 => (any::<prop::sample::Index>(), 0..2_usize).prop_map(|(pick, vcpu)| Action::Rewrite(pick, vcpu)),
        2 => (page.clone(), 0..2_usize).prop_map(|(page, vcpu)| Action::Read(page, vcpu)),
        1 => page.clone().prop_map(Action::Hold),
        1 => page.clone().prop_map(Action::Unhold),
        3 => Just(Action::Scan),
        1 => page.clone().prop_map(Action::ScanPart),
        3 => Just(Action::Share),
        1 => page.clone().prop_map(Action::SharePart),
        2 => page.prop_map(Action::ShareZero),
        1 => prop::sample::select(vec![ZeroBits::Kept, ZeroBits::Missing, ZeroBits::Stale])
            .prop_map(Action::ZeroBits),
    ]
}

/// Allocates and writes every page, as a guest that uses its memory does.
fn alloc_and_stamp(guest: &mut MockGuest, vcpu: usize, order: u8, highest: bool, serial: &mut u64) {
    if let Some(head) = guest.alloc_from(vcpu, order, highest) {
        for page in head.get()..head.get() + (1 << order) {
            *serial += 1;
            assert_eq!(guest.stamp(vcpu, Gfn::new(page), *serial), Access::Done);
        }
    }
}

fn act(guest: &mut MockGuest, session: &mut Session, held: &mut Vec<u64>, action: &Action, serial: &mut u64) {
    let pick_held = |guest: &MockGuest, pick: &prop::sample::Index| {
        let blocks: Vec<(Gfn, u8)> = guest.allocated().collect();
        (!blocks.is_empty()).then(|| blocks[pick.index(blocks.len())])
    };
    match action {
        Action::Alloc { order, highest, vcpu } => alloc_and_stamp(guest, *vcpu, *order, *highest, serial),
        Action::Free(pick, vcpu) => {
            if let Some((head, _)) = pick_held(guest, pick) {
                guest.free(*vcpu, head);
            }
        }
        Action::Rewrite(pick, vcpu) => {
            if let Some((head, _)) = pick_held(guest, pick) {
                *serial += 1;
                assert_eq!(guest.stamp(*vcpu, head, *serial), Access::Done);
            }
        }
        // A read of any page, free ones too, fills the translation cache.
        Action::Read(page, vcpu) => {
            guest.load(*vcpu, Gfn::new(*page), 8, &mut [0; 8]);
        }
        Action::Hold(page) => {
            if guest.hold(Gfn::new(*page)) {
                held.push(*page);
            }
        }
        Action::Unhold(page) => {
            if let Some(at) = held.iter().position(|held| held == page) {
                guest.unhold(Gfn::new(held.swap_remove(at)));
            }
        }
        Action::Scan => {
            assert_eq!(operate(session, guest, Op::Scan, (0, 0)).0, Status::Done);
        }
        Action::ScanPart(page) => {
            operate(session, guest, Op::Scan, (*page, (*page + 700).min(4096)));
        }
        Action::Share => {
            let status = operate(session, guest, Op::Share, (0, 0)).0;
            let admitted = session.state() == State::Admitted;
            assert_eq!(
                status,
                if admitted {
                    Status::Done
                } else {
                    Status::NotAdmitted
                }
            );
        }
        Action::SharePart(page) => {
            operate(session, guest, Op::Share, (*page, (*page + 700).min(4096)));
        }
        Action::ShareZero(page) => {
            let gfn = Gfn::new(*page);
            let mut bytes = [0; PAGE_SIZE];
            guest.read(gfn.base().unwrap(), &mut bytes).unwrap();
            let shared = share_zero_protected(guest, gfn, Steps::default());
            let zero = bytes.iter().all(|byte| *byte == 0);
            assert!(zero || shared.is_err(), "a page that is not zero was shared");
        }
        Action::ZeroBits(zero_bits) => guest.set_zero_bits(*zero_bits),
    }
}

prop_compose! {
    fn config()(
        layout in prop::sample::select(&Layout::ALL[..]),
        map_pages in prop::sample::select(vec![MapPages::Small, MapPages::Large]),
    ) -> Config {
        // A huge host: running out of memory has its own test.
        Config { layout, map_pages, pages: 4096, host_free: 8192, ..Config::default() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_the_guest_keeps_its_data(
        config in config(), neighbour in any::<bool>(), actions in prop::collection::vec(action(), 1..120),
    ) {
        let mut guest = MockGuest::new(&config);
        guest.set_neighbour(neighbour);
        let host_free = guest.host_free();
        let profile = guest.profile();
        let mut session = attach(&mut guest, &profile);
        let (mut held, mut serial) = (Vec::new(), 0);
        for action in &actions {
            act(&mut guest, &mut session, &mut held, action, &mut serial);
            prop_assert_eq!(guest.verify(), Ok(()));
            prop_assert_eq!(guest.audit(), Ok(()));
        }
        // What was given and what was taken back add up.
        let counters = guest.counters();
        prop_assert_eq!(counters.released, guest.zero_gfns() + counters.unshared);
        let gained = if neighbour { 0 } else { counters.released };
        prop_assert_eq!(guest.host_free(), host_free + gained - counters.unshared);
        let statistics = session.statistics(&mut guest);
        prop_assert!(statistics.shared <= counters.released);
        prop_assert!(statistics.slice_most_units <= MAX_SLICE_UNITS);
        prop_assert!(statistics.slice_most_pages <= MAX_SLICE_PAGES);
    }

    /// On a quiet guest, a scan and a share give back every free page that nothing holds, in the largest
    /// entries.
    #[test]
    fn a_quiet_guest_gives_back_everything(
        config in config(), actions in prop::collection::vec(action(), 1..80), held in prop::collection::btree_set(0_u64..4096, 0..6),
        known in prop::sample::select(vec![ZeroBits::Kept, ZeroBits::Missing]),
    ) {
        let mut guest = MockGuest::new(&config);
        let profile = guest.profile();
        let mut session = attach(&mut guest, &profile);
        let (mut earlier, mut serial) = (Vec::new(), 0);
        for action in &actions { act(&mut guest, &mut session, &mut earlier, action, &mut serial); }
        for page in earlier.drain(..) { guest.unhold(Gfn::new(page)); }
        let held: Vec<u64> = held.into_iter().filter(|page| guest.hold(Gfn::new(*page))).collect();
        guest.set_zero_bits(known);
        act(&mut guest, &mut session, &mut earlier, &Action::Scan, &mut serial);
        act(&mut guest, &mut session, &mut earlier, &Action::Share, &mut serial);
        let free = |page: u64| guest.is_free(Gfn::new(page));
        let pinned = held.iter().filter(|page| free(**page)).count() as u64;
        prop_assert!(guest.zero_gfns() >= guest.free_pages() - pinned);
        let whole = |region: u64| (region * 512..region * 512 + 512).all(|page| free(page) && !held.contains(&page));
        prop_assert!(guest.zero_superpages() >= (0..8).filter(|region| whole(*region)).count() as u64);
        prop_assert_eq!(guest.verify(), Ok(()));
        prop_assert_eq!(guest.audit(), Ok(()));
        // Once more finds nothing to do.
        let before = guest.counters().released;
        act(&mut guest, &mut session, &mut earlier, &Action::Share, &mut serial);
        prop_assert_eq!(guest.counters().released, before);
    }

    /// A guest that allocates, writes and frees between any two calls of the engine loses nothing, paused or
    /// not.
    #[test]
    fn a_guest_at_work_between_any_two_calls_loses_nothing(
        layout in prop::sample::select(&Layout::ALL[..]), seed in 1_u64.., neighbour in any::<bool>(),
    ) {
        let mut guest = busy_guest(layout, seed);
        guest.set_neighbour(neighbour);
        prop_assert_eq!(rounds(&mut guest, Steps::default()), Ok(()));
        prop_assert_eq!(guest.audit(), Ok(()));
    }
}

/// Marsaglia's xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A guest whose program takes one step before each call of the engine: allocate (marks only), write a page
/// of what was allocated, or free.
fn busy_guest(layout: Layout, seed: u64) -> MockGuest {
    let mut guest = MockGuest::new(&Config {
        layout,
        pages: 2048,
        host_free: 8192,
        ..Config::default()
    });
    let mut state = seed;
    let mut pending: Vec<Gfn> = Vec::new();
    guest.set_interlude(move |guest| {
        let roll = random(&mut state);
        let vcpu = (roll >> 32) as usize % 2;
        if let Some(page) = pending.last().copied() {
            // Blocked by the p2m lock: this virtual CPU waits, which is to try again next time.
            if guest.stamp(vcpu, page, roll) == Access::Done {
                pending.pop();
            }
        } else if roll % 8 < 4 {
            let order = (roll >> 8) as u8 % 4;
            if let Some(head) = guest.alloc_from(vcpu, order, roll & 0x100 == 0) {
                pending.extend((head.get()..head.get() + (1 << order)).map(Gfn::new));
            }
        } else {
            let blocks: Vec<Gfn> = guest.allocated().map(|(head, _)| head).collect();
            if blocks.len() > 40 || roll % 8 == 7 && !blocks.is_empty() {
                guest.free(vcpu, blocks[(roll >> 16) as usize % blocks.len()]);
            }
        }
    });
    guest
}

/// Share rounds over all of memory on the word of a scan: free pages while the guest stands still, then pages
/// of zeros while it runs.
fn rounds(guest: &mut MockGuest, steps: Steps) -> Result<(), Damage> {
    let profile = guest.profile();
    let mut session = attach(guest, &profile);
    let end = guest.pages();
    for _ in 0..3 {
        operate(&mut session, guest, Op::Scan, (0, 0));
        let part = guest.part(Table::Bitmap, 0);
        let bitmap = part.bitmap();
        let mut at = 0;
        while at < end {
            let slice = Slice::new(guest, &profile, &bitmap, Gfn::new(at), Gfn::new(end), steps);
            let (report, identified) = slice.run();
            identified.unwrap();
            guest.verify()?;
            at = report.next;
        }
        operate(&mut session, guest, Op::Scan, (0, 0));
        for page in 0..end {
            if bitmap.get(Gfn::new(page)) {
                let _ = share_zero_protected(guest, Gfn::new(page), steps);
            }
            if page % 64 == 0 {
                guest.verify()?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_same_guest_without_the_recheck_is_damaged() {
    let damaged = (1..6_u64).all(|seed| {
        let mut guest = busy_guest(Layout::modern(), seed);
        rounds(&mut guest, Steps::with(lacuna_core::Mutation::NoRecheck)).is_err()
    });
    assert!(
        damaged,
        "a scan that is trusted must lose data, or this test sees nothing"
    );
}

/// One share of a whole guest with allocations in between; returns the session.
fn scenario(guest: &mut MockGuest, session: &mut Session) -> [Status; 2] {
    let scan = operate(session, guest, Op::Scan, (0, 0)).0;
    let share = operate(session, guest, Op::Share, (0, 0)).0;
    [scan, share]
}

fn furnished_guest() -> (MockGuest, Session) {
    let mut guest = MockGuest::new(&Config {
        pages: 2048,
        host_free: 8192,
        ..Config::default()
    });
    let mut serial = 0;
    for order in [0, 3, 0, 5, 1] {
        alloc_and_stamp(&mut guest, 0, order, order % 2 == 0, &mut serial);
    }
    let third = guest.allocated().nth(2).unwrap().0;
    guest.free(1, third);
    let profile = guest.profile();
    let session = attach(&mut guest, &profile);
    guest.clear_faults();
    (guest, session)
}

#[test]
fn each_call_failed_once_loses_nothing_and_leaves_nothing_half_done() {
    let (mut guest, mut session) = furnished_guest();
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    let goal = guest.zero_gfns();
    assert_eq!(goal, guest.free_pages());
    // The content stage has tests of its own.
    let calls = [
        Primitive::Read,
        Primitive::Registers,
        Primitive::ShareZero,
        Primitive::Extend,
        Primitive::Blocker,
        Primitive::Preempted,
    ]
    .map(|primitive| (primitive, guest.calls(primitive)));

    for (primitive, calls) in calls {
        assert!(calls > 0, "{primitive:?} is never called: the test shows nothing");
        for call in 0..calls {
            let (mut guest, mut session) = furnished_guest();
            guest.fail(primitive, call);
            let [scan, share] = scenario(&mut guest, &mut session);
            let told = format!("{primitive:?} call {call}: scan {scan:?}, share {share:?}");
            assert_eq!(guest.faults_struck(), 1, "{told}");
            assert_eq!(guest.audit(), Ok(()), "{told}");
            assert_eq!(guest.verify(), Ok(()), "{told}");
            assert_ne!(session.state(), State::Ended, "{told}");
            assert!(guest.zero_gfns() <= goal, "{told}");
            // Nothing is lost for good either: without the fault, the same request completes.
            guest.clear_faults();
            assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2], "{told}");
            assert_eq!(guest.zero_gfns(), goal, "{told}");
            assert_eq!(guest.audit(), Ok(()), "{told}");
            assert_eq!(guest.verify(), Ok(()), "{told}");
        }
    }
}

#[test]
fn each_call_failed_once_leaves_a_page_of_zeros_as_it_was() {
    let page = |guest: &MockGuest| guest.free_blocks()[0].0;
    let (mut guest, _) = furnished_guest();
    let gfn = page(&guest);
    assert_eq!(share_zero_protected(&mut guest, gfn, Steps::default()), Ok(1));
    let calls =
        [Primitive::Protect, Primitive::ShareZero].map(|primitive| (primitive, guest.calls(primitive)));
    for (primitive, calls) in calls {
        assert!(calls > 0, "{primitive:?} is never called");
        for call in 0..calls {
            let (mut guest, _) = furnished_guest();
            guest.fail(primitive, call);
            let shared = share_zero_protected(&mut guest, gfn, Steps::default());
            assert!(shared.is_err(), "{primitive:?} {call}");
            assert_eq!((guest.zero_gfns(), guest.audit()), (0, Ok(())));
            // Writable again, and not by a fault.
            assert_eq!(guest.stamp(0, gfn, 7), Access::Done);
            assert_eq!((guest.audit(), guest.verify()), (Ok(()), Ok(())));
        }
    }
}

#[test]
fn a_page_that_something_holds_stays_and_its_region_goes_in_pages() {
    let mut guest = MockGuest::new(&Config::default());
    let (head, _) = guest
        .free_blocks()
        .into_iter()
        .find(|(_, order)| *order == 10)
        .unwrap();
    assert!(guest.hold(Gfn::new(head.get() + 100)));
    let profile = guest.profile();
    let mut session = attach(&mut guest, &profile);
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    assert_eq!(guest.zero_gfns(), guest.free_pages() - 1);
    let statistics = session.statistics(&mut guest);
    assert_eq!(statistics.skipped_held, 1);
    assert_eq!(statistics.shared, guest.free_pages() - 1);
    assert_eq!(
        statistics.shared,
        512 * statistics.shared_superpages + statistics.shared_entries
    );
}

#[test]
fn where_bytes_must_be_zero_only_zero_pages_go() {
    let mut guest = MockGuest::new(&Config::default());
    let dirty = guest.alloc(0, 0).unwrap();
    guest.stamp(0, dirty, 0xdead);
    guest.free(0, dirty);
    let mut profile = guest.profile();
    profile.free.bytes = BytesRule::Zero;
    let mut session = attach(&mut guest, &profile);
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    assert_eq!(guest.zero_gfns(), guest.free_pages() - 1);
    assert_eq!(session.statistics(&mut guest).skipped_not_zero, 1);
    let mut left = [0; 8];
    guest.load(0, dirty, 0, &mut left);
    assert_eq!(u64::from_le_bytes(left), 0xdead);
}

#[test]
fn without_paging_pool_nothing_is_split_and_superpages_still_go() {
    let mut guest = MockGuest::new(&Config::default());
    guest.set_pool_pages(0);
    // A page in use in the middle of a free region.
    let lowest = guest.alloc_from(0, 0, true).unwrap();
    let profile = guest.profile();
    let mut session = attach(&mut guest, &profile);
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    let region = lowest.align_down(Order::SUPERPAGE).get();
    let whole = |region: u64| (region..region + 512).all(|page| guest.is_free(Gfn::new(page)));
    let regions = (0..guest.pages())
        .step_by(512)
        .filter(|region| whole(*region))
        .count() as u64;
    assert!(!whole(region));
    assert_eq!(guest.zero_superpages(), regions);
    assert_eq!(guest.zero_gfns(), 512 * regions);
    assert!(session.statistics(&mut guest).skipped_no_pool > 0);
}

#[test]
fn a_guest_that_finds_no_host_memory_waits_and_goes_on_later() {
    let mut guest = MockGuest::new(&Config {
        host_free: 0,
        ..Config::default()
    });
    guest.set_neighbour(true);
    let profile = guest.profile();
    let mut session = attach(&mut guest, &profile);
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    let page = guest.alloc(0, 0).unwrap();
    assert_eq!(guest.stamp(0, page, 1), Access::NoMemory);
    assert_eq!(guest.counters().unshare_enomem, 1);
    assert_eq!((guest.audit(), guest.verify()), (Ok(()), Ok(())));
}

#[test]
fn log_dirty_mode_stops_sharing_at_the_next_slice() {
    let mut guest = MockGuest::new(&Config::default());
    let profile = guest.profile();
    let mut session = attach(&mut guest, &profile);
    operate(&mut session, &mut guest, Op::Scan, (0, 0));
    guest.set_log_dirty(true);
    let (status, request) = operate(&mut session, &mut guest, Op::Share, (0, 0));
    assert_eq!((status, request.result[0]), (Status::LogDirty, 5));
    assert_eq!(guest.zero_gfns(), 0);
    // Turned on between the question and the slice.
    let part = guest.part(Table::Bitmap, 0);
    let report = share_part(&mut guest, &profile, &part.bitmap(), 0, 8192);
    assert_eq!(report.shared, 0);
    assert!(report.skipped[Skip::LogDirty.index()] > 0);
    assert_eq!(guest.audit(), Ok(()));
}

/// A few single pages before whole regions: the region that no longer fits is the next slice's.
#[test]
fn a_slice_does_not_begin_a_region_that_no_longer_fits() {
    let mut guest = MockGuest::new(&Config {
        pages: 16384,
        ..Config::default()
    });
    let profile = guest.profile();
    let whole =
        |guest: &MockGuest, region: u64| (region..region + 512).all(|page| guest.is_free(Gfn::new(page)));
    let first = (0..16384)
        .step_by(512)
        .find(|first| (0..10).all(|region| whole(&guest, first + region * 512)))
        .unwrap();
    let part = guest.extend(Table::Bitmap, 0).unwrap();
    let bitmap = part.bitmap();
    bitmap.set_range(Gfn::new(first), Gfn::new(first + 10 * 512));
    let mut slice = |from: u64| share_part(&mut guest, &profile, &bitmap, from, first + 10 * 512);
    let report = slice(first + 512 - 63);
    assert_eq!(
        (report.shared, report.units),
        (63 + 7 * 512, 63 + 7 * SUPERPAGE_UNITS)
    );
    assert_eq!(report.next, first + 8 * 512);
    let report = slice(report.next);
    assert_eq!((report.shared, report.next), (2 * 512, first + 10 * 512));
}

/// The worst that descriptors can do to a stopped guest: every page looks at every order and finds nothing.
#[test]
fn a_slice_is_bounded_whatever_the_descriptors_say() {
    let config = Config {
        pages: 16384,
        host_free: 0,
        ..Config::default()
    };
    let mut guest = MockGuest::new(&config);
    let mut profile = guest.profile();
    profile.free.blocks.as_mut().unwrap().max_order = Order::MAX;
    // The bitmap calls everything free; not one descriptor agrees.
    for gfn in 0..guest.pages() {
        guest.corrupt(
            Gfn::new(gfn),
            config.layout.predicate.field,
            config.layout.unmarked[0],
        );
    }
    let part = guest.extend(Table::Bitmap, 0).unwrap();
    let bitmap = part.bitmap();
    bitmap.set_range(Gfn::new(0), Gfn::new(16384));
    // Each read as dear as mapping another frame.
    guest.set_read_price(500);
    let (mut at, mut most_units, mut longest) = (0, 0, 0);
    while at < 16384 {
        let report = share_part(&mut guest, &profile, &bitmap, at, 16384);
        assert!(report.next > at, "a slice makes progress");
        assert_eq!(report.shared, 0);
        at = report.next;
        most_units = most_units.max(report.units);
        longest = longest.max(report.pause_ns);
    }
    assert!(most_units <= MAX_SLICE_UNITS);
    // The clock is asked often enough: what follows the limit is the price of one look, not of a region.
    assert!(
        longest < MAX_SLICE_NS + MAX_SLICE_NS / 8,
        "stopped for {longest} ns"
    );
}

/// The search for the first candidate is bounded too: a guest of terabytes has a bitmap of many megabytes.
#[test]
fn an_empty_bitmap_is_searched_in_parts_and_without_a_pause() {
    let mut guest = MockGuest::new(&Config::default());
    let profile = guest.profile();
    let words: Vec<std::sync::atomic::AtomicU64> = (0..1 << 17).map(|_| 0.into()).collect();
    let bitmap = Bitmap::new(&words);
    let (mut at, mut parts) = (0, 0);
    while at < bitmap.gfns() {
        let report = share_part(&mut guest, &profile, &bitmap, at, bitmap.gfns());
        assert!(!report.paused);
        assert!(report.next > at && report.next - at <= 1 << 21);
        at = report.next;
        parts += 1;
    }
    assert_eq!(parts, 4);
}

/// What the hypervisor knows of zero frames is a hint: a bit that is missing costs a look, and one that is
/// wrong a page that stays the guest's until it is right again.
#[test]
fn bits_of_zero_frames_decide_what_is_looked_at_and_nothing_else() {
    let mut guest = MockGuest::new(&Config::default());
    let used: Vec<Gfn> = (0..5).map(|_| guest.alloc(0, 9).unwrap()).collect();
    let profile = guest.profile();
    let mut session = attach(&mut guest, &profile);
    guest.set_zero_bits(ZeroBits::Stale);
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    // Whole regions are looked at all the same: their entries may be small.
    let free = guest.free_pages();
    assert!(guest.zero_gfns() > 0 && guest.zero_gfns() < free);
    assert_eq!(guest.zero_gfns(), 512 * guest.zero_superpages());

    guest.set_zero_bits(ZeroBits::Missing);
    assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
    assert_eq!(guest.zero_gfns(), free);
    let before = session.statistics(&mut guest);

    for zero_bits in [ZeroBits::Missing, ZeroBits::Kept] {
        guest.set_zero_bits(zero_bits);
        assert_eq!(scenario(&mut guest, &mut session), [Status::Done; 2]);
        let after = session.statistics(&mut guest);
        assert_eq!((after.slices, after.shared), (before.slices, before.shared));
    }
    let after = session.statistics(&mut guest);
    assert_eq!(after.already - before.already, 2 * free, "each is counted once");
    guest.free(0, used[0]);
    assert_eq!((guest.audit(), guest.verify()), (Ok(()), Ok(())));
}

/// A slice takes no page of a stopped guest that is known to be on a zero frame.
#[test]
fn a_slice_passes_over_what_is_on_zero_frames() {
    let mut guest = MockGuest::new(&Config::default());
    let profile = guest.profile();
    let mut session = attach(&mut guest, &profile);
    operate(&mut session, &mut guest, Op::Scan, (0, 0));
    let first = (0..guest.pages())
        .step_by(512)
        .find(|first| (0..512).all(|page| guest.is_free(Gfn::new(first + page))))
        .unwrap();
    // Every other page, so that all of it is in small entries.
    let part = guest.part(Table::Bitmap, 0);
    let bitmap = part.bitmap();
    bitmap.clear_range(Gfn::new(0), Gfn::new(guest.pages()));
    let words: Vec<std::sync::atomic::AtomicU64> = (0..guest.pages() / 64).map(|_| 0.into()).collect();
    let zero = Bitmap::new(&words);
    for page in (first..first + 128).step_by(2) {
        bitmap.set_range(Gfn::new(page), Gfn::new(page + 1));
    }
    zero.set_range(Gfn::new(first + 16), Gfn::new(first + 100));
    let calls = guest.calls(Primitive::ShareZero);
    let end = Gfn::new(first + 512);
    let slice = Slice::new(
        &mut guest,
        &profile,
        &bitmap,
        Gfn::new(first),
        end,
        Steps::default(),
    );
    let (report, identified) = slice.passing_over(zero).run();
    identified.unwrap();
    assert!(report.skipped[Skip::Already.index()] >= 42, "{report:?}");
    let tried = guest.calls(Primitive::ShareZero) - calls;
    assert_eq!(tried, report.shared);
    for page in first + 16..first + 100 {
        assert_eq!(guest.gfn_info(Gfn::new(page)).zero_frame, 0, "frame {page}");
    }
    assert_eq!(guest.audit(), Ok(()));
}
