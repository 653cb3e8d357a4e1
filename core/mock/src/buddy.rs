//! The mock kernel's allocator: the truth about which pages are free.
//!
//! Pure bookkeeping. What it does to descriptors and counters in guest memory is [`super::MockGuest`]'s part.

use std::collections::BTreeSet;

/// A binary buddy allocator over one zone.
#[derive(Clone, Debug)]
pub(super) struct Buddy {
    first: u64,
    end: u64,
    max_order: u8,
    /// Heads of free blocks, by order.
    free: Vec<BTreeSet<u64>>,
}

/// What one operation did to the free blocks, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A block left the free list.
    Removed { head: u64, order: u8 },
    /// A block entered it.
    Added { head: u64, order: u8 },
}

impl Buddy {
    /// An allocator for frames `first..end`, none of them free yet.
    pub(super) fn new(first: u64, end: u64, max_order: u8) -> Self {
        Self {
            first,
            end,
            max_order,
            free: (0..=max_order).map(|_| BTreeSet::new()).collect(),
        }
    }

    pub(super) const fn holds(&self, gfn: u64) -> bool {
        self.first <= gfn && gfn < self.end
    }

    /// Takes a block of `order` out: the lowest, or the highest, of the smallest that will do.
    pub(super) fn take(&mut self, order: u8, highest: bool) -> Option<(u64, Vec<Change>)> {
        let (found, head) = (order..=self.max_order).find_map(|candidate| {
            let set = self.free.get(usize::from(candidate))?;
            let head = if highest { set.last() } else { set.first() };
            head.map(|head| (candidate, *head))
        })?;
        let mut changes = Vec::new();
        self.remove(head, found, &mut changes);
        let mut half = found;
        while half > order {
            half -= 1;
            self.add(head + (1 << half), half, &mut changes);
        }
        Some((head, changes))
    }

    /// Gives a block back and merges it with its free buddies.
    pub(super) fn give(&mut self, head: u64, order: u8) -> Vec<Change> {
        let mut changes = Vec::new();
        let (mut head, mut order) = (head, order);
        while order < self.max_order {
            let buddy = head ^ (1 << order);
            let Some(set) = self.free.get(usize::from(order)) else {
                break;
            };
            if !set.contains(&buddy) {
                break;
            }
            self.remove(buddy, order, &mut changes);
            head = head.min(buddy);
            order += 1;
        }
        self.add(head, order, &mut changes);
        changes
    }

    fn remove(&mut self, head: u64, order: u8, changes: &mut Vec<Change>) {
        if let Some(set) = self.free.get_mut(usize::from(order)) {
            set.remove(&head);
        }
        changes.push(Change::Removed { head, order });
    }

    fn add(&mut self, head: u64, order: u8, changes: &mut Vec<Change>) {
        if let Some(set) = self.free.get_mut(usize::from(order)) {
            set.insert(head);
        }
        changes.push(Change::Added { head, order });
    }

    /// The free block that `gfn` lies in.
    pub(super) fn block_of(&self, gfn: u64) -> Option<(u64, u8)> {
        (0..=self.max_order).find_map(|order| {
            let head = gfn & !((1 << order) - 1);
            self.free
                .get(usize::from(order))?
                .contains(&head)
                .then_some((head, order))
        })
    }

    /// Free blocks, by order and then by place.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, u8)> + '_ {
        (0..)
            .zip(&self.free)
            .flat_map(|(order, set)| set.iter().map(move |head| (*head, order)))
    }

    /// How many free blocks of `order` there are.
    pub(super) fn count(&self, order: u8) -> u64 {
        self.free
            .get(usize::from(order))
            .map_or(0, |set| set.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// The allocator never hands out a page twice, never loses one, and merges back to what it began
        /// with.
        #[test]
        fn pages_are_conserved(ops in prop::collection::vec((0_u8..5, any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut buddy = Buddy::new(0, 64, 4);
            for head in (0..64).step_by(16) { buddy.give(head, 4); }
            let mut held: BTreeMap<u64, u8> = BTreeMap::new();
            for (order, high, pick) in ops {
                if high || held.is_empty() {
                    if let Some((head, _)) = buddy.take(order, high) { held.insert(head, order); }
                } else {
                    let head = *held.keys().nth(pick.index(held.len())).expect("within length");
                    let order = held.remove(&head).expect("held");
                    buddy.give(head, order);
                }
                let mut covered = [0_u32; 64];
                for (head, order) in held.iter().map(|(head, order)| (*head, *order)).chain(buddy.blocks()) {
                    for page in head..head + (1 << order) { covered[usize::try_from(page).expect("small")] += 1; }
                }
                prop_assert!(covered.iter().all(|count| *count == 1));
            }
            for (head, order) in held { buddy.give(head, order); }
            prop_assert_eq!(buddy.count(4), 4);
        }
    }
}
