//! A host as people have it: Debian 13, or 12, with systemd, GRUB and Debian's own Xen, on which the packages
//! are installed and used as docs/install.md says. What is typed there is in the constants below, and a
//! test holds them against the document.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lacuna_core::abi::VERSION;
use lacuna_guest::Task;

use crate::failure::{Failure, Result, differs, ensure, equal};
use crate::guest::{CONSOLES, Guest, Plan};
use crate::host::{Host, run, wait_until, xen_release};
use crate::services::xen;

/// Where the packages are.
pub(super) const PACKAGES: &str = "/opt/lab/packages";
/// Says that the host was rebooted for the hypervisor, so that it is not rebooted for ever.
const REBOOTED: &str = "/var/lib/lab-rebooted";

/// The same for the reboot after the packages were removed.
const PURGED: &str = "/var/lib/lab-purged";

/// What docs/install.md has one type, on Debian 13.
const INSTALL: &str =
    "apt install ./lacuna_*.deb ./lacuna-xen-hypervisor-4.20_*.deb ./lacuna-xen-libs-4.20_*.deb";

/// What it has one type to be rid of them.
const REMOVE: &str = "apt purge lacuna 'lacuna-xen-*'";

/// The exit statuses of docs/operations.md.
const STOCK_XEN: i32 = 6;
const NO_RIGHTS: i32 = 8;

/// How long an agent may take for an answer.
pub(super) const AGENT_LIMIT: Duration = Duration::from_secs(60);
/// On an emulated host with the daemon's own settings: with 5 % of a processor it takes three minutes to know
/// the kernel by its BTF, and a round comes each minute.
const UNATTENDED_LIMIT: Duration = Duration::from_secs(900);
/// The guest, and what it takes of its memory again, in MiB.
pub(super) const MIB: u64 = 512;
pub(super) const GROWN_MIB: u32 = 256;

/// What a command line did.
pub(super) struct Ran {
    pub(super) status: i32,
    /// Both outputs.
    pub(super) text: String,
}

/// Runs a line as an administrator would type it; the log has it with all that it wrote.
pub(super) fn shell(host: &mut Host, line: &str) -> Result<Ran> {
    let ran = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {line}")])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C.UTF-8")
        .output()?;
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let status = ran.status.code().unwrap_or(-1);
    host.log("commands.log", &format!("# {line}\n{text}[{status}]\n"))?;
    Ok(Ran { status, text })
}

/// The same for a line that must end with `status` and must say each of `parts`. Returns what it wrote.
pub(super) fn expect(host: &mut Host, line: &str, status: i32, parts: &[&str]) -> Result<String> {
    let ran = shell(host, line)?;
    let seen = format!("exit status {}: {}", ran.status, ran.text.trim());
    let what = format!("`{line}`");
    ensure(
        ran.status == status,
        &what,
        &format!("exit status {status}"),
        &seen,
    )?;
    for part in parts {
        ensure(ran.text.contains(part), &what, &format!("{part:?}"), &seen)?;
    }
    Ok(ran.text)
}

/// The same, and it must say nothing at all.
pub(super) fn silent(host: &mut Host, line: &str) -> Result<()> {
    let ran = shell(host, line)?;
    equal(&format!("`{line}`"), &(0, ""), &(ran.status, ran.text.trim()))
}

/// Whether the hypervisor that runs is Lacuna's.
pub(super) fn is_ours(host: &mut Host) -> Result<bool> {
    Ok(shell(host, "xl info xen_caps")?.text.contains("lacuna-"))
}

/// Fails where the hypervisor that runs is not the distribution's.
fn on_the_distributions(host: &mut Host) -> Result<()> {
    ensure(
        !is_ours(host)?,
        "the hypervisor",
        "the distribution's",
        "Lacuna's",
    )
}

/// The same line for the series of Xen that runs; its name is in those of the packages and folders.
pub(super) fn of_series(line: &str) -> Result<String> {
    let (major, minor) = xen_release()?;
    Ok(line.replace("4.20", &format!("{major}.{minor}")))
}

/// Installs the packages where they are not, beside the distribution's, which must be whole before.
pub(super) fn install(host: &mut Host) -> Result<()> {
    if shell(host, "dpkg-query --show lacuna")?.status == 0 {
        return Ok(());
    }
    host.note("installing the packages")?;
    silent(host, "dpkg --verify")?;
    // Nobody is there to say yes.
    let line = of_series(INSTALL)?.replacen("apt install", "apt-get install -y", 1);
    expect(
        host,
        &format!("cd {PACKAGES} && {line}"),
        0,
        &["Setting up lacuna"],
    )?;
    Ok(())
}

/// Leaves a host that runs Lacuna's hypervisor with the packages installed.
pub(super) fn install_and_boot(host: &mut Host) -> Result<()> {
    install(host)?;
    if is_ours(host)? {
        return Ok(());
    }
    ensure(
        !Path::new(REBOOTED).exists(),
        "the hypervisor after a reboot",
        "Lacuna's",
        "another one",
    )?;
    File::create(REBOOTED)?;
    Err(Failure::Reboot)
}

/// Creates a guest and goes on when its agent has said that it is there. Debian's xenconsoled keeps no logs,
/// so they are kept here.
pub(super) fn guest(host: &mut Host, name: &'static str) -> Result<Guest> {
    let plan = Plan {
        mib: u32::try_from(MIB).unwrap_or(u32::MAX),
        ..Plan::stock(name, "6.12")
    };
    let mut guest = Guest::start(host, name, &plan.write()?)?;
    follow(&guest)?;
    guest.wait_ready()?;
    Ok(guest)
}

/// Adds what the guest writes on its console to its log.
pub(super) fn follow(guest: &Guest) -> Result<()> {
    let key = format!("/local/domain/{}/console/tty", guest.domain);
    let terminal = wait_until("the guest's console is there", AGENT_LIMIT, || {
        let answer = run(&mut xen("bin/xenstore-read", &[&key])).unwrap_or_default();
        Ok(Some(answer.trim().to_owned()).filter(|path| path.starts_with('/')))
    })?;
    let mut from = File::open(terminal)?;
    let log = Path::new(CONSOLES).join(format!("guest-{}.log", guest.name));
    let mut log = File::options().create(true).append(true).open(log)?;
    // Ends with the guest, whose console xenconsoled then closes.
    std::thread::spawn(move || std::io::copy(&mut from, &mut log));
    Ok(())
}

/// What `xl list` says that the guest has, in MiB.
pub(super) fn held(host: &mut Host, name: &str) -> Result<u64> {
    let listing = host.xl(&["list", name])?;
    let field = listing
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().nth(2));
    field
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| differs("the memory in `xl list`", "a number", &listing))
}

/// Before the reboot: the packages are installed, the distribution's hypervisor runs, and everything says so.
pub(super) fn before_reboot(host: &mut Host) -> Result<()> {
    install(host)?;
    on_the_distributions(host)?;
    // The first entry with Xen is the one that is booted.
    let menu = fs::read_to_string("/boot/grub/grub.cfg")?;
    let first = menu
        .lines()
        .find(|line| line.contains("multiboot") && line.contains("/boot/xen"));
    let first = first.unwrap_or_default().trim();
    ensure(
        first.contains("lacuna"),
        "the first entry with Xen of GRUB's menu",
        "Lacuna's",
        first,
    )?;
    silent(host, "dpkg --verify")?;
    let state = expect(
        host,
        "systemctl show --property=ExecMainStatus --value lacunad",
        0,
        &[],
    )?;
    equal("the exit status of lacunad", "6", state.trim())?;
    expect(host, "systemctl is-enabled lacunad", 0, &["enabled"])?;
    expect(
        host,
        "journalctl --boot --unit lacunad --no-pager",
        0,
        &["has no Lacuna"],
    )?;
    let name = "bystander";
    let guest = guest(host, name)?;
    for line in ["status", "top", "doctor"] {
        expect(host, &format!("lacuna {line}"), STOCK_XEN, &["has no Lacuna"])?;
    }
    for line in ["attach", "dedup", "estimate", "scan", "detach", "status"] {
        expect(
            host,
            &format!("lacuna {line} {name}"),
            STOCK_XEN,
            &["has no Lacuna"],
        )?;
    }
    let nobody = "setpriv --reuid=65534 --clear-groups";
    expect(host, &format!("{nobody} lacuna status"), NO_RIGHTS, &[])?;
    guest.destroy(host)?;
    Ok(())
}

/// After the reboot nobody does anything, and a guest's free memory comes back.
pub(super) fn unattended(host: &mut Host) -> Result<()> {
    install_and_boot(host)?;
    healthy(host)?;
    let name = "unattended";
    let mut guest = guest(host, name)?;
    given_back(host, name)?;
    expect(
        host,
        "journalctl --boot --unit lacunad --no-pager",
        0,
        &["round.gave_back", name],
    )?;
    expect(host, &format!("lacuna status {name}"), 0, &[])?;
    expect(host, "lacuna doctor", 0, &[name])?;
    guest.grow(GROWN_MIB, AGENT_LIMIT)?;
    guest.order(Task::Shrink, AGENT_LIMIT)?;
    stored(host, &mut guest)?;
    restarted(host)?;
    guest.check_health()?;
    guest.destroy(host)?;
    Ok(())
}

/// Waits until the guest has less than half of the memory that it was given, with nobody doing anything.
pub(super) fn given_back(host: &mut Host, name: &str) -> Result<()> {
    let started = std::time::Instant::now();
    wait_until("the guest gives memory back", UNATTENDED_LIMIT, || {
        std::thread::sleep(Duration::from_secs(2));
        Ok(Some(()).filter(|()| held(host, name).is_ok_and(|now| now < MIB / 2)))
    })?;
    host.figure("seconds_until_given_back", started.elapsed().as_secs())?;
    let now = held(host, name)?;
    host.figure("mib_after", now)
}

/// What systemd, Xen and the doctor say of a host that has booted.
fn healthy(host: &mut Host) -> Result<()> {
    silent(host, "systemctl list-units --failed --plain --no-legend")?;
    expect(
        host,
        "systemctl status --no-pager lacunad",
        0,
        &["active (running)"],
    )?;
    expect(
        host,
        "journalctl --boot --unit lacunad --no-pager",
        0,
        &["lacunad"],
    )?;
    expect(host, "xl info xen_caps", 0, &[&format!("lacuna-{VERSION}")])?;
    let told = expect(host, "xl dmesg | grep -i lacuna", 0, &["Lacuna"])?;
    ensure(
        !told.contains("zero frames missing"),
        "`xl dmesg`",
        "nothing missing",
        &told,
    )?;
    expect(host, "lacuna doctor", 0, &[])?;
    silent(host, "dpkg --verify")
}

/// A save leaves out what the guest does not use, and the guest goes on when it is restored.
pub(super) fn stored(host: &mut Host, guest: &mut Guest) -> Result<()> {
    let name = guest.name;
    expect(host, &format!("lacuna estimate {name}"), 0, &[])?;
    expect(host, &format!("xl save {name} /root/{name}.save"), 0, &[])?;
    let bytes = fs::metadata(format!("/root/{name}.save"))?.len();
    host.figure("saved_bytes", bytes)?;
    expect(host, &format!("xl restore /root/{name}.save"), 0, &[])?;
    fs::remove_file(format!("/root/{name}.save"))?;
    guest.domain = host.domain_number(name)?;
    follow(guest)?;
    guest.grow(GROWN_MIB, AGENT_LIMIT)?;
    guest.order(Task::Shrink, AGENT_LIMIT)?;
    let all = MIB << 20;
    ensure(
        bytes < all / 2,
        "bytes of the saved guest",
        &format!("less than half of {all}"),
        &bytes.to_string(),
    )
}

/// The packages are removed, and the host boots the distribution's hypervisor again, with nothing left behind.
pub(super) fn removed(host: &mut Host) -> Result<()> {
    if !Path::new(PURGED).exists() {
        install_and_boot(host)?;
        host.note("removing the packages")?;
        let line = REMOVE.replacen("apt purge", "apt-get purge -y", 1);
        expect(host, &line, 0, &["Purging configuration files for lacuna"])?;
        silent(host, "dpkg --verify")?;
        File::create(PURGED)?;
        return Err(Failure::Reboot);
    }
    on_the_distributions(host)?;
    silent(host, "systemctl list-units --failed --plain --no-legend")?;
    silent(host, "dpkg --verify")?;
    for folder in ["/etc/lacuna", "/var/lib/lacuna", "/usr/lib/lacuna-xen-4.20"] {
        let folder = of_series(folder)?;
        ensure(
            !Path::new(&folder).exists(),
            "what the packages had",
            "gone",
            &folder,
        )?;
    }
    let guest = guest(host, "afterwards")?;
    guest.destroy(host)?;
    Ok(())
}

/// The daemon stops and starts, and refuses a wrong file.
fn restarted(host: &mut Host) -> Result<()> {
    silent(host, "systemctl stop lacunad")?;
    expect(host, "systemctl is-active lacunad", 3, &["inactive"])?;
    expect(host, "ls -d /run/lacuna", 0, &[])?;
    expect(host, "lacuna doctor", 3, &["lacunad does not run"])?;
    silent(host, "systemctl start lacunad")?;
    expect(host, "systemctl is-active lacunad", 0, &["active"])?;
    silent(
        host,
        "cp /etc/lacuna/lacunad.toml /root && echo nonsense = 1 >> /etc/lacuna/lacunad.toml",
    )?;
    expect(host, "systemctl reload lacunad", 1, &[])?;
    expect(host, "systemctl is-active lacunad", 0, &["active"])?;
    expect(host, "lacunad --check", 2, &["nonsense"])?;
    silent(
        host,
        "cp /root/lacunad.toml /etc/lacuna/lacunad.toml && systemctl reload lacunad",
    )
}

#[cfg(test)]
mod tests {
    use super::{INSTALL, REMOVE};

    #[test]
    fn what_is_typed_is_in_the_document() {
        let document = include_str!("../../../../docs/install.md");
        for line in [INSTALL, REMOVE] {
            assert!(document.contains(line), "{line}");
        }
    }
}
