//! The support table in `docs/support-matrix.md`, between two markers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::case::{CASES, Case, Expected};
use super::score::Score;
use crate::error::{Error, IoContext, Result};

/// Where it is, from the top of the checkout.
pub(crate) const PLACE: &str = "docs/support-matrix.md";

const BEGIN: &str = "<!-- matrix: written by `cargo lab matrix --table` -->\n";
const END: &str = "<!-- matrix: end -->";

/// What the table says of a case, behind its name.
pub(crate) struct Row {
    cells: String,
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
            cells: format!(
                "{release} | {} | {}, {} | {result}",
                said("arch"),
                said("memory_model"),
                said("paging")
            ),
        }
    }
}

/// Puts what came of some cases into the table in the file at `path`: a row of a case that passed is new, one
/// of a case that failed (`None`) goes, and those of other cases stay as they were, so that the whole matrix
/// need not be one run.
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

/// `text` with the table brought up to date; `None` where it has no place for one. Cases of which it says the
/// same share a line.
fn with_rows(text: &str, ran: &[(&Case, Option<Row>)]) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text.get(begin..)?.find(END)?;
    let old: Vec<(&str, &str)> = text[begin..end].lines().filter_map(parts).collect();
    let mut lines: Vec<(&str, Vec<&str>)> = Vec::new();
    for case in CASES {
        let cells = match ran.iter().find(|(other, _)| other.name == case.name) {
            Some((_, row)) => row.as_ref().map(|row| row.cells.as_str()),
            None => old
                .iter()
                .find(|(names, _)| names.split(", ").any(|name| name == case.name))
                .map(|(_, cells)| *cells),
        };
        let Some(cells) = cells else { continue };
        match lines.iter_mut().find(|(other, _)| *other == cells) {
            Some((_, names)) => names.push(case.name),
            None => lines.push((cells, vec![case.name])),
        }
    }
    let mut table = String::from(
        "\n| kernel | architecture | memory model, paging | `lacuna scan --dump` | cases |\n|---|---|---|---|---|\n",
    );
    for (cells, names) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| {cells} | {} |", names.join(", "));
    }
    table.push('\n');
    Some(format!("{}{table}{}", &text[..begin], &text[end..]))
}

/// The names of the cases in a line of the table, and what it says of them.
fn parts(line: &str) -> Option<(&str, &str)> {
    let (cells, names) = line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | ")?;
    Some((names, cells))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{BEGIN, CASES, Case, END, Row, with_rows};

    /// A text with a table of `rows`: what it says, and the names that it says it of.
    fn text(rows: &[(&str, &[&Case])]) -> String {
        let line = |(cells, cases): &(&str, &[&Case])| {
            let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
            format!("| {cells} | {} |\n", names.join(", "))
        };
        let lines: String = rows.iter().map(line).collect();
        format!("before\n{BEGIN}\n{lines}\n{END}\nafter\n")
    }

    /// The rows of a text, without the table's head.
    fn rows(text: &str) -> Vec<&str> {
        text.lines()
            .filter(|line| line.starts_with("| "))
            .skip(1)
            .collect()
    }

    fn new(cells: &str) -> Row {
        Row {
            cells: cells.to_owned(),
        }
    }

    #[test]
    fn other_cases_keep_their_rows_and_a_failed_one_loses_its_own() {
        let [first, second, third, fourth] = &CASES[..4] else {
            unreachable!("there are dozens")
        };
        let before = text(&[
            ("a | old", &[first]),
            ("b | old", &[second]),
            ("d | old", &[fourth]),
        ]);
        let before = before.replace("\n\n<", "\n| gone | old | a case of former times |\n\n<");
        let ran = [
            (second, None),
            (third, Some(new("c | new"))),
            (fourth, Some(new("d | new"))),
        ];
        let after = with_rows(&before, &ran).unwrap();
        let expected = [
            format!("| a | old | {} |", first.name),
            format!("| c | new | {} |", third.name),
            format!("| d | new | {} |", fourth.name),
        ];
        assert_eq!(rows(&after), expected);
        assert!(after.starts_with("before\n") && after.ends_with(&format!("{END}\nafter\n")));
        assert_eq!(with_rows("no table", &ran), None);
    }

    #[test]
    fn cases_of_which_the_same_is_said_share_a_row_until_one_differs() {
        let [first, second, third, ..] = CASES else {
            unreachable!("there are dozens")
        };
        let before = text(&[("a | same", &[first, third])]);
        let joined = with_rows(&before, &[(second, Some(new("a | same")))]).unwrap();
        let all = format!("| a | same | {}, {}, {} |", first.name, second.name, third.name);
        assert_eq!(rows(&joined), [all]);
        let apart = with_rows(&joined, &[(second, Some(new("a | other"))), (third, None)]).unwrap();
        let expected = [
            format!("| a | same | {} |", first.name),
            format!("| a | other | {} |", second.name),
        ];
        assert_eq!(rows(&apart), expected);
    }
}
