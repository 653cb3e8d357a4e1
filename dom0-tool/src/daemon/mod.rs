//! `lacunad`: attaches guests, gives their free memory back, and says how that goes, with nobody at the
//! keyboard.
//!
//! * [`config`] is its file; [`log`] its events; [`signals`] what ends it or makes it read its file again;
//! * [`crate::ops::host`] is all it asks of the host, behind a trait, so that the rest runs in tests without
//!   one;
//! * [`supervisor`] decides what to do next; [`watched`] is what it knows of one guest, [`backoff`] when it
//!   tries again, [`budget`] how much of a CPU it may use, [`pace`] how often contents are looked at;
//! * [`reserve`] watches the host's memory; [`metrics`] is what it tells, [`exposition`] in which formats,
//!   [`server`] who hands that out.
//!
//! It keeps no state of its own on disk. Profiles and counters live in the hypervisor, and every look at a
//! guest begins with what the hypervisor says of it; so the daemon can be killed at any moment, and the next
//! one goes on.

pub mod backoff;
pub mod budget;
pub mod config;
pub mod exposition;
pub mod log;
pub mod metrics;
pub mod pace;
pub mod reserve;
pub mod run;
pub mod server;
pub mod signals;
pub mod supervisor;
pub mod watched;
