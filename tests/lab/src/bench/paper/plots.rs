//! Draws the figures as SVG. A figure without a single result is not drawn, and a bar or a line that was not
//! measured is not there.

use std::fs;
use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use super::figures::{Measured, Series};
use crate::error::{Error, IoContext, Result};

/// The pictures' size.
const SIZE: (u32, u32) = (760, 420);
/// For numbers beside the axes.
const LABEL_AREA: u32 = 60;
const MARGIN: u32 = 12;
const FONT: (&str, u32) = ("sans-serif", 15);
const SMALL: (&str, u32) = ("sans-serif", 13);
/// Colours that differ for those who see few, too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// Room above the highest value, and the width of a bar: parts of the whole.
const HEAD: f64 = 1.1;
const BAR: f64 = 0.6;

/// What a picture says in words.
struct Words<'a> {
    title: &'a str,
    across: &'a str,
    up: &'a str,
}

/// Draws what was measured into `directory`, and returns the names of the files. A picture of an earlier run
/// that has nothing to show any more is removed.
pub(super) fn draw(measured: &Measured, directory: &Path) -> Result<Vec<&'static str>> {
    let (interval_shared, interval_slowdown) = measured.intervals();
    let seconds = "seconds of the machine's clock";
    let pictures = [
        (
            "shared.svg",
            lines(
                &Words {
                    title: "Figures 5 to 8 (a): memory of the guest that the host has",
                    across: seconds,
                    up: "MiB",
                },
                &measured.shared(),
            )?,
        ),
        (
            "round.svg",
            lines(
                &Words {
                    title: "Figures 5 to 8 (b): what a round takes",
                    across: "round",
                    up: "million instructions",
                },
                &measured.round_cost(),
            )?,
        ),
        (
            "unshared.svg",
            bars(
                "Figures 5 to 8 (c): pages taken back a minute",
                &measured.unshared(),
            )?,
        ),
        (
            "slowdown.svg",
            bars(
                "Figures 5 to 8 (d): slowdown of the guest's own work, in %",
                &measured.slowdown(),
            )?,
        ),
        (
            "interval-shared.svg",
            lines(
                &Words {
                    title: "Figure 9: memory shared, by the interval between rounds",
                    across: "seconds between rounds",
                    up: "MiB on average",
                },
                &interval_shared,
            )?,
        ),
        (
            "interval-slowdown.svg",
            lines(
                &Words {
                    title: "Figure 9: slowdown, by the interval between rounds",
                    across: "seconds between rounds",
                    up: "%",
                },
                &interval_slowdown,
            )?,
        ),
        (
            "migration.svg",
            bars("Figure 10: MB on the wire in a migration", &measured.moved())?,
        ),
    ];
    let mut drawn = Vec::new();
    for (name, picture) in pictures {
        let path = directory.join(name);
        match picture {
            Some(text) => {
                fs::write(&path, text).on("write", &path)?;
                drawn.push(name);
            }
            None => crate::context::remove(&path)?,
        }
    }
    Ok(drawn)
}

/// Draws lines with their points; nothing if there are none.
fn lines(words: &Words, series: &[Series]) -> Result<Option<String>> {
    let across = series
        .iter()
        .flat_map(|one| one.points.iter().map(|point| point.0));
    let up = series
        .iter()
        .flat_map(|one| one.points.iter().map(|point| point.1));
    let (Some(across), Some(up)) = (span(across), span(up)) else {
        return Ok(None);
    };
    let mut text = String::new();
    line_chart(&mut text, words, series, (across, up)).map_err(|why| impossible(words.title, &why))?;
    Ok(Some(text))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn line_chart(
    text: &mut String,
    words: &Words,
    series: &[Series],
    (across, up): (Range<f64>, Range<f64>),
) -> Drawn {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(words.title, FONT)
        .margin(MARGIN)
        .x_label_area_size(LABEL_AREA / 2 + MARGIN)
        .y_label_area_size(LABEL_AREA)
        .build_cartesian_2d(across, up)?;
    chart
        .configure_mesh()
        .x_desc(words.across)
        .y_desc(words.up)
        .label_style(SMALL)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (one, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let colour = *colour;
        let points = || one.points.iter().copied();
        chart
            .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
            .label(&one.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font(SMALL)
        .draw()?;
    area.present()?;
    Ok(())
}

/// Draws a bar for each series, with its value; nothing if there are none.
fn bars(title: &str, series: &[Series]) -> Result<Option<String>> {
    let values: Vec<(&str, f64)> = series
        .iter()
        .filter_map(|one| Some((one.name.as_str(), one.points.first()?.1)))
        .collect();
    let Some(up) = span(values.iter().map(|value| value.1)) else {
        return Ok(None);
    };
    let mut text = String::new();
    bar_chart(&mut text, title, &values, up).map_err(|why| impossible(title, &why))?;
    Ok(Some(text))
}

#[allow(clippy::cast_precision_loss)] // a few bars
fn bar_chart(text: &mut String, title: &str, values: &[(&str, f64)], up: Range<f64>) -> Drawn {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let head = up.end;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, FONT)
        .margin(MARGIN)
        .x_label_area_size(LABEL_AREA / 2)
        .y_label_area_size(LABEL_AREA)
        .build_cartesian_2d(0.0..values.len() as f64, up)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .label_style(SMALL)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (at, ((name, value), colour)) in values.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let left = at as f64 + (1.0 - BAR) / 2.0;
        let bar = [(left, 0.0), (left + BAR, *value)];
        chart.draw_series([Rectangle::new(bar, colour.filled())])?;
        let words = format!("{name}: {}", written(*value));
        // Above the bar; at the top for those below zero.
        let place = (left, (value.max(0.0) + head * 0.03).min(head));
        chart.draw_series([Text::new(words, place, SMALL)])?;
    }
    area.present()?;
    Ok(())
}

/// A value beside its bar.
fn written(value: f64) -> String {
    if value.abs() < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

/// The range that an axis needs for `values`, zero included; none without a value.
fn span(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let (mut least, mut most, mut any) = (0.0_f64, 0.0_f64, false);
    for value in values {
        (least, most, any) = (least.min(value), most.max(value), true);
    }
    // All zero is a measurement, too, and an axis needs a length.
    let most = if most > least { most } else { 1.0 };
    any.then_some(least * HEAD..most * HEAD)
}

fn impossible(title: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Unexpected {
        what: format!("the picture `{title}`"),
        expected: "to be drawn".to_owned(),
        seen: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::figures::tests::measured;
    use super::{Series, bars, draw};
    use serde_json::json;

    #[test]
    fn a_figure_without_data_is_not_drawn_and_an_old_one_goes() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join("migration.svg");
        std::fs::write(&old, "old").unwrap();
        let empty = measured(&[(
            "paper/compile-rounds-policy",
            json!({"rounds": [], "samples": []}),
        )]);
        assert_eq!(draw(&empty, directory.path()).unwrap(), Vec::<&str>::new());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_measured_is_drawn_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let record = json!({
            "samples": [{"ms": 0, "saved": 512}, {"ms": 2000, "saved": 1024}],
            "rounds": [{"instructions": 2_000_000}], "unshared_per_minute": 120.0,
        });
        let some = measured(&[("paper/compile-rounds-intro", record)]);
        let drawn = draw(&some, directory.path()).unwrap();
        let expected = ["shared.svg", "round.svg", "unshared.svg", "interval-shared.svg"];
        assert_eq!(drawn, expected);
        let text = std::fs::read_to_string(directory.path().join("unshared.svg")).unwrap();
        assert!(text.starts_with("<svg") && text.contains("Intro: 120"), "{text}");
        assert!(!text.contains("Dedup"), "{text}");
    }

    #[test]
    fn a_measured_zero_is_drawn_as_one() {
        let zero = Series {
            name: "policy".to_owned(),
            points: vec![(0.0, 0.0)],
        };
        assert!(
            bars("none taken back", &[zero])
                .unwrap()
                .unwrap()
                .contains("policy: 0.00")
        );
        assert_eq!(bars("none taken back", &[]).unwrap(), None);
    }
}
