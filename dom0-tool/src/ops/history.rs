//! The host's recent past, which the daemon keeps in a file: samples of the host and its guests, and events.
//!
//! The file has a line for each record: a checksum of the rest, and the record as JSON. Records are only ever
//! appended. When a file has reached half of the bound it becomes the older one of two, in place of the one
//! before; so both together never exceed the bound. A line that was cut short by the end of a daemon or of the
//! host is cut off. If a line amid others is damaged, the file is set aside and what comes before that line
//! is kept.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the daemon keeps the history unless its configuration says otherwise.
pub const DEFAULT_FILE: &str = "/var/lib/lacuna/history";
/// The first line of each file. A file that begins otherwise is of another version, or no history.
const HEADER: &str = "lacuna history 1\n";
/// Digits of a line's checksum: the first eight bytes of the BLAKE3 hash of the JSON.
const CHECKSUM: usize = 16;

/// The host at one moment, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPoint {
    /// All memory.
    pub total: u64,
    /// Free memory.
    pub free: u64,
    /// What guests could take back.
    pub promised: u64,
    /// Free memory below which nothing more is given back.
    pub reserve: u64,
}

/// A guest at one moment: pages of 4 KiB, and counters that start with the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPoint {
    /// Its number.
    pub domain: u16,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Pages that it owns.
    pub held: u64,
    /// Of these, pages that are free inside it, by the last scan.
    pub free: u64,
    /// Pages on frames that it shares.
    pub given_back: u64,
    /// Counter of pages that it has given back.
    pub gave: u64,
    /// Counter of pages that it has taken back by writing.
    pub took: u64,
    /// Counter of writes that had to wait for memory.
    pub waits: u64,
    /// Counter of nanoseconds for which it was stopped.
    pub paused_ns: u64,
    /// Counter of rounds, which starts with the daemon.
    pub rounds: u64,
}

/// Something that happened, as the daemon's journal has it (`docs/daemon.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its name.
    pub event: String,
    /// The guest's number, if it is about one.
    pub domain: Option<u16>,
    /// The guest's name, if it has one.
    pub name: Option<String>,
    /// What else it says.
    pub what: Option<String>,
}

/// What a record is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// The host and its guests.
    Sample {
        /// The host.
        host: HostPoint,
        /// The guests whose state is known.
        guests: Vec<GuestPoint>,
    },
    /// An event.
    Event(Event),
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since the beginning of 1970, by the host's clock.
    pub at: u64,
    /// What was recorded.
    pub entry: Entry,
}

/// What had to be done to a file before it could be appended to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// So many bytes of a record that was not written to its end were cut off.
    Cut(u64),
    /// The file was damaged and has this name now; records before the damage were kept.
    SetAside(PathBuf),
}

/// The history as its writer has it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Most bytes of one of the two files.
    half: u64,
    file: File,
    size: u64,
}

impl Store {
    /// Opens the history at `path`, which may be absent. Both of its files together have at most `bound`
    /// bytes; one that was set aside is not counted.
    ///
    /// # Errors
    /// The file cannot be read, repaired or written.
    pub fn open(path: &Path, bound: u64) -> io::Result<(Self, Option<Repair>)> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let half = bound / 2;
        let mut repair = None;
        let bytes = match read_file(path, half) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let parsed = parse(&bytes);
        if parsed.is_damaged {
            let aside = suffixed(path, ".damaged");
            fs::rename(path, &aside)?;
            crate::output::write_whole(path, |file| file.write_all(&bytes[..parsed.good]))?;
            repair = Some(Repair::SetAside(aside));
        }
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .mode(0o640)
            .open(path)?;
        let mut size = file.metadata()?.len();
        if size > parsed.good as u64 {
            repair = Some(Repair::Cut(size - parsed.good as u64));
            size = parsed.good as u64;
            file.set_len(size)?;
        }
        if size == 0 {
            file.write_all(HEADER.as_bytes())?;
            size = HEADER.len() as u64;
        }
        let store = Self {
            path: path.to_owned(),
            half,
            file,
            size,
        };
        Ok((store, repair))
    }

    /// Appends a record.
    ///
    /// # Errors
    /// The file cannot be written, or the record alone exceeds the bound. The history is as it was.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let line = line(record)?;
        let length = line.len() as u64;
        if length + HEADER.len() as u64 > self.half {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "a record of {length} bytes in a file of at most {} bytes",
                    self.half
                ),
            ));
        }
        let is_ours = fs::metadata(&self.path)
            .and_then(|there| Ok(there.ino() == self.file.metadata()?.ino()))
            .unwrap_or(false);
        if !is_ours {
            // Somebody removed or replaced it.
            *self = Self::open(&self.path, self.half * 2)?.0;
        }
        if self.size + length > self.half {
            fs::rename(&self.path, suffixed(&self.path, ".old"))?;
            *self = Self::open(&self.path, self.half * 2)?.0;
        }
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // What was written of the line would damage the next one.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += length;
        Ok(())
    }
}

/// What of a history could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The records, in the order in which they were written.
    pub records: Vec<Record>,
    /// Files of which a part could not be read.
    pub damaged: Vec<PathBuf>,
}

/// Reads the records at `since` and later. A daemon may append to the history meanwhile.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path, since: u64) -> io::Result<Past> {
    let old = suffixed(path, ".old");
    // The newer file may become the older one in between.
    let (newer, older) = loop {
        let before = inode(&old);
        let newer = read_file(path, u64::MAX)?;
        let older = match read_file(&old, u64::MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if before == inode(&old) {
            break (newer, older);
        }
    };
    let mut past = Past::default();
    for (file, bytes) in [(old, older), (path.to_owned(), newer)] {
        let parsed = parse(&bytes);
        if parsed.is_damaged {
            past.damaged.push(file);
        }
        past.records
            .extend(parsed.records.into_iter().filter(|record| record.at >= since));
    }
    Ok(past)
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads at most `most` bytes: what is beyond the bound was written by nobody, and is damage.
fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn line(record: &Record) -> io::Result<String> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{} {json}\n", checksum(json.as_bytes())))
}

fn checksum(json: &[u8]) -> String {
    blake3::hash(json).to_hex()[..CHECKSUM].to_owned()
}

/// The records of a file.
#[derive(Debug, Default)]
struct Parsed {
    records: Vec<Record>,
    /// Bytes up to the end of the last good record before the first bad one.
    good: usize,
    /// It is no history, or more follows after the first bad record.
    is_damaged: bool,
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let Some(rest) = bytes.strip_prefix(HEADER.as_bytes()) else {
        // A header that was not written to its end is no damage.
        parsed.is_damaged = !HEADER.as_bytes().starts_with(bytes);
        return parsed;
    };
    parsed.good = HEADER.len();
    let mut lines = rest.split_inclusive(|byte| *byte == b'\n');
    for line in lines.by_ref() {
        let Some(record) = record(line) else {
            parsed.is_damaged = lines.any(|line| record(line).is_some());
            break;
        };
        parsed.records.push(record);
        parsed.good += line.len();
    }
    parsed
}

fn record(line: &[u8]) -> Option<Record> {
    let line = line.strip_suffix(b"\n")?;
    let (told, json) = line.split_at_checked(CHECKSUM)?;
    let json = json.strip_prefix(b" ")?;
    if checksum(json).as_bytes() != told {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests;
