//! A small client of xenstore, enough to list domains and their names.
//!
//! The protocol is Xen's `docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h`: a 16-byte header
//! (type, request number, transaction, length) and a payload of at most 4096 bytes, in both directions.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

/// `XS_DIRECTORY`, `XS_READ` and `XS_ERROR` (`enum xsd_sockmsg_type`).
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const ERROR: u32 = 16;
/// `XENSTORE_PAYLOAD_MAX`.
const MAX_PAYLOAD: u32 = 4096;
/// Messages of other kinds (watch events) that are stepped over before giving up.
const MAX_STRAY: u32 = 64;

/// Why xenstore gave no answer.
#[derive(Debug, Error)]
pub enum XenstoreError {
    /// Neither the daemon's socket nor the kernel's device could be used.
    #[error("xenstore is not reachable: {0}")]
    Unreachable(io::Error),
    /// Reading or writing failed.
    #[error("talking to xenstore: {0}")]
    Io(#[from] io::Error),
    /// The daemon refused.
    #[error("xenstore refused to read {path}: {reason}")]
    Refused {
        /// The path.
        path: String,
        /// Its word for it, such as `ENOENT`.
        reason: String,
    },
    /// The answer is not one.
    #[error("xenstore's answer is malformed")]
    Malformed,
}

trait Channel: Read + Write {}
impl<T: Read + Write> Channel for T {}

/// A connection to xenstore.
pub struct Xenstore {
    channel: Box<dyn Channel>,
}

impl Xenstore {
    /// Connects to the daemon, or, where it runs in another domain, to the kernel's driver.
    ///
    /// # Errors
    /// [`XenstoreError::Unreachable`].
    pub fn connect() -> Result<Self, XenstoreError> {
        for socket in ["/run/xenstored/socket", "/var/run/xenstored/socket"] {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                return Ok(Self {
                    channel: Box::new(stream),
                });
            }
        }
        let device = OpenOptions::new().read(true).write(true).open("/dev/xen/xenbus");
        Ok(Self {
            channel: Box::new(device.map_err(XenstoreError::Unreachable)?),
        })
    }

    /// Returns the value at `path`.
    ///
    /// # Errors
    /// [`XenstoreError`].
    pub fn read(&mut self, path: &str) -> Result<String, XenstoreError> {
        let bytes = self.ask(READ, path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the names of what is directly below `path`.
    ///
    /// # Errors
    /// [`XenstoreError`].
    pub fn list(&mut self, path: &str) -> Result<Vec<String>, XenstoreError> {
        let bytes = self.ask(DIRECTORY, path)?;
        let names = bytes.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        Ok(names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect())
    }

    fn ask(&mut self, kind: u32, path: &str) -> Result<Vec<u8>, XenstoreError> {
        let mut message = Vec::with_capacity(16 + path.len() + 1);
        let length = u32::try_from(path.len() + 1).map_err(|_| XenstoreError::Malformed)?;
        for word in [kind, 0, 0, length] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(path.as_bytes());
        message.push(0);
        self.channel.write_all(&message)?;
        for _ in 0..MAX_STRAY {
            let mut header = [0; 16];
            self.channel.read_exact(&mut header)?;
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| header[at + index]));
            let (answered, length) = (word(0), word(12));
            if length > MAX_PAYLOAD {
                return Err(XenstoreError::Malformed);
            }
            let mut payload = vec![0; usize::try_from(length).map_err(|_| XenstoreError::Malformed)?];
            self.channel.read_exact(&mut payload)?;
            if answered == ERROR {
                let reason = String::from_utf8_lossy(&payload)
                    .trim_end_matches('\0')
                    .to_owned();
                return Err(XenstoreError::Refused {
                    path: path.to_owned(),
                    reason,
                });
            }
            if answered == kind {
                return Ok(payload);
            }
        }
        Err(XenstoreError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::thread;

    fn answering(kind: u32, payload: &'static [u8]) -> Xenstore {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut header = [0; 16];
            theirs.read_exact(&mut header).unwrap();
            let mut path = vec![0; usize::from(header[12])];
            theirs.read_exact(&mut path).unwrap();
            let mut answer = Vec::new();
            for word in [kind, 0, 0, u32::try_from(payload.len()).unwrap()] {
                answer.extend_from_slice(&word.to_le_bytes());
            }
            answer.extend_from_slice(payload);
            theirs.write_all(&answer).unwrap();
        });
        Xenstore {
            channel: Box::new(ours),
        }
    }

    #[test]
    fn a_listing_is_split_at_its_terminators() {
        assert_eq!(
            answering(DIRECTORY, b"0\x001\x0017\x00")
                .list("/local/domain")
                .unwrap(),
            ["0", "1", "17"]
        );
    }

    #[test]
    fn a_refusal_carries_the_daemons_word() {
        match answering(ERROR, b"ENOENT\0").read("/nowhere") {
            Err(XenstoreError::Refused { path, reason }) => {
                assert_eq!((path.as_str(), reason.as_str()), ("/nowhere", "ENOENT"));
            }
            other => panic!("{other:?}"),
        }
    }
}
