//! A machine that boots from its own disk, by its own boot loader, and that may reboot.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::{Drive, Emulator, PROCESSOR, fresh};
use crate::error::Result;
use crate::process::start;
use crate::sysroot::Sysroot;

/// How long it may take from the BIOS until all of the host's services are there: two minutes are usual.
const BOOT_LIMIT: Duration = Duration::from_secs(900);

/// One thread for both processors. With one each, QEMU (10.0.13) loses guests: an instruction on any
/// processor that restores the state of the x87 (`FXRSTOR`, `XRSTOR`, `FNINIT`) clears a bit in the first
/// processor's flags without a lock, and thereby undoes a `VMRUN` or an exit which that one carries out just
/// then (`cpu_clear_ignne()` in `target/i386/tcg/system/fpu_helper.c`; docs/lab.md).
const ACCELERATOR: &str = "tcg,thread=single,tb-size=1024";

impl Emulator {
    /// Boots from the first of `drives` and waits until the driver there takes orders. What the host writes
    /// to its disks outlives a reboot of its, and is gone when the machine is off.
    pub(crate) fn boot_disk(sysroot: &Sysroot, drives: &[Drive], logs: &Path) -> Result<Self> {
        let (console, words) = fresh(logs)?;
        let sysroot = sysroot.seeing(drives.iter().map(|drive| drive.file.clone()));
        let console = format!("file:{}", console.display());
        let mut command = sysroot.command(
            "/",
            &[
                "qemu-system-x86_64",
                "-cpu",
                PROCESSOR,
                "-accel",
                ACCELERATOR,
                "-smp",
                "2",
                "-m",
                "4G",
                "-display",
                "none",
                "-nodefaults",
                "-monitor",
                "none",
                "-serial",
                &console,
                "-chardev",
                "stdio,id=lab,signal=off",
                "-serial",
                "chardev:lab",
            ],
        );
        for (number, drive) in drives.iter().enumerate() {
            // SeaBIOS boots from it, as it does not from every NVMe disk; the host finds `vda` and `vdb`.
            command.args(drive.attached(number, "virtio-blk-pci"));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(words);
        let mut child = start(&mut command)?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for as pipes")
        };
        Self::listen(child, Box::new(orders), output, logs, BOOT_LIMIT)
    }
}
