//! Signs of life while something takes longer than a few seconds: a spinner on a terminal, plain lines
//! elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All spinners: several pieces of work go on side by side.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// How often a line is printed where there is no terminal: CI logs should show life without drowning.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// How much of a line of output is shown there: compilers' command lines have thousands of characters.
const PLAIN_WIDTH: usize = 100;

/// One piece of work in progress. Dropping it without [`Progress::done`] leaves no line: an error follows.
pub(crate) struct Progress {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    last_plain: Cell<Instant>,
}

impl Progress {
    /// Begins showing the work called `name`.
    pub(crate) fn begin(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("lab: {name} …");
        }
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            started: now,
            bar,
            last_plain: Cell::new(now),
        }
    }

    /// Shows that the work goes on; `detail` is asked for only when it will be shown.
    pub(crate) fn tick(&self, detail: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail());
        } else if self.last_plain.get().elapsed() >= PLAIN_INTERVAL {
            self.last_plain.set(Instant::now());
            eprintln!(
                "lab: {} … {} s: {}",
                self.name,
                self.started.elapsed().as_secs(),
                detail().chars().take(PLAIN_WIDTH).collect::<String>()
            );
        }
    }

    /// Prints a line above the spinner, or plainly.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(_) => say(text),
            None => eprintln!("{text}"),
        }
    }

    /// Ends the work well and says how long it took.
    pub(crate) fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(&format!(
            "lab: {} done in {} s",
            self.name,
            self.started.elapsed().as_secs()
        ));
    }
}

/// Prints a line on standard error, above any spinner.
pub(crate) fn say(text: &str) {
    BARS.suspend(|| eprintln!("{text}"));
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
