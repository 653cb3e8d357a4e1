//! Where guest memory comes from: a live domain ([`live`]) or a file ([`dump`]), and what is known of its
//! virtual CPUs.

mod cpu;
pub mod dump;
mod failures;
pub mod live;

pub use cpu::Cpu;

use std::ops::Range;

use lacuna_core::{Gfn, GuestMemory};

use crate::failure::Clues;

/// Guest memory that can be searched from end to end.
pub trait GuestSource: GuestMemory {
    /// One past the last frame that may be there.
    fn end(&self) -> Gfn;

    /// The first frame at `from` or after it that is worth reading, below [`GuestSource::end`]. It may turn
    /// out to be absent all the same. Lets a source step over holes that it knows of.
    fn next_present(&mut self, from: Gfn) -> Option<Gfn> {
        (from < self.end()).then_some(from)
    }

    /// Takes the memory for laid out in another way, where there is one that was not tried: `clues` are what
    /// the first came to. Returns the hole that it has then. When there is none left, the memory is as it was
    /// first.
    fn lay_out_again(&mut self, clues: &Clues) -> Option<Range<u64>> {
        let _ = clues;
        None
    }

    /// Whether where it comes from says that it is Windows'.
    fn is_of_windows(&self) -> bool {
        false
    }

    /// Why memory that should be there could not be read, if something was in the way that concerns all of
    /// it.
    fn trouble(&self) -> Option<String> {
        None
    }
}
