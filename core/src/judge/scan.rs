//! The scan: descriptors into the bitmap, beside the running guest.
//!
//! It only names candidates. A guest that allocates and frees while it is scanned leaves the bitmap wrong in
//! places; the share slice asks again.

use crate::{Bitmap, FreeCheck, Gfn, GuestMemory, UnknownReason, Verdict};

/// What one step of a scan did. All numbers but `next` and `descriptors` are pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStep {
    /// Where the next step has to begin; the end of the range when the scan is complete.
    pub next: u64,
    /// Pages in free blocks.
    pub free: u64,
    /// Pages in use.
    pub in_use: u64,
    /// Pages whose kernel has no descriptor for them.
    pub no_descriptor: u64,
    /// Pages whose descriptor contradicts itself or cannot be read; treated as in use.
    pub unknown: u64,
    /// Descriptors looked at: the work done.
    pub descriptors: u64,
    /// The step ended before a free block, as the bitmap has no memory for it ([`Bitmap::is_absent`]). The
    /// next step has to bring some.
    pub wants_memory: bool,
}

impl ScanStep {
    /// Goes on with what the next step did.
    pub const fn add(&mut self, step: &Self) {
        self.next = step.next;
        self.free += step.free;
        self.in_use += step.in_use;
        self.no_descriptor += step.no_descriptor;
        self.unknown += step.unknown;
        self.descriptors += step.descriptors;
    }
}

/// Walks a range of frames.
#[derive(Clone, Debug)]
pub struct Scanner<'p> {
    check: FreeCheck<'p>,
    /// The part of a free block that lies past the end of the last step: first frame and one past the last.
    rest: (u64, u64),
}

impl<'p> Scanner<'p> {
    /// A scanner that asks `check`.
    pub const fn new(check: FreeCheck<'p>) -> Self {
        Self { check, rest: (0, 0) }
    }

    /// Whether frame `at`, where the last step ended, lies within a free block that it met.
    pub const fn is_within_block(&self, at: u64) -> bool {
        self.rest.0 == at && at < self.rest.1
    }

    /// One past the last frame of the free block that reached past the end of the last step.
    pub(crate) const fn block_end(&self) -> u64 {
        self.rest.1
    }

    /// The check that it asks.
    pub(crate) const fn check(&mut self) -> &mut FreeCheck<'p> {
        &mut self.check
    }

    /// Scans `from..to`, looking at no more than `budget` descriptors, and brings the bitmap up to date for
    /// what it passed. The interior of a free block is not looked at: its head speaks for it.
    ///
    /// A block may reach past `to`; only its frames below `to` count, and the others if the next step of this
    /// scanner begins there. Otherwise a range should begin and end at multiples of the largest block, or
    /// cover all memory.
    pub fn step<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        bitmap: &Bitmap<'_>,
        from: Gfn,
        to: Gfn,
        budget: u64,
    ) -> ScanStep {
        let end = to.get().min(bitmap.gfns());
        let absent = bitmap.is_absent();
        let mut step = ScanStep::default();
        let mut at = from.get();
        let mut pen = Pen::at(at);
        if self.is_within_block(at) {
            let stop = self.rest.1.min(end);
            if absent {
                step.next = at;
                step.wants_memory = at < stop;
                return step;
            }
            step.free += stop.saturating_sub(at);
            pen.free(bitmap, stop);
            at = at.max(stop);
            self.rest.0 = at;
        }
        while at < end && step.descriptors < budget {
            // Most descriptors are those of pages in use: through them in one go.
            let limit = (end - at).min(budget - step.descriptors);
            let (in_use, verdict) = self.check.next_head(memory, Gfn::new(at), limit);
            step.descriptors += in_use;
            step.in_use += in_use;
            at += in_use;
            let Some(verdict) = verdict else { continue };
            step.descriptors += 1;
            match verdict {
                Verdict::Free { .. } if absent => {
                    // It is asked again, by a step that can write down the answer.
                    step.descriptors -= 1;
                    step.wants_memory = true;
                    break;
                }
                Verdict::Free { order, .. } => {
                    let block_end = at.saturating_add(order.pages());
                    let stop = block_end.min(end);
                    if block_end > end {
                        self.rest = (end, block_end);
                    }
                    step.free += stop - at;
                    pen.not_free(bitmap, at);
                    pen.free(bitmap, stop);
                    at = stop;
                }
                Verdict::InUse(_) => {
                    step.in_use += 1;
                    at += 1;
                }
                Verdict::Unknown(UnknownReason::NoDescriptor { next }) => {
                    let stop = next.get().min(end);
                    step.no_descriptor += stop - at;
                    at = stop;
                }
                Verdict::Unknown(_) => {
                    step.unknown += 1;
                    at += 1;
                }
            }
        }
        if !absent {
            pen.not_free(bitmap, at);
            pen.lift(bitmap);
        }
        step.next = at;
        step
    }
}

/// Writes the bitmap from left to right, a word at a time: where memory is fragmented, one write serves many
/// runs.
#[derive(Clone, Copy, Debug)]
struct Pen {
    /// The first frame that is not written yet; those before `at` are in `bits`.
    from: u64,
    /// Where it has come to, in the same word as `from`.
    at: u64,
    /// The free frames of that word.
    bits: u64,
}

impl Pen {
    const fn at(frame: u64) -> Self {
        Self {
            from: frame,
            at: frame,
            bits: 0,
        }
    }

    /// Frames up to `to` are free.
    #[inline]
    fn free(&mut self, bitmap: &Bitmap<'_>, to: u64) {
        self.go(bitmap, to, u64::MAX);
    }

    /// Frames up to `to` are not free.
    #[inline]
    fn not_free(&mut self, bitmap: &Bitmap<'_>, to: u64) {
        self.go(bitmap, to, 0);
    }

    /// Most runs end in the word in which they begin: nothing is written then.
    #[expect(
        clippy::inline_always,
        reason = "twice for each free block; a call costs more than this does"
    )]
    #[inline(always)]
    fn go(&mut self, bitmap: &Bitmap<'_>, to: u64, ink: u64) {
        if to <= self.at {
            return;
        }
        if to <= self.at | 63 {
            self.bits |= ink & u64::MAX << (self.at & 63) & !(u64::MAX << (to & 63));
            self.at = to;
            return;
        }
        self.go_past_word(bitmap, to, ink);
    }

    /// The same, past the end of the word.
    fn go_past_word(&mut self, bitmap: &Bitmap<'_>, to: u64, ink: u64) {
        while self.at < to {
            let word_end = (self.at | 63).saturating_add(1);
            let first = u64::MAX << (self.at & 63);
            if to < word_end {
                self.bits |= ink & first & !(u64::MAX << (to & 63));
                self.at = to;
                return;
            }
            self.bits |= ink & first;
            bitmap.replace(self.at / 64, u64::MAX << (self.from & 63), self.bits);
            *self = Self::at(word_end);
        }
    }

    /// Writes what there is of the last word.
    fn lift(&self, bitmap: &Bitmap<'_>) {
        let mask = (u64::MAX << (self.from & 63)) & !(u64::MAX << (self.at & 63));
        if self.from < self.at {
            bitmap.replace(self.from / 64, mask, self.bits);
        }
    }
}
