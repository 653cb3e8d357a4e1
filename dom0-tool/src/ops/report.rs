//! What the history says of a period: the host, each guest, and what happened.
//!
//! The period is divided into slots of the same length. Levels, such as memory held, are means over the samples
//! of a slot; flows, such as memory taken back, are sums. A slot without a sample is a gap: no daemon ran, or
//! the guest was not there.

use std::collections::BTreeMap;
use std::path::Path;

use super::history::{self, Entry, Event, GuestPoint, HostPoint, Record};
use crate::failure::{Class, Failure};

/// Most slots of a period.
pub const MOST_SLOTS: u64 = 144;
/// Shortest slot: the daemon takes a sample a minute.
const SHORTEST_SLOT: u64 = 60;

/// A period of a host.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Beginning and end of the period, in seconds since the beginning of 1970.
    pub from: u64,
    /// One past its last second.
    pub to: u64,
    /// Seconds of a slot.
    pub slot: u64,
    /// Samples in the period.
    pub samples: usize,
    /// The host in each slot.
    pub host: Vec<Option<HostPoint>>,
    /// The host at the last sample.
    pub last: Option<HostPoint>,
    /// The guests, by name.
    pub guests: Vec<GuestReport>,
    /// What happened, the oldest first.
    pub events: Vec<Happening>,
    /// Whether a part of the history could not be read.
    pub is_damaged: bool,
}

/// A guest over the period. A guest that was started again under another number is the same one if it has a
/// name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuestReport {
    /// Its name, or `domain N`.
    pub name: String,
    /// The numbers that it had, in that order.
    pub domains: Vec<u16>,
    /// The guest in each slot.
    pub slots: Vec<Option<GuestSlot>>,
    /// The guest at its last sample.
    pub last: GuestPoint,
    /// Sums of all slots.
    pub total: Flows,
}

/// A guest in one slot. Pages are of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestSlot {
    /// Pages that it held, less those free inside.
    pub used: u64,
    /// Pages free inside, and held.
    pub free: u64,
    /// Pages that it had given back.
    pub given_back: u64,
    /// What moved.
    pub flows: Flows,
}

/// What moved in a slot, or in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Pages given back.
    pub gave: u64,
    /// Pages taken back by writing.
    pub took: u64,
    /// Writes that had to wait.
    pub waits: u64,
    /// Nanoseconds for which it was stopped.
    pub paused_ns: u64,
    /// Rounds.
    pub rounds: u64,
}

impl Flows {
    /// Returns what moved between two samples. Counters begin anew with a domain, and rounds with a daemon.
    fn between(before: Option<&GuestPoint>, now: &GuestPoint) -> Self {
        let Some(before) = before else {
            // What was before the period's first sample does not belong to it.
            return Self::default();
        };
        let grown = |before: u64, now: u64| if now < before { now } else { now - before };
        Self {
            gave: grown(before.gave, now.gave),
            took: grown(before.took, now.took),
            waits: grown(before.waits, now.waits),
            paused_ns: grown(before.paused_ns, now.paused_ns),
            rounds: grown(before.rounds, now.rounds),
        }
    }

    fn add(&mut self, other: Self) {
        self.gave = self.gave.saturating_add(other.gave);
        self.took = self.took.saturating_add(other.took);
        self.waits = self.waits.saturating_add(other.waits);
        self.paused_ns = self.paused_ns.saturating_add(other.paused_ns);
        self.rounds = self.rounds.saturating_add(other.rounds);
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// When, in seconds since the beginning of 1970.
    pub at: u64,
    /// The event.
    pub event: Event,
    /// Name of the guest that it is about, as in [`GuestReport::name`]; empty for the host.
    pub guest: String,
    /// What kind of thing it is.
    pub kind: Kind,
}

/// Kinds of events, by what an operator does about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A guest, the daemon or a setting came, went or changed.
    Change,
    /// A round gave memory back.
    Gave,
    /// Something is not as it should be.
    Trouble,
    /// A guest waited for memory.
    Wait,
}

impl Kind {
    fn of(event: &str) -> Self {
        match event {
            "round.gave_back" => Self::Gave,
            WAITED => Self::Wait,
            "guest.excluded" | "content.refused" | "host.low" | "host.unknown" | "guests.unknown"
            | "config.refused" | "history.failed" | "history.damaged" => Self::Trouble,
            _ => Self::Change,
        }
    }
}

/// Events that are not the daemon's: they follow from the samples.
const WAITED: &str = "guest.waited";
const RESTARTED: &str = "guest.restarted";

/// Reads the history at `file` and says what it has of the `seconds` before `now`.
///
/// # Errors
/// There is no history, or it cannot be read.
pub fn report(file: &Path, now: u64, seconds: u64) -> Result<Report, Failure> {
    let from = now.saturating_sub(seconds);
    let past = history::read(file, from).map_err(|error| {
        let class = match error.kind() {
            std::io::ErrorKind::NotFound => Class::NotFound,
            std::io::ErrorKind::PermissionDenied => Class::NoRights,
            _ => Class::Failed,
        };
        Failure::new(
            class,
            format!("the history {}: {error}", file.display()),
            "lacunad writes it while it runs, for root to read: see [history] in /etc/lacuna/lacunad.toml",
        )
    })?;
    let mut report = of(&past.records, from, now);
    report.is_damaged = !past.damaged.is_empty();
    Ok(report)
}

/// Says what `records` have of the time from `from` to `to`.
pub fn of(records: &[Record], from: u64, to: u64) -> Report {
    let to = to.max(from + 1);
    let slot = (to - from).div_ceil(MOST_SLOTS).max(SHORTEST_SLOT);
    let count = usize::try_from((to - from).div_ceil(slot)).unwrap_or(1);
    // A clock that was set back makes records of one moment twice; they are drawn by their time.
    let mut records: Vec<&Record> = records
        .iter()
        .filter(|record| (from..to).contains(&record.at))
        .collect();
    records.sort_by_key(|record| record.at);
    let mut host = Slots::new(count);
    let mut guests = Guests::new(count);
    let mut events = Vec::new();
    let mut samples = 0;
    for record in records {
        let place = usize::try_from((record.at - from) / slot)
            .unwrap_or(0)
            .min(count - 1);
        match &record.entry {
            Entry::Sample {
                host: point,
                guests: points,
            } => {
                samples += 1;
                host.add(place, *point);
                for point in points {
                    guests.add(place, point, record.at, &mut events);
                }
            }
            Entry::Event(event) => events.push(Happening {
                at: record.at,
                guest: if event.domain.is_some() {
                    title(event.name.as_deref(), event.domain)
                } else {
                    String::new()
                },
                kind: Kind::of(&event.event),
                event: event.clone(),
            }),
        }
    }
    Report {
        from,
        to,
        slot,
        samples,
        last: host.last,
        host: host.means(),
        guests: guests.finish(),
        events,
        is_damaged: false,
    }
}

fn title(name: Option<&str>, domain: Option<u16>) -> String {
    match name.filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => format!("domain {}", domain.unwrap_or(0)),
    }
}

/// The host, slot by slot: sums, and how many they are of.
struct Slots {
    sums: Vec<(HostPoint, u64)>,
    last: Option<HostPoint>,
}

impl Slots {
    fn new(count: usize) -> Self {
        Self {
            sums: vec![(HostPoint::default(), 0); count],
            last: None,
        }
    }

    fn add(&mut self, place: usize, point: HostPoint) {
        let (sum, number) = &mut self.sums[place];
        sum.total = sum.total.saturating_add(point.total);
        sum.free = sum.free.saturating_add(point.free);
        sum.promised = sum.promised.saturating_add(point.promised);
        sum.reserve = sum.reserve.saturating_add(point.reserve);
        *number += 1;
        self.last = Some(point);
    }

    fn means(&self) -> Vec<Option<HostPoint>> {
        let mean = |(sum, number): &(HostPoint, u64)| {
            (*number > 0).then(|| HostPoint {
                total: sum.total / number,
                free: sum.free / number,
                promised: sum.promised / number,
                reserve: sum.reserve / number,
            })
        };
        self.sums.iter().map(mean).collect()
    }
}

/// All guests, slot by slot.
struct Guests {
    count: usize,
    by_name: BTreeMap<String, (GuestReport, Vec<u64>)>,
}

impl Guests {
    fn new(count: usize) -> Self {
        Self {
            count,
            by_name: BTreeMap::new(),
        }
    }

    fn add(&mut self, place: usize, point: &GuestPoint, at: u64, events: &mut Vec<Happening>) {
        let name = title(point.name.as_deref(), Some(point.domain));
        let count = self.count;
        let (guest, numbers) = self.by_name.entry(name.clone()).or_insert_with(|| {
            let guest = GuestReport {
                name,
                slots: vec![None; count],
                ..GuestReport::default()
            };
            (guest, vec![0; count])
        });
        let is_known = !guest.domains.is_empty();
        let is_same = is_known && guest.last.domain == point.domain;
        let flows = if is_known && !is_same {
            // All counters of another domain are new.
            Flows::between(Some(&GuestPoint::default()), point)
        } else {
            Flows::between(is_same.then_some(&guest.last), point)
        };
        let mut tell = |event: &str, what: String| {
            events.push(Happening {
                at,
                guest: guest.name.clone(),
                kind: Kind::of(event),
                event: Event {
                    event: event.to_owned(),
                    domain: Some(point.domain),
                    name: point.name.clone(),
                    what: Some(what),
                },
            });
        };
        if is_known && !is_same {
            tell(RESTARTED, format!("domain {} before", guest.last.domain));
        }
        if flows.waits > 0 {
            tell(
                WAITED,
                format!("{} writes found no memory and waited", flows.waits),
            );
        }
        if !is_same {
            guest.domains.push(point.domain);
        }
        let seen = guest.slots[place].get_or_insert_default();
        seen.used = seen.used.saturating_add(point.held.saturating_sub(point.free));
        seen.free = seen.free.saturating_add(point.free);
        seen.given_back = seen.given_back.saturating_add(point.given_back);
        seen.flows.add(flows);
        guest.total.add(flows);
        guest.last = point.clone();
        numbers[place] += 1;
    }

    fn finish(self) -> Vec<GuestReport> {
        self.by_name
            .into_values()
            .map(|(mut guest, numbers)| {
                for (slot, number) in guest.slots.iter_mut().zip(numbers) {
                    if let Some(slot) = slot {
                        slot.used /= number;
                        slot.free /= number;
                        slot.given_back /= number;
                    }
                }
                guest
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
