//! A source of Xen that the user names: a tarball, an unpacked tree, or a git directory with `@REVISION`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::key::{Key, KeyBuilder};
use crate::process::{output, run_logged};
use crate::progress::Progress;
use crate::tree::copy_source;

/// Where the option's value comes from, for messages.
pub(crate) const OPTION: &str = "--xen-source (or LACUNA_XEN_SOURCE)";

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// An archive that `tar` reads, with one directory at its top.
    Tarball(PathBuf),
    /// A directory with Xen's source in it.
    Tree(PathBuf),
    /// A git directory, with or without a work tree, and a revision in it.
    Revision(PathBuf, String),
}

impl Given {
    /// Understands the option's value, which must name something that exists.
    pub(crate) fn parse(value: &str) -> Result<Self> {
        let path = Path::new(value);
        if path.is_file() {
            return Ok(Self::Tarball(absolute(path)?));
        }
        if path.is_dir() {
            if path.join("xen/Makefile").is_file() {
                return Ok(Self::Tree(absolute(path)?));
            }
            let seen = if is_git(path) {
                format!("{value} is a git directory: add @REVISION to it, as in {value}@RELEASE-4.20.4")
            } else {
                format!("{value} has no xen/Makefile")
            };
            return Err(refused(&seen));
        }
        // A path may hold an @ itself, so the last one divides.
        if let Some((directory, revision)) = value.rsplit_once('@') {
            let directory = Path::new(directory);
            if directory.is_dir() {
                return Ok(Self::Revision(absolute(directory)?, revision.to_owned()));
            }
        }
        Err(refused(&format!("{value} does not exist")))
    }

    /// Names the content, so that the same source is not unpacked twice.
    pub(crate) fn key(&self, context: &Context) -> Result<Key> {
        let key = KeyBuilder::new("xen/given", 1);
        Ok(match self {
            Self::Tarball(file) => key.file(file)?,
            Self::Tree(root) => key.tree(root, is_source)?,
            Self::Revision(directory, revision) => {
                let mut git = Command::new("git");
                git.arg("-C").arg(directory);
                git.args(["rev-parse", "--verify", "--quiet", "--end-of-options"]);
                git.arg(format!("{revision}^{{commit}}"));
                let commit = output(git, &context.step_log("xen-given"))
                    .map_err(|_| refused(&format!("{} has no revision `{revision}`", directory.display())))?;
                key.text(commit.trim())
            }
        }
        .finish())
    }

    /// Writes the source into the empty directory `to`.
    pub(crate) fn unpack(&self, to: &Path, log: &Path, progress: &Progress) -> Result<()> {
        match self {
            Self::Tarball(file) => untar(file, 1, to, log, progress),
            Self::Tree(root) => copy_source(root, to, is_source),
            Self::Revision(directory, revision) => {
                let archive = to.with_extension("tar");
                let mut git = Command::new("git");
                git.arg("-C")
                    .arg(directory)
                    .args(["archive", "--format=tar", "-o"])
                    .arg(&archive)
                    .arg(revision);
                run_logged(git, log, progress)?;
                untar(&archive, 0, to, log, progress)?;
                fs::remove_file(&archive).on("remove", &archive)
            }
        }
    }

    /// Names it as the user did.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Tarball(path) | Self::Tree(path) => path.display().to_string(),
            Self::Revision(path, revision) => format!("{}@{revision}", path.display()),
        }
    }
}

/// Unpacks `archive` into `to`, without the first `strip` parts of each name.
pub(crate) fn untar(archive: &Path, strip: u32, to: &Path, log: &Path, progress: &Progress) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--no-same-owner",
        &format!("--strip-components={strip}"),
    ]);
    tar.arg("--file").arg(archive).arg("--directory").arg(to);
    run_logged(tar, log, progress)
}

/// Whether the file `path`, relative to the tree, is source: a user's tree may hold git's data, and objects
/// of builds.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let built = [".o", ".o.d", ".o.cmd", ".a", ".so", ".gz"];
    !path.starts_with(".git") && !built.iter().any(|end| name.ends_with(end))
}

fn is_git(path: &Path) -> bool {
    path.join(".git").exists() || (path.join("objects").is_dir() && path.join("HEAD").is_file())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().on("find", path)
}

fn refused(seen: &str) -> Error {
    Error::Unexpected {
        what: OPTION.to_owned(),
        expected: "a tarball of Xen, a directory with its source, or a git directory with @REVISION"
            .to_owned(),
        seen: seen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place(name: &str) -> PathBuf {
        let top = std::env::temp_dir().join(format!("lacuna-lab-given-{name}-{}", std::process::id()));
        fs::create_dir_all(&top).unwrap();
        top
    }

    #[test]
    fn each_form_is_told_from_the_others() {
        let top = place("forms");
        let tree = top.join("tree");
        fs::create_dir_all(tree.join("xen")).unwrap();
        fs::write(tree.join("xen/Makefile"), "").unwrap();
        fs::write(top.join("xen.tar.xz"), "").unwrap();
        fs::create_dir_all(top.join("bare@home/objects")).unwrap();
        fs::write(top.join("bare@home/HEAD"), "").unwrap();
        let parse = |name: &str| Given::parse(&top.join(name).to_string_lossy());
        assert!(matches!(parse("tree").unwrap(), Given::Tree(_)));
        assert!(matches!(parse("xen.tar.xz").unwrap(), Given::Tarball(_)));
        assert!(
            matches!(parse("bare@home@v1").unwrap(), Given::Revision(path, revision)
                if path.ends_with("bare@home") && revision == "v1")
        );
        let told = parse("bare@home").unwrap_err().to_string();
        assert!(told.contains("add @REVISION"), "{told}");
        assert!(
            parse("nothing")
                .unwrap_err()
                .to_string()
                .contains("does not exist")
        );
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn a_users_tree_is_copied_without_what_its_builds_left() {
        assert!(is_source(Path::new("xen/common/domain.c")));
        assert!(!is_source(Path::new("xen/common/domain.o")));
        assert!(!is_source(Path::new(".git/HEAD")));
    }
}
