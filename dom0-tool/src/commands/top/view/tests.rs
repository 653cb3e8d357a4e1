//! What keys do.

use super::*;

fn row(domain: u16, name: &str, given_back: u64) -> Row {
    Row {
        domain,
        name: name.to_owned(),
        state: "attached",
        limit: 1000,
        held: 1000 - given_back,
        free: given_back + 100,
        given_back,
        zero: given_back,
        unshared_rate: f64::from(domain),
        paused: 0.0,
    }
}

fn sample(seconds: u64) -> Sample {
    Sample {
        at: Duration::from_secs(seconds),
        memory: HostMemory::default(),
        guests: Vec::new(),
    }
}

fn three() -> Vec<Row> {
    vec![row(1, "b", 300), row(2, "c", 500), row(3, "a", 400)]
}

fn view() -> View {
    let mut view = View::default();
    view.update(&sample(0), three(), &BTreeMap::from([(2, 40)]));
    view
}

fn order(view: &View) -> Vec<u16> {
    view.guests.iter().map(|guest| guest.row.domain).collect()
}

#[test]
fn each_sort_key_sorts_and_r_turns_round() {
    for (key, expected) in [
        ('d', [1, 2, 3]),
        ('n', [3, 1, 2]),
        ('m', [1, 3, 2]),
        ('f', [1, 2, 3]),
        ('g', [2, 3, 1]),
        ('u', [2, 1, 3]),
        ('t', [3, 2, 1]),
        ('s', [1, 2, 3]),
    ] {
        let mut view = view();
        assert_eq!(view.press(Key::Letter(key)), Flow::Go);
        assert_eq!(order(&view), expected, "{key}");
        view.press(Key::Letter('r'));
        let mut reversed = expected;
        reversed.reverse();
        assert_eq!(order(&view), reversed, "{key} reversed");
        // Another order begins the right way round.
        view.press(Key::Letter('d'));
        assert_eq!(order(&view), [1, 2, 3]);
    }
}

#[test]
fn the_keys_of_the_orders_mean_nothing_else() {
    for (key, _, name) in Sort::ALL {
        assert!(!"qjkprh? ".contains(key), "{key} for {name}");
    }
}

#[test]
fn the_cursor_stays_with_its_guest() {
    let mut view = view();
    view.press(Key::Down);
    assert_eq!(view.selected, Some(2));
    view.press(Key::Letter('n'));
    assert_eq!((view.selected, view.cursor()), (Some(2), 2));
    view.press(Key::Down);
    assert_eq!(view.cursor(), 2, "there is none below the last");
    // The guest goes: the one that takes its place is selected, or the last.
    view.update(
        &sample(1),
        vec![row(1, "b", 300), row(3, "a", 400)],
        &BTreeMap::new(),
    );
    assert_eq!(view.selected, Some(1));
    view.update(&sample(2), Vec::new(), &BTreeMap::new());
    assert_eq!(view.selected, None);
    view.press(Key::Down);
    view.press(Key::Enter);
    assert_eq!(view.page, Page::List, "there is no guest to show");
    view.update(&sample(3), three(), &BTreeMap::new());
    assert_eq!(view.selected, Some(3), "the first by name");
}

#[test]
fn a_pause_keeps_the_figures_and_goes_on_with_the_history() {
    let mut view = view();
    view.press(Key::Letter('p'));
    view.update(&sample(1), vec![row(1, "b", 900)], &BTreeMap::new());
    assert_eq!(order(&view), [1, 2, 3]);
    assert_eq!(view.guests[0].row.given_back, 300);
    view.press(Key::Letter(' '));
    view.update(&sample(2), vec![row(1, "b", 950)], &BTreeMap::new());
    assert_eq!(view.guests[0].row.given_back, 950);
    let history: Vec<u64> = view.history(1).iter().map(|point| point.given_back).collect();
    assert_eq!(history, [300, 900, 950]);
    assert!(view.history(2).is_empty(), "a guest that is gone has none");
}

#[test]
fn a_history_is_bounded() {
    let mut view = View::default();
    for second in 0..2 * MOST_POINTS as u64 {
        view.update(&sample(second), three(), &BTreeMap::new());
    }
    let history = view.history(1);
    assert_eq!(history.len(), MOST_POINTS);
    assert_eq!(history[0].at, Duration::from_secs(MOST_POINTS as u64));
}

#[test]
fn pages_lead_to_each_other_and_out() {
    let mut view = view();
    view.press(Key::Enter);
    assert_eq!(view.page, Page::Detail(1));
    view.press(Key::Letter('j'));
    assert_eq!(view.page, Page::Detail(2));
    view.press(Key::Letter('g'));
    assert_eq!(order(&view), [1, 2, 3], "a detail has no order");
    assert_eq!(view.press(Key::Back), Flow::Go);
    assert_eq!(view.page, Page::List);
    view.press(Key::Letter('?'));
    assert_eq!(view.page, Page::Help);
    view.press(Key::Letter('?'));
    assert_eq!(view.page, Page::List);
    assert_eq!(view.press(Key::Back), Flow::Quit);
    for page in [Page::List, Page::Detail(1), Page::Help] {
        view.page = page;
        assert_eq!(view.press(Key::Interrupt), Flow::Quit);
        assert_eq!(view.press(Key::Letter('q')), Flow::Quit);
    }
}

#[test]
fn what_is_due_is_what_the_daemon_does_not_leave() {
    let view = view();
    let due: Vec<Option<u64>> = view.guests.iter().map(|guest| guest.due).collect();
    assert_eq!(due, [None, Some(60), None]);
}

#[test]
fn new_figures_end_the_trouble() {
    let mut view = view();
    view.fail("gone".to_owned());
    view.update(&sample(1), three(), &BTreeMap::new());
    assert_eq!(view.trouble, None);
}
