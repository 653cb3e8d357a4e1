//! `lacuna scan`: of a domain, by the engine, or of a dump, here.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use lacuna_core::{Bitmap, FreeCheck, Gfn, Scanner};
use serde_json::{Value, json};

use super::guest::{identify_kernel, open_domain, open_dump, registers_of};
use super::paused::PausedGuest;
use super::{Out, duration, pages, profile, progress};
use crate::cli::Scan;
use crate::memory::GuestSource;
use crate::report::{Class, Failure};
use crate::xen::engine::Scanned;

/// Descriptors looked at between two signs of life.
const CHUNK: u64 = 1 << 16;

pub(super) fn run(arguments: &Scan, out: Out) -> Result<Value, Failure> {
    match (&arguments.guest.domain, &arguments.guest.dump.dump) {
        (Some(domain), _) => of_domain(arguments, domain, out),
        (None, Some(file)) => of_dump(arguments, file, out),
        // The command line's rules leave no other case.
        _ => Err(Failure::plain(Class::Failed, "no guest was named")),
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
    let vcpus = registers_of(&memory);
    let kernel = identify_kernel(&mut memory, &vcpus)?;
    let built = profile::make(&mut memory, &kernel, &vcpus, &arguments.layout, out)?;

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
    if let Some(path) = &arguments.bitmap {
        let mut file = create(path)?;
        for word in &words {
            file.write_all(&word.load(Ordering::Relaxed).to_le_bytes())
                .map_err(|error| failed(path, &error))?;
        }
        out.line(format!("bitmap      {} frames, {}", end.get(), path.display()));
    }
    let mut answer = scanned_json(&scanned);
    answer["guest_free"] = json!(built.counted.pages);
    answer["bitmap_frames"] = json!(end.get());
    if scanned.free == built.counted.pages {
        Ok(answer)
    } else {
        // A dump stands still, so there is no tolerance.
        Err(Failure::new(
            Class::Refused,
            format!(
                "the scan found {} free pages, the guest's own counters say {}",
                scanned.free, built.counted.pages
            ),
            "was the guest stopped while the dump was taken? If so, its memory does not look as its kernel says",
        ))
    }
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
