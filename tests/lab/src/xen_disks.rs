//! dom0's image with virtual disks for guests: a disk in dom0's memory, the driver that serves it, the script
//! by which xl hands it over, and a guest with the driver at the other end.

use crate::context::{Context, Staged};
use crate::error::{Error, Result};
use crate::image::{Images, start_guest, step_name};
use crate::kernels::{self, plain_module};
use crate::key::KeyBuilder;
use crate::setup::Stage;
use crate::sysroot::Sysroot;
use crate::xen::place;

/// dom0's drivers: a disk in memory, and Xen's virtual disks.
const BACKENDS: &[&str] = &["brd", "xen-blkback"];
/// The guest's driver.
const FRONTEND: &str = "xen-blkfront";
/// Tells xenstore which disk it is; the drivers do the rest.
const WRITER: &str = "usr/local/bin/xenstore-write";
/// What xl runs for a disk that it hands over (`script=` of its configuration), in place of Xen's own, which
/// wants a whole system around it: says which device it is.
const SCRIPT: &str = "#!/bin/sh
export PATH=/usr/local/bin:/bin LD_LIBRARY_PATH=/usr/local/lib
if [ \"$1\" = add ]; then
    device=$(xenstore-read \"$XENBUS_PATH/params\")
    xenstore-write \"$XENBUS_PATH/physical-device\" \"$(stat -c %t:%T \"$device\")\"
    xenstore-write \"$XENBUS_PATH/hotplug-status\" connected
fi
";

/// Makes it: an archive behind dom0's, which the kernel unpacks over that.
pub(crate) fn images(context: &Context, sysroot: &Sysroot, stage: &Stage) -> Result<Images> {
    let (root, release) = kernels::with_xen_disks(context, sysroot, kernels::GUESTS[0])?;
    if release != stage.dom0_release() {
        return Err(Error::Unexpected {
            what: "the archive's kernel, for its drivers of virtual disks".to_owned(),
            expected: format!("{}, which is dom0's", stage.dom0_release()),
            seen: format!("{release}; remove the cache's `kernels` for a new dom0"),
        });
    }
    let module = |name: &str| plain_module(context, sysroot, &root, &release, name);
    let frontend = module(FRONTEND)?;
    let backends = BACKENDS
        .iter()
        .map(|name| Ok((format!("disks/{name}.ko"), module(name)?)))
        .collect::<Result<Vec<_>>>()?;
    let image = place(context, stage.series(), "images/xen-disks.cpio");
    let mut key = KeyBuilder::new("images/xen-disks", 1)
        .file(&stage.images.dom0)?
        .file(&stage.agent)?
        .file(&frontend)?
        .text(SCRIPT);
    for (name, file) in &backends {
        key = key.text(name).file(file)?;
    }
    context.step(&step_name(stage.series(), "xen-disks"), &key.finish(), |_| {
        let initrd = Staged::file(place(context, stage.series(), "images/guest-disks.cpio"))?;
        let mut guest = start_guest(&initrd.path, &stage.agent)?;
        guest.directory("disks")?;
        guest.file(&format!("disks/{FRONTEND}.ko"), &frontend)?;
        guest.finish()?;
        stage.images.extend(&image, |archive| {
            archive.directory("disks")?;
            for (name, file) in &backends {
                archive.file(name, file)?;
            }
            archive.bytes("disks/hand-over", SCRIPT.as_bytes(), 0o755)?;
            archive.file(WRITER, &stage.tools.root.join(WRITER))?;
            archive.file("guests/disks.initrd", &initrd.path)
        })?;
        initrd.commit()
    })?;
    Ok(stage.images.with_dom0(image))
}
