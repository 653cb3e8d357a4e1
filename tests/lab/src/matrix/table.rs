//! The support table in README.md, between two markers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::case::{CASES, Case, Expected};
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

/// Puts what came of some cases into the table in the file at `path`: a row of a case that passed is new, one of a case that
/// failed (`None`) goes, and those of other cases stay as they were, so that the whole matrix need not be one run.
pub(crate) fn write(path: &Path, ran: &[(&Case, Option<Row>)]) -> Result<()> {
    let text = fs::read_to_string(path).on("read", path)?;
    let Some(text) = with_rows(&text, ran) else {
        return Err(Error::Unexpected {
            what: path.display().to_string(),
            expected: format!("the markers {} and {END}", BEGIN.trim_end()),
            seen: "a text without them".to_owned(),
        });
    };
    fs::write(path, text).on("write", path)
}

/// `text` with the table brought up to date; `None` where it has no place for one.
fn with_rows(text: &str, ran: &[(&Case, Option<Row>)]) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text.get(begin..)?.find(END)?;
    let mut table = String::from(
        "\n| case | kernel | architecture | memory model, paging | `lacuna scan --dump` |\n|---|---|---|---|---|\n",
    );
    for case in CASES {
        let beginning = format!("| {} |", case.name);
        let row = match ran.iter().find(|(other, _)| other.name == case.name) {
            Some((_, row)) => row.as_ref().map(|row| row.text.as_str()),
            None => text[begin..end].lines().find(|line| line.starts_with(&beginning)),
        };
        if let Some(row) = row {
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{row}");
        }
    }
    table.push('\n');
    Some(format!("{}{table}{}", &text[..begin], &text[end..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{BEGIN, CASES, END, Row, with_rows};

    #[test]
    fn other_cases_keep_their_rows_and_a_failed_one_loses_its_own() {
        let [first, second, third, fourth] = &CASES[..4] else {
            unreachable!("there are dozens")
        };
        let row = |name: &str, rest: &str| format!("| {name} | {rest} |\n");
        let old = [first, second, fourth].map(|case| row(case.name, "old")).concat();
        let gone = row("a case of former times", "old");
        let text = format!("before\n{BEGIN}\n{old}{gone}\n{END}\nafter\n");
        let new = |name: &str| Row {
            text: format!("| {name} | new |"),
        };
        let ran = [
            (second, None),
            (third, Some(new(third.name))),
            (fourth, Some(new(fourth.name))),
        ];
        let text = with_rows(&text, &ran).unwrap();
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.ends_with("old |") || line.ends_with("new |"))
            .collect();
        let expected = [
            format!("| {} | old |", first.name),
            format!("| {} | new |", third.name),
            format!("| {} | new |", fourth.name),
        ];
        assert_eq!(rows, expected);
        assert!(text.starts_with("before\n") && text.ends_with(&format!("{END}\nafter\n")));
        assert_eq!(with_rows("no table", &ran), None);
    }
}
