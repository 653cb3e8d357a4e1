//! What the rules and the dashboard for Prometheus ask for is what the daemon serves.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use lacuna::daemon::metrics::definitions;
use serde_json::Value;

const RULES: &str = include_str!("../prometheus/lacuna.rules.yml");
const RULES_TEST: &str = include_str!("../prometheus/lacuna.rules.test.yml");
const DASHBOARD: &str = include_str!("../prometheus/lacuna-dashboard.json");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The names of metrics in a text: `lacuna_...` of the daemon's, `lacuna:...` of rules.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'))
        .filter(|word| word.starts_with("lacuna_") || word.starts_with("lacuna:"))
        .collect()
}

/// What follows `key` in lines of YAML such as `- alert: NAME`.
fn each<'t>(text: &'t str, key: &str) -> BTreeSet<&'t str> {
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key))
        .map(str::trim)
        .collect()
}

/// What `text` names and nobody serves.
fn unknown<'t>(text: &'t str, served: &BTreeSet<String>) -> Vec<&'t str> {
    names(text)
        .into_iter()
        .filter(|name| !served.contains(*name))
        .collect()
}

fn served() -> BTreeSet<String> {
    let recorded = each(RULES, "record:").into_iter().map(str::to_owned);
    definitions().into_keys().chain(recorded).collect()
}

#[test]
fn every_metric_that_rules_and_dashboard_name_is_served() {
    let served = served();
    for (file, text) in [
        ("rules", RULES),
        ("their test", RULES_TEST),
        ("dashboard", DASHBOARD),
    ] {
        assert!(names(text).len() > 5, "{file} names hardly any metric");
        let unknown = unknown(text, &served);
        assert!(unknown.is_empty(), "{file}: {unknown:?} are served by nobody");
    }
}

#[test]
fn a_metric_that_nobody_serves_is_seen() {
    let served = served();
    for wrong in [
        "rate(lacuna_guest_pauses[5m])",
        "lacuna_host_promised",
        "lacuna:host_promised:ratio",
    ] {
        assert_eq!(unknown(wrong, &served).len(), 1, "{wrong}");
    }
    assert!(unknown("sum(lacuna_host_promised_bytes)", &served).is_empty());
}

#[test]
fn every_rule_that_records_is_used_or_documented() {
    for name in each(RULES, "record:") {
        let uses = [DASHBOARD, OPERATIONS]
            .iter()
            .any(|text| names(text).contains(name))
            || RULES.matches(name).count() > 1;
        assert!(uses, "{name} is of use to nobody");
    }
}

#[test]
fn every_alert_says_what_happened_and_is_documented() {
    let alerts = each(RULES, "alert:");
    assert!(alerts.len() >= 8, "{alerts:?}");
    assert_eq!(alerts.len(), each(RULES, "summary:").len());
    assert_eq!(alerts.len(), each(RULES, "description:").len());
    for alert in alerts {
        let row = format!("| `{alert}` |");
        assert!(
            OPERATIONS.contains(&row),
            "docs/operations.md has no row for {alert}"
        );
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut seen = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(
            seen.insert(panel["id"].as_u64().unwrap()),
            "{title}: its number occurs twice"
        );
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        assert!(
            !panel["targets"].as_array().unwrap().is_empty(),
            "{title} shows nothing"
        );
        let place = &panel["gridPos"];
        let right = place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap();
        assert!(right <= 24, "{title} sticks out");
    }
}
