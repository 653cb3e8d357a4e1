//! The support table in README.md, between two markers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::case::{Case, Expected};
use super::score::Score;
use crate::error::{Error, IoContext, Result};

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
