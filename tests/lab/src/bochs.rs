//! The machine with Intel's nested paging (EPT): Bochs, which emulates VMX where QEMU does not.
//!
//! One processor, about a hundredth of a real one's speed. Bochs boots nothing but a disk, so Xen, dom0's
//! kernel and its file system go onto a CD.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::context::Context;
use crate::emulator::{DOM0_LINE, XEN_LINE};
use crate::error::{IoContext, Result};
use crate::image::Images;
use crate::key::KeyBuilder;
use crate::process::run_logged;
use crate::sysroot::Sysroot;
use crate::xen::Hypervisor;

/// How long Xen and dom0 may take to come up: 3 minutes on an idle machine.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(1500);

/// What the sysroot needs on top of its own packages. Not among those, as few runs come here.
const PACKAGES: &[&str] = &[
    "bochs",
    "seabios",
    "vgabios",
    "grub-pc-bin",
    "grub-common",
    "xorriso",
    "mtools",
];

/// Emulated instructions in an emulated second: generous, so that time limits inside the machine mean what
/// they mean on a fast one.
const INSTRUCTIONS_PER_SECOND: &str = "200000000";

/// A machine that is ready to be started.
pub(crate) struct Disc {
    image: PathBuf,
}

impl Disc {
    /// Makes the CD, and installs what that and running it take.
    pub(crate) fn build(
        context: &Context,
        sysroot: &Sysroot,
        xen: &Hypervisor,
        images: &Images,
    ) -> Result<Self> {
        let mut key = KeyBuilder::new("bochs", 1).key(&sysroot.key);
        for package in PACKAGES {
            key = key.text(package);
        }
        context.download("bochs", &key.finish(), |progress| {
            let mut install = vec!["apt-get", "install", "-y", "--no-install-recommends"];
            install.extend(PACKAGES);
            let log = context.step_log("bochs");
            sysroot.refresh(&log, progress)?;
            run_logged(sysroot.command("/", &install), &log, progress)
        })?;
        let tree = context.cached("bochs/disc");
        let image = context.cached("bochs/disc.iso");
        let files = [
            ("boot/xen", xen.directory.join("xen")),
            ("boot/vmlinuz", images.kernel.clone()),
            ("boot/dom0.cpio", images.dom0.clone()),
        ];
        let configuration = menu();
        let mut key = KeyBuilder::new("bochs/disc", 1).text(&configuration);
        for (_, file) in &files {
            key = key.file(file)?;
        }
        context.step("bochs/disc", &key.finish(), |progress| {
            let grub = tree.join("boot/grub");
            fs::create_dir_all(&grub).on("create", &grub)?;
            for (name, from) in &files {
                let to = tree.join(name);
                fs::copy(from, &to).on("write", &to)?;
            }
            let menu = grub.join("grub.cfg");
            fs::write(&menu, &configuration).on("write", &menu)?;
            let (to, from) = (image.to_string_lossy(), tree.to_string_lossy());
            run_logged(
                sysroot.command("/", &["grub-mkrescue", "-o", &to, &from]),
                &context.step_log("bochs/disc"),
                progress,
            )
        })?;
        Ok(Self { image })
    }

    /// The command that runs the machine: the first serial port into `console`, the second to the local TCP
    /// `port`. Its configuration and its own log go into `logs`.
    pub(crate) fn machine(
        &self,
        sysroot: &Sysroot,
        console: &Path,
        port: u16,
        logs: &Path,
    ) -> Result<Command> {
        let settings = logs.join("bochsrc");
        // All the memory that Bochs can hold; beyond it would swap to a file. SeaBIOS and not Bochs' own
        // BIOS, with which GRUB crashes (Bochs 3.0). Haswell is its first processor with all of EPT. The
        // display is a VNC server that does not wait for anyone.
        let text = format!(
            "memory: guest=2048, host=2048\n\
             romimage: file=/usr/share/seabios/bios.bin\n\
             vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
             cpu: model=corei7_haswell_4770, count=1, ips={INSTRUCTIONS_PER_SECOND}, \
             reset_on_triple_fault=0, ignore_bad_msrs=1\n\
             clock: sync=none\n\
             ata0: enabled=1\n\
             ata0-master: type=cdrom, path={}, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev={}\n\
             com2: enabled=1, mode=socket-client, dev=localhost:{port}\n\
             log: {}\n\
             panic: action=fatal\n\
             error: action=ignore\n\
             info: action=ignore\n\
             display_library: rfb, options=\"timeout=0\"\n",
            self.image.display(),
            console.display(),
            logs.join("bochs.log").display(),
        );
        fs::write(&settings, text).on("write", &settings)?;
        // Niced: it runs for long, and what else the machine does should not wait for it.
        let settings = settings.to_string_lossy();
        let line = ["nice", "-n", "5", "bochs", "-q", "-f", &settings];
        let mut command = sysroot.command(logs, &line);
        command.env("BXSHARE", "/usr/share/bochs");
        Ok(command)
    }
}

/// GRUB's menu: one entry, at once. Xen offers altp2m only where its command line says so; a scenario has it
/// refused.
fn menu() -> String {
    // GRUB takes the first word after the file as part of the command line; `placeholder` stands for the
    // program's name. apicv=0: docs/lab.md, "What the emulator does wrong".
    format!(
        "set timeout=0\n\
         terminal_output console\n\
         menuentry xen {{\n\
         multiboot2 /boot/xen placeholder {XEN_LINE} altp2m apicv=0 noreboot\n\
         module2 /boot/vmlinuz placeholder {DOM0_LINE}\n\
         module2 /boot/dom0.cpio\n\
         boot\n\
         }}\n"
    )
}
