//! What an operator is promised of `lacunad` as a service.
#![allow(missing_docs)]

const UNIT: &str = include_str!("../lacunad.service");

/// The values of a setting of the unit, in their order.
fn values(key: &str) -> Vec<&'static str> {
    UNIT.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

#[test]
fn stopping_the_unit_keeps_the_reports_of_migrations() {
    assert_eq!(values("RuntimeDirectory"), ["lacuna"]);
    assert_eq!(values("RuntimeDirectoryPreserve"), ["yes"]);
}

#[test]
fn the_history_and_the_layouts_have_a_folder_that_may_be_written() {
    assert_eq!(values("ProtectSystem"), ["strict"]);
    assert_eq!(values("StateDirectory"), ["lacuna"]);
}

#[test]
fn a_reload_looks_at_the_file_before_it_sends_the_signal() {
    let reload = values("ExecReload");
    assert_eq!(reload.len(), 2);
    assert!(reload[0].ends_with("lacunad --check"), "{reload:?}");
    assert!(reload[1].starts_with("/bin/kill -HUP"), "{reload:?}");
}
