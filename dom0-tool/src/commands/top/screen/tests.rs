//! The loop of the live view, on a terminal of memory and with keys of the test's own.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ratatui::backend::TestBackend;

use super::*;
use crate::failure::Class;

/// Keys, each after a short wait, and then a signal.
struct Script(Vec<Option<Key>>);

impl Events for Script {
    fn next(&mut self, limit: Duration) -> io::Result<Option<Key>> {
        std::thread::sleep(limit.min(Duration::from_millis(2)));
        Ok(if self.0.is_empty() { None } else { self.0.remove(0) })
    }

    fn is_ended(&self) -> bool {
        self.0.is_empty()
    }
}

const TIMING: Timing = Timing {
    interval: Duration::from_millis(1),
    look: Look {
        has_colour: false,
        is_unicode: true,
    },
};

fn run(
    script: Vec<Option<Key>>,
    mut refresh: impl FnMut(&mut View) -> Result<(), Failure>,
) -> (Flow, View, String) {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let mut view = View::default();
    let flow = watch(
        &mut terminal,
        &mut Script(script),
        &mut view,
        TIMING,
        &mut refresh,
    )
    .unwrap();
    let drawn = terminal.backend().to_string();
    (flow, view, drawn)
}

#[test]
fn a_key_or_a_signal_ends_it() {
    for key in [Key::Letter('q'), Key::Interrupt, Key::Back] {
        assert_eq!(
            run(vec![None, Some(key), None], |_| Ok(())).0,
            Flow::Quit,
            "{key:?}"
        );
    }
    assert_eq!(
        run(vec![None, Some(Key::Suspend), None], |_| Ok(())).0,
        Flow::Suspend
    );
    // The script's end is a signal.
    assert_eq!(run(vec![None; 3], |_| Ok(())).0, Flow::Quit);
}

#[test]
fn a_host_that_fails_in_between_is_shown_and_asked_again() {
    let asked = Cell::new(0);
    let (_, view, drawn) = run(vec![None; 20], |_| {
        asked.set(asked.get() + 1);
        Err(Failure::plain(Class::Failed, "xenstored is gone"))
    });
    assert!(asked.get() > 2, "asked {} times", asked.get());
    assert_eq!(view.trouble.as_deref(), Some("xenstored is gone"));
    assert!(drawn.contains("old figures: xenstored is gone"), "{drawn}");
}

#[test]
fn a_panic_passes_through() {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        run(vec![None; 9], |_| panic!("of the test's own"))
    }));
    assert!(outcome.is_err());
}

#[test]
fn keys_of_the_terminal_are_known() {
    let press = |code, modifiers| key(KeyEvent::new(code, modifiers));
    assert_eq!(
        press(KeyCode::Char('c'), KeyModifiers::CONTROL),
        Some(Key::Interrupt)
    );
    assert_eq!(
        press(KeyCode::Char('z'), KeyModifiers::CONTROL),
        Some(Key::Suspend)
    );
    assert_eq!(press(KeyCode::Char('x'), KeyModifiers::CONTROL), None);
    assert_eq!(
        press(KeyCode::Char('q'), KeyModifiers::NONE),
        Some(Key::Letter('q'))
    );
    assert_eq!(press(KeyCode::Esc, KeyModifiers::NONE), Some(Key::Back));
    assert_eq!(press(KeyCode::F(1), KeyModifiers::NONE), None);
    let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
    released.kind = KeyEventKind::Release;
    assert_eq!(key(released), None);
}

/// How the view on a terminal of its own is to end.
const END: &str = "LACUNA_TEST_END";

/// The view on this process' terminal. [`the_terminal_is_as_it_was_however_the_view_ends`] runs it on one of
/// its own.
#[test]
#[ignore = "another test runs it, on a terminal of its own"]
fn on_this_terminal() {
    let end = std::env::var(END).expect("run by another test");
    let mut view = View::default();
    show(
        &mut view,
        Duration::from_millis(100),
        TIMING.look,
        |_| match end.as_str() {
            "panic" => panic!("of the test's own"),
            "signal" => Ok(signal_hook::low_level::raise(SIGTERM)?),
            _ => Ok(()),
        },
    )
    .unwrap();
}

#[test]
fn the_terminal_is_as_it_was_however_the_view_ends() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let this = std::env::current_exe().unwrap();
    for end in ["key", "signal", "panic"] {
        let shell = format!(
            "stty -a; {} --ignored --exact --nocapture commands::top::screen::tests::on_this_terminal; echo ended $?; stty -a",
            this.display()
        );
        // From util-linux: runs a command on a terminal.
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", &shell, "/dev/null"])
            .env(END, end)
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`script` of util-linux is needed");
        let mut keys = child.stdin.take().unwrap();
        if end == "key" {
            std::thread::sleep(Duration::from_secs(1));
            keys.write_all(b"q").unwrap();
        }
        let output = child.wait_with_output().unwrap();
        drop(keys);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let (entered, left) = (told.find("\x1b[?1049h"), told.rfind("\x1b[?1049l"));
        assert!(entered.is_some() && left > entered, "{end}: {told:?}");
        // The shell after it is back on the terminal's usual screen, with echo and whole lines.
        let (_, after) = told.split_once("ended ").unwrap();
        assert_eq!(after.starts_with('0'), end != "panic", "{end}: {after}");
        let settings = |text: &str| {
            let words = text.split_whitespace();
            words
                .filter(|word| ["echo", "icanon", "isig"].contains(&word.trim_matches(';')))
                .count()
        };
        assert_eq!(
            (settings(&told[..entered.unwrap()]), settings(after)),
            (3, 3),
            "{end}: {told}"
        );
        if end == "panic" {
            let report = told.find("of the test's own").unwrap();
            assert!(
                report > told.find("\x1b[?1049l").unwrap(),
                "the panic is told after that: {told:?}"
            );
        }
    }
}
