//! libvirt on the Debian host: a guest that libvirt defines, starts, saves, restores, and moves to another
//! libvirtd of the same host. What `virsh` does goes by way of Lacuna's libraries, and leaves free pages out.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use lacuna_guest::Task;

use super::debian_host::{
    AGENT_LIMIT, GROWN_MIB, MIB, expect, follow, given_back, held, install_and_boot, silent,
};
use crate::failure::{Result, differs, ensure};
use crate::guest::Guest;
use crate::host::{Host, wait_until};

/// The guest's name, and the one that it has after it was moved: the two domains are there at once.
const NAME: &str = "libvirt";
const MOVED: &str = "moved";
const UUID: &str = "6c616375-6e61-4d6f-8000-0000000000f1";

/// Where the second libvirtd keeps what the first one has in `/etc`, `/run` and `/var/lib`.
const SECOND: &str = "/root/second";
/// The port at which the second one takes orders, on the loopback interface.
const PORT: u16 = 16_510;

/// libvirtd's Xen driver does not start on a processor that has not all features of some model of its list. QEMU
/// emulates no VME, which all of them have: without it here, the simplest of them fits.
const KNOWN_PROCESSOR: &str = "\
cd /usr/share/libvirt/cpu_map && sed '/vme/d' x86_486.xml > /run/x86_486.xml && \
mount --bind /run/x86_486.xml x86_486.xml && systemctl restart libvirtd";
/// The package's own file is there again. A libvirtd that runs keeps what it has read.
const PACKAGED_PROCESSOR: &str = "umount /usr/share/libvirt/cpu_map/x86_486.xml";

/// Starts libvirtd, in a mount namespace of its own, in which each of its folders is another one.
const SECOND_SCRIPT: &str = "\
set -e
for folder in /run/libvirt /var/lib/libvirt /var/log/libvirt /etc/libvirt /var/cache/libvirt; do
    mkdir -p $folder $SECOND$folder
done
cp -a /etc/libvirt/. $SECOND/etc/libvirt
# What the first one has defined the second one must not know.
rm -f $SECOND/etc/libvirt/libxl/*.xml
for folder in /run/libvirt /var/lib/libvirt /var/log/libvirt /etc/libvirt /var/cache/libvirt; do
    mount --bind $SECOND$folder $folder
done
printf 'listen_tls = 0\\nlisten_tcp = 1\\ntcp_port = \"%s\"\\nlisten_addr = \"127.0.0.1\"\\nauth_tcp = \"none\"\\n' \\
    $PORT > /etc/libvirt/libvirtd.conf
exec libvirtd --listen --pid-file /run/libvirt/libvirtd.pid
";

/// A libvirtd of the scenario's, which ends with it.
struct Second(Child);

impl Drop for Second {
    fn drop(&mut self) {
        // It has ended already, or is asked to; nothing depends on it any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest as libvirt describes one. It is the same as the other guests of the lab.
fn domain() -> String {
    format!(
        "<domain type='xen'>
  <name>{NAME}</name>
  <uuid>{UUID}</uuid>
  <memory unit='MiB'>{MIB}</memory>
  <currentMemory unit='MiB'>{MIB}</currentMemory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='xenpvh'>xenpvh</type>
    <kernel>/guests/6.12/vmlinuz</kernel>
    <initrd>/guests/initrd</initrd>
    <cmdline>console=hvc0 loglevel=4 panic=1</cmdline>
  </os>
  <clock offset='utc'><timer name='tsc' mode='native'/></clock>
  <on_poweroff>preserve</on_poweroff>
  <on_reboot>preserve</on_reboot>
  <on_crash>preserve</on_crash>
  <devices>
    <console type='pty'><target type='xen' port='0'/></console>
  </devices>
</domain>
"
    )
}

/// What `virsh` does with a guest, and what Lacuna makes of it.
pub(super) fn libvirt(host: &mut Host) -> Result<()> {
    install_and_boot(host)?;
    silent(host, KNOWN_PROCESSOR)?;
    let managed = managed(host);
    // In any case: those that come after it in this boot look at packages' files, too.
    managed.and(silent(host, PACKAGED_PROCESSOR))
}

/// A guest's life from `virsh define` to `virsh undefine`.
fn managed(host: &mut Host) -> Result<()> {
    let uri = expect(host, "timeout 100 virsh uri", 0, &[])?;
    ensure(
        uri.trim() == "xen:///system",
        "`virsh uri`",
        "xen:///system",
        &uri,
    )?;
    expect(host, "lacuna doctor", 0, &[])?;
    fs::write("/root/libvirt.xml", domain())?;
    expect(host, "virsh define /root/libvirt.xml", 0, &[NAME])?;
    expect(host, &format!("virsh start {NAME}"), 0, &[])?;
    let mut guest = Guest::created(host, NAME)?;
    follow(&guest)?;
    guest.wait_ready()?;
    given_back(host, NAME)?;
    adds_up(host, NAME)?;
    saved(host, &mut guest)?;
    given_back(host, NAME)?;
    moved(host, &mut guest)?;
    guest.check_health()?;
    silent(host, &format!("xl destroy {MOVED}"))?;
    expect(host, &format!("virsh undefine {NAME}"), 0, &[])?;
    Ok(())
}

/// `virsh` and `xl` say the same of the guest's memory.
fn adds_up(host: &mut Host, name: &str) -> Result<()> {
    let told = expect(host, &format!("virsh dominfo {name}"), 0, &["Used memory"])?;
    let used = told
        .lines()
        .find_map(|line| line.strip_prefix("Used memory:"))
        .and_then(|text| text.split_whitespace().next())
        .and_then(|text| text.parse::<u64>().ok())
        .ok_or_else(|| differs("`virsh dominfo`", "used memory in KiB", &told))?;
    // What Xen itself needs for a guest beside its memory is in both, and may differ by rounding.
    let (used, listed) = (used / 1024, held(host, name)?);
    ensure(
        used.abs_diff(listed) <= 1,
        "used memory in `virsh dominfo`",
        &format!("what `xl list` has, {listed} MiB"),
        &used.to_string(),
    )
}

/// Pages that the last save or migration of the guest left out as free, by what libxenguest wrote down.
fn left_out(host: &mut Host) -> Result<u64> {
    let text = expect(host, &format!("cat /run/lacuna/{UUID}.sent.json"), 0, &[])?;
    let told: serde_json::Value = serde_json::from_str(&text).map_err(std::io::Error::other)?;
    told["total"]["free"]
        .as_u64()
        .ok_or_else(|| differs("pages left out as free", "a number", &text))
}

/// Fails when less than half of the guest was left out.
fn mostly_left_out(host: &mut Host, figure: &str) -> Result<()> {
    let pages = left_out(host)?;
    host.figure(figure, pages)?;
    let half = MIB * crate::guest::PAGES_PER_MIB / 2;
    ensure(
        pages > half,
        "pages left out as free",
        &format!("more than {half}"),
        &pages.to_string(),
    )
}

/// The guest takes memory and frees it again, and none of what it gets has anything in it.
fn works(guest: &mut Guest) -> Result<()> {
    guest.grow(GROWN_MIB, AGENT_LIMIT)?;
    guest.order(Task::Shrink, AGENT_LIMIT).map(drop)
}

/// A save by `virsh` leaves free pages out, and the guest goes on when it is restored.
fn saved(host: &mut Host, guest: &mut Guest) -> Result<()> {
    let file = "/root/libvirt.save";
    expect(host, &format!("virsh save {NAME} {file}"), 0, &[])?;
    let bytes = fs::metadata(file)?.len();
    host.figure("saved_bytes", bytes)?;
    mostly_left_out(host, "save_left_out")?;
    expect(host, &format!("virsh restore {file}"), 0, &[])?;
    fs::remove_file(file)?;
    guest.domain = host.domain_number(NAME)?;
    follow(guest)?;
    works(guest)?;
    let half = MIB << 19;
    ensure(
        bytes < half,
        "bytes of the saved guest",
        &format!("less than {half}"),
        &bytes.to_string(),
    )
}

/// The guest is moved to the second libvirtd by `virsh`, which leaves free pages out.
fn moved(host: &mut Host, guest: &mut Guest) -> Result<()> {
    let _second = second(host)?;
    expect(
        host,
        &format!(
            "virsh migrate --live --dname {MOVED} {NAME} xen+tcp://127.0.0.1:{PORT}/system tcp://127.0.0.1:49500"
        ),
        0,
        &[],
    )?;
    mostly_left_out(host, "migration_left_out")?;
    guest.domain = host.domain_number(MOVED)?;
    follow(guest)?;
    works(guest)?;
    given_back(host, MOVED)
}

/// Starts the second libvirtd and waits until it takes orders.
fn second(host: &mut Host) -> Result<Second> {
    let log = Path::new("/root/second.log");
    let output = fs::File::create(log)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", SECOND_SCRIPT])
        .env("SECOND", SECOND)
        .env("PORT", PORT.to_string())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdout(output.try_clone()?)
        .stderr(output);
    let mut second = Second(command.spawn()?);
    let line = format!("virsh --connect xen+tcp://127.0.0.1:{PORT}/system list --all");
    wait_until("the second libvirtd takes orders", AGENT_LIMIT, || {
        if let Some(status) = second.0.try_wait()? {
            let told = fs::read_to_string(log)?;
            return Err(differs(
                "the second libvirtd",
                "runs",
                &format!("{status}: {told}"),
            ));
        }
        Ok(expect(host, &line, 0, &[]).ok().map(drop))
    })?;
    Ok(second)
}
