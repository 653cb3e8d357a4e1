//! A history of the test's own, and what is said of it.

use super::*;

fn guest(domain: u16, name: &str, given_back: u64) -> GuestPoint {
    GuestPoint {
        domain,
        name: Some(name.to_owned()),
        held: 1000 - given_back,
        free: 100,
        given_back,
        gave: given_back,
        ..GuestPoint::default()
    }
}

fn sample(at: u64, guests: Vec<GuestPoint>) -> Record {
    Record {
        at,
        entry: Entry::Sample {
            host: HostPoint {
                total: 5000,
                free: at,
                promised: 7,
                reserve: 3,
            },
            guests,
        },
    }
}

#[test]
fn levels_are_means_and_flows_are_sums() {
    let at = |at: u64, given: u64, took: u64| {
        sample(
            at,
            vec![GuestPoint {
                took,
                rounds: at / 60,
                ..guest(3, "web", given)
            }],
        )
    };
    let report = of(&[at(0, 100, 5), at(60, 300, 9), at(120, 400, 9)], 0, 144 * 120);
    assert_eq!((report.slot, report.host.len(), report.samples), (120, 144, 3));
    assert_eq!(report.host[0].unwrap().free, 30);
    assert_eq!(report.host[1].unwrap().free, 120);
    assert_eq!(report.host[2], None);
    let web = &report.guests[0];
    let first = web.slots[0].unwrap();
    assert_eq!((first.given_back, first.free, first.used), (200, 100, 700));
    assert_eq!((first.flows.gave, first.flows.took), (200, 4));
    assert_eq!(web.slots[1].unwrap().flows.gave, 100);
    assert_eq!((web.total.gave, web.total.took, web.total.rounds), (300, 4, 2));
    assert_eq!(web.slots[2], None);
}

#[test]
fn a_guest_that_comes_back_under_another_number_is_one_guest() {
    let records = [
        sample(0, vec![guest(3, "web", 500)]),
        sample(60, vec![guest(4, "web", 200)]),
        sample(120, vec![guest(4, "web", 250)]),
    ];
    let report = of(&records, 0, 600);
    assert_eq!(report.guests.len(), 1);
    let web = &report.guests[0];
    assert_eq!(web.domains, [3, 4]);
    assert_eq!(web.total.gave, 250, "what the second domain gave");
    let told: Vec<_> = report
        .events
        .iter()
        .map(|event| event.event.event.as_str())
        .collect();
    assert_eq!(told, [RESTARTED]);
}

#[test]
fn a_daemon_that_starts_again_counts_rounds_from_nothing() {
    let at = |at, rounds| {
        sample(
            at,
            vec![GuestPoint {
                rounds,
                ..guest(3, "web", 0)
            }],
        )
    };
    assert_eq!(
        of(&[at(0, 50), at(60, 52), at(120, 1)], 0, 600).guests[0]
            .total
            .rounds,
        3
    );
}

#[test]
fn waits_are_events_and_guests_without_a_name_have_their_number() {
    let at = |at, waits| {
        sample(
            at,
            vec![GuestPoint {
                waits,
                name: None,
                ..guest(9, "", 0)
            }],
        )
    };
    let report = of(&[at(0, 4), at(60, 4), at(120, 11)], 0, 600);
    assert_eq!(report.events.len(), 1);
    let event = &report.events[0];
    assert_eq!(
        (event.at, event.kind, event.guest.as_str()),
        (120, Kind::Wait, "domain 9")
    );
    assert_eq!(
        event.event.what.as_deref(),
        Some("7 writes found no memory and waited")
    );
}

#[test]
fn what_lies_outside_the_period_is_left_out_and_an_empty_one_is_empty() {
    let records = [
        sample(10, vec![guest(1, "old", 1)]),
        sample(500, vec![guest(2, "new", 1)]),
    ];
    let report = of(&records, 100, 400);
    assert_eq!((report.samples, report.guests.len(), report.last), (0, 0, None));
    assert!(report.host.iter().all(Option::is_none));
    // However short or long.
    assert_eq!(of(&[], 5, 5).host.len(), 1);
    assert!(of(&[], 0, u64::MAX).host.len() <= 144);
}
