//! What the operator tells the daemon: end, or read the configuration again.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// What a wait was ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Time.
    Time,
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
}

/// The signals, from here on.
#[derive(Debug)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    /// Gets a byte with each signal, so that a wait ends.
    bell: UnixStream,
}

impl Signals {
    /// Takes the signals over from their default, which would kill.
    ///
    /// # Errors
    /// The system has no more handlers or descriptors.
    pub fn take() -> io::Result<Self> {
        let (bell, ringer) = UnixStream::pair()?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, flag) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &reload)] {
            // The flag first: a wait that the bell ends looks at it.
            flag::register(signal, Arc::clone(flag))?;
            pipe::register(signal, ringer.try_clone()?)?;
        }
        Ok(Self { stop, reload, bell })
    }

    /// Waits for a signal, at most for `limit`.
    pub fn wait(&mut self, limit: Duration) -> Wake {
        if let Some(wake) = self.pending() {
            return wake;
        }
        if !limit.is_zero() {
            // A failure of either ends the wait early, no more.
            let _ = self.bell.set_read_timeout(Some(limit));
            let _ = self.bell.read(&mut [0; 64]);
        }
        self.pending().unwrap_or(Wake::Time)
    }

    fn pending(&self) -> Option<Wake> {
        if self.stop.load(Ordering::SeqCst) {
            return Some(Wake::Stop);
        }
        self.reload.swap(false, Ordering::SeqCst).then_some(Wake::Reload)
    }
}
