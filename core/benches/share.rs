//! Instructions per page given back, counted by valgrind and held against the bounds in `share.bounds`.
//!
//! `cargo bench -p lacuna-core --bench share`. Counted is the core's part of slices over all that a scan
//! found free. What the hypervisor's own functions take (the p2m's entries, above all) is not in the figures.
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

use lacuna_core::{
    Bitmap, BytesRule, FreeCheck, Gfn, GuestMemory, GuestPhys, Order, P2m, Predicate, Profile, ReadError,
    Row, Scanner, Skip, Slice, Steps, VcpuRegisters,
};

use callgrind::Counted;
use flat::{Flat, PAGES, guest};

/// A domain whose hypervisor does as it is asked, at no cost.
struct Domain {
    memory: Flat,
    registers: VcpuRegisters,
    calls: u64,
}

impl GuestMemory for Domain {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        self.memory.read(at, into)
    }

    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        self.memory.read_value(at, width)
    }

    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        self.memory.count_failing(row, test)
    }
}

impl P2m for Domain {
    fn pause(&mut self) {}

    fn unpause(&mut self) {}

    fn vcpus(&mut self) -> u32 {
        1
    }

    fn registers(&mut self, _vcpu: u32) -> VcpuRegisters {
        self.registers
    }

    fn lock(&mut self) {}

    fn unlock(&mut self) {}

    #[inline(never)]
    fn share_zero(&mut self, _gfn: Gfn, order: Order, _bytes: BytesRule) -> Result<u64, Skip> {
        self.calls += 1;
        Ok(order.pages())
    }

    fn flush(&mut self) {}

    fn release(&mut self) {}

    /// In Xen some fifty instructions: here, too, a call.
    #[inline(never)]
    fn now(&mut self) -> u64 {
        self.calls += 1;
        0
    }
}

/// What callgrind counts: nothing outside this function.
#[inline(never)]
fn measured_slices(profile: &Profile, domain: &mut Domain, bitmap: &Bitmap<'_>, zero: &Bitmap<'_>) -> u64 {
    let mut at = Gfn::new(0);
    let mut shared = 0;
    while at < Gfn::new(PAGES) {
        let slice = Slice::new(domain, profile, bitmap, at, Gfn::new(PAGES), Steps::default());
        let (report, identified) = slice.passing_over(*zero).run();
        assert_eq!(identified, Ok(()));
        shared += report.shared;
        at = Gfn::new(report.next);
    }
    shared
}

/// The child under valgrind.
fn run(case: &str) {
    let mut guest = guest(case);
    let profile = guest.profile();
    let registers = guest.registers(0);
    let mut domain = Domain {
        memory: Flat::of(&mut guest),
        registers,
        calls: 0,
    };
    let words: Vec<AtomicU64> = (0..PAGES / 64).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    let mut scanner = Scanner::new(FreeCheck::new(&profile));
    scanner.step(&mut domain, &bitmap, Gfn::new(0), Gfn::new(PAGES), PAGES);
    // None of it is on a zero frame yet.
    let none: Vec<AtomicU64> = (0..PAGES / 64).map(|_| AtomicU64::new(0)).collect();
    let shared = black_box(measured_slices(
        &profile,
        &mut domain,
        &bitmap,
        &Bitmap::new(&none),
    ));
    assert_eq!(shared, guest.free_pages(), "the slices are wrong");
}

fn main() -> ExitCode {
    let share = Counted {
        subject: "share",
        function: "measured_slices",
        bounds: include_str!("share.bounds"),
        bounds_file: "core/benches/share.bounds",
        pages: |case| guest(case).free_pages(),
        run,
    };
    share.main()
}
