//! Debian's order of version numbers, as `dpkg --compare-versions` has it (deb-version(7)).

use std::cmp::Ordering;

/// Compares two whole versions: `[epoch:]upstream[-revision]`.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (left, right) = (split(left), split(right));
    left.0
        .cmp(&right.0)
        .then_with(|| compare_part(left.1, right.1))
        .then_with(|| compare_part(left.2, right.2))
}

/// Returns the version as its authors call it, without what Debian puts around it.
pub(crate) fn upstream(version: &str) -> &str {
    split(version).1
}

/// Epoch, upstream version and revision. No revision counts as revision 0, which the comparison of parts
/// gives by itself.
fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch, upstream, revision)
}

/// Compares a text up to the first digit, then a number up to the first that is none, and so on.
fn compare_part(mut left: &str, mut right: &str) -> Ordering {
    while !(left.is_empty() && right.is_empty()) {
        let (left_text, left_rest) = take(left, |byte| !byte.is_ascii_digit());
        let (right_text, right_rest) = take(right, |byte| !byte.is_ascii_digit());
        let (left_number, left_rest) = take(left_rest, |byte| byte.is_ascii_digit());
        let (right_number, right_rest) = take(right_rest, |byte| byte.is_ascii_digit());
        let order =
            compare_text(left_text, right_text).then_with(|| compare_number(left_number, right_number));
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (left_rest, right_rest);
    }
    Ordering::Equal
}

fn take(text: &str, belongs: impl Fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|byte| !belongs(byte));
    text.split_at(end.unwrap_or(text.len()))
}

/// A tilde comes before the end, the end before letters, letters before all else.
fn compare_text(left: &str, right: &str) -> Ordering {
    let rank = |text: &str, at: usize| match text.as_bytes().get(at) {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    (0..left.len().max(right.len()))
        .map(|at| rank(left, at).cmp(&rank(right, at)))
        .find(|order| *order != Ordering::Equal)
        .unwrap_or(Ordering::Equal)
}

/// Compares numbers of any length.
fn compare_number(left: &str, right: &str) -> Ordering {
    let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    const VERSIONS: &[&str] = &[
        "4.17.5+72-g01140da4e8-1",
        "4.17.5+72-g01140da4e8-1+deb12u1",
        "4.20.4+63-g7abfd2bce2-0+deb13u1",
        "4.20.4+63-g7abfd2bce2-0+deb13u1~bpo12+1",
        "4.20.4",
        "4.20.4-0",
        "4.20.04-1",
        "4.9.1-1",
        "1:4.9-1",
        "4.20~rc1-1",
        "4.20-1",
        "6.12.107-1",
        "6.12.107+deb13-1",
        "6.12.99-1",
        "6.1.0-50",
        "a-1",
        "a+-1",
        "a~-1",
    ];

    #[test]
    fn versions_come_in_the_order_that_dpkg_gives_them() {
        for left in VERSIONS {
            for right in VERSIONS {
                for (operator, holds) in [
                    ("lt", compare(left, right) == Ordering::Less),
                    ("eq", compare(left, right) == Ordering::Equal),
                ] {
                    let status = Command::new("dpkg")
                        .args(["--compare-versions", left, operator, right])
                        .stderr(std::process::Stdio::null())
                        .status()
                        .unwrap();
                    assert_eq!(status.success(), holds, "{left} {operator} {right}");
                }
            }
        }
    }

    #[test]
    fn the_upstream_version_is_what_lies_between_epoch_and_revision() {
        assert_eq!(upstream("4.17.5+72-g01140da4e8-1"), "4.17.5+72-g01140da4e8");
        assert_eq!(upstream("1:6.12"), "6.12");
    }
}
