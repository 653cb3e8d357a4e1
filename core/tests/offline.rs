//! Scans of memory that stands still: every memory model, and the last word on every page.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicU64;

use lacuna_core::{
    Agreement, Bitmap, FrameCopies, Gfn, GuestMemory, GuestPhys, OfflineScan, PagingLevels, Predicate,
    Profile, ReadError, Row, scan_offline,
};
use lacuna_mock::{Config, Layout, MapPages, MockGuest, Model};

/// Counts what is asked of it.
struct Counted<'g> {
    guest: &'g mut MockGuest,
    reads: u64,
    zero_checks: u64,
}

impl GuestMemory for Counted<'_> {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.reads += 1;
        self.guest.read(at, into)
    }

    fn is_zero(&mut self, gfn: Gfn) -> Result<bool, ReadError> {
        self.zero_checks += 1;
        self.guest.is_zero(gfn)
    }
}

fn words(guest: &MockGuest) -> Vec<AtomicU64> {
    (0..guest.pages().div_ceil(64))
        .map(|_| AtomicU64::new(u64::MAX))
        .collect()
}

fn scan(guest: &mut MockGuest, profile: &Profile, words: &[AtomicU64]) -> OfflineScan {
    let end = Gfn::new(guest.pages());
    let mut memory = FrameCopies::new(Counted {
        guest,
        reads: 0,
        zero_checks: 0,
    });
    scan_offline(&mut memory, profile, &Bitmap::new(words), end, |_| ()).unwrap()
}

/// A guest whose memory is in every state: every third block of one to eight pages is free.
fn worn(config: &Config) -> MockGuest {
    let mut guest = MockGuest::new(config);
    for order in [0, 1, 2, 3] {
        for _ in 0..120 {
            guest.alloc_from(0, order, order % 2 == 0);
        }
    }
    let held: Vec<Gfn> = guest.allocated().map(|(head, _)| head).step_by(3).collect();
    for head in held {
        guest.free(0, head);
    }
    guest
}

fn kernels() -> Vec<Config> {
    let mut all = Vec::new();
    for levels in [
        PagingLevels::Four,
        PagingLevels::Five,
        PagingLevels::Pae,
        PagingLevels::Two,
    ] {
        for model in [
            Model::Vmemmap,
            Model::Flat,
            Model::Discontiguous,
            Model::SectionsStatic,
            Model::SectionsExtreme,
            Model::Runs,
        ] {
            for layout in Layout::ALL.into_iter().chain(Layout::WINDOWS) {
                for map_pages in [MapPages::Small, MapPages::Large] {
                    if model != Model::Vmemmap || !levels.is_32_bit() {
                        all.push(Config {
                            layout,
                            levels,
                            model,
                            map_pages,
                            hole: 3072..4096,
                            ..Config::default()
                        });
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_model_in_every_kind_of_page_tables_is_scanned_exactly() {
    for config in kernels() {
        let mut guest = worn(&config);
        let profile = guest.profile();
        assert_eq!(profile.check(), Ok(()));
        let words = words(&guest);
        let found = scan(&mut guest, &profile, &words);
        assert_eq!(
            (found.free(), found.not_zero),
            (guest.free_pages(), 0),
            "{config:?}"
        );
        assert_eq!(found.agreement, Agreement::Agrees);
        assert_eq!(found.counted.unwrap().pages, guest.free_pages());
        let bitmap = Bitmap::new(&words);
        for gfn in (0..guest.pages()).map(Gfn::new) {
            assert_eq!(bitmap.get(gfn), guest.is_free(gfn), "{gfn:?} of {config:?}");
        }
    }
}

#[test]
fn a_page_that_is_listed_as_zeroed_and_is_not_zero_is_not_free() {
    let mut guest = worn(&Config {
        layout: Layout::windows(),
        model: Model::Runs,
        ..Config::default()
    });
    let free: Vec<Gfn> = (0..guest.pages())
        .map(Gfn::new)
        .filter(|gfn| guest.is_free(*gfn))
        .collect();
    let lies: Vec<Gfn> = free.iter().copied().step_by(97).collect();
    for (gfn, offset) in lies.iter().zip([0, 7, 255, 256, 4095].into_iter().cycle()) {
        guest.store(0, *gfn, offset, &[0x80]);
    }
    let (profile, words) = (guest.profile(), words(&guest));
    let found = scan(&mut guest, &profile, &words);
    assert_eq!(found.not_zero, lies.len() as u64);
    assert_eq!(found.free(), guest.free_pages() - found.not_zero);
    assert_eq!(found.agreement, Agreement::Agrees);
    let bitmap = Bitmap::new(&words);
    for gfn in &free {
        assert_eq!(bitmap.get(*gfn), !lies.contains(gfn));
    }
}

#[test]
fn counters_that_say_otherwise_or_nothing_are_told_apart() {
    for layout in [Layout::modern(), Layout::windows()] {
        let mut guest = worn(&Config {
            layout,
            model: Model::Flat,
            ..Config::default()
        });
        let words = words(&guest);
        let mut profile = guest.profile();
        assert_eq!(scan(&mut guest, &profile, &words).agreement, Agreement::Agrees);
        // The kernel counts more than there is.
        guest.corrupt_counter(0, 0, 1 << 20);
        assert_eq!(scan(&mut guest, &profile, &words).agreement, Agreement::Disagrees);
        // And much less.
        for zone in 0..2 {
            for order in 0..=10 {
                guest.corrupt_counter(zone, order, 0);
            }
        }
        assert_eq!(scan(&mut guest, &profile, &words).agreement, Agreement::Disagrees);
        profile.zones.clear();
        let found = scan(&mut guest, &profile, &words);
        assert_eq!((found.agreement, found.counted), (Agreement::Unconfirmed, None));
        assert_eq!(found.free(), guest.free_pages());
    }
}

/// The source is asked for a frame of descriptors once, and for no descriptor inside a free block.
#[test]
fn a_scan_by_frames_asks_for_each_frame_once() {
    let mut guest = MockGuest::new(&Config {
        map_pages: MapPages::Large,
        ..Config::default()
    });
    let profile = guest.profile();
    for busy in [false, true] {
        if busy {
            while (0..=10).rev().any(|order| guest.alloc(0, order).is_some()) {}
        }
        let words = words(&guest);
        let mut counted = Counted {
            guest: &mut guest,
            reads: 0,
            zero_checks: 0,
        };
        let end = Gfn::new(8192);
        let mut memory = FrameCopies::new(&mut counted);
        scan_offline(&mut memory, &profile, &Bitmap::new(&words), end, |_| ()).unwrap();
        // 128 frames of 64 descriptors; a block of 1,024 pages takes one of 16. Page tables and counters: a
        // few.
        let frames = if busy { 128 } else { 8 + 2 };
        assert!(counted.reads <= frames + 24, "{} reads", counted.reads);
        assert_eq!(counted.zero_checks, 0);
    }
}

/// What the copies say is what the memory says, for every place and width, in rows and one by one.
#[test]
fn copies_of_frames_read_as_the_memory_does() {
    let mut guest = worn(&Config {
        layout: Layout::straddling(),
        model: Model::Flat,
        ..Config::default()
    });
    let mut other = worn(&Config {
        layout: Layout::straddling(),
        model: Model::Flat,
        ..Config::default()
    });
    let mut copies = FrameCopies::new(&mut guest);
    for at in (64 * 4096 - 20..66 * 4096).step_by(3).map(GuestPhys::new) {
        for width in [1, 2, 4, 8] {
            assert_eq!(
                copies.read_value(at, width),
                other.read_value(at, width),
                "{at:?}, {width}"
            );
        }
        let row = Row {
            first: GuestPhys::new(at.get() & !0xfff | 0x18),
            stride: 40,
            count: 1 + at.get() % 101,
        };
        let test: Predicate = Layout::straddling().predicate;
        assert_eq!(
            copies.count_failing(row, &test),
            other.count_failing(row, &test),
            "{row:?}"
        );
    }
    assert!(copies.read_value(GuestPhys::new(8192 << 12), 4).is_err());
    assert!(copies.read(GuestPhys::new(4090), &mut [0; 8]).is_err());
}
