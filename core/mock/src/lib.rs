//! A guest in ordinary memory: a kernel with page tables, a memory map, a buddy allocator and zone counters,
//! on a machine with a p2m, translation caches, references and a host that wants its frames back.
//!
//! It implements [`GuestMemory`](lacuna_core::GuestMemory), [`P2m`](lacuna_core::P2m),
//! [`Protect`](lacuna_core::Protect) and [`Domain`](lacuna_core::Domain), so every operation of a
//! [`Session`](lacuna_core::Session) runs against it. It knows the truth (which pages are free, what was
//! written where), can fail any single call ([`MockGuest::fail`]), and can run a guest program between any
//! two calls of the engine ([`MockGuest::set_interlude`]), which is how tests drive races without threads.
//!
//! What it does *not* do: run two things in the same instant (`core/tests/interleaving` does), or model a
//! processor's timing. Its clock is made of fixed prices for each call.
//!
//! ```
//! use lacuna_core::{FreeCheck, Verdict};
//! use lacuna_mock::{Config, MockGuest};
//!
//! let mut guest = MockGuest::new(&Config::default());
//! let page = guest.alloc(0, 0).expect("a new guest has free memory");
//! let profile = guest.profile();
//! let mut check = FreeCheck::new(&profile);
//! assert!(matches!(check.page(&mut guest, page), Verdict::InUse(_)));
//! guest.free(0, page);
//! assert!(matches!(check.page(&mut guest, page), Verdict::Free { .. }));
//! ```
// A mock that cannot go on must say so at once; the hypervisor never builds this crate.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod buddy;
mod build;
mod content;
mod engine;
mod faults;
mod hooks;
pub mod hostile;
mod kernel;
mod large;
mod layout;
mod machine;
mod models;
mod profile;
mod tables;
mod tables_held;

pub use build::{Config, MapPages};
pub use faults::Primitive;
pub use hooks::TakeWritten;
pub use kernel::{Damage, MockGuest};
pub use large::{LargeGuest, State, Work, admit, operate, operate_by, set_profile};
pub use layout::Layout;
pub use machine::{Access, Violation};
pub use models::Model;
pub use tables_held::ZeroBits;

use lacuna_core::Profile;

/// A valid profile: that of a guest with the default [`Config`].
pub fn profile() -> Profile {
    MockGuest::new(&Config::default()).profile()
}
