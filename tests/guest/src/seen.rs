//! What an agent has seen of files and messages.

use serde::{Deserialize, Serialize};

/// What came of work on files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesSeen {
    /// Files that are there; 0 while the work goes on.
    pub files: u64,
    /// The pages that they have.
    pub pages: u64,
    /// How often they were written anew: the sum of what their names tell.
    pub generations: u64,
    /// Pages written.
    pub written: u64,
    /// Pages read from the disk and looked at.
    pub read: u64,
    /// Pages that did not hold what was written.
    pub wrong: u64,
    /// Accesses that failed.
    pub errors: u64,
    /// The first failure.
    pub first: Option<String>,
}

/// What came of messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficSeen {
    /// Pages received and looked at.
    pub pages: u64,
    /// Pages that did not hold what was sent.
    pub wrong: u64,
    /// Streams that broke.
    pub errors: u64,
    /// The first failure.
    pub first: Option<String>,
}
