//! The support table in README.md, between two markers.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::case::{CASES, Case, Expected};
use super::score::Score;
use crate::context::{Context, remove};
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder};

const BEGIN: &str = "<!-- matrix: written by `cargo lab matrix --readme` -->\n";
const END: &str = "<!-- matrix: end -->";

/// A line of the table.
pub(crate) struct Row {
    text: String,
}

impl Row {
    /// What a case showed.
    pub(crate) fn new(case: &Case, release: &str, scores: &[Score]) -> Self {
        let said = |member: &str| {
            let mut answers = scores.iter().filter_map(|score| score.answer[member].as_str());
            answers.next().unwrap_or("–").to_owned()
        };
        let result = match case.expected {
            Expected::Exact => format!("exact in {} scans", scores.len()),
            Expected::Refused(reason) => format!("refused: `{reason}`"),
        };
        Self {
            text: format!(
                "| {} | {release} | {} | {}, {} | {result} |",
                case.name,
                said("arch"),
                said("memory_model"),
                said("paging")
            ),
        }
    }
}

/// What cases have shown, kept in the cache so that the whole matrix need not be one run.
pub(crate) struct Results {
    folder: PathBuf,
    /// Of the tool that was tried: results of another are none.
    key: Key,
}

impl Results {
    /// Those of `lacuna`.
    pub(crate) fn of(context: &Context, lacuna: &Path) -> Result<Self> {
        let folder = context.cached("matrix-results");
        fs::create_dir_all(&folder).on("create", &folder)?;
        let key = KeyBuilder::new("matrix-results", 1).file(lacuna)?.finish();
        Ok(Self { folder, key })
    }

    /// Keeps the row of a case that passed; forgets one that did not.
    pub(crate) fn keep(&self, case: &Case, row: Option<Row>) -> Result<()> {
        let file = self.folder.join(case.name);
        match row {
            Some(row) => {
                let text = format!("{}\n{}", self.key.as_str(), row.text);
                fs::write(&file, text).on("write", &file)
            }
            None => remove(&file),
        }
    }

    /// The rows of all cases that have passed, and the names of the others.
    pub(crate) fn all(&self) -> (Vec<Row>, Vec<&'static str>) {
        let mut rows = Vec::new();
        let mut missing = Vec::new();
        for case in CASES {
            let kept = fs::read_to_string(self.folder.join(case.name)).unwrap_or_default();
            match kept.split_once('\n') {
                Some((key, row)) if key == self.key.as_str() => rows.push(Row { text: row.to_owned() }),
                _ => missing.push(case.name),
            }
        }
        (rows, missing)
    }
}

/// Puts the table into the file at `path`.
pub(crate) fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let text = fs::read_to_string(path).on("read", path)?;
    let place = text
        .find(BEGIN)
        .and_then(|begin| Some((begin + BEGIN.len(), text.find(END)?)));
    let Some((begin, end)) = place.filter(|(begin, end)| begin <= end) else {
        return Err(Error::Unexpected {
            what: path.display().to_string(),
            expected: format!("the markers {} and {END}", BEGIN.trim_end()),
            seen: "a text without them".to_owned(),
        });
    };
    let mut table = String::from(
        "\n| case | kernel | architecture | memory model, paging | `lacuna scan --dump` |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{}", row.text);
    }
    table.push('\n');
    fs::write(path, format!("{}{table}{}", &text[..begin], &text[end..])).on("write", path)
}
