//! The disks that an emulated machine has.

use std::path::PathBuf;

/// A disk of the machine's. What is written to it is thrown away.
pub(crate) struct Drive {
    /// The raw image, a file of the machine's.
    pub(crate) file: PathBuf,
}

impl Drive {
    /// What goes on the emulator's command line for the `number`-th; dom0 finds it by its serial
    /// number.
    pub(super) fn arguments(&self, number: usize) -> [String; 4] {
        self.attached(number, "nvme")
    }

    /// The same with another `device` to attach it to.
    pub(super) fn attached(&self, number: usize, device: &str) -> [String; 4] {
        [
            "-drive".to_owned(),
            format!(
                "if=none,id=drive{number},format=raw,snapshot=on,file={}",
                // QEMU ends a value at a comma, and takes two for one.
                self.file.to_string_lossy().replace(',', ",,")
            ),
            "-device".to_owned(),
            format!("{device},drive=drive{number},serial={}", Self::serial(number)),
        ]
    }

    /// The serial number of the `number`-th.
    pub(crate) fn serial(number: usize) -> String {
        format!("drive{number}")
    }
}
