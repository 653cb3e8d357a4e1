//! Failing single calls.

use std::collections::{BTreeMap, BTreeSet};

/// A call of the engine into the hypervisor that can fail, or say something unwelcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Primitive {
    /// [`lacuna_core::GuestMemory::read`]: the frame is absent.
    Read,
    /// [`lacuna_core::P2m::registers`]: a virtual CPU with an empty IDT, as while a kexec copies.
    Registers,
    /// [`lacuna_core::P2m::share_zero`]: one [`lacuna_core::Skip`] after the other.
    ShareZero,
    /// [`lacuna_core::Protect::protect`]: the paging pool is empty.
    Protect,
    /// [`lacuna_core::Tables::extend`] of any table, and [`lacuna_core::Tables::make_header`]: no memory.
    Extend,
    /// [`lacuna_core::Domain::blocker`]: log-dirty mode is on.
    Blocker,
    /// [`lacuna_core::Domain::preempted`]: yes.
    Preempted,
    /// [`lacuna_core::Peers::equal`]: no.
    Equal,
    /// [`lacuna_core::Peers::lock_with`]: the partner is gone.
    LockWith,
    /// [`lacuna_core::Peers::merge`]: one [`lacuna_core::Skip`] after the other.
    Merge,
}

impl Primitive {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Registers,
        Self::ShareZero,
        Self::Protect,
        Self::Extend,
        Self::Blocker,
        Self::Preempted,
        Self::Equal,
        Self::LockWith,
        Self::Merge,
    ];
}

/// Which calls fail, and how many were made.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    planned: BTreeSet<(Primitive, u64)>,
    always: BTreeSet<Primitive>,
    calls: BTreeMap<Primitive, u64>,
    struck: u64,
}

impl Faults {
    pub(super) fn plan(&mut self, primitive: Primitive, call: u64) {
        self.planned.insert((primitive, call));
    }

    pub(super) fn plan_all(&mut self, primitive: Primitive) {
        self.always.insert(primitive);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn calls(&self, primitive: Primitive) -> u64 {
        self.calls.get(&primitive).copied().unwrap_or(0)
    }

    pub(super) const fn struck(&self) -> u64 {
        self.struck
    }

    /// Counts a call; whether it fails.
    pub(super) fn strikes(&mut self, primitive: Primitive) -> bool {
        let count = self.calls.entry(primitive).or_default();
        let strikes = self.always.contains(&primitive) || self.planned.contains(&(primitive, *count));
        *count += 1;
        self.struck += u64::from(strikes);
        strikes
    }
}
