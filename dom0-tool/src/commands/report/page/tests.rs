//! The page of a day that the test made up.

use super::*;
use crate::ops::history::{Entry, Event, GuestPoint, Record};
use crate::ops::report::of;

const HOSTILE: &str =
    "</title><script src=\"https://evil.example/x.js\">alert('1')</script>\u{202e}\u{1b}[2J";

/// A day: `names`' guests swing by the hour, and one waits, is refused and starts again.
pub(in crate::commands::report) fn day(names: &[&str]) -> Vec<Record> {
    let mut records = Vec::new();
    for minute in 0..24 * 60_u64 {
        let at = 1_000_000 + minute * 60;
        let guests: Vec<GuestPoint> = names
            .iter()
            .zip(1_u16..)
            .map(|(name, number)| {
                let swing = (minute / 10 + u64::from(number) * 7) % 60;
                let given_back = 40_000 + swing * 1000;
                GuestPoint {
                    domain: if minute > 700 { number + 100 } else { number },
                    name: Some((*name).to_owned()),
                    held: 131_072 - given_back,
                    free: 8_000 + swing * 100,
                    given_back,
                    gave: minute * 200,
                    took: minute * 180,
                    waits: u64::from(minute > 400),
                    paused_ns: minute * 80_000,
                    rounds: minute,
                }
            })
            .collect();
        let promised = guests.iter().map(|guest| guest.given_back).sum();
        records.push(Record {
            at,
            entry: Entry::Sample {
                host: crate::ops::history::HostPoint {
                    total: 1 << 20,
                    free: 300_000 - minute * 100,
                    promised,
                    reserve: 65_536,
                },
                guests,
            },
        });
    }
    for (minute, event) in [
        (0, "daemon.started"),
        (1, "guest.attached"),
        (300, "guest.excluded"),
    ] {
        records.push(Record {
            at: 1_000_000 + minute * 60,
            entry: Entry::Event(Event {
                event: event.to_owned(),
                domain: event.starts_with("guest").then_some(1),
                name: event.starts_with("guest").then(|| names[0].to_owned()),
                what: Some(format!("what {event} says")),
            }),
        });
    }
    records
}

fn made(names: &[&str]) -> String {
    let records = day(names);
    page(&of(&records, 1_000_000, 1_000_000 + 86_400), "host<1>")
}

#[test]
fn each_guest_has_its_pictures_and_its_tables() {
    for names in [&["web"][..], &["web", "db", "build"]] {
        let page = made(names);
        assert_eq!(page.matches("<section class=\"guest\">").count(), names.len());
        // The host's, that of the events, and two for each guest.
        let pictures = 2 + 2 * names.len();
        assert_eq!(page.matches("<svg ").count(), pictures);
        assert_eq!(page.matches("</svg>").count(), pictures);
        assert_eq!(page.matches("role=\"img\"").count(), pictures);
        assert_eq!(page.matches("<desc id=").count(), pictures);
        assert_eq!(
            page.matches("<table").count(),
            pictures,
            "a table below each picture"
        );
        for name in names {
            assert!(
                page.contains(&format!("<title id=\"t{}\">Memory of {name}</title>", {
                    let mut sorted = names.to_vec();
                    sorted.sort_unstable();
                    2 + 2 * sorted.iter().position(|other| other == name).unwrap()
                }))
            );
        }
    }
}

#[test]
fn the_figures_are_those_of_the_history() {
    let page = made(&["web"]);
    for part in [
        // 140,000 pages under the first number, and 287,800 under the second, whose counters began with it.
        "<th scope=\"row\">in all</th><td>1671</td>",
        "<td>left alone</td><td>what guest.excluded says</td>",
        "<td>restarted</td><td>domain 1 before</td>",
        "<td>waited for memory</td><td>1 writes found no memory and waited</td>",
        "1440 samples",
        "Domain 1, then 101",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
}

#[test]
fn hostile_names_and_events_stay_text() {
    let page = made(&[HOSTILE]);
    let names = page
        .matches("&lt;script src=&quot;https://evil.example/x.js&quot;&gt;")
        .count();
    assert!(names > 5, "{names}");
    assert!(!page.contains("<script"), "{page}");
    assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'));
    assert!(page.contains("host&lt;1&gt;"));
    // As many elements as with a harmless name.
    assert_eq!(page.matches('<').count(), made(&["web"]).matches('<').count());
}

#[test]
fn nothing_is_fetched_from_anywhere() {
    let page = made(&["web"]);
    for way in [
        "http:", "https:", "//", "src=", "href=", "url(", "@import", "<script", "<link", "<img", "<iframe",
    ] {
        assert!(!page.contains(way), "{way} is in the page");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_time_without_records_and_a_damaged_history_say_so() {
    let mut report = of(&[], 0, 86_400);
    report.is_damaged = true;
    let page = page(&report, "host");
    assert!(
        page.contains("no sample of this time") && page.contains("is damaged"),
        "{page}"
    );
    assert_eq!(
        page.matches("<svg ").count(),
        1,
        "that of the host, which is empty"
    );
}

#[test]
fn a_page_does_not_grow_with_the_time_that_it_shows() {
    let records = day(&["web"]);
    let size = |hours: u64| page(&of(&records, 1_000_000, 1_000_000 + hours * 3600), "x").len();
    assert!(size(24) < 2 * size(6), "{} and {} bytes", size(24), size(6));
    assert!(size(24) < 100_000, "{} bytes", size(24));
}
