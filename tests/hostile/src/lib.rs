//! Hostile input: what a fuzz target does with any bytes, and good inputs for each to begin with.
//!
//! [`TARGETS`] is the one list of them. `fuzz/` feeds their bodies from libFuzzer, guided by coverage. The
//! test of this package feeds them on any toolchain: the seeds, each of them cut short, and seeded changes of
//! them. The program `seeds` writes the seeds as files, for libFuzzer to begin with.
//!
//! A body takes any bytes, panics when a promise is broken, and says whether the input was accepted: an input
//! that is always refused at the door tries nothing behind it, so each target has seeds that are not.

mod dump;
mod engine;
mod linux;
mod mutate;
mod windows;

pub use mutate::Mutations;

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of libFuzzer's program and of the folder with its seeds.
    pub name: &'static str,
    /// What is done with an input. Returns whether it was accepted.
    pub body: fn(&[u8]) -> bool,
    /// Inputs that are accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Changed inputs that this package's test tries: about a second of them.
    pub runs: usize,
}

const fn target(
    name: &'static str,
    body: fn(&[u8]) -> bool,
    seeds: fn() -> Vec<Vec<u8>>,
    runs: usize,
) -> Target {
    Target {
        name,
        body,
        seeds,
        runs,
    }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("vmcoreinfo", linux::vmcoreinfo, linux::vmcoreinfo_seeds, 4000),
    target("btf", linux::btf, linux::btf_seeds, 8000),
    target("system_map", linux::system_map, linux::system_map_seeds, 400),
    target("stub", linux::stub, linux::stub_seeds, 8000),
    target("linux_guest", linux::guest, linux::guest_seeds, 60),
    target("dump", dump::dump, dump::dump_seeds, 1500),
    target("registers", dump::registers, dump::registers_seeds, 4000),
    target("pe", windows::pe, windows::pe_seeds, 1500),
    target("pdb", windows::pdb, windows::pdb_seeds, 1500),
    target("profile", engine::profile, engine::profile_seeds, 8000),
    target(
        "hostile_guest",
        engine::hostile_guest,
        engine::hostile_guest_seeds,
        150,
    ),
];

/// Runs the body of the target `name`.
///
/// # Panics
/// When there is none of this name, or a promise is broken.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let Some(target) = target else {
        unreachable!("{name} is not in TARGETS")
    };
    (target.body)(bytes);
}
