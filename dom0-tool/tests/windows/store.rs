//! Symbol stores: folders and servers, good and bad. A cache must never come to hold what is not right.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lacuna::os::windows::store::path::SymbolPath;
use lacuna::os::windows::store::{Finder, Hit, Limits, Miss};
use lacuna::os::windows::symbol_key::{Guid, PdbName, Signature, SymbolKey};
use lacuna_windows_fixtures::pdb::Pdb;
use lacuna_windows_fixtures::pe::{AMD64, Pe, Record};

use crate::command::{GUID, GUID_TEXT, lacuna};
use crate::server::{Reply, Server};

pub(crate) const NAME: &str = "ntkrnlmp.pdb";

fn key() -> SymbolKey {
    SymbolKey {
        name: PdbName::from_path(NAME).unwrap(),
        signature: Signature::Guid(Guid::from_file(GUID)),
        age: 1,
    }
}

pub(crate) fn right() -> Vec<u8> {
    Pdb::new(GUID, 1, AMD64).to_bytes()
}

fn cabinet(content: &[u8]) -> Vec<u8> {
    let mut builder = cab::CabinetBuilder::new();
    builder.add_folder(cab::CompressionType::MsZip).add_file(NAME);
    let mut writer = builder.build(Cursor::new(Vec::new())).unwrap();
    while let Some(mut file) = writer.next_file().unwrap() {
        file.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(2),
        silence: Duration::from_millis(300),
        total: Duration::from_secs(20),
        bytes: 1 << 20,
        tries: 3,
        pause: Duration::from_millis(1),
        redirections: 3,
    }
}

pub(crate) fn find(path: &str, default_cache: &Path) -> Result<Hit, Vec<Miss>> {
    let path = SymbolPath::parse(path, default_cache).unwrap();
    Finder::new(path, Some(limits())).find(&key(), &mut |_, _| {})
}

pub(crate) fn two_tiers(store: &Path) -> PathBuf {
    store.join(NAME).join(format!("{GUID_TEXT}1")).join(NAME)
}

pub(crate) fn put(file: &Path, content: &[u8]) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Asks a server that answers so; expects a refusal with `word`, and a cache without a single file.
fn refused(word: &str, reply: impl Fn(&str, usize) -> Reply + Send + 'static) {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(reply);
    let misses = find(
        &format!("srv*{}*{}", cache.path().display(), server.address),
        cache.path(),
    )
    .expect_err("nothing right was served");
    let why = &misses.last().unwrap().why;
    assert!(why.contains(word), "{why}");
    assert_eq!(files(cache.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_server_fills_every_cache_before_it() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(|_, _| Reply::ok(right()));
    let path = format!(
        "srv*{}*{}*{}/symbols",
        near.path().display(),
        far.path().display(),
        server.address
    );
    let mut told = Vec::new();
    let parsed = SymbolPath::parse(&path, near.path()).unwrap();
    let hit = Finder::new(parsed, Some(limits()))
        .find(&key(), &mut |done, length| told.push((done, length)))
        .unwrap();
    assert_eq!(hit.file, two_tiers(near.path()));
    assert_eq!(fs::read(&hit.file).unwrap(), right());
    assert_eq!(fs::read(two_tiers(far.path())).unwrap(), right());
    assert_eq!(server.asked(), [format!("/symbols/{NAME}/{GUID_TEXT}1/{NAME}")]);
    let length = right().len() as u64;
    assert_eq!(told.last(), Some(&(length, Some(length))));
    assert_eq!(
        files(near.path()).len() + files(far.path()).len(),
        2,
        "no leftovers"
    );
    // The second time nobody is asked.
    assert_eq!(find(&path, near.path()).unwrap().file, two_tiers(near.path()));
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn compressed_files_three_tiers_and_pointers_of_a_server_are_followed() {
    let packed = format!("/{NAME}/{GUID_TEXT}1/ntkrnlmp.pd_");
    let three = format!("/nt/{NAME}/{GUID_TEXT}1/{NAME}");
    let pointer = format!("/{NAME}/{GUID_TEXT}1/file.ptr");
    let servers = [
        Server::start(move |path, _| {
            if path == packed {
                Reply::ok(cabinet(&right()))
            } else {
                Reply::absent()
            }
        }),
        Server::start(move |path, _| {
            if path == "/index2.txt" || path == three {
                Reply::ok(right())
            } else {
                Reply::absent()
            }
        }),
    ];
    for server in servers {
        let cache = tempfile::tempdir().unwrap();
        let hit = find(
            &format!("srv*{}*{}", cache.path().display(), server.address),
            cache.path(),
        );
        let hit = match hit {
            Ok(hit) => hit,
            Err(misses) => panic!("{misses:?}, asked {:?}", server.asked()),
        };
        assert_eq!(fs::read(hit.file).unwrap(), right());
    }
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(move |path, _| match path {
        path if path == pointer => Reply::Raw(Vec::new()),
        "/elsewhere.pdb" => Reply::ok(right()),
        _ => Reply::absent(),
    });
    // A pointer that breaks off is tried again, and then given up.
    assert!(
        find(
            &format!("srv*{}*{}", cache.path().display(), server.address),
            cache.path()
        )
        .is_err()
    );
}

#[test]
fn a_pointer_leads_to_its_own_server_only() {
    for (target, good) in [
        ("SELF/elsewhere.pdb", true),
        ("/etc/passwd", false),
        ("http://127.0.0.1:1/x", false),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let own = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
        let known = std::sync::Arc::clone(&own);
        let server = Server::start(move |path, _| {
            if path.ends_with("file.ptr") {
                let target = target.replace("SELF", known.get().unwrap());
                Reply::ok(format!("PATH:{target}\r\n").into_bytes())
            } else if path == "/elsewhere.pdb" {
                Reply::ok(right())
            } else {
                Reply::absent()
            }
        });
        own.set(server.address.clone()).unwrap();
        let found = find(
            &format!("srv*{}*{}", cache.path().display(), server.address),
            cache.path(),
        );
        assert_eq!(found.is_ok(), good, "{target}: {found:?}");
    }
    refused("says: moved?away", |path, _| {
        if path.ends_with("file.ptr") {
            Reply::ok(b"MSG: moved\x1baway".to_vec())
        } else {
            Reply::absent()
        }
    });
}

#[test]
fn redirections_are_followed_a_few_times() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|path, number| {
        if path == "/c" {
            Reply::ok(right())
        } else {
            Reply::redirect(["/a", "/b", "/c"][number.min(2)])
        }
    });
    let path = format!("srv*{}*{}", cache.path().display(), server.address);
    assert!(find(&path, cache.path()).is_ok());
    refused("redirects more than 3 times", |_, _| Reply::redirect("/again"));
    refused("not followed", |_, _| Reply::redirect("file:///etc/passwd"));
    refused("not followed", |_, _| Reply::redirect("ftp://127.0.0.1/x.pdb"));
}

#[test]
fn another_kernels_pdb_is_refused() {
    let mut other = GUID;
    other[0] ^= 1;
    refused("another PDB", move |_, _| {
        Reply::ok(Pdb::new(other, 1, AMD64).to_bytes())
    });
    refused("another PDB", |_, _| {
        Reply::ok(Pdb::new(GUID, 2, AMD64).to_bytes())
    });
    // Packed as well.
    refused("another PDB", |path, _| {
        if path.ends_with('_') {
            Reply::ok(cabinet(&Pdb::new(GUID, 2, AMD64).to_bytes()))
        } else {
            Reply::absent()
        }
    });
}

#[test]
fn pages_for_people_are_refused() {
    let page = b"<!DOCTYPE html><html><body>please log in</body></html>".to_vec();
    let typed = page.clone();
    refused("web page", move |_, _| {
        Reply::Answer(
            200,
            vec!["Content-Type: text/html; charset=utf-8".into()],
            typed.clone(),
        )
    });
    let packed = page.clone();
    refused("packed (gzip)", move |_, _| {
        Reply::Answer(200, vec!["Content-Encoding: gzip".into()], packed.clone())
    });
    refused("no usable PDB", move |_, _| Reply::ok(page.clone()));
}

#[test]
fn what_breaks_off_or_never_ends_is_refused() {
    refused("(3 tries)", |_, _| {
        let whole = right();
        let length = whole.len();
        Reply::Truncated(whole[..length - 1].to_vec(), length)
    });
    // Cut short by somebody who announces the shorter length.
    refused("cut short", |_, _| Reply::ok(right()[..8192].to_vec()));
    refused("more than 1048576 bytes", |_, _| Reply::Endless);
    refused("at most 1048576 are taken", |_, _| {
        Reply::Truncated(right(), 2 << 20)
    });
    refused("(3 tries)", |_, _| Reply::Raw(Vec::new()));
    refused("", |_, _| Reply::Raw(b"\x00\xff\x00 nonsense\r\n\r\n".to_vec()));
    refused("", |_, _| {
        Reply::Answer(200, vec![format!("X-Long: {}", "x".repeat(1 << 20))], right())
    });
}

#[test]
fn a_silent_server_is_given_up() {
    let begun = Instant::now();
    refused("(3 tries)", |_, _| {
        Reply::Silent(right()[..100].to_vec(), Duration::from_millis(900))
    });
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn what_passes_is_tried_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_, number| match number {
        0 => Reply::Answer(503, Vec::new(), Vec::new()),
        1 => Reply::Truncated(right()[..10].to_vec(), right().len()),
        _ => Reply::ok(right()),
    });
    let path = format!("srv*{}*{}", cache.path().display(), server.address);
    assert!(find(&path, cache.path()).is_ok());
    assert_eq!(server.asked().len(), 3);
    assert_eq!(files(cache.path()), [two_tiers(cache.path())]);
}

#[test]
fn a_damaged_cabinet_is_refused() {
    refused("cabinet", |path, _| {
        if path.ends_with('_') {
            let mut packed = cabinet(&right());
            let middle = packed.len() / 2;
            packed[middle] ^= 0x55;
            Reply::ok(packed)
        } else {
            Reply::absent()
        }
    });
    refused("not a cabinet", |path, _| {
        if path.ends_with('_') {
            Reply::ok(right())
        } else {
            Reply::absent()
        }
    });
}

#[test]
fn folders_are_stores_of_both_kinds_or_plain() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    assert!(find(&path, folder.path()).is_err());
    put(&folder.path().join(NAME), &right());
    assert_eq!(find(&path, folder.path()).unwrap().file, folder.path().join(NAME));
    // A file of that name with another age in the folder, and the right one in the store's layout.
    put(&folder.path().join(NAME), &Pdb::new(GUID, 7, AMD64).to_bytes());
    let misses = find(&path, folder.path()).expect_err("another's");
    assert!(misses[0].why.contains("age 7"), "{misses:?}");
    fs::remove_file(folder.path().join(NAME)).unwrap();
    put(&two_tiers(folder.path()), &right());
    assert_eq!(find(&path, folder.path()).unwrap().file, two_tiers(folder.path()));

    let three = tempfile::tempdir().unwrap();
    put(&three.path().join("index2.txt"), b"");
    let place = three.path().join("nt").join(NAME).join(format!("{GUID_TEXT}1"));
    put(&place.join("ntkrnlmp.pd_"), &cabinet(&right()));
    let cache = tempfile::tempdir().unwrap();
    let path = format!("srv*{}*{}", cache.path().display(), three.path().display());
    let hit = find(&path, cache.path()).unwrap();
    assert_eq!(hit.file, two_tiers(cache.path()));
    assert_eq!(fs::read(hit.file).unwrap(), right());

    let pointing = tempfile::tempdir().unwrap();
    put(&pointing.path().join("moved.pdb"), &right());
    put(
        &two_tiers(pointing.path()).with_file_name("file.ptr"),
        b"PATH:moved.pdb",
    );
    assert!(find(&pointing.path().display().to_string(), cache.path()).is_ok());
    put(
        &two_tiers(pointing.path()).with_file_name("file.ptr"),
        b"PATH:\\\\server\\share\\x.pdb",
    );
    let misses = find(&pointing.path().display().to_string(), cache.path()).expect_err("not on this machine");
    assert!(misses[0].why.contains("no folder of this machine"), "{misses:?}");
}

#[test]
fn a_damaged_cache_is_passed_over_and_mended() {
    let cache = tempfile::tempdir().unwrap();
    put(&two_tiers(cache.path()), b"half a file");
    let server = Server::start(|_, _| Reply::ok(right()));
    let hit = find(
        &format!("srv*{}*{}", cache.path().display(), server.address),
        cache.path(),
    )
    .unwrap();
    assert!(hit.misses[0].why.contains("no usable PDB"), "{:?}", hit.misses);
    assert_eq!(fs::read(two_tiers(cache.path())).unwrap(), right());
}

#[test]
fn the_command_says_what_to_fetch_and_where_to_put_it() {
    let folder = tempfile::tempdir().unwrap();
    let executable = folder.path().join("ntoskrnl.exe");
    let pe = Pe {
        machine: AMD64,
        image_base: 0x1_4000_0000,
        record: Record::Rsds(GUID, 1, NAME.into()),
        export_name: None,
        data: Vec::new(),
    };
    fs::write(&executable, pe.file()).unwrap();
    let cache = folder.path().join("cache");
    let server = Server::start(|_, _| Reply::absent());
    let path = format!("srv*{}*{}", cache.display(), server.address);
    let fetch = |more: &[&str]| {
        let mut arguments = vec![
            "symbols",
            "fetch",
            executable.to_str().unwrap(),
            "--json",
            "--symbols",
            &path,
        ];
        arguments.extend(more);
        let output = lacuna(&arguments);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), answer)
    };
    for more in [&[][..], &["--offline"]] {
        let (status, answer) = fetch(more);
        assert_eq!(status, 4, "{answer}");
        let remedy = answer["remedy"].as_str().unwrap();
        assert!(
            remedy.contains(&format!("{}/{NAME}/{GUID_TEXT}1/{NAME}", server.address)),
            "{remedy}"
        );
        assert!(remedy.contains(two_tiers(&cache).to_str().unwrap()), "{remedy}");
    }
    assert_eq!(server.asked().len(), 4, "offline nobody was asked");
    put(&two_tiers(&cache), &right());
    let (status, answer) = fetch(&["--offline"]);
    assert_eq!(status, 0, "{answer}");
    assert_eq!(answer["file"], two_tiers(&cache).to_str().unwrap());
    // The key alone will do, too.
    let key = format!("{NAME}/{GUID_TEXT}1/{NAME}");
    let output = lacuna(&["symbols", "fetch", &key, "--offline", "--symbols", &path]);
    assert_eq!(output.status.code(), Some(0));
}
