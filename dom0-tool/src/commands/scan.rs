//! `lacuna scan`: scans a domain (the engine does it) or a dump (done here).

use serde_json::{Value, json};

use super::cli::Scan;
use super::render::{dump_scan_json, scan::scanned_json};
use super::terminal::Terminal;
use super::words::duration;
use super::{DONE, Out, UNTIED};
use crate::failure::Failure;
use crate::ops::guest::{DumpFile, Guest, Live};
use crate::ops::scan::{Verdict, scan_dump, scan_guest};

/// Returns the answer and the exit status.
pub(super) fn run(arguments: &Scan, out: Out) -> Result<(Value, u8), Failure> {
    match arguments.guest.chosen()? {
        Guest::Domain(domain) => Ok((of_domain(arguments, &domain, out)?, DONE)),
        Guest::Dump(dump) => of_dump(arguments, &dump, out),
    }
}

fn of_domain(arguments: &Scan, domain: &str, out: Out) -> Result<Value, Failure> {
    let live = Live::open(domain)?;
    let bitmap = arguments.bitmap.as_deref();
    let scan = scan_guest(&live, arguments.paused, bitmap, &mut Terminal::new(out))?;
    let statistics = &scan.statistics;
    let mut answer = scanned_json(&scan.scanned);
    if let (Some(path), Some(frames)) = (bitmap, scan.bitmap_frames) {
        out.line(format!("bitmap      {frames} frames, {}", path.display()));
        answer["bitmap_frames"] = json!(frames);
    }
    answer["guest_free_before"] = json!(statistics.guest_free_before);
    answer["guest_free_after"] = json!(statistics.guest_free_after);
    answer["scan_ns"] = json!(statistics.scan_ns);
    answer["scan_descriptors"] = json!(statistics.scan_descriptors);
    answer["domain"] = json!(live.domain.id.get());
    out.line(format!("time        {}", duration(statistics.scan_ns)));
    Ok(answer)
}

fn of_dump(arguments: &Scan, dump: &DumpFile, out: Out) -> Result<(Value, u8), Failure> {
    let bitmap = arguments.bitmap.as_deref();
    let mut terminal = Terminal::new(out);
    terminal.is_scan = true;
    let scan = scan_dump(dump, &(&arguments.layout).into(), bitmap, &mut terminal)?;
    out.line(format!("verdict     {}", scan.verdict.name()));
    if let Some(path) = bitmap {
        out.line(format!("bitmap      {} frames, {}", scan.frames, path.display()));
    }
    let mut status = DONE;
    if scan.verdict == Verdict::Untied {
        status = UNTIED;
        out.line("note        no register ties this kernel to a processor: if it was replaced (kexec, a crash kernel), all of");
        out.line("            this is wrong; --registers FILE or --cr3 HEX makes sure (exit status 9)");
    }
    Ok((dump_scan_json(&scan), status))
}
