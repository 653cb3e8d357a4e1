//! The state of the live view and what keys do to it. Nothing here knows of a terminal.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ops::top::{Row, Sample};
use crate::xen::privcmd::HostMemory;

/// Most points of a guest's history: ten minutes at an interval of a second.
const MOST_POINTS: usize = 600;
/// Rows by which a page key moves.
const PAGE_ROWS: usize = 10;

/// A key, as far as the view knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Enter,
    Back,
    Interrupt,
    Suspend,
    Letter(char),
}

/// How to go on after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Go,
    Suspend,
    Quit,
}

/// What guests are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Domain,
    Name,
    Held,
    Inside,
    Given,
    Due,
    Taken,
    Paused,
}

impl Sort {
    /// The orders, each with its key and its name, as the help shows them.
    pub(super) const ALL: [(char, Self, &str); 8] = [
        ('d', Self::Domain, "domain number"),
        ('n', Self::Name, "name"),
        ('m', Self::Held, "memory held"),
        ('f', Self::Inside, "free inside"),
        ('g', Self::Given, "given back"),
        ('u', Self::Due, "due"),
        ('t', Self::Taken, "taken back a second"),
        ('s', Self::Paused, "part of the time stopped"),
    ];

    /// Returns the name.
    pub(super) fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(_, sort, _)| *sort == self)
            .map_or("", |(_, _, name)| name)
    }

    /// Compares two guests: by number and name the least first, by all else the greatest.
    fn compare(self, one: &Guest, other: &Guest) -> Ordering {
        let (a, b) = (&one.row, &other.row);
        let order = match self {
            Self::Domain => Ordering::Equal,
            Self::Name => a.name.cmp(&b.name),
            Self::Held => b.held.cmp(&a.held),
            Self::Inside => b.free_inside().cmp(&a.free_inside()),
            Self::Given => b.given_back.cmp(&a.given_back),
            Self::Due => other.due.cmp(&one.due),
            Self::Taken => b.unshared_rate.total_cmp(&a.unshared_rate),
            Self::Paused => b.paused.total_cmp(&a.paused),
        };
        order.then(a.domain.cmp(&b.domain))
    }
}

/// A guest as it is shown. Pages are of 4 KiB.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Guest {
    pub(super) row: Row,
    /// Free inside beyond what the daemon's policy leaves to the guest, and so to be given back by one of its
    /// next rounds; `None` without a daemon.
    pub(super) due: Option<u64>,
}

/// A guest at one moment of its history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) at: Duration,
    pub(super) held: u64,
    pub(super) given_back: u64,
    pub(super) unshared_rate: f64,
}

/// What part of the view is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    #[default]
    List,
    Detail(u16),
    Help,
}

/// The view.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) guests: Vec<Guest>,
    pub(super) memory: HostMemory,
    pub(super) promised: u64,
    pub(super) page: Page,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    pub(super) is_paused: bool,
    /// The guest under the cursor: the cursor stays with it when the order changes.
    pub(super) selected: Option<u16>,
    /// Why the figures are older than they should be, if so.
    pub(super) trouble: Option<String>,
    /// The cursor's last place.
    at: usize,
    histories: BTreeMap<u16, VecDeque<Point>>,
}

impl View {
    /// Takes new figures in. While the view is paused only the histories grow.
    pub(super) fn update(&mut self, sample: &Sample, rows: Vec<Row>, headrooms: &BTreeMap<u16, u64>) {
        self.trouble = None;
        self.histories
            .retain(|domain, _| rows.iter().any(|row| row.domain == *domain));
        for row in &rows {
            let history = self.histories.entry(row.domain).or_default();
            if history.len() == MOST_POINTS {
                history.pop_front();
            }
            history.push_back(Point {
                at: sample.at,
                held: row.held,
                given_back: row.given_back,
                unshared_rate: row.unshared_rate,
            });
        }
        if self.is_paused {
            return;
        }
        self.memory = sample.memory;
        self.promised = sample.promised();
        let due = |row: &Row| {
            headrooms
                .get(&row.domain)
                .map(|kept| row.free_inside().saturating_sub(*kept))
        };
        self.guests = rows
            .into_iter()
            .map(|row| Guest { due: due(&row), row })
            .collect();
        self.arrange();
    }

    /// Notes that there are no new figures.
    pub(super) fn fail(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Returns the guest's history, the oldest first.
    pub(super) fn history(&self, domain: u16) -> Vec<Point> {
        self.histories
            .get(&domain)
            .into_iter()
            .flatten()
            .copied()
            .collect()
    }

    /// Returns the place of the guest under the cursor.
    pub(super) fn cursor(&self) -> usize {
        self.guests
            .iter()
            .position(|guest| Some(guest.row.domain) == self.selected)
            .unwrap_or(self.at)
    }

    /// Sorts the guests. If the one under the cursor is gone, the cursor goes to the guest in its place.
    fn arrange(&mut self) {
        let (sort, is_reversed) = (self.sort, self.is_reversed);
        self.guests.sort_by(|one, other| {
            let order = sort.compare(one, other);
            if is_reversed { order.reverse() } else { order }
        });
        let at = self.cursor();
        self.select(at);
    }

    fn select(&mut self, at: usize) {
        let at = at.min(self.guests.len().saturating_sub(1));
        self.at = at;
        self.selected = self.guests.get(at).map(|guest| guest.row.domain);
    }

    /// Does what a key says.
    pub(super) fn press(&mut self, key: Key) -> Flow {
        match (key, self.page) {
            (Key::Interrupt | Key::Letter('q'), _) | (Key::Back, Page::List) => return Flow::Quit,
            (Key::Suspend, _) => return Flow::Suspend,
            (Key::Back, _)
            | (Key::Enter, Page::Detail(_) | Page::Help)
            | (Key::Letter('?' | 'h'), Page::Help) => {
                self.page = Page::List;
            }
            (Key::Letter('?' | 'h'), _) => self.page = Page::Help,
            (Key::Letter('p' | ' '), _) => self.is_paused = !self.is_paused,
            (Key::Enter, Page::List) => {
                if let Some(domain) = self.selected {
                    self.page = Page::Detail(domain);
                }
            }
            (Key::Letter('r'), Page::List) => {
                self.is_reversed = !self.is_reversed;
                self.arrange();
            }
            (Key::Letter(letter @ ('j' | 'k')), _) => {
                self.step(if letter == 'j' { Key::Down } else { Key::Up });
            }
            (Key::Letter(letter), Page::List) => {
                if let Some((_, sort, _)) = Sort::ALL.into_iter().find(|(key, _, _)| *key == letter) {
                    self.sort = sort;
                    self.is_reversed = false;
                    self.arrange();
                }
            }
            (Key::Letter(_), _) => {}
            (key, _) => self.step(key),
        }
        Flow::Go
    }

    /// Moves the cursor; the detail shows the guest that it comes to.
    fn step(&mut self, key: Key) {
        let (at, last) = (self.cursor(), self.guests.len().saturating_sub(1));
        self.select(match key {
            Key::Up => at.saturating_sub(1),
            Key::Down => at + 1,
            Key::PageUp => at.saturating_sub(PAGE_ROWS),
            Key::PageDown => at + PAGE_ROWS,
            Key::First => 0,
            Key::Last => last,
            _ => at,
        });
        if let (Page::Detail(_), Some(domain)) = (self.page, self.selected) {
            self.page = Page::Detail(domain);
        }
    }
}

#[cfg(test)]
mod tests;
