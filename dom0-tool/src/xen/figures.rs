//! Figures that the operations of [`super::engine`] return.

use std::ops::AddAssign;

use lacuna_core::abi::Request;

/// Figures of a scan, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanFigures {
    /// In free blocks.
    pub free: u64,
    /// In use.
    pub in_use: u64,
    /// Without a descriptor.
    pub no_descriptor: u64,
    /// With a descriptor that contradicts itself or cannot be read.
    pub unknown: u64,
}

impl AddAssign for ScanFigures {
    fn add_assign(&mut self, other: Self) {
        self.free += other.free;
        self.in_use += other.in_use;
        self.no_descriptor += other.no_descriptor;
        self.unknown += other.unknown;
    }
}

/// Figures of a share round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareFigures {
    /// Pages put on zero frames.
    pub pages: u64,
    /// 2 MiB entries among them.
    pub superpages: u64,
    /// Pages that were not free any more when checked again.
    pub rejected: u64,
    /// Free pages left alone because something holds them.
    pub held: u64,
}

impl AddAssign for ShareFigures {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.superpages += other.superpages;
        self.rejected += other.rejected;
        self.held += other.held;
    }
}

/// Figures of a round of the content stage, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentFigures {
    /// Found to be zero and put on zero frames.
    pub zeroed: u64,
    /// Put on a frame that others share.
    pub merged: u64,
    /// Hashed.
    pub hashed: u64,
    /// Hashed and not as in the last round, or met for the first time.
    pub changed: u64,
}

impl AddAssign for ContentFigures {
    fn add_assign(&mut self, other: Self) {
        self.zeroed += other.zeroed;
        self.merged += other.merged;
        self.hashed += other.hashed;
        self.changed += other.changed;
    }
}

/// A part of an operation over all of a domain's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part<T> {
    /// The figures of this part.
    pub figures: T,
    /// The frame at which the next part begins; `None` when there is none.
    pub next: Option<u64>,
}

impl<T> Part<T> {
    pub(super) fn of(figures: T, answer: &Request) -> Self {
        // The engine subtracts from the budget what it did. A rest means that it has reached the end.
        let next = (answer.budget == 0).then_some(answer.cursor);
        Self { figures, next }
    }
}
