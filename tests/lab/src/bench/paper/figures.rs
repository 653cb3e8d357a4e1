//! What the results say, in the paper's terms. A figure that no result has is absent, never zero.

use lacuna_guest::programs::Workload;
use lacuna_scenarios::paper::{Arm, CELLS, Cell, Question};
use serde_json::{Map, Value};

use super::names::{TABLE_1, WORKLOADS, is_again, is_alone, label, shares, workload};
use super::plots::Spread;
use super::result::Store;
use crate::error::Result;

/// A line or the bars of a figure: its name, and its points.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Bars side by side in groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bars {
    pub(super) groups: Vec<String>,
    /// The bars of one colour each: their groups, and how high they are.
    pub(super) series: Vec<Series>,
}

impl Bars {
    /// A group for each bar.
    #[allow(clippy::cast_precision_loss)] // a few bars
    fn each(values: impl Iterator<Item = (String, f64)>) -> Self {
        let (groups, values): (Vec<String>, Vec<f64>) = values.unzip();
        let points = values
            .into_iter()
            .enumerate()
            .map(|(at, value)| (at as f64, value));
        Self {
            groups,
            series: series("", points.collect()).into_iter().collect(),
        }
    }
}

/// What a figure makes of a result.
type Figure<'a> = &'a dyn Fn(&Cell, &Map<String, Value>) -> Option<f64>;

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

    /// Those of the compiler with rounds `seconds` apart.
    fn rounds(&self, seconds: u32) -> impl Iterator<Item = &(Cell, Map<String, Value>)> {
        let wanted = move |cell: &Cell| {
            cell.workload == Workload::Compile && cell.question == Question::Rounds { seconds }
        };
        self.0.iter().filter(move |(cell, _)| wanted(cell))
    }

    /// The result of the cell of `workload` in which nobody shares.
    fn alone(&self, workload: Workload) -> Option<&Map<String, Value>> {
        let wanted = |cell: &Cell| cell.workload == workload && is_alone(cell);
        let found = self.0.iter().find(|(cell, _)| wanted(cell));
        found.map(|(_, record)| record)
    }

    /// Table 1: the paper's rows, and a row for each workload while nobody shares.
    pub(super) fn free(&self) -> Vec<Spread> {
        let here = self.0.iter().filter(|(cell, _)| is_alone(cell));
        let rows: Vec<Spread> = here
            .filter_map(|(cell, record)| {
                let of = |name: &str| Some(number(record, name)? / number(record, "guest_pages")? * 100.0);
                Some(Spread {
                    name: format!("Debian 6.12, {}", workload(cell.workload)),
                    of: "here",
                    least: of("free_least")?,
                    average: of("free_average")?,
                    most: of("free_most")?,
                })
            })
            .collect();
        if rows.is_empty() {
            return rows;
        }
        let theirs = TABLE_1.iter().map(|(name, most, average, least)| Spread {
            name: (*name).to_owned(),
            of: "the paper",
            least: *least,
            average: *average,
            most: *most,
        });
        theirs.chain(rows).collect()
    }

    /// Lines over the workload: of every cell with rounds, what `of` makes of its samples.
    fn lines(&self, list: &str, of: impl Fn(usize, &Value) -> Option<(f64, f64)>) -> Vec<Series> {
        self.rounds(BASE_SECONDS)
            .filter(|(cell, _)| shares(cell.arm) && !is_again(cell))
            .filter_map(|(cell, record)| {
                let values = record.get(list)?.as_array()?.iter().enumerate();
                let points: Vec<_> = values.filter_map(|(at, value)| of(at, value)).collect();
                series(label(cell), points)
            })
            .collect()
    }

    /// Figures 5 to 8 (a): memory shared, in MiB, over the seconds of the machine's clock; and what is free
    /// while nobody shares.
    pub(super) fn shared(&self) -> Vec<Series> {
        let of = |name: &'static str| {
            move |sample: &Value| Some((of(sample, "ms")? / 1000.0, of(sample, name)? / PAGES_PER_MIB))
        };
        let samples = self
            .alone(Workload::Compile)
            .and_then(|alone| alone.get("samples")?.as_array());
        let free = samples.map(|samples| samples.iter().filter_map(of("free")).collect());
        let mut all = self.lines("samples", |_, sample| of("saved")(sample));
        all.extend(free.and_then(|points| series("free, while nobody shares", points)));
        all
    }

    /// Figures 5 to 8 (b): millions of instructions of each round.
    pub(super) fn round_cost(&self) -> Vec<Series> {
        #[allow(clippy::cast_precision_loss)] // a few rounds
        self.lines("rounds", |at, round| {
            Some((at as f64 + 1.0, of(round, "instructions")? / 1e6))
        })
    }

    /// Figures 5 to 8 (c): pages taken back a minute, one bar for each that shares.
    pub(super) fn unshared(&self) -> Bars {
        let sharing = self.rounds(BASE_SECONDS).filter(|(cell, _)| shares(cell.arm));
        Bars::each(sharing.filter_map(|(cell, record)| {
            Some((label(cell).to_owned(), number(record, "unshared_per_minute")?))
        }))
    }

    /// Figures 5 to 8 (d): the slowdown of the guest's own work in per cent, against the same work alone.
    pub(super) fn slowdown(&self) -> Bars {
        let others = self.rounds(BASE_SECONDS).filter(|(cell, _)| !is_alone(cell));
        Bars::each(
            others
                .filter_map(|(cell, record)| Some((label(cell).to_owned(), self.slowdown_of(cell, record)?))),
        )
    }

    /// Figure 9: for each interval, in seconds, the average shared in MiB, and the slowdown in per cent; and
    /// those of the policy.
    pub(super) fn intervals(&self) -> (Vec<Series>, Vec<Series>) {
        let of_arm = |arm: Arm, value: Figure| {
            let cells = self
                .0
                .iter()
                .filter(|(cell, _)| cell.workload == Workload::Compile && cell.arm == arm && !is_again(cell));
            let points = cells.filter_map(|(cell, record)| match cell.question {
                Question::Rounds { seconds } => Some((f64::from(seconds), value(cell, record)?)),
                Question::Migration => None,
            });
            let name = if arm == Arm::Intro { "Intro" } else { "policy" };
            series(name, points.collect())
        };
        // Over the time, and not right after rounds: what is taken back between rare rounds counts.
        let shared = |cell: &Cell, record: &Map<String, Value>| {
            let all = number(record, "guest_pages")? / PAGES_PER_MIB;
            Some(all - average_over(&held(cell, record)?)?)
        };
        let slowdown = |cell: &Cell, record: &Map<String, Value>| self.slowdown_of(cell, record);
        let both = |value: Figure| -> Vec<Series> {
            match of_arm(Arm::Intro, value) {
                // One interval says nothing of intervals.
                Some(intro) if intro.points.len() > 1 => [Some(intro), of_arm(Arm::Policy, value)]
                    .into_iter()
                    .flatten()
                    .collect(),
                _ => Vec::new(),
            }
        };
        (both(&shared), both(&slowdown))
    }

    /// Figure 10: MB in the first iteration and in the others, with and without Lacuna.
    pub(super) fn moved(&self) -> Bars {
        let moves = self
            .0
            .iter()
            .filter(|(cell, _)| cell.question == Question::Migration);
        let series = moves.filter_map(|(cell, record)| {
            let iterations = record.get("iterations")?.as_array()?;
            let bytes = |iteration: &Value| of(iteration, "bytes");
            let first = bytes(iterations.first()?)? / 1e6;
            let rest = iterations.iter().skip(1).map(bytes).sum::<Option<f64>>()? / 1e6;
            let way = if cell.arm == Arm::None {
                "stock"
            } else {
                "with Lacuna"
            };
            series(way, vec![(0.0, first), (1.0, rest), (2.0, first + rest)])
        });
        Bars {
            groups: ["first iteration", "other iterations", "all"]
                .map(str::to_owned)
                .to_vec(),
            series: series.collect(),
        }
    }

    /// What each workload has free on average while nobody shares, and what Intro shares of it, in MiB.
    pub(super) fn workloads_shared(&self) -> Bars {
        let free =
            |_: &Cell, record: &Map<String, Value>| Some(number(record, "free_average")? / PAGES_PER_MIB);
        let saved = |_: &Cell, record: &Map<String, Value>| Some(average_saved(record)? / PAGES_PER_MIB);
        let mut bars = self.by_workload(Arm::None, "free, while nobody shares", &free);
        if !bars.groups.is_empty() {
            let shared = self.by_workload(Arm::Intro, "Intro", &saved);
            bars.series.extend(shared.series);
        }
        bars
    }

    /// The slowdown of each workload with Intro, in per cent.
    pub(super) fn workloads_slowdown(&self) -> Bars {
        self.by_workload(Arm::Intro, "slowdown", &|cell, record| {
            self.slowdown_of(cell, record)
        })
    }

    /// A bar for each workload that has a result of `arm`.
    fn by_workload(&self, arm: Arm, name: &str, value: Figure) -> Bars {
        let question = Question::Rounds {
            seconds: BASE_SECONDS,
        };
        let groups: Vec<String> = WORKLOADS.iter().map(|one| workload(*one).to_owned()).collect();
        #[allow(clippy::cast_precision_loss)] // a few workloads
        let point = |(at, wanted): (usize, &Workload)| {
            let fits = |cell: &Cell| {
                cell.workload == *wanted && cell.arm == arm && cell.question == question && !is_again(cell)
            };
            let (cell, record) = self.0.iter().find(|(cell, _)| fits(cell))?;
            Some((at as f64, value(cell, record)?))
        };
        let points: Vec<_> = WORKLOADS.iter().enumerate().filter_map(point).collect();
        // One workload is in the other figures.
        if points.len() < 2 {
            return Bars::default();
        }
        Bars {
            groups,
            series: series(name, points).into_iter().collect(),
        }
    }

    /// What the host spends on the guest, in MiB, over the seconds of the machine's clock.
    pub(super) fn held(&self) -> Vec<Series> {
        let all = self
            .rounds(BASE_SECONDS)
            .filter(|(cell, _)| HOLDERS.contains(&cell.arm) && !is_again(cell));
        all.filter_map(|(cell, record)| series(label(cell), held(cell, record)?))
            .collect()
    }

    /// How much longer than alone the guest's virtual CPU ran, with what Xen did in its name, or was kept from
    /// running by slices, in per cent; nothing without the same work alone.
    fn slowdown_of(&self, cell: &Cell, record: &Map<String, Value>) -> Option<f64> {
        let taken =
            |record: &Map<String, Value>| Some(number(record, "guest_ns")? + number(record, "paused_ns")?);
        let alone = taken(self.alone(cell.workload)?).filter(|alone| *alone > 0.0)?;
        Some((taken(record)? / alone - 1.0) * 100.0)
    }

    /// Table 1, and the figures in numbers: a line for each cell with rounds.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "  {:<34}{:>22}{:>12}{:>14}{:>14}{:>12}{:>12}\n",
            "cell",
            "free %, max avg min",
            "shared MiB",
            "round, M ins",
            "unshared/min",
            "slowdown %",
            "held MiB"
        );
        for (cell, record) in &self.0 {
            let Question::Rounds { .. } = cell.question else {
                continue;
            };
            let free = ["free_most", "free_average", "free_least"].map(|name| {
                let free = number(record, "guest_pages").zip(number(record, name));
                shown(free.map(|(pages, free)| free / pages * 100.0))
            });
            let free = free.join(" ");
            let shares = shares(cell.arm);
            let saved = average_saved(record).filter(|_| shares);
            let saved = shown(saved.map(|pages| pages / PAGES_PER_MIB));
            let cost = shown(average_cost(record));
            let unshared = shown(number(record, "unshared_per_minute").filter(|_| shares));
            let slowdown = self.slowdown_of(cell, record).map(|value| format!("{value:.3}"));
            let slowdown = slowdown.unwrap_or_else(|| NO_FIGURE.to_owned());
            let held = shown(held(cell, record).and_then(|held| average_over(&held)));
            let line = format!(
                "  {:<34}{free:>22}{saved:>12}{cost:>14}{unshared:>14}{slowdown:>12}{held:>12}\n",
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
/// Who is compared by the memory that the host spends.
const HOLDERS: [Arm; 4] = [Arm::None, Arm::Intro, Arm::Policy, Arm::Balloon];
fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| NO_FIGURE.to_owned(), |value| format!("{value:.1}"))
}

fn of(value: &Value, name: &str) -> Option<f64> {
    value.get(name)?.as_f64()
}

fn number(record: &Map<String, Value>, name: &str) -> Option<f64> {
    record.get(name)?.as_f64()
}

/// A series; nothing without a point.
fn series(name: &str, points: Vec<(f64, f64)>) -> Option<Series> {
    let name = name.to_owned();
    (!points.is_empty()).then_some(Series { name, points })
}

/// What the host spends on the guest, in MiB, right before and right after each round, by the second.
fn held(cell: &Cell, record: &Map<String, Value>) -> Option<Vec<(f64, f64)>> {
    let all = number(record, "guest_pages")?;
    let held = |sample: &Value, saved: &str, owned: &str| match cell.arm {
        Arm::Balloon => of(sample, owned),
        _ => Some(all - of(sample, saved)?),
    };
    let mut points = Vec::new();
    for sample in record.get("samples")?.as_array()? {
        let second = of(sample, "ms")? / 1000.0;
        for (saved, owned) in [("saved_before", "owned_before"), ("saved", "owned")] {
            points.push((second, held(sample, saved, owned)? / PAGES_PER_MIB));
        }
    }
    Some(points)
}

/// The average of a line over its time.
fn average_over(line: &[(f64, f64)]) -> Option<f64> {
    let parts = line.windows(2).filter_map(|pair| match pair {
        [(from, one), (to, other)] => Some((to - from, (one + other) / 2.0)),
        _ => None,
    });
    let (time, sum) = parts.fold((0.0, 0.0), |(time, sum), (wide, high)| {
        (time + wide, sum + wide * high)
    });
    (time > 0.0).then(|| sum / time)
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
        .map(|value| of(value, name))
        .collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::{Bars, Measured, NO_FIGURE, average_over, held};
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
        assert_eq!(measured(std::slice::from_ref(&slow)).slowdown(), Bars::default());
        let alone = (
            "paper/compile-rounds-none",
            json!({"guest_ns": 1_000, "paused_ns": 0}),
        );
        let bars = measured(&[alone, slow]).slowdown();
        assert_eq!(bars.groups, ["Intro"]);
        assert!((bars.series[0].points[0].1 - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_figure_that_was_not_measured_is_not_zero() {
        let nothing = measured(&[(
            "paper/compile-rounds-policy",
            json!({"rounds": [], "samples": []}),
        )]);
        assert_eq!(nothing.shared(), []);
        assert_eq!(nothing.round_cost(), []);
        assert_eq!(nothing.unshared(), Bars::default());
        assert_eq!(nothing.moved().series, []);
        assert_eq!(nothing.held(), []);
        assert_eq!(nothing.free(), []);
        assert_eq!(nothing.intervals(), (vec![], vec![]));
        let table = nothing.table();
        let line = table.lines().nth(1).unwrap();
        assert_eq!(line.matches(NO_FIGURE).count(), 8, "{line}");
        assert!(!line.contains('0'), "{line}");
    }

    #[test]
    fn a_migration_without_further_iterations_has_none_of_their_bytes() {
        let moved = measured(&[(
            "paper/compile-migration-none",
            json!({"iterations": [{"bytes": 5_000_000}, {"bytes": 1_000_000}, {"bytes": 500_000}]}),
        )]);
        let bars = moved.moved().series;
        assert_eq!(bars.len(), 1);
        assert_eq!(bars[0].name, "stock");
        assert_eq!(bars[0].points, [(0.0, 5.0), (1.0, 1.5), (2.0, 6.5)]);
    }

    #[test]
    fn what_the_host_spends_is_averaged_over_time() {
        // 2 s at 2 MiB, which then fall to 1, and 1 s on the way back to 2.
        let line = [(0.0, 2.0), (2.0, 2.0), (2.0, 1.0), (3.0, 2.0)];
        assert!((average_over(&line).unwrap() - 5.5 / 3.0).abs() < 1e-9);
        assert_eq!(average_over(&[(1.0, 2.0)]), None);
        let sample = json!({"ms": 0, "saved_before": 256, "saved": 512, "owned_before": 700, "owned": 600});
        let record = json!({"guest_pages": 1024, "samples": [sample]});
        let record = record.as_object().unwrap();
        let intro = find("paper/compile-rounds-intro").unwrap();
        assert_eq!(held(&intro, record), Some(vec![(0.0, 3.0), (0.0, 2.0)]));
        let balloon = find("paper/compile-rounds-balloon").unwrap();
        let held = held(&balloon, record).unwrap();
        assert_eq!(held, [(0.0, 700.0 / 256.0), (0.0, 600.0 / 256.0)]);
    }
}
