//! C headers as the patches make them: their numbers, and the layout of their structures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The patches of the series for 4.20, in the order in which they are applied.
fn patches() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../patches");
    let mut patches = Vec::new();
    for series in ["xen-fixes", "lacuna"] {
        let directory = root.join(series);
        for name in fs::read_to_string(directory.join("series")).unwrap().lines() {
            patches.push((name.to_owned(), fs::read_to_string(directory.join(name)).unwrap()));
        }
    }
    patches
}

/// What the patches say of the file `path` of Xen's tree. Lines of Xen's own that no hunk shows are empty.
///
/// # Panics
/// A hunk does not fit what earlier ones made of the file.
pub(crate) fn file(path: &str) -> String {
    let mut lines: Vec<Option<String>> = Vec::new();
    for (name, patch) in patches() {
        let start = format!("diff --git a/{path} b/{path}\n");
        let Some((_, section)) = patch.split_once(&start) else {
            continue;
        };
        let section = section.split("\ndiff --git ").next().unwrap();
        let mut at = usize::MAX;
        for line in section.lines() {
            if let Some(header) = line.strip_prefix("@@ -") {
                let new = header.split('+').nth(1).unwrap();
                let first: usize = new.split([',', ' ']).next().unwrap().parse().unwrap();
                at = first - 1;
                continue;
            }
            if at == usize::MAX || line == "-- " {
                continue;
            }
            // An empty line of context may have lost its space.
            let (kind, text) = line.split_at_checked(1).unwrap_or((" ", ""));
            if kind == "+" {
                lines.resize(lines.len().max(at), None);
                lines.insert(at, Some(text.to_owned()));
                at += 1;
                continue;
            }
            lines.resize(lines.len().max(at + 1), None);
            if let Some(known) = &lines[at] {
                assert_eq!(known, text, "{name}: {path}, line {}", at + 1);
            }
            if kind == "-" {
                lines.remove(at);
            } else {
                lines[at] = Some(text.to_owned());
                at += 1;
            }
        }
    }
    assert!(!lines.is_empty(), "no patch touches {path}");
    let text: Vec<String> = lines.into_iter().map(Option::unwrap_or_default).collect();
    without_comments(&text.join("\n"))
}

fn without_comments(text: &str) -> String {
    let mut parts = text.split("/*");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept += part.split_once("*/").map_or("", |(_, rest)| rest);
    }
    kept
}

/// The numbers that `text` gives to names which begin with one of `prefixes`.
pub(crate) fn numbers(text: &str, prefixes: &[&str]) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| line.strip_prefix("#define "))
        .filter_map(|rest| rest.split_once(char::is_whitespace))
        .filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (name.to_owned(), number(value.trim())))
        .collect()
}

fn number(value: &str) -> u32 {
    if let Some(bit) = value
        .strip_prefix("(1U << ")
        .and_then(|rest| rest.strip_suffix(')'))
    {
        return 1 << bit.parse::<u32>().unwrap();
    }
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{value} is not a number that this test can read"))
}

/// A structure: its members with their offsets and sizes, and its own size, in bytes.
pub(crate) type Layout = (Vec<(String, usize, usize)>, usize);

/// The structures that `text` defines and `wanted` names, with every member aligned to its size.
pub(crate) fn structures(text: &str, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, Layout> {
    let mut found = BTreeMap::new();
    for (start, _) in text.match_indices("\nstruct ") {
        let rest = &text[start + "\nstruct ".len()..];
        let Some((name, body)) = rest.split_once(" {\n") else {
            continue;
        };
        // A declaration without a body is followed by other lines before the next brace.
        if !name.contains(char::is_whitespace) && wanted(name) {
            let body = body.split("\n}").next().unwrap();
            found.insert(name.to_owned(), layout(name, body));
        }
    }
    found
}

fn layout(name: &str, body: &str) -> Layout {
    let (mut members, mut at, mut largest) = (Vec::new(), 0_usize, 1);
    for declaration in body.split(';').map(str::trim).filter(|text| !text.is_empty()) {
        let (kind, names) = declaration.split_once(char::is_whitespace).unwrap();
        for member in names.split(',').map(str::trim) {
            let size = match kind {
                _ if member.starts_with('*') => 8,
                "uint32_t" => 4,
                "uint64_t" | "uint64_aligned_t" | "XEN_GUEST_HANDLE_64(uint8)" => 8,
                other => panic!("struct {name}: a member of type {other}, which this test does not know"),
            };
            let (member, count) = match member.trim_start_matches('*').split_once('[') {
                Some((member, count)) => (member, count.trim_end_matches(']').parse().unwrap()),
                None => (member.trim_start_matches('*'), 1),
            };
            at = at.next_multiple_of(size);
            members.push((member.to_owned(), at, size * count));
            at += size * count;
            largest = largest.max(size);
        }
    }
    (members, at.next_multiple_of(largest))
}

/// The sizes of structures that `text` asserts at compile time.
pub(crate) fn asserted_sizes(text: &str) -> BTreeMap<String, usize> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("BUILD_BUG_ON(sizeof(struct "))
        .filter_map(|rest| rest.strip_suffix(");"))
        .filter_map(|rest| rest.split_once(") != "))
        .map(|(name, size)| (name.to_owned(), size.parse().unwrap()))
        .collect()
}
