//! The daemon's metrics, as text in the format of `OpenMetrics`.
//!
//! Each metric is one row of a table here: name, unit, kind, definition, and where the value comes from.
//! `docs/daemon.md` has the same rows; a test compares the two.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::daemon::reserve::Reserve;
use crate::daemon::supervisor::Supervisor;
use crate::daemon::watched::WatchedGuest;
use crate::ops::host::{GuestState, Xen};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What a metric is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Bytes,
    Seconds,
    Ratio,
    /// A plain number of what the name says.
    Number,
}

impl Measure {
    const fn unit(self) -> Option<Unit> {
        match self {
            Self::Bytes => Some(Unit::Bytes),
            Self::Seconds => Some(Unit::Seconds),
            Self::Ratio => Some(Unit::Ratios),
            Self::Number => None,
        }
    }
}

/// Whether a metric only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

/// One metric of each `S`.
struct Metric<S> {
    /// Without prefix, unit and `_total`.
    name: &'static str,
    measure: Measure,
    kind: Kind,
    help: &'static str,
    value: fn(&S) -> Value,
}

/// A value, or none for now.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Whole(u64),
    Real(f64),
    Missing,
}

/// A guest at the moment of the snapshot.
#[derive(Clone, Debug)]
struct GuestRow {
    domain: u16,
    watched: WatchedGuest,
}

/// The values of all metrics at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    guests: Vec<GuestRow>,
    host: HostRow,
}

#[derive(Clone, Copy, Debug)]
struct HostRow {
    reserve: Reserve,
    cpu: Duration,
    cpu_percent: u32,
    guests: usize,
}

fn from_state(row: &GuestRow, value: impl Fn(&GuestState) -> u64) -> Value {
    row.watched
        .state
        .as_ref()
        .map_or(Value::Missing, |state| Value::Whole(value(state)))
}

fn seconds_from_state(row: &GuestRow, nanoseconds: impl Fn(&GuestState) -> u64) -> Value {
    row.watched.state.as_ref().map_or(Value::Missing, |state| {
        Value::Real(Duration::from_nanos(nanoseconds(state)).as_secs_f64())
    })
}

const GUEST: &[Metric<GuestRow>] = &[
    Metric {
        name: "guest_limit",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Most memory that the guest may own (its maxmem, and what Xen adds)",
        value: |row| from_state(row, |state| state.max_pages.saturating_mul(PAGE)),
    },
    Metric {
        name: "guest_held",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Host memory that the guest owns now",
        value: |row| from_state(row, |state| state.pages * PAGE),
    },
    Metric {
        name: "guest_free",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Memory in the guest kernel's free blocks, by the last complete scan",
        value: |row| from_state(row, |state| state.statistics.scan_free * PAGE),
    },
    Metric {
        name: "guest_given_back",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Guest memory that lies on zero frames now: given back to the host, and needed again when the guest writes to it",
        value: |row| from_state(row, |state| state.statistics.zero_gfns * PAGE),
    },
    Metric {
        name: "guest_content",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Guest memory on frames that pages of the same content share now; each page needs a frame of its own when the guest writes to it",
        value: |row| from_state(row, |state| state.statistics.content_gfns * PAGE),
    },
    Metric {
        name: "guest_content_shared",
        measure: Measure::Bytes,
        kind: Kind::Counter,
        help: "Memory that the content stage put on shared frames, zero frames included",
        value: |row| {
            from_state(row, |state| {
                let statistics = state.statistics;
                (statistics.content_merged + statistics.content_zeroed).saturating_mul(PAGE)
            })
        },
    },
    Metric {
        name: "guest_content_unshared",
        measure: Measure::Bytes,
        kind: Kind::Counter,
        help: "Memory that the guest took off frames shared by content by writing to it",
        value: |row| from_state(row, |state| state.statistics.content_unshared * PAGE),
    },
    Metric {
        name: "guest_content_rounds",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Content rounds over all of the guest's pages that this daemon completed",
        value: |row| Value::Whole(row.watched.counters.content_rounds),
    },
    Metric {
        name: "guest_headroom",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Free memory that the policy leaves to the guest, after its demand so far",
        value: |row| Value::Whole(row.watched.policy.headroom() * PAGE),
    },
    Metric {
        name: "guest_pressure",
        measure: Measure::Number,
        kind: Kind::Gauge,
        help: "Powers of two by which the policy makes memory wait longer, because giving it back cost more than it was worth",
        value: |row| Value::Whole(u64::from(row.watched.policy.pressure())),
    },
    Metric {
        name: "guest_shared",
        measure: Measure::Bytes,
        kind: Kind::Counter,
        help: "Memory put on zero frames since the guest's first round",
        value: |row| from_state(row, |state| state.statistics.shared * PAGE),
    },
    Metric {
        name: "guest_unshared",
        measure: Measure::Bytes,
        kind: Kind::Counter,
        help: "Memory that the guest took back by writing to it",
        value: |row| from_state(row, |state| state.statistics.unshared * PAGE),
    },
    Metric {
        name: "guest_unshare_faults",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Writes by which the guest took memory back: each a page, or a block of 2 MiB",
        value: |row| from_state(row, |state| state.statistics.faults()),
    },
    Metric {
        name: "guest_unshare_waits",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Writes that found no host memory: the virtual CPU waited and tried again",
        value: |row| from_state(row, |state| state.statistics.unshare_enomem),
    },
    Metric {
        name: "guest_reserve",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Host memory put aside for what serves the guest's disks and cards, which cannot wait for any",
        value: |row| from_state(row, |state| state.statistics.reserve * PAGE),
    },
    Metric {
        name: "guest_reserve_full",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "How much of it there should be",
        value: |row| from_state(row, |state| state.statistics.reserve_full * PAGE),
    },
    Metric {
        name: "guest_stands",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Times the guest was kept from running because its reserve had been drawn on",
        value: |row| from_state(row, |state| state.statistics.stood),
    },
    Metric {
        name: "guest_stood",
        measure: Measure::Seconds,
        kind: Kind::Counter,
        help: "Time for which it was",
        value: |row| seconds_from_state(row, |state| state.statistics.stood_ns),
    },
    Metric {
        name: "guest_rechecks_failed",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Pages that a scan called free and that were in use when checked again",
        value: |row| from_state(row, |state| state.statistics.rejected),
    },
    Metric {
        name: "guest_pauses",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Times the guest was stopped",
        value: |row| from_state(row, |state| state.statistics.pauses),
    },
    Metric {
        name: "guest_paused",
        measure: Measure::Seconds,
        kind: Kind::Counter,
        help: "Time for which the guest was stopped",
        value: |row| seconds_from_state(row, |state| state.statistics.pause_total_ns),
    },
    Metric {
        name: "guest_longest_pause",
        measure: Measure::Seconds,
        kind: Kind::Gauge,
        help: "Longest time for which the guest was stopped at once",
        value: |row| seconds_from_state(row, |state| state.statistics.pause_longest_ns),
    },
    Metric {
        name: "guest_scan",
        measure: Measure::Seconds,
        kind: Kind::Gauge,
        help: "Time that the last complete scan took inside the hypervisor",
        value: |row| seconds_from_state(row, |state| state.statistics.scan_ns),
    },
    Metric {
        name: "guest_scans",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Scans of all of the guest's memory",
        value: |row| from_state(row, |state| state.statistics.scans),
    },
    Metric {
        name: "guest_scan_disagreements",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Scans of this daemon that did not agree with the guest's own counters",
        value: |row| Value::Whole(row.watched.counters.disagreements),
    },
    Metric {
        name: "guest_identity_failures",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Times the guest did not look like the kernel of its profile",
        value: |row| from_state(row, |state| state.statistics.identity_failures),
    },
    Metric {
        name: "guest_rounds",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Rounds that this daemon completed",
        value: |row| Value::Whole(row.watched.counters.rounds),
    },
    Metric {
        name: "guest_attaches",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Times this daemon made a profile that was admitted",
        value: |row| Value::Whole(row.watched.counters.attached),
    },
    Metric {
        name: "guest_attach_failures",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Times this daemon could not attach the guest",
        value: |row| Value::Whole(row.watched.counters.attach_failures),
    },
    Metric {
        name: "guest_cpu",
        measure: Measure::Seconds,
        kind: Kind::Counter,
        help: "CPU time that this daemon spent on the guest, hypercalls included",
        value: |row| Value::Real(row.watched.counters.cpu.as_secs_f64()),
    },
    Metric {
        name: "guest_metadata",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Hypervisor memory that Lacuna holds for the guest",
        value: |row| from_state(row, |state| state.statistics.metadata_bytes),
    },
];

const HOST: &[Metric<HostRow>] = &[
    Metric {
        name: "host_memory",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "All memory of the host",
        value: |row| Value::Whole(row.reserve.memory().total * PAGE),
    },
    Metric {
        name: "host_free",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Free memory of the host, that claimed for domains being built included",
        value: |row| Value::Whole(row.reserve.memory().free * PAGE),
    },
    Metric {
        name: "host_promised",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "What guests could take back at any moment: the sum of what they have given back",
        value: |row| Value::Whole(row.reserve.promised() * PAGE),
    },
    Metric {
        name: "host_reserve",
        measure: Measure::Bytes,
        kind: Kind::Gauge,
        help: "Free memory below which nothing more is given back",
        value: |row| Value::Whole(row.reserve.pages().saturating_mul(PAGE)),
    },
    Metric {
        name: "host_low",
        measure: Measure::Number,
        kind: Kind::Gauge,
        help: "1 while the host's free memory is below the reserve",
        value: |row| Value::Whole(u64::from(row.reserve.is_low())),
    },
    Metric {
        name: "host_lows",
        measure: Measure::Number,
        kind: Kind::Counter,
        help: "Times the host's free memory fell below the reserve",
        value: |row| Value::Whole(row.reserve.lows()),
    },
    Metric {
        name: "daemon_guests",
        measure: Measure::Number,
        kind: Kind::Gauge,
        help: "Guests that exist",
        value: |row| Value::Whole(row.guests as u64),
    },
    Metric {
        name: "daemon_cpu",
        measure: Measure::Seconds,
        kind: Kind::Counter,
        help: "CPU time that this daemon used, hypercalls included",
        value: |row| Value::Real(row.cpu.as_secs_f64()),
    },
    Metric {
        name: "daemon_cpu_limit",
        measure: Measure::Ratio,
        kind: Kind::Gauge,
        help: "Most of one CPU that this daemon uses in the long run",
        value: |row| Value::Real(f64::from(row.cpu_percent) / 100.0),
    },
];

/// Name and help of the metric that says what state a guest is in.
const STATE: (&str, &str) = (
    "guest_state",
    "1 for each guest: its mode (off, observe, free, free+content), whether it is attached, and why nothing is done with it, if so",
);

impl Snapshot {
    /// Collects the values of all metrics now.
    pub fn of<X: Xen>(supervisor: &Supervisor<X>) -> Self {
        Self {
            guests: supervisor
                .guests()
                .iter()
                .map(|(domain, watched)| GuestRow {
                    domain: *domain,
                    watched: watched.clone(),
                })
                .collect(),
            host: HostRow {
                reserve: *supervisor.reserve(),
                cpu: supervisor.cpu_time(),
                cpu_percent: supervisor.config().cpu_percent,
                guests: supervisor.guests().len(),
            },
        }
    }

    /// Renders the snapshot as text in the format of `OpenMetrics`.
    pub fn text(self) -> String {
        let mut registry = Registry::with_prefix("lacuna");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // A String takes whatever is written to it.
        let _ = encode(&mut text, &registry);
        text
    }
}

type Labels = Vec<(String, String)>;

impl GuestRow {
    fn labels(&self) -> Labels {
        vec![
            ("domain".to_owned(), self.domain.to_string()),
            ("name".to_owned(), self.watched.title().to_owned()),
        ]
    }

    fn state_labels(&self) -> Labels {
        let attached = self
            .watched
            .state
            .is_some_and(|state| state.statistics.state == lacuna_core::abi::State::Admitted as u64);
        let reason = self
            .watched
            .exclusion
            .as_ref()
            .map_or("", |exclusion| exclusion.cause.name());
        let mut labels = self.labels();
        for (name, value) in [
            ("mode", self.watched.treatment.mode.name()),
            ("attached", if attached { "yes" } else { "no" }),
            ("reason", reason),
        ] {
            labels.push((name.to_owned(), value.to_owned()));
        }
        labels
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for metric in HOST {
            put(&mut encoder, metric, &[(None, (metric.value)(&self.host))])?;
        }
        for metric in GUEST {
            let rows: Vec<(Option<Labels>, Value)> = self
                .guests
                .iter()
                .map(|row| (Some(row.labels()), (metric.value)(row)))
                .collect();
            put(&mut encoder, metric, &rows)?;
        }
        let mut family = encoder.encode_descriptor(STATE.0, STATE.1, None, MetricType::Gauge)?;
        for row in &self.guests {
            let labels = row.state_labels();
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn put<S>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric<S>,
    rows: &[(Option<Labels>, Value)],
) -> Result<(), fmt::Error> {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
    };
    let unit = metric.measure.unit();
    let mut family = encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
    for (labels, value) in rows {
        match labels {
            Some(labels) => put_value(family.encode_family(labels)?, metric.kind, *value)?,
            // A host has one row: a metric without labels.
            None => return put_value(family, metric.kind, *value),
        }
    }
    Ok(())
}

fn put_value(encoder: MetricEncoder<'_>, kind: Kind, value: Value) -> Result<(), fmt::Error> {
    match (kind, value) {
        (Kind::Counter, Value::Whole(value)) => ConstCounter::new(value).encode(encoder),
        (Kind::Counter, Value::Real(value)) => ConstCounter::new(value).encode(encoder),
        // Exact up to 2^63 bytes.
        (Kind::Gauge, Value::Whole(value)) => {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
        }
        (Kind::Gauge, Value::Real(value)) => ConstGauge::new(value).encode(encoder),
        (_, Value::Missing) => Ok(()),
    }
}

/// Returns every metric's full name, as samples carry it, and its definition: for the documentation's test.
pub fn definitions() -> BTreeMap<String, &'static str> {
    fn full(name: &str, measure: Measure, kind: Kind) -> String {
        let unit = measure
            .unit()
            .map_or_else(String::new, |unit| format!("_{}", unit.as_str()));
        let total = if kind == Kind::Counter { "_total" } else { "" };
        format!("lacuna_{name}{unit}{total}")
    }
    let host = HOST
        .iter()
        .map(|row| (full(row.name, row.measure, row.kind), row.help));
    let guest = GUEST
        .iter()
        .map(|row| (full(row.name, row.measure, row.kind), row.help));
    host.chain(guest)
        .chain([(format!("lacuna_{}", STATE.0), STATE.1)])
        .collect()
}
