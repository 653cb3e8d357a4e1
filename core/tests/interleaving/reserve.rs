//! A domain's reserve, and who waits for it (`stand()`, `retry()` and `lacuna_wait_memory()` in `patches/`): no
//! backend finds it empty, and whoever was paused goes on.
//!
//! The host has no memory at first. A backend takes a page for each grant that it serves, and makes the domain
//! stand before it does. The domain's one virtual CPU makes grants as long as it runs, no more than its table
//! has room for, and writes to a page itself, for which it waits. The timer's function fills the reserve, of
//! what memory there is by then, and lets the virtual CPU go on.

use loom::sync::{Mutex, MutexGuard};

use crate::explore_threads;

/// Grants that the table has room for, so pages of the reserve.
const GRANTS: u32 = 2;
/// What each thread does so often.
const ROUNDS: usize = 3;

/// What is done otherwise than it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// The domain runs on when its reserve is drawn on.
    NoStand,
    /// The page is taken when the lock under which the domain was made to stand is free again.
    DrawLater,
    /// It goes on when there is a page, and not when the reserve is full.
    GoOnAtOnce,
    /// The bit that says whom to let go on is set before the pause.
    BitFirst,
    /// A pause is not taken back where another one has set the bit.
    TwoPauses,
}

struct State {
    /// How often the virtual CPU is paused, and whether that is the timer's to end.
    pauses: i32,
    waiting: bool,
    stands: bool,
    reserve: u32,
    /// Pages of the host's above the floor.
    heap: u32,
    /// Grants that no backend has served yet.
    granted: u32,
    wrong: Option<&'static str>,
}

struct World {
    reserve_lock: Mutex<()>,
    state: Mutex<State>,
}

impl World {
    fn new() -> Self {
        Self {
            reserve_lock: Mutex::new(()),
            state: Mutex::new(State {
                pauses: 0,
                waiting: false,
                stands: false,
                reserve: GRANTS,
                heap: 0,
                granted: GRANTS,
                wrong: None,
            }),
        }
    }

    /// One step of whoever asks.
    fn step<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.reserve_lock.lock().unwrap()
    }

    fn pause(&self, change: Change) {
        let paused = || self.step(|state| state.pauses += 1);
        if change != Change::BitFirst {
            paused();
        }
        let was_set = self.step(|state| std::mem::replace(&mut state.waiting, true));
        if change == Change::BitFirst {
            paused();
        }
        if was_set && change != Change::TwoPauses {
            self.step(|state| state.pauses -= 1);
        }
    }

    fn runs(&self) -> bool {
        self.step(|state| state.pauses == 0)
    }

    fn guest(&self, change: Change) {
        for _ in 0..ROUNDS {
            self.step(|state| {
                if state.pauses == 0 && state.granted < GRANTS {
                    state.granted += 1;
                }
            });
        }
        // The fault is dealt with by this very virtual CPU.
        if self.runs() {
            self.pause(change);
        }
    }

    fn backend(&self, change: Change) {
        for _ in 0..ROUNDS {
            if self.step(|state| state.granted == 0) {
                continue;
            }
            let stand = || {
                let lock = self.lock();
                if !self.step(|state| std::mem::replace(&mut state.stands, true)) {
                    self.pause(change);
                }
                lock
            };
            let lock = (change != Change::NoStand).then(stand);
            // Dropped here, or when the page is taken.
            let _lock = lock.filter(|_| change != Change::DrawLater);
            self.step(|state| {
                if state.reserve == 0 {
                    state.wrong = Some("a backend finds no page");
                } else {
                    state.reserve -= 1;
                }
                state.granted -= 1;
            });
        }
    }

    fn retry(&self, change: Change) {
        self.step(|state| {
            let missing = (GRANTS - state.reserve).min(state.heap);
            state.reserve += missing;
            state.heap -= missing;
        });
        let _lock = self.lock();
        if self.step(|state| state.reserve < GRANTS) && change != Change::GoOnAtOnce {
            return;
        }
        self.step(|state| state.stands = false);
        if self.step(|state| std::mem::replace(&mut state.waiting, false)) {
            self.step(|state| {
                state.pauses -= 1;
                if state.pauses < 0 {
                    state.wrong = Some("a virtual CPU goes on that is not paused");
                }
            });
        }
    }

    fn judge(&self) -> Option<&'static str> {
        // Memory is there again, and the timer's function has run.
        self.step(|state| state.heap = 2 * GRANTS);
        self.retry(Change::None);
        self.step(|state| {
            let stuck = state.pauses != 0 || state.waiting;
            state.wrong.or(stuck.then_some("a virtual CPU never goes on"))
        })
    }
}

fn explore(change: Change) -> (u64, Option<&'static str>) {
    explore_threads(
        World::new,
        move |world| world.guest(change),
        move |world| world.backend(change),
        move |world| {
            world.retry(change);
            world.step(|state| state.heap += 1);
            world.retry(change);
        },
        World::judge,
    )
}

#[test]
fn no_backend_finds_an_empty_reserve_and_everybody_goes_on() {
    let (count, wrong) = explore(Change::None);
    println!("{count} interleavings");
    assert_eq!(wrong, None);
    assert!(count > 20, "only {count} interleavings");
}

#[test]
fn each_rule_of_the_reserve_that_is_left_out_is_noticed() {
    for change in [
        Change::NoStand,
        Change::DrawLater,
        Change::GoOnAtOnce,
        Change::BitFirst,
        Change::TwoPauses,
    ] {
        let (count, wrong) = explore(change);
        println!("{change:?}: {wrong:?} among {count} interleavings");
        assert!(wrong.is_some(), "{change:?}");
    }
}
