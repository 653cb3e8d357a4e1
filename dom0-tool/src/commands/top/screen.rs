//! The terminal: what the live view is shown on, and what keys come from.
//!
//! The terminal is put back as it was when the view ends, however it ends: a key, a signal, an error or a
//! panic.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::Backend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::low_level::emulate_default_handler;

use super::draw::{Look, draw};
use super::view::{Flow, Key, View};
use crate::failure::Failure;

/// Longest wait for a key. Signals are looked at as often.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// Where events come from.
pub(super) trait Events {
    /// Returns the next key within `limit`. Other events only make it return early.
    fn next(&mut self, limit: Duration) -> io::Result<Option<Key>>;
    /// Returns whether a signal asked for the end.
    fn is_ended(&self) -> bool;
}

/// The terminal's keys, and the process' signals.
struct Keyboard {
    stop: Arc<AtomicBool>,
}

impl Keyboard {
    fn take() -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(Self { stop })
    }
}

impl Events for Keyboard {
    fn next(&mut self, limit: Duration) -> io::Result<Option<Key>> {
        match event::poll(limit) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // A signal; the caller looks which.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(match event::read()? {
            Event::Key(event) => key(event),
            _ => None,
        })
    }

    fn is_ended(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Returns what a key of the terminal means.
fn key(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    if event.modifiers.contains(KeyModifiers::CONTROL) {
        return match event.code {
            KeyCode::Char('c') => Some(Key::Interrupt),
            KeyCode::Char('z') => Some(Key::Suspend),
            _ => None,
        };
    }
    Some(match event.code {
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::First,
        KeyCode::End => Key::Last,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => Key::Back,
        KeyCode::Char(letter) => Key::Letter(letter),
        _ => return None,
    })
}

/// Puts the terminal back when it goes out of scope.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the view until it is ended. `refresh` brings new figures into it, every `interval`.
///
/// # Errors
/// The terminal cannot be used.
pub(super) fn show(
    view: &mut View,
    interval: Duration,
    look: Look,
    mut refresh: impl FnMut(&mut View) -> Result<(), Failure>,
) -> io::Result<()> {
    let mut keyboard = Keyboard::take()?;
    loop {
        // This has a panic put the terminal back, too, before it is reported.
        let mut terminal = ratatui::try_init()?;
        let restored = Restored;
        match watch(
            &mut terminal,
            &mut keyboard,
            view,
            Timing { interval, look },
            &mut refresh,
        )? {
            Flow::Suspend => {
                drop(restored);
                emulate_default_handler(SIGTSTP)?;
            }
            _ => return Ok(()),
        }
    }
}

/// How often to ask, and how to show it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) interval: Duration,
    pub(super) look: Look,
}

/// Shows the view on `terminal` until a key or a signal ends it, or suspends it.
fn watch<B: Backend>(
    terminal: &mut Terminal<B>,
    events: &mut impl Events,
    view: &mut View,
    timing: Timing,
    refresh: &mut impl FnMut(&mut View) -> Result<(), Failure>,
) -> io::Result<Flow>
where
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let mut next = Instant::now() + timing.interval;
    loop {
        terminal
            .draw(|frame| draw(frame, view, timing.look))
            .map_err(io::Error::other)?;
        let wait = next.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
        if let Some(key) = events.next(wait)? {
            let flow = view.press(key);
            if flow != Flow::Go {
                return Ok(flow);
            }
        }
        if events.is_ended() {
            return Ok(Flow::Quit);
        }
        if Instant::now() >= next {
            if let Err(failure) = refresh(view) {
                view.fail(failure.what);
            }
            next = Instant::now() + timing.interval;
        }
    }
}

#[cfg(test)]
mod tests;
