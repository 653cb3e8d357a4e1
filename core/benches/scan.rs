//! Instructions per page of a scan, counted by valgrind and held against the bounds in `scan.bounds`.
//!
//! `cargo bench -p lacuna-core` runs this program, which runs itself under `valgrind --tool=callgrind` once
//! for each case and fails when a count is above its bound. Counts, unlike times, are the same on every
//! machine with the same compiler.
//!
//! The memory below the scan is flat and read the way `xen-module` reads a mapped frame: it compares the
//! frame with the last one, checks the range, and loads, or goes along a row of values after one look. What a
//! change of frame costs in Xen is not in the figures; there is one for each 64 descriptors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss
)]

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicU64;

use lacuna_core::{
    Bitmap, FreeCheck, Gfn, GuestMemory, GuestPhys, PAGE_SIZE, Predicate, Profile, ReadError, Row, ScanStep,
    Scanner,
};
use lacuna_mock::{Config, Layout, MapPages, MockGuest, Model};

/// 256 MiB: the map takes three 2 MiB pages, so every path is taken more than once.
const PAGES: u64 = 65_536;
const BOUNDS: &str = include_str!("scan.bounds");

/// Guest memory in one piece.
struct Flat {
    bytes: Vec<u8>,
    last: u64,
    changes: u64,
}

impl Flat {
    fn frame(&mut self, at: GuestPhys) -> Result<usize, ReadError> {
        let gfn = at.gfn();
        if gfn.get() != self.last {
            self.last = gfn.get();
            self.changes += 1;
        }
        let start = usize::try_from(at.get()).map_err(|_| ReadError::Absent(gfn))?;
        if start >= self.bytes.len() {
            return Err(ReadError::Absent(gfn));
        }
        Ok(start)
    }
}

impl GuestMemory for Flat {
    fn read(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), ReadError> {
        let start = self.frame(at)?;
        into.copy_from_slice(
            self.bytes
                .get(start..start + into.len())
                .ok_or(ReadError::CrossesFrame(at))?,
        );
        Ok(())
    }

    #[inline]
    fn read_value(&mut self, at: GuestPhys, width: u8) -> Result<u64, ReadError> {
        let start = self.frame(at)?;
        let width = usize::from(width);
        if at.offset() + width > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(at));
        }
        let bytes = self
            .bytes
            .get(start..start + 8)
            .ok_or(ReadError::Absent(at.gfn()))?;
        let word = u64::from_le_bytes(bytes.try_into().unwrap());
        Ok(match width {
            1 => word & 0xff,
            2 => word & 0xffff,
            4 => word & 0xffff_ffff,
            _ => word,
        })
    }

    fn count_failing(&mut self, row: Row, test: &Predicate) -> Result<u64, ReadError> {
        let start = self.frame(row.first)?;
        let stride = usize::try_from(row.stride).map_err(|_| ReadError::CrossesFrame(row.first))?;
        let last = usize::try_from(row.count - 1).map_err(|_| ReadError::CrossesFrame(row.first))?;
        let length = last * stride + usize::from(test.field.width);
        if row.first.offset() + length > PAGE_SIZE {
            return Err(ReadError::CrossesFrame(row.first));
        }
        let bytes = &self.bytes[start..start + length];
        Ok(match test.field.width {
            1 => count_failing::<1>(bytes, stride, test),
            2 => count_failing::<2>(bytes, stride, test),
            4 => count_failing::<4>(bytes, stride, test),
            _ => count_failing::<8>(bytes, stride, test),
        })
    }
}

/// A guest in the state that `case` names.
fn guest(case: &str) -> MockGuest {
    let windows = case == "windows";
    let mut guest = MockGuest::new(&Config {
        layout: if windows {
            Layout::windows()
        } else {
            Layout::modern()
        },
        model: if windows { Model::Runs } else { Model::Vmemmap },
        map_pages: MapPages::Large,
        pages: PAGES,
        host_free: 0,
        ..Config::default()
    });
    match case {
        // Just booted: all memory in the largest blocks; with Windows, on the list of zeroed pages, each page
        // for itself.
        "idle" | "windows" => {}
        // No memory left.
        "busy" => while (0..=10).rev().any(|order| guest.alloc(0, order).is_some()) {},
        // Every other page free: no two can merge.
        "fragmented" => {
            while guest.alloc(0, 0).is_some() {}
            let odd: Vec<Gfn> = guest
                .allocated()
                .map(|(head, _)| head)
                .filter(|head| head.get() % 2 == 1)
                .collect();
            for head in odd {
                guest.free(0, head);
            }
        }
        // Blocks of eight, every other one free: the look of a server after some days.
        "mixed" => {
            while guest.alloc(0, 3).is_some() {}
            let odd: Vec<Gfn> = guest
                .allocated()
                .map(|(head, _)| head)
                .filter(|head| head.get() % 16 == 8)
                .collect();
            for head in odd {
                guest.free(0, head);
            }
        }
        other => panic!("no case {other}"),
    }
    guest
}

/// How many values of `WIDTH` bytes, `stride` apart, fail `test`.
fn count_failing<const WIDTH: usize>(bytes: &[u8], stride: usize, test: &Predicate) -> u64 {
    let mut passed_over = 0;
    let mut at = 0;
    while let Some(value) = bytes.get(at..at + WIDTH) {
        let mut word = [0; 8];
        word[..WIDTH].copy_from_slice(value);
        if test.holds(u64::from_le_bytes(word)) {
            break;
        }
        passed_over += 1;
        at += stride;
    }
    passed_over
}

/// What callgrind counts: nothing outside this function.
#[inline(never)]
fn measured_scan(profile: &Profile, memory: &mut Flat, bitmap: &Bitmap<'_>) -> ScanStep {
    let mut scanner = Scanner::new(FreeCheck::new(profile));
    let mut at = 0;
    let mut last = ScanStep::default();
    while at < PAGES {
        // As the session does: 4,096 descriptors at a time.
        last = scanner.step(memory, bitmap, Gfn::new(at), Gfn::new(PAGES), 4096);
        at = last.next;
    }
    last
}

/// The child under valgrind.
fn run(case: &str) {
    let mut guest = guest(case);
    let profile = guest.profile();
    let mut memory = Flat {
        bytes: vec![0; usize::try_from(PAGES).unwrap() * PAGE_SIZE],
        last: u64::MAX,
        changes: 0,
    };
    // Only the kernel's own frames hold anything: the map and the page tables lie below 16 MiB.
    for gfn in 0..4096 {
        let start = usize::try_from(gfn).unwrap() * PAGE_SIZE;
        guest
            .read(
                Gfn::new(gfn).base().unwrap(),
                &mut memory.bytes[start..start + PAGE_SIZE],
            )
            .unwrap();
    }
    let words: Vec<AtomicU64> = (0..PAGES / 64).map(|_| AtomicU64::new(0)).collect();
    let bitmap = Bitmap::new(&words);
    black_box(measured_scan(&profile, &mut memory, &bitmap));
    assert_eq!(
        bitmap.count(Gfn::new(0), Gfn::new(PAGES)),
        guest.free_pages(),
        "the scan is wrong"
    );
}

/// Instructions inside [`measured_scan`] for `case`.
fn instructions(case: &str) -> u64 {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*measured_scan*")
        .arg(program)
        .args(["--case", case])
        .output()
        .expect("valgrind runs (install the package valgrind)");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{case} failed under valgrind:\n{told}");
    let count = told
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse().ok());
    count.unwrap_or_else(|| panic!("valgrind's answer has no count:\n{told}"))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(position) = arguments.iter().position(|argument| argument == "--case") {
        run(&arguments[position + 1]);
        return ExitCode::SUCCESS;
    }
    let mut within = true;
    for line in BOUNDS
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (case, bound) = line.split_once(' ').expect("a case and its bound");
        let bound: f64 = bound.trim().parse().expect("a bound is a number");
        let figure = instructions(case) as f64 / PAGES as f64;
        let verdict = if figure <= bound { "within" } else { "ABOVE" };
        println!("scan {case}: {figure:.3} instructions a page, {verdict} its bound of {bound}");
        within &= figure <= bound;
    }
    if within {
        ExitCode::SUCCESS
    } else {
        eprintln!("a scan takes more instructions than core/benches/scan.bounds allows");
        ExitCode::FAILURE
    }
}
