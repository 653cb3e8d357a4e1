//! Whether the machine is in order between two operations.

use std::collections::BTreeSet;

use super::{Entry, Machine, Owner};

impl Machine {
    /// Whether every host frame is exactly where its owner says; the first that is not.
    pub(in super::super) fn misplaced(&self) -> Option<usize> {
        let mut seen: Vec<Owner> = std::vec![Owner::Neighbour; self.frames.len()];
        let mut shared = BTreeSet::new();
        for entry in self.entries() {
            match entry {
                Entry::Ram { frame, .. } => seen[*frame] = Owner::Guest,
                Entry::Shared(frame) => {
                    seen[*frame] = Owner::Shared;
                    shared.insert(*frame);
                }
                Entry::Hole | Entry::Zero => {}
            }
        }
        for frame in &self.free {
            seen[*frame] = Owner::Host;
        }
        for frame in &self.queue {
            seen[*frame] = Owner::Queued;
        }
        let placed = self.entries().filter(|entry| matches!(entry, Entry::Ram { .. }));
        let all_different = placed.count() + shared.len() + self.free.len() + self.queue.len()
            == seen.iter().filter(|owner| **owner != Owner::Neighbour).count();
        if !all_different {
            return Some(0);
        }
        (0..seen.len()).find(|at| self.frames[*at].owner != seen[*at])
    }
}
