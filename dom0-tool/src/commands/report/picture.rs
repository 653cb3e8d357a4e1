//! The report's pictures, as SVG.
//!
//! Each has a title and a description for those who do not see it, and shows nothing that the table below it
//! does not have. Colours are those of the page's style sheet.

use super::markup::Markup;
use super::time;
use crate::ops::report::{Happening, Kind};

/// Size of a picture, and the edges of its plot, in units of its own.
const WIDTH: f64 = 800.0;
pub(super) const LEFT: f64 = 64.0;
/// Half of a label has to fit behind it.
const RIGHT: f64 = 780.0;
const TOP: f64 = 8.0;
/// Height of a plot, and of what is below it.
const PLOT: f64 = 150.0;
const FOOT: f64 = 24.0;
/// Height of a guest's line among the events.
const LANE: f64 = 20.0;
/// Where such a line begins: the guest's name is before it.
const LANE_LEFT: f64 = 116.0;
/// Characters of a name that fit there.
const LANE_NAME: usize = 16;

/// The time that a picture shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) slot: u64,
    /// Where the plot begins, in units of the picture.
    pub(super) left: f64,
}

/// One series of a picture: a value for each slot, or a gap.
pub(super) struct Series {
    /// The class of its colour.
    pub(super) class: &'static str,
    pub(super) values: Vec<Option<f64>>,
}

/// A picture of values over time.
pub(super) struct Chart<'t> {
    /// Distinguishes the picture from the page's others.
    pub(super) id: usize,
    pub(super) title: &'t str,
    pub(super) description: &'t str,
    pub(super) span: Span,
    /// Areas, each upon the one before.
    pub(super) stacked: Vec<Series>,
    /// Lines.
    pub(super) lines: Vec<Series>,
    /// Bars below the middle line, as stacked ones are above it.
    pub(super) below: Option<Series>,
}

impl Span {
    #[allow(clippy::cast_precision_loss)] // a place in a picture
    fn x(self, at: u64) -> f64 {
        let part = at.saturating_sub(self.from) as f64 / (self.to - self.from).max(1) as f64;
        self.left + part.min(1.0) * (RIGHT - self.left)
    }

    /// Returns the left and the right edge of a slot.
    fn edges(self, slot: usize) -> (f64, f64) {
        let start = self.from + slot as u64 * self.slot;
        (self.x(start), self.x(start + self.slot))
    }
}

/// Begins a picture of this height.
fn begin(id: usize, height: f64, title: &str, description: &str) -> Markup {
    let mut svg = Markup::default();
    svg.raw("<div class=\"picture\"><svg viewBox=\"0 0 ")
        .text(WIDTH)
        .raw(" ")
        .text(height);
    svg.raw("\" role=\"img\" aria-labelledby=\"t")
        .text(id)
        .raw(" d")
        .text(id)
        .raw("\">");
    svg.raw("<title id=\"t")
        .text(id)
        .raw("\">")
        .text(title)
        .raw("</title>");
    svg.raw("<desc id=\"d")
        .text(id)
        .raw("\">")
        .text(description)
        .raw("</desc>\n");
    svg
}

/// Returns a round number not below `value`, and how many steps an axis of that length has.
fn nice(value: f64) -> (f64, u32) {
    let value = value.max(1.0);
    let mut scale = 1.0;
    loop {
        for (number, steps) in [
            (1.0, 4),
            (2.0, 4),
            (3.0, 3),
            (4.0, 4),
            (5.0, 5),
            (6.0, 3),
            (8.0, 4),
        ] {
            if number * scale >= value {
                return (number * scale, steps);
            }
        }
        scale *= 10.0;
    }
}

/// Returns the moments at which the time axis has marks, about eight of them, at full hours or minutes of UTC.
fn marks(span: Span) -> impl Iterator<Item = u64> {
    const STEPS: [u64; 13] = [
        60, 300, 600, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000,
    ];
    let length = span.to - span.from;
    let step = STEPS
        .into_iter()
        .find(|step| length / step <= 8)
        .unwrap_or(length.max(1));
    // An end of time that nobody lives to see must not overflow.
    std::iter::successors(span.from.checked_next_multiple_of(step), move |at| {
        at.checked_add(step)
    })
    .take_while(move |at| *at < span.to)
}

fn time_axis(svg: &mut Markup, span: Span, bottom: f64) {
    let has_days = span.to - span.from > 86_400 * 2;
    for at in marks(span) {
        let x = span.x(at);
        let label = if has_days { time::day(at) } else { time::minute(at) };
        svg.raw("<line class=\"grid\" x1=\"")
            .text(round(x))
            .raw("\" x2=\"")
            .text(round(x));
        svg.raw("\" y1=\"")
            .text(TOP)
            .raw("\" y2=\"")
            .text(bottom)
            .raw("\"/>");
        svg.raw("<text class=\"mid\" x=\"")
            .text(round(x))
            .raw("\" y=\"")
            .text(bottom + 16.0);
        svg.raw("\">").text(label).raw("</text>\n");
    }
}

/// Rounds to a tenth: more is not seen, and makes the page longer.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Chart<'_> {
    /// Draws it.
    pub(super) fn draw(&self) -> Markup {
        let mut svg = begin(self.id, TOP + PLOT + FOOT, self.title, self.description);
        let bottom = TOP + PLOT;
        let above = self.top();
        let (top, steps) = nice(above);
        // Up and down have one scale.
        let (middle, top, steps) = match &self.below {
            None => (bottom, top, steps),
            Some(below) => (TOP + PLOT / 2.0, nice(above.max(peak(below))).0, 2),
        };
        let height = middle - TOP;
        time_axis(&mut svg, self.span, bottom);
        for step in 0..=steps {
            let value = top * f64::from(step) / f64::from(steps);
            let y = middle - height * f64::from(step) / f64::from(steps);
            Self::level(&mut svg, y, value);
            if self.below.is_some() && step > 0 {
                Self::level(&mut svg, middle + (middle - y), value);
            }
        }
        let y = |value: f64| round(middle - height * (value / top));
        let mut floor = vec![0.0; self.stacked.first().map_or(0, |series| series.values.len())];
        for series in &self.stacked {
            self.area(&mut svg, series, &mut floor, y);
        }
        if let Some(below) = &self.below {
            let mut floor = vec![0.0; below.values.len()];
            self.area(&mut svg, below, &mut floor, |value| {
                round(middle + height * (value / top))
            });
        }
        for series in &self.lines {
            self.line(&mut svg, series, y);
        }
        svg.raw("</svg></div>\n");
        svg
    }

    /// The greatest value that has to fit.
    fn top(&self) -> f64 {
        let slots = self.stacked.first().map_or(0, |series| series.values.len());
        let stacked = (0..slots)
            .map(|at| self.stacked.iter().filter_map(|series| series.values[at]).sum())
            .fold(0.0, f64::max);
        self.lines.iter().map(peak).fold(stacked, f64::max)
    }

    fn level(svg: &mut Markup, y: f64, value: f64) {
        svg.raw("<line class=\"grid\" x1=\"")
            .text(LEFT)
            .raw("\" x2=\"")
            .text(RIGHT);
        svg.raw("\" y1=\"")
            .text(round(y))
            .raw("\" y2=\"")
            .text(round(y))
            .raw("\"/>");
        svg.raw("<text class=\"end\" x=\"")
            .text(LEFT - 6.0)
            .raw("\" y=\"")
            .text(round(y) + 4.0);
        svg.raw("\">").text(round(value)).raw("</text>\n");
    }

    /// Draws a series upon `floor`, which it raises. Each slot is level; where there is no value nothing is
    /// drawn.
    fn area(&self, svg: &mut Markup, series: &Series, floor: &mut [f64], y: impl Fn(f64) -> f64) {
        svg.raw("<path class=\"").raw(series.class).raw("\" d=\"");
        for (at, value) in series.values.iter().enumerate() {
            let Some(value) = value.filter(|value| *value > 0.0) else {
                continue;
            };
            let (left, right) = self.span.edges(at);
            svg.raw("M").text(round(left)).raw(" ").text(y(floor[at]));
            floor[at] += value;
            svg.raw("V").text(y(floor[at])).raw("H").text(round(right));
            svg.raw("V").text(y(floor[at] - value)).raw("Z");
        }
        svg.raw("\"/>\n");
    }

    fn line(&self, svg: &mut Markup, series: &Series, y: impl Fn(f64) -> f64) {
        svg.raw("<path class=\"").raw(series.class).raw("\" d=\"");
        let mut is_down = false;
        for (at, value) in series.values.iter().enumerate() {
            let Some(value) = value else {
                is_down = false;
                continue;
            };
            let (left, right) = self.span.edges(at);
            if is_down {
                svg.raw("V").text(y(*value));
            } else {
                svg.raw("M").text(round(left)).raw(" ").text(y(*value));
            }
            svg.raw("H").text(round(right));
            is_down = true;
        }
        svg.raw("\"/>\n");
    }
}

fn peak(series: &Series) -> f64 {
    series.values.iter().flatten().copied().fold(0.0, f64::max)
}

/// Draws events: a line for each guest that had one, marks by kind.
pub(super) fn events(id: usize, span: Span, happenings: &[&Happening], description: &str) -> Markup {
    let span = Span {
        left: LANE_LEFT,
        ..span
    };
    let mut lanes: Vec<&str> = happenings.iter().map(|event| event.guest.as_str()).collect();
    lanes.sort_unstable();
    lanes.dedup();
    #[allow(clippy::cast_precision_loss)] // guests of a host
    let bottom = TOP + LANE * lanes.len().max(1) as f64;
    let mut svg = begin(id, bottom + FOOT, "Events", description);
    time_axis(&mut svg, span, bottom);
    #[allow(clippy::cast_precision_loss)]
    let middle = |lane: usize| TOP + LANE * (lane as f64 + 0.5);
    for (at, name) in lanes.iter().enumerate() {
        let y = middle(at);
        svg.raw("<line class=\"grid\" x1=\"")
            .text(LANE_LEFT)
            .raw("\" x2=\"")
            .text(RIGHT);
        svg.raw("\" y1=\"")
            .text(y)
            .raw("\" y2=\"")
            .text(y)
            .raw("\"/><text x=\"2\" y=\"")
            .text(y + 4.0);
        let name = if name.is_empty() { "(host)" } else { name };
        let is_short = name.chars().count() <= LANE_NAME;
        let shown: String = name
            .chars()
            .take(if is_short { LANE_NAME } else { LANE_NAME - 1 })
            .collect();
        svg.raw("\">")
            .text(shown)
            .raw(if is_short { "" } else { "…" })
            .raw("</text>\n");
    }
    for event in happenings {
        let lane = lanes.iter().position(|name| *name == event.guest).unwrap_or(0);
        mark(&mut svg, event, span.x(event.at), middle(lane));
    }
    svg.raw("</svg></div>\n");
    svg
}

/// Draws one event: kinds differ in form as well as in colour.
fn mark(svg: &mut Markup, event: &Happening, x: f64, y: f64) {
    svg.raw("<path class=\"").raw(match event.kind {
        Kind::Change => "change",
        Kind::Gave => "given",
        Kind::Trouble => "trouble",
        Kind::Wait => "wait",
    });
    svg.raw("\" transform=\"translate(")
        .text(round(x))
        .raw(" ")
        .text(y)
        .raw(")\" d=\"");
    svg.raw(match event.kind {
        // A circle, a diamond, a square and a triangle.
        Kind::Change => "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
        Kind::Gave => "M0 -5L5 0L0 5L-5 0Z",
        Kind::Trouble => "M-4.5 -4.5H4.5V4.5H-4.5Z",
        Kind::Wait => "M0 -6L6 5H-6Z",
    });
    svg.raw("\"><title>")
        .text(time::minute(event.at))
        .raw(" ")
        .text(&event.guest)
        .raw(" ");
    svg.text(super::page::words(&event.event.event))
        .raw("</title></path>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_at_or_above_its_value() {
        for (value, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (41.0, 50.0),
            (512.0, 600.0),
            (99_999.0, 100_000.0),
        ] {
            assert!((nice(value).0 - top).abs() < 1e-9, "{value}: {:?}", nice(value));
        }
    }

    #[test]
    fn a_time_axis_has_a_few_marks_whatever_its_length() {
        for length in [1, 60, 3600, 86_400, 10 * 86_400, 400 * 86_400] {
            let span = Span {
                from: 1_000_000_007,
                to: 1_000_000_007 + length,
                slot: 60,
                left: LEFT,
            };
            assert!(marks(span).count() <= 14, "{length}");
        }
        let day = Span {
            from: 0,
            to: 86_400,
            slot: 600,
            left: LEFT,
        };
        assert_eq!(
            marks(day).collect::<Vec<_>>(),
            (0..8).map(|at| at * 10_800).collect::<Vec<_>>()
        );
        let endless = Span {
            from: u64::MAX - 5,
            to: u64::MAX,
            slot: 60,
            left: LEFT,
        };
        assert_eq!(marks(endless).count(), 0);
    }

    #[test]
    fn a_gap_is_not_drawn_over() {
        let chart = Chart {
            id: 1,
            title: "x",
            description: "y",
            span: Span {
                from: 0,
                to: 4,
                slot: 1,
                left: LEFT,
            },
            stacked: vec![Series {
                class: "used",
                values: vec![Some(1.0), None, Some(0.0), Some(1.0)],
            }],
            lines: vec![Series {
                class: "promised",
                values: vec![Some(1.0), Some(2.0), None, Some(1.0)],
            }],
            below: None,
        };
        let drawn = chart.draw().finish();
        let path = |class: &str| {
            let (_, rest) = drawn.split_once(&format!("class=\"{class}\" d=\"")).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        assert_eq!(path("used").matches('M').count(), 2, "{drawn}");
        assert_eq!(path("promised").matches('M').count(), 2, "{drawn}");
    }
}
