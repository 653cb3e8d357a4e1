//! Which guest-physical bytes are where in the file.

/// A run of guest-physical memory in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first guest-physical byte.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Where the first is in the file.
    pub offset: u64,
}

impl Extent {
    const fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// Extents, sorted and without overlap.
#[derive(Debug)]
pub(super) struct Extents {
    sorted: Vec<Extent>,
    /// The one that was used last: neighbours are asked for together.
    last: usize,
}

impl Extents {
    /// Sorts `extents`. Where two overlap, as a core with virtual mappings has them, the one that begins
    /// first counts, and of the other what reaches beyond it.
    pub(super) fn new(mut extents: Vec<Extent>) -> Self {
        extents.sort_by_key(|extent| (extent.start, std::cmp::Reverse(extent.bytes)));
        let mut sorted: Vec<Extent> = Vec::with_capacity(extents.len());
        for mut extent in extents {
            if let Some(before) = sorted.last_mut() {
                let end = before.end();
                if extent.end() <= end {
                    continue;
                }
                if extent.start < end {
                    let cut = end - extent.start;
                    extent.start = end;
                    extent.bytes -= cut;
                    extent.offset = extent.offset.saturating_add(cut);
                }
                if extent.start == end && extent.offset == before.offset.saturating_add(before.bytes) {
                    before.bytes += extent.bytes;
                    continue;
                }
            }
            if extent.bytes > 0 {
                sorted.push(extent);
            }
        }
        Self { sorted, last: 0 }
    }

    /// What of these does not overlap with `others`.
    pub(super) fn without(self, others: &Self) -> Self {
        let mut sorted = Vec::new();
        for mut extent in self.sorted {
            let from = others.sorted.partition_point(|other| other.end() <= extent.start);
            for other in &others.sorted[from..] {
                if other.start >= extent.end() {
                    break;
                }
                if other.start > extent.start {
                    sorted.push(Extent {
                        bytes: other.start - extent.start,
                        ..extent
                    });
                }
                let cut = other.end().min(extent.end()) - extent.start;
                extent.start += cut;
                extent.offset = extent.offset.saturating_add(cut);
                extent.bytes -= cut;
            }
            if extent.bytes > 0 {
                sorted.push(extent);
            }
        }
        Self { sorted, last: 0 }
    }

    pub(super) fn as_slice(&self) -> &[Extent] {
        &self.sorted
    }

    /// One past the last byte.
    pub(super) fn end(&self) -> u64 {
        self.sorted.last().map_or(0, Extent::end)
    }

    /// Where the byte `at` is in the file, and how many follow it there.
    #[inline]
    pub(super) fn find(&mut self, at: u64) -> Option<(u64, u64)> {
        let inside = |extent: &Extent| {
            let distance = at.wrapping_sub(extent.start);
            (distance < extent.bytes).then(|| (extent.offset + distance, extent.bytes - distance))
        };
        if let Some(found) = self.sorted.get(self.last).and_then(inside) {
            return Some(found);
        }
        let after = self.sorted.partition_point(|extent| extent.start <= at);
        let index = after.checked_sub(1)?;
        let found = inside(&self.sorted[index])?;
        self.last = index;
        Some(found)
    }

    /// The first byte that is there, at `at` or after it.
    pub(super) fn next(&self, at: u64) -> Option<u64> {
        let after = self.sorted.partition_point(|extent| extent.end() <= at);
        self.sorted.get(after).map(|extent| extent.start.max(at))
    }
}
