//! `cargo lab bench gmd`: rounds of the three modes and a user-level engine's, in one run on the same guest.

use std::path::Path;

use lacuna_scenarios::catalogue::GMD;
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::Result;
use crate::live;
use crate::setup::Extent;

/// The modes, as the figures name them; *fresh*: on a guest as it boots.
const MODES: &[&str] = &["intro_fresh", "intro", "dedup", "introdedup"];
/// Who did the round, as the figures name it, and as the table does. *again*: a round that found nothing new.
const SIDES: &[(&str, &str)] = &[
    ("baseline", "user level"),
    ("lacuna", "Lacuna"),
    ("baseline_again", "user level, again"),
    ("lacuna_again", "Lacuna, again"),
];
/// The columns of the table: what the figure is called, and its heading.
const COLUMNS: &[(&str, &str)] = &[
    ("instructions", "instructions"),
    ("in_calls", "in hypercalls"),
    ("calls", "hypercalls"),
    ("pages", "pages shared"),
];

/// Runs the scenario, prints what each round took and the ratios, and writes the figures to `report`.
pub(super) fn run(context: &Context, report: Option<&Path>) -> Result<()> {
    let outcome = live::measure(context, GMD, Extent::Tests)?;
    let mut figures = outcome.by_name();
    let ratios = ratios(&figures);
    println!("\nRounds over one guest, by a user-level engine and by Lacuna, in one run\n");
    print!("{}", table(&figures));
    println!("\n  how many times the user level's work is Lacuna's");
    for (name, ratio) in &ratios {
        println!("  {name:<32} {ratio:>10}");
    }
    println!();
    figures.extend(ratios);
    outcome.report(figures, report)
}

/// For each mode how often Lacuna's work goes into the user level's: the whole round (`_time_ratio`), and
/// what the hypervisor and the way there took of it (`_hypervisor_ratio`). Figures that are missing, as in a
/// run that failed half-way, have no ratio.
fn ratios(figures: &Map<String, Value>) -> Map<String, Value> {
    let number = |side: &str, figure: &str| figures.get(side)?.get(figure)?.as_f64();
    let mut ratios = Map::new();
    for mode in MODES {
        for again in ["", "_again"] {
            for (figure, name) in [("instructions", "time"), ("in_calls", "hypervisor")] {
                let slow = number(&format!("{mode}_baseline{again}"), figure);
                let fast = number(&format!("{mode}_lacuna{again}"), figure).filter(|fast| *fast > 0.0);
                if let (Some(slow), Some(fast)) = (slow, fast) {
                    let ratio = (slow / fast * 100.0).round() / 100.0;
                    ratios.insert(format!("{mode}{again}_{name}_ratio"), json!(ratio));
                }
            }
        }
    }
    ratios
}

/// A line for each round.
fn table(figures: &Map<String, Value>) -> String {
    let headings = COLUMNS.iter().map(|(_, heading)| format!("{heading:>16}"));
    let mut lines = vec![format!("  {:<32}{}", "", headings.collect::<String>())];
    for mode in MODES {
        for (side, title) in SIDES {
            let Some(taken) = figures.get(&format!("{mode}_{side}")) else {
                continue;
            };
            let cells = COLUMNS.iter().map(|(name, _)| {
                let value = taken.get(name).and_then(Value::as_u64).unwrap_or_default();
                format!("{value:>16}")
            });
            let title = format!("{mode}, {title}");
            lines.push(format!("  {title:<32}{}", cells.collect::<String>()));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{ratios, table};
    use serde_json::json;

    #[test]
    fn each_round_has_a_line_and_each_pair_its_ratios() {
        let figures = json!({
            "intro_baseline": {"instructions": 1000, "in_calls": 900, "calls": 7, "pages": 3},
            "intro_lacuna": {"instructions": 30, "in_calls": 30, "calls": 2, "pages": 3},
            "dedup_baseline": {"instructions": 5},
        });
        let figures = figures.as_object().unwrap();
        let found = ratios(figures);
        assert_eq!(found.len(), 2);
        assert_eq!(found.get("intro_time_ratio"), Some(&json!(33.33)));
        assert_eq!(found.get("intro_hypervisor_ratio"), Some(&json!(30.0)));
        let text = table(figures);
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("intro, user level") && text.contains("1000"));
    }
}
