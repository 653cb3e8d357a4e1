//! The daemon's events: one line each on standard error, as text or as JSON.
//!
//! Every event has the field `event`, a name of its own that does not change (`docs/daemon.md` lists them),
//! and fields for its values.

use std::io;

use tracing::Level;
use tracing::subscriber::SetGlobalDefaultError;

use crate::daemon::config::{LogFormat, LogLevel};

/// Writes events from here on.
///
/// # Errors
/// Events are being written already.
pub fn start(format: LogFormat, level: LogLevel) -> Result<(), SetGlobalDefaultError> {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    // The journal adds its own time stamp, but JSON may be read elsewhere.
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false);
    match format {
        LogFormat::Text => tracing::subscriber::set_global_default(lines.finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish()),
    }
}
