//! The daemon's events: one line each on standard error, as text or as JSON.
//!
//! Every event has the field `event`, a name of its own that does not change (`docs/daemon.md` lists them),
//! and fields for its values.

use std::io;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use crate::daemon::config::{LogFormat, LogLevel};
use crate::daemon::recorder::EventQueue;

/// Writes events from here on. Those of level info and above go to `history` as well, whatever `level` is.
///
/// # Errors
/// Events are being written already.
pub fn start(format: LogFormat, level: LogLevel, history: EventQueue) -> Result<(), SetGlobalDefaultError> {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    // The journal adds its own time stamp, but JSON may be read elsewhere.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(LevelFilter::from_level(level));
    let kept = history.with_filter(LevelFilter::INFO);
    tracing::subscriber::set_global_default(Registry::default().with(lines).with(kept))
}
