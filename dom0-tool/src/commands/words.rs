//! Figures in words.

/// Renders a number of 4 KiB pages: the number and its size in MiB.
pub(crate) fn pages(count: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // for reading, to a tenth
    let mebibytes = count as f64 / 256.0;
    format!("{count} pages ({mebibytes:.1} MiB)")
}

/// Nanoseconds in words.
pub(crate) fn duration(nanoseconds: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // for reading
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Returns a name or a message without what would move a terminal's cursor.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}
