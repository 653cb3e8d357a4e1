//! A guest with the distribution's Java virtual machine, and a program that handles orders.

use std::fs;
use std::path::{Path, PathBuf};

use lacuna_guest::programs::{CLASSES, JAVA, JAVA_OPTIONS, WAREHOUSES, Workload};

use super::{Workshop, packages};
use crate::error::{IoContext, Result};
use crate::key::KeyBuilder;

/// The program.
const PROGRAM: &str = include_str!("../../programs/Warehouses.java");
/// The package. Its compiler comes with it, though without a command.
const PACKAGE: &str = "openjdk-21-jre-headless";
/// Where the package has the virtual machine, and its settings: links lead from the one to the other.
const HOME: &str = "usr/lib/jvm/java-21-openjdk-amd64";
const SETTINGS: &str = "etc/java-21-openjdk";
/// What of it a server without a screen needs.
const PARTS: &[&str] = &[
    "bin/java",
    "lib/libjava.so",
    "lib/libjimage.so",
    "lib/libjli.so",
    "lib/libnet.so",
    "lib/libnio.so",
    "lib/libverify.so",
    "lib/libzip.so",
    "lib/modules",
    "lib/server/libjvm.so",
];
/// The virtual machine proper, whose libraries are those of the other parts as well, but for one.
const SERVER: &str = "lib/server/libjvm.so";
const ZLIB: &str = "/usr/lib/x86_64-linux-gnu/libz.so.1";
/// The settings that the virtual machine reads: their places there, and where the package has them.
const SETTING_FILES: &[(&str, &str)] = &[
    ("lib/jvm.cfg", "jvm-amd64.cfg"),
    ("conf/security/java.security", "security/java.security"),
];
/// Compiles the program in the directory `$2` with the virtual machine in `$1`, and runs it with what follows.
const MAKE: &str = "java=$1/bin/java && cd \"$2\" && shift 2 && \
    \"$java\" -m jdk.compiler/com.sun.tools.javac.Main -d classes Warehouses.java && \"$java\" \"$@\"";

/// Makes it, and returns where it is.
pub(super) fn guest(workshop: &Workshop) -> Result<PathBuf> {
    let root = packages::unpacked(workshop, "java", &[PACKAGE])?;
    let mut key = KeyBuilder::new("guest/orders", 1).text(PROGRAM).text(MAKE);
    for word in JAVA_OPTIONS.iter().chain(WAREHOUSES).chain(PARTS) {
        key = key.text(word);
    }
    key = key.file(&root.join(packages::LIST))?;
    workshop.guest("orders", key, |guest, made| {
        let source = made.join("Warehouses.java");
        fs::write(&source, PROGRAM).on("write", &source)?;
        let home = virtual_machine(&root, made)?;
        let (at, directory) = (home.to_string_lossy(), made.to_string_lossy());
        let mut arguments = vec![&*at, &*directory];
        arguments.extend(JAVA_OPTIONS);
        arguments.extend(["-cp", "classes"]);
        arguments.extend(WAREHOUSES);
        let expected = workshop.run(MAKE, &arguments)?;
        guest.bytes(Workload::Orders.expected(), expected.as_bytes())?;
        let classes = made.join("classes");
        for entry in fs::read_dir(&classes).on("list", &classes)? {
            let entry = entry.on("list", &classes)?;
            let name = entry.file_name();
            guest.file(&format!("{CLASSES}/{}", name.to_string_lossy()), &entry.path())?;
        }
        // As `bin/java` finds the rest of it: beside its own directory.
        let inside = Path::new(JAVA).ancestors().nth(2).unwrap_or(Path::new("/"));
        for part in PARTS.iter().chain(SETTING_FILES.iter().map(|(name, _)| name)) {
            guest.file(&inside.join(part).to_string_lossy(), &home.join(part))?;
        }
        let mut libraries = workshop.libraries(&home.join(SERVER).to_string_lossy())?;
        libraries.extend(workshop.library(ZLIB)?);
        guest.libraries.extend(libraries);
        Ok(())
    })
}

/// Puts the parts of the virtual machine together, without the package's links, and returns where.
fn virtual_machine(root: &Path, made: &Path) -> Result<PathBuf> {
    let home = made.join("java");
    let parts = PARTS.iter().map(|part| (*part, root.join(HOME).join(part)));
    let settings = SETTING_FILES
        .iter()
        .map(|(name, from)| (*name, root.join(SETTINGS).join(from)));
    for (name, from) in parts.chain(settings) {
        let to = home.join(name);
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory).on("create", directory)?;
        }
        fs::copy(&from, &to).on("copy", &from)?;
    }
    Ok(home)
}
