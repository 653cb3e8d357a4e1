//! Two guests of the Debian host that have what guests have: a disk with a file system, which the host's
//! kernel serves to one and QEMU to the other, and a network card. Their free memory comes and goes with
//! nobody at the keyboard, while they read and write what they can check.

mod full;
mod machine;

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use lacuna_guest::{Report, Task};

use super::debian_host::{AGENT_LIMIT, MIB, expect, given_back, install_and_boot, silent};
use crate::failure::{Result, ensure, equal};
use crate::guest::PAGES_PER_MIB;
use crate::host::{Host, wait_until};
use machine::{FILES_LIMIT, Kind, Machine};

/// How long the guests work at a time.
const WORKED: Duration = Duration::from_secs(10);
/// What a guest is ballooned down to, in MiB, and how long that may take.
const BALLOONED_MIB: u64 = 320;
const BALLOON_LIMIT: Duration = Duration::from_secs(120);

/// Makes the guests' kernel, which is the host's, and their file system with its drivers; their disks; and
/// the bridge. Grants that a frontend keeps for good would be of memory that it has written to before: then
/// nothing of a disk's would ever reach a page that was given back, so the host's kernel does without.
const PREPARE: &str = "\
set -e
# What a scenario that failed has left.
losetup --detach-all
ip link delete lab0 2>/dev/null || true
rm -rf /root/image /root/*.img
if [ -e /root/lacunad.toml ]; then mv /root/lacunad.toml /etc/lacuna/lacunad.toml; fi
kernel=$(uname -r)
mkdir -p /guests/debian /root/image/disks
cp /boot/vmlinuz-$kernel /guests/debian/vmlinuz
number=0
for module in crypto/crc32c_generic lib/crc16 fs/mbcache fs/jbd2/jbd2 fs/ext4/ext4 \
        drivers/block/xen-blkfront drivers/net/xen-netfront; do
    cp /lib/modules/$kernel/kernel/$module.ko.xz /root/image/disks/$number-${module##*/}.ko.xz
    number=$((number + 1))
done
cd /root/image
cp --parents --dereference /usr/bin/ip $(ldd /usr/bin/ip | grep -o '/[^ ]*') .
(find . | cpio --quiet --create --format newc; cat /guests/initrd) > /guests/disks.initrd
modprobe loop
modprobe xen-blkback feature_persistent=0
grep -q N /sys/module/xen_blkback/parameters/feature_persistent
for name in kernel qemu; do
    truncate --size 192M /root/$name.img
    mke2fs -q -t ext4 -b 4096 /root/$name.img
done
losetup /dev/loop0 /root/kernel.img
ip link add lab0 type bridge
ip address add 10.0.0.1/24 dev lab0
ip link set lab0 up
";

/// Has the daemon be quick, as an emulated host is slow, and keep no headroom: then whatever a guest reads
/// goes to pages that were given back. The neighbour never runs, so has no kernel to be found: looking for one
/// in all of its memory again and again would keep the daemon from the others.
const DAEMON: &str = "\
cp /etc/lacuna/lacunad.toml /root && \
sed --in-place 's/^cpu_percent = 5 /cpu_percent = 40 /; s/^give_back = \"settled\"/give_back = \"everything\"/; \
s/^interval_seconds = 60.0/interval_seconds = 5.0/' /etc/lacuna/lacunad.toml && \
test $(diff /etc/lacuna/lacunad.toml /root/lacunad.toml | grep -c '^>') = 3 && \
printf '[domain.neighbour]\\nmode = \"off\"\\n' >> /etc/lacuna/lacunad.toml && systemctl reload lacunad";

/// Has it do as before.
const DAEMON_AS_BEFORE: &str = "mv /root/lacunad.toml /etc/lacuna/lacunad.toml && systemctl reload lacunad";

/// Undoes what of it is in the host's kernel.
const END: &str = "losetup --detach /dev/loop0 && ip link delete lab0 && rm -r /root/image /root/*.img";

/// Fails, and shows the lines, where the host's kernel tells of a disk or a grant that has failed.
const HOST_TROUBLE: &str = "! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|JBD2: |BUG:|Oops|WARNING: CPU|\
                            blkback: .*(fail|error)|vif.*(fail|error|fatal)|gntdev.*fail|gnttab.*fail'";

/// Finds a file in the file system on `$disk`.
const FIND_FILE: &str = "\
set -e
file=$(debugfs -R 'ls -p /' $disk 2>/dev/null | awk -F/ '$6 ~ /^[0-9]+-[0-9]+$/ { print $6; exit }')
";

/// Changes a page of `$file` in the file system on `$disk` behind everybody's back.
const CHANGE_PAGE: &str = "\
block=$(debugfs -R \"bmap /$file 0\" $disk 2>/dev/null)
test $block -gt 0
dd if=/dev/zero of=$disk bs=4096 seek=$block count=1 conv=notrunc,fsync status=none
";

/// Takes the inode of `$file` away from the file system on `$disk`.
const CLEAR_INODE: &str = "\
debugfs -w -R \"clri /$file\" $disk 2>/dev/null
sync
";

/// The first one's disk is served by the host's kernel (blkback), the other one's by QEMU (qdisk).
const KINDS: [Kind; 2] = [
    Kind {
        name: "kernel",
        configuration: "disk=[\"format=raw, vdev=xvda, access=rw, backendtype=phy, target=/dev/loop0\"]\n\
                        vif=[\"mac=00:16:3e:00:00:0a, bridge=lab0\"]\non_reboot=\"restart\"",
        disk: "/root/kernel.img",
        seed: 0x0d15_c0de,
        address: Ipv4Addr::new(10, 0, 0, 10),
    },
    Kind {
        name: "qemu",
        configuration: "disk=[\"format=raw, vdev=xvda, access=rw, backendtype=qdisk, target=/root/qemu.img\"]\n\
                        vif=[\"mac=00:16:3e:00:00:0b, bridge=lab0\"]\non_reboot=\"restart\"",
        disk: "/root/qemu.img",
        seed: 0x0f11_e5ed,
        address: Ipv4Addr::new(10, 0, 0, 11),
    },
];

/// Guests work with their disks and cards, and restart; nothing is lost, and what is changed behind their
/// backs is noticed.
pub(super) fn disks(host: &mut Host) -> Result<()> {
    let mut machines = started(host)?;
    goes_on(host, &mut machines)?;
    traffic_ends(host, &mut machines)?;
    for machine in &mut machines {
        restarted(host, machine)?;
        machine.guest.order(Task::Unmount, AGENT_LIMIT)?;
        noticed(host, machine)?;
    }
    ended(host, machines)?;
    for kind in &KINDS {
        inode_lost(host, kind)?;
    }
    silent(host, END)
}

/// Guests read their disks while the host has no memory.
pub(super) fn full_host(host: &mut Host) -> Result<()> {
    let mut machines = started(host)?;
    goes_on(host, &mut machines)?;
    full::full(host, &mut machines)?;
    goes_on(host, &mut machines)?;
    all_right(host, machines)
}

/// Guests are ballooned, saved, restored and moved while they work with their disks and cards.
pub(super) fn moved_disks(host: &mut Host) -> Result<()> {
    let mut machines = started(host)?;
    for number in 0..machines.len() {
        stored(host, &mut machines[number])?;
        goes_on(host, &mut machines)?;
        moved(host, &mut machines[number])?;
        goes_on(host, &mut machines)?;
    }
    for machine in &machines {
        given_back(host, machine.kind.name)?;
    }
    host.note("ballooning")?;
    for machine in &mut machines {
        ballooned(host, machine)?;
    }
    all_right(host, machines)
}

/// The guests stop talking and working, and have all that they wrote.
fn all_right(host: &mut Host, mut machines: Vec<Machine>) -> Result<()> {
    traffic_ends(host, &mut machines)?;
    for machine in &mut machines {
        checked(host, machine)?;
        machine.guest.order(Task::Unmount, AGENT_LIMIT)?;
    }
    ended(host, machines)?;
    silent(host, END)
}

/// Starts the guests, waits until their memory is given back, and has them work.
fn started(host: &mut Host) -> Result<Vec<Machine>> {
    install_and_boot(host)?;
    silent(host, PREPARE)?;
    silent(host, DAEMON)?;
    let mut machines = Vec::new();
    for kind in &KINDS {
        machines.push(Machine::start(host, kind)?);
    }
    for machine in &machines {
        given_back(host, machine.kind.name)?;
    }
    for machine in &mut machines {
        machine.work()?;
    }
    machines[1].talk_to(&KINDS[0])?;
    Ok(machines)
}

/// The guest stops its work, and has all of its files when it reads them from the disk again.
fn checked(host: &mut Host, machine: &mut Machine) -> Result<()> {
    let had = machine.rest(host)?;
    machine.forget()?;
    machine.check(host, &had)?;
    machine.guest.check_health_after_waiting()
}

/// Ends the guests, whose file systems must be whole, and nothing in the host's log may tell otherwise.
fn ended(host: &mut Host, machines: Vec<Machine>) -> Result<()> {
    silent(host, HOST_TROUBLE)?;
    for machine in machines {
        machine.end(host)?;
    }
    silent(host, DAEMON_AS_BEFORE)
}

/// The guests work for a while, and so do their disks and cards.
fn goes_on(host: &mut Host, machines: &mut [Machine]) -> Result<()> {
    std::thread::sleep(WORKED);
    for machine in &mut *machines {
        machine.works(host)?;
        machine.guest.check_health_after_waiting()?;
    }
    machines[1].talks()?;
    silent(host, HOST_TROUBLE)
}

/// The guest is ballooned down and up again while it works.
fn ballooned(host: &mut Host, machine: &mut Machine) -> Result<()> {
    let name = machine.kind.name;
    host.note(&format!("ballooning {name}"))?;
    let before = machine.total()?;
    let given = (MIB - BALLOONED_MIB) * PAGES_PER_MIB;
    expect(host, &format!("xl mem-set {name} {BALLOONED_MIB}m"), 0, &[])?;
    wait_until("the guest's balloon has grown", BALLOON_LIMIT, || {
        Ok((machine.total()? <= before - given).then_some(()))
    })?;
    machine.works(host)?;
    expect(host, &format!("xl mem-set {name} {MIB}m"), 0, &[])?;
    wait_until("the guest's balloon has shrunk", BALLOON_LIMIT, || {
        // The balloon may stop a little before the target.
        Ok((machine.total()? + PAGES_PER_MIB >= before).then_some(()))
    })
}

/// The guest is saved and restored while it works; the save leaves out what it does not use.
fn stored(host: &mut Host, machine: &mut Machine) -> Result<()> {
    let name = machine.kind.name;
    host.note(&format!("saving and restoring {name}"))?;
    let file = format!("/root/{name}.save");
    expect(host, &format!("xl save {name} {file}"), 0, &[])?;
    let bytes = fs::metadata(&file)?.len();
    host.figure(&format!("{name}_saved_bytes"), bytes)?;
    expect(host, &format!("xl restore {file}"), 0, &[])?;
    fs::remove_file(&file)?;
    machine.has_moved(host)?;
    machine.works(host)?;
    ensure(
        bytes < MIB << 19,
        "bytes of the saved guest",
        "less than half of its memory",
        &bytes.to_string(),
    )
}

/// The guest is moved to another domain of the same host while it works.
fn moved(host: &mut Host, machine: &mut Machine) -> Result<()> {
    let (name, before) = (machine.kind.name, machine.guest.domain);
    host.note(&format!("moving {name}"))?;
    let line = format!("xl migrate -s '' {name} 'xl migrate-receive'");
    expect(host, &line, 0, &["Migration successful"])?;
    machine.has_moved(host)?;
    ensure(
        machine.guest.domain != before,
        "the guest's domain",
        "another one",
        &before.to_string(),
    )?;
    machine.works(host)
}

/// The guests stop talking, and neither has seen anything wrong.
fn traffic_ends(host: &mut Host, machines: &mut [Machine]) -> Result<()> {
    let sent = machines[1].traffic(Task::TrafficStop)?;
    host.figure("pages_of_answers", sent.pages)?;
    let got = machines[0].traffic(Task::CardStatus)?;
    host.figure("pages_of_messages", got.pages)?;
    equal("pages received at both ends", &sent.pages, &got.pages)
}

/// The guest restarts itself, has all of its files then, and works on.
fn restarted(host: &mut Host, machine: &mut Machine) -> Result<()> {
    let name = machine.kind.name;
    host.note(&format!("restarting {name}"))?;
    machine.guest.check_health_after_waiting()?;
    let had = machine.rest(host)?;
    machine.guest.order(Task::Unmount, AGENT_LIMIT)?;
    machine.restart(host)?;
    machine.check(host, &had)?;
    machine.work()?;
    given_back(host, name)?;
    machine.works(host)?;
    checked(host, machine)
}

/// One page that is changed behind the guest's back is noticed, and no other.
fn noticed(host: &mut Host, machine: &mut Machine) -> Result<()> {
    let disk = machine.kind.disk;
    silent(host, &format!("disk={disk}\n{FIND_FILE}{CHANGE_PAGE}"))?;
    machine.guest.order(Task::Mount, AGENT_LIMIT)?;
    let task = Task::FilesCheck {
        seed: machine.kind.seed,
    };
    let report = machine.guest.order(task, FILES_LIMIT)?;
    ensure(
        matches!(&report, Report::Files(seen) if (seen.wrong, seen.errors) == (1, 0)),
        "files with one page changed behind the guest's back",
        "one page wrong",
        &format!("{report:?}"),
    )?;
    machine.guest.order(Task::Unmount, AGENT_LIMIT).map(drop)
}

/// A file system that has lost an inode is not whole for e2fsck.
fn inode_lost(host: &mut Host, kind: &Kind) -> Result<()> {
    let disk = kind.disk;
    silent(host, &format!("disk={disk}\n{FIND_FILE}{CLEAR_INODE}"))?;
    // "File system errors left uncorrected", e2fsck(8).
    expect(host, &format!("e2fsck -fn {disk}"), 4, &[])?;
    Ok(())
}
