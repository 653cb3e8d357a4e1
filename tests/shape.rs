//! How sources are read and measured, for the tests of their shape in `core/tests/layering.rs`,
//! `core/tests/shape.rs` and `dom0-tool/tests/layering.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file.
const FILE_LINES: usize = 500;
/// Most lines of a function.
const FUNCTION_LINES: usize = 80;
/// Most parameters of a function.
const PARAMETERS: usize = 6;

/// What is larger: the file, the function (none for the file itself), and why.
pub(crate) type Exception = (&'static str, &'static str, &'static str);

/// Every source file below `root`: its path from there, and its text.
pub(crate) fn files(root: &Path) -> Vec<(String, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                into.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(root, &mut paths);
    paths.sort();
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    paths
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).unwrap()))
        .collect()
}

/// Fails where a file or a function is too large and not excepted, or excepted and not too large.
pub(crate) fn assert_small(files: &[(String, String)], exceptions: &[Exception]) {
    let mut large = BTreeSet::new();
    for (file, text) in files {
        if text.lines().count() > FILE_LINES {
            large.insert((file.clone(), String::new()));
        }
        for (name, lines, parameters) in functions(text) {
            if lines > FUNCTION_LINES || parameters > PARAMETERS {
                large.insert((file.clone(), name));
            }
        }
    }
    let excepted: BTreeSet<(String, String)> = exceptions
        .iter()
        .map(|(file, name, _)| ((*file).to_owned(), (*name).to_owned()))
        .collect();
    let new: Vec<_> = large.difference(&excepted).collect();
    assert!(new.is_empty(), "too large: {new:?}");
    let gone: Vec<_> = excepted.difference(&large).collect();
    assert!(gone.is_empty(), "no exceptions any more: {gone:?}");
}

/// A function: its name, its lines, its parameters.
type Function = (String, usize, usize);

/// The functions of a file that the formatter has been over: one ends where its indentation has a closing
/// brace again.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indentation = &line[..line.len() - code.len()];
        let Some(at) = code.find("fn ") else { continue };
        let qualifiers = code[..at].split_whitespace();
        let is_function = qualifiers
            .filter(|word| !word.starts_with("pub"))
            .all(|word| ["const", "unsafe", "async"].contains(&word));
        if !is_function {
            continue;
        }
        let name: String = code[at + 3..]
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect();
        // The signature ends where the body begins, or, of a declaration, with a semicolon.
        let head = lines[begin..]
            .iter()
            .position(|line| line.contains('{') || line.ends_with(';'))
            .unwrap();
        let closing = format!("{indentation}}}");
        let is_one_line = lines[begin + head].ends_with([';', '}']);
        let end = if is_one_line {
            head
        } else {
            lines[begin..]
                .iter()
                .position(|line| line.trim_end() == closing)
                .unwrap()
        };
        let length = end + 1;
        let signature = format!("{} {}", &code[at..], lines[begin + 1..=begin + head].join(" "));
        found.push((name, length, parameters(&signature)));
    }
    found
}

/// The parameters of the function that `signature` begins with.
fn parameters(signature: &str) -> usize {
    let mut depth = 0_i32;
    let mut count = 0;
    let mut is_empty = true;
    let mut before = ' ';
    // Generics stand before the first parenthesis at depth 0.
    for letter in signature.chars() {
        match letter {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        before = letter;
        if letter == ')' && depth == 0 {
            break;
        }
        if depth == 0 {
            (count, is_empty) = (0, true);
        } else if letter == ',' && depth == 1 {
            count += 1;
            is_empty = true;
        } else if !(letter.is_whitespace() || letter == '(' && depth == 1) {
            is_empty = false;
        }
    }
    count + usize::from(!is_empty)
}

#[test]
fn functions_are_measured() {
    let text = "fn one<T: Into<u8>>(a: T, b: &[(u8, u8)]) -> u8 {\n    0\n}\n\nimpl A {\n    pub(crate) const fn two(\n        &self,\n        f: impl Fn(u8, u8) -> u8,\n    ) -> u8 {\n        1\n    }\n    fn three();\n    fn four() {}\n}\n";
    let expected = [("one", 3, 2), ("two", 6, 2), ("three", 1, 0), ("four", 1, 0)];
    let expected = expected.map(|(name, lines, parameters)| (name.to_owned(), lines, parameters));
    assert_eq!(functions(text), expected);
}
