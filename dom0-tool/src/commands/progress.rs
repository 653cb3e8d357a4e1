//! Progress on a terminal; nothing anywhere else.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Creates a progress bar over pages of guest memory.
pub(crate) fn over_memory(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    // The template is a constant; were it wrong, the default style would do.
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {percent}% of memory, {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// Creates a progress bar over the bytes of a download.
pub(crate) fn over_download() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    let template = "fetching {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Creates a spinner for a step of unknown length.
pub(crate) fn spinner(what: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    if let Ok(style) = ProgressStyle::with_template("{msg} {spinner} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what.into());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}
