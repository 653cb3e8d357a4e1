//! Writes files so that none is ever half there, and none that is being read is destroyed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::{Class, Failure};

/// Refuses `output` where it is one of `inputs`, by whatever name or link.
///
/// # Errors
/// It is one of them.
pub fn refuse_inputs<'p>(output: &Path, inputs: impl IntoIterator<Item = &'p Path>) -> Result<(), Failure> {
    match inputs.into_iter().find(|input| is_same(output, input)) {
        None => Ok(()),
        Some(input) => Err(Failure::new(
            Class::Refused,
            format!(
                "{} would be overwritten while it is read as {}: they are one file",
                output.display(),
                input.display()
            ),
            "name another file for the output",
        )),
    }
}

/// Returns whether both name one file, by device and inode.
fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.dev() == other.dev() && one.ino() == other.ino(),
        // What is not there is not the same file as anything.
        _ => false,
    }
}

/// Writes the file at `path` by `write`: beside it first, under another name, and then in its place. If
/// anything goes wrong the file is as it was before. What is no regular file, such as a pipe or
/// `/dev/stdout`, is written to as it is.
///
/// # Errors
/// What `write` returns, or why the file cannot be written.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // The file that a link leads to is what is meant, as with any other way of writing it.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let existing = fs::metadata(&target).ok();
    if existing.as_ref().is_some_and(|found| !found.is_file()) {
        let mut file = BufWriter::new(File::options().write(true).open(&target)?);
        write(&mut file)?;
        return file.flush();
    }
    let beside = beside(&target)?;
    let outcome = fill(&beside, existing.map(|found| found.permissions()), write)
        .and_then(|()| fs::rename(&beside, &target));
    if outcome.is_err() {
        let _ = fs::remove_file(&beside);
    }
    outcome
}

/// Returns a name in the same folder that only this process uses.
fn beside(target: &Path) -> io::Result<PathBuf> {
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(format!(".{}.new", std::process::id()));
    Ok(target.with_file_name(new))
}

fn fill(
    beside: &Path,
    permissions: Option<fs::Permissions>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    // Left by a process that had this number and was killed.
    let _ = fs::remove_file(beside);
    let mut file = BufWriter::new(File::create_new(beside)?);
    write(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    // On disk before it takes the other's place: a crash leaves one of the two.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_any_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("dump"), b"memory").expect("written");
        fs::hard_link(at("dump"), at("hard")).expect("linked");
        std::os::unix::fs::symlink(at("dump"), at("soft")).expect("linked");
        fs::write(at("other"), b"memory").expect("written");
        let dump = at("dump");
        for name in ["dump", "hard", "soft", "./dump"] {
            assert!(refuse_inputs(&at(name), [dump.as_path()]).is_err(), "{name}");
        }
        for name in ["other", "not there"] {
            assert!(refuse_inputs(&at(name), [dump.as_path()]).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_fails_half_way_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bits");
        fs::write(&path, b"old").expect("written");
        let outcome = write_whole(&path, |file| {
            file.write_all(&vec![7; 100_000])?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(outcome.expect_err("it failed").to_string(), "no more");
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn the_file_that_a_link_leads_to_is_replaced_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("bits"), folder.path().join("link"));
        fs::write(&path, b"old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        write_whole(&link, |file| file.write_all(b"new")).expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o640);
    }

    #[test]
    fn what_is_no_file_is_written_to() {
        write_whole(Path::new("/dev/null"), |file| file.write_all(b"gone")).expect("written");
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
    }
}
