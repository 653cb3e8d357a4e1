//! Follows a stream from xl's header to the end, passing on every byte.
//!
//! What is checked is what Xen's own checker (`tools/python/scripts/verify-stream-v2`) checks and this
//! direction needs: the three headers, known records, lengths that add up, types that exist, reserved fields
//! and padding of zero.

use std::fmt::Display;
use std::io::{self, Read, Write};

use thiserror::Error;

use super::tally::{PageType, Tally};

/// xl's header (`savefileheader_magic` in `tools/xl/xl.h`).
const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// xl's header after the magic: byte order, mandatory flags, optional flags, length of the configuration.
const XL_FIELDS: usize = 16;
/// Longest configuration believed.
const XL_CONFIGURATION: usize = 1 << 20;
/// `RESTORE_STREAM_IDENT` and `RESTORE_STREAM_VERSION` in `libxl_sr_stream_format.h`, big endian; options
/// none.
const LIBXL_HEADER: &[u8; 16] = b"LibxlFmt\0\0\0\x02\0\0\0\0";
/// `IHDR_MARKER`, and `IHDR_ID` big endian, in `xg_sr_stream_format.h`.
const LIBXC_MARK: &[u8; 12] = b"\xff\xff\xff\xff\xff\xff\xff\xffXENF";
/// The image header and the domain header.
const LIBXC_HEADERS: usize = 24 + 16;
/// Versions of the libxc stream that a 4.20 receiver takes.
const LIBXC_VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// `REC_LENGTH_MAX`.
const LONGEST: usize = 128 << 20;
/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;
/// The bit of a record's type that lets a receiver pass over it.
const OPTIONAL: u32 = 1 << 31;
/// Bytes of a page.
const PAGE: usize = 4096;
/// The frame number in an entry of a page-data record, and what lies between it and the type.
const PFN: u64 = (1 << 52) - 1;
const RESERVED: u64 = 0x0ff0_0000_0000_0000;

/// Names of libxc's records, by number (`REC_TYPE_*` in `xg_sr_stream_format.h`).
const LIBXC_RECORDS: &[&str] = &[
    "end",
    "page-data",
    "x86-pv-info",
    "x86-pv-p2m-frames",
    "x86-pv-vcpu-basic",
    "x86-pv-vcpu-extended",
    "x86-pv-vcpu-xsave",
    "shared-info",
    "x86-tsc-info",
    "hvm-context",
    "hvm-params",
    "toolstack",
    "x86-pv-vcpu-msrs",
    "verify",
    "checkpoint",
    "checkpoint-dirty-pfn-list",
    "static-data-end",
    "x86-cpuid-policy",
    "x86-msr-policy",
];
/// `REC_TYPE_XALLOC_ZERO`: pages without content have to read as zero. A stock receiver refuses it.
const XALLOC_ZERO: u32 = 0x4c41;
/// `REC_TYPE_STATIC_DATA_END`, before which it has to come.
const STATIC_DATA_END: u32 = 0x10;
/// What it is called.
pub(crate) const PROMISE: &str = "xalloc-zero";

/// What has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A page-data record was read, and is about to be passed on.
    Pages,
    /// The stream is over; xl's own words follow. The first are the leave for the receiver to let the guest
    /// run, about to be passed on: the guest stands still on both sides.
    Leave,
}

/// What is wrong with a stream.
#[derive(Debug, Error)]
pub(crate) enum StreamError {
    /// It cannot be read or passed on.
    #[error("{0}")]
    System(#[from] io::Error),
    /// It breaks the format.
    #[error("at byte {at}: {what}: expected {expected}, saw {seen}")]
    Format {
        /// The offset of the record or header.
        at: u64,
        /// What was looked at.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        seen: String,
    },
    /// It was to be cut off here.
    #[error("cut off on purpose")]
    Cut,
}

/// A source whose every byte is passed on, once the next ones are wanted.
struct Through<'a, R, W> {
    input: R,
    output: &'a mut W,
    buffer: Vec<u8>,
    at: u64,
}

impl<R: Read, W: Write> Through<'_, R, W> {
    /// Returns the next `length` bytes. The ones before are passed on first.
    fn next(&mut self, length: usize) -> Result<&[u8], StreamError> {
        self.pass()?;
        self.buffer.resize(length, 0);
        if let Err(error) = self.input.read_exact(&mut self.buffer) {
            self.buffer.clear();
            return Err(error.into());
        }
        self.at += length as u64;
        Ok(&self.buffer)
    }

    /// Passes on what was read last.
    fn pass(&mut self) -> Result<(), StreamError> {
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn format(&self, what: &'static str, expected: &dyn Display, seen: &dyn Display) -> StreamError {
        StreamError::Format {
            at: self.at - self.buffer.len() as u64,
            what,
            expected: expected.to_string(),
            seen: seen.to_string(),
        }
    }
}

/// Follows `input` to its end, passes all of it on to `output`, and counts it in `tally`. `reached` is called
/// at each [`Moment`]; it may wait there, and an error of its ends the following at once, without passing the
/// record on.
///
/// # Errors
/// [`StreamError`]. What was read of a damaged stream has been passed on; the rest has not.
pub(crate) fn follow(
    input: impl Read,
    output: &mut impl Write,
    tally: &mut Tally,
    reached: &mut dyn FnMut(Moment, &Tally) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let mut stream = Through {
        input,
        output,
        buffer: Vec::new(),
        at: 0,
    };
    let ended = records(&mut stream, tally, reached);
    match ended {
        // Nothing more than half of the record arrives on the other side: that is what a cut line leaves.
        Err(StreamError::Cut) => {
            let half = stream.buffer.len() / 2;
            stream.buffer.truncate(half);
            stream.pass()?;
            Err(StreamError::Cut)
        }
        Err(error @ StreamError::Format { .. }) => {
            stream.pass()?;
            Err(error)
        }
        other => other,
    }
}

fn records<R: Read, W: Write>(
    stream: &mut Through<'_, R, W>,
    tally: &mut Tally,
    reached: &mut dyn FnMut(Moment, &Tally) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let header = stream.next(XL_MAGIC.len() + XL_FIELDS)?;
    let known = header.starts_with(XL_MAGIC);
    let length = word(header, XL_MAGIC.len() + 12) as usize;
    if !known || length > XL_CONFIGURATION {
        return Err(stream.format("xl's header", &"a saved domain with its configuration", &length));
    }
    stream.next(length)?;
    let start = stream.at;
    if stream.next(LIBXL_HEADER.len())? != LIBXL_HEADER {
        return Err(stream.format("libxl's header", &"version 2, no options", &"something else"));
    }
    loop {
        let header = stream.next(ALIGNMENT)?;
        let (kind, length) = (word(header, 0), word(header, 4) as usize);
        match kind {
            0 if length == 0 => break,
            1 if length == 0 => libxc(stream, tally, reached)?,
            // The device model's state, and what checkpoints add.
            2..=5 if length <= LONGEST => {
                tally.record("libxl");
                stream.next(length.next_multiple_of(ALIGNMENT))?;
            }
            _ => {
                return Err(stream.format(
                    "libxl's record",
                    &"type 0 to 5",
                    &format!("{kind}, {length} bytes"),
                ));
            }
        }
    }
    stream.pass()?;
    tally.end(stream.at - start);
    let mut rest = [0; PAGE];
    let mut first = true;
    loop {
        let read = stream.input.read(&mut rest)?;
        if read == 0 {
            return Ok(());
        }
        if std::mem::take(&mut first) {
            reached(Moment::Leave, tally)?;
        }
        stream.output.write_all(&rest[..read])?;
        stream.output.flush()?;
    }
}

/// The part of the stream that libxenguest writes: memory and processors.
fn libxc<R: Read, W: Write>(
    stream: &mut Through<'_, R, W>,
    tally: &mut Tally,
    reached: &mut dyn FnMut(Moment, &Tally) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let headers = stream.next(LIBXC_HEADERS)?;
    let marked = headers.starts_with(LIBXC_MARK);
    let version = word(headers, LIBXC_MARK.len()).swap_bytes();
    if !marked || !LIBXC_VERSIONS.contains(&version) {
        return Err(stream.format("libxc's header", &"version 2 or 3", &version));
    }
    tally.version = version;
    let (mut promised, mut static_data) = (false, true);
    loop {
        let header = stream.next(ALIGNMENT)?;
        let (kind, length) = (word(header, 0), word(header, 4) as usize);
        let name = match LIBXC_RECORDS.get(kind as usize) {
            Some(name) => name,
            None if kind == XALLOC_ZERO => PROMISE,
            None if kind & OPTIONAL != 0 => "optional",
            None => return Err(stream.format("libxc's record", &"a known type", &kind)),
        };
        if length > LONGEST {
            return Err(stream.format("a record's length", &"at most 128 MiB", &length));
        }
        tally.record(name);
        let padded = length.next_multiple_of(ALIGNMENT);
        if stream.next(padded)?[length..].iter().any(|byte| *byte != 0) {
            return Err(stream.format("a record's padding", &"zeroes", &"something else"));
        }
        match kind {
            0 if length == 0 => return Ok(()),
            0 => return Err(stream.format("the end record", &"no content", &length)),
            1 => {
                pages(stream, length, tally)?;
                reached(Moment::Pages, tally)?;
            }
            XALLOC_ZERO if length != 0 || promised || !static_data => {
                return Err(stream.format(
                    "the record of zero pages",
                    &"one without content, ahead of the end of static data",
                    &format!("{length} bytes, one before: {promised}, in static data: {static_data}"),
                ));
            }
            XALLOC_ZERO => promised = true,
            STATIC_DATA_END => static_data = false,
            _ => {}
        }
    }
}

/// The page-data record that was just read.
fn pages<R: Read, W: Write>(
    stream: &Through<'_, R, W>,
    length: usize,
    tally: &mut Tally,
) -> Result<(), StreamError> {
    let damaged = |what, expected: &str, seen: String| Err(stream.format(what, &expected, &seen));
    let record = &stream.buffer[..length];
    let Some((header, entries)) = record.split_at_checked(ALIGNMENT) else {
        return damaged("page data", "a count", format!("{length} bytes"));
    };
    let count = word(header, 0) as usize;
    if word(header, 4) != 0 {
        return damaged("page data's reserved field", "0", word(header, 4).to_string());
    }
    let Some((entries, mut data)) = entries.split_at_checked(count * size_of::<u64>()) else {
        return damaged(
            "page data",
            "an entry for each page",
            format!("{count} in {length} bytes"),
        );
    };
    let entries = entries
        .chunks_exact(size_of::<u64>())
        .map(|entry| u64::from_le_bytes(entry.try_into().unwrap_or_default()));
    let first = entries.clone().next().unwrap_or_default();
    tally.begin_record(length + ALIGNMENT, count, first & PFN);
    for entry in entries {
        let Some(kind) = PageType::of(entry).filter(|_| entry & RESERVED == 0) else {
            return damaged(
                "a page's type",
                "one that an HVM guest has",
                format!("{entry:#x}"),
            );
        };
        let content = if kind == PageType::Data {
            let Some((page, rest)) = data.split_at_checked(PAGE) else {
                return damaged(
                    "page data",
                    "content for each page",
                    format!("{count} in {length} bytes"),
                );
            };
            data = rest;
            page
        } else {
            &[]
        };
        if !tally.page(entry & PFN, kind, content) {
            return damaged("a frame number", "one below 2^24", format!("{entry:#x}"));
        }
    }
    if !data.is_empty() {
        return damaged(
            "page data",
            "nothing behind the pages",
            format!("{} bytes", data.len()),
        );
    }
    Ok(())
}

/// Returns the little-endian word at `at`, which lies inside.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn page_data(entries: &[(u64, Option<u8>)]) -> Vec<u8> {
        let mut content = (entries.len() as u64).to_le_bytes().to_vec();
        for (entry, _) in entries {
            content.extend(entry.to_le_bytes());
        }
        for fill in entries.iter().filter_map(|(_, fill)| *fill) {
            content.extend([fill; PAGE]);
        }
        record(1, &content)
    }

    const SKIPPED: u64 = 0xe << 60;

    /// A stream with these records of libxc's, and xl's leave behind it.
    fn stream(records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = XL_MAGIC.to_vec();
        for field in [0x1234_5678_u32, 3, 0, 5] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(b"a=b\n\0");
        bytes.extend(LIBXL_HEADER);
        bytes.extend(record(1, &[]));
        bytes.extend(LIBXC_MARK);
        bytes.extend([0, 0, 0, 3]);
        bytes.extend([0; 24]);
        bytes.extend(records.concat());
        bytes.extend(record(0, &[]));
        bytes.extend(record(0, &[]));
        bytes.extend(b"go");
        bytes
    }

    fn run(bytes: &[u8]) -> (Result<(), StreamError>, Tally, Vec<u8>, Vec<Moment>) {
        let (mut tally, mut output, mut moments) = (Tally::default(), Vec::new(), Vec::new());
        let outcome = follow(bytes, &mut output, &mut tally, &mut |moment, _| {
            moments.push(moment);
            Ok(())
        });
        (outcome, tally, output, moments)
    }

    #[test]
    fn a_stream_is_passed_on_unchanged_and_counted_by_iteration() {
        let bytes = stream(&[
            page_data(
                &[(0, Some(1)), (1, Some(0)), (2, None), (3 | SKIPPED, None)].map(|(entry, fill)| {
                    // Frame 2 is known to the stream without content.
                    (if entry == 2 { entry | 0xf << 60 } else { entry }, fill)
                }),
            ),
            page_data(&[(1, Some(7)), (3 | SKIPPED, None)]),
        ]);
        let (outcome, tally, output, moments) = run(&bytes);
        outcome.unwrap();
        assert_eq!(output, bytes);
        assert_eq!(moments, [Moment::Pages, Moment::Pages, Moment::Leave]);
        let report = tally.report();
        assert_eq!((report.version, report.ended), (3, true));
        let seen: Vec<_> = report
            .iterations
            .iter()
            .map(|i| (i.data, i.zero, i.skipped, i.resent))
            .collect();
        assert_eq!(seen, [(2, 1, 1, 0), (1, 0, 1, 1)]);
        let bytes: Vec<_> = report.iterations.iter().map(|i| i.bytes).collect();
        let record = |entries: u64, pages: u64| 16 + 8 * entries + 4096 * pages;
        assert_eq!(bytes, [record(4, 2), record(2, 1)]);
    }

    #[test]
    fn a_promise_ahead_of_static_data_s_end_is_a_record() {
        let promise = [record(XALLOC_ZERO, &[]), record(STATIC_DATA_END, &[])].concat();
        let (outcome, tally, ..) = run(&stream(&[promise, page_data(&[(5, Some(9))])]));
        outcome.unwrap();
        assert_eq!(tally.report().records.get(PROMISE), Some(&1));
    }

    #[test]
    fn an_iteration_may_end_with_a_full_record() {
        let upwards: Vec<_> = (0..1024).map(|gfn| (gfn | SKIPPED, None)).collect();
        let bytes = stream(&[page_data(&upwards), page_data(&[(7, Some(1))])]);
        let (outcome, tally, ..) = run(&bytes);
        outcome.unwrap();
        let seen: Vec<_> = tally
            .report()
            .iterations
            .iter()
            .map(|i| (i.data, i.skipped, i.bytes))
            .collect();
        assert_eq!(seen, [(0, 1024, 16 + 8192), (1, 0, 16 + 8 + 4096)]);
    }

    #[test]
    fn every_cut_short_stream_is_told_from_a_whole_one() {
        let bytes = stream(&[page_data(&[(5, Some(9))])]);
        let whole = bytes.len() - b"go".len();
        for length in 0..whole {
            let (outcome, tally, output, _) = run(&bytes[..length]);
            assert!(outcome.is_err() && !tally.report().ended, "{length} bytes");
            assert!(bytes.starts_with(&output));
        }
        let (outcome, tally, ..) = run(&bytes[..whole]);
        assert!(outcome.is_ok() && tally.report().ended);
    }

    #[test]
    fn damage_is_seen() {
        let good = page_data(&[(5, Some(9))]);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        for (what, damaged) in [
            ("type", with(0, 0x40)),
            ("count", with(8, 2)),
            ("reserved field", with(12, 1)),
            ("page type", with(23, 0xd0)),
            ("reserved bits", with(22, 0xff)),
            ("excess", page_data(&[(5 | SKIPPED, Some(9))])),
            ("frame", page_data(&[(1 << 40, Some(9))])),
            ("promise with content", record(XALLOC_ZERO, &[0; 8])),
            (
                "second promise",
                [record(XALLOC_ZERO, &[]), record(XALLOC_ZERO, &[])].concat(),
            ),
            (
                "promise after static data",
                [record(STATIC_DATA_END, &[]), record(XALLOC_ZERO, &[])].concat(),
            ),
        ] {
            let bytes = stream(&[damaged]);
            let (outcome, ..) = run(&bytes);
            assert!(
                matches!(outcome, Err(StreamError::Format { .. })),
                "{what}: {outcome:?}"
            );
        }
    }

    #[test]
    fn a_cut_leaves_half_a_record() {
        let bytes = stream(&[page_data(&[(5, Some(9))]), page_data(&[(6, Some(9))])]);
        let (mut tally, mut output, mut seen) = (Tally::default(), Vec::new(), 0);
        let outcome = follow(&*bytes, &mut output, &mut tally, &mut |_, _| {
            seen += 1;
            if seen == 2 { Err(StreamError::Cut) } else { Ok(()) }
        });
        assert!(matches!(outcome, Err(StreamError::Cut)));
        assert!(bytes.starts_with(&output) && output.len() > PAGE && output.len() < bytes.len() - PAGE / 2);
    }
}
