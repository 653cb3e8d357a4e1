//! Newer packages on the Debian host while a guest runs: the daemon changes under it, the hypervisor does not
//! until the next reboot.

use std::fs;

use lacuna_guest::Task;

use super::debian_host::{
    AGENT_LIMIT, GROWN_MIB, MIB, PACKAGES, expect, given_back, guest, held, install_and_boot, silent, stored,
};
use crate::failure::{Result, ensure};
use crate::host::Host;

/// Where the newer packages are made.
const NEWER: &str = "/root/newer";
/// What their version has more than that of the packages that are installed.
const SUFFIX: &str = "+upgraded";
/// A setting of the administrator's, which an upgrade has to leave alone.
const SETTING: &str = "# the administrator was here";
const CONFIGURATION: &str = "/etc/lacuna/lacunad.toml";

/// Makes newer packages of the ones that are installed: the same files, a later version.
const REPACK: &str = r#"
set -e
mkdir -p $NEWER
for file in $PACKAGES/lacuna_*.deb $PACKAGES/lacuna-xen-*.deb; do
    folder=$NEWER/$(basename $file .deb)
    dpkg-deb --raw-extract $file $folder
    version=$(dpkg-deb --field $file Version)
    sed -i "s/$version/$version$SUFFIX/" $folder/DEBIAN/control
    dpkg-deb --root-owner-group --build $folder $NEWER > /dev/null
    rm -r $folder
done
"#;

/// The packages are upgraded under a guest that has given memory back.
pub(super) fn upgraded(host: &mut Host) -> Result<()> {
    install_and_boot(host)?;
    let name = "upgraded";
    let mut guest = guest(host, name)?;
    given_back(host, name)?;
    let before = fs::read_to_string(CONFIGURATION)?;
    silent(host, &format!("echo '{SETTING}' >> {CONFIGURATION}"))?;
    let daemon = main_process(host)?;

    host.note("installing newer packages")?;
    let script = format!("NEWER={NEWER} PACKAGES={PACKAGES} SUFFIX={SUFFIX}\n{REPACK}");
    silent(host, &script)?;
    let all = format!("apt-get install -y {NEWER}/*.deb");
    expect(host, &all, 0, &["Unpacking lacuna ", "Setting up lacuna "])?;
    for package in ["lacuna", "lacuna-xen-hypervisor-*", "lacuna-xen-libs-*"] {
        let asked = format!("dpkg-query --show --showformat '${{Status}} ${{Version}}' '{package}'");
        expect(host, &asked, 0, &["install ok installed", SUFFIX])?;
    }
    let kept = fs::read_to_string(CONFIGURATION)?;
    ensure(
        kept.ends_with(&format!("{SETTING}\n")),
        CONFIGURATION,
        "as the administrator left it",
        &kept,
    )?;
    fs::write(CONFIGURATION, before)?;
    silent(host, "dpkg --verify")?;
    silent(host, "systemctl list-units --failed --plain --no-legend")?;
    let now = main_process(host)?;
    ensure(
        now != daemon,
        "lacunad after the upgrade",
        "another process",
        &now,
    )?;

    // What was given back stays so, and is given back again by the new daemon once it was used.
    let left = held(host, name)?;
    host.figure("mib_after_upgrade", left)?;
    ensure(
        left < MIB / 2,
        "the memory that the guest has after the upgrade",
        &format!("less than half of {MIB} MiB"),
        &left.to_string(),
    )?;
    guest.grow(GROWN_MIB, AGENT_LIMIT)?;
    guest.order(Task::Shrink, AGENT_LIMIT)?;
    given_back(host, name)?;
    expect(host, &format!("lacuna status {name}"), 0, &[])?;
    expect(host, "lacuna doctor", 0, &[name])?;
    stored(host, &mut guest)?;
    guest.check_health()?;
    guest.destroy(host)?;
    Ok(())
}

/// The number of the daemon's process.
fn main_process(host: &mut Host) -> Result<String> {
    expect(host, "systemctl is-active lacunad", 0, &["active"])?;
    expect(host, "systemctl show --property=MainPID --value lacunad", 0, &[])
}
