//! Kinds of charts: lines, bars side by side, and ranges. Each has its title and what its colours mean above
//! the data, units at its axes, and colours for a light and for a dark page.

use std::ops::Range;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::TextStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::figures::Series;
use crate::error::{Error, Result};

/// The pictures' width, which GitHub shows as it is.
const WIDTH: u32 = 800;
/// Room at the top for the title and for what the colours mean, and at the other sides.
const TOP: u32 = 64;
const MARGIN: u32 = 14;
/// For numbers beside the axes.
const LABELS: u32 = 58;
const BOTTOM: u32 = 44;
const TITLE: (&str, u32) = ("sans-serif", 17);
const SMALL: (&str, u32) = ("sans-serif", 13);
/// The width of a character of the small font, as near as a picture without fonts can tell.
const CHARACTER: f64 = 7.2;
/// How many numbers stand at the axis upwards, at most.
const Y_LABELS: usize = 6;
/// Room above the highest value and beyond the last one.
const HEAD: f64 = 1.12;
const TAIL: f64 = 1.02;
/// The part of its place that a group of bars takes; of a few groups, each has a wide place.
const BAR: f64 = 0.72;
const BAR_OF_FEW: f64 = 0.4;
const FEW: usize = 4;
const INK: RGBColor = RGBColor(31, 35, 40);
const FAINT: RGBColor = RGBColor(208, 215, 222);
const PAPER: RGBColor = WHITE;
/// What a dark page has instead, by the browser's wish: each colour, and what takes its place.
const DARK: &[(RGBColor, &str)] = &[
    (PAPER, "#0d1117"),
    (INK, "#e6edf3"),
    (FAINT, "#30363d"),
    (BLUE_DEEP, "#4ba3e3"),
    (RED_BRICK, "#f0793a"),
    (GREEN_SEA, "#2fc79a"),
    (GREY, "#9aa4af"),
];
const BLUE_DEEP: RGBColor = RGBColor(0, 114, 178);
const RED_BRICK: RGBColor = RGBColor(213, 94, 0);
const GREEN_SEA: RGBColor = RGBColor(0, 158, 115);
const PINK: RGBColor = RGBColor(204, 121, 167);
const AMBER: RGBColor = RGBColor(230, 159, 0);
const SKY: RGBColor = RGBColor(86, 180, 233);
const GREY: RGBColor = RGBColor(110, 119, 129);

/// What a picture says in words.
pub(super) struct Words<'a> {
    pub(super) title: &'a str,
    pub(super) across: &'a str,
    pub(super) up: &'a str,
}

/// How the values lie along the axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Even,
    /// By powers of ten: for values of which some are many times others.
    Powers,
}

/// From the least to the most with the average between: a row of a chart of ranges.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Spread {
    pub(in super::super) name: String,
    /// Whose it is; the colour shows it.
    pub(in super::super) of: &'static str,
    pub(in super::super) least: f64,
    pub(in super::super) average: f64,
    pub(in super::super) most: f64,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The same for the same name in all pictures; colours that differ for those who see few, too (Okabe and Ito).
fn colour(name: &str) -> RGBColor {
    match name {
        "Intro" | "Intro, again" | "with Lacuna" | "here" | "slowdown" => BLUE_DEEP,
        "Dedup" => RED_BRICK,
        "IntroDedup" => GREEN_SEA,
        "policy" => PINK,
        "balloon" | "the paper" | "the paper, Debian-32" => AMBER,
        "user level, Intro" => SKY,
        _ => GREY,
    }
}

/// The small font, in ink.
fn small() -> TextStyle<'static> {
    SMALL.into_font().color(&INK)
}

/// Gives a chart's axes their font and colours, and leaves the fine lines of its grid out.
fn style<'m, 'a, 'b, X, Y, D>(mesh: &'m mut MeshStyle<'a, 'b, X, Y, D>) -> &'m mut MeshStyle<'a, 'b, X, Y, D>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    D: DrawingBackend,
{
    mesh.label_style(small())
        .axis_desc_style(small())
        .axis_style(INK)
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
}

/// Draws lines with their points; nothing if there are none.
pub(super) fn lines(words: &Words, series: &[Series], scale: Scale) -> Result<Option<String>> {
    let all = || series.iter().flat_map(|one| one.points.iter());
    let (Some(across), Some(up)) = (
        span(all().map(|point| point.0), TAIL),
        span(all().map(|point| point.1), HEAD),
    ) else {
        return Ok(None);
    };
    let names: Vec<&str> = series.iter().map(|one| one.name.as_str()).collect();
    picture(words.title, 400, &names, |area| {
        let mut builder = ChartBuilder::on(area);
        builder
            .margin_left(MARGIN)
            .margin_right(MARGIN)
            .x_label_area_size(BOTTOM)
            .y_label_area_size(LABELS);
        if scale == Scale::Powers {
            let least = all().map(|point| point.1).fold(up.end, f64::min).max(0.1);
            let up = (least / 1.5..up.end * 1.2).log_scale();
            let mut chart = builder.build_cartesian_2d(across.clone(), up)?;
            draw_lines!(chart, words, series);
        } else {
            let mut chart = builder.build_cartesian_2d(across.clone(), up.clone())?;
            draw_lines!(chart, words, series);
        }
        Ok(())
    })
}

/// Draws the mesh, the lines and their points: charts of different scales are of different types.
macro_rules! draw_lines {
    ($chart:ident, $words:ident, $series:ident) => {
        style(&mut $chart.configure_mesh())
            .x_desc($words.across)
            .y_desc($words.up)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&|value| number(*value))
            .y_labels(Y_LABELS)
            .draw()?;
        for one in $series {
            let (colour, points) = (colour(&one.name), || one.points.iter().copied());
            $chart.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
            $chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
    };
}
use draw_lines;

/// Draws bars, those of a group side by side, each with its value; nothing if there are none. A series is a
/// colour, and its points are its bars: where in `groups`, and how high. Bars of a series without a name have
/// the colours of their groups.
pub(super) fn bars(title: &str, up: &str, groups: &[String], series: &[Series]) -> Result<Option<String>> {
    let values = series
        .iter()
        .flat_map(|one| one.points.iter().map(|point| point.1));
    let Some(range) = span(values, HEAD) else {
        return Ok(None);
    };
    let names: Vec<&str> = series.iter().map(|one| one.name.as_str()).collect();
    let names = if series.len() > 1 { &names[..] } else { &[] };
    picture(title, 340, names, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_left(MARGIN)
            .margin_right(MARGIN)
            .x_label_area_size(BOTTOM / 2)
            .y_label_area_size(LABELS)
            .build_cartesian_2d(0.0..count(groups.len()), range.clone())?;
        style(&mut chart.configure_mesh())
            .disable_x_mesh()
            .x_labels(0)
            .y_desc(up)
            .y_label_formatter(&|value| number(*value))
            .draw()?;
        let centred = small().pos(Pos::new(HPos::Center, VPos::Bottom));
        let taken = if groups.len() < FEW { BAR_OF_FEW } else { BAR };
        for (at, group) in groups.iter().enumerate() {
            let here = |one: &Series| {
                one.points
                    .iter()
                    .find(|point| (point.0 - count(at)).abs() < 0.5)
                    .copied()
            };
            let present: Vec<(&Series, f64)> = series
                .iter()
                .filter_map(|one| Some((one, here(one)?.1)))
                .collect();
            let width = taken / count(present.len().max(1));
            for (index, (one, value)) in present.iter().enumerate() {
                let left = count(at) + (1.0 - taken) / 2.0 + width * count(index);
                let name = if one.name.is_empty() { group } else { &one.name };
                let bar = [(left + width * 0.04, 0.0), (left + width * 0.96, *value)];
                chart.draw_series([Rectangle::new(bar, colour(name).filled())])?;
                let above = (
                    left + width / 2.0,
                    value.max(0.0) + (range.end - range.start) * 0.012,
                );
                chart.draw_series([Text::new(number(*value), above, centred.clone())])?;
            }
            let (across, bottom) = chart.backend_coord(&(count(at) + 0.5, range.start));
            let (left, top) = area.get_base_pixel();
            let below = (across - left, bottom - top + 20);
            area.draw(&Text::new(group.clone(), below, centred.clone()))?;
        }
        Ok(())
    })
}

/// Draws a row for each range: a bar from the least to the most, and a mark at the average.
pub(super) fn ranges(title: &str, across: &str, rows: &[Spread]) -> Result<Option<String>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.of) {
            names.push(row.of);
        }
    }
    let height = TOP + BOTTOM + 22 * u32::try_from(rows.len()).unwrap_or(u32::MAX);
    picture(title, height, &names, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_left(MARGIN)
            .margin_right(MARGIN)
            .x_label_area_size(BOTTOM)
            .y_label_area_size(LABELS * 4)
            .build_cartesian_2d(0.0..100.0, 0.0..count(rows.len()))?;
        style(&mut chart.configure_mesh())
            .disable_y_mesh()
            .y_labels(0)
            .x_desc(across)
            .x_label_formatter(&|value| number(*value))
            .draw()?;
        let right = small().pos(Pos::new(HPos::Right, VPos::Center));
        for (at, row) in rows.iter().enumerate() {
            let up = count(rows.len() - at) - 0.5;
            let colour = colour(row.of);
            let bar = [(row.least, up - 0.28), (row.most, up + 0.28)];
            chart.draw_series([Rectangle::new(bar, colour.filled())])?;
            let mark = vec![(row.average, up - 0.44), (row.average, up + 0.44)];
            chart.draw_series([PathElement::new(mark, INK.stroke_width(3))])?;
            let (across, down) = chart.backend_coord(&(0.0, up));
            let (left, top) = area.get_base_pixel();
            area.draw(&Text::new(
                row.name.clone(),
                (across - left - 8, down - top),
                right.clone(),
            ))?;
        }
        Ok(())
    })
}

/// Draws the title, what the colours mean, and what `data` draws below.
fn picture(
    title: &str,
    height: u32,
    names: &[&str],
    data: impl FnOnce(&Area) -> Drawn,
) -> Result<Option<String>> {
    let mut text = String::new();
    let draw = |text: &mut String| -> Drawn {
        let area = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
        area.fill(&PAPER)?;
        let left = i32::try_from(MARGIN)?;
        area.draw(&Text::new(
            title.to_owned(),
            (left, left),
            TITLE.into_font().color(&INK),
        ))?;
        let mut across = left;
        for name in names {
            let box_at = [(across, left + 27), (across + 14, left + 37)];
            area.draw(&Rectangle::new(box_at, colour(name).filled()))?;
            let place = (across + 20, left + 25);
            area.draw(&Text::new((*name).to_owned(), place, small()))?;
            #[allow(clippy::cast_possible_truncation)] // the width of a name
            let wide = (count(name.chars().count()) * CHARACTER) as i32;
            across += wide + 44;
        }
        let top = if names.is_empty() { TOP - 22 } else { TOP };
        let (_, below) = area.split_vertically(top);
        data(&below)?;
        area.present()?;
        Ok(())
    };
    draw(&mut text).map_err(|why| impossible(title, &why))?;
    Ok(Some(with_dark(&text)))
}

/// The same picture with other colours for a dark page.
fn with_dark(text: &str) -> String {
    let rule = |(light, dark): &(RGBColor, &str)| {
        let RGBColor(red, green, blue) = light;
        let light = format!("#{red:02X}{green:02X}{blue:02X}");
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    };
    let rules: String = DARK.iter().map(rule).collect();
    let style = format!("<style>@media (prefers-color-scheme: dark){{{rules}}}</style>");
    match text.split_once(">\n") {
        Some((head, rest)) => format!("{head}>\n{style}\n{rest}"),
        None => text.to_owned(),
    }
}

/// A value in as few digits as say it.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1_000_000.0 {
        format!("{}M", trimmed(value / 1e6, 1))
    } else if size >= 10_000.0 {
        format!("{:.0}k", value / 1e3)
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        trimmed(value, 1)
    } else {
        trimmed(value, 2)
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

/// The range that an axis needs for `values`, zero included and with `room` beyond them; none without a value.
fn span(values: impl Iterator<Item = f64>, room: f64) -> Option<Range<f64>> {
    let (mut least, mut most, mut any) = (0.0_f64, 0.0_f64, false);
    for value in values {
        (least, most, any) = (least.min(value), most.max(value), true);
    }
    // All zero is a measurement, too, and an axis needs a length.
    let most = if most > least { most } else { 1.0 };
    any.then_some(least * room..most * room)
}

#[allow(clippy::cast_precision_loss)] // a few
fn count(number: usize) -> f64 {
    number as f64
}

fn impossible(title: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Unexpected {
        what: format!("the picture `{title}`"),
        expected: "to be drawn".to_owned(),
        seen: why.to_string(),
    }
}
