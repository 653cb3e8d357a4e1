//! `lacunad`: attaches guests, gives their free memory back, and reports what it did, unattended.
//!
//! * [`config`] is its configuration, [`log`] its events, [`signals`] end it or make it read its
//!   configuration again;
//! * [`crate::ops::host`] is all that it needs of the host, behind a trait, so that the rest runs in tests
//!   without a host;
//! * [`supervisor`] decides what to do next. [`watched`] is its record of one guest, [`backoff`] decides when
//!   to try again, [`budget`] how much of a CPU to use, [`pace`] how often to run content rounds;
//! * [`reserve`] watches the host's memory. [`metrics`] collects figures, [`exposition`] formats them, and
//!   [`server`] serves them. [`client`] asks a running daemon for some of them.
//!
//! * [`recorder`] writes the host's history, for people.
//!
//! The daemon keeps no state on disk that it needs. Profiles and counters are in the hypervisor, and each piece of work
//! begins with the state that the hypervisor reports. So the daemon can be killed at any moment, and the next
//! one goes on.

pub mod backoff;
pub mod budget;
pub mod client;
pub mod config;
pub mod exposition;
pub mod log;
pub mod metrics;
pub mod pace;
pub mod recorder;
pub mod reserve;
pub mod run;
pub mod server;
pub mod signals;
pub mod supervisor;
pub mod watched;
