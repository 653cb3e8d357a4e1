//! The release series of Xen that the patches are for.

use std::fs;
use std::path::Path;

use crate::error::{Error, IoContext, Result};

/// A release series of Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 13's.
    #[value(name = "4.20")]
    V4_20,
    /// Debian 12's, and XCP-ng 8.3's.
    #[value(name = "4.17")]
    V4_17,
}

/// All of them, the newest first: the order in which they are looked for.
pub(crate) const SUPPORTED: [Series; 2] = [Series::V4_20, Series::V4_17];

impl Series {
    /// Returns its name, as in the names of Xen's own libraries.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4_20 => "4.20",
            Self::V4_17 => "4.17",
        }
    }

    /// Returns the series with this `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        SUPPORTED.into_iter().find(|series| series.name() == name)
    }
}

/// Lists the names of the supported series for a message.
pub(crate) fn supported() -> String {
    SUPPORTED.map(Series::name).join(", ")
}

/// The version that a tree of Xen's source says it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeVersion {
    /// Major and minor number, such as `4.20`.
    pub(crate) series: String,
    /// All of it, such as `4.20.4`.
    pub(crate) whole: String,
}

/// Reads the version of the source tree at `root` from its `xen/Makefile`.
pub(crate) fn tree_version(root: &Path) -> Result<TreeVersion> {
    let path = root.join("xen/Makefile");
    let text = fs::read_to_string(&path).on("read", &path)?;
    parse_version(&text).ok_or_else(|| Error::Unexpected {
        what: path.display().to_string(),
        expected: "XEN_VERSION and XEN_SUBVERSION, as in every tree of Xen since 3.0".to_owned(),
        seen: "neither".to_owned(),
    })
}

/// Finds the version in the text of `xen/Makefile`: `export XEN_VERSION = 4`, with `=`, `:=` or `?=`.
fn parse_version(makefile: &str) -> Option<TreeVersion> {
    let value = |name: &str| {
        makefile.lines().find_map(|line| {
            let (left, right) = line.split_once('=')?;
            let left = left
                .trim_end_matches([':', '?', ' '])
                .trim_start_matches("export")
                .trim();
            (left == name).then(|| right.trim().to_owned())
        })
    };
    let series = format!("{}.{}", value("XEN_VERSION")?, value("XEN_SUBVERSION")?);
    // `.4$(XEN_VENDORVERSION)`, or `-unstable...` on the development branch.
    let extra = value("XEN_EXTRAVERSION").unwrap_or_default();
    let extra = extra.split('$').next().unwrap_or_default();
    Some(TreeVersion {
        whole: format!("{series}{extra}"),
        series,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_version_of_a_tree_is_read_from_either_form_of_its_makefile() {
        let new = "export XEN_VERSION       := 4\nexport XEN_SUBVERSION    := 20\nexport XEN_EXTRAVERSION ?= .4$(XEN_VENDORVERSION)\n";
        let version = parse_version(new).unwrap();
        assert_eq!(version.series, "4.20");
        assert_eq!(version.whole, "4.20.4");
        let old = "export XEN_VERSION     = 4\nexport XEN_SUBVERSION  = 17\n";
        assert_eq!(parse_version(old).unwrap().series, "4.17");
        assert_eq!(parse_version("all:\n"), None);
    }
}
