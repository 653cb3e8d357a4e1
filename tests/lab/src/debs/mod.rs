//! `cargo lab build --debs`: Debian packages of what `cargo lab build` leaves in its directory.
//!
//! None of them has a file of the distribution's, or replaces one. The hypervisor has a name of its own in
//! `/boot`, beside the distribution's. Of Xen's libraries only the two go along that know of free pages, in a
//! folder of their own, which the dynamic loader looks into first: the distribution's `xl`, save helper and
//! libvirt load them, and load their own again as soon as the package is gone. They offer all that the
//! distribution's libxenlight of the same series wants (docs/install.md).

mod glibc;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::{Staged, remove};
use crate::error::{Error, IoContext, Result};
use crate::process::{is_installed, output};
use crate::xen::series::Series;
use package::{About, Common, Package};

/// Programs that packing takes, each with Debian's package of it.
const PROGRAMS: &[(&str, &str)] = &[
    ("dpkg-deb", "dpkg"),
    ("objcopy", "binutils"),
    ("strip", "binutils"),
    ("tar", "tar"),
    ("gzip", "gzip"),
];
/// The revision of the packages.
const REVISION: &str = "1";
/// The libraries of Xen's that go along.
const LIBRARIES: [&str; 2] = ["libxenctrl", "libxenguest"];
/// Who built a package, where the environment does not say it as Debian's own tools expect it.
const MAINTAINER: (&str, &str) = ("Lacuna", "lacuna@lacuna.invalid");
/// Pages that the tool's package brings along.
const PAGES: [&str; 4] = ["install.md", "operations.md", "daemon.md", "migration.md"];

/// What packages are made from.
#[derive(Clone, Debug)]
pub(crate) struct Parts<'p> {
    /// The directory that `cargo lab build` has filled, where the packages go to as well.
    pub(crate) out: &'p Path,
    /// The checkout.
    pub(crate) repository: &'p Path,
    /// The release series of Xen.
    pub(crate) series: Series,
    /// The version of its source, such as `4.20.4`.
    pub(crate) xen_version: &'p str,
    /// Where programs' output goes.
    pub(crate) log: &'p Path,
}

/// A build of packages under way.
struct Build<'p> {
    parts: &'p Parts<'p>,
    common: Common,
    /// Where packages are laid out.
    folder: PathBuf,
    written: Vec<PathBuf>,
}

/// Writes the packages, and returns their files.
pub(crate) fn pack(parts: &Parts) -> Result<Vec<PathBuf>> {
    if let Some((program, package)) = PROGRAMS.iter().find(|(program, _)| !is_installed(program)) {
        return Err(Error::Unexpected {
            what: "programs for --debs".to_owned(),
            expected: format!("{program}, of Debian's package {package}"),
            seen: "no such program".to_owned(),
        });
    }
    let staged = Staged::directory(parts.out.join("debs.work"))?;
    let mut build = Build {
        parts,
        common: common(parts)?,
        folder: staged.path.clone(),
        written: Vec::new(),
    };
    build.tool()?;
    build.hypervisor()?;
    build.libraries()?;
    build.prometheus()?;
    remove(&staged.path)?;
    Ok(build.written)
}

/// Who builds, and when the source was last changed.
fn common(parts: &Parts) -> Result<Common> {
    let environment =
        |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let name = environment("DEBFULLNAME", MAINTAINER.0);
    let address = environment("DEBEMAIL", MAINTAINER.1);
    let mut commit = Command::new("git");
    commit.current_dir(parts.repository);
    commit.args(["log", "-1", "--format=%ct"]);
    // A source without history has the time of the build.
    let mut now = Command::new("date");
    now.arg("+%s");
    let epoch = output(commit, parts.log).or_else(|_| output(now, parts.log))?;
    Ok(Common {
        maintainer: format!("{name} <{address}>"),
        epoch: epoch.trim().to_owned(),
        log: parts.log.to_owned(),
    })
}

impl Build<'_> {
    fn source(&self, path: &str) -> PathBuf {
        self.parts.repository.join(path)
    }

    fn begin(&self, about: About) -> Result<Package> {
        Package::begin(&self.folder, about)
    }

    fn end(&mut self, package: Package) -> Result<()> {
        let file = package.write(&self.common, &self.source("packaging/copyright"), self.parts.out)?;
        self.written.push(file);
        Ok(())
    }

    fn script(&self, package: &Package, name: &str, from: &str) -> Result<()> {
        let file = self.source(from);
        package.control(name, &fs::read(&file).on("read", &file)?)
    }

    /// The version of a package of Lacuna's own.
    fn own_version() -> String {
        format!("{}-{REVISION}", env!("CARGO_PKG_VERSION"))
    }

    /// The version of a package of Xen's.
    fn xen_version(&self) -> String {
        // Of Debian's `4.20.4+63-g7abfd2bce2-0+deb13u1` the number alone: a file's name has to stay short.
        let number = self.parts.xen_version.split(['+', '-', '~']).next();
        format!("{}+lacuna{}", number.unwrap_or_default(), Self::own_version())
    }

    /// `lacuna`, `lacunad`, and what belongs to them; their symbols apart.
    fn tool(&mut self) -> Result<()> {
        let series = self.parts.series.name();
        let out = self.parts.out;
        let programs = [out.join("lacuna"), out.join("lacunad")];
        let glibc = glibc::needed(&programs.each_ref().map(PathBuf::as_path), self.parts.series)?;
        let mut package = self.begin(About {
            name: "lacuna".to_owned(),
            version: Self::own_version(),
            architecture: "amd64",
            section: "admin",
            fields: vec![
                // procps has the kill by which the unit is reloaded.
                ("Depends", format!("libc6 (>= {glibc}), libgcc-s1, procps")),
                (
                    "Recommends",
                    format!("lacuna-xen-hypervisor-{series}, lacuna-xen-libs-{series}"),
                ),
                ("Suggests", "gcc, lacuna-prometheus".to_owned()),
            ],
            synopsis: "give the free memory of Xen guests back to the host".to_owned(),
            description: "Lets Xen see which pages of a guest its kernel holds free, and gives them\nback to the host. This is the command, and the daemon that does it for all\nguests by itself. Both need a hypervisor with Lacuna.",
            overrides: "",
        })?;
        let debug = self.begin(About {
            name: "lacuna-dbg".to_owned(),
            version: Self::own_version(),
            architecture: "amd64",
            section: "debug",
            fields: vec![("Depends", format!("lacuna (= {})", Self::own_version()))],
            synopsis: "debugging symbols of lacuna and lacunad".to_owned(),
            description: "Names and lines for a backtrace of the package lacuna.",
            overrides: "",
        })?;
        for name in ["lacuna", "lacunad"] {
            let program = package.file(&format!("usr/sbin/{name}"), &self.parts.out.join(name), 0o755)?;
            self.strip(&program, &debug, name)?;
        }
        let configuration = self.source("dom0-tool/lacunad.toml");
        package.configuration(
            "etc/lacuna/lacunad.toml",
            &fs::read(&configuration).on("read", &configuration)?,
        )?;
        let unit = self.source("dom0-tool/lacunad.service");
        let unit = fs::read_to_string(&unit).on("read", &unit)?;
        let unit = unit.replace("/usr/local/sbin/", "/usr/sbin/");
        package.bytes("usr/lib/systemd/system/lacunad.service", unit.as_bytes(), 0o644)?;
        self.manual(&package)?;
        for page in PAGES {
            let file = self.source("docs").join(page);
            package.zipped(
                &format!("usr/share/doc/lacuna/{page}"),
                &fs::read(&file).on("read", &file)?,
            )?;
        }
        for script in ["postinst", "prerm", "postrm"] {
            self.script(&package, script, &format!("packaging/lacuna.{script}"))?;
        }
        self.end(package)?;
        self.end(debug)
    }

    /// Moves a program's symbols into the package `debug`.
    fn strip(&self, program: &Path, debug: &Package, name: &str) -> Result<()> {
        let symbols = self.folder.join(format!("{name}.debug"));
        let run = |tool: &str, arguments: &[&std::ffi::OsStr]| {
            let mut command = Command::new(tool);
            command.args(arguments);
            output(command, &self.common.log).map(drop)
        };
        let (from, to) = (program.as_os_str(), symbols.as_os_str());
        run("objcopy", &["--only-keep-debug".as_ref(), from, to])?;
        run(
            "strip",
            &[
                "--strip-unneeded".as_ref(),
                "--remove-section=.comment".as_ref(),
                "--remove-section=.note".as_ref(),
                from,
            ],
        )?;
        let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
        link.push(&symbols);
        run("objcopy", &[&link, from])?;
        debug.file(&format!("usr/lib/debug/usr/sbin/{name}.debug"), &symbols, 0o644)?;
        Ok(())
    }

    /// Manual pages and completions, which the command writes itself.
    fn manual(&self, package: &Package) -> Result<()> {
        let lacuna = self.parts.out.join("lacuna");
        let pages = self.folder.join("man");
        let mut write = Command::new(&lacuna);
        write.arg("man").arg(&pages);
        output(write, &self.common.log)?;
        for entry in fs::read_dir(&pages).on("list", &pages)? {
            let entry = entry.on("list", &pages)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = fs::read(entry.path()).on("read", entry.path())?;
            package.zipped(&format!("usr/share/man/man1/{name}"), &text)?;
        }
        for (shell, path) in [
            ("bash", "usr/share/bash-completion/completions/lacuna"),
            ("zsh", "usr/share/zsh/vendor-completions/_lacuna"),
            ("fish", "usr/share/fish/vendor_completions.d/lacuna.fish"),
        ] {
            let mut write = Command::new(&lacuna);
            write.args(["completions", shell]);
            package.bytes(path, output(write, &self.common.log)?.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// The hypervisor, under a name of its own; the one with symbols apart.
    fn hypervisor(&mut self) -> Result<()> {
        let series = self.parts.series.name();
        let name = format!("lacuna-xen-hypervisor-{series}");
        let package = self.begin(About {
            name: name.clone(),
            version: self.xen_version(),
            architecture: "amd64",
            section: "kernel",
            fields: vec![(
                "Recommends",
                format!("lacuna, lacuna-xen-libs-{series}, xen-utils-{series}, grub2-common"),
            )],
            synopsis: format!("Xen {series} hypervisor with Lacuna"),
            description: "The hypervisor that gives free memory of guests back to the host. It lies\nbeside the distribution's, whose toolstack works with it, and has an entry\nof its own in GRUB's menu.",
            overrides: "",
        })?;
        let out = self.parts.out;
        package.file(
            &format!("boot/xen-{series}-lacuna-amd64.gz"),
            &out.join("xen.gz"),
            0o644,
        )?;
        package.file(
            &format!("usr/lib/lacuna-xen-{series}/boot/xen.efi"),
            &out.join("xen.efi"),
            0o644,
        )?;
        for script in ["postinst", "postrm"] {
            self.script(&package, script, &format!("packaging/hypervisor.{script}"))?;
        }
        self.end(package)?;
        let debug = self.begin(About {
            name: format!("{name}-dbg"),
            version: self.xen_version(),
            architecture: "amd64",
            section: "debug",
            fields: vec![("Depends", format!("{name} (= {})", self.xen_version()))],
            synopsis: format!("Xen {series} hypervisor with Lacuna, with symbols"),
            description: "What a crash of the hypervisor is looked at with.",
            overrides: "",
        })?;
        debug.file(
            &format!("usr/lib/debug/boot/xen-syms-{series}-lacuna-amd64"),
            &out.join("xen-syms"),
            0o644,
        )?;
        self.end(debug)
    }

    /// The libraries that leave free pages out of a save, where the loader looks first.
    fn libraries(&mut self) -> Result<()> {
        let series = self.parts.series.name();
        let folder = format!("usr/lib/lacuna-xen-{series}");
        let built = self.unpacked_libraries()?;
        let glibc = glibc::needed(&built.each_ref().map(PathBuf::as_path), self.parts.series)?;
        let mut package = self.begin(About {
            name: format!("lacuna-xen-libs-{series}"),
            version: self.xen_version(),
            architecture: "amd64",
            section: "libs",
            fields: vec![
                (
                    "Depends",
                    format!("libc6 (>= {glibc}), libxenmisc{series}, libbz2-1.0, liblzma5, libzstd1, zlib1g"),
                ),
                ("Recommends", format!("lacuna-xen-hypervisor-{series}")),
            ],
            synopsis: format!("Xen {series} libraries that leave free pages out of a migration"),
            description: "libxenctrl and libxenguest for the distribution's toolstack (xl, libvirt): a\nsave or migration of a guest leaves out what its kernel holds free, and what\ncomes without data reads as zero where it arrives. They are found before the\ndistribution's, which stay in place. A toolstack that runs has to be restarted.",
            overrides: "# That the loader finds these before the distribution's is what the package is for.\npackage-modifies-ld.so-search-path\n# The file above is read by ldconfig alone.\npackage-has-unnecessary-activation-of-ldconfig-trigger\n",
        })?;
        for (name, from) in LIBRARIES.iter().zip(&built) {
            let soname = format!("{name}.so.{series}");
            let library = package.file(&format!("{folder}/{soname}.0"), from, 0o644)?;
            let mut strip = Command::new("strip");
            strip.args([
                "--strip-unneeded",
                "--remove-section=.comment",
                "--remove-section=.note",
            ]);
            strip.arg(&library);
            output(strip, &self.common.log)?;
            package.link(&format!("{folder}/{soname}"), &format!("{soname}.0"))?;
        }
        let text = format!(
            "# libxenguest and libxenctrl with Lacuna, before the distribution's. Run ldconfig after a change.\n/{folder}\n"
        );
        package.configuration(
            &format!("etc/ld.so.conf.d/00-lacuna-xen-{series}.conf"),
            text.as_bytes(),
        )?;
        package.control("triggers", b"activate-noawait ldconfig\n")?;
        self.end(package)
    }

    /// The libraries out of the archive of Xen's tools, in the order of [`LIBRARIES`].
    fn unpacked_libraries(&self) -> Result<[PathBuf; 2]> {
        let unpacked = self.folder.join("tools");
        fs::create_dir_all(&unpacked).on("create", &unpacked)?;
        let mut unpack = Command::new("tar");
        unpack
            .arg("--extract")
            .arg("--file")
            .arg(self.parts.out.join("xen-tools.tar.gz"));
        unpack.arg("--directory").arg(&unpacked);
        unpack.args(["--wildcards", "./usr/local/lib/libxen*.so.*"]);
        output(unpack, &self.common.log)?;
        let series = self.parts.series.name();
        Ok(LIBRARIES.map(|name| unpacked.join(format!("usr/local/lib/{name}.so.{series}.0"))))
    }

    /// Rules and dashboard.
    fn prometheus(&mut self) -> Result<()> {
        let package = self.begin(About {
            name: "lacuna-prometheus".to_owned(),
            version: Self::own_version(),
            architecture: "all",
            section: "admin",
            fields: vec![("Suggests", "prometheus".to_owned())],
            synopsis: "Prometheus rules and a Grafana dashboard for lacunad".to_owned(),
            description: "Alerts, recorded series and a dashboard. Neither Prometheus nor Grafana uses\nthem before it is told to: operations.md of the package lacuna says how.",
            overrides: "",
        })?;
        for name in [
            "lacuna.rules.yml",
            "lacuna.rules.test.yml",
            "lacuna-dashboard.json",
        ] {
            let from = self.source("dom0-tool/prometheus").join(name);
            package.file(&format!("usr/share/lacuna-prometheus/{name}"), &from, 0o644)?;
        }
        self.end(package)
    }
}

#[cfg(test)]
mod tests;
