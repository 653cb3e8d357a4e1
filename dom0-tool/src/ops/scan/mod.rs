//! Scans a guest (the hypervisor does it) or a dump (done here).

mod verdict;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lacuna_core::abi::Statistics;
use lacuna_core::{Bitmap, Gfn, OfflineScan, PAGE_SIZE, scan_offline};

use super::guest::{DumpFile, Guest, Live, with_dumped_kernel, within_memory};
use super::paused::while_paused;
use super::{Observer, profile};
use crate::failure::{Cause, Class, Failure};
use crate::os::linux::contents::look_for_poison;
use crate::os::linux::profile::BuildError;
use crate::os::{BuiltProfile, Kernel, Sources};
use crate::output::{refuse_inputs, write_whole};
use crate::progress::Step;
use crate::source::dump::Dump;
use crate::source::{Cpu, GuestSource};
use crate::xen::engine::{EngineError, ScanFigures, ScanOf};

pub use verdict::Verdict;

/// Number of scans that have to disagree with the guest's counters before the profile is refused.
///
/// One disagreement may be chance. A guest that allocates gigabytes between two readings of its counters
/// exceeds the tolerance once, hardly three times. A paused guest gets no tolerance, and may have been
/// stopped between taking a block off its list and counting that; at the next try it is somewhere else. A
/// guest that has nothing free at one instant, so that nothing can be compared, has something free at the
/// next.
const TRIES: u32 = 3;
/// Time between two such scans.
const UNTIL_NEXT_TRY: Duration = Duration::from_millis(100);

/// A scan of a guest by the hypervisor.
#[derive(Clone, Debug)]
pub struct GuestScan {
    /// What it found.
    pub scanned: ScanFigures,
    /// The engine's counters after it.
    pub statistics: Statistics,
    /// Frames in the bitmap that was written, if one was.
    pub bitmap_frames: Option<u64>,
}

/// A scan of a dump.
#[derive(Clone, Debug)]
pub struct DumpScan {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// Its profile.
    pub built: BuiltProfile,
    /// What was found.
    pub scanned: OfflineScan,
    /// How far the guest's own counters confirm it.
    pub verdict: Verdict,
    /// Frames in the bitmap: one past the last that the guest can have.
    pub frames: u64,
    /// Pages that the dump holds.
    pub pages: u64,
    /// The format of the dump.
    pub format: &'static str,
    /// What is odd about the dump.
    pub remarks: Vec<String>,
}

/// Scans until the guest's counters agree, at most three times.
///
/// # Errors
/// What the last try returns.
pub fn until_admitted(
    mut scan: impl FnMut() -> Result<ScanFigures, Failure>,
) -> Result<ScanFigures, Failure> {
    let mut tries = 1;
    loop {
        match scan() {
            Err(failure) if failure.cause == Cause::CountsDisagree && tries < TRIES => {
                tries += 1;
                thread::sleep(UNTIL_NEXT_TRY);
            }
            outcome => return outcome,
        }
    }
}

/// Makes the hypervisor scan a guest, and writes what it found free to `bitmap`.
///
/// # Errors
/// The engine's refusal, or why the bitmap was not written.
pub fn scan_guest<O: Observer + ?Sized>(
    live: &Live,
    paused: bool,
    bitmap: Option<&Path>,
    observer: &mut O,
) -> Result<GuestScan, Failure> {
    let (scanned, bits) = while_paused(live, paused, || {
        observer.begin(Step::ScanGuest);
        let scanned = live.engine.scan(ScanOf::Everything);
        observer.end();
        let scanned = within_memory(scanned?, live.memory_pages(&live.engine.statistics()?)?);
        observer.scanned(&scanned);
        let bits = bitmap.map(|_| free_bits(live)).transpose()?;
        Ok((scanned, bits))
    })?;
    let mut bitmap_frames = None;
    if let (Some(path), Some((frames, bits))) = (bitmap, bits) {
        write_bitmap(path, &bits, frames)?;
        bitmap_frames = Some(frames);
    }
    Ok(GuestScan {
        scanned,
        statistics: live.engine.statistics()?,
        bitmap_frames,
    })
}

/// Returns what the last scan of a guest found free: how many frames it covers, and a bit for each, lowest
/// first.
///
/// # Errors
/// The engine's refusal.
pub fn free_bits(live: &Live) -> Result<(u64, Vec<u8>), EngineError> {
    live.engine.read_bitmap()
}

/// Scans a dump, and writes what was found free to `bitmap`.
///
/// # Errors
/// Why that is not known, or why the bitmap was not written.
pub fn scan_dump<O: Observer + ?Sized>(
    file: &DumpFile,
    sources: &Sources,
    bitmap: Option<&Path>,
    observer: &mut O,
) -> Result<DumpScan, Failure> {
    if let Some(bitmap) = bitmap {
        refuse_inputs(bitmap, profile::inputs(&Guest::Dump(file.clone()), sources))?;
    }
    let mut dump = file.open(observer)?;
    with_dumped_kernel(&mut dump, sources, observer, |dump, kernel, cpus, observer| {
        let built = kernel.build(dump, cpus, sources, observer)?;
        observer.built(&built);
        let (scan, bits) = scan_built(dump, kernel, built, cpus, observer)?;
        if let Some(path) = bitmap {
            write_bitmap(path, &bits, scan.frames)?;
        }
        Ok(scan)
    })
}

/// Scans a dump by a profile. Returns the bitmap, too.
fn scan_built<O: Observer + ?Sized>(
    dump: &mut Dump,
    kernel: Kernel,
    built: BuiltProfile,
    cpus: &[Cpu],
    observer: &mut O,
) -> Result<(DumpScan, Vec<u8>), Failure> {
    dump.check_whole(match &built {
        BuiltProfile::Linux(built) => built.last_frame,
        BuiltProfile::Windows { built, .. } => built.resolved.end(),
    })?;
    if let BuiltProfile::Windows { built, .. } = &built {
        let runs = built.resolved.runs.iter();
        dump.check_holes(runs.map(|run| (run.first, run.count)))?;
    }
    let end = dump.end();
    let words: Vec<AtomicU64> = (0..end.get().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    observer.begin(Step::ScanDump);
    let scanned = scan_offline(dump, built.profile(), &Bitmap::new(&words), end, |at| {
        observer.advance(at.get(), end.get());
    });
    observer.end();
    dump.check_unharmed()?;
    let scanned = scanned.map_err(|error| {
        Failure::plain(
            Class::Refused,
            format!("the guest's counter at {:#x} cannot be read", error.at.get()),
        )
    })?;
    observer.dump_scanned(&built, &scanned);
    let verdict = verdict::judge(&kernel, &built, &scanned, cpus)?;
    if let BuiltProfile::Linux(_) = &built {
        look_for_poison(dump, sample(&words)).map_err(BuildError::from)?;
    }
    let scan = DumpScan {
        kernel,
        built,
        scanned,
        verdict,
        frames: end.get(),
        pages: dump.bytes() / PAGE_SIZE as u64,
        format: dump.format().name(),
        remarks: dump.remarks.clone(),
    };
    let bits = words
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
    Ok((scan, bits.collect()))
}

/// Returns some free frames from all over the bitmap.
fn sample(words: &[AtomicU64]) -> impl Iterator<Item = Gfn> {
    let step = (words.len() / 1024).max(1);
    words
        .iter()
        .enumerate()
        .step_by(step)
        .filter_map(|(index, word)| {
            let word = word.load(Ordering::Relaxed);
            (word != 0).then(|| Gfn::new(index as u64 * 64 + u64::from(word.ilog2())))
        })
}

/// Writes a bitmap file (`docs/profile.md`): a bit a frame, lowest first, in as many bytes as `frames` need.
fn write_bitmap(path: &Path, bits: &[u8], frames: u64) -> Result<(), Failure> {
    let length = usize::try_from(frames.div_ceil(8)).unwrap_or(usize::MAX);
    let failed = |error: &io::Error| Failure::plain(Class::Failed, format!("{}: {error}", path.display()));
    let bits = &bits[..length.min(bits.len())];
    write_whole(path, |file| file.write_all(bits)).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disagreement_is_believed_the_third_time_and_anything_else_at_once() {
        let disagreed = || Failure::plain(Class::Refused, "counts").because(Cause::CountsDisagree);
        let other = || Failure::plain(Class::Refused, "dirty");
        let found = || ScanFigures {
            free: 7,
            ..ScanFigures::default()
        };
        // The result of each try, and how many are made.
        let cases: [(&[Option<Failure>], usize, bool); 4] = [
            (&[None], 1, true),
            (&[Some(disagreed()), Some(disagreed()), None], 3, true),
            (
                &[Some(disagreed()), Some(disagreed()), Some(disagreed()), None],
                3,
                false,
            ),
            (&[Some(disagreed()), Some(other()), None], 2, false),
        ];
        for (outcomes, expected, is_found) in cases {
            let mut tries = 0;
            let outcome = until_admitted(|| {
                tries += 1;
                outcomes[tries - 1].clone().map_or_else(|| Ok(found()), Err)
            });
            assert_eq!((tries, outcome.is_ok()), (expected, is_found));
        }
    }

    #[test]
    fn a_bitmap_file_has_a_bit_a_frame_and_no_more_bytes_than_that_takes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bits");
        for (frames, bytes) in [(64, 8), (65, 9), (72, 9), (128, 16)] {
            write_bitmap(&path, &[0x5a; 16], frames).expect("written");
            assert_eq!(std::fs::read(&path).expect("read"), vec![0x5a; bytes]);
        }
    }
}
