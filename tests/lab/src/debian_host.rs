//! A host as people have it: Debian with systemd, GRUB and Debian's own Xen, on a disk from which the machine
//! boots. Debian 13 for Xen 4.20, Debian 12 for 4.17.
//!
//! The lab adds what one has to add to drive it: a unit that starts the driver, and Xen's console on the
//! serial port. What it brings along comes on a second disk, which is a tar archive: the product's packages,
//! which a scenario installs as docs/install.md says, the driver, and a guest.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::{Context, Staged, require_root};
use crate::emulator::{Drive, XEN_LINE};
use crate::error::{Error, IoContext, Result};
use crate::image::step_name;
use crate::key::{Key, KeyBuilder};
use crate::process::run_logged;
use crate::product;
use crate::progress::Progress;
use crate::setup::Stage;
use crate::sysroot::{SUITE, Sysroot};
use crate::variant::RELEASE;
use crate::xen::own_tests::PROGRAMS as OWN_TESTS;
use crate::xen::place;
use crate::xen::series::Series;

/// The release of Debian that has a series of Xen.
struct Release {
    suite: &'static str,
    /// The lab's name for the host.
    name: &'static str,
}

impl Release {
    const fn with(series: Series) -> Self {
        match series {
            Series::V4_20 => Self {
                suite: SUITE,
                name: "debian-host",
            },
            Series::V4_17 => Self {
                suite: "bookworm",
                name: "debian-12-host",
            },
        }
    }

    /// The path in the cache, and the name of the step, of a part of the host.
    fn part(&self, part: &str) -> String {
        format!("{}/{part}", self.name)
    }
}

/// What is installed on top of debootstrap's minimal base: what Debian's installer leaves on a host with Xen
/// that it starts by a BIOS, libvirt, and the device model, which serves disks that are files.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "e2fsprogs",
    "initramfs-tools",
    "zstd",
    "linux-image-amd64",
    "grub-pc",
    "xen-system-amd64",
    "qemu-system-xen",
    "libvirt-daemon-system",
    "libvirt-daemon-driver-xen",
    "libvirt-clients",
];

/// The disk, in MiB.
const DISK_MIB: u64 = 3072;
/// Where its only partition begins, in sectors of 512 bytes; GRUB lies before it.
const FIRST_SECTOR: u32 = 2048;
const SECTOR: u64 = 512;
/// Bytes of the first sector that are GRUB's; the partition table follows.
const BOOT_CODE: usize = 440;
/// Where the partition table is (IBM's, as every BIOS knows it).
const TABLE: u64 = 446;
/// The file system's identifier, by which it is mounted.
const IDENTIFIER: &str = "6c616375-6e61-4d6f-8000-00000000d013";

/// Keeps services from being started in the tree, which is not booted: Debian's policy-rc.d, status 101.
const NO_SERVICES: &str = "usr/sbin/policy-rc.d";

/// Starts the driver. What the lab brings along is on the second disk.
const UNIT: &str = "\
[Unit]
Description=The lab's driver
After=xen.service

[Service]
ExecStartPre=/bin/sh -ec 'mkdir -p /opt/lab && tar --extract --file /dev/vdb --directory /opt/lab'
ExecStart=/opt/lab/lab-dom0 host /opt/lab
TimeoutStopSec=5

[Install]
WantedBy=multi-user.target
";
const UNIT_NAME: &str = "lab-driver.service";

/// Makes the two disks.
pub(crate) fn drives(stage: &Stage) -> Result<[Drive; 2]> {
    let release = Release::with(stage.series());
    let disk = disk(stage.context(), &release, &stage.sysroot)?;
    let brought = brought(stage, &release)?;
    Ok([disk, brought].map(|file| Drive { file }))
}

/// Makes Debian's tree.
fn tree(context: &Context, release: &Release, sysroot: &Sysroot) -> Result<Sysroot> {
    let name = release.part("tree");
    let mut key = KeyBuilder::new("debian-host/tree", 1).text(release.suite);
    for package in PACKAGES {
        key = key.text(package);
    }
    let tree = sysroot
        .at(context.cached(&name), key.finish())
        .of_suite(release.suite);
    context.download(&name, &tree.key, |progress| {
        require_root()?;
        let log = context.step_log(&name);
        let staged = Staged::directory(tree.root.clone())?;
        let fresh = tree.at(staged.path.clone(), tree.key.clone());
        fresh.bootstrap(context, &log, progress)?;
        fresh.write(NO_SERVICES, "#!/bin/sh\nexit 101\n")?;
        let mode = ["chmod", "755", NO_SERVICES];
        run_logged(fresh.command("/", &mode), &log, progress)?;
        fresh.install(PACKAGES, &log, progress)?;
        let policy = staged.path.join(NO_SERVICES);
        fs::remove_file(&policy).on("remove", &policy)?;
        staged.commit()
    })?;
    Ok(tree)
}

/// The file in `/boot` of `tree` whose name begins with `begin` and ends with `end`; there is one.
fn booted(tree: &Sysroot, begin: &str, end: &str) -> Result<String> {
    let folder = tree.root.join("boot");
    for entry in fs::read_dir(&folder).on("list", &folder)? {
        let name = entry
            .on("list", &folder)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name.starts_with(begin) && name.ends_with(end) {
            return Ok(name);
        }
    }
    Err(Error::Unexpected {
        what: format!("{}", folder.display()),
        expected: format!("a file {begin}…{end}"),
        seen: "none".to_owned(),
    })
}

/// Files of the host's that differ from what Debian's packages leave, by name.
fn settings(tree: &Sysroot) -> Result<Vec<(&'static str, String)>> {
    let serial = "serial --unit=0 --speed=115200";
    let linux = "console=hvc0";
    let defaults = format!(
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=\"{linux}\"\n\
         GRUB_CMDLINE_XEN=\"{XEN_LINE}\"\nGRUB_TERMINAL=serial\nGRUB_SERIAL_COMMAND=\"{serial}\"\n"
    );
    // GRUB's own generator needs the disk that the host runs from: this is for its first boot, and the host
    // writes another one when the first package asks for it.
    let menu = format!(
        "{serial}\nterminal_output serial\nmultiboot2 /boot/{} placeholder {XEN_LINE}\n\
         module2 /boot/{} placeholder root=UUID={IDENTIFIER} ro {linux}\nmodule2 /boot/{}\nboot\n",
        booted(tree, "xen-", ".gz")?,
        booted(tree, "vmlinuz-", "")?,
        booted(tree, "initrd.img-", "")?,
    );
    Ok(vec![
        ("etc/default/grub", defaults),
        ("boot/grub/grub.cfg", menu),
        (
            "etc/fstab",
            format!("UUID={IDENTIFIER} / ext4 errors=remount-ro 0 1\n"),
        ),
        ("etc/hostname", "debian\n".to_owned()),
        ("etc/systemd/system/lab-driver.service", UNIT.to_owned()),
    ])
}

/// Makes the host's disk.
fn disk(context: &Context, release: &Release, sysroot: &Sysroot) -> Result<PathBuf> {
    let tree = tree(context, release, sysroot)?;
    let image = context.cached(release.part("disk.img"));
    let name = release.part("disk");
    let settings = settings(&tree)?;
    let mut key = KeyBuilder::new("debian-host/disk", 1).key(&tree.key);
    for (name, text) in &settings {
        key = key.text(name).text(text);
    }
    context.step(&name, &key.finish(), |progress| {
        let log = context.step_log(&name);
        for (name, text) in &settings {
            tree.write(name, text)?;
        }
        let wanted = tree.root.join("etc/systemd/system/multi-user.target.wants").join(UNIT_NAME);
        crate::context::remove(&wanted)?;
        std::os::unix::fs::symlink(format!("../{UNIT_NAME}"), &wanted).on("link", &wanted)?;
        let script = "mkdir -p /boot/grub/i386-pc && cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst \
                      /boot/grub/i386-pc/ && grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' \
                      -o /boot/grub/core.img biosdisk part_msdos ext2";
        run_logged(tree.command("/", &["sh", "-ec", script]), &log, progress)?;
        let staged = Staged::file(image.clone())?;
        file_system(&tree.root, &staged.path, &log, progress)?;
        boot_loader(&tree.root, &staged.path)?;
        staged.commit()
    })?;
    Ok(image)
}

/// Writes the disk with the tree's files in its partition. Nothing is mounted for that.
fn file_system(tree: &Path, image: &Path, log: &Path, progress: &Progress) -> Result<()> {
    let file = fs::File::create(image).on("create", image)?;
    file.set_len(DISK_MIB << 20).on("size", image)?;
    let begin = u64::from(FIRST_SECTOR) * SECTOR;
    let mut make = Command::new("mke2fs");
    // Two features that GRUB has learnt late.
    make.args([
        "-q",
        "-t",
        "ext4",
        "-O",
        "^metadata_csum_seed,^orphan_file",
        "-U",
        IDENTIFIER,
    ]);
    make.args(["-E", &format!("offset={begin}"), "-d"])
        .arg(tree)
        .arg(image);
    make.arg(format!("{}k", (DISK_MIB << 10) - begin / 1024));
    run_logged(make, log, progress)
}

/// Puts GRUB before the partition, and the partition into the table. `grub-install` does the same on a disk
/// that the machine has: its first sector loads the second one, which loads those behind it.
fn boot_loader(tree: &Path, image: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = tree.join(name);
        fs::read(&path).on("read", &path)
    };
    let first = read("usr/lib/grub/i386-pc/boot.img")?;
    let core = read("boot/grub/core.img")?;
    let disk = fs::File::options().write(true).open(image).on("open", image)?;
    let room = u64::from(FIRST_SECTOR - 1) * SECTOR;
    let (Some(code), true) = (first.get(..BOOT_CODE), (core.len() as u64) < room) else {
        return Err(Error::Unexpected {
            what: "GRUB's images".to_owned(),
            expected: format!("{BOOT_CODE} bytes of code, and less than {room} behind them"),
            seen: format!("{} and {}", first.len(), core.len()),
        });
    };
    let write = |bytes: &[u8], at: u64| disk.write_all_at(bytes, at).on("write", image);
    write(code, 0)?;
    write(&core, SECTOR)?;
    // Active, of Linux' type, and addressed by sectors alone: the three bytes of each old address are at
    // their largest.
    let mut entry = vec![0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff];
    entry.extend(FIRST_SECTOR.to_le_bytes());
    let sectors = (DISK_MIB << 20) / SECTOR - u64::from(FIRST_SECTOR);
    entry.extend(u32::try_from(sectors).unwrap_or(u32::MAX).to_le_bytes());
    write(&entry, TABLE)?;
    write(&[0x55, 0xaa], SECTOR - 2)
}

/// Packs what the lab brings along.
fn brought(stage: &Stage, release: &Release) -> Result<PathBuf> {
    let context = stage.context();
    let archive = context.cached(release.part("brought.tar"));
    // The hypervisor of a real host lacks what the emulator needs, and the programs need no optimising linker
    // here.
    let xen = stage.variant(RELEASE)?;
    let (lacuna, agent) = (&stage.lacuna, place(context, stage.series(), "images/guest.cpio"));
    let tests = stage.own_tests()?;
    let key = brought_key(stage, &[&xen.directory.join("xen-syms"), lacuna, &agent])?;
    context.step(&step_name(stage.series(), "debian-host"), &key, |progress| {
        let log = context.step_log(&release.part("brought"));
        let product = Staged::directory(context.cached(release.part("product")))?;
        let packages = product::pack(stage, &product::lay_out(stage, &xen, lacuna, &product.path)?)?;
        let content = Staged::directory(context.cached(release.part("brought")))?;
        let copy = |from: &Path, name: &str| {
            let to = content.path.join(name);
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder).on("create", folder)?;
            }
            fs::copy(from, &to).on("copy", from).map(drop)
        };
        for package in packages {
            let name = package
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            // Symbols are large, and nobody there looks at a crash.
            if !name.contains("-dbg_") {
                copy(&package, &format!("packages/{name}"))?;
            }
        }
        copy(&lacuna.with_file_name("lab-dom0"), "lab-dom0")?;
        copy(&agent, "guests/initrd")?;
        copy(&stage.images.kernel, "guests/6.12/vmlinuz")?;
        for test in OWN_TESTS {
            let name = format!("test-{test}");
            copy(&tests.join(&name), &format!("xen-tests/{name}"))?;
        }
        let staged = Staged::file(archive.clone())?;
        let mut tar = Command::new("tar");
        tar.arg("--create").arg("--file").arg(&staged.path);
        tar.arg("--directory").arg(&content.path).arg(".");
        run_logged(tar, &log, progress)?;
        crate::context::remove(&product.path)?;
        crate::context::remove(&content.path)?;
        staged.commit()
    })?;
    Ok(archive)
}

/// Names what goes onto the second disk.
fn brought_key(stage: &Stage, files: &[&Path]) -> Result<Key> {
    let mut key = KeyBuilder::new("debian-host/brought", 2).key(&stage.tools.key);
    for file in files {
        key = key.file(file)?;
    }
    // Xen's own tests depend on the tools alone.
    for name in OWN_TESTS {
        key = key.text(name);
    }
    for name in ["lacunad", "lab-dom0"] {
        key = key.file(&stage.lacuna.with_file_name(name))?;
    }
    for folder in ["packaging", "docs", "dom0-tool/prometheus"] {
        key = key
            .text(folder)
            .tree(&stage.repository().join(folder), |_| true)?;
    }
    for name in ["lacunad.toml", "lacunad.service"] {
        key = key.file(&stage.repository().join("dom0-tool").join(name))?;
    }
    key = key.tree(&stage.repository().join("tests/lab/src/debs"), |_| true)?;
    Ok(key.file(&stage.images.kernel)?.finish())
}
