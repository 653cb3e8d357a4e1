//! The free check and the scan against the mock allocator's own truth.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::sync::atomic::AtomicU64;

use lacuna_core::{
    Bitmap, Extent, FreeCheck, Gfn, GuestVirt, InUseReason, Order, PagingLevels, ScanStep, Scanner,
    UnknownReason, Verdict,
};
use lacuna_mock::{Config, Layout, MapPages, MockGuest, Model};
use proptest::prelude::*;

/// One thing that the guest does.
#[derive(Clone, Debug)]
enum Action {
    Alloc { order: u8, highest: bool },
    Free(prop::sample::Index),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (prop_oneof![3 => 0_u8..4, 1 => 4_u8..=10], any::<bool>())
            .prop_map(|(order, highest)| Action::Alloc { order, highest }),
        2 => any::<prop::sample::Index>().prop_map(Action::Free),
    ]
}

fn act(guest: &mut MockGuest, action: &Action) {
    match action {
        Action::Alloc { order, highest } => {
            guest.alloc_from(0, *order, *highest);
        }
        Action::Free(pick) => {
            let held: Vec<Gfn> = guest.allocated().map(|(head, _)| head).collect();
            if !held.is_empty() {
                guest.free(0, held[pick.index(held.len())]);
            }
        }
    }
}

/// Page tables, and a memory model that kernels with such tables have.
fn kernel() -> impl Strategy<Value = (PagingLevels, Model)> {
    let levels = prop::sample::select(vec![
        PagingLevels::Four,
        PagingLevels::Five,
        PagingLevels::Pae,
        PagingLevels::Two,
    ]);
    let model = prop::sample::select(vec![
        Model::Flat,
        Model::Discontiguous,
        Model::SectionsStatic,
        Model::SectionsExtreme,
        Model::Runs,
    ]);
    (levels, model, prop::bool::weighted(0.4)).prop_map(|(levels, model, vmemmap)| {
        let model = if vmemmap && !levels.is_32_bit() {
            Model::Vmemmap
        } else {
            model
        };
        (levels, model)
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    let all: Vec<Layout> = Layout::ALL.into_iter().chain(Layout::WINDOWS).collect();
    prop::sample::select(all)
}

prop_compose! {
    fn config()(
        layout in layout(),
        (levels, model) in kernel(),
        map_pages in prop::sample::select(vec![MapPages::Small, MapPages::Large, MapPages::Huge]),
        hole in any::<bool>(),
    ) -> Config {
        Config {
            layout,
            levels,
            model,
            map_pages,
            pages: 4096 + 512 + 7,
            hole: if hole { 2048..3072 } else { 0..0 },
            vcpus: 1,
            host_free: 16,
        }
    }
}

fn words(guest: &MockGuest) -> Vec<AtomicU64> {
    // Full of nonsense: a scan brings up to date whatever was there.
    (0..guest.pages().div_ceil(64))
        .map(|_| AtomicU64::new(0x5555_5555_5555_5555))
        .collect()
}

/// Scans everything in steps of `budget` descriptors.
fn scan(guest: &mut MockGuest, words: &[AtomicU64], budget: u64) -> ScanStep {
    let profile = guest.profile();
    let mut scanner = Scanner::new(FreeCheck::new(&profile));
    let end = guest.pages();
    let mut total = ScanStep::default();
    while total.next < end {
        let step = scanner.step(
            guest,
            &Bitmap::new(words),
            Gfn::new(total.next),
            Gfn::new(end),
            budget,
        );
        assert!(step.next > total.next, "a step makes progress");
        assert!(step.descriptors <= budget, "a step keeps its budget");
        total = ScanStep {
            next: step.next,
            free: total.free + step.free,
            in_use: total.in_use + step.in_use,
            no_descriptor: total.no_descriptor + step.no_descriptor,
            unknown: total.unknown + step.unknown,
            descriptors: total.descriptors + step.descriptors,
            wants_memory: false,
        };
    }
    total
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// No page wrongly called free, none missed, and nothing read that need not be.
    #[test]
    fn a_scan_finds_exactly_the_free_pages(config in config(), actions in prop::collection::vec(action(), 0..300)) {
        let mut guest = MockGuest::new(&config);
        for action in &actions { act(&mut guest, action); }
        let words = words(&guest);
        guest.record_reads();
        let total = scan(&mut guest, &words, u64::MAX);
        let read = guest.descriptors_read();

        let bitmap = Bitmap::new(&words);
        for gfn in (0..guest.pages()).map(Gfn::new) {
            prop_assert_eq!(bitmap.get(gfn), guest.is_free(gfn), "frame {:?}", gfn);
        }
        prop_assert_eq!(total.free, guest.free_pages());
        prop_assert_eq!(total.unknown, 0);
        prop_assert_eq!(total.free + total.in_use + total.no_descriptor, guest.pages());

        let interior = |gfn: &Gfn| guest.free_block_of(*gfn).is_some_and(|(head, _)| head != *gfn);
        let per_page = config.layout.per_page;
        prop_assert_eq!(read.iter().find(|gfn| interior(gfn) && !per_page), None, "the interior of a block was read");
        let heads = if per_page { total.free } else { guest.free_blocks().len() as u64 };
        // One look for each page of the memory map that is not mapped, or for a section or a run that is not
        // there.
        let missing_pages = total.no_descriptor * u64::from(config.layout.descriptor_bytes) / 4096 + 1;
        let spent = total.descriptors - total.in_use - heads;
        prop_assert!(spent <= missing_pages && (spent > 0) == (total.no_descriptor > 0), "{} looks at holes", spent);
    }

    #[test]
    fn many_small_steps_make_one_big_one(
        config in config(), actions in prop::collection::vec(action(), 0..100), budget in 1_u64..200,
    ) {
        let mut guest = MockGuest::new(&config);
        for action in &actions { act(&mut guest, action); }
        let (small, big) = (words(&guest), words(&guest));
        prop_assert_eq!(scan(&mut guest, &small, budget), scan(&mut guest, &big, u64::MAX));
        for (small, big) in small.iter().zip(&big) {
            prop_assert_eq!(small.load(std::sync::atomic::Ordering::Relaxed), big.load(std::sync::atomic::Ordering::Relaxed));
        }
    }

    /// Asked of any single page, the check names the very block.
    #[test]
    fn the_check_finds_the_block_of_any_page(config in config(), actions in prop::collection::vec(action(), 0..100)) {
        let mut guest = MockGuest::new(&config);
        for action in &actions { act(&mut guest, action); }
        let profile = guest.profile();
    let mut check = FreeCheck::new(&profile);
        for gfn in (0..guest.pages()).map(Gfn::new) {
            let verdict = check.page(&mut guest, gfn);
            match guest.free_block_of(gfn) {
                Some((head, order)) => {
                    let per_page = config.layout.per_page;
                    let head = if per_page { gfn } else { head };
                    let order = if per_page { Order::PAGE } else { Order::new(u64::from(order)).unwrap() };
                    prop_assert_eq!(verdict, Verdict::Free { head, order }, "frame {:?}", gfn);
                }
                None => prop_assert!(!matches!(verdict, Verdict::Free { .. }), "frame {:?}: {:?}", gfn, verdict),
            }
        }
    }

    /// Descriptors full of lies: no panic, bounded work, and `Free` only for what a kernel could mean by it.
    #[test]
    fn lies_in_descriptors_stay_lies(
        config in config(),
        lies in prop::collection::vec((0_u64..4096, 0_usize..3, prop_oneof![any::<u64>(), 0_u64..24]), 0..60),
    ) {
        let mut guest = MockGuest::new(&config);
        let layout = config.layout;
        for (gfn, field, value) in lies {
            let (field, value) = match field {
                0 => (layout.predicate.field, if value % 2 == 0 { layout.marked } else { value }),
                1 => (layout.order, value),
                _ => (layout.references, value % 3),
            };
            if !config.hole.contains(&gfn) { guest.corrupt(Gfn::new(gfn), field, value); }
        }
        let words = words(&guest);
        let total = scan(&mut guest, &words, 64);
        prop_assert_eq!(total.free + total.in_use + total.no_descriptor + total.unknown, guest.pages());
        let profile = guest.profile();
    let mut check = FreeCheck::new(&profile);
        for gfn in (0..guest.pages()).map(Gfn::new) {
            let before = guest.reads();
            let verdict = check.page(&mut guest, gfn);
            // Eleven candidates, each a walk and three members, and where there are sections two more walks.
            prop_assert!(guest.reads() - before <= 11 * 42, "{} reads", guest.reads() - before);
            if let Verdict::Free { head, order } = verdict {
                prop_assert!(order <= layout.max_order && head.is_aligned(order) && head.align_down(order) == gfn.align_down(order));
            }
        }
    }
}

#[test]
fn a_scan_beside_a_busy_guest_ends_and_the_next_one_is_exact() {
    let mut guest = MockGuest::new(&Config::default());
    let mut state = 1_u64;
    guest.set_interlude(move |guest| {
        // A small generator: Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let held: Vec<Gfn> = guest.allocated().map(|(head, _)| head).collect();
        if state % 5 < 3 || held.is_empty() {
            guest.alloc_from(0, (state >> 8) as u8 % 6, state & 1 == 0);
        } else {
            guest.free(0, held[(state >> 16) as usize % held.len()]);
        }
    });
    let words = words(&guest);
    let during = scan(&mut guest, &words, 100);
    assert_eq!(
        during.free + during.in_use + during.unknown + during.no_descriptor,
        guest.pages()
    );
    guest.clear_interlude();
    assert_eq!(scan(&mut guest, &words, 100).free, guest.free_pages());
    assert_eq!(
        Bitmap::new(&words).count(Gfn::new(0), Gfn::new(u64::MAX)),
        guest.free_pages()
    );
}

#[test]
fn a_step_marks_only_its_range() {
    let mut guest = MockGuest::new(&Config::default());
    let words: Vec<AtomicU64> = (0..128).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    let profile = guest.profile();
    let mut scanner = Scanner::new(FreeCheck::new(&profile));
    let step = scanner.step(&mut guest, &bitmap, Gfn::new(1024), Gfn::new(1500), 10);
    assert_eq!(
        (step.next, step.free, step.descriptors),
        (1500, 476, 1),
        "a block may reach past the range"
    );
    assert_eq!(bitmap.count(Gfn::new(0), Gfn::new(8192)), 476);
    let nothing = scanner.step(&mut guest, &bitmap, Gfn::new(1500), Gfn::new(1500), 10);
    assert_eq!((nothing.next, nothing.descriptors), (1500, 0));
    let none = scanner.step(&mut guest, &bitmap, Gfn::new(0), Gfn::new(1500), 0);
    assert_eq!((none.next, none.descriptors), (0, 0));
    assert!(scanner.is_within_block(1500) && !scanner.is_within_block(1501));
    let rest = scanner.step(&mut guest, &bitmap, Gfn::new(1500), Gfn::new(8192), 0);
    assert_eq!(
        (rest.next, rest.free, rest.descriptors),
        (2048, 548, 0),
        "the step that begins where the last one ended has the rest of its block"
    );
    assert_eq!(bitmap.count(Gfn::new(0), Gfn::new(8192)), 1024);
    // Where a part of the bitmap has no memory, the step ends before the block.
    let absent = Bitmap::part(0, 128, &[]);
    let wants = scanner.step(&mut guest, &absent, Gfn::new(1024), Gfn::new(8192), 10);
    assert_eq!(
        (wants.next, wants.free, wants.descriptors, wants.wants_memory),
        (1024, 0, 0, true)
    );
}

#[test]
fn each_contradiction_has_its_reason() {
    let config = Config::default();
    let layout = config.layout;
    let mut guest = MockGuest::new(&config);
    let (head, order) = guest
        .free_blocks()
        .into_iter()
        .find(|(_, order)| *order == 10)
        .unwrap();
    let profile = guest.profile();
    let mut check = FreeCheck::new(&profile);
    let unknown = |reason| Verdict::Unknown(reason);

    guest.corrupt(head, layout.order, 11);
    assert_eq!(check.head(&mut guest, head), unknown(UnknownReason::BadOrder(11)));
    guest.corrupt(head, layout.order, u64::MAX);
    assert_eq!(
        check.head(&mut guest, head),
        unknown(UnknownReason::BadOrder(u64::MAX))
    );
    guest.corrupt(head, layout.order, u64::from(order));
    guest.corrupt(head, layout.references, 1);
    assert_eq!(
        check.head(&mut guest, head),
        unknown(UnknownReason::Condition { index: 0, value: 1 })
    );
    guest.corrupt(head, layout.references, 0);
    // A block of two that begins at an odd frame.
    let odd = Gfn::new(head.get() + 1);
    guest.corrupt(odd, layout.predicate.field, layout.marked);
    guest.corrupt(odd, layout.references, 0);
    guest.corrupt(odd, layout.order, 1);
    assert_eq!(
        check.head(&mut guest, odd),
        unknown(UnknownReason::Misaligned(Order::new(1).unwrap()))
    );
    // A page after a free block, inside what would be its buddy's larger block.
    guest.corrupt(odd, layout.order, 0);
    guest.corrupt(odd, layout.predicate.field, layout.unmarked[0]);
    guest.corrupt(head, layout.order, 2);
    assert_eq!(
        check.page(&mut guest, Gfn::new(head.get() + 5)),
        Verdict::InUse(InUseReason::OutsideBlock)
    );
}

#[test]
fn descriptors_that_are_not_mapped_end_with_the_hole() {
    let config = Config {
        hole: 2048..3072,
        ..Config::default()
    };
    let mut guest = MockGuest::new(&config);
    let profile = guest.profile();
    let mut check = FreeCheck::new(&profile);
    assert_eq!(
        check.head(&mut guest, Gfn::new(2050)),
        Verdict::Unknown(UnknownReason::NoDescriptor { next: Gfn::new(2112) })
    );
    // Past the end of everything: the hole goes on to the next table.
    let Verdict::Unknown(UnknownReason::NoDescriptor { next }) =
        check.head(&mut guest, Gfn::new(guest_end(&config)))
    else {
        panic!("there are no descriptors there");
    };
    assert!(next.get() > guest_end(&config));
}

const fn guest_end(config: &Config) -> u64 {
    config.pages
}

/// A run of memory may end in the middle of a frame of descriptors: those after it are there, and mean
/// nothing.
#[test]
fn entries_between_two_runs_are_not_believed() {
    for layout in Layout::WINDOWS {
        let mut guest = MockGuest::new(&Config {
            layout,
            model: Model::Flat,
            ..Config::default()
        });
        let mut profile = guest.profile();
        let whole = profile.extents[0];
        let size = u64::from(profile.descriptor_bytes);
        let run = |first: u64, end: u64| Extent {
            first: Gfn::new(first),
            count: end - first,
            array: GuestVirt::new(whole.array.get() + first * size),
        };
        profile.extents = [run(16, 5000), run(5003, 8001)].into_iter().collect();
        assert_eq!(profile.check(), Ok(()));
        // Pages in use on both sides of a run's end, so that a scan passes over them in one go.
        let used = 4995..5010;
        for gfn in used.clone() {
            guest.corrupt(Gfn::new(gfn), layout.predicate.field, layout.unmarked[0]);
        }
        let words = words(&guest);
        let bitmap = Bitmap::new(&words);
        let mut scanner = Scanner::new(FreeCheck::new(&profile));
        let step = scanner.step(&mut guest, &bitmap, Gfn::new(0), Gfn::new(8192), u64::MAX);
        assert_eq!((step.next, step.no_descriptor), (8192, 16 + 3 + 191));
        for gfn in (0..8192).map(Gfn::new) {
            let believed = (16..5000).contains(&gfn.get()) || (5003..8001).contains(&gfn.get());
            let free = guest.is_free(gfn) && !used.contains(&gfn.get());
            assert_eq!(bitmap.get(gfn), believed && free, "frame {gfn:?}");
        }
        let mut check = FreeCheck::new(&profile);
        assert_eq!(
            check.page(&mut guest, Gfn::new(5001)),
            Verdict::Unknown(UnknownReason::NoDescriptor { next: Gfn::new(5003) })
        );
    }
}
