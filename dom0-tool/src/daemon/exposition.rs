//! The two formats in which metrics are read: `OpenMetrics`, and Prometheus' text format 0.0.4, which is
//! older.
//!
//! They differ in little. In the older one the definition of a counter has the name that its samples have,
//! with `_total`, and there is neither a unit nor a mark at the end. `promtool check metrics` reads that one
//! alone.
//!
//! Sources: <https://prometheus.io/docs/instrumenting/exposition_formats/>, the `OpenMetrics` specification
//! 1.0.

use std::collections::BTreeSet;
use std::fmt::Write;

/// The media type of `OpenMetrics`.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of the text format 0.0.4.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Converts `openmetrics`, the output of [`crate::daemon::metrics::Snapshot::text`], to the text format
/// 0.0.4.
pub fn plain_text(openmetrics: &str) -> String {
    let counters: BTreeSet<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let definition = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '));
        // Writing to a String does not fail.
        let _ = match definition {
            _ if line == "# EOF" => Ok(()),
            Some(("UNIT", _)) => Ok(()),
            Some((word @ ("HELP" | "TYPE"), rest)) => {
                let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                let total = if counters.contains(name) { "_total" } else { "" };
                writeln!(text, "# {word} {name}{total} {value}")
            }
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_defined_under_the_name_of_their_samples() {
        let text = "# HELP a_bytes Much.\n# TYPE a_bytes gauge\n# UNIT a_bytes bytes\na_bytes 1\n\
            # HELP b_seconds Long.\n# TYPE b_seconds counter\n# UNIT b_seconds seconds\nb_seconds_total{name=\"# TYPE a\"} 2\n# EOF\n";
        assert_eq!(
            plain_text(text),
            "# HELP a_bytes Much.\n# TYPE a_bytes gauge\na_bytes 1\n\
            # HELP b_seconds_total Long.\n# TYPE b_seconds_total counter\nb_seconds_total{name=\"# TYPE a\"} 2\n"
        );
    }
}
