//! Stops a guest for the length of an operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::guest::Live;
use crate::failure::{Class, Failure};
use crate::xen::privcmd::{Pause, PrivcmdError};

/// Does `work` while the guest is stopped, if `wanted`. The guest goes on afterwards: on success, on failure,
/// and when the operator interrupts the program, which waits until then.
///
/// # Errors
/// The guest cannot be stopped, or does not go on; or what `work` returns.
pub fn while_paused<T>(
    live: &Live,
    wanted: bool,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    if !wanted {
        return work();
    }
    let paused = PausedGuest::pause(live)?;
    let outcome = work();
    match paused.unpause() {
        Ok(()) => outcome,
        Err(error) => Err(unpause_failure(live, &error, outcome.err())),
    }
}

/// Returns the failure to report when the guest could not be unpaused. It says that first, and then what
/// else went wrong.
fn unpause_failure(live: &Live, error: &PrivcmdError, also: Option<Failure>) -> Failure {
    let also = also.map_or_else(String::new, |failure| format!("; before that: {}", failure.what));
    Failure::new(
        Class::Failed,
        format!("the guest could not be unpaused ({error}){also}"),
        format!("run `xl unpause {}`", live.domain.id.get()),
    )
}

/// A guest that was stopped. Dropping this value lets it go on as well, but without a report of an error.
struct PausedGuest<'l> {
    live: &'l Live,
    signals: Vec<(i32, Arc<AtomicBool>, SigId)>,
    is_paused: bool,
}

impl<'l> PausedGuest<'l> {
    fn pause(live: &'l Live) -> Result<Self, Failure> {
        let mut signals = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let seen = Arc::new(AtomicBool::new(false));
            let id = signal_hook::flag::register(signal, Arc::clone(&seen))?;
            signals.push((signal, seen, id));
        }
        live.privcmd.set_paused(live.domain.id, Pause::Begin)?;
        Ok(Self {
            live,
            signals,
            is_paused: true,
        })
    }

    fn unpause(mut self) -> Result<(), PrivcmdError> {
        self.is_paused = false;
        let outcome = self.live.privcmd.set_paused(self.live.domain.id, Pause::End);
        if outcome.is_err() {
            // A guest that stands still has to be reported, even if the operator interrupted the program.
            for (_, _, id) in self.signals.drain(..) {
                signal_hook::low_level::unregister(id);
            }
        }
        outcome
    }
}

impl Drop for PausedGuest<'_> {
    fn drop(&mut self) {
        if self.is_paused {
            let _ = self.live.privcmd.set_paused(self.live.domain.id, Pause::End);
        }
        for (signal, seen, id) in self.signals.drain(..) {
            signal_hook::low_level::unregister(id);
            if seen.load(Ordering::SeqCst) {
                // Now the interruption may take effect. Raising one of these three signals cannot fail.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    }
}
