//! The live scenarios: their names, what they boot in, and how long they may take.
//!
//! The code of each is in the driver that runs in dom0 (`tests/dom0/src/scenario/`), under the same name.

use std::time::Duration;

use lacuna_guest::programs::Workload;

/// The hypervisor and machine a scenario needs. Scenarios with the same boot run one after another in one
/// emulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Boot {
    /// The release hypervisor.
    Release,
    /// The same, with guests of other kinds at hand: kernels of before 6.0, 32-bit ones, and a device model
    /// for HVM guests.
    OtherGuests,
    /// The same, with virtual disks for guests, which dom0's kernel serves.
    XenDisks,
    /// The debug build whose share rounds can leave a step out.
    Mutants,
    /// The release hypervisor on Intel's nested paging, EPT, which only Bochs emulates: one processor, and
    /// slow.
    Ept,
    /// The same machine with the debug build whose share rounds can leave a step out.
    EptMutants,
    /// The hypervisor with XSM and FLASK, enforcing.
    Flask,
    /// The release hypervisor on a machine with an IOMMU.
    Iommu,
    /// The same, with a PVH dom0, which needs one.
    PvhDom0,
    /// The release hypervisor on two machines with a network between them; the scenario runs on the first.
    Pair,
    /// Debian 13 as people have it, with systemd, GRUB and Debian's own Xen, on which the scenario installs
    /// the product's packages. It reboots.
    DebianHost,
    /// The release hypervisor on a machine whose clock counts instructions: one is one nanosecond, to host
    /// and guest.
    Counted,
    /// The same, with guests that run the workload's programs, which are the distribution's.
    Programs(Workload),
}

/// One live scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// `group/name`; `cargo lab test` selects by any part of it.
    pub name: &'static str,
    /// What it boots in.
    pub boot: Boot,
    /// How long it may take on a slow machine: a hang is to be told from slowness, nothing more.
    pub limit: Duration,
    /// Whether it runs only under `--full`.
    pub full_only: bool,
}

/// The scenario that `cargo lab demo` shows.
pub const DEMO: &str = "reclaim/truth-6.12";

/// The scenario that `cargo lab bench migration` measures.
pub const MOVED: &str = "migration/one-host";

/// The scenario that `cargo lab bench gmd` measures.
pub const GMD: &str = "gmd/baseline";

/// The scenario that needs a device model.
pub const HVM: &str = "hvm/device-model";

/// The scenario that runs Xen's own test programs.
pub const XEN_TESTS: &str = "host-debian/xen-tests";

/// The scenarios that a plain test run repeats on each further series of Xen that can be had: the main job,
/// under load; a migration; equal pages; a host without memory.
pub const CORE: &[&str] = &[
    DEMO,
    "reclaim/race",
    "content/duplicates",
    "content/race",
    "migration/one-host",
    "migration/busy",
    "overcommit/all-at-once",
];

/// The scenario called `name`.
pub fn find(name: &str) -> Option<Scenario> {
    SCENARIOS.iter().copied().find(|scenario| scenario.name == name)
}

/// Every live scenario, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    quick("boot/xl-6.12", 300),
    quick("boot/xl-6.1", 300),
    quick("boot/account-6.12", 300),
    quick("boot/account-6.1", 300),
    quick("boot/symbols", 300),
    quick("reclaim/truth-6.12", 600),
    quick("reclaim/truth-6.1", 600),
    quick("reclaim/destroy", 600),
    quick("reclaim/save", 600),
    quick("reclaim/dump", 600),
    quick("reclaim/race", 900),
    quick("reclaim/kexec", 600),
    quick("reclaim/damaged-profiles", 300),
    quick("reclaim/page-poison", 300),
    quick("reclaim/no-guest", 60),
    quick("reclaim/refusals", 600),
    quick("windows/truth-7", 600),
    quick("windows/truth-10", 600),
    quick("windows/liar", 600),
    long("windows/race", 1800),
    // Two migrations, the first of a busy guest.
    long("windows/migrate", 1200),
    quick("content/duplicates", 900),
    quick("content/both", 900),
    quick("content/race", 900),
    quick("content/groups", 900),
    quick("content/given-up", 900),
    quick("content/stock-limits", 600),
    quick("hostile/free-pages", 600),
    quick("hostile/equal-pages", 600),
    quick("hostile/viridian-pages", 600),
    quick("hostile/high-gfn", 600),
    quick("migration/killed", 1200),
    quick("migration/init-on-free", 1200),
    quick("migration/page-poison", 1200),
    quick("migration/save-restore", 1200),
    quick("migration/stock-receiver", 1200),
    quick("migration/reserve", 1200),
    quick("migration/one-host", 1500),
    quick("migration/busy", 1200),
    // Two migrations each.
    long("content/migrate", 1200),
    long("content/migrate-group", 1200),
    long("content/save", 900),
    long("content/dump", 900),
    long("content/balloon", 1200),
    // Three minutes of waiting for a daemon's rounds.
    long("content/daemon", 1200),
    quick("policy/daemon", 1200),
    quick("policy/refill", 600),
    quick("overcommit/all-at-once", 1800),
    quick("overcommit/way-out", 900),
    quick("overcommit/claims", 900),
    long_on(Boot::XenDisks, "overcommit/disks", 1200),
    quick_on(Boot::Counted, "reclaim/pause", 900),
    // Fourteen rounds, half of them with two hypercalls a page.
    long_on(Boot::Counted, GMD, 3600),
    // Ten minutes of swings, and more on a busy machine.
    long("policy/swing", 2400),
    // 1,590 rounds.
    long("policy/soak", 3600),
    // Eighteen swings on a machine that counts.
    long_on(Boot::Counted, "policy/slowdown", 3600),
    // The smallest cell of `cargo lab bench paper`.
    long_on(Boot::Programs(Workload::Compile), crate::paper::SMOKE, 900),
    // What one-host does first, on a smaller guest.
    long("migration/stock", 900),
    long("migration/busy-long", 3600),
    long("migration/remus", 1500),
    long_on(Boot::Pair, "migration/two-hosts", 1800),
    long_on(Boot::OtherGuests, "linux/truth-5.10", 900),
    long_on(Boot::OtherGuests, "linux/truth-686-pae", 900),
    long_on(Boot::OtherGuests, HVM, 1800),
    long_on(Boot::Mutants, "migration/debug", 1200),
    // About two hundred commands, most of which fail.
    long_on(Boot::Mutants, "overcommit/allocation-failure", 2400),
    quick_on(Boot::Mutants, "migration/scan-before-clean", 1500),
    quick_on(Boot::Mutants, "content/race-logging", 1200),
    quick_on(Boot::Mutants, "reclaim/race-without-recheck", 900),
    quick_on(Boot::Mutants, "windows/race-without-recheck", 900),
    long_on(Boot::Mutants, "reclaim/race-without-flush", 900),
    quick_on(Boot::Mutants, "hostile/campaign", 900),
    long_on(Boot::Mutants, "hostile/campaign-long", 5400),
    // The last one of its boot: nothing is given back after it.
    quick_on(Boot::Mutants, "hostile/memory-error", 600),
    long_on(Boot::Iommu, "reclaim/refusals-iommu", 600),
    long_on(Boot::PvhDom0, "reclaim/refusals-pvh-dom0", 600),
    long_on(Boot::Ept, "reclaim/ept", 3600),
    long_on(Boot::EptMutants, "reclaim/ept-race-without-flush", 3600),
    long_on(Boot::Ept, "content/ept", 3600),
    long_on(Boot::Flask, "flask/reclaim", 600),
    long_on(Boot::Flask, "content/flask", 600),
    // Each makes what the ones before it have made, where that is not there.
    long_on(Boot::DebianHost, "host-debian/before-reboot", 1800),
    // Compares with the distribution's hypervisor: before those that leave Lacuna's running.
    long_on(Boot::DebianHost, XEN_TESTS, 2400),
    long_on(Boot::DebianHost, "host-debian/unattended", 2400),
    long_on(Boot::DebianHost, "host-debian/upgraded", 2400),
    long_on(Boot::DebianHost, "host-debian/libvirt", 3600),
    long_on(Boot::DebianHost, "host-debian/disks", 3600),
    long_on(Boot::DebianHost, "host-debian/full-host", 3600),
    long_on(Boot::DebianHost, "host-debian/moved-disks", 3600),
    // The last one of its boot: the packages are gone after it.
    long_on(Boot::DebianHost, "host-debian/removed", 2400),
];

/// A scenario of every run, on the release hypervisor.
const fn quick(name: &'static str, seconds: u64) -> Scenario {
    quick_on(Boot::Release, name, seconds)
}

/// A scenario of every run.
const fn quick_on(boot: Boot, name: &'static str, seconds: u64) -> Scenario {
    Scenario {
        name,
        boot,
        limit: Duration::from_secs(seconds),
        full_only: false,
    }
}

/// A scenario of long runs, on the release hypervisor.
const fn long(name: &'static str, seconds: u64) -> Scenario {
    long_on(Boot::Release, name, seconds)
}

/// A scenario of long runs.
const fn long_on(boot: Boot, name: &'static str, seconds: u64) -> Scenario {
    Scenario {
        full_only: true,
        ..quick_on(boot, name, seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::{CORE, SCENARIOS, find};

    #[test]
    fn the_core_is_part_of_every_run() {
        for name in CORE {
            assert!(find(name).is_some_and(|scenario| !scenario.full_only), "{name}");
        }
    }

    #[test]
    fn names_are_unique_and_grouped() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            assert!(scenario.name.contains('/'), "{} has no group", scenario.name);
            assert!(
                SCENARIOS[..index].iter().all(|other| other.name != scenario.name),
                "{} twice",
                scenario.name
            );
        }
    }
}
