//! Which tests the filters on the command line stand for.

use lacuna_scenarios::catalogue::{SCENARIOS, Scenario};

/// Filters: a test is selected by any of them, and with none every test is.
pub(crate) struct Selection<'a> {
    filters: &'a [String],
    /// Whether the long scenarios are selected as well.
    full: bool,
}

impl<'a> Selection<'a> {
    pub(crate) const fn new(filters: &'a [String], full: bool) -> Self {
        Self { filters, full }
    }

    /// Whether a test of the host called `name` runs; `part` says that it is a part of another one, and runs
    /// only where Linux guests are asked for by themselves.
    pub(crate) fn host(&self, name: &str, part: bool) -> bool {
        if self.filters.is_empty() {
            return !part;
        }
        self.filters
            .iter()
            .any(|filter| means(filter, name) && (!part || about_linux(filter)))
    }

    /// Whether a kernel of the matrix, called `name`, runs.
    pub(crate) fn kernel(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| means(filter, name))
    }

    /// Whether `scenario` runs. Naming a long one in full is asking for it, and so is asking for Linux
    /// guests.
    pub(crate) fn scenario(&self, scenario: &Scenario) -> bool {
        let long = self.full || !scenario.full_only;
        if self.filters.is_empty() {
            return long;
        }
        self.filters.iter().any(|filter| {
            means(filter, scenario.name) && (long || about_linux(filter) || filter == scenario.name)
        })
    }

    /// The first filter for which `selects` finds none of `names`.
    pub(crate) fn idle(&self, names: &[String]) -> Option<&'a str> {
        self.filters
            .iter()
            .find(|filter| !names.iter().any(|name| means(filter, name)))
            .map(String::as_str)
    }
}

/// Whether `filter` stands for the test called `name`. A scenario's whole name means that one, though others'
/// names may begin with it.
fn means(filter: &str, name: &str) -> bool {
    if SCENARIOS.iter().any(|scenario| scenario.name == filter) {
        name == filter
    } else {
        name.contains(filter)
    }
}

fn about_linux(filter: &str) -> bool {
    filter.contains("linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenarios(filters: &[&str], full: bool) -> Vec<&'static str> {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let selection = Selection::new(&filters, full);
        SCENARIOS
            .iter()
            .filter(|scenario| selection.scenario(scenario))
            .map(|scenario| scenario.name)
            .collect()
    }

    #[test]
    fn without_a_filter_all_but_the_long_ones_run() {
        let plain = scenarios(&[], false);
        assert!(plain.contains(&"reclaim/race") && !plain.contains(&"policy/soak"));
        assert_eq!(scenarios(&[], true).len(), SCENARIOS.len());
    }

    #[test]
    fn filters_add_up() {
        let one = scenarios(&["overcommit"], false);
        let other = scenarios(&["content/"], false);
        assert_eq!(
            scenarios(&["overcommit", "content/"], false).len(),
            one.len() + other.len()
        );
    }

    #[test]
    fn a_whole_name_means_that_scenario_even_if_it_is_long() {
        assert_eq!(scenarios(&["reclaim/race"], true), ["reclaim/race"]);
        assert_eq!(scenarios(&["policy/soak"], false), ["policy/soak"]);
        assert!(scenarios(&["soak"], false).is_empty());
    }

    #[test]
    fn asking_for_linux_guests_asks_for_the_long_ones_and_for_the_part() {
        assert!(scenarios(&["linux"], false).contains(&"linux/truth-5.10"));
        let linux = ["linux".to_owned()];
        assert!(Selection::new(&linux, false).host("linux/host", true));
        assert!(!Selection::new(&[], false).host("linux/host", true));
        let host = ["host".to_owned()];
        assert!(!Selection::new(&host, false).host("linux/host", true));
    }

    #[test]
    fn a_filter_that_means_nothing_is_named() {
        let filters = ["race".to_owned(), "rice".to_owned()];
        let names = ["reclaim/race".to_owned()];
        assert_eq!(Selection::new(&filters, false).idle(&names), Some("rice"));
    }
}
