//! The hypervisor: hypercalls and domain names.
//!
//! Everything unsafe is in [`privcmd`].

pub mod answer;
pub mod domain;
pub mod domain_info;
pub mod engine;
mod failures;
mod figures;
pub mod hypervisor;
mod interface;
#[cfg(feature = "lab")]
pub mod lab;
pub mod privcmd;
pub mod xenstore;
