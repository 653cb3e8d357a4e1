//! Addresses and numbers of guest memory, one type each, so that none can stand in for another.

use serde::{Deserialize, Serialize};

/// log2 of the size of a page frame, in bytes. x86 has had 4 KiB frames since the 80386 (Intel SDM volume 3,
/// 4.3).
pub const PAGE_SHIFT: u32 = 12;

/// Size of a page frame, in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// Bits that a physical address can have on amd64 (Intel SDM volume 3, 4.1.4: MAXPHYADDR is at most 52).
const PHYSICAL_BITS: u32 = 52;

/// A guest frame number: a guest-physical address divided by [`PAGE_SIZE`]. Linux calls the same number a
/// pfn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gfn(u64);

impl Gfn {
    /// One past the highest frame number that a 52-bit physical address can name.
    pub const LIMIT: u64 = 1 << (PHYSICAL_BITS - PAGE_SHIFT);

    /// Names frame `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first frame of the block of 2^`order` frames, aligned to its size, that this frame lies in.
    #[must_use]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.pages() - 1))
    }

    /// Whether a block of 2^`order` frames may begin here.
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.pages() - 1) == 0
    }

    /// The frame `pages` further on, or the highest number there is.
    #[must_use]
    pub const fn saturating_add(self, pages: u64) -> Self {
        Self(self.0.saturating_add(pages))
    }

    /// The guest-physical address of the frame's first byte; `None` past the 52-bit limit.
    pub const fn base(self) -> Option<GuestPhys> {
        if self.0 < Self::LIMIT {
            Some(GuestPhys(self.0 << PAGE_SHIFT))
        } else {
            None
        }
    }
}

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GuestPhys(u64);

impl GuestPhys {
    /// Names byte `address`.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The frame this byte lies in.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The byte's offset within its frame, below [`PAGE_SIZE`].
    #[allow(clippy::cast_possible_truncation)] // the mask leaves 12 bits
    pub const fn offset(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// The address `bytes` further on; `None` on overflow.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// A virtual address of the guest's kernel, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GuestVirt(u64);

impl GuestVirt {
    /// Names virtual byte `address`.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on; `None` on overflow.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// The binary logarithm of a block's size in pages, as the buddy allocator uses it (Linux
/// `include/linux/mmzone.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Order(u8);

impl Order {
    /// A single page.
    pub const PAGE: Self = Self(0);
    /// 512 pages: what one 2 MiB entry of the p2m covers.
    pub const SUPERPAGE: Self = Self(9);
    /// The largest order accepted from a profile. Linux allows `MAX_ORDER` up to 13 to 15 on some
    /// architectures and 10 on x86; a bound keeps every shift defined and every block walk short.
    pub const MAX: Self = Self(18);

    /// The order `value`; `None` above [`Order::MAX`].
    #[allow(clippy::cast_possible_truncation)] // bounded by MAX
    pub const fn new(value: u64) -> Option<Self> {
        if value <= Self::MAX.0 as u64 {
            Some(Self(value as u8))
        } else {
            None
        }
    }

    /// The logarithm.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Pages in a block of this order.
    pub const fn pages(self) -> u64 {
        1 << self.0
    }
}

impl TryFrom<u8> for Order {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        Self::new(u64::from(value)).ok_or("order above 18")
    }
}

impl From<Order> for u8 {
    fn from(order: Order) -> Self {
        order.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_begins_where_its_order_allows() {
        let order = Order::new(4).expect("4 is an order");
        assert_eq!(Gfn::new(0x123).align_down(order), Gfn::new(0x120));
        assert!(Gfn::new(0x120).is_aligned(order));
        assert!(!Gfn::new(0x128).is_aligned(order));
    }

    #[test]
    fn numbers_past_the_limit_have_no_address() {
        assert_eq!(Gfn::new(Gfn::LIMIT).base(), None);
        assert_eq!(
            Gfn::new(Gfn::LIMIT - 1).base(),
            Some(GuestPhys::new((1 << 52) - 4096))
        );
        assert_eq!(Order::new(19), None);
    }
}
