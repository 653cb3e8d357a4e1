//! Draws the figures as SVG. A figure without a single result is not drawn, and a bar or a line that was not
//! measured is not there.

mod chart;

use std::fs;
use std::path::Path;

pub(super) use self::chart::Spread;
use self::chart::{Scale, Words, bars, lines, ranges};
use super::figures::{Bars, Measured};
use crate::error::{IoContext, Result};

/// Below every picture over time.
const SECONDS: &str = "seconds of the machine's clock";

/// Draws what was measured into `directory`, and returns the names of the files. A picture of an earlier run
/// that has nothing to show any more is removed.
pub(super) fn draw(measured: &Measured, directory: &Path) -> Result<Vec<&'static str>> {
    let pictures = of_rounds(measured)?
        .into_iter()
        .chain(of_intervals(measured)?)
        .chain(of_others(measured)?);
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

type Pictures = Vec<(&'static str, Option<String>)>;

/// Table 1 and Figures 5 to 8.
fn of_rounds(measured: &Measured) -> Result<Pictures> {
    let free = ranges(
        "Table 1: free memory of a guest, least to most, and the average",
        "% of the guest's memory",
        &measured.free(),
    )?;
    let shared = Words {
        title: "Figures 5 to 8 (a): memory of the guest that the host has, after each round",
        across: SECONDS,
        up: "MiB",
    };
    let cost = Words {
        title: "Figures 5 to 8 (b): what a round takes",
        across: "round",
        up: "million instructions",
    };
    Ok(vec![
        ("free.svg", free),
        ("shared.svg", lines(&shared, &measured.shared(), Scale::Even)?),
        ("round.svg", lines(&cost, &measured.round_cost(), Scale::Powers)?),
        (
            "unshared.svg",
            drawn(
                "Figures 5 to 8 (c): pages that the guest takes back",
                "pages a minute",
                &measured.unshared(),
            )?,
        ),
        (
            "slowdown.svg",
            drawn(
                "Figures 5 to 8 (d): slowdown of the guest's own work",
                "% of the same work alone",
                &measured.slowdown(),
            )?,
        ),
    ])
}

/// Figure 9.
fn of_intervals(measured: &Measured) -> Result<Pictures> {
    let (shared, slowdown) = measured.intervals();
    let across = "seconds between two rounds";
    let saved = Words {
        title: "Figure 9: memory shared, by the interval between rounds",
        across,
        up: "MiB, averaged over time",
    };
    let slower = Words {
        title: "Figure 9: slowdown, by the interval between rounds",
        across,
        up: "% of the same work alone",
    };
    Ok(vec![
        ("interval-shared.svg", lines(&saved, &shared, Scale::Even)?),
        ("interval-slowdown.svg", lines(&slower, &slowdown, Scale::Even)?),
    ])
}

/// Figure 10, the other workloads, and what people have today.
fn of_others(measured: &Measured) -> Result<Pictures> {
    let held = Words {
        title: "Memory that the host spends on the guest",
        across: SECONDS,
        up: "MiB",
    };
    Ok(vec![
        (
            "migration.svg",
            drawn(
                "Figure 10: a migration in the middle of the workload",
                "MB on the wire",
                &measured.moved(),
            )?,
        ),
        (
            "workloads-shared.svg",
            drawn(
                "Other workloads: free while nobody shares, and shared with Intro",
                "MiB on average",
                &measured.workloads_shared(),
            )?,
        ),
        (
            "workloads-slowdown.svg",
            drawn(
                "Other workloads: slowdown of the guest's own work with Intro",
                "% of the same work alone",
                &measured.workloads_slowdown(),
            )?,
        ),
        ("held.svg", lines(&held, &measured.held(), Scale::Even)?),
    ])
}

fn drawn(title: &str, up: &str, what: &Bars) -> Result<Option<String>> {
    bars(title, up, &what.groups, &what.series)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::figures::Measured;
    use super::super::figures::Series;
    use super::super::figures::tests::measured;
    use super::super::result::Store;
    use super::{bars, draw};
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
        let expected = ["shared.svg", "round.svg", "unshared.svg"];
        assert_eq!(drawn, expected);
        let text = std::fs::read_to_string(directory.path().join("unshared.svg")).unwrap();
        assert!(text.starts_with("<svg"), "{text}");
        assert!(text.contains("\nIntro\n") && text.contains("\n120\n"), "{text}");
        assert!(!text.contains("Dedup"), "{text}");
        // For a dark page, too.
        assert!(text.contains("prefers-color-scheme: dark"), "{text}");
    }

    #[test]
    fn a_measured_zero_is_drawn_as_one() {
        let zero = Series {
            name: String::new(),
            points: vec![(0.0, 0.0)],
        };
        let groups = ["policy".to_owned()];
        let picture = bars("none taken back", "pages", &groups, &[zero]);
        assert!(picture.unwrap().unwrap().contains("\n0\n"));
        assert_eq!(bars("none taken back", "pages", &groups, &[]).unwrap(), None);
    }

    #[test]
    fn the_results_of_the_repository_are_drawn() {
        let results = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/evaluation");
        let measured = Measured::read(&Store::open(&results).unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let drawn = draw(&measured, directory.path()).unwrap();
        // Each has its picture in the document, and the document has no other.
        let document = std::fs::read_to_string(results.with_extension("md")).unwrap();
        for name in &drawn {
            let picture = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(!picture.contains("NaN"), "{name}");
            assert!(document.contains(&format!("(evaluation/{name})")), "{name}");
        }
        assert_eq!(document.matches(".svg)").count(), drawn.len());
    }
}
