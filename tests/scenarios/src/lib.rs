//! What the lab and the driver inside dom0 share: the scenarios' names, and the lines that go between the
//! two.

pub mod catalogue;
pub mod paper;
pub mod wire;
