//! Descriptor layouts of real kernels (GUESTS.md, "Page descriptor").

use crate::{Blocks, BytesRule, Field, FreeRule, Order, Predicate};

/// How the mock kernel lays out a page descriptor and marks a free block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `sizeof(struct page)`, in bytes.
    pub descriptor_bytes: u16,
    /// The kernel's test for a free block's first page.
    pub predicate: Predicate,
    /// What the kernel stores in the predicate's field to mark a head.
    pub marked: u64,
    /// What it stores there for pages that are not heads of free blocks, in turn. Every one fails the test.
    pub unmarked: [u64; 4],
    /// Where the order of a free block lies.
    pub order: Field,
    /// Where the reference count lies.
    pub references: Field,
    /// The allocator's largest order.
    pub max_order: Order,
}

/// Order 10: the largest on x86 (Linux `include/linux/mmzone.h`, `MAX_PAGE_ORDER`).
const ORDER_10: Order = match Order::new(10) {
    Some(order) => order,
    None => Order::MAX,
};

impl Layout {
    /// The rule by which a profile calls this kernel's pages free.
    pub fn free_rule(&self) -> FreeRule {
        FreeRule {
            predicate: self.predicate,
            conditions: core::iter::once(Predicate::zero(self.references)).collect(),
            blocks: Some(Blocks {
                order: self.order,
                max_order: self.max_order,
            }),
            bytes: BytesRule::Any,
        }
    }

    /// Linux 6.11 and later, amd64: 64 bytes, the top byte of `page_type` is compared with 0xf0 (`PGTY_buddy`). Slab
    /// (0xf5), offline (0xf1) and unaccepted (0xf7) share bits with it.
    pub const fn modern() -> Self {
        Self {
            descriptor_bytes: 64,
            predicate: Predicate {
                field: Field { offset: 48, width: 4 },
                mask: 0xff00_0000,
                expected: 0xf000_0000,
            },
            marked: 0xf000_0000,
            unmarked: [0xffff_ffff, 0xf500_0000, 0xf100_0000, 0xf700_0000],
            order: Field { offset: 40, width: 8 },
            references: Field { offset: 52, width: 4 },
            max_order: ORDER_10,
        }
    }

    /// Linux 4.18 to 6.10, amd64: 64 bytes, `(page_type & 0xf0000080) == 0xf0000000`; memory holds 0xffffff7f. The other
    /// values: untyped, offline (bit 0x100 cleared), mapped once, mapped four times.
    pub const fn older() -> Self {
        Self {
            predicate: Predicate {
                field: Field { offset: 48, width: 4 },
                mask: 0xf000_0080,
                expected: 0xf000_0000,
            },
            marked: 0xffff_ff7f,
            unmarked: [0xffff_ffff, 0xffff_feff, 0, 3],
            ..Self::modern()
        }
    }

    /// 40 bytes, as on i386 since 4.18: does not divide a page, so descriptors straddle frames.
    pub const fn straddling() -> Self {
        Self {
            descriptor_bytes: 40,
            predicate: Predicate {
                field: Field { offset: 24, width: 4 },
                mask: 0xf000_0080,
                expected: 0xf000_0000,
            },
            marked: 0xffff_ff7f,
            unmarked: [0xffff_ffff, 0xffff_feff, 0, 3],
            order: Field { offset: 20, width: 4 },
            references: Field { offset: 28, width: 4 },
            max_order: ORDER_10,
        }
    }

    /// The same with members that are not aligned to their width, so that they straddle frames themselves. No kernel
    /// does this; a profile may say so.
    pub const fn unaligned() -> Self {
        Self {
            descriptor_bytes: 44,
            predicate: Predicate {
                field: Field { offset: 7, width: 8 },
                mask: 0x00ff_0000_ff00_0000,
                expected: 0x00f0_0000_0a00_0000,
            },
            marked: 0x00f0_0000_0a00_0000,
            unmarked: [0, 0x00f0_0000_0b00_0000, 0x00f1_0000_0a00_0000, u64::MAX],
            order: Field { offset: 17, width: 2 },
            references: Field { offset: 21, width: 8 },
            max_order: ORDER_10,
        }
    }

    /// Every layout above.
    pub const ALL: [Self; 4] = [
        Self::modern(),
        Self::older(),
        Self::straddling(),
        Self::unaligned(),
    ];
}
