//! What a stream held: pages of each kind by iteration, and the last word about each frame.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Frames that are kept account of: 64 GiB of guest memory.
const MOST_FRAMES: u64 = 1 << 24;
/// Pages in a full record (`MAX_BATCH_SIZE` in `xg_sr_common.h`).
const FULL: usize = 1024;

/// The kinds of page that an HVM guest's stream has (`XEN_DOMCTL_PFINFO_*` in Xen's `public/domctl.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageType {
    /// With its content.
    Data,
    /// Known to the stream, populated by the receiver, no content: XALLOC.
    Skipped,
    /// Not there: XTAB.
    Absent,
}

impl PageType {
    /// Returns the kind in an entry's highest four bits.
    pub(crate) fn of(entry: u64) -> Option<Self> {
        match entry >> 60 {
            0 => Some(Self::Data),
            0xe => Some(Self::Skipped),
            0xf => Some(Self::Absent),
            _ => None,
        }
    }
}

/// One pass over the guest's frames. Numbers of pages, and bytes with the records around them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Iteration {
    /// Sent with content.
    pub(crate) data: u64,
    /// Of those, all zero.
    pub(crate) zero: u64,
    /// Of those sent with content, sent with content before and not skipped since, which is how the sender
    /// counts.
    pub(crate) resent: u64,
    /// Skipped.
    pub(crate) skipped: u64,
    /// Not there.
    pub(crate) absent: u64,
    /// On the wire.
    pub(crate) bytes: u64,
}

/// What a stream held.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Of libxc's part.
    pub(crate) version: u32,
    /// From libxl's header to its end record.
    pub(crate) bytes: u64,
    /// Whether the end record was there.
    pub(crate) ended: bool,
    /// The passes. A full record before a step back in frame numbers, or a record that is not full, ends one;
    /// two passes of exactly full records that go on upwards would count as one.
    pub(crate) iterations: Vec<Iteration>,
    /// Records by name.
    pub(crate) records: BTreeMap<String, u64>,
    /// What was wrong with it.
    pub(crate) damage: Option<String>,
}

impl Report {
    /// Returns the sum over all passes of what `of` picks.
    pub(crate) fn sum(&self, of: impl Fn(&Iteration) -> u64) -> u64 {
        self.iterations.iter().map(of).sum()
    }
}

/// Bits in the account of a frame: what was said of it last, and whether its content was ever sent.
const LAST: u8 = 3;
const LAST_DATA: u8 = 1;
const LAST_SKIPPED: u8 = 2;
const LAST_ABSENT: u8 = 3;
const SENT: u8 = 1 << 2;

/// The account of every frame that the stream spoke of, from frame 0 on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// As kept in a file.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// For a file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns what the stream last said of `gfn`.
    pub(crate) fn last(&self, gfn: u64) -> Option<PageType> {
        match self.flags(gfn) & LAST {
            LAST_DATA => Some(PageType::Data),
            LAST_SKIPPED => Some(PageType::Skipped),
            LAST_ABSENT => Some(PageType::Absent),
            _ => None,
        }
    }

    /// Returns whether the content of `gfn` was ever sent.
    pub(crate) fn sent(&self, gfn: u64) -> bool {
        self.flags(gfn) & SENT != 0
    }

    fn flags(&self, gfn: u64) -> u8 {
        usize::try_from(gfn)
            .ok()
            .and_then(|at| self.0.get(at).copied())
            .unwrap_or(0)
    }
}

/// Counts a stream while it passes by.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Of libxc's part.
    pub(crate) version: u32,
    report: Report,
    frames: Frames,
    next: u64,
    fresh: bool,
}

impl Tally {
    /// Counts a record called `name`.
    pub(crate) fn record(&mut self, name: &str) {
        *self.report.records.entry(name.to_owned()).or_default() += 1;
    }

    /// Begins a page-data record of `pages` entries, the first for the frame `gfn`, that takes `bytes` on the
    /// wire.
    pub(crate) fn begin_record(&mut self, bytes: usize, pages: usize, gfn: u64) {
        if self.fresh || gfn < self.next || self.report.iterations.is_empty() {
            self.report.iterations.push(Iteration::default());
        }
        self.fresh = pages < FULL;
        if let Some(iteration) = self.report.iterations.last_mut() {
            iteration.bytes += bytes as u64;
        }
    }

    /// Counts a page; whether its number can be kept account of.
    pub(crate) fn page(&mut self, gfn: u64, kind: PageType, content: &[u8]) -> bool {
        let Some(at) = usize::try_from(gfn).ok().filter(|_| gfn < MOST_FRAMES) else {
            return false;
        };
        self.next = gfn + 1;
        if self.frames.0.len() <= at {
            self.frames.0.resize(at + 1, 0);
        }
        let flags = &mut self.frames.0[at];
        let Some(iteration) = self.report.iterations.last_mut() else {
            return false;
        };
        match kind {
            PageType::Data => {
                iteration.data += 1;
                iteration.resent += u64::from(*flags & SENT != 0 && *flags & LAST != LAST_SKIPPED);
                iteration.zero += u64::from(content.iter().all(|byte| *byte == 0));
                *flags = SENT | LAST_DATA;
            }
            PageType::Skipped => {
                iteration.skipped += 1;
                *flags = *flags & SENT | LAST_SKIPPED;
            }
            PageType::Absent => {
                iteration.absent += 1;
                *flags = *flags & SENT | LAST_ABSENT;
            }
        }
        true
    }

    /// The end record has been seen, after `bytes` bytes.
    pub(crate) fn end(&mut self, bytes: u64) {
        self.report.ended = true;
        self.report.bytes = bytes;
    }

    /// Pages sent with content so far.
    pub(crate) fn sent(&self) -> u64 {
        self.report.sum(|iteration| iteration.data)
    }

    /// Returns what the stream held so far.
    pub(crate) fn report(&self) -> Report {
        Report {
            version: self.version,
            ..self.report.clone()
        }
    }

    /// Returns the account of each frame so far.
    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }
}
