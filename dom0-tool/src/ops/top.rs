//! Compares all guests and the host: at one moment, and over an interval.

use std::time::Duration;

use lacuna_core::abi::State;

use super::host::{GuestName, GuestState, Xen};
use crate::failure::{Cause, Failure};
use crate::xen::privcmd::HostMemory;

/// All guests at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The time of the sample, since some fixed moment.
    pub at: Duration,
    /// The host's memory.
    pub memory: HostMemory,
    /// The guests and their states, without PV guests, which have none, and without guests on which another
    /// operation runs.
    pub guests: Vec<(GuestName, GuestState)>,
}

/// One guest over an interval. Pages are of 4 KiB.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its number.
    pub domain: u16,
    /// Its name.
    pub name: String,
    /// The state of its profile, as one word.
    pub state: &'static str,
    /// Most pages that it may own.
    pub limit: u64,
    /// Pages that it owns.
    pub held: u64,
    /// Pages free by the last scan.
    pub free: u64,
    /// Pages on frames that it shares.
    pub given_back: u64,
    /// Those of them on zero frames: they are free inside the guest, too.
    pub zero: u64,
    /// Pages that the guest took back, a second.
    pub unshared_rate: f64,
    /// Part of the time for which it was stopped.
    pub paused: f64,
}

impl Row {
    /// Returns the pages that are free inside the guest, by the last scan, and that it still owns. The guest
    /// may have used or given back some since.
    pub fn free_inside(&self) -> u64 {
        self.free.saturating_sub(self.zero).min(self.held)
    }
}

impl Sample {
    /// Looks at the host and its guests.
    ///
    /// # Errors
    /// The host could not be asked.
    pub fn take<X: Xen>(host: &mut X) -> Result<Self, Failure> {
        let at = host.now();
        let memory = host.memory()?;
        let mut guests = Vec::new();
        for seen in host.guests()? {
            match host.state(seen.domain) {
                Ok(state) => guests.push((seen, state)),
                Err(failure) if matches!(failure.cause, Cause::Gone | Cause::NotHvm | Cause::Busy) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(Self { at, memory, guests })
    }

    /// Returns the number of pages that guests could take back.
    pub fn promised(&self) -> u64 {
        self.guests.iter().map(|(_, state)| state.given_back()).sum()
    }
}

/// Returns a row for each guest in `after`, with rates since `before` for those that existed then.
#[allow(clippy::cast_precision_loss)] // rates, for reading
pub fn rows(before: &Sample, after: &Sample) -> Vec<Row> {
    let seconds = after.at.saturating_sub(before.at).as_secs_f64();
    let row = |(seen, state): &(GuestName, GuestState)| {
        let now = state.statistics;
        let earlier = before
            .guests
            .iter()
            .find(|(other, _)| other.domain == seen.domain)
            .map_or(state, |(_, state)| state);
        let rate = |now: u64, earlier: u64| {
            let difference = now.saturating_sub(earlier) as f64;
            if seconds > 0.0 { difference / seconds } else { 0.0 }
        };
        Row {
            domain: seen.domain,
            name: seen.name.clone().unwrap_or_default(),
            state: match State::from_code(now.state) {
                Some(State::Admitted) => "attached",
                Some(State::Loaded) => "loaded",
                Some(State::Ended) => "ended",
                Some(State::Empty) | None => "-",
            },
            limit: state.max_pages,
            held: state.pages,
            free: now.scan_free,
            given_back: state.given_back(),
            zero: now.zero_gfns,
            unshared_rate: rate(state.unshared(), earlier.unshared()),
            paused: rate(now.pause_total_ns, earlier.statistics.pause_total_ns) / 1e9,
        }
    };
    after.guests.iter().map(row).collect()
}
