//! The live scenarios. Each is a function that does something and fails with what it expected and saw.

mod allocation_failure;
mod boot;
mod campaign;
mod claims;
mod content;
mod content_balloon;
mod content_daemon;
mod daemon;
mod debian_disks;
mod debian_host;
mod debian_libvirt;
mod debian_upgrade;
mod debian_xen_tests;
mod disks;
mod ept;
mod flask;
mod gmd;
mod high_gfn;
mod hostile;
mod kexec;
mod memory_error;
mod migration;
mod named;
mod overcommit;
mod paper;
mod pause;
mod race;
mod reclaim;
mod refill;
mod refusals;
mod slowdown;
mod soak;
mod stored;
mod swing;
pub(crate) mod trial;
mod way_out;
mod windows;

use crate::failure::{Result, differs};
use crate::host::Host;

type Body = fn(&mut Host) -> Result<()>;

/// The code of each scenario in the catalogue.
const BODIES: &[(&str, Body)] = &[
    ("boot/xl-6.12", boot::xl_6_12),
    ("boot/xl-6.1", boot::xl_6_1),
    ("boot/account-6.12", boot::account_6_12),
    ("boot/account-6.1", boot::account_6_1),
    ("boot/symbols", boot::symbols),
    ("reclaim/truth-6.12", reclaim::truth_6_12),
    ("reclaim/truth-6.1", reclaim::truth_6_1),
    ("reclaim/destroy", reclaim::destroy),
    ("reclaim/save", stored::save),
    ("reclaim/dump", stored::dump),
    ("reclaim/race", race::complete),
    ("reclaim/kexec", kexec::ends_sharing),
    ("reclaim/damaged-profiles", hostile::damaged_profiles),
    ("reclaim/page-poison", hostile::poisoned),
    ("reclaim/no-guest", hostile::no_guest),
    ("reclaim/refusals", refusals::plain_host),
    ("windows/truth-7", windows::truth_7),
    ("windows/truth-10", windows::truth_10),
    ("windows/liar", windows::liar),
    ("windows/race", windows::race),
    ("windows/migrate", migration::windows),
    ("content/duplicates", content::duplicates),
    ("content/both", content::both),
    ("content/race", content::race),
    ("content/groups", content::groups),
    ("content/given-up", named::given_up),
    ("content/stock-limits", named::stock_limits),
    ("hostile/free-pages", named::free_pages),
    ("hostile/equal-pages", named::equal_pages),
    ("hostile/viridian-pages", named::viridian_pages),
    ("hostile/high-gfn", high_gfn::far_block),
    ("migration/killed", migration::killed),
    ("migration/init-on-free", migration::init_on_free),
    ("migration/page-poison", migration::page_poison),
    ("migration/save-restore", migration::save_restore),
    ("migration/stock-receiver", migration::stock_receiver),
    ("migration/reserve", migration::reserve),
    ("migration/one-host", migration::one_host),
    ("migration/busy", migration::busy),
    ("content/migrate", migration::content),
    ("content/migrate-group", migration::content_group),
    ("content/save", migration::content_save),
    ("content/dump", stored::content_dump),
    ("content/balloon", content_balloon::balloon),
    ("content/daemon", content_daemon::unattended),
    ("policy/daemon", daemon::unattended),
    ("policy/refill", refill::blocks),
    ("overcommit/all-at-once", overcommit::all_at_once),
    ("overcommit/way-out", way_out::of_a_full_host),
    ("overcommit/claims", claims::claims),
    ("overcommit/disks", disks::without_memory),
    ("reclaim/pause", pause::bounded),
    ("gmd/baseline", gmd::against_baseline),
    ("policy/swing", swing::swing),
    ("policy/soak", soak::soak),
    ("policy/slowdown", slowdown::slowdown),
    ("paper/smoke", paper::smoke),
    ("migration/stock", migration::stock),
    ("migration/busy-long", migration::busy_long),
    ("migration/remus", migration::remus),
    ("migration/two-hosts", migration::two_hosts),
    ("linux/truth-5.10", reclaim::truth_5_10),
    ("linux/truth-686-pae", reclaim::truth_686_pae),
    ("hvm/device-model", migration::hvm),
    ("migration/debug", migration::debug),
    ("overcommit/allocation-failure", allocation_failure::everywhere),
    ("migration/scan-before-clean", migration::scan_before_clean),
    ("content/race-logging", content::race_logging),
    ("reclaim/race-without-recheck", race::without_recheck),
    ("windows/race-without-recheck", windows::race_without_recheck),
    ("reclaim/race-without-flush", race::without_flush),
    ("hostile/campaign", campaign::short),
    ("hostile/campaign-long", campaign::long),
    ("hostile/memory-error", memory_error::shared_frames),
    ("reclaim/refusals-iommu", refusals::with_iommu),
    ("reclaim/refusals-pvh-dom0", refusals::pvh_dom0),
    ("reclaim/ept", ept::ept),
    ("reclaim/ept-race-without-flush", race::without_flush_on_ept),
    ("content/ept", ept::content),
    ("flask/reclaim", flask::labelled),
    ("content/flask", flask::content),
    ("host-debian/before-reboot", debian_host::before_reboot),
    ("host-debian/xen-tests", debian_xen_tests::xen_tests),
    ("host-debian/unattended", debian_host::unattended),
    ("host-debian/upgraded", debian_upgrade::upgraded),
    ("host-debian/libvirt", debian_libvirt::libvirt),
    ("host-debian/disks", debian_disks::disks),
    ("host-debian/full-host", debian_disks::full_host),
    ("host-debian/moved-disks", debian_disks::moved_disks),
    ("host-debian/removed", debian_host::removed),
];

/// Runs the scenario or the cell of the paper's evaluation called `name`.
pub(crate) fn run(name: &str, host: &mut Host) -> Result<()> {
    if let Some(cell) = lacuna_scenarios::paper::find(name) {
        return paper::run(&cell, host);
    }
    match BODIES.iter().find(|(known, _)| *known == name) {
        Some((_, body)) => body(host),
        None => Err(differs("the scenario ordered", "one that this driver has", name)),
    }
}

#[cfg(test)]
mod tests {
    use super::BODIES;
    use lacuna_scenarios::catalogue::SCENARIOS;

    #[test]
    fn the_catalogue_and_the_code_name_the_same_scenarios() {
        let listed: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        let coded: Vec<&str> = BODIES.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, coded);
    }
}
