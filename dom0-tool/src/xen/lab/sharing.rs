//! Calls Xen's own memory sharing as a program in Dom0 can: with two hypercalls for each page.
//!
//! Lacuna shares pages inside the hypervisor and makes none of these calls. The lab's baseline does: it is
//! the engine that the paper describes (section 4), and Lacuna is measured against it.
//!
//! *Nominate* is Xen's word: it makes a page read-only and gives it a handle, which is valid until the guest
//! writes to the page. *Share* maps one nominated page to the frame of another, and fails if either handle is
//! no longer valid. It does not compare the pages.
//!
//! Sources: Xen `xen/include/public/memory.h` (`struct xen_mem_sharing_op`), `xen/arch/x86/mm/mem_sharing.c`.

use std::rc::Rc;

use lacuna_core::Gfn;

use super::super::privcmd::{DomainId, HypercallBuffer, Privcmd, PrivcmdError};
use super::SHARING_OP_BYTES;

/// `XENMEM_sharing_op_nominate_gfn`, `XENMEM_sharing_op_share` and `XENMEM_sharing_op_add_physmap`.
const NOMINATE: u8 = 0;
const SHARE: u8 = 2;
const ADD: u8 = 6;
/// Where the union begins: after op and domain.
const UNION: usize = 8;
/// `XENMEM_SHARING_OP_S_HANDLE_INVALID` and `XENMEM_SHARING_OP_C_HANDLE_INVALID`, as the error numbers that
/// they become.
const SOURCE_INVALID: i32 = 10;
const CLIENT_INVALID: i32 = 9;

/// A page that was nominated, as long as the guest leaves it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NominatedPage {
    /// The page.
    pub gfn: Gfn,
    /// What Xen calls the frame that it is on; pages with the same handle are on the same one.
    pub handle: u64,
}

/// What came of sharing a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeOutcome {
    /// It is on the source's frame, and its own is free.
    Done,
    /// The source is not what was nominated any more.
    SourceChanged,
    /// The page itself is not.
    ClientChanged,
}

/// Xen's memory sharing within one domain.
#[derive(Debug)]
pub struct Sharing {
    privcmd: Rc<Privcmd>,
    domain: DomainId,
    buffer: HypercallBuffer,
}

impl Sharing {
    /// Opens sharing within `domain`. Xen turns it on for the domain with the first call.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`] when there is no memory for a buffer.
    pub fn open(privcmd: &Rc<Privcmd>, domain: DomainId) -> Result<Self, PrivcmdError> {
        Ok(Self {
            privcmd: Rc::clone(privcmd),
            domain,
            buffer: privcmd.sharing_buffer()?,
        })
    }

    /// Makes page `gfn` read-only and ready to be shared; a page that is so already answers with its handle.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`]: something holds the page, it is no ordinary memory, or Xen has no memory for
    /// it.
    pub fn nominate(&self, gfn: Gfn) -> Result<NominatedPage, PrivcmdError> {
        let mut bytes = nominate(self.domain, gfn);
        self.privcmd
            .sharing_op(&self.buffer, "XENMEM_sharing_op_nominate_gfn", &mut bytes)?;
        let handle = u64::from_le_bytes(std::array::from_fn(|index| bytes[UNION + 8 + index]));
        Ok(NominatedPage { gfn, handle })
    }

    /// Puts `client` onto the frame of `source`, whatever either holds.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn share(&self, source: NominatedPage, client: NominatedPage) -> Result<MergeOutcome, PrivcmdError> {
        let mut bytes = share(self.domain, source, client);
        let outcome = self
            .privcmd
            .sharing_op(&self.buffer, "XENMEM_sharing_op_share", &mut bytes);
        match outcome {
            Ok(()) => Ok(MergeOutcome::Done),
            Err(error) => match error.errno() {
                Some(SOURCE_INVALID) => Ok(MergeOutcome::SourceChanged),
                Some(CLIENT_INVALID) => Ok(MergeOutcome::ClientChanged),
                _ => Err(error),
            },
        }
    }

    /// Maps the frame of `source` at `gfn` as well, where the domain has nothing.
    ///
    /// # Errors
    /// [`PrivcmdError::Call`].
    pub fn add(&self, source: NominatedPage, gfn: Gfn) -> Result<(), PrivcmdError> {
        let client = NominatedPage { gfn, handle: 0 };
        let mut bytes = share(self.domain, source, client);
        bytes[0] = ADD;
        self.privcmd
            .sharing_op(&self.buffer, "XENMEM_sharing_op_add_physmap", &mut bytes)
    }
}

/// Returns a `struct xen_mem_sharing_op`: op, padding, domain, padding, union.
fn operation(op: u8, domain: DomainId, fields: &[u64]) -> [u8; SHARING_OP_BYTES] {
    let mut bytes = [0; SHARING_OP_BYTES];
    bytes[0] = op;
    bytes[2..4].copy_from_slice(&domain.get().to_le_bytes());
    for (place, field) in bytes[UNION..].chunks_exact_mut(8).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

fn nominate(domain: DomainId, gfn: Gfn) -> [u8; SHARING_OP_BYTES] {
    operation(NOMINATE, domain, &[gfn.get()])
}

fn share(domain: DomainId, source: NominatedPage, client: NominatedPage) -> [u8; SHARING_OP_BYTES] {
    let fields = [
        source.gfn.get(),
        source.handle,
        client.gfn.get(),
        client.handle,
        u64::from(domain.get()),
    ];
    operation(SHARE, domain, &fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_has_its_members_where_the_header_says() {
        let domain = DomainId::new(0x1234).expect("not reserved");
        let page = |gfn, handle| NominatedPage {
            gfn: Gfn::new(gfn),
            handle,
        };
        let bytes = nominate(domain, Gfn::new(0x55));
        assert_eq!(bytes[..9], [0, 0, 0x34, 0x12, 0, 0, 0, 0, 0x55]);
        let bytes = share(domain, page(1, 2), page(3, 4));
        assert_eq!(bytes[..4], [2, 0, 0x34, 0x12]);
        let members: Vec<u8> = bytes[8..].iter().step_by(8).copied().collect();
        assert_eq!(members, [1, 2, 3, 4, 0x34]);
        assert_eq!(bytes[41], 0x12);
    }
}
