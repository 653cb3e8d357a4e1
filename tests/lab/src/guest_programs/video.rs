//! A guest with the distribution's encoder of VP8, and a film.

use std::fs;
use std::path::PathBuf;

use lacuna_guest::programs::{ENCODER, ENCODER_OPTIONS, FILM, Workload};

use super::{Workshop, packages};
use crate::error::{IoContext, Result};
use crate::key::KeyBuilder;

/// Makes the film.
const PROGRAM: &str = include_str!("../../programs/film.py");
/// Its width and height, and how many frames it has.
const SHAPE: [&str; 3] = ["960", "540", "40"];
/// The packages, and what of them is used.
const PACKAGES: &[&str] = &["vpx-tools", "libvpx9"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LIBRARY: &str = "libvpx.so.9";
/// Makes the film in the directory `$1`, and encodes it with the program `$2`, whose libraries are in `$3`.
const MAKE: &str = "cd \"$1\" && encoder=$2 libraries=$3 && python3 film.py \"$4\" \"$5\" \"$6\" > film.y4m && \
    shift 6 && LD_LIBRARY_PATH=$libraries \"$encoder\" \"$@\" -o expected.ivf film.y4m";

/// Makes it, and returns where it is.
pub(super) fn guest(workshop: &Workshop) -> Result<PathBuf> {
    let root = packages::unpacked(workshop, "vpx", PACKAGES)?;
    let mut key = KeyBuilder::new("guest/video", 1).text(PROGRAM).text(MAKE);
    for word in ENCODER_OPTIONS.iter().chain(&SHAPE) {
        key = key.text(word);
    }
    key = key.file(&root.join(packages::LIST))?;
    workshop.guest("video", key, |guest, made| {
        let program = made.join("film.py");
        fs::write(&program, PROGRAM).on("write", &program)?;
        let encoder = root.join(ENCODER.trim_start_matches('/'));
        let libraries = root.join(LIBRARIES);
        let (at, encoder_at, libraries_at) = (
            made.to_string_lossy(),
            encoder.to_string_lossy(),
            libraries.to_string_lossy(),
        );
        let mut arguments = vec![&*at, &*encoder_at, &*libraries_at];
        arguments.extend(SHAPE);
        arguments.extend(ENCODER_OPTIONS);
        workshop.run(MAKE, &arguments)?;
        guest.file(ENCODER, &encoder)?;
        guest.file(FILM, &made.join("film.y4m"))?;
        guest.file(Workload::Video.expected(), &made.join("expected.ivf"))?;
        let library = libraries.join(LIBRARY);
        guest.file(&format!("/{LIBRARIES}/{LIBRARY}"), &library)?;
        // The encoder's own, but for the one that the sysroot has not: that one's.
        guest
            .libraries
            .extend(workshop.libraries(&library.to_string_lossy())?);
        guest.libraries.extend(workshop.library(CXX)?);
        Ok(())
    })
}

/// The C++ library, which the encoder needs as well.
const CXX: &str = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";
