//! The hash of a page.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

use crate::{Gfn, GuestMemory, GuestPhys, PAGE_SIZE, ReadError};

/// Bytes hashed at once: what the hypervisor's stack has room for.
const CHUNK: usize = 256;

/// The hash of a page's bytes. Equal bytes have equal hashes; the converse is never relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    value: u64,
    zero: bool,
}

impl Digest {
    /// The number.
    pub const fn get(self) -> u64 {
        self.value
    }

    /// Whether all bytes were zero when they were hashed.
    pub const fn is_zero(self) -> bool {
        self.zero
    }

    /// A digest that a test chooses.
    #[cfg(test)]
    pub(crate) const fn of_value(value: u64) -> Self {
        Self { value, zero: false }
    }
}

/// What hashes begin with: a secret of the hypervisor, so that a guest cannot choose the place of its pages
/// in an index that others use, nor make two pages collide.
#[derive(Clone, Copy, Debug)]
pub struct Seed(RapidSecrets);

impl Seed {
    /// Makes the secrets of the hash from a random number.
    pub const fn new(random: u64) -> Self {
        Self(RapidSecrets::seed(random))
    }

    /// Hashes frame `gfn`. It may be written to meanwhile: the hash is then one of no page, and nothing else
    /// is wrong.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    pub fn digest<M: GuestMemory>(&self, memory: &mut M, gfn: Gfn) -> Result<Digest, ReadError> {
        let mut bytes = [0; CHUNK];
        let mut at = gfn.base().ok_or(ReadError::Absent(gfn))?;
        let mut secrets = self.0;
        let mut all = 0;
        for _ in 0..PAGE_SIZE / CHUNK {
            memory.read(at, &mut bytes)?;
            all = bytes.iter().fold(all, |all, byte| all | byte);
            secrets.seed = rapidhash_v3_inline::<true, true, true>(&bytes, &secrets);
            at = GuestPhys::new(at.get().wrapping_add(CHUNK as u64));
        }
        Ok(Digest {
            value: secrets.seed,
            zero: all == 0,
        })
    }
}
