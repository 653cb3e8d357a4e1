//! The history's file, whole and damaged.

use super::*;

fn event(at: u64, what: &str) -> Record {
    Record {
        at,
        entry: Entry::Event(Event {
            event: "guest.appeared".to_owned(),
            domain: Some(3),
            name: Some("web\n\"1\"".to_owned()),
            what: Some(what.to_owned()),
        }),
    }
}

fn times(path: &Path) -> Vec<u64> {
    read(path, 0)
        .unwrap()
        .records
        .iter()
        .map(|record| record.at)
        .collect()
}

/// A history of records 0 to `count`.
fn filled(folder: &Path, count: u64) -> PathBuf {
    let path = folder.join("state/history");
    let (mut store, repair) = Store::open(&path, 1 << 20).unwrap();
    assert_eq!(repair, None);
    for at in 0..count {
        store.append(&event(at, "x")).unwrap();
    }
    path
}

#[test]
fn what_was_written_is_read_by_the_next_one_and_since_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path(), 3);
    let (mut store, repair) = Store::open(&path, 1 << 20).unwrap();
    assert_eq!(repair, None);
    let sample = Record {
        at: 3,
        entry: Entry::Sample {
            host: HostPoint {
                total: 9,
                ..HostPoint::default()
            },
            guests: vec![GuestPoint {
                domain: 7,
                took: u64::MAX,
                ..GuestPoint::default()
            }],
        },
    };
    store.append(&sample).unwrap();
    let past = read(&path, 1).unwrap();
    assert_eq!(past.records, [event(1, "x"), event(2, "x"), sample]);
    assert_eq!(past.damaged, [""; 0].map(PathBuf::from));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn both_files_together_keep_to_the_bound_and_the_latest_records_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let bound = 8192;
    let (mut store, _) = Store::open(&path, bound).unwrap();
    for at in 0..500 {
        store.append(&event(at, "x")).unwrap();
        let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        let both = size(&path) + size(&suffixed(&path, ".old"));
        assert!(both <= bound, "{both} bytes after record {at}");
    }
    let times = times(&path);
    // Half of the bound is always there once it was filled.
    assert!(times.len() > 25, "{} records are left", times.len());
    let expected: Vec<u64> = (500 - times.len() as u64..500).collect();
    assert_eq!(times, expected);
    let too_long = store.append(&event(500, &"x".repeat(5000))).unwrap_err();
    assert_eq!(too_long.kind(), io::ErrorKind::FileTooLarge);
    store.append(&event(501, "x")).unwrap();
}

#[test]
fn a_record_cut_short_anywhere_is_cut_off_and_the_next_one_follows() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path(), 3);
    let whole = fs::read(&path).unwrap();
    let last = line(&event(2, "x")).unwrap().len();
    for cut in 1..last {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(times(&path), [0, 1]);
        let (mut store, repair) = Store::open(&path, 1 << 20).unwrap();
        assert_eq!(repair, Some(Repair::Cut((last - cut) as u64)));
        store.append(&event(9, "x")).unwrap();
        assert_eq!(times(&path), [0, 1, 9]);
    }
    // A host that lost power may leave zeros.
    fs::write(&path, [&whole[..], &[0; 4096]].concat()).unwrap();
    let (_, repair) = Store::open(&path, 1 << 20).unwrap();
    assert_eq!(repair, Some(Repair::Cut(4096)));
    assert_eq!(times(&path), [0, 1, 2]);
    // A header cut short.
    fs::write(&path, &whole[..5]).unwrap();
    let (_, repair) = Store::open(&path, 1 << 20).unwrap();
    assert_eq!(repair, Some(Repair::Cut(5)));
    assert_eq!(times(&path), [0; 0]);
}

#[test]
fn a_changed_byte_amid_records_sets_the_file_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = filled(folder.path(), 3);
    let whole = fs::read(&path).unwrap();
    let second = HEADER.len() + line(&event(0, "x")).unwrap().len();
    let third = second + line(&event(1, "x")).unwrap().len();
    // All but the line's end: without that the two last lines are one, which was not written to its end.
    for at in second..third - 1 {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(
            read(&path, 0).unwrap().damaged,
            std::slice::from_ref(&path),
            "byte {at}"
        );
        let (mut store, repair) = Store::open(&path, 1 << 20).unwrap();
        let aside = suffixed(&path, ".damaged");
        assert_eq!(repair, Some(Repair::SetAside(aside.clone())), "byte {at}");
        assert_eq!(fs::read(&aside).unwrap(), bytes);
        store.append(&event(9, "x")).unwrap();
        assert_eq!(times(&path), [0, 9], "byte {at}");
        assert_eq!(read(&path, 0).unwrap().damaged.len(), 0);
    }
}

#[test]
fn a_file_that_is_no_history_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    for bytes in [&b"lacuna history 2\n"[..], b"\0\0\0\0", &[0xff; 9000]] {
        fs::write(&path, bytes).unwrap();
        let (_, repair) = Store::open(&path, 8192).unwrap();
        assert!(matches!(repair, Some(Repair::SetAside(_))), "{repair:?}");
        assert_eq!(fs::read(&path).unwrap(), HEADER.as_bytes());
    }
}

#[test]
fn a_history_that_somebody_removes_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let (mut store, _) = Store::open(&path, 1 << 20).unwrap();
    store.append(&event(1, "x")).unwrap();
    fs::remove_file(&path).unwrap();
    store.append(&event(2, "x")).unwrap();
    assert_eq!(times(&path), [2]);
}
