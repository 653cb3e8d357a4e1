//! A test of one member of a descriptor: what a profile names, and what memory is searched for.

use serde::{Deserialize, Serialize};

/// An unsigned little-endian member of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Bytes from the start of the descriptor.
    pub offset: u16,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
}

impl Field {
    /// All ones of its width: what it can hold.
    pub const fn mask(self) -> u64 {
        match self.width {
            0..8 => (1 << (8 * self.width)) - 1,
            _ => u64::MAX,
        }
    }
}

/// The test that the kernel's own `PageBuddy` amounts to: `(value & mask) == expected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicate {
    /// The bytes that the test looks at.
    pub field: Field,
    /// The bits that matter.
    pub mask: u64,
    /// What they hold in a free block's first page.
    pub expected: u64,
}

impl Predicate {
    /// The test that a field is 0.
    pub const fn zero(field: Field) -> Self {
        Self {
            field,
            mask: field.mask(),
            expected: 0,
        }
    }

    /// Whether a value of the field passes the test.
    #[inline]
    pub const fn holds(&self, value: u64) -> bool {
        value & self.mask == self.expected
    }
}
