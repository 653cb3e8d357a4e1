//! The hash of a page.

use core::hash::{BuildHasher, Hasher};
use core::ops::ControlFlow;

use rapidhash::inner::SeedableState;
use rapidhash::v3::RapidSecrets;

use crate::guest::is_zero;
use crate::{Gfn, GuestMemory, LINES, ReadError};

/// rapidhash for numbers: each 16 bytes go through one multiplication, with the state and with a secret.
type State<'s> = SeedableState<'s, true, true>;

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

    /// Hashes frame `gfn` in one pass. Lines of zeros at its beginning are passed over, so that a page of
    /// zeros costs no more than reading it; how many there were shows in the number of those that are hashed.
    /// The frame may be written to meanwhile: the hash is then one of no page, and nothing else is wrong.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    pub fn digest<M: GuestMemory>(&self, memory: &mut M, gfn: Gfn) -> Result<Digest, ReadError> {
        let mut zeros = 0;
        memory.lines(gfn, 0, |line| {
            if is_zero(line) {
                zeros += 1;
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        let mut hash = State::custom(self.0.seed, &self.0.secrets).build_hasher();
        if zeros < LINES {
            memory.lines(gfn, zeros, |line| {
                hash.write_u128(pair(line[0], line[1]));
                hash.write_u128(pair(line[2], line[3]));
                hash.write_u128(pair(line[4], line[5]));
                hash.write_u128(pair(line[6], line[7]));
                ControlFlow::Continue(())
            })?;
        }
        Ok(Digest {
            value: hash.finish(),
            zero: zeros == LINES,
        })
    }
}

const fn pair(low: u64, high: u64) -> u128 {
    low as u128 | (high as u128) << 64
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
