//! A scan of all memory, one stretch after the other: what was found in each is kept for the next scan, and a
//! scan that may leave things out reads only what the guest has written to since
//! (`core/src/judge/stretch.rs`).

use super::frames::hole_end;
use super::scanning::scan_step;
use crate::guest::Directory;
use crate::judge::stretch::{Record, STRETCH, closed_end, closed_start, take_written};
use crate::refusal::Refusal;
use crate::tables::{Part, bitmap_at};
use crate::{Domain, FreeCheck, Gfn, Profile, ScanStep, Scanner};

/// Pages that are read again in one go.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// One past the last.
    end: u64,
    /// How many of them the last scan found free.
    before: u64,
}

/// How the stretch under way is read.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// As a whole.
    Whole,
    /// Where it was written to; the pages under way.
    Changed(Option<Run>),
}

/// The stretch that a scan of all memory is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    first: u64,
    end: u64,
    /// What is found. Of a stretch that is read as a whole: so far.
    record: Record,
    reading: Reading,
}

/// How a scan of all memory goes through stretches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Follow {
    /// Records under another tag mean nothing.
    tag: u64,
    /// Whether what has not changed is left out.
    pub(super) is_partial: bool,
    /// The stretch under way, if there is going to be a record of it.
    stretch: Option<Stretch>,
}

/// What one call of the scan walks with.
#[derive(Debug)]
pub(super) struct Walker<'p> {
    pub(super) scanner: Scanner<'p>,
    directory: Option<Directory>,
    descriptor_bytes: u64,
    /// Frames of the largest block.
    block: u64,
}

impl<'p> Walker<'p> {
    /// A walker for the memory map that `profile` describes.
    pub(super) fn new(profile: &'p Profile) -> Self {
        let check = FreeCheck::new(profile);
        Self {
            block: check.max_order().pages(),
            scanner: Scanner::new(check),
            directory: None,
            descriptor_bytes: u64::from(profile.descriptor_bytes),
        }
    }
}

impl Follow {
    /// A scan that has not begun.
    pub(super) const fn new(tag: u64, is_partial: bool) -> Self {
        Self {
            tag,
            is_partial,
            stretch: None,
        }
    }

    /// Takes a step of a scan of all memory from frame `at` on, `end` being the last frame's successor.
    ///
    /// # Errors
    /// As [`scan_step`].
    pub(super) fn step<D: Domain>(
        &mut self,
        domain: &mut D,
        walker: &mut Walker<'_>,
        at: u64,
        end: u64,
        budget: u64,
    ) -> Result<ScanStep, Refusal> {
        let stretch_end = (at | (STRETCH - 1)).saturating_add(1).min(end);
        let is_within = |stretch: &Stretch| stretch.first <= at && at < stretch.end;
        if !self.stretch.as_ref().is_some_and(is_within) {
            self.stretch = None;
            // A larger block would lie across stretches.
            if at % STRETCH == 0 && walker.block <= STRETCH {
                let part = bitmap_at(domain, at);
                if let Some(step) = step_over_holes(domain, &part, at, end) {
                    return Ok(step);
                }
                if let Some(step) = self.enter(domain, walker, at, stretch_end) {
                    return Ok(step);
                }
            }
        }
        let Some(mut stretch) = self.stretch else {
            return scan_step(domain, &mut walker.scanner, at, stretch_end, budget);
        };
        let step = match stretch.reading {
            Reading::Whole => {
                let step = scan_step(domain, &mut walker.scanner, at, stretch_end, budget)?;
                stretch.record.free += step.free;
                stretch.record.no_descriptor += step.no_descriptor;
                stretch.record.unknown += step.unknown;
                step
            }
            Reading::Changed(run) => stretch.read_changed(domain, walker, at, run, budget)?,
        };
        self.stretch = Some(stretch);
        if step.next >= stretch.end {
            stretch.record.save(domain, stretch.first, self.tag);
            self.stretch = None;
        }
        Ok(step)
    }

    /// Enters the stretch that begins with frame `at`. Returns the step over it if nothing in it has changed.
    fn enter<D: Domain>(
        &mut self,
        domain: &mut D,
        walker: &mut Walker<'_>,
        at: u64,
        end: u64,
    ) -> Option<ScanStep> {
        let known = Record::load(domain, at, self.tag);
        let covered = end - at;
        let mut place = |count| {
            let directory = &mut walker.directory;
            walker
                .scanner
                .check()
                .place(domain, Gfn::new(at), count, directory)
        };
        // Of the last stretch the memory map may have all descriptors, and then fill an entry of 2 MiB, or only
        // those that there are frames for.
        let place = place(STRETCH).or_else(|| (covered < STRETCH).then(|| place(covered)).flatten());
        // From here on what is written counts for the next scan.
        let Some((place, written)) = place.and_then(|place| Some((place, take_written(domain, &place)?)))
        else {
            if known.is_some() {
                Record::forget(domain, at);
            }
            return None;
        };
        let same = known.filter(|known| self.is_partial && known.place == place && known.covered == covered);
        let mut stretch = Stretch {
            first: at,
            end,
            record: Record {
                place,
                covered,
                ..Record::default()
            },
            reading: Reading::Whole,
        };
        if let Some(mut record) = same {
            for (changed, written) in record.changed.iter_mut().zip(written) {
                *changed |= written;
            }
            if record.is_unchanged() {
                return Some(step_over(&record, end));
            }
            // Of pages without a descriptor, and unknown ones, only the number is known.
            if record.no_descriptor == 0 && record.unknown == 0 {
                stretch.record = record;
                stretch.reading = Reading::Changed(None);
            }
        }
        if known.is_some() {
            Record::forget(domain, at);
        }
        self.stretch = Some(stretch);
        None
    }
}

/// The step over a stretch that ends at `end`, of which all is known.
const fn step_over(record: &Record, end: u64) -> ScanStep {
    ScanStep {
        next: end,
        free: record.free,
        in_use: record.in_use(),
        no_descriptor: record.no_descriptor,
        unknown: record.unknown,
        descriptors: 1,
        wants_memory: false,
    }
}

/// Most holes that one step passes over.
const MOST_HOLES: u64 = 64;

/// The step over holes in guest-physical memory, one behind the other, from `at` on, which lies in `part` of
/// the bitmap. None if there is none, or the bitmap has memory there: something was free.
///
/// All at once, since to find that the bitmap has no memory takes longer than a look at a hole.
pub(super) fn step_over_holes<D: Domain>(
    domain: &mut D,
    part: &Part<D::Words>,
    at: u64,
    end: u64,
) -> Option<ScanStep> {
    if !part.is_absent() {
        return None;
    }
    let end = end.min(part.bitmap().gfns());
    let (mut next, mut looks) = (at, 0);
    while next < end && looks < MOST_HOLES {
        let past = hole_end(domain, next, end);
        if past == next {
            break;
        }
        next = past;
        looks += 1;
    }
    (next > at).then(|| ScanStep {
        next,
        no_descriptor: next - at,
        descriptors: looks,
        ..ScanStep::default()
    })
}

impl Stretch {
    /// Takes a step through the pages whose descriptors may have changed. What was found in all of the stretch
    /// is in the last one.
    fn read_changed<D: Domain>(
        &mut self,
        domain: &mut D,
        walker: &mut Walker<'_>,
        at: u64,
        run: Option<Run>,
        budget: u64,
    ) -> Result<ScanStep, Refusal> {
        let part = bitmap_at(domain, at);
        let bitmap = part.bitmap();
        let (from, mut run) = if let Some(run) = run {
            (at, run)
        } else {
            let changed = self.record.next_changed(at - self.first, walker.descriptor_bytes);
            let Some((first, last)) = changed else {
                self.record.changed = [0; 8];
                return Ok(step_over(&self.record, self.end));
            };
            let from = closed_start(&bitmap, self.first + first, walker.block).max(at);
            let end = closed_end(&bitmap, self.first + last, walker.block).min(self.end);
            let before = bitmap.count(Gfn::new(from), Gfn::new(end));
            (from, Run { end, before })
        };
        let mut step = scan_step(domain, &mut walker.scanner, from, run.end, budget)?;
        self.record.free += step.free;
        self.record.no_descriptor += step.no_descriptor;
        self.record.unknown += step.unknown;
        self.reading = Reading::Changed(Some(run));
        if step.next >= run.end {
            let scanner = &walker.scanner;
            if run.end < self.end && scanner.is_within_block(run.end) {
                // A block that is new: what the last scan found where it lies, and as far as a block of the
                // last scan reaches past its end, is no longer so.
                let end = closed_end(&bitmap, scanner.block_end(), walker.block).min(self.end);
                run.before += bitmap.count(Gfn::new(run.end), Gfn::new(end));
                run.end = end;
                self.reading = Reading::Changed(Some(run));
            } else {
                self.record.free = self.record.free.saturating_sub(run.before);
                self.reading = Reading::Changed(None);
            }
        }
        if step.next >= self.end {
            self.record.changed = [0; 8];
            step = ScanStep {
                descriptors: step.descriptors,
                ..step_over(&self.record, self.end)
            };
        } else {
            step = ScanStep {
                next: step.next,
                descriptors: step.descriptors.max(1),
                ..ScanStep::default()
            };
        }
        Ok(step)
    }
}
