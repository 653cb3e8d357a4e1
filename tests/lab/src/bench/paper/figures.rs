//! What the results say, in the paper's terms. A figure that no result has is absent, never zero.

use lacuna_scenarios::paper::{Arm, CELLS, Cell, Question};
use serde_json::{Map, Value};

use super::result::Store;
use crate::error::Result;

/// A line or the bars of a figure: its name, and its points.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Pages of a MiB.
const PAGES_PER_MIB: f64 = 256.0;

/// The good results.
pub(super) struct Measured(Vec<(Cell, Map<String, Value>)>);

impl Measured {
    /// Reads them; those of cells that failed say nothing.
    pub(super) fn read(store: &Store) -> Result<Self> {
        let mut found = Vec::new();
        for cell in CELLS {
            if let Some(record) = store.read(cell.name)?
                && record.get("passed") == Some(&Value::Bool(true))
            {
                found.push((*cell, record));
            }
        }
        Ok(Self(found))
    }

    /// Those with rounds `seconds` apart.
    fn rounds(&self, seconds: u32) -> impl Iterator<Item = &(Cell, Map<String, Value>)> {
        let wanted = move |cell: &Cell| cell.question == Question::Rounds { seconds };
        self.0.iter().filter(move |(cell, _)| wanted(cell))
    }

    /// Lines over the workload: of every cell with rounds, what `of` makes of its samples.
    fn lines(&self, list: &str, of: impl Fn(usize, &Value) -> Option<(f64, f64)>) -> Vec<Series> {
        self.rounds(BASE_SECONDS)
            .filter(|(cell, _)| cell.arm != Arm::None)
            .filter_map(|(cell, record)| {
                let values = record.get(list)?.as_array()?.iter().enumerate();
                let points: Vec<_> = values.filter_map(|(at, value)| of(at, value)).collect();
                let name = label(cell.arm).to_owned();
                (!points.is_empty()).then_some(Series { name, points })
            })
            .collect()
    }

    /// Figures 5 to 8 (a): memory shared, in MiB, over the seconds of the machine's clock.
    pub(super) fn shared(&self) -> Vec<Series> {
        self.lines("samples", |_, sample| {
            let seconds = number(sample, "ms")? / 1000.0;
            Some((seconds, number(sample, "saved")? / PAGES_PER_MIB))
        })
    }

    /// Figures 5 to 8 (b): millions of instructions of each round.
    pub(super) fn round_cost(&self) -> Vec<Series> {
        #[allow(clippy::cast_precision_loss)] // a few rounds
        self.lines("rounds", |at, round| {
            Some((at as f64 + 1.0, number(round, "instructions")? / 1e6))
        })
    }

    /// Figures 5 to 8 (c): pages taken back a minute, one bar for each that shares.
    pub(super) fn unshared(&self) -> Vec<Series> {
        let sharing = self
            .rounds(BASE_SECONDS)
            .filter(|(cell, _)| cell.arm != Arm::None);
        bars(sharing.filter_map(|(cell, record)| {
            let unshared = record.get("unshared_per_minute")?.as_f64()?;
            Some((label(cell.arm).to_owned(), unshared))
        }))
    }

    /// Figures 5 to 8 (d): the slowdown of the guest's own work in per cent, against the same work alone.
    pub(super) fn slowdown(&self) -> Vec<Series> {
        let all = self.rounds(BASE_SECONDS);
        bars(all.filter_map(|(cell, record)| {
            let alone = cell.name.ends_with("-none");
            let slowdown = self.slowdown_of(record).filter(|_| !alone)?;
            Some((label(cell.arm).to_owned(), slowdown))
        }))
    }

    /// Figure 9: for each interval, in seconds, the average shared in MiB, and the slowdown in per cent.
    pub(super) fn intervals(&self) -> (Vec<Series>, Vec<Series>) {
        let (mut shared, mut slowdown) = (Vec::new(), Vec::new());
        for (cell, record) in &self.0 {
            let Question::Rounds { seconds } = cell.question else {
                continue;
            };
            if cell.arm != Arm::Intro {
                continue;
            }
            if let Some(value) = average_saved(record) {
                shared.push((f64::from(seconds), value / PAGES_PER_MIB));
            }
            if let Some(value) = self.slowdown_of(record) {
                slowdown.push((f64::from(seconds), value));
            }
        }
        let series = |name: &str, points: Vec<(f64, f64)>| {
            let one = Series {
                name: name.to_owned(),
                points,
            };
            Some(one)
                .filter(|one| !one.points.is_empty())
                .into_iter()
                .collect()
        };
        (series("Intro", shared), series("Intro", slowdown))
    }

    /// Figure 10: MB in the first iteration and in the others, a bar for each way to move.
    pub(super) fn moved(&self) -> Vec<Series> {
        let moves = self
            .0
            .iter()
            .filter(|(cell, _)| cell.question == Question::Migration);
        bars(moves.flat_map(|(cell, record)| {
            let iterations = record.get("iterations").and_then(Value::as_array);
            let of = |iteration: &Value| number(iteration, "bytes");
            let first = iterations.and_then(|all| of(all.first()?));
            let rest = iterations.and_then(|all| all.iter().skip(1).map(of).sum::<Option<f64>>());
            let way = if cell.arm == Arm::None { "Base" } else { "Intro" };
            [("first", first), ("others", rest)]
                .into_iter()
                .filter_map(move |(which, bytes)| Some((format!("{way}, {which}"), bytes? / 1e6)))
        }))
    }

    /// How much longer than alone the guest's virtual CPU ran, with what Xen did in its name, or was kept from
    /// running by slices, in per cent; nothing without the same work alone.
    fn slowdown_of(&self, record: &Map<String, Value>) -> Option<f64> {
        let taken = |record: &Map<String, Value>| {
            let of = |name: &str| record.get(name).and_then(Value::as_f64);
            Some(of("guest_ns")? + of("paused_ns")?)
        };
        let (_, alone) = self
            .rounds(BASE_SECONDS)
            .find(|(cell, _)| cell.name.ends_with("-none"))?;
        let alone = taken(alone).filter(|alone| *alone > 0.0)?;
        Some((taken(record)? / alone - 1.0) * 100.0)
    }

    /// Table 1, and the figures in numbers: a line for each cell with rounds.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "  {:<34}{:>22}{:>12}{:>14}{:>14}{:>12}\n",
            "cell", "free %, max avg min", "shared MiB", "round, M ins", "unshared/min", "slowdown %"
        );
        for (cell, record) in &self.0 {
            let Question::Rounds { .. } = cell.question else {
                continue;
            };
            let free = ["free_most", "free_average", "free_least"].map(|name| {
                let pages = record.get("guest_pages").and_then(Value::as_f64);
                let free = record.get(name).and_then(Value::as_f64);
                shown(pages.zip(free).map(|(pages, free)| free / pages * 100.0))
            });
            let free = free.join(" ");
            let shares = cell.arm != Arm::None;
            let saved = average_saved(record).filter(|_| shares);
            let saved = shown(saved.map(|pages| pages / PAGES_PER_MIB));
            let cost = shown(average_cost(record));
            let unshared = record.get("unshared_per_minute").and_then(Value::as_f64);
            let unshared = shown(unshared.filter(|_| shares));
            let slowdown = self.slowdown_of(record).map(|value| format!("{value:.3}"));
            let slowdown = slowdown.unwrap_or_else(|| NO_FIGURE.to_owned());
            let line = format!(
                "  {:<34}{free:>22}{saved:>12}{cost:>14}{unshared:>14}{slowdown:>12}\n",
                cell.name
            );
            text.push_str(&line);
        }
        text
    }
}

/// The interval of Figures 5 to 8, in seconds.
pub(super) const BASE_SECONDS: u32 = 2;
/// In place of a figure that there is not.
const NO_FIGURE: &str = "–";

/// How an arm is called in figures.
const fn label(arm: Arm) -> &'static str {
    match arm {
        Arm::None => "nobody, again",
        Arm::UserLevel => "user level, Intro",
        Arm::Intro => "Intro",
        Arm::Dedup => "Dedup",
        Arm::IntroDedup => "IntroDedup",
        Arm::Policy => "policy",
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| NO_FIGURE.to_owned(), |value| format!("{value:.1}"))
}

fn number(value: &Value, name: &str) -> Option<f64> {
    value.get(name)?.as_f64()
}

/// One series for each bar.
fn bars(values: impl Iterator<Item = (String, f64)>) -> Vec<Series> {
    let bar = |(name, value)| Series {
        name,
        points: vec![(0.0, value)],
    };
    values.map(bar).collect()
}

/// The average of what was shared at the samples, in pages.
fn average_saved(record: &Map<String, Value>) -> Option<f64> {
    average(record.get("samples")?, "saved")
}

/// The average of what a round took, in millions of instructions.
fn average_cost(record: &Map<String, Value>) -> Option<f64> {
    Some(average(record.get("rounds")?, "instructions")? / 1e6)
}

#[allow(clippy::cast_precision_loss)] // counts
fn average(list: &Value, name: &str) -> Option<f64> {
    let values: Vec<f64> = list
        .as_array()?
        .iter()
        .map(|value| number(value, name))
        .collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::{Measured, NO_FIGURE};
    use lacuna_scenarios::paper::find;
    use serde_json::{Value, json};

    /// Results of these cells.
    pub(in super::super) fn measured(records: &[(&str, Value)]) -> Measured {
        let record =
            |(name, value): &(&str, Value)| (find(name).unwrap(), value.as_object().unwrap().clone());
        Measured(records.iter().map(record).collect())
    }

    #[test]
    fn slowdown_is_against_the_same_work_alone_and_absent_without_it() {
        let slow = (
            "paper/compile-rounds-intro",
            json!({"guest_ns": 1_010, "paused_ns": 20}),
        );
        assert_eq!(measured(std::slice::from_ref(&slow)).slowdown(), []);
        let alone = (
            "paper/compile-rounds-none",
            json!({"guest_ns": 1_000, "paused_ns": 0}),
        );
        let bars = measured(&[alone, slow]).slowdown();
        assert_eq!(bars.len(), 1);
        assert_eq!(bars[0].name, "Intro");
        assert!((bars[0].points[0].1 - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_figure_that_was_not_measured_is_not_zero() {
        let nothing = measured(&[(
            "paper/compile-rounds-policy",
            json!({"rounds": [], "samples": []}),
        )]);
        assert_eq!(nothing.shared(), []);
        assert_eq!(nothing.round_cost(), []);
        assert_eq!(nothing.unshared(), []);
        assert_eq!(nothing.moved(), []);
        assert_eq!(nothing.intervals(), (vec![], vec![]));
        let table = nothing.table();
        let line = table.lines().nth(1).unwrap();
        assert_eq!(line.matches(NO_FIGURE).count(), 7, "{line}");
        assert!(!line.contains('0'), "{line}");
    }

    #[test]
    fn a_migration_without_further_iterations_has_none_of_their_bytes() {
        let moved = measured(&[(
            "paper/compile-migration-none",
            json!({"iterations": [{"bytes": 5_000_000}, {"bytes": 1_000_000}, {"bytes": 500_000}]}),
        )]);
        let bars: Vec<_> = moved
            .moved()
            .into_iter()
            .map(|bar| (bar.name, bar.points[0].1))
            .collect();
        assert_eq!(
            bars,
            [("Base, first".to_owned(), 5.0), ("Base, others".to_owned(), 1.5)]
        );
    }
}
