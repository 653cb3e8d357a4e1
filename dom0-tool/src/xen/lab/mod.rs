//! Hypercalls that the lab makes and the product does not. They exist only with the crate's feature `lab`,
//! which the lab's driver in dom0 (`tests/dom0`) turns on, and which no package is built with.
//!
//! They are here, and not in that driver, because the layout of an argument has to be right for a hypercall
//! to be safe: as in [`super::privcmd`], each is one function that builds its own argument.

pub mod provoke;
pub mod sharing;

/// `__HYPERVISOR_hvm_op` and `__HYPERVISOR_dm_op` (`xen.h`).
const HVM_OP: u64 = 34;
pub(super) const DM_OP: u64 = 41;
/// `__HYPERVISOR_mca` (`arch-x86/xen.h`).
const MCA: u64 = 48;
/// `XENMEM_sharing_op` (`memory.h`).
pub(super) const SHARING_OP: u64 = 22;
/// `sizeof(struct xen_mem_sharing_op)`: an 8-byte head and a union of 40 (`memory.h`).
pub(super) const SHARING_OP_BYTES: usize = 48;
