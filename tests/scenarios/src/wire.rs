//! The lines between the lab and the driver in dom0: JSON, one object a line, over dom0's second serial port.
//!
//! The first port is Xen's console, onto which Xen, dom0's kernel and QEMU write in the middle of each other's lines.

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
    /// Shut dom0 down, which ends the emulation.
    PowerOff,
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
