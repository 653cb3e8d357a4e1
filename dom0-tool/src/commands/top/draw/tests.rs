//! The live view on a terminal of memory.

use std::collections::BTreeMap;
use std::time::Duration;

use lacuna_core::abi::{State, Statistics};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::commands::top::view::Key;
use crate::ops::host::{GuestName, GuestState};
use crate::ops::top::{Sample, rows};
use crate::xen::privcmd::HostMemory;

const PLAIN: Look = Look {
    has_colour: false,
    is_unicode: true,
};

/// A guest of 400 MiB: 200 used, 100 free inside, 100 given back.
fn guest(domain: u16, name: &str) -> (GuestName, GuestState) {
    let seen = GuestName {
        domain,
        name: Some(name.to_owned()),
    };
    let state = GuestState {
        pages: 300 * 256,
        max_pages: 400 * 256,
        statistics: Statistics {
            state: State::Admitted as u64,
            scan_free: 200 * 256,
            zero_gfns: 100 * 256,
            ..Statistics::default()
        },
    };
    (seen, state)
}

fn view(guests: Vec<(GuestName, GuestState)>) -> View {
    let mut view = View::default();
    let sample = Sample {
        at: Duration::from_secs(1),
        memory: HostMemory {
            total: 4096 * 256,
            free: 50 * 256,
            claimed: 0,
        },
        guests,
    };
    // The daemon leaves 60 MiB to guest 3.
    view.update(&sample, rows(&sample, &sample), &BTreeMap::from([(3, 60 * 256)]));
    view
}

fn lines(view: &View, width: u16, height: u16, look: Look) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view, look)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    buffer
        .content
        .chunks(usize::from(width).max(1))
        .map(|cells| cells.iter().map(ratatui::buffer::Cell::symbol).collect())
        .collect()
}

#[test]
fn eighty_columns_have_the_figures_and_a_bar() {
    let lines = lines(&view(vec![guest(3, "web"), guest(4, "db")]), 80, 24, PLAIN);
    assert_eq!(
        lines[0].trim_end(),
        "host 4096 MiB, 50 free; guests could take back 200 MiB"
    );
    assert!(lines[1].contains("150 MiB would be missing"), "{}", lines[1]);
    assert_eq!(
        lines[2].trim_end(),
        "domid name                held    free   given     due  taken/s MiB of its memor"
    );
    // 16 cells: half used, a quarter free inside, of it 40 of 100 MiB due, a quarter given back.
    assert_eq!(
        lines[3].trim_end(),
        "    3 web                  300     100     100      40      0.0 ████████▒▒▓▓░░░░"
    );
    // Of a guest for which no daemon answers nothing is said to be due.
    assert_eq!(
        lines[4].trim_end(),
        "    4 db                   300     100     100       -      0.0 ████████▒▒▒▒░░░░"
    );
    assert!(lines[22].contains("█ used  ▒ free inside  ▓ due  ░ given back"));
    assert!(lines[23].starts_with("q quit  ? help"), "{}", lines[23]);
}

#[test]
fn every_width_and_height_is_drawn() {
    let mut view = view(
        (1..40)
            .map(|domain| guest(domain, "a name that is longer than its column"))
            .collect(),
    );
    for (width, height) in (0..130)
        .step_by(3)
        .flat_map(|width| (0..30).map(move |height| (width, height)))
    {
        for page in [Page::List, Page::Detail(3), Page::Detail(99), Page::Help] {
            view.page = page;
            let lines = lines(&view, width, height, PLAIN);
            assert_eq!(lines.len(), usize::from(if width > 0 { height } else { 0 }));
        }
    }
}

#[test]
fn narrow_terminals_keep_the_name_what_is_held_and_the_bar() {
    let view = view(vec![guest(3, "web")]);
    let at = |width: u16| lines(&view, width, 24, PLAIN)[3].trim_end().to_owned();
    assert_eq!(
        at(60),
        "web                  300     100     100 ██████████▒▒▓▓░░░░░"
    );
    assert_eq!(at(40), "web                  300 ████████▒▒▓░░░░");
    assert!(at(20).starts_with("web "), "{}", at(20));
    // A wide one has the rest.
    assert!(lines(&view, 120, 24, PLAIN)[3].contains(" attached "));
}

#[test]
fn without_colour_no_cell_has_one_and_parts_still_differ() {
    let view = view(vec![guest(3, "web")]);
    for (look, is_coloured) in [
        (PLAIN, false),
        (
            Look {
                has_colour: true,
                ..PLAIN
            },
            true,
        ),
        (
            Look {
                has_colour: false,
                is_unicode: false,
            },
            false,
        ),
    ] {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &view, look)).unwrap();
        let cells = &terminal.backend().buffer().content;
        let coloured = cells
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert_eq!(coloured, is_coloured, "{look:?}");
    }
    let ascii = Look {
        has_colour: false,
        is_unicode: false,
    };
    let drawn = lines(&view, 80, 24, ascii);
    assert!(drawn.iter().all(|line| line.is_ascii()), "{drawn:?}");
    assert!(drawn[3].ends_with("########++**...."), "{}", drawn[3]);
}

#[test]
fn a_hostile_name_moves_no_cursor() {
    let view = view(vec![guest(3, "\u{1b}[2J\u{9b}1m\r\nx")]);
    let drawn = lines(&view, 80, 24, PLAIN);
    assert!(
        drawn.concat().chars().all(|letter| !letter.is_control()),
        "{drawn:?}"
    );
    assert!(drawn[3].contains("?[2J?1m??x"), "{}", drawn[3]);
}

#[test]
fn the_selected_guest_is_on_the_screen() {
    let mut view = view((1..200).map(|domain| guest(domain, "web")).collect());
    view.press(Key::Last);
    let drawn = lines(&view, 80, 24, PLAIN);
    assert!(
        drawn.iter().any(|line| line.starts_with("  199 web")),
        "{drawn:?}"
    );
    view.press(Key::First);
    assert!(lines(&view, 80, 24, PLAIN)[3].starts_with("    1 web"));
}

#[test]
fn a_detail_has_the_figures_and_their_history() {
    let mut view = view(vec![guest(3, "web")]);
    view.press(Key::Enter);
    let drawn = lines(&view, 80, 24, PLAIN).join("\n");
    for part in [
        "web (domain 3), attached",
        "holds 300 of at most 400 MiB",
        "given back 100 MiB, due 40 MiB",
        "given back, MiB: 100 to 100 in 0 s",
        "taken back, pages a second: 0 to 0",
    ] {
        assert!(drawn.contains(part), "{part} is not in\n{drawn}");
    }
}

#[test]
fn a_failure_is_shown_beside_the_figures_from_before() {
    let mut view = view(vec![guest(3, "web")]);
    view.fail("xenstored is gone".to_owned());
    let drawn = lines(&view, 80, 24, PLAIN);
    assert!(
        drawn[1].starts_with("old figures: xenstored is gone"),
        "{}",
        drawn[1]
    );
    assert!(drawn[3].contains("web"));
}

#[test]
fn a_guest_without_a_profile_has_words_for_a_bar() {
    let (seen, mut state) = guest(3, "web");
    state.statistics = Statistics::default();
    let drawn = lines(&view(vec![(seen, state)]), 80, 24, PLAIN);
    assert!(drawn[3].trim_end().ends_with(" not attached"), "{}", drawn[3]);
}

#[test]
fn parts_fill_the_bar() {
    let (seen, mut state) = guest(3, "web");
    for given in [0, 1, 255, 5 * 256, 1000 * 256, 1 << 40] {
        state.statistics.zero_gfns = given;
        state.statistics.scan_free = given + 300;
        let view = view(vec![(seen.clone(), state)]);
        for width in 0..40 {
            let cells: u16 = parts(&view.guests[0], width).iter().map(|(_, cells)| cells).sum();
            assert_eq!(cells, width, "{given} pages given back");
        }
    }
}
