//! Descriptor layouts as real kernels have them: offsets and marks of several versions of Linux and of
//! Windows.

use lacuna_core::{Blocks, BytesRule, Field, FreeRule, Order, Predicate};

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
    /// Whether each page is marked for itself (Windows), and not the first of a block.
    pub per_page: bool,
    /// What else holds of every page of memory, and must for it to be free.
    pub constants: &'static [Predicate],
}

/// Order 10: the largest on x86 (Linux `include/linux/mmzone.h`, `MAX_PAGE_ORDER`).
const ORDER_10: Order = match Order::new(10) {
    Some(order) => order,
    None => Order::MAX,
};

impl Layout {
    /// The rule by which a profile calls this kernel's pages free.
    pub fn free_rule(&self) -> FreeRule {
        let conditions =
            core::iter::once(Predicate::zero(self.references)).chain(self.constants.iter().copied());
        let blocks = Blocks {
            order: self.order,
            max_order: self.max_order,
        };
        FreeRule {
            predicate: self.predicate,
            conditions: conditions.collect(),
            blocks: (!self.per_page).then_some(blocks),
            bytes: if self.per_page {
                BytesRule::Zero
            } else {
                BytesRule::Any
            },
        }
    }

    /// Linux 6.11 and later, amd64: 64 bytes, the top byte of `page_type` is compared with 0xf0
    /// (`PGTY_buddy`). Slab (0xf5), offline (0xf1) and unaccepted (0xf7) share bits with it.
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
            per_page: false,
            constants: &[],
        }
    }

    /// Linux 4.18 to 6.10, amd64: 64 bytes, `(page_type & 0xf0000080) == 0xf0000000`; memory holds
    /// 0xffffff7f. The other values: untyped, offline (bit 0x100 cleared), mapped once, mapped four times.
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
            per_page: false,
            constants: &[],
        }
    }

    /// The same with members that are not aligned to their width, so that they straddle frames themselves. No
    /// kernel does this; a profile may say so.
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
            per_page: false,
            constants: &[],
        }
    }

    /// Linux 2.6.18 to 2.6.37, i386: 32 bytes, bit 19 of the flags (`PG_buddy`).
    pub const fn flags_bit() -> Self {
        Self {
            descriptor_bytes: 32,
            predicate: Predicate {
                field: Field { offset: 0, width: 4 },
                mask: 1 << 19,
                expected: 1 << 19,
            },
            marked: 0x4008_0000,
            unmarked: [0x4000_0000, 0x4007_0068, 0, 0xfff7_ffff],
            order: Field { offset: 12, width: 4 },
            references: Field { offset: 4, width: 4 },
            ..Self::straddling()
        }
    }

    /// Windows 10 since 1703 and 11, x64: 48 bytes, `PageLocation` in the low bits of the byte at 0x22, `Rom`
    /// in the byte after it (`tests/windows/data/layouts.tsv`), and a bit at the end that says that there is
    /// a page.
    pub const fn windows() -> Self {
        Self {
            descriptor_bytes: 48,
            predicate: Predicate {
                field: Field {
                    offset: 0x22,
                    width: 1,
                },
                mask: 7,
                expected: 0,
            },
            marked: 0x08,
            // Active, free, standby, modified.
            unmarked: [0x16, 0x01, 0x0a, 0x03],
            order: Field { offset: 0, width: 8 },
            references: Field {
                offset: 0x20,
                width: 2,
            },
            max_order: ORDER_10,
            per_page: true,
            constants: &[
                Predicate {
                    field: Field {
                        offset: 0x23,
                        width: 1,
                    },
                    mask: 0x08,
                    expected: 0,
                },
                Predicate {
                    field: Field {
                        offset: 0x28,
                        width: 8,
                    },
                    mask: 1 << 54,
                    expected: 1 << 54,
                },
            ],
        }
    }

    /// Windows XP, x86 without PAE: 24 bytes, `PageLocation` in bits 8 to 10 of the long at 0x0c.
    pub const fn windows_xp() -> Self {
        Self {
            descriptor_bytes: 24,
            predicate: Predicate {
                field: Field {
                    offset: 0x0c,
                    width: 4,
                },
                mask: 0x700,
                expected: 0,
            },
            marked: 0x0008,
            unmarked: [0x0600, 0x0108, 0x0200, 0x0301],
            order: Field { offset: 0, width: 4 },
            references: Field {
                offset: 0x10,
                width: 2,
            },
            constants: &[],
            ..Self::windows()
        }
    }

    /// Every layout of a Linux kernel above, and the one of none.
    pub const ALL: [Self; 5] = [
        Self::modern(),
        Self::older(),
        Self::straddling(),
        Self::unaligned(),
        Self::flags_bit(),
    ];

    /// Those of Windows.
    pub const WINDOWS: [Self; 2] = [Self::windows(), Self::windows_xp()];
}
