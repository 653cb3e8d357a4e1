//! The cells of the paper's evaluation, asked again of this system (`cargo lab bench paper`): a workload, a
//! question, and who shares memory meanwhile.
//!
//! Each is a run of its own, on a new machine. The code is in `tests/dom0/src/scenario/paper.rs`.

use std::time::Duration;

use lacuna_guest::programs::Workload;

use crate::catalogue::{Boot, Scenario};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Table 1 and Figures 5 to 8: free memory, what is shared, what a round takes, what is unshared, what
    /// the guest's own work costs. With a round each so many seconds; other intervals are Figure 9.
    Rounds {
        /// Between the beginnings of two rounds, by the machine's clock.
        seconds: u32,
    },
    /// Figure 10: a migration in the middle of the workload.
    Migration,
}

/// Who shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Nobody; of a migration: the stock one.
    None,
    /// The paper's own design: a program in dom0 that looks, nominates, looks again and shares page by page.
    UserLevel,
    /// Lacuna, free pages.
    Intro,
    /// Lacuna, equal pages.
    Dedup,
    /// Lacuna, both.
    IntroDedup,
    /// Lacuna's daemon with its policy.
    Policy,
    /// The balloon, driven by a controller in dom0 that follows the guest's own free memory.
    Balloon,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// `paper/WORKLOAD-QUESTION-ARM`.
    pub name: &'static str,
    /// What the guest does.
    pub workload: Workload,
    /// What is asked.
    pub question: Question,
    /// Who shares.
    pub arm: Arm,
    /// Programs at a time, phase by phase: the paper's ramp, steady state and fall.
    pub phases: &'static [u32],
}

/// How long a cell may take. The longest seen took a third of it.
pub const LIMIT: Duration = Duration::from_secs(900);

/// Ramp, steady state, fall.
const PHASES: &[u32] = &[1, 2, 3, 2, 1];
/// The cheapest that can fail: one program.
const SMOKE_PHASES: &[u32] = &[1];

/// The cell that is a test as well.
pub const SMOKE: &str = "paper/smoke";

/// All cells that can be run.
pub const CELLS: &[Cell] = &[
    rounds("paper/compile-rounds-none", Arm::None, 2),
    // What the same run differs by from itself.
    rounds("paper/compile-rounds-none-again", Arm::None, 2),
    rounds("paper/compile-rounds-intro", Arm::Intro, 2),
    rounds("paper/compile-rounds-intro-again", Arm::Intro, 2),
    rounds("paper/compile-rounds-user-level", Arm::UserLevel, 2),
    rounds("paper/compile-rounds-policy", Arm::Policy, 2),
    rounds("paper/compile-rounds-dedup", Arm::Dedup, 2),
    rounds("paper/compile-rounds-introdedup", Arm::IntroDedup, 2),
    rounds("paper/compile-interval4-intro", Arm::Intro, 4),
    rounds("paper/compile-interval8-intro", Arm::Intro, 8),
    rounds("paper/compile-interval16-intro", Arm::Intro, 16),
    moved("paper/compile-migration-none", Arm::None),
    moved("paper/compile-migration-intro", Arm::Intro),
    rounds("paper/compile-rounds-balloon", Arm::Balloon, 2),
    beside("paper/banking-rounds-none", Workload::Banking, Arm::None),
    beside("paper/banking-rounds-intro", Workload::Banking, Arm::Intro),
    beside("paper/ecommerce-rounds-none", Workload::Ecommerce, Arm::None),
    beside("paper/ecommerce-rounds-intro", Workload::Ecommerce, Arm::Intro),
    beside("paper/support-rounds-none", Workload::Support, Arm::None),
    beside("paper/support-rounds-intro", Workload::Support, Arm::Intro),
    beside("paper/orders-rounds-none", Workload::Orders, Arm::None),
    beside("paper/orders-rounds-intro", Workload::Orders, Arm::Intro),
    beside("paper/video-rounds-none", Workload::Video, Arm::None),
    beside("paper/video-rounds-intro", Workload::Video, Arm::Intro),
];

/// What the paper asked and others ask, and cannot be run yet, with the reason.
pub const NOT_BUILT: &[(&str, &str)] = &[
    (
        "web shop loaded from outside the guest",
        "the lab's guests have no network card; the shop's customers are in the guest",
    ),
    ("office documents (SYSmark 2007)", "no image with such programs"),
    (
        "free page reporting of virtio-balloon",
        "the lab has no run of a guest under plain QEMU with a workload",
    ),
    (
        "the Windows-like guest under a swinging load",
        "it has no workload with phases",
    ),
];

/// Returns the cell called `name`.
#[must_use]
pub fn find(name: &str) -> Option<Cell> {
    let known = CELLS.iter().chain([&SMOKE_CELL]);
    known.copied().find(|cell| cell.name == name)
}

/// The cell that is a test as well.
const SMOKE_CELL: Cell = Cell {
    phases: SMOKE_PHASES,
    ..rounds(SMOKE, Arm::Intro, 1)
};

impl Cell {
    /// Returns the scenario that runs it.
    #[must_use]
    pub const fn scenario(&self) -> Scenario {
        Scenario {
            name: self.name,
            boot: Boot::Programs(self.workload),
            limit: LIMIT,
            full_only: true,
        }
    }
}

const fn rounds(name: &'static str, arm: Arm, seconds: u32) -> Cell {
    Cell {
        name,
        workload: Workload::Compile,
        question: Question::Rounds { seconds },
        arm,
        phases: PHASES,
    }
}

/// The same of another workload.
const fn beside(name: &'static str, workload: Workload, arm: Arm) -> Cell {
    Cell {
        workload,
        ..rounds(name, arm, 2)
    }
}

const fn moved(name: &'static str, arm: Arm) -> Cell {
    Cell {
        question: Question::Migration,
        ..rounds(name, arm, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{CELLS, SMOKE, find};
    use crate::catalogue;

    #[test]
    fn cells_have_names_of_their_own_and_are_no_other_scenarios() {
        for (index, cell) in CELLS.iter().enumerate() {
            assert!(cell.name.starts_with("paper/"), "{}", cell.name);
            assert!(
                CELLS[..index].iter().all(|other| other.name != cell.name),
                "{}",
                cell.name
            );
            assert!(catalogue::find(cell.name).is_none(), "{}", cell.name);
        }
    }

    #[test]
    fn the_smoke_cell_is_a_test() {
        assert!(find(SMOKE).is_some() && catalogue::find(SMOKE).is_some());
    }
}
