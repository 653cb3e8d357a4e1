//! Writes initial file systems: the "newc" archive of
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive being written. Directories above a member are added by themselves.
pub(crate) struct Archive {
    path: PathBuf,
    output: BufWriter<File>,
    position: usize,
    number: u32,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    /// Starts an archive in the file at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let output = BufWriter::new(File::create(path).on("create", path)?);
        Ok(Self {
            path: path.to_path_buf(),
            output,
            position: 0,
            number: 0,
            directories: BTreeSet::new(),
        })
    }

    /// Adds an empty directory.
    pub(crate) fn directory(&mut self, name: &str) -> Result<()> {
        self.parents(&Path::new(name).join("-"))
    }

    /// Adds the file at `from` under `name`, executable where it is so now.
    pub(crate) fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).on("read", from)?;
        let mode = fs::metadata(from).on("look at", from)?.permissions().mode() & 0o777;
        self.bytes(name, &content, mode)
    }

    /// Adds a file with the given content.
    pub(crate) fn bytes(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.parents(Path::new(name))?;
        self.member(name, REGULAR | mode, content)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.parents(Path::new(name))?;
        self.member(name, LINK | 0o777, target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.member(TRAILER, 0, b"")?;
        self.output.flush().on("write", &self.path)
    }

    fn parents(&mut self, name: &Path) -> Result<()> {
        let above: Vec<PathBuf> = name.ancestors().skip(1).map(Path::to_path_buf).collect();
        for directory in above.into_iter().rev() {
            if directory.as_os_str().is_empty() || !self.directories.insert(directory.clone()) {
                continue;
            }
            self.member(&directory.to_string_lossy(), DIRECTORY | 0o755, b"")?;
        }
        Ok(())
    }

    fn member(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.number += 1;
        let path = self.path.clone();
        self.write_member(name, mode, content).on("write", path)
    }

    fn write_member(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let fields = [
            self.number,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).map_err(io::Error::other)?,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a string cannot fail.
            let _ = write!(header, "{field:08x}");
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(b"\0")?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len();
        self.output.write_all(bytes)
    }

    /// Names and contents end on multiples of four bytes.
    fn align(&mut self) -> io::Result<()> {
        let gap = self.position.next_multiple_of(4) - self.position;
        self.put(&[0; 3][..gap])
    }
}
