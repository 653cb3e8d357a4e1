//! The lines between the lab and the driver in dom0: JSON, one object a line, over dom0's second serial port.
//!
//! The first port is Xen's console, onto which Xen, dom0's kernel and QEMU write in the middle of each
//! other's lines.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// From the lab to dom0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Run one scenario; its end is [`Event::Passed`] or [`Event::Failed`].
    Run {
        /// Its name in the catalogue.
        scenario: String,
    },
    /// Try a guest that is not the lab's; the end is [`Event::Passed`] or [`Event::Failed`] with [`TRIAL`]
    /// for a name.
    Try {
        /// The guest, and what is done with it.
        trial: Trial,
    },
    /// Shut dom0 down, which ends the emulation.
    PowerOff,
}

/// What a trial is called in events.
pub const TRIAL: &str = "try";

/// The figure that has a trial's steps: an array of [`Step`], told again after each.
pub const STEPS: &str = "steps";

/// A guest that is not the lab's. Paths are dom0's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The kernel; without one the guest boots from its CD or disk.
    pub kernel: Option<String>,
    /// The initial file system.
    pub initrd: Option<String>,
    /// Added to the kernel's command line.
    pub append: String,
    /// Whether the initial file system is the lab's own, with the agent in it.
    pub agent: bool,
    /// Whether it is an HVM guest with a device model, instead of a PVH one.
    pub hvm: bool,
    /// Memory, in MiB.
    pub mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// The disk, by its serial number.
    pub disk: Option<String>,
    /// The CD, likewise.
    pub cdrom: Option<String>,
    /// Options of `lacuna attach`, and of `lacuna identify` where it has them.
    pub attach: Vec<String>,
    /// Options of `lacuna identify`.
    pub identify: Vec<String>,
    /// How long the guest may take to come up, in seconds.
    pub boot_seconds: u32,
    /// Rounds while the guest works.
    pub rounds: u32,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It held.
    Good,
    /// Nothing could be said, or not as much as with another guest; the detail has the reason.
    Weaker,
    /// Lacuna refused the guest as unsafe, and left it alone.
    Refused,
    /// It did not hold.
    Bad,
}

/// One row of a trial's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The figures, or the reason, in a line.
    pub detail: String,
}

/// From dom0 to the lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// dom0 is up, its services run, and it takes orders.
    Ready {
        /// Xen's version, as `xl info` has it.
        xen: String,
        /// dom0's kernel release.
        kernel: String,
    },
    /// dom0 cannot be brought up.
    Broken {
        /// What failed.
        why: String,
    },
    /// A step of a scenario, told as it happens.
    Note {
        /// One line.
        text: String,
    },
    /// A figure that a scenario measured.
    Figure {
        /// Its name, as in the report that `--json` writes.
        name: String,
        /// Its value.
        value: Value,
    },
    /// A guest shut down while it booted, and no operation of Lacuna was carried out on it before; the
    /// scenario fails for it.
    DiedUntouched {
        /// Its domain's number.
        domain: u16,
    },
    /// The host reboots, as the scenario wants it; when it is [`Event::Ready`] again the lab orders the same
    /// scenario anew, which goes on from there.
    Rebooting,
    /// Part of a log file that lives in dom0's memory only.
    Log {
        /// The file's name on the lab's side.
        file: String,
        /// What is to be appended to it.
        text: String,
    },
    /// The scenario held.
    Passed {
        /// Its name.
        scenario: String,
    },
    /// The scenario did not hold.
    Failed {
        /// Its name.
        scenario: String,
        /// What was looked at.
        what: String,
        /// What should have been.
        expected: String,
        /// What was.
        seen: String,
    },
}
