//! Every fuzz target on its seeds, on each of them cut short, and on changes of them that are the same in
//! every run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use lacuna_hostile::{Mutations, TARGETS, Target};

/// Cuts tried of one seed, evenly spread.
const CUTS: usize = 64;

/// Runs the body; what breaks it is kept as a file, for the fuzz target of the same name to run again.
fn run(target: &Target, input: &[u8]) -> bool {
    catch_unwind(|| (target.body)(input)).unwrap_or_else(|_| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broke-{}", target.name));
        fs::write(&kept, input).unwrap();
        panic!("{}: broken by the input kept in {}", target.name, kept.display())
    })
}

fn on(name: &str) -> &'static Target {
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target")
}

fn seeds_and_changes(name: &str) {
    let target = on(name);
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for (index, seed) in seeds.iter().enumerate() {
        assert!(run(target, seed), "seed {index} is refused");
        for cut in 0..CUTS.min(seed.len()) {
            run(target, &seed[..seed.len() * cut / CUTS]);
        }
    }
    let mut mutations = Mutations::new(0x5eed);
    let accepted = (0..target.runs)
        .filter(|_| run(target, &mutations.next(&seeds)))
        .count();
    println!("{name}: {accepted} of {} changed inputs accepted", target.runs);
    assert!(accepted > 0, "no changed input gets past the door");
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            seeds_and_changes(stringify!($name));
        })*

        #[test]
        fn every_target_is_tried_here() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets!(vmcoreinfo btf system_map stub linux_guest dump registers pe pdb profile hostile_guest);

#[test]
fn every_target_has_a_program_for_libfuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let file = format!("fuzz_targets/{}.rs", target.name);
        assert!(
            manifest.contains(&format!("path = \"{file}\"")),
            "{file} is not in fuzz/Cargo.toml"
        );
        let text = fs::read_to_string(folder.join(&file)).unwrap();
        assert!(
            text.contains(&format!("\"{}\"", target.name)),
            "{file} runs another target"
        );
    }
}
