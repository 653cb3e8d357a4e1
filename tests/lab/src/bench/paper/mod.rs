//! `cargo lab bench paper`: the evaluation of the paper, asked again of this system, cell by cell.
//!
//! A cell is a workload, a question and who shares memory meanwhile (`lacuna_scenarios::paper`). Each runs on a
//! machine of its own, with its own time limit and log, and leaves a file with its figures. What was run
//! before need not run again ([`Options::resume`]), and pictures are drawn of what there is.

mod figures;
mod names;
mod plots;
mod result;

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_scenarios::paper::{CELLS, Cell, NOT_BUILT};
use serde_json::{Map, Value, json};

use self::result::{NOT_ASKED, State, Store};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder};
use crate::live;
use crate::setup::{Stage, Wish};

/// What is asked of the evaluation.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Of `paper`: only the cells with one of these in their name
    #[arg(long, value_name = "CELL", num_args = 1..)]
    only: Vec<String>,
    /// Of `paper`: leave out the cells whose result is there, of the same hypervisor, images and cell
    #[arg(long)]
    resume: bool,
    /// Of `paper`: draw the pictures into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

impl Options {
    /// Whether none was given.
    pub(super) fn is_empty(&self) -> bool {
        self.only.is_empty() && !self.resume && self.plots.is_none()
    }

    /// The cells that are wanted.
    fn wanted(&self) -> Result<Vec<Cell>> {
        // A whole name stands for itself alone, though it may begin another one.
        let fits = |cell: &Cell, part: &String| {
            let whole = CELLS.iter().any(|other| other.name == part);
            cell.name == part || !whole && cell.name.contains(part.as_str())
        };
        let named = |cell: &&Cell| self.only.is_empty() || self.only.iter().any(|part| fits(cell, part));
        for part in &self.only {
            if !CELLS.iter().any(|cell| fits(cell, part)) {
                let known: Vec<&str> = CELLS.iter().map(|cell| cell.name).collect();
                return Err(Error::NoScenario {
                    filter: part.clone(),
                    known: known.join(", "),
                });
            }
        }
        Ok(CELLS.iter().filter(named).copied().collect())
    }
}

/// Runs the cells that are wanted, each into a file of its own below `directory`, draws the pictures, and
/// says of every cell what became of it.
///
/// # Errors
/// A cell that was run failed, or no cell has a name that was given.
pub(super) fn run(context: &Context, options: &Options, directory: Option<&Path>) -> Result<()> {
    let wanted = options.wanted()?;
    let default = context.repository.join("target/paper");
    let store = Store::open(directory.unwrap_or(&default))?;
    let wish = Wish::tests(context.options.series);
    let stage = Stage::build(context, wish)?;
    let revision = revision(context)?;
    let mut failed = 0;
    for cell in &wanted {
        let key = cell_key(&parts(&stage, cell)?, cell);
        if options.resume && store.holds(cell, key.as_str())? {
            println!("lab: {}: there already", cell.name);
            continue;
        }
        let logs = context.repository.join("target/lab-logs");
        let outcomes = live::run(&stage, &[cell.scenario()], &logs);
        let outcome = outcomes.first().ok_or(Error::Ended)?;
        if let Some(why) = &outcome.failure {
            println!("lab: {} failed\n{why}", cell.name);
            failed += 1;
        }
        let mut record = outcome.by_name();
        record.extend(stage.made_of().into_iter().map(placeless));
        record.extend(described(cell, &key, &revision));
        record.insert("passed".to_owned(), json!(outcome.failure.is_none()));
        record.insert(
            "failure".to_owned(),
            json!(outcome.failure.as_deref().map(reason)),
        );
        record.insert("seconds".to_owned(), json!(outcome.seconds));
        store.write(cell, &record)?;
    }
    let states: Vec<(String, State)> = CELLS
        .iter()
        .map(|cell| {
            // What a cell would be run with is made for those that have a result, not for all.
            let state = match store.read(cell.name)? {
                Some(_) => store.state(cell, cell_key(&parts(&stage, cell)?, cell).as_str())?,
                None => State::NotRun(NOT_ASKED.to_owned()),
            };
            Ok((cell.name.to_owned(), state))
        })
        .chain(NOT_BUILT.iter().map(|(what, why)| {
            let state = State::NotRun((*why).to_owned());
            Ok(((*what).to_owned(), state))
        }))
        .collect::<Result<_>>()?;
    print!("\n{}", summary(&states));
    let measured = figures::Measured::read(&store)?;
    print!("\n{}", measured.table());
    if let Some(plots) = &options.plots {
        fs::create_dir_all(plots).on("create", plots)?;
        for name in plots::draw(&measured, plots)? {
            println!("  drawn: {}", plots.join(name).display());
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Failed {
            failed,
            total: wanted.len(),
        }),
    }
}

/// What a cell is run with: the hypervisor and the images, by their content.
fn parts(stage: &Stage, cell: &Cell) -> Result<Key> {
    let images = stage.programs(cell.workload)?;
    let hypervisor = stage.hypervisor(cell.scenario().boot)?;
    Ok(KeyBuilder::new("paper", 1)
        .file(&images.dom0)?
        .file(&images.kernel)?
        .file(&hypervisor.directory.join("xen"))?
        .finish())
}

/// The key of a cell's result: it stands as long as nothing that is run changes.
fn cell_key(parts: &Key, cell: &Cell) -> Key {
    KeyBuilder::new("paper/cell", 1)
        .key(parts)
        .text(&format!("{cell:?}"))
        .finish()
}

/// What was run, for its result.
fn described(cell: &Cell, key: &Key, revision: &str) -> Map<String, Value> {
    [
        ("cell", json!(cell.name)),
        ("workload", json!(format!("{:?}", cell.workload).to_lowercase())),
        ("question", json!(format!("{:?}", cell.question))),
        ("arm", json!(format!("{:?}", cell.arm))),
        ("phases", json!(cell.phases)),
        ("key", json!(key.as_str())),
        ("revision", json!(revision)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

/// The revision of the checkout; with `+` when files differ from it.
fn revision(context: &Context) -> Result<String> {
    let mut git = std::process::Command::new("git");
    git.current_dir(&context.repository).args([
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+",
        "--exclude=*",
    ]);
    let text = crate::process::output(git, &context.step_log("paper"))?;
    Ok(text.trim().to_owned())
}

/// What was run, without its place on this machine: of a path, the last part.
fn placeless((name, value): (String, Value)) -> (String, Value) {
    let last = |path: &str| path.rsplit('/').next().map(|last| json!(last));
    let value = value.as_str().and_then(last).unwrap_or(value);
    (name, value)
}

/// A failure without the place of its logs, which is this machine's.
fn reason(failure: &str) -> String {
    let lines = failure.lines().map(str::trim);
    let kept: Vec<&str> = lines.filter(|line| !line.starts_with("logs:")).collect();
    kept.join("; ")
}

/// A line for each cell.
fn summary(states: &[(String, State)]) -> String {
    let line = |(name, state): &(String, State)| format!("  {name:<50}  {state}\n");
    states.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Options, State, cell_key, reason, summary};
    use crate::key::KeyBuilder;
    use lacuna_scenarios::paper::CELLS;

    #[test]
    fn a_result_stands_for_its_cell_and_for_what_was_run() {
        let (one, other) = (
            KeyBuilder::new("paper", 1).finish(),
            KeyBuilder::new("paper", 2).finish(),
        );
        assert_eq!(
            cell_key(&one, &CELLS[0]).as_str(),
            cell_key(&one, &CELLS[0]).as_str()
        );
        assert_ne!(
            cell_key(&one, &CELLS[0]).as_str(),
            cell_key(&other, &CELLS[0]).as_str()
        );
        assert_ne!(
            cell_key(&one, &CELLS[0]).as_str(),
            cell_key(&one, &CELLS[1]).as_str()
        );
    }

    #[test]
    fn cells_are_wanted_by_any_part_of_their_name() {
        let only = |parts: &[&str]| Options {
            only: parts.iter().map(|part| (*part).to_owned()).collect(),
            ..Options::default()
        };
        assert_eq!(only(&[]).wanted().unwrap().len(), CELLS.len());
        let some = only(&["migration"]).wanted().unwrap();
        assert!(!some.is_empty() && some.iter().all(|cell| cell.name.contains("migration")));
        let whole = only(&["paper/compile-rounds-none"]).wanted().unwrap();
        assert_eq!(whole.len(), 1);
        let unknown = only(&["migration", "no-such-cell"])
            .wanted()
            .unwrap_err()
            .to_string();
        assert!(
            unknown.contains("no-such-cell") && unknown.contains(CELLS[0].name),
            "{unknown}"
        );
    }

    #[test]
    fn every_cell_has_a_line_with_what_became_of_it() {
        let text = summary(&[
            ("a".to_owned(), State::Filled),
            ("b".to_owned(), State::Failed("it hung".to_owned())),
            ("c".to_owned(), State::NotRun("no image".to_owned())),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with("filled") && lines[1].ends_with("failed: it hung"));
        assert!(lines[2].ends_with("not run: no image"));
    }

    #[test]
    fn a_result_names_no_place_of_this_machine() {
        let source = (
            "xen_source".to_owned(),
            serde_json::json!("--xen-source /here/xen.tar.xz"),
        );
        assert_eq!(super::placeless(source).1, "xen.tar.xz");
        let kernels = ("guest_kernels".to_owned(), serde_json::json!(["6.12"]));
        assert_eq!(super::placeless(kernels.clone()), kernels);
        assert_eq!(reason("  at: x\n  saw: y\n  logs:     /here"), "at: x; saw: y");
    }
}
