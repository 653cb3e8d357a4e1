//! What a scan and rounds of shares take on guests from 1 GiB to 4 TiB: work, and instructions where valgrind
//! can count them in reasonable time.
//!
//! `cargo bench -p lacuna-core --bench scale -- --all` prints a line of JSON for each operation; without
//! `--all` only guests of up to 16 GiB. `cargo lab bench scale` makes a table and a plot of them. Nothing is
//! gated here: `core/mock/tests/scale.rs` does that.
//!
//! Instructions are the core's. The mock's own, of functions named `mock_…`, are left out, as are those that
//! the hypervisor would need for the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, ExitCode};

use lacuna_core::Session;
use lacuna_core::abi::Op;
use lacuna_mock::{LargeGuest, State, Work, operate, set_profile};

/// Sizes in GiB.
const SIZES: [u64; 6] = [1, 16, 64, 256, 1024, 4096];
/// The largest without `--all`.
const MOST_BY_DEFAULT: u64 = 16;
/// Free blocks of the largest guest of which valgrind counts instructions, some minutes for each operation.
const MOST_COUNTED: u64 = 2_200_000;
/// Free blocks of the largest guest that is measured at all.
const MOST_MEASURED: u64 = 140_000_000;

/// What is measured, in this order on the same guest: the first scan; the slices that share what it found; and
/// a search for more that finds nothing left to share.
const OPERATIONS: [(&str, Op); 3] = [
    ("scan", Op::Scan),
    ("share", Op::Share),
    ("share again", Op::Share),
];

/// What callgrind counts, but for what the mock does: nothing outside this function.
#[inline(never)]
fn measured_operation(session: &mut Session, guest: &mut LargeGuest, op: Op) -> Work {
    operate(session, guest, op).expect("the guest is as its profile says")
}

/// Carries out all operations. Returns the work, and the bytes that the hypervisor keeps.
fn run(gib: u64, state: State) -> (Vec<Work>, u64) {
    let mut guest = LargeGuest::new(gib, state);
    let mut session = Session::new();
    set_profile(&mut session, &mut guest);
    let all = OPERATIONS
        .iter()
        .map(|(_, op)| carried_out(&mut session, &mut guest, *op))
        .collect();
    assert_eq!(guest.zero_gfns(), guest.free_pages(), "not all is shared");
    (all, guest.tables_bytes())
}

fn carried_out(session: &mut Session, guest: &mut LargeGuest, op: Op) -> Work {
    operate(session, guest, op).expect("the guest is as its profile says")
}

/// The child under callgrind: the operations before `counted`, and then that one as it is to be counted, if
/// `is_counted`.
fn run_child(gib: u64, state: State, counted: usize, is_counted: bool) {
    let mut guest = LargeGuest::new(gib, state);
    let mut session = Session::new();
    set_profile(&mut session, &mut guest);
    for (_, op) in &OPERATIONS[..counted] {
        carried_out(&mut session, &mut guest, *op);
    }
    if is_counted {
        measured_operation(&mut session, &mut guest, OPERATIONS[counted].1);
    }
}

/// Instructions of the core for the operation at `counted`; `None` without valgrind.
///
/// A function named to callgrind switches counting over when it is entered, and back when it is left. So the
/// mock's functions are not counted within the operation, but are before it. What comes before is therefore
/// counted by itself, and taken off.
fn instructions(gib: u64, state: State, counted: usize) -> Option<u64> {
    let with = child(gib, state, counted, "--count")?;
    let before = child(gib, state, counted, "--prepare")?;
    Some(with.checked_sub(before).expect("the same was done before"))
}

/// Instructions that callgrind counts in a child of this program.
fn child(gib: u64, state: State, counted: usize, what: &str) -> Option<u64> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args([
            "--toggle-collect=*measured_operation*",
            "--toggle-collect=*mock_*",
        ])
        .arg(program)
        .args([what, state.name(), &gib.to_string(), &counted.to_string()])
        .output()
        .ok()?;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "under valgrind:\n{told}");
    let count = told
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse().ok());
    Some(count.unwrap_or_else(|| panic!("valgrind's answer has no count:\n{told}")))
}

/// Measures all operations on one guest, and prints them.
fn measure(gib: u64, state: State) {
    let guest = LargeGuest::new(gib, state);
    let (pages, free, blocks) = (guest.pages(), guest.free_pages(), guest.free_blocks());
    if blocks > MOST_MEASURED {
        println!(
            r#"{{"state":"{}","gib":{gib},"not_run":"{blocks} free blocks"}}"#,
            state.name()
        );
        return;
    }
    eprintln!("{}, {gib} GiB, {blocks} free blocks", state.name());
    let (all, tables) = run(gib, state);
    for (at, (work, (name, _))) in all.iter().zip(OPERATIONS).enumerate() {
        let counted = (blocks <= MOST_COUNTED)
            .then(|| instructions(gib, state, at))
            .flatten();
        let counted = counted.map_or_else(|| "null".to_owned(), |count| count.to_string());
        println!(
            concat!(
                r#"{{"operation":"{}","state":"{}","gib":{},"pages":{},"free_pages":{},"free_blocks":{},"#,
                r#""instructions":{},"values":{},"frames":{},"lookups":{},"entries":{},"parts":{},"#,
                r#""slices":{},"checks":{},"continuations":{},"longest":{},"tables_bytes":{}}}"#
            ),
            name,
            state.name(),
            gib,
            pages,
            free,
            blocks,
            counted,
            work.values,
            work.frames,
            work.lookups,
            work.entries,
            work.parts,
            work.pauses,
            work.checks,
            work.continuations,
            work.longest,
            tables
        );
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let is_for_child = |argument: &String| argument == "--count" || argument == "--prepare";
    if let Some(at) = arguments.iter().position(is_for_child) {
        let [what, name, gib, counted] = &arguments[at..at + 4] else {
            panic!("--count STATE GIB OPERATION");
        };
        let state = State::ALL.into_iter().find(|state| state.name() == name);
        let (gib, counted) = (gib.parse().unwrap(), counted.parse().unwrap());
        run_child(gib, state.expect("a state"), counted, what == "--count");
        return ExitCode::SUCCESS;
    }
    let all = arguments.iter().any(|argument| argument == "--all");
    for state in State::ALL {
        for gib in SIZES.into_iter().filter(|gib| all || *gib <= MOST_BY_DEFAULT) {
            measure(gib, state);
        }
    }
    ExitCode::SUCCESS
}
