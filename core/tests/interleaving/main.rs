//! Every interleaving of a guest with the engine's real share code, and proof that each step is needed.
//!
//! `loom` runs the threads one at a time and tries every order of their steps up to a number of preemptions
//! (3 unless `LOOM_MAX_PREEMPTIONS` says otherwise). The engine's thread is [`Slice`] or
//! [`share_zero_protected`] itself; only the machine below it is a model:
//!
//! * **the guest** runs instruction by instruction on one virtual CPU. It allocates a page: marks its
//!   descriptor, then writes, then reads back; or it only reads a free page; or it kexecs. Its translation of
//!   the page is cached from earlier use and stays until it is flushed, which is the worst that a processor
//!   may do.
//! * **its store buffer** holds what it wrote, in order (x86: total store order), until the virtual CPU
//!   leaves the guest, acknowledges a flush, or, at any moment, a third thread lets one store out.
//! * **a write fault** waits for the p2m lock, then takes a cleared page, or makes a read-only entry writable
//!   again.
//! * **the neighbour**, another domain, takes each released frame in the instant of its release and writes to
//!   it.
//! * **a holder** (a grant or foreign mapping) looks the page up under the p2m lock and takes a reference.
//!
//! Guest memory that nothing changes meanwhile (page tables, other descriptors) comes from a snapshot of the
//! mock guest and is no step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod engine;
mod machine;
mod merge;
mod protection;
mod refill;
mod reserve;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Cell};

use lacuna_core::{Bitmap, Mutation, Slice, Steps, share_zero_protected};

use engine::Engine;
use machine::{OLD, Program, State, World, snapshot};
use protection::Protection;

/// Which of the engine's two orders of steps runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// The free stage's, for a page that is free: the guest stands still.
    Paused,
    /// The same, where the first page of the block is wrongly known to be on a zero frame.
    PausedStale,
    /// The content stage's, for a page of zeros: the guest runs on.
    Protected,
}

impl Variant {
    /// What the page holds before.
    const fn value(self) -> u64 {
        match self {
            Self::Paused | Self::PausedStale => OLD,
            Self::Protected => 0,
        }
    }
}

fn engine(world: &World, variant: Variant, protection: Protection, steps: Steps) {
    let (gfn, order, _) = world.block;
    let profile = &world.snapshot.profile;
    let mut engine = Engine::new(world, protection);
    match variant {
        Variant::Paused | Variant::PausedStale => {
            let words: Vec<AtomicU64> = (0..128).map(|_| AtomicU64::new(0)).collect();
            let bitmap = Bitmap::new(&words);
            let end = gfn.saturating_add(order.pages());
            bitmap.set_range(gfn, end);
            // Another kernel is an answer like any other: what counts is what became of the page.
            let slice = Slice::new(&mut engine, profile, &bitmap, gfn, end, steps);
            if variant == Variant::PausedStale {
                let words: Vec<AtomicU64> = (0..128).map(|_| AtomicU64::new(0)).collect();
                let zero = Bitmap::new(&words);
                zero.set_range(gfn, gfn.saturating_add(1));
                let _ = slice.passing_over(zero).run();
            } else {
                let _ = slice.run();
            }
        }
        Variant::Protected => {
            let _ = share_zero_protected(&mut engine, gfn, steps);
        }
    }
}

/// Tries every interleaving; returns their number and the first thing that went wrong.
fn explore(variant: Variant, program: Program, block: usize, steps: Steps) -> (u64, Option<&'static str>) {
    explore_protected(variant, program, block, Protection::REAL, steps)
}

/// The same where entries are protected in another way, or on another processor.
fn explore_protected(
    variant: Variant,
    program: Program,
    block: usize,
    protection: Protection,
    steps: Steps,
) -> (u64, Option<&'static str>) {
    explore_threads(
        move || World::new(snapshot().blocks[block], variant.value()),
        move |world| {
            world.run(program);
            world.state.lock().unwrap().descriptors_settled = true;
        },
        |world| world.step(State::drain_one),
        move |world| engine(world, variant, protection, steps),
        move |world| world.judge(program),
    )
}

/// Tries every interleaving of a guest, its store buffer and the engine in a world of `make`'s; returns their
/// number and the first thing that `judge` found wrong.
fn explore_threads<W: 'static>(
    make: impl Fn() -> W + Send + Sync + 'static,
    guest: impl Fn(&W) + Copy + Send + Sync + 'static,
    buffer: impl Fn(&W) + Copy + Send + Sync + 'static,
    engine: impl Fn(&W) + Send + Sync + 'static,
    judge: impl Fn(&W) -> Option<&'static str> + Send + Sync + 'static,
) -> (u64, Option<&'static str>) {
    let count = Arc::new(AtomicU64::new(0));
    let wrong = Arc::new(Cell::new(None));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = 100_000;
    let (counted, noted) = (Arc::clone(&count), Arc::clone(&wrong));
    builder.check(move || {
        let world = loom::sync::Arc::new(make());
        let threads = {
            let (one, other) = (loom::sync::Arc::clone(&world), loom::sync::Arc::clone(&world));
            [
                loom::thread::spawn(move || guest(&one)),
                loom::thread::spawn(move || buffer(&other)),
            ]
        };
        engine(&world);
        for thread in threads {
            thread.join().unwrap();
        }
        counted.fetch_add(1, Ordering::Relaxed);
        let mut noted = noted.lock().unwrap();
        *noted = noted.or(judge(&world));
    });
    let wrong = *wrong.lock().unwrap();
    (count.load(Ordering::Relaxed), wrong)
}

#[test]
fn no_interleaving_loses_anything() {
    use Program::{Allocate, BootedAnew, Hold, Kexec, ReadFree};
    use Variant::{Paused, Protected};
    for (variant, blocks, programs) in [
        (Paused, 2, &[Allocate, ReadFree, Kexec, BootedAnew, Hold][..]),
        // Pages of zeros go one by one.
        (Protected, 1, &[Allocate, ReadFree, Kexec, BootedAnew, Hold][..]),
    ] {
        for program in programs {
            for block in 0..blocks {
                let (count, wrong) = explore(variant, *program, block, Steps::default());
                println!("{variant:?} {program:?} block {block}: {count} interleavings");
                assert_eq!(wrong, None, "{variant:?} {program:?} block {block}");
                assert!(
                    count > 20,
                    "{variant:?} {program:?} block {block}: only {count} interleavings"
                );
            }
        }
    }
}

/// A bit that says of a frame that it is on a zero frame, and should not: the page is not shared, and the
/// steps for its neighbours are the same.
#[test]
fn a_wrong_bit_of_a_zero_frame_loses_nothing() {
    use Program::{Allocate, BootedAnew, Hold, Kexec, ReadFree};
    for program in [Allocate, ReadFree, Kexec, BootedAnew, Hold] {
        let (count, wrong) = explore(Variant::PausedStale, program, 1, Steps::default());
        println!("{program:?} with a stale bit: {count} interleavings");
        assert_eq!(wrong, None, "{program:?}");
        assert!(count > 20, "{program:?}: only {count} interleavings");
    }
    let (_, wrong) = explore(
        Variant::PausedStale,
        Allocate,
        1,
        Steps::with(Mutation::NoRecheck),
    );
    assert!(wrong.is_some(), "its neighbours are shared, or nothing is tried");
}

#[test]
fn every_step_left_out_or_moved_is_noticed() {
    use Program::{Allocate, BootedAnew, Hold, Kexec, ReadFree};
    use Variant::{Paused, Protected};
    for (variant, mutation, programs) in [
        (Paused, Mutation::NoPause, &[Allocate, Kexec][..]),
        (Paused, Mutation::NoIdentify, &[Kexec, BootedAnew]),
        (Paused, Mutation::IdentifyFirst, &[Kexec]),
        (Paused, Mutation::NoRecheck, &[Allocate]),
        (Paused, Mutation::NoFlush, &[Allocate, ReadFree]),
        (Paused, Mutation::ResumeFirst, &[Allocate]),
        (Paused, Mutation::ResumeBeforeFlush, &[Allocate]),
        (Paused, Mutation::ReleaseFirst, &[Allocate, ReadFree]),
        (Paused, Mutation::NoLock, &[Hold]),
        (Protected, Mutation::NoProtect, &[Allocate]),
        (Protected, Mutation::NoProtectFlush, &[Allocate]),
        (Protected, Mutation::NoRecheck, &[Allocate]),
        (Protected, Mutation::NoFlush, &[ReadFree]),
        (Protected, Mutation::ReleaseFirst, &[ReadFree]),
        (Protected, Mutation::NoLock, &[Allocate, Hold]),
        (Protected, Mutation::NoRestore, &[Allocate]),
    ] {
        for program in programs {
            let (count, wrong) = explore(variant, *program, 0, Steps::with(mutation));
            println!("{variant:?} {mutation:?} {program:?}: {wrong:?} among {count} interleavings");
            assert!(
                wrong.is_some(),
                "{variant:?} {mutation:?}: {program:?} does not notice"
            );
        }
    }
}

/// A page that is compared, or re-checked, must not be writable because of how its processor logs writes.
#[test]
fn protection_by_a_type_that_a_mode_makes_writable_is_noticed() {
    let lost = |protection| {
        let (count, wrong) = explore_protected(
            Variant::Protected,
            Program::Allocate,
            0,
            protection,
            Steps::default(),
        );
        println!("{protection:?}: {wrong:?} among {count} interleavings");
        wrong
    };
    for protection in Protection::SAFE {
        assert_eq!(lost(protection), None, "{protection:?}");
    }
    assert!(lost(Protection::UNSAFE).is_some());
}
