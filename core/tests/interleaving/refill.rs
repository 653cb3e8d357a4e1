//! Giving a page, or a whole block, back for a write (`lacuna_unshare()` and `lacuna_refill_block()` in
//! `patches/`): why it is read-only before it is writable.
//!
//! One virtual CPU has written and waits while the hypervisor replaces what it wrote to: that is the engine's
//! thread, and C code, so its steps are modelled. Another writes to the same page, or to another page of the
//! block, which takes a fault only as long as the entry is read-only, and says so in memory of its own. A
//! third one, which has the zero frame in its TLB, sees that, and reads the page.

use loom::sync::{Mutex, MutexGuard};

use crate::explore_threads;
use crate::protection::Protection;

/// In which order the hypervisor does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Map it read-only, flush, make it writable.
    ReadOnlyFirst,
    /// Map it writable, flush.
    WritableAtOnce,
    /// Map it read-only, make it writable, flush.
    FlushLast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Zero,
    Own,
}

struct State {
    entry: Target,
    writable: bool,
    /// What the page of the domain's own holds.
    value: u64,
    /// Whether the writer has said that it wrote.
    said: bool,
    /// What the reader's TLB holds.
    cached: Option<Target>,
    wrong: Option<&'static str>,
}

struct World {
    p2m: Mutex<()>,
    state: Mutex<State>,
}

impl World {
    fn new() -> Self {
        Self {
            p2m: Mutex::new(()),
            state: Mutex::new(State {
                entry: Target::Zero,
                writable: false,
                value: 0,
                said: false,
                cached: Some(Target::Zero),
                wrong: None,
            }),
        }
    }

    /// One step of whoever asks.
    fn step<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.p2m.lock().unwrap()
    }

    fn refill(&self, order: Order, protection: Protection) {
        let _lock = self.lock();
        let set = |writable| {
            self.step(|state| {
                state.entry = Target::Own;
                state.writable = writable;
            });
        };
        if self.step(|state| state.entry) == Target::Own {
            return; // the other one came first
        }
        match order {
            Order::ReadOnlyFirst => {
                set(protection.is_writable());
                self.flush();
                set(true);
            }
            Order::WritableAtOnce => {
                set(true);
                self.flush();
            }
            Order::FlushLast => {
                set(protection.is_writable());
                set(true);
                self.flush();
            }
        }
    }

    fn flush(&self) {
        self.step(|state| state.cached = None);
    }

    fn write(&self) {
        let written = self.step(|state| {
            let may = state.writable;
            if may {
                state.value = 1;
            }
            may
        });
        if !written {
            // A fault: it waits for the lock, and takes a page, if there is none by now.
            self.refill(Order::ReadOnlyFirst, Protection::REAL);
            self.step(|state| state.value = 1);
        }
        self.step(|state| state.said = true);
    }

    fn read(&self) {
        if !self.step(|state| state.said) {
            return;
        }
        self.step(|state| {
            let target = *state.cached.get_or_insert(state.entry);
            if target == Target::Zero || state.value == 0 {
                state.wrong = Some("a write is seen, and not what was written before it");
            }
        });
    }
}

fn explore(order: Order, protection: Protection) -> (u64, Option<&'static str>) {
    explore_threads(
        World::new,
        World::write,
        World::read,
        move |world| world.refill(order, protection),
        |world| world.step(|state| state.wrong),
    )
}

#[test]
fn no_interleaving_reads_a_zero_frame_after_a_write() {
    for protection in Protection::SAFE {
        let (count, wrong) = explore(Order::ReadOnlyFirst, protection);
        println!("{protection:?}: {count} interleavings");
        assert_eq!(wrong, None, "{protection:?}");
        assert!(count > 20, "only {count} interleavings");
    }
}

#[test]
fn a_block_that_is_writable_before_the_flush_is_noticed() {
    for order in [Order::WritableAtOnce, Order::FlushLast] {
        let (count, wrong) = explore(order, Protection::REAL);
        println!("{order:?}: {wrong:?} among {count} interleavings");
        assert!(wrong.is_some(), "{order:?}");
    }
}

/// In log-dirty mode the page is mapped by the type that logging makes writable, so that must not come first.
#[test]
fn a_page_that_logging_makes_writable_before_the_flush_is_noticed() {
    let (count, wrong) = explore(Order::ReadOnlyFirst, Protection::UNSAFE);
    println!("{wrong:?} among {count} interleavings");
    assert!(wrong.is_some());
}
