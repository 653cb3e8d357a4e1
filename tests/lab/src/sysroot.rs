//! The Debian 13 tree in which Xen is built and QEMU runs, and the way to run a program inside it.
//!
//! Programs run in mount and process namespaces of their own: nothing stays mounted and nothing goes on
//! running when the lab ends, however it ends. The cache and the checkout appear inside at the paths they
//! have outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::{Context, Staged, require_root};
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder};
use crate::process::{install_missing, output, run_logged};
use crate::progress::Progress;

/// The Debian release of the tree: the one whose Xen is the 4.20 series.
pub(crate) const SUITE: &str = "trixie";

/// What is installed in the tree on top of debootstrap's minimal base, by what needs it.
pub(crate) const PACKAGES: &[&str] = &[
    // Building Xen and its tools.
    "build-essential",
    "flex",
    "bison",
    "python3",
    "python3-dev",
    "python3-setuptools",
    "acpica-tools",
    "uuid-dev",
    "libncurses-dev",
    "libyajl-dev",
    "libpixman-1-dev",
    "libglib2.0-dev",
    "zlib1g-dev",
    "liblzma-dev",
    "libbz2-dev",
    "libzstd-dev",
    "pkg-config",
    "libfdt-dev",
    // Building the Rust module for x86_64-unknown-none, core from source.
    "rustc",
    "cargo",
    "rust-src",
    // The emulator, and what goes into dom0's image.
    "qemu-system-x86",
    "busybox-static",
    "kexec-tools",
    // Xen's FLASK policy, for the variant that has one.
    "checkpolicy",
];

/// Programs the machine itself must have, each with the package that holds it.
const HOST_PROGRAMS: &[(&str, &str)] = &[("debootstrap", "debootstrap"), ("unshare", "util-linux")];

/// Runs in the namespaces before the program: mounts what the program needs to see and changes root.
const ENTER: &str = r#"
set -e
root=$1 cache=$2 repository=$3 directory=$4 others=$5
shift 5
mount -t proc proc "$root/proc"
while [ "$others" -gt 0 ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$1"
    elif [ ! -e "$root$1" ]; then
        mkdir -p "$(dirname "$root$1")"
        : > "$root$1"
    fi
    mount --bind "$1" "$root$1"
    others=$((others - 1))
    shift
done
mkdir -p "$root$cache" "$root$repository"
mount --bind "$cache" "$root$cache"
mount --bind "$repository" "$root$repository"
exec chroot "$root" env -C "$directory" "$@"
"#;

/// The tree, ready for use.
#[derive(Clone)]
pub(crate) struct Sysroot {
    /// Its top directory.
    pub(crate) root: PathBuf,
    /// Names what it was made of; part of the key of whatever is built in it.
    pub(crate) key: Key,
    /// The Debian release.
    suite: &'static str,
    cache: PathBuf,
    repository: PathBuf,
    /// What else of the machine is seen inside, at its own place.
    others: Vec<PathBuf>,
}

/// Names what the tree is made of.
pub(crate) fn key() -> Key {
    let mut key = KeyBuilder::new("sysroot", 1).text(SUITE);
    for package in PACKAGES {
        key = key.text(package);
    }
    key.finish()
}

impl Sysroot {
    /// Makes the tree, unless it is there.
    pub(crate) fn build(context: &Context) -> Result<Self> {
        let sysroot = Self {
            root: context.cached("sysroot"),
            key: key(),
            suite: SUITE,
            cache: context.cache.clone(),
            repository: context.repository.clone(),
            others: Vec::new(),
        };
        context.download("sysroot", &sysroot.key, |progress| {
            require_root()?;
            let log = context.step_log("sysroot");
            install_missing(HOST_PROGRAMS, &log, progress)?;
            let staged = Staged::directory(sysroot.root.clone())?;
            let fresh = Self {
                root: staged.path.clone(),
                ..sysroot.clone()
            };
            fresh.bootstrap(context, &log, progress)?;
            fresh.install(PACKAGES, &log, progress)?;
            staged.commit()
        })?;
        sysroot.follow_machine()?;
        Ok(sysroot)
    }

    /// Another tree, at `root`, in which programs run in the same way.
    pub(crate) fn at(&self, root: PathBuf, key: Key) -> Self {
        Self {
            root,
            key,
            others: Vec::new(),
            ..self.clone()
        }
    }

    /// The same tree, if it is of another Debian release.
    pub(crate) fn of_suite(self, suite: &'static str) -> Self {
        Self { suite, ..self }
    }

    /// Makes debootstrap's minimal tree of the release, with the machine's archive as its source of packages.
    pub(crate) fn bootstrap(&self, context: &Context, log: &Path, progress: &Progress) -> Result<()> {
        let archive = archive_uri(context)?;
        let mut command = Command::new("debootstrap");
        command
            .args(["--variant=minbase", "--components=main", self.suite])
            .arg(&self.root)
            .arg(&archive);
        run_logged(command, log, progress)?;
        self.write(
            "etc/apt/sources.list",
            format!("deb {archive} {0} main\ndeb-src {archive} {0} main\n", self.suite),
        )?;
        self.follow_machine()?;
        self.refresh(log, progress)
    }

    /// Installs `packages` in the tree, and what they depend on.
    pub(crate) fn install(&self, packages: &[&str], log: &Path, progress: &Progress) -> Result<()> {
        let mut install = vec!["apt-get", "install", "-y", "--no-install-recommends"];
        install.extend(packages);
        run_logged(self.command("/", &install), log, progress)?;
        run_logged(self.command("/", &["apt-get", "clean"]), log, progress)
    }

    /// The same tree, in which files and directories of the machine are seen as well, each at its own place.
    /// A directory hides what the tree has there.
    pub(crate) fn seeing(&self, others: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut wider = self.clone();
        wider.others.extend(others);
        wider
    }

    /// A command that runs `arguments` inside the tree, in `directory` (a path as seen inside).
    pub(crate) fn command(&self, directory: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        // The death signal covers the lab being killed; --kill-child covers unshare itself.
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=KILL",
            ])
            .args(["--propagation", "private", "sh", "-c", ENTER, "sh"])
            .args([&self.root, &self.cache, &self.repository])
            .arg(directory.as_ref())
            .arg(self.others.len().to_string())
            .args(&self.others)
            .args(arguments);
        command.env_clear().envs(machine_proxies()).envs([
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ]);
        command
    }

    /// Brings the tree's own index of packages up to date: the archive may have moved since the tree was
    /// made.
    pub(crate) fn refresh(&self, log: &Path, progress: &Progress) -> Result<()> {
        run_logged(self.command("/", &["apt-get", "update"]), log, progress)
    }

    /// Copies what belongs to the machine and may change under a finished tree: name resolution,
    /// certificates.
    fn follow_machine(&self) -> Result<()> {
        for file in [
            "etc/resolv.conf",
            "etc/hosts",
            "etc/ssl/certs/ca-certificates.crt",
        ] {
            let source = Path::new("/").join(file);
            if let Ok(bytes) = fs::read(&source) {
                self.write(file, &bytes)?;
            }
        }
        Ok(())
    }

    /// Writes a file in the tree.
    pub(crate) fn write(&self, file: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.root.join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).on("create", parent)?;
        }
        fs::write(&path, content).on("write", &path)
    }
}

/// The Debian archive that this machine is set up to use, as apt tells it; other suites of it are there as
/// well.
pub(crate) fn archive_uri(context: &Context) -> Result<String> {
    Ok(archive_uris(context)?.0)
}

/// The same, and the archive with Debian's security fixes, if the machine uses one.
pub(crate) fn archive_uris(context: &Context) -> Result<(String, Option<String>)> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]);
    let listing = output(command, &context.step_log("archive"))?;
    let main = pick_archive(&listing).ok_or_else(|| Error::Unexpected {
        what: "the package archives this machine uses (apt-get indextargets)".to_owned(),
        expected: "a Debian archive with the component main".to_owned(),
        seen: if listing.is_empty() {
            "none: run `apt-get update`".to_owned()
        } else {
            listing.clone()
        },
    })?;
    Ok((main, pick_security(&listing)))
}

/// Picks the plain Debian archive out of apt's list: not the one for security fixes, not a stranger's.
fn pick_archive(listing: &str) -> Option<String> {
    listing.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (uri, suite, component) = (fields.next()?, fields.next()?, fields.next()?);
        // `bookworm` and `stable` are whole releases; `bookworm-updates` and the like lie beside one.
        let whole = uri.contains("debian") && !uri.contains("security") && !suite.contains('-');
        (whole && component == "main").then(|| uri.to_owned())
    })
}

/// Picks the archive with the security fixes of Debian's releases out of apt's list.
fn pick_security(listing: &str) -> Option<String> {
    listing.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (uri, suite, component) = (fields.next()?, fields.next()?, fields.next()?);
        let fixes = uri.contains("debian") && suite.ends_with("-security");
        (fixes && component == "main").then(|| uri.to_owned())
    })
}

/// The proxy settings of the lab's own environment: apt and cargo inside need the same way out.
fn machine_proxies() -> impl Iterator<Item = (String, String)> {
    std::env::vars().filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy"))
}

#[cfg(test)]
mod tests {
    use super::{pick_archive, pick_security};

    #[test]
    fn the_archive_is_neither_security_nor_a_stranger() {
        let listing = "http://one.example/debian-security/ bookworm-security main\n\
                       http://two.example/tool/ nodistro main\n\
                       http://one.example/debian/ bookworm main\n";
        assert_eq!(
            pick_archive(listing).as_deref(),
            Some("http://one.example/debian/")
        );
        assert_eq!(pick_archive("http://two.example/tool/ nodistro main\n"), None);
        assert_eq!(
            pick_security(listing).as_deref(),
            Some("http://one.example/debian-security/")
        );
        assert_eq!(pick_security("http://one.example/debian/ bookworm main\n"), None);
    }
}
