//! What scripts rely on: exit statuses, and JSON on standard output.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn lacuna(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(arguments)
        .output()
        .unwrap()
}

fn status(arguments: &[&str]) -> i32 {
    lacuna(arguments).status.code().unwrap()
}

#[test]
fn wrong_usage_is_2() {
    for wrong in [
        &["identify"][..],
        &["profile", "build"],
        &["dedup", "1", "--interval", "-1"],
        &["dedup", "1", "--rounds", "2", "--until-stable"],
        &["explain", "1", "0xnothing"],
        &["scan", "--registers", "r"],
        &["nonsense"],
    ] {
        assert_eq!(status(wrong), 2, "{wrong:?}");
    }
}

#[test]
fn what_is_not_there_is_4() {
    assert_eq!(status(&["profile", "build", "--headers", "/nowhere/at/all"]), 4);
    let folder = tempfile::tempdir().unwrap();
    let registers = folder.path().join("registers.json");
    fs::write(&registers, "[{}]").unwrap();
    let arguments = [
        "identify",
        "--dump",
        "/nowhere/at/all",
        "--registers",
        registers.to_str().unwrap(),
    ];
    assert_eq!(status(&arguments), 4);
    // A file that is there, and no Linux in it.
    let dump = folder.path().join("memory");
    fs::write(&dump, vec![0; 1 << 20]).unwrap();
    let arguments = [
        "identify",
        "--dump",
        dump.to_str().unwrap(),
        "--registers",
        registers.to_str().unwrap(),
    ];
    assert_eq!(status(&arguments), 4);
}

#[test]
fn a_failure_is_json_when_asked_for() {
    let output = lacuna(&["profile", "build", "--json", "--headers", "/nowhere/at/all"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["exit_status"], 4);
    assert!(answer["error"].as_str().unwrap().contains("/nowhere/at/all"));
    assert!(answer["remedy"].as_str().unwrap().contains("--headers"));
    assert!(output.stderr.is_empty());
}

#[test]
fn a_damaged_profile_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile");
    fs::write(&file, b"LCNA\x02\0\0\0\x40\0\0\0 and then nothing").unwrap();
    let output = lacuna(&["profile", "show", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cut short") && said.contains("80 needed") && said.contains("help:"),
        "{said}"
    );
}

#[test]
fn every_subcommand_has_a_manual_page_and_completions() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(status(&["man", folder.path().to_str().unwrap()]), 0);
    for page in [
        "lacuna.1",
        "lacuna-attach.1",
        "lacuna-profile-build.1",
        "lacuna-explain.1",
        "lacuna-doctor.1",
        "lacunad.1",
    ] {
        assert!(folder.path().join(page).is_file(), "{page}");
    }
    let script = lacuna(&["completions", "bash"]).stdout;
    assert!(String::from_utf8(script).unwrap().contains("dedup"));
}

/// Every command that asks the hypervisor, on a machine without one: none succeeds, and none fails as if
/// something else were wrong.
#[test]
fn without_xen_every_command_about_guests_says_so_with_5() {
    if Path::new("/dev/xen/privcmd").exists() {
        // Under Xen these would find domains, or say that Xen has no Lacuna.
        let said = status(&["status"]);
        assert!([0, 6, 7, 8].contains(&said), "{said}");
        return;
    }
    for command in [
        &["status"][..],
        &["status", "1"],
        &["top", "--once"],
        &["identify", "1"],
        &["attach", "1"],
        &["detach", "1"],
        &["scan", "1"],
        &["dedup", "1"],
        &["estimate", "1"],
        &["explain", "1", "2"],
        &["doctor"],
    ] {
        assert_eq!(status(command), 5, "{command:?}");
    }
    let output = lacuna(&["--json", "doctor"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["exit_status"], 5);
    assert_eq!(answer["checks"][0]["subject"], "hypervisor");
    assert_eq!(answer["checks"][0]["verdict"], "bad");
    assert!(
        answer["checks"][0]["remedy"]
            .as_str()
            .unwrap()
            .contains("xen_privcmd")
    );
}

#[test]
fn a_daemon_says_what_is_wrong_with_its_file_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lacunad.toml");
    fs::write(&file, "[daemon]\ncpu_percent = 500\n").unwrap();
    let check = || {
        Command::new(env!("CARGO_BIN_EXE_lacunad"))
            .arg("--check")
            .arg("--config")
            .arg(&file)
            .output()
            .unwrap()
    };
    let output = check();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in [
        "lacunad.toml:2",
        "500 is out of range",
        "cpu_percent = 500",
        "1 to 100",
    ] {
        assert!(said.contains(part), "{said}");
    }
    fs::write(&file, "[daemon]\ncpu_percent = 50\n").unwrap();
    assert_eq!(check().status.code(), Some(0));
}
