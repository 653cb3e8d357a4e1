//! One Debian package: what is in it, and how it becomes a file by `dpkg-deb`.
//!
//! Source: Debian Policy 4.6, chapters 3, 5, 6 and 10.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::context::Staged;
use crate::error::{Error, IoContext, Result};
use crate::process::output;

/// What one package of a build has in common with the others.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// Who built it, as `Name <address>`.
    pub(super) maintainer: String,
    /// When, in seconds since 1970: of the commit, so that the same source gives the same package.
    pub(super) epoch: String,
    /// Where programs' output goes.
    pub(super) log: PathBuf,
}

/// What is said of a package.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) name: String,
    /// With the revision.
    pub(super) version: String,
    pub(super) architecture: &'static str,
    pub(super) section: &'static str,
    /// Further fields, such as `Depends`, with their values.
    pub(super) fields: Vec<(&'static str, String)>,
    /// One line.
    pub(super) synopsis: String,
    /// Paragraphs of lines below 80 columns.
    pub(super) description: &'static str,
    /// What lintian finds and is meant, as a line of an override with its reason before it.
    pub(super) overrides: &'static str,
}

/// A package that is being laid out below a directory of its own.
#[derive(Debug)]
pub(super) struct Package {
    about: About,
    root: PathBuf,
    conffiles: Vec<String>,
}

impl Package {
    /// An empty package, laid out below `folder`.
    pub(super) fn begin(folder: &Path, about: About) -> Result<Self> {
        let root = folder.join(&about.name);
        crate::context::remove(&root)?;
        let control = root.join("DEBIAN");
        fs::create_dir_all(&control).on("create", &control)?;
        Ok(Self {
            about,
            root,
            conffiles: Vec::new(),
        })
    }

    fn place(&self, path: &str) -> Result<PathBuf> {
        let place = self.root.join(path);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).on("create", folder)?;
        }
        Ok(place)
    }

    /// Adds a file with these bytes at `path`, which is relative to `/`.
    pub(super) fn bytes(&self, path: &str, bytes: &[u8], mode: u32) -> Result<PathBuf> {
        let place = self.place(path)?;
        fs::write(&place, bytes).on("write", &place)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).on("set the mode of", &place)?;
        Ok(place)
    }

    /// Adds a copy of `from`.
    pub(super) fn file(&self, path: &str, from: &Path, mode: u32) -> Result<PathBuf> {
        self.bytes(path, &fs::read(from).on("read", from)?, mode)
    }

    /// Adds a text that `gzip` shrinks, as Policy wants it of manual pages and change logs.
    pub(super) fn zipped(&self, path: &str, text: &[u8]) -> Result<()> {
        self.bytes(&format!("{path}.gz"), &gzip(text)?, 0o644).map(drop)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&self, path: &str, to: &str) -> Result<()> {
        let place = self.place(path)?;
        symlink(to, &place).on("link", &place)
    }

    /// Adds a file that the operator may change and that an upgrade keeps.
    pub(super) fn configuration(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.conffiles.push(format!("/{path}"));
        self.bytes(path, bytes, 0o644).map(drop)
    }

    /// Adds a file of the package's own, such as `postinst`.
    pub(super) fn control(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mode = if name.starts_with("post") || name.starts_with("pre") {
            0o755
        } else {
            0o644
        };
        self.bytes(&format!("DEBIAN/{name}"), bytes, mode).map(drop)
    }

    /// Adds what every package has, and writes it into `out`. Returns its file.
    pub(super) fn write(mut self, common: &Common, copyright: &Path, out: &Path) -> Result<PathBuf> {
        let name = self.about.name.clone();
        self.file(&format!("usr/share/doc/{name}/copyright"), copyright, 0o644)?;
        self.change_log(common)?;
        if !self.about.overrides.is_empty() {
            let path = format!("usr/share/lintian/overrides/{name}");
            self.bytes(&path, self.about.overrides.as_bytes(), 0o644)?;
        }
        if !self.conffiles.is_empty() {
            self.conffiles.sort();
            let list = self.conffiles.join("\n") + "\n";
            self.control("conffiles", list.as_bytes())?;
        }
        set_folder_modes(&self.root)?;
        let control = self.control_file(common)?;
        self.control("control", control.as_bytes())?;
        self.sums(common)?;
        let About {
            version,
            architecture,
            ..
        } = &self.about;
        let staged = Staged::file(out.join(format!("{name}_{version}_{architecture}.deb")))?;
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "-Zxz", "--build"]);
        build.arg(&self.root).arg(&staged.path);
        build.env("SOURCE_DATE_EPOCH", &common.epoch);
        output(build, &common.log)?;
        let file = out.join(format!("{name}_{version}_{architecture}.deb"));
        staged.commit()?;
        Ok(file)
    }

    fn change_log(&self, common: &Common) -> Result<()> {
        let mut date = Command::new("date");
        date.args(["--utc", "--rfc-email", "--date"])
            .arg(format!("@{}", common.epoch));
        let date = output(date, &common.log)?;
        let text = format!(
            "{} ({}) unstable; urgency=medium\n\n  * Built from Lacuna's source; its CHANGELOG.md has the changes.\n\n -- {}  {}\n",
            self.about.name,
            self.about.version,
            common.maintainer,
            date.trim()
        );
        self.zipped(
            &format!("usr/share/doc/{}/changelog.Debian", self.about.name),
            text.as_bytes(),
        )
    }

    fn control_file(&self, common: &Common) -> Result<String> {
        let about = &self.about;
        let mut text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: {}\nSection: {}\nPriority: optional\nInstalled-Size: {}\n",
            about.name,
            about.version,
            about.architecture,
            common.maintainer,
            about.section,
            kibibytes(&self.root)?
        );
        for (field, value) in &about.fields {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{field}: {value}");
        }
        let _ = writeln!(text, "Description: {}", about.synopsis);
        for line in about.description.lines() {
            let line = if line.is_empty() { "." } else { line };
            let _ = writeln!(text, " {line}");
        }
        Ok(text)
    }

    /// What `dpkg --verify` holds the files against.
    fn sums(&self, common: &Common) -> Result<()> {
        let mut sum = Command::new("sh");
        sum.current_dir(&self.root).args([
            "-ec",
            "find . -type f ! -path './DEBIAN/*' ! -path './etc/*' -printf '%P\\0' | sort -z | xargs -0 -r md5sum",
        ]);
        self.control("md5sums", output(sum, &common.log)?.as_bytes())
    }
}

/// The size of all files below `root`, in KiB.
fn kibibytes(root: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(root).on("list", root)? {
        let path = entry.on("list", root)?.path();
        let meta = path.symlink_metadata().on("look at", &path)?;
        sum += if meta.is_dir() {
            kibibytes(&path)?
        } else {
            meta.len().div_ceil(1024)
        };
    }
    Ok(sum)
}

/// Gives folders the mode that they have everywhere, whatever the builder's umask is.
fn set_folder_modes(root: &Path) -> Result<()> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).on("set the mode of", root)?;
    for entry in fs::read_dir(root).on("list", root)? {
        let path = entry.on("list", root)?.path();
        if path.symlink_metadata().on("look at", &path)?.is_dir() {
            set_folder_modes(&path)?;
        }
    }
    Ok(())
}

/// `bytes`, shrunk by `gzip` without name and time.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let failed = |source| Error::Start {
        program: "gzip".to_owned(),
        source,
    };
    let mut child = Command::new("gzip")
        .args(["--best", "--no-name"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // gzip writes when it has read some: texts of this size fit into a pipe.
    let mut input = child.stdin.take();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.as_mut().map_or(Ok(()), |pipe| pipe.write_all(&bytes)));
    let out = child.wait_with_output().map_err(failed)?;
    // A failure of the pipe is gzip's, and shows in what it wrote.
    let _ = writer.join();
    Ok(out.stdout)
}
