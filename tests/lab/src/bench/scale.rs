//! `cargo lab bench scale`: what a scan and rounds of shares take on guests from 1 GiB to 4 TiB, as a table, as
//! JSON and as a plot.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use plotters::prelude::*;
use serde_json::{Value, json};

use super::have_valgrind;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::process::start;

/// The columns of the table: what a figure is called, and its heading.
const COLUMNS: &[(&str, &str)] = &[
    ("instructions", "instructions"),
    ("values", "values read"),
    ("frames", "frames mapped"),
    ("lookups", "p2m lookups"),
    ("entries", "p2m entries"),
    ("slices", "slices"),
    ("longest", "longest stretch"),
    ("tables_bytes", "bytes of tables"),
];
/// What is drawn: the operation, the guest's state, and the line's colour.
const LINES: &[(&str, &str, RGBColor)] = &[
    ("scan", "fresh", RGBColor(0x0f, 0x76, 0x6e)),
    ("share", "fresh", RGBColor(0x5e, 0xb3, 0xa8)),
    ("scan", "aged", RGBColor(0x1d, 0x4e, 0xd8)),
    ("share", "aged", RGBColor(0x7d, 0x9c, 0xf0)),
    ("scan", "fragmented", RGBColor(0xb4, 0x53, 0x09)),
    ("share", "fragmented", RGBColor(0xf5, 0x9e, 0x0b)),
];
/// The picture's size.
const SIZE: (u32, u32) = (960, 600);

/// Measures all sizes, prints the table, and writes the figures to `report` and the plot to `plot`.
pub(super) fn run(context: &Context, report: Option<&Path>, plot: Option<&Path>) -> Result<()> {
    have_valgrind(context)?;
    let figures = measured(context)?;
    print!("{}", table(&figures));
    if let Some(path) = report {
        let text = format!("{:#}\n", json!(figures));
        fs::write(path, text).on("write", path)?;
    }
    if let Some(path) = plot {
        let picture = drawn(&figures).map_err(|what| Error::Picture { what })?;
        fs::write(path, picture).on("write", path)?;
    }
    Ok(())
}

/// Runs the benchmark: a line of JSON for each operation on each guest. What it says of its progress goes to
/// standard error.
fn measured(context: &Context) -> Result<Vec<Value>> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&context.repository)
        .args(["bench", "--locked", "--quiet", "--package", "lacuna-core"])
        .args(["--bench", "scale", "--", "--all"])
        .stdout(Stdio::piped());
    let mut child = start(&mut cargo)?;
    let mut figures = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.on("read", "what cargo bench prints")?;
            figures.extend(serde_json::from_str::<Value>(&line));
        }
    }
    let status = child.wait().on("wait for", "cargo bench")?;
    if status.success() {
        Ok(figures)
    } else {
        Err(Error::Failed { failed: 1, total: 1 })
    }
}

/// A line for each operation on each guest; what was not counted or not run is named.
fn table(figures: &[Value]) -> String {
    let mut headings = vec!["operation".to_owned(), "guest".to_owned()];
    headings.extend(COLUMNS.iter().map(|(_, heading)| (*heading).to_owned()));
    let rule = headings.iter().map(|_| "---".to_owned()).collect();
    let mut rows = vec![headings, rule];
    for taken in figures {
        let text = |name: &str| {
            taken
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("all")
                .to_owned()
        };
        let gib = taken.get("gib").and_then(Value::as_u64).unwrap_or_default();
        let mut row = vec![text("operation"), format!("{}, {}", text("state"), size(gib))];
        match taken.get("not_run").and_then(Value::as_str) {
            Some(reason) => {
                row.push(format!("not run: {reason}"));
                row.resize(COLUMNS.len() + 2, "–".to_owned());
            }
            None => row.extend(COLUMNS.iter().map(|(name, _)| {
                let value = taken.get(*name).and_then(Value::as_u64);
                value.map_or_else(|| "not counted".to_owned(), grouped)
            })),
        }
        rows.push(row);
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|row| format!("| {} |", row.join(" | ")))
        .collect();
    lines.join("\n") + "\n"
}

/// A number with its thousands apart.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A guest's size as people say it.
fn size(gib: u64) -> String {
    if gib >= 1024 {
        format!("{} TiB", gib / 1024)
    } else {
        format!("{gib} GiB")
    }
}

/// The points of a line: size in GiB, and work.
#[expect(clippy::cast_precision_loss, reason = "for a plot")]
fn points(figures: &[Value], operation: &str, state: &str) -> Vec<(f64, f64)> {
    let is =
        |taken: &Value, name: &str, wanted: &str| taken.get(name).and_then(Value::as_str) == Some(wanted);
    figures
        .iter()
        .filter(|taken| is(taken, "operation", operation) && is(taken, "state", state))
        .map(|taken| {
            let number = |name: &str| taken.get(name).and_then(Value::as_u64).unwrap_or_default();
            let work = ["values", "frames", "lookups", "entries", "parts"].map(number);
            (number("gib") as f64, work.iter().sum::<u64>() as f64)
        })
        .collect()
}

/// Draws work against size, both in powers of ten: what grows as memory does has the slope of the grey line.
fn drawn(figures: &[Value]) -> std::result::Result<String, String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| told(&error))?;
        let mut chart = ChartBuilder::on(&root)
            .margin(20)
            .caption("Work against a guest's memory", ("sans-serif", 22))
            .x_label_area_size(45)
            .y_label_area_size(80)
            .build_cartesian_2d((0.8..5000.0).log_scale(), (100.0..10_000_000_000.0).log_scale())
            .map_err(|error| told(&error))?;
        chart
            .configure_mesh()
            .x_desc("GiB of guest memory")
            .y_desc("values read, frames mapped, p2m lookups and entries, parts of tables")
            .x_label_formatter(&|gib| format!("{gib:.0}"))
            .y_label_formatter(&|work| format!("{work:.0e}"))
            .draw()
            .map_err(|error| told(&error))?;
        let grey = RGBColor(0x94, 0xa3, 0xb8);
        chart
            .draw_series(LineSeries::new([(1.0, 1000.0), (4096.0, 4_096_000.0)], &grey))
            .map_err(|error| told(&error))?
            .label("a straight line")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], grey));
        for (operation, state, colour) in LINES {
            chart
                .draw_series(
                    LineSeries::new(points(figures, operation, state), colour.stroke_width(2)).point_size(3),
                )
                .map_err(|error| told(&error))?
                .label(format!("{operation}, {state}"))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE)
            .border_style(grey)
            .draw()
            .map_err(|error| told(&error))?;
        root.present().map_err(|error| told(&error))?;
    }
    Ok(picture)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{drawn, points, table};
    use serde_json::{Value, json};

    fn figures() -> Vec<Value> {
        vec![
            json!({"operation": "scan", "state": "fresh", "gib": 1, "instructions": 1_234_567, "values": 5,
                   "frames": 1, "lookups": 2, "entries": 0, "parts": 3}),
            json!({"operation": "scan", "state": "fresh", "gib": 4096, "instructions": null, "values": 50}),
            json!({"state": "fragmented", "gib": 4096, "not_run": "536870912 free blocks"}),
        ]
    }

    #[test]
    fn what_was_not_counted_or_not_run_is_named() {
        let text = table(&figures());
        assert_eq!(text.lines().count(), 5);
        assert!(text.contains("| scan | fresh, 1 GiB | 1,234,567 | 5 |"), "{text}");
        assert!(
            text.contains("| scan | fresh, 4 TiB | not counted | 50 |"),
            "{text}"
        );
        assert!(
            text.contains("| all | fragmented, 4 TiB | not run: 536870912 free blocks | – |"),
            "{text}"
        );
    }

    #[test]
    fn the_plot_has_a_point_for_each_size() {
        assert_eq!(points(&figures(), "scan", "fresh"), [(1.0, 11.0), (4096.0, 50.0)]);
        assert_eq!(points(&figures(), "share", "fresh"), []);
        let picture = drawn(&figures()).unwrap();
        assert!(picture.starts_with("<svg") && picture.contains("scan, fresh"));
        assert_eq!(picture.matches("<circle").count(), 2, "{picture}");
    }
}
