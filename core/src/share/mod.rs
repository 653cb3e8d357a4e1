//! How free pages come to lie on zero frames, and how the guest gets frames back.

pub(crate) mod candidates;
mod refill;
pub(crate) mod slice;
pub(crate) mod steps;

pub use refill::Refill;
pub use slice::{
    MAX_SLICE_NS, MAX_SLICE_PAGES, MAX_SLICE_UNITS, NotIdentified, SUPERPAGE_UNITS, Slice, SliceReport,
};
#[cfg(feature = "mutants")]
pub use steps::Mutation;
pub use steps::Steps;
