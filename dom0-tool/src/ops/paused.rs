//! Stopping a guest for the length of a command.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::guest::Live;
use crate::failure::Failure;
use crate::xen::privcmd::Pause;

/// A guest that this command has paused. It goes on when this value goes away: on success, on failure, and when the
/// operator interrupts the command, which waits until then.
pub(crate) struct PausedGuest<'l> {
    live: &'l Live,
    signals: Vec<(i32, Arc<AtomicBool>, SigId)>,
}

impl<'l> PausedGuest<'l> {
    pub(crate) fn pause(live: &'l Live) -> Result<Self, Failure> {
        let mut signals = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let seen = Arc::new(AtomicBool::new(false));
            let id = signal_hook::flag::register(signal, Arc::clone(&seen))?;
            signals.push((signal, seen, id));
        }
        live.privcmd.set_paused(live.domain.id, Pause::Begin)?;
        Ok(Self { live, signals })
    }
}

impl Drop for PausedGuest<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.live.privcmd.set_paused(self.live.domain.id, Pause::End) {
            let _ = writeln!(
                std::io::stderr(),
                "lacuna: the guest could not be unpaused ({error}): run `xl unpause {}`",
                self.live.domain.id.get()
            );
        }
        for (signal, seen, id) in self.signals.drain(..) {
            signal_hook::low_level::unregister(id);
            if seen.load(Ordering::SeqCst) {
                // Now what the operator wanted may happen; it fails for no signal of the three.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    }
}
