//! What the lab does with an archive that does not serve what its index lists: an archive of the test's own
//! on loopback, looked at and downloaded from with the machine's own apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::loopback::{Listed, Served, Server, publish, sha256};
use super::*;
use crate::error::Error;

const REMEDY: &str = "--xen-source FILE|DIR";

const OLDER: &str = "4.17.5+72-g01140da4e8-1";
const OLD: &str = "4.20.2-1";
const NEW: &str = "4.20.4+63-g7abfd2bce2-0+deb13u1";

/// A server, a cache, and how long this may take.
struct Setting {
    server: Server,
    cache: tempfile::TempDir,
    progress: Progress,
    limits: Limits,
    began: Instant,
}

impl Setting {
    fn new() -> Self {
        assert!(
            crate::process::is_installed("apt-get"),
            "this test runs the machine's own apt, as the lab does: install it (the lab needs Debian)"
        );
        Self {
            server: Server::start(),
            cache: tempfile::tempdir().unwrap(),
            progress: Progress::begin("test of the archive"),
            limits: Limits {
                refresh: Duration::from_secs(20),
                silence: Duration::from_secs(3),
                least: 1000,
                retries: 0,
                answer: Duration::from_secs(5),
            },
            began: Instant::now(),
        }
    }

    /// Opens the archive with what the server has now, without a signature.
    fn open(&self, suites: &[&str]) -> Archive<'static> {
        let entries = suites.iter().flat_map(|suite| {
            [Kind::Sources, Kind::Binaries("amd64")].map(|kind| Entry {
                trusted: true,
                ..Entry::new(&self.server.uri(), suite, kind)
            })
        });
        self.open_entries(&entries.collect::<Vec<_>>())
    }

    fn open_entries(&self, entries: &[Entry]) -> Archive<'static> {
        let log = self.cache.path().join("log");
        let directory = self.cache.path().join("archive");
        Archive::open_at(directory, log, Runner::Host, entries, self.limits, &self.progress).unwrap()
    }

    /// Where downloads go.
    fn downloads(&self) -> PathBuf {
        self.cache.path().join("downloads")
    }

    fn first_served(&self, archive: &Archive, offers: Offers) -> Result<Chosen, Error> {
        archive.first_served("Xen's source", offers, &self.downloads(), REMEDY, &self.progress)
    }

    /// The downloads that are there, whole ones and beginnings.
    fn files(&self) -> Vec<(String, u64)> {
        let mut found: Vec<(String, u64)> = crate::key::files_below(&self.downloads())
            .unwrap()
            .into_iter()
            .map(|path| {
                let length = fs::metadata(self.downloads().join(&path)).unwrap().len();
                (path.to_string_lossy().into_owned(), length)
            })
            .collect();
        found.sort();
        found
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        if !std::thread::panicking() {
            assert!(took < Duration::from_secs(120), "the test took {took:?}");
        }
    }
}

/// The content of a file of which nothing else is said.
fn whole(listed: &Listed) -> Served {
    Served::Whole(listed.content.clone())
}

/// Has the newest version misbehave, expects that the one before it is taken, and returns why.
fn falls_through(served: Option<Served>) -> (Setting, String) {
    let setting = Setting::new();
    let (new, old) = (Listed::new("xen", NEW), Listed::new("xen", OLD));
    setting.server.serve(&old.tarball(), whole(&old));
    if let Some(served) = served {
        setting.server.serve(&new.tarball(), served);
    }
    let content = old.content.clone();
    publish(&setting.server, "new", &[old, new], &[]);
    let archive = setting.open(&["new"]);
    let chosen = setting
        .first_served(&archive, archive.sources("xen").unwrap())
        .unwrap();
    assert_eq!(chosen.candidate.version, OLD);
    assert_eq!(fs::read(&chosen.paths[0]).unwrap(), content);
    assert_eq!(
        chosen.passed_over.len(),
        1,
        "passed over: {:?}",
        chosen.passed_over
    );
    assert_eq!(chosen.passed_over[0].what, format!("xen {NEW} (new)"));
    let reason = chosen.passed_over[0].reason.clone();
    assert!(!reason.contains('\n'), "more than a line: {reason}");
    (setting, reason)
}

/// The downloads, when nothing of the version that failed may be left.
fn only_the_older(setting: &Setting) {
    assert_eq!(setting.files(), [("xen_4.20.2.orig.tar.xz".to_owned(), 40_000)]);
}

#[test]
fn the_newest_version_is_taken_and_a_second_run_asks_for_nothing() {
    let setting = Setting::new();
    let listed = [OLDER, NEW, OLD].map(|version| Listed::new("xen", version));
    for one in &listed {
        setting.server.serve(&one.tarball(), whole(one));
    }
    publish(&setting.server, "new", &listed, &[]);
    let archive = setting.open(&["new"]);
    let offers = archive.sources("xen").unwrap();
    let versions: Vec<&str> = offers
        .candidates
        .iter()
        .map(|candidate| candidate.version.as_str())
        .collect();
    assert_eq!(versions, [NEW, OLD, OLDER]);
    assert_eq!(offers.clone().of("4.17").candidates[0].version, OLDER);
    for _ in 0..2 {
        let chosen = setting.first_served(&archive, offers.clone()).unwrap();
        assert_eq!(chosen.candidate.version, NEW);
        assert_eq!(chosen.passed_over, []);
    }
    assert_eq!(setting.server.requests("63-g7abfd2bce2.orig.tar.xz").len(), 1);
}

#[test]
fn a_file_that_the_index_lists_and_the_server_does_not_have_is_passed_over() {
    let (setting, reason) = falls_through(None);
    assert!(reason.ends_with(": 404 Not Found"), "{reason}");
    only_the_older(&setting);
}

#[test]
fn a_file_with_another_hash_is_passed_over_and_removed() {
    let mut other = Listed::new("xen", NEW).content;
    other[20_000] ^= 1;
    let (setting, reason) = falls_through(Some(Served::Whole(other)));
    assert!(reason.contains(": wrong hash"), "{reason}");
    only_the_older(&setting);
}

#[test]
fn a_file_that_is_shorter_than_listed_is_passed_over_and_removed() {
    let short = Listed::new("xen", NEW).content[..30_000].to_vec();
    let (setting, reason) = falls_through(Some(Served::Whole(short)));
    assert!(reason.ends_with(": truncated: 30000 of 40000 bytes"), "{reason}");
    only_the_older(&setting);
}

#[test]
fn after_a_cut_connection_the_next_run_goes_on_from_there() {
    let content = Listed::new("xen", NEW).content;
    let (setting, reason) = falls_through(Some(Served::Cut(content, 30_000)));
    assert!(reason.ends_with(": truncated: 30000 of 40000 bytes"), "{reason}");
    goes_on(&setting);
}

#[test]
fn after_a_stall_the_next_run_goes_on_from_there() {
    let content = Listed::new("xen", NEW).content;
    let (setting, reason) = falls_through(Some(Served::Stalled(content, 30_000)));
    assert!(reason.contains(": time-out: "), "{reason}");
    assert!(reason.ends_with("after 30000 of 40000 bytes"), "{reason}");
    goes_on(&setting);
}

/// Expects the beginning of a download to be kept, and the next run to ask for the rest alone.
fn goes_on(setting: &Setting) {
    let name = "xen_4.20.4+63-g7abfd2bce2.orig.tar.xz";
    assert_eq!(
        setting.files(),
        [
            (format!("partial/{name}"), 30_000),
            ("xen_4.20.2.orig.tar.xz".to_owned(), 40_000)
        ]
    );
    let new = Listed::new("xen", NEW);
    setting.server.serve(&new.tarball(), whole(&new));
    let archive = setting.open(&["new"]);
    let chosen = setting
        .first_served(&archive, archive.sources("xen").unwrap())
        .unwrap();
    assert_eq!(chosen.candidate.version, NEW);
    assert_eq!(fs::read(&chosen.paths[0]).unwrap(), new.content);
    let last = setting.server.requests(name).pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=30000-"));
    assert_eq!(
        setting.files(),
        [
            ("xen_4.20.2.orig.tar.xz".to_owned(), 40_000),
            (name.to_owned(), 40_000)
        ]
    );
}

#[test]
fn a_beginning_of_another_file_is_not_gone_on_from_twice() {
    let content = Listed::new("xen", NEW).content;
    let (setting, _) = falls_through(Some(Served::Cut(content, 30_000)));
    let new = Listed::new("xen", NEW);
    let partial = setting
        .downloads()
        .join("partial")
        .join(new.tarball().trim_start_matches("pool/"));
    let mut bytes = fs::read(&partial).unwrap();
    bytes[7] ^= 1;
    fs::write(&partial, bytes).unwrap();
    setting.server.serve(&new.tarball(), whole(&new));
    let archive = setting.open(&["new"]);
    let chosen = setting
        .first_served(&archive, archive.sources("xen").unwrap())
        .unwrap();
    assert_eq!(chosen.candidate.version, NEW);
    assert_eq!(fs::read(&chosen.paths[0]).unwrap(), new.content);
}

#[test]
fn a_server_that_sends_next_to_nothing_is_given_up() {
    let content = Listed::new("xen", NEW).content;
    let (_setting, reason) = falls_through(Some(Served::Trickling(content)));
    assert!(reason.contains(": time-out: "), "{reason}");
}

#[test]
fn a_redirection_is_followed() {
    let setting = Setting::new();
    let new = Listed::new("xen", NEW);
    setting.server.serve("elsewhere/file", whole(&new));
    setting
        .server
        .serve(&new.tarball(), Served::Moved("elsewhere/file".to_owned()));
    let content = new.content.clone();
    publish(&setting.server, "new", &[new], &[]);
    let archive = setting.open(&["new"]);
    let offers = archive.sources("xen").unwrap();
    assert_eq!(archive.is_served(&offers.candidates[0].files[0]), Answer::Served);
    let chosen = setting.first_served(&archive, offers).unwrap();
    assert_eq!(fs::read(&chosen.paths[0]).unwrap(), content);
}

#[test]
fn a_redirection_to_nothing_is_passed_over() {
    let (setting, reason) = falls_through(Some(Served::Moved("elsewhere/file".to_owned())));
    assert!(reason.ends_with(": 404 Not Found"), "{reason}");
    only_the_older(&setting);
}

#[test]
fn when_nothing_is_served_the_error_names_all_that_was_tried_and_what_to_do() {
    let setting = Setting::new();
    let mut wrong = Listed::new("xen", OLD).content;
    wrong[0] ^= 1;
    let listed = [NEW, OLD, OLDER].map(|version| Listed::new("xen", version));
    setting.server.serve(&listed[1].tarball(), Served::Whole(wrong));
    let cut = Served::Cut(listed[2].content.clone(), 0);
    setting.server.serve(&listed[2].tarball(), cut);
    publish(&setting.server, "new", &listed, &[]);
    let archive = setting.open(&["new", "absent"]);
    let error = setting
        .first_served(&archive, archive.sources("xen").unwrap())
        .unwrap_err();
    let Error::NothingServed { tried, remedy, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(remedy, REMEDY);
    let lines: Vec<&str> = tried.lines().collect();
    assert_eq!(lines.len(), 4, "{tried}");
    for (line, (what, reason)) in lines.iter().zip([
        ("the suite absent of", "404 Not Found"),
        (NEW, "404 Not Found"),
        (OLD, "wrong hash"),
        (OLDER, ""),
    ]) {
        assert!(line.contains(what) && line.contains(reason), "{tried}");
    }
    assert_eq!(setting.files(), []);
}

#[test]
fn when_no_index_lists_the_package_the_error_says_so() {
    let setting = Setting::new();
    publish(&setting.server, "new", &[Listed::new("other", "1")], &[]);
    let archive = setting.open(&["new"]);
    let error = setting
        .first_served(&archive, archive.sources("xen").unwrap())
        .unwrap_err();
    assert!(
        error.to_string().contains("the indices of new list none"),
        "{error}"
    );
}

#[test]
fn without_any_archive_the_error_names_the_suites() {
    let setting = Setting::new();
    let archive = setting.open(&["new", "old"]);
    assert_eq!(archive.suites(), [""; 0]);
    let error = setting
        .first_served(&archive, archive.sources("xen").unwrap())
        .unwrap_err()
        .to_string();
    for part in [
        "no suite's index could be had",
        "the suite new of",
        "the suite old of",
        "404 Not Found",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_index_without_a_signature_is_not_used() {
    let setting = Setting::new();
    publish(&setting.server, "new", &[Listed::new("xen", NEW)], &[]);
    let entry = Entry::new(&setting.server.uri(), "new", Kind::Sources);
    let archive = setting.open_entries(&[entry]);
    assert!(archive.sources("xen").unwrap().candidates.is_empty());
    let reason = &archive.passed_over()[0].reason;
    assert!(reason.contains("is not signed"), "{reason}");
}

#[test]
fn an_index_that_does_not_match_its_release_file_is_not_used() {
    let setting = Setting::new();
    publish(&setting.server, "new", &[Listed::new("xen", NEW)], &[]);
    let forged = "Package: xen\nVersion: 9\n".to_owned();
    setting.server.serve(
        "dists/new/main/source/Sources",
        Served::Whole(forged.into_bytes()),
    );
    let archive = setting.open(&["new"]);
    assert!(archive.sources("xen").unwrap().candidates.is_empty());
    assert!(!archive.passed_over().is_empty(), "nothing is said of the index");
}

#[test]
fn an_archive_that_is_gone_leaves_the_earlier_index_and_says_so() {
    let setting = Setting::new();
    let new = Listed::new("xen", NEW);
    publish(&setting.server, "new", &[new], &[]);
    assert_eq!(setting.open(&["new"]).passed_over(), []);
    for path in ["Release", "main/source/Sources", "main/binary-amd64/Packages"] {
        setting.server.withdraw(&format!("dists/new/{path}"));
    }
    let archive = setting.open(&["new"]);
    assert_eq!(archive.sources("xen").unwrap().candidates.len(), 1);
    let reason = &archive.passed_over()[0].reason;
    assert!(
        reason.contains("an earlier index is used: 404 Not Found"),
        "{reason}"
    );
    assert!(!archive.passed_over()[0].unusable);
}

#[test]
fn what_the_index_lists_now_counts() {
    let setting = Setting::new();
    let old = Listed::new("xen", OLD);
    publish(&setting.server, "new", &[old], &[]);
    assert_eq!(
        setting.open(&["new"]).sources("xen").unwrap().candidates[0].version,
        OLD
    );
    let new = Listed::new("xen", NEW);
    publish(&setting.server, "new", &[new], &[]);
    assert_eq!(
        setting.open(&["new"]).sources("xen").unwrap().candidates[0].version,
        NEW
    );
}

/// The packages of a kernel as Debian has them.
fn kernel(release: [&'static str; 3], version: &'static str) -> [Listed; 3] {
    let [image, headers, common] = release;
    [
        Listed::new(image, version).depends("kmod, linux-base"),
        Listed::new(headers, version).depends(&format!("{common} (= {version}), gcc-14")),
        Listed::new(common, version),
    ]
}

const NEW_KERNEL: [&str; 3] = [
    "linux-image-6.12.117+deb13-amd64",
    "linux-headers-6.12.117+deb13-amd64",
    "linux-headers-6.12.117+deb13-common",
];
const OLD_KERNEL: [&str; 3] = [
    "linux-image-6.12.107+deb13-amd64",
    "linux-headers-6.12.107+deb13-amd64",
    "linux-headers-6.12.107+deb13-common",
];

#[test]
fn a_kernel_is_taken_with_its_headers_or_not_at_all() {
    let setting = Setting::new();
    let (new, old) = (kernel(NEW_KERNEL, "6.12.117-1"), kernel(OLD_KERNEL, "6.12.107-1"));
    for package in old.iter().chain(&new) {
        setting.server.serve(&package.deb(), whole(package));
    }
    // The newest one's image is served, and the headers that belong to it are not.
    setting.server.withdraw(&new[2].deb());
    let unserved = new[2].deb();
    // Of a third one the index lists no headers at all.
    let lonely = Listed::new("linux-image-6.12.118+deb13-amd64", "6.12.118-1");
    publish(&setting.server, "new", &[], &new);
    publish(
        &setting.server,
        "old",
        &[],
        &old.into_iter().chain([lonely]).collect::<Vec<_>>(),
    );
    let archive = setting.open(&["new", "old"]);
    let wanted = Wanted {
        series: Some("6.12"),
        flavour: "amd64",
    };
    let offers = archive.kernels(wanted).unwrap();
    let prober = Prober::new(Duration::from_secs(1), Instant::now() + Duration::from_secs(5));
    let (would_take, _) = prober.first_served(offers.clone());
    let chosen = setting.first_served(&archive, offers).unwrap();
    assert_eq!(chosen.candidate.kernel_release(), "6.12.107+deb13-amd64");
    assert_eq!(would_take, Some(chosen.candidate));
    let reasons: Vec<String> = chosen.passed_over.iter().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons[0].contains("no index lists linux-headers-6.12.118+deb13-amd64"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains(&unserved) && reasons[1].ends_with(": 404 Not Found"),
        "{reasons:?}"
    );
    let names: Vec<String> = setting.files().into_iter().map(|(name, _)| name).collect();
    let mut expected = OLD_KERNEL.map(|name| format!("{name}_6.12.107-1_amd64.deb"));
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn a_closure_is_all_that_a_package_depends_on() {
    let setting = Setting::new();
    let listed = [
        Listed::new("tool", "2-1").depends("library (>= 1)"),
        Listed::new("library", "1.5-1"),
        Listed::new("unrelated", "1"),
    ];
    publish(&setting.server, "new", &[], &listed);
    let files = setting.open(&["new"]).closure(&["tool"]).unwrap();
    let mut named: Vec<(&str, u64)> = files
        .iter()
        .map(|file| (file.sha256.as_str(), file.size))
        .collect();
    named.sort_unstable();
    let mut expected = [&listed[0], &listed[1]].map(|one| sha256(&one.content));
    expected.sort();
    assert_eq!(named, expected.each_ref().map(|hash| (hash.as_str(), 40_000)));
}

#[test]
fn the_first_byte_tells_what_is_served() {
    let setting = Setting::new();
    let new = Listed::new("xen", NEW);
    let path = new.tarball();
    let content = new.content.clone();
    publish(&setting.server, "new", &[new], &[]);
    let archive = setting.open(&["new"]);
    let file = archive.sources("xen").unwrap().candidates[0].files[0].clone();
    assert_eq!(
        archive.is_served(&file),
        Answer::Refused("404 Not Found".to_owned())
    );
    setting.server.serve(&path, Served::Whole(content.clone()));
    assert_eq!(archive.is_served(&file), Answer::Served);
    let last = setting.server.requests(&file.name).pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=0-0"));
    setting
        .server
        .serve(&path, Served::Whole(content[..100].to_vec()));
    assert_eq!(
        archive.is_served(&file),
        Answer::Refused("100 bytes where the index lists 40000".to_owned())
    );
    setting.server.serve(&path, Served::Stalled(content, 0));
    assert_eq!(
        archive.is_served(&file),
        Answer::Unreachable("no answer in time".to_owned())
    );
    let nowhere = RemoteFile {
        // Port 1 of loopback: nothing listens there.
        uri: "http://127.0.0.1:1/file".to_owned(),
        ..file
    };
    assert!(matches!(archive.is_served(&nowhere), Answer::Unreachable(_)));
}

#[test]
fn a_download_is_kept_only_while_it_is_the_file_of_the_index() {
    let setting = Setting::new();
    let new = Listed::new("xen", NEW);
    setting.server.serve(&new.tarball(), whole(&new));
    let content = new.content.clone();
    publish(&setting.server, "new", &[new], &[]);
    let archive = setting.open(&["new"]);
    let file = archive.sources("xen").unwrap().candidates[0].files[0].clone();
    let to: &Path = &setting.cache.path().join("given");
    let mut other = content.clone();
    other[3] ^= 1;
    fs::write(to, other).unwrap();
    archive.fetch(&file, to, &setting.progress).unwrap();
    assert_eq!(fs::read(to).unwrap(), content);
}
