//! `lacuna scan`: of a domain, by the engine, or of a dump, here.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lacuna_core::{Bitmap, FreeCheck, Gfn, PAGE_SIZE, Scanner};
use serde_json::{Value, json};

use super::{Out, duration, pages, profile, progress};
use crate::commands::cli::Scan;
use crate::failure::{Cause, Class, Failure};
use crate::ops::guest::{identify_kernel, open_domain, open_dump};
use crate::ops::paused::PausedGuest;
use crate::os::linux::contents::look_for_poison;
use crate::os::linux::identify::{architecture, paging_name};
use crate::os::linux::profile::{BuildError, Built};
use crate::source::GuestSource;
use crate::xen::engine::Scanned;

/// Descriptors looked at between two signs of life.
const CHUNK: u64 = 1 << 16;

/// Scans tried before a disagreement is believed. A guest that allocates gigabytes between two readings of its counters is
/// outside the tolerance once, hardly three times; one that was stopped between taking a block off its list and
/// counting that, for which a stopped guest gets no tolerance, is elsewhere at the next try; and one that has nothing free for an
/// instant, of which nothing can be told, has something then.
const TRIES: u32 = 3;
/// Between two of them.
const UNTIL_NEXT_TRY: Duration = Duration::from_millis(100);

pub(super) fn run(arguments: &Scan, out: Out) -> Result<Value, Failure> {
    match (&arguments.guest.domain, &arguments.guest.dump.dump) {
        (Some(domain), _) => of_domain(arguments, domain, out),
        (None, Some(file)) => of_dump(arguments, file, out),
        // The command line's rules leave no other case.
        _ => Err(Failure::plain(Class::Failed, "no guest was named")),
    }
}

/// Scans, and again where the guest's counters disagree, [`TRIES`] times in all.
pub(super) fn patiently(mut scan: impl FnMut() -> Result<Scanned, Failure>) -> Result<Scanned, Failure> {
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

fn of_domain(arguments: &Scan, domain: &str, out: Out) -> Result<Value, Failure> {
    let live = open_domain(domain)?;
    let _paused = arguments.paused.then(|| PausedGuest::pause(&live)).transpose()?;
    let spinner = progress::spinner("scanning");
    let scanned = live.engine.scan();
    spinner.finish_and_clear();
    let scanned = scanned?;
    show_scanned(&scanned, out);
    let mut answer = scanned_json(&scanned);
    if let Some(path) = &arguments.bitmap {
        let mut file = create(path)?;
        let covered = live
            .engine
            .read_bitmap::<Failure>(|bytes| file.write_all(bytes).map_err(|error| failed(path, &error)))?;
        file.flush().map_err(|error| failed(path, &error))?;
        out.line(format!("bitmap      {covered} frames, {}", path.display()));
        answer["bitmap_frames"] = json!(covered);
    }
    let statistics = live.engine.statistics()?;
    answer["guest_free_before"] = json!(statistics.guest_free_before);
    answer["guest_free_after"] = json!(statistics.guest_free_after);
    answer["scan_ns"] = json!(statistics.scan_ns);
    answer["scan_descriptors"] = json!(statistics.scan_descriptors);
    answer["domain"] = json!(live.domain.id.get());
    out.line(format!("time        {}", duration(statistics.scan_ns)));
    Ok(answer)
}

fn of_dump(arguments: &Scan, file: &Path, out: Out) -> Result<Value, Failure> {
    let mut memory = open_dump(file, &arguments.guest.dump, out)?;
    let cpus = memory.cpus.clone();
    let kernel = identify_kernel(&mut memory, &cpus)?;
    let built = profile::make(&mut memory, &kernel, &cpus, &arguments.layout, out)?;
    memory.check_whole(built.last_frame)?;

    let end = memory.end();
    let words: Vec<AtomicU64> = (0..end.get().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    let mut scanner = Scanner::new(FreeCheck::new(&built.profile));
    let mut scanned = Scanned::default();
    let bar = progress::over_memory("scanning");
    bar.set_length(end.get());
    let mut at = Gfn::new(0);
    while at < end {
        let step = scanner.step(&mut memory, &bitmap, at, end, CHUNK);
        scanned.free += step.free;
        scanned.in_use += step.in_use;
        scanned.no_descriptor += step.no_descriptor;
        scanned.unknown += step.unknown;
        // Every step goes on; were one not to, the scan would end here and not run for ever.
        at = Gfn::new(step.next.max(at.get() + 1));
        bar.set_position(at.get());
    }
    bar.finish_and_clear();
    show_scanned(&scanned, out);
    out.line(format!(
        "counters    {} by the guest's own",
        pages(built.counted.pages)
    ));
    let verdict = judge(
        &scanned,
        &built,
        cpus.iter().filter(|cpu| cpu.is_paging()).count(),
    )?;
    look_for_poison(&mut memory, spread(&words)).map_err(BuildError::from)?;
    if let Some(path) = &arguments.bitmap {
        write_bitmap(path, &words, end)?;
        out.line(format!("bitmap      {} frames, {}", end.get(), path.display()));
    }
    out.line(format!("verdict     {verdict}"));
    let mut answer = scanned_json(&scanned);
    let described: u64 = memory
        .extents()
        .iter()
        .map(|extent| extent.bytes / PAGE_SIZE as u64)
        .sum();
    answer["os"] = json!("linux");
    answer["kernel"] = json!(kernel.release);
    answer["arch"] = json!(architecture(kernel.space.levels));
    answer["paging"] = json!(paging_name(kernel.space.levels));
    answer["memory_model"] = json!(built.memory_model.name);
    answer["sources"] = profile::sources_json(&built.facts);
    answer["pages"] = json!(described);
    answer["free_pages"] = json!(scanned.free);
    answer["guest_free_pages"] = json!(built.counted.pages);
    answer["verdict"] = json!(verdict);
    answer["dump"] = json!({ "format": memory.format().name(), "remarks": memory.remarks });
    answer["bitmap_frames"] = json!(end.get());
    Ok(answer)
}

/// Holds the scan against the guest's own counters: "exact" where both are the same, "close" where they differ by no more
/// than one block for each virtual CPU that may have been stopped between taking a block off its list and counting it. A page
/// that cannot be told is no such difference: then something of the dump is missing.
fn judge(scanned: &Scanned, built: &Built, cpus: usize) -> Result<&'static str, Failure> {
    let (found, counted) = (scanned.free, built.counted.pages);
    if found == counted && found > 0 {
        return Ok("exact");
    }
    let largest = 1_u64 << built.profile.free.max_order().get();
    let slack = (cpus.max(1) as u64).saturating_mul(largest).min(counted / 4);
    if found > 0 && scanned.unknown == 0 && found.abs_diff(counted) <= slack {
        return Ok("close");
    }
    Err(Failure::new(
        Class::Refused,
        format!(
            "the scan found {found} free pages ({} pages could not be told), the guest's own counters say {counted}",
            scanned.unknown
        ),
        "was the guest stopped while the dump was taken, and is the dump whole? If so, its memory does not look as its kernel says",
    ))
}

/// Some free frames from all over the bitmap.
fn spread(words: &[AtomicU64]) -> impl Iterator<Item = Gfn> {
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

/// A bit a frame, lowest first, in bytes: as many as the frames need.
fn write_bitmap(path: &Path, words: &[AtomicU64], end: Gfn) -> Result<(), Failure> {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    let length = usize::try_from(end.get().div_ceil(8))
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let mut file = create(path)?;
    file.write_all(&bytes[..length])
        .map_err(|error| failed(path, &error))
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::plain(Class::Failed, format!("{}: {error}", path.display()))
}

/// Shows the figures of a scan.
pub(super) fn show_scanned(scanned: &Scanned, out: Out) {
    out.line(format!("free        {}", pages(scanned.free)));
    out.line(format!("in use      {}", pages(scanned.in_use)));
    out.line(format!(
        "no memory   {} frames without a descriptor",
        scanned.no_descriptor
    ));
    if scanned.unknown > 0 {
        out.line(format!("unknown     {} (left alone)", pages(scanned.unknown)));
    }
}

pub(super) fn scanned_json(scanned: &Scanned) -> Value {
    json!({
        "free": scanned.free,
        "in_use": scanned.in_use,
        "no_descriptor": scanned.no_descriptor,
        "unknown": scanned.unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disagreement_is_believed_the_third_time_and_anything_else_at_once() {
        let disagreed = || Failure::plain(Class::Refused, "counts").because(Cause::CountsDisagree);
        let other = || Failure::plain(Class::Refused, "dirty");
        let found = || Scanned {
            free: 7,
            ..Scanned::default()
        };
        // What each try comes to, and how many are made.
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
            let outcome = patiently(|| {
                tries += 1;
                outcomes[tries - 1].clone().map_or_else(|| Ok(found()), Err)
            });
            assert_eq!((tries, outcome.is_ok()), (expected, is_found));
        }
    }
}
