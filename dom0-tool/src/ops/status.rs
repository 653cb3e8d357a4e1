//! Asks the engine about a guest, and removes a guest's profile.

use std::io;

use lacuna_core::abi::{State, Statistics};
use serde_json::Value;

use super::guest::Live;
use super::migration::{self, Side};
use crate::failure::Failure;

/// What is known of a guest.
#[derive(Clone, Debug)]
pub struct Status {
    /// The engine's counters.
    pub statistics: Statistics,
    /// The counters of the latest migration from this host; `None` when there was none.
    pub sent: Option<Value>,
    /// The counters of the migration to this host; `None` when there was none.
    pub received: Option<Value>,
}

/// Returns the engine's counters for a guest, and the counters of its migrations on this host.
///
/// # Errors
/// The engine's refusal, or a damaged file of a migration's.
pub fn status(live: &Live) -> Result<Status, Failure> {
    let counters = |side: Side| -> io::Result<Option<Value>> { migration::counters(&live.domain.info, side) };
    Ok(Status {
        statistics: live.engine.statistics()?,
        sent: counters(Side::Sent)?,
        received: counters(Side::Received)?,
    })
}

/// Removes a guest's profile. Pages that were given back stay so. Returns false if there was no profile.
///
/// # Errors
/// The engine's refusal.
pub fn detach(live: &Live) -> Result<bool, Failure> {
    let had_one = State::from_code(live.engine.statistics()?.state) != Some(State::Empty);
    live.engine.clear_profile()?;
    Ok(had_one)
}
