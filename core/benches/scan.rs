//! Instructions per page of a scan, counted by valgrind and held against the bounds in `scan.bounds`.
//!
//! `cargo bench -p lacuna-core --bench scan`. What a change of frame costs in Xen is not in the figures;
//! there is one for each 64 descriptors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss
)]

mod callgrind;
mod flat;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;

use lacuna_core::{Bitmap, FreeCheck, Gfn, Profile, ScanStep, Scanner};

use callgrind::Counted;
use flat::{Flat, PAGES, guest};

/// What callgrind counts: nothing outside this function.
#[inline(never)]
fn measured_scan(profile: &Profile, memory: &mut Flat, bitmap: &Bitmap<'_>) -> ScanStep {
    let mut scanner = Scanner::new(FreeCheck::new(profile));
    let mut at = 0;
    let mut last = ScanStep::default();
    while at < PAGES {
        // As the session does: 4,096 descriptors at a time.
        last = scanner.step(memory, bitmap, Gfn::new(at), Gfn::new(PAGES), 4096);
        at = last.next;
    }
    last
}

/// The child under valgrind.
fn run(case: &str) {
    let mut guest = guest(case);
    let profile = guest.profile();
    let mut memory = Flat::of(&mut guest);
    let words: Vec<AtomicU64> = (0..PAGES / 64).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    black_box(measured_scan(&profile, &mut memory, &bitmap));
    assert_eq!(
        bitmap.count(Gfn::new(0), Gfn::new(PAGES)),
        guest.free_pages(),
        "the scan is wrong"
    );
}

fn main() -> ExitCode {
    let scan = Counted {
        subject: "scan",
        function: "measured_scan",
        bounds: include_str!("scan.bounds"),
        bounds_file: "core/benches/scan.bounds",
        pages: |_| PAGES,
        run,
    };
    scan.main()
}
