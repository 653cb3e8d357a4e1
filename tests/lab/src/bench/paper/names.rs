//! How cells and workloads are called in figures, which cells belong together, and the paper's own Table 1.

use lacuna_guest::programs::Workload;
use lacuna_scenarios::paper::{Arm, Cell};

/// The workloads, in the order in which they are shown.
pub(super) const WORKLOADS: [Workload; 6] = [
    Workload::Compile,
    Workload::Banking,
    Workload::Ecommerce,
    Workload::Support,
    Workload::Orders,
    Workload::Video,
];
/// The paper's Table 1, in % of the guest's memory: most, average, least.
pub(super) const TABLE_1: &[(&str, f64, f64, f64)] = &[
    ("Win7-64, E-learning", 77.0, 52.0, 2.0),
    ("Win7-64, Video", 75.0, 40.0, 4.0),
    ("Win7-64, Office", 69.0, 61.0, 57.0),
    ("Win7-64, Specjbb", 84.0, 73.0, 69.0),
    ("WinXP-32, E-learning", 78.0, 58.0, 17.0),
    ("WinXP-32, Video", 77.0, 43.0, 0.0),
    ("WinXP-32, Office", 70.0, 65.0, 53.0),
    ("WinXP-32, Specjbb", 86.0, 72.0, 9.0),
    ("Centos-64, Banking", 93.0, 92.0, 90.0),
    ("Centos-64, Ecommerce", 93.0, 92.0, 91.0),
    ("Centos-64, Support", 92.0, 76.0, 69.0),
    ("Centos-64, Specjbb", 91.0, 81.0, 77.0),
    ("Debian-32, Banking", 92.0, 91.0, 90.0),
    ("Debian-32, Ecommerce", 92.0, 91.0, 90.0),
    ("Debian-32, Support", 93.0, 75.0, 68.0),
    ("Debian-32, Specjbb", 92.0, 83.0, 79.0),
];

/// Whether the guest's memory is shared in it.
pub(super) const fn shares(arm: Arm) -> bool {
    !matches!(arm, Arm::None | Arm::Balloon)
}

/// Whether it is the run of its workload that others are compared with.
pub(super) fn is_alone(cell: &Cell) -> bool {
    cell.name.ends_with("-rounds-none")
}

/// Whether it is there to show how much a run differs from itself.
pub(super) fn is_again(cell: &Cell) -> bool {
    cell.name.ends_with("-again")
}

/// How a cell is called in figures of one workload.
pub(super) fn label(cell: &Cell) -> &'static str {
    match (cell.arm, is_again(cell)) {
        (Arm::None, false) => "nobody",
        (Arm::None, true) => "nobody, again",
        (Arm::UserLevel, _) => "user level, Intro",
        (Arm::Intro, false) => "Intro",
        (Arm::Intro, true) => "Intro, again",
        (Arm::Dedup, _) => "Dedup",
        (Arm::IntroDedup, _) => "IntroDedup",
        (Arm::Policy, _) => "policy",
        (Arm::Balloon, _) => "balloon",
    }
}

/// How a workload is called in figures.
pub(super) const fn workload(workload: Workload) -> &'static str {
    match workload {
        Workload::Compile => "compile",
        Workload::Banking => "banking",
        Workload::Ecommerce => "e-commerce",
        Workload::Support => "support",
        Workload::Orders => "Java orders",
        Workload::Video => "video",
    }
}
