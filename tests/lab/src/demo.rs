//! `cargo lab demo`: one live guest's free pages given back, and the figures of it in a table.

mod picture;

use std::fs;
use std::path::Path;

use lacuna_scenarios::catalogue::DEMO;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::live;
use crate::setup::Extent;

/// The table's rows: what a figure is called in the report, what it means, and its unit.
const ROWS: &[(&str, &str, Unit)] = &[
    ("guest_pages", "guest memory", Unit::Pages),
    ("free_truth", "free by the guest's own account", Unit::Pages),
    ("free_found", "free by Lacuna's scan", Unit::Pages),
    ("wrongly_free", "  called free, and not free", Unit::Pages),
    ("missed", "  free, and not found", Unit::Pages),
    ("shared", "given back to the host", Unit::Pages),
    ("superpages", "  of them as entries of 2 MiB", Unit::Count),
    ("host_free_before", "host's free memory before", Unit::Mebibytes),
    ("host_free_after", "host's free memory after", Unit::Mebibytes),
    (
        "unshared",
        "taken back when the guest used half of it",
        Unit::Pages,
    ),
    ("guest_ok", "guest still healthy", Unit::Yes),
];

/// What a figure counts.
#[derive(Clone, Copy)]
enum Unit {
    Pages,
    Mebibytes,
    Count,
    Yes,
}

/// Runs the demonstration, prints its table, and writes the same figures to `report`.
///
/// With `drawing` it draws them as well, see [`picture`].
pub(crate) fn run(context: &Context, report: Option<&Path>, drawing: Option<&Path>) -> Result<()> {
    let outcome = live::measure(context, DEMO, Extent::Demo)?;
    let figures = outcome.by_name();
    println!("\nA live Linux guest's free memory, given back to the host by Xen\n");
    for (name, meaning, unit) in ROWS {
        // A run that failed half-way has only the first figures.
        if let Some(value) = figures.get(*name) {
            println!("  {meaning:<44} {}", shown(value, *unit));
        }
    }
    println!();
    if let Some(file) = drawing {
        // A run that failed half-way has nothing to draw, and says so itself.
        match picture::drawn(&figures) {
            Some(text) => fs::write(file, text).on("write", file)?,
            None => println!("the run did not come far enough for {}\n", file.display()),
        }
    }
    outcome.report(figures, report)
}

/// A figure with its unit; pages also as MiB, as people think of memory so.
fn shown(value: &Value, unit: Unit) -> String {
    match (unit, value.as_u64()) {
        (Unit::Pages, Some(pages)) => format!("{pages:>9} pages  {:>7} MiB", pages / 256),
        (Unit::Mebibytes, Some(mib)) => format!("{:>15}  {mib:>7} MiB", ""),
        (Unit::Count, Some(count)) => format!("{count:>9}"),
        (Unit::Yes, _) => format!("{:>9}", if value == &json!(true) { "yes" } else { "no" }),
        (_, None) => value.to_string(),
    }
}
