//! The free check: what the guest kernel's own descriptors say of a page.

use crate::guest::Directory;
use crate::judge::memory_map::{DescriptorError, Place};
use crate::{FreeRule, Gfn, GuestMemory, MemoryMapReader, Order, PassedOver, Profile};

/// What a page is. Only [`Verdict::Free`] is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lies in a free block.
    Free {
        /// The block's first frame.
        head: Gfn,
        /// The block's size.
        order: Order,
    },
    /// The kernel uses it, or keeps it where it cannot be told from used memory (per-CPU lists).
    InUse(InUseReason),
    /// The descriptors do not say. Treated as in use.
    Unknown(UnknownReason),
}

/// Why a page counts as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUseReason {
    /// Neither it nor any block that could contain it is marked free.
    NotBuddy,
    /// A free block begins before it, but ends before it, too.
    OutsideBlock,
    /// It is marked free, but a condition of its own says otherwise: ordinary where there are no blocks
    /// (Windows: a page just taken off the zeroed list, a ROM page).
    Condition {
        /// Position of the condition in the rule.
        index: u8,
        /// The value found.
        value: u64,
    },
}

/// Why a page's state cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownReason {
    /// The kernel has no descriptor for it. `next` is the first frame that may have one.
    NoDescriptor {
        /// Always past the frame asked for.
        next: Gfn,
    },
    /// The descriptor could not be read.
    Unreadable,
    /// A head is marked free with an order above the profile's largest: the value found.
    BadOrder(u64),
    /// A head is marked free at a frame that its order does not allow.
    Misaligned(Order),
    /// A block's head is marked free, but a condition does not hold: it is referenced.
    Condition {
        /// Position of the condition in the rule.
        index: u8,
        /// The value found.
        value: u64,
    },
}

/// Asks descriptors by the rule of a profile.
#[derive(Clone, Debug)]
pub struct FreeCheck<'p> {
    rule: &'p FreeRule,
    reader: MemoryMapReader<'p>,
}

impl<'p> FreeCheck<'p> {
    /// A check for `profile`. It remembers translations: use one for one pass, and make a new one for each
    /// slice.
    pub fn new(profile: &'p Profile) -> Self {
        Self {
            rule: &profile.free,
            reader: MemoryMapReader::new(profile),
        }
    }

    /// The largest order a block can have.
    pub const fn max_order(&self) -> Order {
        self.rule.max_order()
    }

    /// Where the descriptors of the `count` frames from `first` on lie; see [`MemoryMapReader::place`].
    pub(crate) fn place<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        first: Gfn,
        count: u64,
        directory: &mut Option<Directory>,
    ) -> Option<Place> {
        self.reader.place(memory, first, count, directory)
    }

    /// Whether a free block *begins* at `gfn`. Where there are no blocks: whether it is free.
    ///
    /// One member is read of a page in use; the others of a free block's head, and none of its interior.
    #[inline]
    pub fn head<M: GuestMemory>(&mut self, memory: &mut M, gfn: Gfn) -> Verdict {
        let descriptor = self.reader.open(gfn);
        match self.reader.member(memory, descriptor, self.rule.predicate.field) {
            Ok(value) if self.rule.predicate.holds(value) => self.marked(memory, gfn),
            Ok(_) => Verdict::InUse(InUseReason::NotBuddy),
            Err(error) => Verdict::Unknown(error.into()),
        }
    }

    /// Passes over pages that are not the first of a free block, from `gfn` on and `limit` at most, and then
    /// asks of the next one if that carries the mark. Returns how many were passed over, and the verdict on
    /// the one after them if it was asked for.
    #[inline]
    pub fn next_head<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        gfn: Gfn,
        limit: u64,
    ) -> (u64, Option<Verdict>) {
        match self.reader.pass_over(memory, gfn, limit, &self.rule.predicate) {
            Some(PassedOver {
                count,
                next_passes: true,
            }) => (count, Some(self.marked(memory, gfn.saturating_add(count)))),
            Some(PassedOver { count, .. }) if count > 0 => (count, None),
            _ => (0, Some(self.head(memory, gfn))),
        }
    }

    /// The rest of the check for a descriptor that carries the mark.
    ///
    /// The descriptor is opened once: a member that lies on another page makes a new translation, and is
    /// found by itself.
    fn marked<M: GuestMemory>(&mut self, memory: &mut M, gfn: Gfn) -> Verdict {
        let rule = self.rule;
        let descriptor = self.reader.open(gfn);
        for (index, condition) in (0..).zip(&rule.conditions) {
            let value = match self.reader.member(memory, descriptor, condition.field) {
                Ok(value) => value,
                Err(error) => return Verdict::Unknown(error.into()),
            };
            if !condition.holds(value) {
                return if rule.blocks.is_some() {
                    Verdict::Unknown(UnknownReason::Condition { index, value })
                } else {
                    Verdict::InUse(InUseReason::Condition { index, value })
                };
            }
        }
        let Some(blocks) = rule.blocks else {
            return Verdict::Free {
                head: gfn,
                order: Order::PAGE,
            };
        };
        let value = match self.reader.member(memory, descriptor, blocks.order) {
            Ok(value) => value,
            Err(error) => return Verdict::Unknown(error.into()),
        };
        match Order::new(value) {
            Some(order) if order <= blocks.max_order => {
                if gfn.is_aligned(order) {
                    Verdict::Free { head: gfn, order }
                } else {
                    Verdict::Unknown(UnknownReason::Misaligned(order))
                }
            }
            _ => Verdict::Unknown(UnknownReason::BadOrder(value)),
        }
    }

    /// Whether `gfn` lies in a free block, wherever that begins.
    ///
    /// Only a frame aligned to the block's order can be its head, so at most `max_order + 1` descriptors are
    /// read.
    pub fn page<M: GuestMemory>(&mut self, memory: &mut M, gfn: Gfn) -> Verdict {
        if self.rule.blocks.is_none() {
            return self.head(memory, gfn);
        }
        let mut previous = None;
        for exponent in 0..=self.max_order().get() {
            let Some(order) = Order::new(u64::from(exponent)) else {
                break;
            };
            let candidate = gfn.align_down(order);
            if previous == Some(candidate) {
                continue;
            }
            previous = Some(candidate);
            match self.head(memory, candidate) {
                Verdict::Free { head, order: found } if found >= order => {
                    return Verdict::Free { head, order: found };
                }
                // Blocks do not nest: a free block that ends before the page leaves no room for a larger one.
                Verdict::Free { .. } => return Verdict::InUse(InUseReason::OutsideBlock),
                Verdict::InUse(_) => {}
                unknown @ Verdict::Unknown(_) => return unknown,
            }
        }
        Verdict::InUse(InUseReason::NotBuddy)
    }
}

impl From<DescriptorError> for UnknownReason {
    fn from(error: DescriptorError) -> Self {
        match error {
            DescriptorError::NotMapped { next } => Self::NoDescriptor { next },
            DescriptorError::Unreadable => Self::Unreadable,
        }
    }
}
