//! dom0's image with guests of other kinds than those of the quick runs: a kernel of before 6.0, whose
//! VMCOREINFO does not say where its symbol table is, and a 32-bit one, whose table holds no data; and with a
//! device model for HVM guests.

use crate::context::{Context, Staged};
use crate::device_model;
use crate::error::Result;
use crate::image::{Images, start_guest, step_name};
use crate::key::KeyBuilder;
use crate::layouts;
use crate::matrix::case::{Flavour, amd64, i386};
use crate::matrix::kernel;
use crate::programs;
use crate::setup::Stage;
use crate::sysroot::Sysroot;
use crate::xen::place;

/// The kernels, by their names in dom0.
const KERNELS: &[(&str, Flavour)] = &[
    ("5.10", amd64("bullseye", "amd64")),
    ("6.1-686-pae", i386("686-pae")),
];

/// Makes it: an archive behind dom0's, which the kernel unpacks over that.
pub(crate) fn images(context: &Context, sysroot: &Sysroot, stage: &Stage) -> Result<Images> {
    let agent = programs::agent_i386(context)?;
    let mut files = if stage.series() == device_model::SERIES {
        device_model::files(context, sysroot, &stage.tools)?
    } else {
        Vec::new()
    };
    for (name, flavour) in KERNELS {
        let fetched = kernel::fetch(context, sysroot, *flavour)?;
        files.push(layouts::layout(
            context,
            sysroot,
            &stage.lacuna,
            &fetched.release,
            &fetched.headers,
        )?);
        files.push((format!("guests/{name}/vmlinuz"), fetched.image));
    }
    let image = place(context, stage.series(), "images/other-guests.cpio");
    let mut key = KeyBuilder::new("images/other-guests", 1)
        .file(&stage.images.dom0)?
        .file(&agent)?;
    for (name, file) in &files {
        key = key.text(name).file(file)?;
    }
    context.step(&step_name(stage.series(), "other-guests"), &key.finish(), |_| {
        let initrd = Staged::file(place(context, stage.series(), "images/guest-i386.cpio"))?;
        start_guest(&initrd.path, &agent)?.finish()?;
        stage.images.extend(&image, |archive| {
            for (name, file) in &files {
                archive.file(name, file)?;
            }
            archive.file("guests/i386.initrd", &initrd.path)
        })?;
        initrd.commit()
    })?;
    Ok(stage.images.with_dom0(image))
}
