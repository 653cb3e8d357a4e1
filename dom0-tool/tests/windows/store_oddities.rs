//! Symbol paths as they are on Windows, stores copied from there, answers that mean no, and proxies.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::command::GUID_TEXT;
use crate::server::{Reply, Server};
use crate::store::{NAME, files, find, put, right, two_tiers};

/// Runs `lacuna symbols fetch` for the kernel's key, with these variables and no other proxy.
pub(crate) fn fetch(path: &str, variables: &[(&str, &str)]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    for name in [
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "_NT_SYMBOL_PATH",
    ] {
        command.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    let key = format!("{NAME}/{GUID_TEXT}1/{NAME}");
    let output: Output = command
        .args(["symbols", "fetch", &key, "--json", "--symbols", path])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let answer = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), answer)
}

#[test]
fn a_store_copied_from_windows_is_read_in_whatever_case_its_names_are() {
    let right = right();
    for place in [
        format!("NtKrnlMp.PDB/{}1/NTKRNLMP.pdb", GUID_TEXT.to_ascii_lowercase()),
        format!("NT/ntkrnlmp.pdb/{GUID_TEXT}1/NTKRNLMP.PDB"),
        "NTKRNLMP.PDB".to_owned(),
    ] {
        let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(&store.path().join(&place), &right);
        let path = format!("cache*{};{}", cache.path().display(), store.path().display());
        let hit = find(&path, cache.path()).unwrap_or_else(|misses| panic!("{place}: {misses:?}"));
        assert_eq!(fs::read(&hit.file).unwrap(), right, "{place}");
        // What is kept has the name that it is asked for by.
        if place.contains('/') {
            assert_eq!(files(cache.path()), [two_tiers(cache.path())]);
        }
    }
    // The name as it is asked for comes first.
    let store = tempfile::tempdir().unwrap();
    put(&store.path().join(NAME.to_ascii_uppercase()).join("x"), b"");
    put(&two_tiers(store.path()), &right);
    let path = store.path().display().to_string();
    assert_eq!(find(&path, store.path()).unwrap().file, two_tiers(store.path()));
}

#[test]
fn paths_of_windows_are_refused_with_the_reason_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    for path in [
        "srv*c:\\symbols*http://127.0.0.1:1",
        "srv*\\\\server\\share*http://127.0.0.1:1",
        "\\\\server\\share",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
            .args([
                "symbols",
                "fetch",
                &format!("{NAME}/{GUID_TEXT}1"),
                "--symbols",
                path,
            ])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{path}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is a path of Windows"), "{said}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn answers_that_mean_no_are_no_and_others_are_told() {
    for (status, word) in [
        (403, "does not have it"),
        (404, "does not have it"),
        (410, "does not have it"),
        (401, "status 401"),
        (407, "status 407"),
        (429, "status 429 (3 tries)"),
        (500, "status 500 (3 tries)"),
        (206, "status 206"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _| Reply::Answer(status, Vec::new(), right()));
        let path = format!("srv*{}*{}", cache.path().display(), server.address);
        let misses = find(&path, cache.path()).expect_err("nothing was served");
        let why = &misses.last().unwrap().why;
        assert!(why.contains(word), "{status}: {why}");
        assert_eq!(files(cache.path()).len(), 0);
    }
}

#[test]
fn the_next_element_is_asked_when_one_fails() {
    let cache = tempfile::tempdir().unwrap();
    let (bad, good) = (
        Server::start(|_, _| Reply::redirect("/again")),
        Server::start(|_, _| Reply::ok(right())),
    );
    let folder = cache.path().display();
    // Empty elements, both spellings, a library's name, two caches before them all.
    let path = format!(
        ";;CACHE*{folder}/a;cache*{folder}/b; ;SRV*{};symsrv*symsrv.dll*{folder}/c*{}/;",
        bad.address, good.address
    );
    let hit = find(&path, cache.path()).unwrap();
    assert_eq!(hit.file, two_tiers(&cache.path().join("a")));
    for name in ["a", "b", "c"] {
        let store = cache.path().join(name);
        assert_eq!(files(&store), [two_tiers(&store)]);
    }
    let looped = |why: &str| why.contains("redirects more than 3 times");
    assert!(hit.misses.iter().any(|miss| looped(&miss.why)));
}

#[test]
fn a_proxy_is_gone_through_but_not_for_the_hosts_that_need_none() {
    let proxy = Server::start(|_, _| Reply::ok(right()));
    let server = Server::start(|_, _| Reply::absent());
    let path = |cache: &Path, address: &str| format!("srv*{}*{address}", cache.display());
    for variable in ["ALL_PROXY", "https_proxy", "HTTP_PROXY"] {
        let cache = tempfile::tempdir().unwrap();
        let (status, answer) = fetch(
            &path(cache.path(), "http://symbols.invalid/x"),
            &[(variable, &proxy.address)],
        );
        assert_eq!(status, 0, "{variable}: {answer}");
        assert_eq!(fs::read(two_tiers(cache.path())).unwrap(), right());
    }
    assert_eq!(
        proxy.asked()[..2],
        [
            "CONNECT symbols.invalid:80".to_owned(),
            format!("/x/{NAME}/{GUID_TEXT}1/{NAME}")
        ]
    );
    let before = proxy.asked().len();
    let cache = tempfile::tempdir().unwrap();
    let (status, _) = fetch(
        &path(cache.path(), &server.address),
        &[("HTTP_PROXY", &proxy.address), ("NO_PROXY", "127.0.0.1")],
    );
    assert_eq!(status, 4);
    assert_eq!(proxy.asked().len(), before);
    assert!(!server.asked().is_empty());
}

#[test]
fn what_a_proxy_has_to_do_with_a_failure_is_said() {
    let proxy = Server::start(|_, _| Reply::ok(right()));
    let cache = tempfile::tempdir().unwrap();
    let ask = |host: &str, proxy: &str| {
        let path = format!("srv*{}*http://{host}", cache.path().display());
        let (status, answer) = fetch(&path, &[("ALL_PROXY", proxy)]);
        assert_eq!(status, 4, "{answer}");
        answer["error"].as_str().unwrap().to_owned()
    };
    let said = ask("forbidden.invalid", &proxy.address);
    let place = proxy.address.trim_start_matches("http://");
    assert!(said.contains(&format!("through the proxy {place}")), "{said}");
    let said = ask("127.0.0.1:9", "socks5://127.0.0.1:9");
    assert!(said.contains("past the proxy 127.0.0.1:9"), "{said}");
    assert_eq!(files(cache.path()).len(), 0);
}
