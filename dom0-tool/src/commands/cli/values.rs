//! Values on the command line, and what is wrong with them.

use std::ops::Range;
use std::time::Duration;

use lacuna_core::abi::GROUP_NAME_MAX;

/// Parses a word of a line of apt's sources.
pub(super) fn parse_word(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && !"[]#\"'".contains(c);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(plain) {
        return Err("a word without blanks, brackets and quotes is wanted".into());
    }
    Ok(text.to_owned())
}

pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|error| format!("not a number of seconds: {error}"))?;
    // A day: more is a mistake, or a task for a timer.
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("0 to 86400 seconds are possible".into())
    }
}

/// Parses a length of time such as `90m`, `24h` or `7d`; a number alone is of seconds.
pub(super) fn parse_length(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        other => return Err(format!("{other:?} is no unit: s, m, h or d, as in 24h")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|error| format!("not a length of time such as 24h: {error}"))?;
    // Ten years: no history reaches further.
    match number.checked_mul(unit) {
        Some(seconds) if (60..=3650 * 86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err("a minute to 3650d are possible".into()),
    }
}

/// Returns what the hypervisor accepts as the name of a trust group.
pub(super) fn parse_group(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > GROUP_NAME_MAX {
        return Err(format!("a name has 1 to {GROUP_NAME_MAX} characters"));
    }
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a name has printable ASCII characters, and no spaces".into())
    }
}

pub(super) fn parse_hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
        .map_err(|error| format!("not a hexadecimal number: {error}"))
}

pub(super) fn parse_hole(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text
        .split_once(':')
        .ok_or("START:END is wanted, for example 0xc0000000:0x100000000")?;
    let (start, end) = (parse_hexadecimal(start)?, parse_hexadecimal(end)?);
    if start < end {
        Ok(start..end)
    } else {
        Err("the hole has to end after it begins".into())
    }
}

pub(super) fn parse_gfn(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("not a frame number: {error}"))
}
