//! The hypervisor: hypercalls, foreign memory, and domain names.
//!
//! Everything unsafe is in [`privcmd`].

pub mod answer;
pub mod domain;
pub mod domain_info;
pub mod engine;
pub mod foreign;
pub mod privcmd;
pub mod provoke;
pub mod sharing;
pub mod xenstore;
