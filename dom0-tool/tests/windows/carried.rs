//! What a PDB says, carried to a host without network.

use lacuna_windows_fixtures::layouts::layouts;
use serde_json::Value;

use crate::command::{GUID_TEXT, lacuna};
use crate::layouts::pdb_of;

#[test]
fn facts_are_exported_and_imported_and_damaged_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let layout = layouts().swap_remove(0);
    std::fs::write(at("ntkrnlmp.pdb"), pdb_of(&layout, false).to_bytes()).unwrap();
    let export = lacuna(&[
        "profile",
        "export",
        &at("ntkrnlmp.pdb"),
        "--out",
        &at("carried.json"),
    ]);
    assert_eq!(export.status.code(), Some(0));
    let import = |file: &str| {
        let output = lacuna(&["profile", "import", file, "--layouts", &at("layouts"), "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), answer)
    };
    let (status, answer) = import(&at("carried.json"));
    assert_eq!(status, 0, "{answer}");
    let kept = at(&format!("layouts/ntkrnlmp.pdb.{GUID_TEXT}1.windows.json"));
    assert_eq!(answer["kept"], kept);
    let text = std::fs::read_to_string(&kept).unwrap();
    for (from, to) in [
        ("\"offset\": 26", "\"offset\": 48"),
        ("\"width\": 3", "\"width\": 9"),
        ("\"mmpfn_size\": 48", "\"mmpfn_size\": null"),
        ("\"lacuna_windows_kernel\": 1", "\"lacuna_windows_kernel\": 2"),
        ("ntkrnlmp.pdb", "../ntkrnlmp.pdb/.."),
        (GUID_TEXT, "30B5"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(at("damaged.json"), text.replace(from, to)).unwrap();
        let (status, answer) = import(&at("damaged.json"));
        assert_eq!(status, 3, "{to}: {answer}");
    }
    assert_eq!(import(&at("nothing.json")).0, 4);
}
