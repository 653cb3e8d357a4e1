//! `cargo lab bench migration`: the same guest moved the stock way and with Lacuna, in one run.

use std::path::Path;

use lacuna_scenarios::catalogue::MOVED;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::Result;
use crate::live;
use crate::setup::Extent;

/// The columns of the table of iterations: what the figure is called, and its heading.
const COLUMNS: &[(&str, &str)] = &[
    ("data", "sent"),
    ("zero", "of them zero"),
    ("resent", "sent before"),
    ("skipped", "left behind"),
    ("bytes", "bytes"),
];

/// Runs the scenario, prints both sides by iteration, and writes the figures to `report`.
pub(super) fn run(context: &Context, report: Option<&Path>) -> Result<()> {
    let outcome = live::measure(context, MOVED, Extent::Tests)?;
    let mut figures = outcome.by_name();
    for (name, dividend, divisor) in [
        ("bytes_ratio", "lacuna_bytes", "stock_bytes"),
        ("pages_ratio", "lacuna_pages", "stock_pages"),
        ("lookups_per_page", "lookups", "looked_at"),
    ] {
        if let Some(ratio) = ratio(&figures, dividend, divisor) {
            figures.insert(name.to_owned(), json!(ratio));
        }
    }
    println!("\nOne guest on one host, moved the stock way and with Lacuna, in one run\n");
    for side in ["stock", "lacuna"] {
        print!("{}", table(&figures, side));
    }
    for (name, value) in figures.iter().filter(|(_, value)| value.is_number()) {
        println!("  {name:<24} {value:>14}");
    }
    println!();
    outcome.report(figures, report)
}

/// One figure by another, to a thousandth; `None` where one is missing, as in a run that failed half-way.
fn ratio(figures: &Map<String, Value>, dividend: &str, divisor: &str) -> Option<f64> {
    let number = |name: &str| figures.get(name).and_then(Value::as_f64);
    let ratio = number(dividend)? / number(divisor).filter(|number| *number > 0.0)?;
    Some((ratio * 1000.0).round() / 1000.0)
}

/// The iterations of one side, a line each.
fn table(figures: &Map<String, Value>, side: &str) -> String {
    let Some(iterations) = figures
        .get(&format!("{side}_iterations"))
        .and_then(Value::as_array)
    else {
        return String::new();
    };
    let headings = COLUMNS.iter().map(|(_, heading)| format!("{heading:>14}"));
    let mut lines = vec![format!("  {side:<10}{}", headings.collect::<String>())];
    for (number, iteration) in iterations.iter().enumerate() {
        let cells = COLUMNS.iter().map(|(name, _)| {
            let value = iteration.get(name).and_then(Value::as_u64).unwrap_or_default();
            format!("{value:>14}")
        });
        lines.push(format!("  {:<10}{}", number + 1, cells.collect::<String>()));
    }
    lines.join("\n") + "\n\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{ratio, table};
    use serde_json::json;

    #[test]
    fn each_iteration_has_a_line() {
        let figures = json!({"stock_iterations": [{"data": 7, "bytes": 28728}, {"data": 1, "resent": 1}]});
        let text = table(figures.as_object().unwrap(), "stock");
        assert_eq!(text.trim_end().lines().count(), 3);
        assert!(text.contains("28728"));
        assert_eq!(table(figures.as_object().unwrap(), "lacuna"), "");
    }

    #[test]
    fn a_missing_figure_has_no_ratio() {
        let figures = json!({"a": 1, "b": 3, "zero": 0});
        let figures = figures.as_object().unwrap();
        assert_eq!(ratio(figures, "a", "b"), Some(0.333));
        assert_eq!(ratio(figures, "a", "zero"), None);
        assert_eq!(ratio(figures, "a", "c"), None);
    }
}
