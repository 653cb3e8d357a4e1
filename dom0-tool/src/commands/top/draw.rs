//! Draws the live view. What does not fit is left out, the least important columns first.
//!
//! Names of guests are whatever somebody called them: they are drawn a cell at a time and never reach the
//! terminal as they are.

mod columns;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline, Wrap};

use self::columns::{Column, columns, mib};
use super::PAGES_PER_MIB;
use super::view::{Guest, Page, Point, Sort, View};
use crate::commands::words::clean;

/// How things look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) has_colour: bool,
    /// The terminal shows more than ASCII.
    pub(super) is_unicode: bool,
}

/// Parts of a guest's memory, in the order in which a bar has them.
#[derive(Clone, Copy)]
enum Share {
    Used,
    Inside,
    Due,
    Given,
}

impl Look {
    /// Returns the cell for a part: parts differ without colour, too.
    fn cell(self, share: Share) -> &'static str {
        match (share, self.is_unicode) {
            (Share::Used, true) => "█",
            (Share::Inside, true) => "▒",
            (Share::Due, true) => "▓",
            (Share::Given, true) => "░",
            (Share::Used, false) => "#",
            (Share::Inside, false) => "+",
            (Share::Due, false) => "*",
            (Share::Given, false) => ".",
        }
    }

    fn style(self, share: Share) -> Style {
        self.colour(match share {
            Share::Used => Color::Blue,
            Share::Inside => Color::Yellow,
            Share::Due => Color::Magenta,
            Share::Given => Color::Green,
        })
    }

    fn colour(self, colour: Color) -> Style {
        if self.has_colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, look: Look) {
    let area = frame.area();
    let [top, body, bottom] = [
        Rect {
            height: 2.min(area.height),
            ..area
        },
        Rect {
            y: area.y + 2.min(area.height),
            height: area.height.saturating_sub(3),
            ..area
        },
        Rect {
            y: area.bottom().saturating_sub(1),
            height: u16::from(area.height > 2),
            ..area
        },
    ];
    frame.render_widget(Paragraph::new(head(view, look)), top);
    match view.page {
        Page::List => list(frame.buffer_mut(), body, view, look),
        Page::Help => frame.render_widget(Paragraph::new(help(look)).wrap(Wrap { trim: false }), body),
        Page::Detail(domain) => match view.guests.iter().find(|guest| guest.row.domain == domain) {
            Some(guest) => detail(frame, body, guest, &view.history(domain), look),
            None => frame.render_widget(Paragraph::new(format!("domain {domain} is gone")), body),
        },
    }
    let keys = match view.page {
        Page::List => "q quit  ? help  enter detail  p pause  r reverse  sort: d n m f g u t s",
        Page::Detail(_) => "esc back  up/down other guest  p pause  q quit",
        Page::Help => "esc back  q quit",
    };
    frame.render_widget(Paragraph::new(keys), bottom);
}

/// The host's line, and one for what stands against it.
fn head(view: &View, look: Look) -> Vec<Line<'static>> {
    let mut first = vec![Span::raw(format!(
        "host {} MiB, {} free; guests could take back {} MiB",
        mib(view.memory.total),
        mib(view.memory.free),
        mib(view.promised),
    ))];
    if view.is_paused {
        first.push(Span::styled(
            "  PAUSED",
            Style::new().add_modifier(Modifier::BOLD),
        ));
    }
    let short = view.promised.saturating_sub(view.memory.free);
    let second = if let Some(trouble) = &view.trouble {
        Span::styled(
            format!("old figures: {}", clean(trouble)),
            look.colour(Color::Red),
        )
    } else if short > 0 {
        Span::styled(
            format!(
                "were all of it wanted at once, {} MiB would be missing",
                mib(short)
            ),
            look.colour(Color::Yellow),
        )
    } else {
        Span::raw(format!(
            "by {}{}",
            view.sort.name(),
            if view.is_reversed { ", reversed" } else { "" }
        ))
    };
    vec![Line::from(first), Line::from(second)]
}

/// Names the parts of a bar.
fn legend(look: Look) -> Line<'static> {
    let parts = [
        (Share::Used, "used"),
        (Share::Inside, "free inside"),
        (Share::Due, "due"),
        (Share::Given, "given back"),
    ];
    let spans = parts.into_iter().flat_map(|(share, name)| {
        [
            Span::styled(look.cell(share), look.style(share)),
            Span::raw(format!(" {name}  ")),
        ]
    });
    spans.collect()
}

fn list(buffer: &mut Buffer, area: Rect, view: &View, look: Look) {
    if area.height < 2 {
        return;
    }
    let columns = columns(area.width);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let right = row(
        buffer,
        area,
        area.y,
        &columns,
        |column| column.title.to_owned(),
        bold,
    );
    buffer.set_stringn(
        right,
        area.y,
        "MiB of its memory",
        usize::from(area.right() - right),
        bold,
    );
    if view.guests.is_empty() {
        let told = "no guests: PV guests, which have no state, are not shown";
        buffer.set_stringn(area.x, area.y + 1, told, usize::from(area.width), Style::new());
    }
    // The last line is the legend's.
    let height = usize::from(area.height.saturating_sub(2));
    let first = first_shown(view.cursor(), height);
    for (y, guest) in (area.y + 1..).zip(view.guests.iter().skip(first).take(height)) {
        let is_selected = view.selected == Some(guest.row.domain);
        let style = if is_selected {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        let at = row(buffer, area, y, &columns, |column| (column.text)(guest), style);
        let place = Rect {
            x: at,
            y,
            width: area.right().saturating_sub(at),
            height: 1,
        };
        bar(buffer, place, guest, look);
    }
    let place = Rect {
        y: area.bottom() - 1,
        height: 1,
        ..area
    };
    buffer.set_line(place.x, place.y, &legend(look), place.width);
}

/// Returns the first guest to show, so that the one at `cursor` is among `height` of them.
fn first_shown(cursor: usize, height: usize) -> usize {
    (cursor + 1).saturating_sub(height)
}

/// Draws a line of the list. Returns where its bar begins.
fn row(
    buffer: &mut Buffer,
    area: Rect,
    y: u16,
    columns: &[&Column],
    text: impl Fn(&Column) -> String,
    style: Style,
) -> u16 {
    let mut x = area.x;
    for column in columns {
        let width = column.width.min(area.right().saturating_sub(x));
        let text = text(column);
        // Spaces first: the style covers the whole cell of the table.
        buffer.set_stringn(x, y, " ".repeat(usize::from(width)), usize::from(width), style);
        let length = u16::try_from(Span::raw(&text).width())
            .unwrap_or(width)
            .min(width);
        let start = if column.is_left { x } else { x + width - length };
        buffer.set_stringn(start, y, text, usize::from(width), style);
        x = (x + column.width + 1).min(area.right());
    }
    x
}

/// Draws a guest's memory, or says why there is nothing to draw.
fn bar(buffer: &mut Buffer, place: Rect, guest: &Guest, look: Look) {
    let width = usize::from(place.width);
    if guest.row.state != "attached" && guest.row.given_back == 0 {
        let told = if guest.row.state == "-" {
            "not attached"
        } else {
            guest.row.state
        };
        buffer.set_stringn(place.x, place.y, told, width, Style::new());
        return;
    }
    let mut x = place.x;
    for (share, cells) in parts(guest, place.width) {
        let text = look.cell(share).repeat(usize::from(cells));
        buffer.set_stringn(
            x,
            place.y,
            text,
            usize::from(place.right() - x),
            look.style(share),
        );
        x += cells;
    }
}

/// Divides `width` cells among the parts of a guest's memory. All are given out, and a part that is there has
/// a cell at least if it is a hundredth of the whole.
fn parts(guest: &Guest, width: u16) -> [(Share, u16); 4] {
    let inside = guest.row.free_inside();
    let due = guest.due.unwrap_or(0).min(inside);
    let sizes = [guest.row.held - inside, inside - due, due, guest.row.given_back];
    let total = sizes.iter().sum::<u64>().max(1);
    let mut cells = [0_u16; 4];
    let (mut seen, mut placed) = (0, 0);
    for (cell, size) in cells.iter_mut().zip(sizes) {
        seen += size;
        // Rounded by where a part ends, so that the ends are right and the sum is the width.
        let end = (seen * u64::from(width) + total / 2) / total;
        let end = u16::try_from(end).unwrap_or(width).max(placed);
        *cell = end - placed;
        placed = end;
    }
    for at in 0..cells.len() {
        let largest = (0..cells.len()).max_by_key(|other| cells[*other]).unwrap_or(0);
        if cells[at] == 0 && sizes[at] * 100 >= total && cells[largest] > 1 {
            cells[at] = 1;
            cells[largest] -= 1;
        }
    }
    let shares = [Share::Used, Share::Inside, Share::Due, Share::Given];
    std::array::from_fn(|at| (shares[at], cells[at]))
}

fn help(look: Look) -> Vec<Line<'static>> {
    let mut lines = vec![
        legend(look),
        Line::raw("due: what the next rounds will give back, if a lacunad runs here"),
        Line::raw("taken/s: pages that the guest takes back by writing to them, a second"),
        Line::raw(""),
        Line::raw("up, down, j, k, page up, page down, home, end   choose a guest"),
        Line::raw("enter   the guest's figures and what they were"),
        Line::raw("p, space   keep the figures as they are, or go on"),
        Line::raw("r   turn the order round"),
    ];
    lines.extend(
        Sort::ALL
            .into_iter()
            .map(|(key, _, name)| Line::raw(format!("{key}   sort by {name}"))),
    );
    lines
}

fn detail(frame: &mut Frame<'_>, area: Rect, guest: &Guest, history: &[Point], look: Look) {
    let row = &guest.row;
    let due = guest.due.map_or_else(
        || "unknown: no lacunad answers".to_owned(),
        |due| format!("{} MiB", mib(due)),
    );
    let lines = vec![
        Line::styled(
            format!("{} (domain {}), {}", clean(&row.name), row.domain, row.state),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Line::raw(format!(
            "holds {} of at most {} MiB",
            mib(row.held),
            mib(row.limit)
        )),
        Line::raw(format!(
            "free inside {} MiB, given back {} MiB, due {due}",
            mib(row.free_inside()),
            mib(row.given_back)
        )),
        Line::raw(format!(
            "takes back {:.1} pages a second, stopped {:.3} % of the time",
            row.unshared_rate,
            row.paused * 100.0
        )),
        legend(look),
    ];
    let text = u16::try_from(lines.len()).unwrap_or(5);
    frame.render_widget(
        Paragraph::new(lines),
        Rect {
            height: text.min(area.height),
            ..area
        },
    );
    let place = Rect {
        y: area.y + text,
        height: 1,
        ..area
    };
    if area.height > text {
        bar(frame.buffer_mut(), place, guest, look);
    }
    let rest = Rect {
        y: area.y + text + 1,
        height: area.height.saturating_sub(text + 1),
        ..area
    };
    histories(frame, rest, history, look);
}

/// Draws three histories one below the other, as many as there is room for.
fn histories(frame: &mut Frame<'_>, area: Rect, history: &[Point], look: Look) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate is not negative, and is drawn
    let rate = |point: &Point| point.unshared_rate as u64;
    let series: [(&str, Vec<u64>); 3] = [
        (
            "given back, MiB",
            history
                .iter()
                .map(|point| point.given_back / PAGES_PER_MIB)
                .collect(),
        ),
        (
            "held, MiB",
            history.iter().map(|point| point.held / PAGES_PER_MIB).collect(),
        ),
        ("taken back, pages a second", history.iter().map(rate).collect()),
    ];
    let seconds = match (history.first(), history.last()) {
        (Some(first), Some(last)) => last.at.saturating_sub(first.at).as_secs(),
        _ => 0,
    };
    let each = (area.height / 3).max(2);
    for (at, (name, values)) in (0_u16..).zip(series) {
        let y = area.y + at * each;
        if y + 2 > area.bottom() {
            return;
        }
        let (least, most) = (
            values.iter().min().unwrap_or(&0),
            values.iter().max().unwrap_or(&0),
        );
        let title = format!("{name}: {least} to {most} in {seconds} s");
        frame.render_widget(Paragraph::new(title), Rect { y, height: 1, ..area });
        // The latest values where there are more than cells.
        let from = values.len().saturating_sub(usize::from(area.width));
        let line = Sparkline::default()
            .data(&values[from..])
            .max((*most).max(1))
            .style(look.colour(Color::Green));
        let line = if look.is_unicode {
            line
        } else {
            line.bar_set(ASCII)
        };
        frame.render_widget(
            line,
            Rect {
                y: y + 1,
                height: each - 1,
                ..area
            },
        );
    }
}

/// Heights of a bar for terminals that have only ASCII.
const ASCII: bar::Set<'static> = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "+",
    five_eighths: "+",
    half: "=",
    three_eighths: "-",
    one_quarter: "-",
    one_eighth: ".",
    empty: " ",
};

#[cfg(test)]
mod tests;
