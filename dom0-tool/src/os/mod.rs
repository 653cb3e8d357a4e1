//! The kernels that are known: which one runs in a guest, and the profile of it.
//!
//! * [`linux`] identifies a Linux kernel and makes its profile;
//! * [`windows`] reads what there is to know about a Windows kernel.

pub mod linux;
pub mod windows;
