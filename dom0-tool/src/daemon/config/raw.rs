//! The configuration file as it is written, before ranges are looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::{Extent, LogFormat, LogLevel, Mode};

/// The file as it stands, before ranges are looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) daemon: RawDaemon,
    pub(super) log: RawLog,
    pub(super) metrics: RawMetrics,
    pub(super) host: RawHost,
    pub(super) history: RawHistory,
    pub(super) defaults: RawTreatment,
    pub(super) domain: BTreeMap<String, RawTreatment>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDaemon {
    pub(super) poll_seconds: Option<Spanned<u64>>,
    pub(super) cpu_percent: Option<Spanned<u64>>,
    pub(super) retry_first_seconds: Option<Spanned<u64>>,
    pub(super) retry_longest_seconds: Option<Spanned<u64>>,
    pub(super) layouts: Option<PathBuf>,
    pub(super) symbols: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<LogLevel>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMetrics {
    pub(super) listen: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHost {
    pub(super) reserve_mib: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHistory {
    pub(super) file: Option<PathBuf>,
    pub(super) mib: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTreatment {
    pub(super) mode: Option<Mode>,
    pub(super) give_back: Option<Extent>,
    pub(super) interval_seconds: Option<Spanned<f64>>,
    pub(super) trust_group: Option<Spanned<String>>,
}
