//! The guest's disk and CD, which the machine has as `NVMe` disks with serial numbers of the lab's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lacuna_scenarios::wire::Trial;

use crate::failure::Result;
use crate::host::wait_until;

/// Where the kernel tells of the controllers. It probes them side by side, so that their numbers follow no
/// order.
const CONTROLLERS: &str = "/sys/class/nvme";
/// How long the kernel may take to find them.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the lines for them in xl's configuration; the device model reads both itself.
pub(super) fn configured(trial: &Trial) -> Result<Vec<String>> {
    let mut all = Vec::new();
    if let Some(serial) = &trial.disk {
        all.push(drive(&device(serial)?, "hda", "access=rw"));
    }
    if let Some(serial) = &trial.cdrom {
        all.push(drive(&device(serial)?, "hdc", "access=ro,devtype=cdrom"));
    }
    if all.is_empty() {
        return Ok(all);
    }
    let order = if trial.cdrom.is_some() { "dc" } else { "c" };
    Ok(vec![
        format!("disk=[{}]", all.join(",")),
        format!("boot=\"{order}\""),
    ])
}

fn drive(device: &str, place: &str, kind: &str) -> String {
    format!("'format=raw,vdev={place},{kind},backendtype=qdisk,target={device}'")
}

/// The block device of the disk with this serial number.
fn device(serial: &str) -> Result<String> {
    wait_until(&format!("the disk {serial} is there"), LIMIT, || {
        Ok(found(Path::new(CONTROLLERS), serial))
    })
}

fn found(controllers: &Path, serial: &str) -> Option<String> {
    for controller in fs::read_dir(controllers).ok()?.flatten() {
        let told = fs::read_to_string(controller.path().join("serial")).unwrap_or_default();
        let device = format!("/dev/{}n1", controller.file_name().to_string_lossy());
        if told.trim() == serial && Path::new(&device).exists() {
            return Some(device);
        }
    }
    None
}
