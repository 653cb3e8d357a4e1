//! Scans, as text and as JSON.

use serde_json::{Value, json};

use crate::commands::{Out, words::pages};
use crate::xen::engine::ScanFigures;

/// Shows the figures of a scan.
pub(crate) fn show_figures(scanned: &ScanFigures, out: Out) {
    out.line(format!("free        {}", pages(scanned.free)));
    out.line(format!("in use      {}", pages(scanned.in_use)));
    out.line(format!(
        "no memory   {} frames, described by the kernel or not",
        scanned.no_descriptor
    ));
    if scanned.unknown > 0 {
        out.line(format!("unknown     {} (left alone)", pages(scanned.unknown)));
    }
}

/// Returns the figures of a scan as JSON.
pub(crate) fn scanned_json(scanned: &ScanFigures) -> Value {
    json!({
        "free": scanned.free,
        "in_use": scanned.in_use,
        "no_descriptor": scanned.no_descriptor,
        "unknown": scanned.unknown,
    })
}
