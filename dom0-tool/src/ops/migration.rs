//! The files through which this tool and a migrating toolstack tell each other about a guest.
//!
//! The sender's and the receiver's helper leave their counters in [`FOLDER`], in files named by the guest's
//! UUID, which the guest keeps across a migration. `lacuna attach` leaves there why it refused a guest, and
//! the sender's log shows it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::xen::privcmd::DomainInfo;

/// Where the files are (`xg_sr_save_lacuna.c` in Xen's tools). It lives as long as the host runs.
pub const FOLDER: &str = "/run/lacuna";
/// Most bytes of a file that are read: the helpers write a few hundred for an iteration.
const MOST: u64 = 1 << 20;
/// Most characters of a reason that are kept: it becomes a line of a log.
const REASON: usize = 400;

/// The two ends of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The sender, which the guest, or a copy of it, has left.
    Sent,
    /// The receiver.
    Received,
}

/// Returns the file in `folder` that is about the guest with `handle`, by its ending.
fn file(folder: &Path, handle: &[u8; 16], ending: &str) -> PathBuf {
    let mut name = String::new();
    for (index, byte) in handle.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            name.push('-');
        }
        name.push_str(&crate::hex::hexadecimal(&[*byte]));
    }
    folder.join(format!("{name}.{ending}"))
}

/// Returns the counters of the guest's latest migration on `side`; `None` when this host knows of none.
///
/// # Errors
/// The file cannot be read, or is not what a helper writes.
pub fn counters(domain: &DomainInfo, side: Side) -> io::Result<Option<Value>> {
    counters_in(FOLDER.as_ref(), domain, side)
}

fn counters_in(folder: &Path, domain: &DomainInfo, side: Side) -> io::Result<Option<Value>> {
    let ending = match side {
        Side::Sent => "sent.json",
        Side::Received => "received.json",
    };
    let path = file(folder, &domain.handle, ending);
    match fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(found) if found.len() > MOST => {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!(
                    "{} has {} bytes, {MOST} are believed",
                    path.display(),
                    found.len()
                ),
            ));
        }
        Ok(_) => {}
    }
    let text = fs::read(&path)?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display())))
}

/// Returns why the guest was refused a profile; `None` when it was not.
pub fn refusal(domain: &DomainInfo) -> Option<String> {
    refusal_in(FOLDER.as_ref(), domain)
}

fn refusal_in(folder: &Path, domain: &DomainInfo) -> Option<String> {
    let text = fs::read_to_string(file(folder, &domain.handle, "refused")).ok()?;
    Some(text.trim().to_owned())
}

/// Keeps `reason` for a migration's log.
///
/// # Errors
/// The file cannot be written.
pub fn record_refusal(domain: &DomainInfo, reason: &str) -> io::Result<()> {
    record_refusal_in(FOLDER.as_ref(), domain, reason)
}

fn record_refusal_in(folder: &Path, domain: &DomainInfo, reason: &str) -> io::Result<()> {
    // Counters show what a guest does, so only root may read them.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let line: String = reason
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(REASON)
        .collect();
    let path = file(folder, &domain.handle, "refused");
    let new = file(folder, &domain.handle, "refused.new");
    fs::write(&new, line + "\n")?;
    fs::rename(new, path)
}

/// Forgets a reason that was kept.
///
/// # Errors
/// There is one, and it cannot be removed.
pub fn forget_refusal(domain: &DomainInfo) -> io::Result<()> {
    forget_refusal_in(FOLDER.as_ref(), domain)
}

fn forget_refusal_in(folder: &Path, domain: &DomainInfo) -> io::Result<()> {
    match fs::remove_file(file(folder, &domain.handle, "refused")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> DomainInfo {
        DomainInfo {
            flags: 0,
            pages: 0,
            max_pages: 0,
            cpu_time: 0,
            online_vcpus: 0,
            handle: std::array::from_fn(|index| u8::try_from(index * 16 + index).unwrap_or(0)),
        }
    }

    #[test]
    fn files_are_named_by_the_uuid_as_the_toolstack_writes_it() {
        let path = file("/f".as_ref(), &domain().handle, "sent.json");
        assert_eq!(
            path,
            Path::new("/f/00112233-4455-6677-8899-aabbccddeeff.sent.json")
        );
    }

    #[test]
    fn a_refusal_is_one_line_and_can_be_forgotten() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("lacuna");
        assert_eq!(refusal_in(&folder, &domain()), None);
        forget_refusal_in(&folder, &domain()).expect("nothing to forget");
        record_refusal_in(&folder, &domain(), "it\nlies").expect("kept");
        assert_eq!(refusal_in(&folder, &domain()).as_deref(), Some("it lies"));
        record_refusal_in(&folder, &domain(), &"x".repeat(9000)).expect("kept");
        assert_eq!(
            refusal_in(&folder, &domain()).map(|text| text.len()),
            Some(REASON)
        );
        forget_refusal_in(&folder, &domain()).expect("forgotten");
        assert_eq!(refusal_in(&folder, &domain()), None);
    }

    #[test]
    fn counters_are_read_and_damage_is_told() {
        let place = tempfile::tempdir().expect("a folder");
        let read = || counters_in(place.path(), &domain(), Side::Received);
        assert!(read().expect("nothing").is_none());
        let path = file(place.path(), &domain().handle, "received.json");
        fs::write(&path, r#"{"pages": 7}"#).expect("written");
        assert_eq!(
            read().expect("read").map(|value| value["pages"].clone()),
            Some(7.into())
        );
        fs::write(&path, "{").expect("written");
        assert_eq!(read().expect_err("damaged").kind(), ErrorKind::InvalidData);
        fs::write(&path, vec![b' '; 2 << 20]).expect("written");
        assert_eq!(read().expect_err("too long").kind(), ErrorKind::InvalidData);
    }
}
