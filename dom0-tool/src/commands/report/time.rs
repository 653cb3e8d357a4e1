//! Moments in words, in UTC: a report may be read elsewhere.

use time::OffsetDateTime;

/// Returns the moment `at`, in seconds since the beginning of 1970, or that beginning if no calendar has the
/// moment.
fn moment(at: u64) -> OffsetDateTime {
    i64::try_from(at)
        .ok()
        .and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Returns such as `14:05`.
pub(super) fn minute(at: u64) -> String {
    let moment = moment(at);
    format!("{:02}:{:02}", moment.hour(), moment.minute())
}

/// Returns such as `2026-03-09`.
pub(super) fn day(at: u64) -> String {
    let moment = moment(at);
    let (year, month, day) = moment.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}", u8::from(month))
}

/// Returns such as `2026-03-09 14:05:59`.
pub(super) fn whole(at: u64) -> String {
    format!("{} {}:{:02}", day(at), minute(at), moment(at).second())
}

/// Returns a length of time such as `1 d 2 h` or `5 min`.
pub(super) fn length(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
    ];
    let told: Vec<String> = parts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number} {unit}"))
        .collect();
    if told.is_empty() {
        format!("{seconds} s")
    } else {
        told.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        // date -u -d @1709210096
        assert_eq!(whole(1_709_210_096), "2024-02-29 12:34:56");
        assert_eq!(minute(0), "00:00");
        assert_eq!(day(u64::MAX), "1970-01-01");
        assert_eq!(length(93_900), "1 d 2 h 5 min");
        assert_eq!(length(59), "59 s");
    }
}
