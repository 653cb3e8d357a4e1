//! Writes the host's history: a sample a minute, and every event that the journal has at level info or above.
//!
//! The history is for people. If it cannot be written, that is an event, and all else goes on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Subscriber, info, warn};
use tracing_subscriber::layer::{Context, Layer};

use crate::daemon::config::History;
use crate::daemon::supervisor::Supervisor;
use crate::daemon::watched::WatchedGuest;
use crate::ops::history::{Entry, Event, GuestPoint, HostPoint, Record, Repair, Store};
use crate::ops::host::Xen;

/// Between two samples.
pub const SAMPLE: Duration = Duration::from_secs(60);
/// Most events that wait to be written. More than a few come at once only when something is very wrong, and
/// the journal has them all.
const MOST_WAITING: usize = 1000;
/// Most characters of what an event says.
const MOST_TEXT: usize = 400;

/// Events that wait to be written. The clones are one queue.
#[derive(Clone, Debug, Default)]
pub struct EventQueue(Arc<Mutex<VecDeque<Event>>>);

impl EventQueue {
    fn take(&self) -> VecDeque<Event> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for EventQueue {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut seen = Fields::default();
        event.record(&mut seen);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.event.event.is_empty() && waiting.len() < MOST_WAITING {
            waiting.push_back(seen.finish());
        }
    }
}

/// The fields of an event, as far as the history has them.
#[derive(Default)]
struct Fields {
    event: Event,
    /// All others, as `name=value`.
    rest: Vec<String>,
}

impl Fields {
    fn finish(mut self) -> Event {
        let told = self.event.what.take().into_iter().chain(self.rest);
        let text = told.collect::<Vec<_>>().join(", ");
        self.event.what = (!text.is_empty()).then(|| text.chars().take(MOST_TEXT).collect());
        self.event
    }

    fn other(&mut self, field: &Field, value: &dyn fmt::Display) {
        // What to do about it, and when it is tried again, is the journal's matter.
        if !["remedy", "message", "retry_seconds"].contains(&field.name()) {
            self.rest.push(format!("{}={value}", field.name()));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let owned = value.to_owned();
        match field.name() {
            "event" => self.event.event = owned,
            "name" => self.event.name = Some(owned),
            "what" => self.event.what = Some(owned),
            _ => self.other(field, &value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "domain" => self.event.domain = u16::try_from(value).ok(),
            _ => self.other(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "what" => self.event.what = Some(text),
            _ => self.other(field, &text),
        }
    }
}

/// The history's writer.
#[derive(Debug)]
pub struct Recorder {
    store: Option<Store>,
    events: EventQueue,
    due: Duration,
    /// The error of the last attempt to write, so that it is reported once.
    trouble: Option<String>,
}

impl Recorder {
    /// Opens the history where the configuration has it. A file that cannot be opened is reported, and nothing
    /// is recorded.
    pub fn open(history: &History, events: EventQueue) -> Self {
        let mut recorder = Self {
            store: None,
            events,
            due: Duration::ZERO,
            trouble: None,
        };
        if history.mib == 0 {
            return recorder;
        }
        match Store::open(&history.file, history.mib << 20) {
            Ok((store, repair)) => {
                recorder.store = Some(store);
                match repair {
                    None => {}
                    Some(Repair::Cut(bytes)) => info!(
                        event = "history.cut",
                        bytes,
                        what = "the last record was not written to its end"
                    ),
                    Some(Repair::SetAside(aside)) => warn!(
                        event = "history.damaged",
                        what = %format!("{} was damaged; it is {} now, and what came before the damage was kept", history.file.display(), aside.display()),
                        remedy = "remove that file if nobody wants to look at it",
                    ),
                }
            }
            Err(error) => warn!(
                event = "history.failed",
                what = %format!("{}: {error}; nothing is recorded", history.file.display()),
                remedy = "mend that and restart lacunad, or set [history] mib = 0",
            ),
        }
        recorder
    }

    /// Records what happened since the last call, and the host and its guests if a minute has passed.
    pub fn record<X: Xen>(&mut self, supervisor: &Supervisor<X>, clock: SystemTime) {
        // Before the epoch there was no Xen.
        let at = clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut entries: Vec<Entry> = self.events.take().into_iter().map(Entry::Event).collect();
        if supervisor.now() >= self.due {
            self.due = supervisor.now() + SAMPLE;
            entries.push(sample(supervisor));
        }
        let Some(store) = &mut self.store else { return };
        let outcome: io::Result<()> = entries
            .into_iter()
            .try_for_each(|entry| store.append(&Record { at, entry }));
        let trouble = outcome.err().map(|error| error.to_string());
        if let Some(what) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            warn!(
                event = "history.failed",
                what,
                remedy = "it is tried again each minute; the metrics and the journal have all of it",
            );
        }
        self.trouble = trouble;
    }
}

fn sample<X: Xen>(supervisor: &Supervisor<X>) -> Entry {
    let reserve = supervisor.reserve();
    Entry::Sample {
        host: HostPoint {
            total: reserve.memory().total,
            free: reserve.memory().free,
            promised: reserve.promised(),
            reserve: reserve.pages(),
        },
        guests: supervisor
            .guests()
            .iter()
            .filter_map(|(domain, watched)| point(*domain, watched))
            .collect(),
    }
}

fn point(domain: u16, watched: &WatchedGuest) -> Option<GuestPoint> {
    let state = watched.state?;
    let statistics = state.statistics;
    Some(GuestPoint {
        domain,
        name: watched.name.clone(),
        held: state.pages,
        free: statistics
            .scan_free
            .saturating_sub(statistics.zero_gfns)
            .min(state.pages),
        given_back: state.given_back(),
        gave: statistics
            .shared
            .saturating_add(statistics.content_merged)
            .saturating_add(statistics.content_zeroed),
        took: state.unshared(),
        waits: statistics.unshare_enomem,
        paused_ns: statistics.pause_total_ns,
        rounds: watched.counters.rounds,
    })
}
