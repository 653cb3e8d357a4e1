//! Names the inputs of a step by their content, so that a step runs again when, and only when, they change.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};

/// The digest of a step's inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// The digest as hexadecimal text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Gathers a step's inputs.
#[derive(Clone)]
pub(crate) struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// Starts with the step's name and the revision of the code that does it: raise it when that code changes
    /// its effect.
    pub(crate) fn new(step: &str, revision: u32) -> Self {
        Self(blake3::Hasher::new()).text(step).text(&revision.to_string())
    }

    /// Adds a text; its length goes in too, so that two texts cannot pass for two others.
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.bytes(text.as_bytes());
        self
    }

    /// Adds another step's key: this step depends on that one.
    pub(crate) fn key(self, key: &Key) -> Self {
        self.text(key.as_str())
    }

    /// Adds the bytes of one file.
    pub(crate) fn file(mut self, path: &Path) -> Result<Self> {
        self.bytes(&fs::read(path).on("read", path)?);
        Ok(self)
    }

    /// Adds every file below `root` whose path relative to it passes `wanted`: path, executable bit, bytes.
    pub(crate) fn tree(mut self, root: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Self> {
        for relative in files_below(root)? {
            if !wanted(&relative) {
                continue;
            }
            let path = root.join(&relative);
            self.bytes(relative.as_os_str().as_encoded_bytes());
            if path.is_symlink() {
                self.bytes(
                    fs::read_link(&path)
                        .on("read", &path)?
                        .as_os_str()
                        .as_encoded_bytes(),
                );
            } else {
                self.bytes(&fs::read(&path).on("read", &path)?);
            }
        }
        Ok(self)
    }

    /// Ends the gathering.
    pub(crate) fn finish(self) -> Key {
        Key(self.0.finalize().to_hex().to_string())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// Every file and symbolic link below `root`, relative to it, in a fixed order.
pub(crate) fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let directory = root.join(&relative);
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let entry = entry.on("list", &directory)?;
            let name = relative.join(entry.file_name());
            if entry.file_type().on("look at", entry.path())?.is_dir() {
                pending.push(name);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::KeyBuilder;

    #[test]
    fn texts_that_join_alike_have_different_keys() {
        let one = KeyBuilder::new("step", 1).text("ab").text("c").finish();
        let other = KeyBuilder::new("step", 1).text("a").text("bc").finish();
        assert_ne!(one, other);
    }

    #[test]
    fn a_new_revision_is_a_new_key() {
        assert_ne!(
            KeyBuilder::new("step", 1).finish(),
            KeyBuilder::new("step", 2).finish()
        );
    }
}
