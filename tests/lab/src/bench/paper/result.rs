//! The results of cells: a file each, written whole or not at all.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lacuna_scenarios::paper::Cell;
use serde_json::{Map, Value};

use crate::context::Staged;
use crate::error::{Error, IoContext, Result};

/// Why a cell has no result.
pub(super) const NOT_ASKED: &str = "it was not asked for";

/// What became of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It has a result of what would be run now.
    Filled,
    /// It has one of an earlier hypervisor, image or cell, at this revision.
    Earlier(String),
    /// It was run and failed.
    Failed(String),
    /// It has none, for this reason.
    NotRun(String),
}

impl fmt::Display for State {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filled => text.write_str("filled"),
            Self::Earlier(revision) => write!(text, "filled, by an earlier build: {revision}"),
            Self::Failed(why) => write!(text, "failed: {why}"),
            Self::NotRun(why) => write!(text, "not run: {why}"),
        }
    }
}

/// The directory with the results.
pub(super) struct Store(PathBuf);

impl Store {
    /// Makes it if need be.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).on("create", directory)?;
        Ok(Self(directory.to_owned()))
    }

    fn path(&self, name: &str) -> PathBuf {
        let name = name.trim_start_matches("paper/");
        self.0.join(format!("{name}.json"))
    }

    /// The result of the cell called `name`, whatever it is a result of.
    pub(super) fn read(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        let path = self.path(name);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.on("read", &path)?,
        };
        let damaged = |seen: String| Error::Unexpected {
            what: format!("the result in {}", path.display()),
            expected: "a JSON object; remove the file to run the cell again".to_owned(),
            seen,
        };
        match serde_json::from_str(&text) {
            Ok(Value::Object(record)) => Ok(Some(record)),
            Ok(other) => Err(damaged(other.to_string())),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// Whether there is a good result of `cell` with this key.
    pub(super) fn holds(&self, cell: &Cell, key: &str) -> Result<bool> {
        Ok(self.state(cell, key)? == State::Filled)
    }

    /// What became of `cell`, if `key` is what would be run now.
    pub(super) fn state(&self, cell: &Cell, key: &str) -> Result<State> {
        let Some(record) = self.read(cell.name)? else {
            return Ok(State::NotRun(NOT_ASKED.to_owned()));
        };
        let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
        if record.get("passed") != Some(&Value::Bool(true)) {
            return Ok(State::Failed(text("failure").to_owned()));
        }
        Ok(if text("key") == key {
            State::Filled
        } else {
            State::Earlier(text("revision").to_owned())
        })
    }

    /// Writes the result of `cell` in place of an earlier one.
    pub(super) fn write(&self, cell: &Cell, record: &Map<String, Value>) -> Result<()> {
        let staged = Staged::file(self.path(cell.name))?;
        let text = format!("{:#}\n", Value::Object(record.clone()));
        fs::write(&staged.path, text).on("write", &staged.path)?;
        staged.commit()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{State, Store};
    use lacuna_scenarios::paper::CELLS;
    use serde_json::{Map, Value, json};

    fn record(passed: bool, key: &str) -> Map<String, Value> {
        let record = json!({"passed": passed, "key": key, "revision": "abc", "failure": "it hung"});
        record.as_object().unwrap().clone()
    }

    #[test]
    fn only_a_good_result_of_the_same_run_is_not_run_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let cell = &CELLS[0];
        assert_eq!(
            store.state(cell, "k").unwrap(),
            State::NotRun("it was not asked for".to_owned())
        );
        store.write(cell, &record(false, "k")).unwrap();
        assert_eq!(
            store.state(cell, "k").unwrap(),
            State::Failed("it hung".to_owned())
        );
        assert!(!store.holds(cell, "k").unwrap());
        store.write(cell, &record(true, "k")).unwrap();
        assert!(store.holds(cell, "k").unwrap());
        assert!(!store.holds(cell, "other").unwrap());
        assert_eq!(
            store.state(cell, "other").unwrap(),
            State::Earlier("abc".to_owned())
        );
        assert!(!store.holds(&CELLS[1], "k").unwrap());
        // Written aside, and nothing of that is left.
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_result_is_named_and_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        std::fs::write(store.path(CELLS[0].name), "{\"passed\": tr").unwrap();
        let error = store.state(&CELLS[0], "k").unwrap_err().to_string();
        assert!(
            error.contains(".json") && error.contains("remove the file"),
            "{error}"
        );
    }
}
