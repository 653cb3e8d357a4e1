//! Reads the paragraphs of a package index: `Sources` and `Packages`, as deb822(5) and the archive's format
//! have them.

use std::io::{BufRead, Error as IoError};

use super::RemoteFile;

/// One package of an index: its fields as they stand there.
pub(super) struct Paragraph(String);

impl Paragraph {
    /// Returns the value of a field, with the lines that go on with it; empty when the package has none.
    pub(super) fn field(&self, name: &str) -> &str {
        let mut begin = 0;
        for line in self.0.split_inclusive('\n') {
            let end = begin + line.len();
            let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'));
            if let Some(value) = value {
                let rest = &self.0[end..];
                let more: usize = rest
                    .split_inclusive('\n')
                    .take_while(|line| line.starts_with(' ') || line.starts_with('\t'))
                    .map(str::len)
                    .sum();
                return self.0[end - value.len()..end + more].trim();
            }
            begin = end;
        }
        ""
    }

    /// Returns the upstream tarballs of a source package: those of its main part, not the signatures beside
    /// them.
    pub(super) fn tarballs(&self, base: &str) -> Vec<RemoteFile> {
        let directory = self.field("Directory");
        let listed = self.field("Checksums-Sha256").lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.parse().ok()?, words.next()?))
        });
        listed
            .filter(|(_, _, name)| {
                // Behind it comes how it is compressed, and for a signature one part more.
                let end = name.split_once(".orig.tar.").map(|(_, end)| end);
                end.is_some_and(|end| !end.contains('.'))
            })
            .map(|(sha256, size, name)| RemoteFile {
                name: name.to_owned(),
                size,
                sha256: sha256.to_owned(),
                uri: join(base, &format!("{directory}/{name}")),
            })
            .collect()
    }

    /// Returns the file of a binary package.
    pub(super) fn package_file(&self, base: &str) -> Option<RemoteFile> {
        let path = self.field("Filename");
        let sha256 = self.field("SHA256");
        if path.is_empty() || sha256.is_empty() {
            return None;
        }
        Some(RemoteFile {
            name: path.rsplit('/').next().unwrap_or(path).to_owned(),
            size: self.field("Size").parse().ok()?,
            sha256: sha256.to_owned(),
            uri: join(base, path),
        })
    }
}

/// Reads an index to its end and keeps the packages whose name is `wanted`. The archive's format has the name
/// in the first field, so the others of the many packages that are not wanted need not be looked at.
pub(super) fn read(
    mut index: impl BufRead,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Paragraph>, IoError> {
    let mut found = Vec::new();
    let mut line = Vec::new();
    let mut text: Option<Vec<u8>> = None;
    let mut is_first = true;
    loop {
        line.clear();
        let ended = index.read_until(b'\n', &mut line)? == 0;
        if ended || line == b"\n" {
            if let Some(text) = text.take() {
                found.push(Paragraph(String::from_utf8_lossy(&text).into_owned()));
            }
            is_first = true;
        } else if is_first {
            is_first = false;
            let name = std::str::from_utf8(&line)
                .ok()
                .and_then(|line| line.strip_prefix("Package:"));
            if name.is_some_and(|name| wanted(name.trim())) {
                text = Some(line.clone());
            }
        } else if let Some(text) = &mut text {
            text.extend_from_slice(&line);
        }
        if ended {
            return Ok(found);
        }
    }
}

fn join(base: &str, path: &str) -> String {
    format!("{}/{}", base.trim_end_matches('/'), path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const INDEX: &str = "Package: other\nVersion: 1\n\n\
        Package: xen\nBinary: a,\n b\nVersion: 4.20.4-1\nFiles:\n md5 3 xen_4.20.4.orig.tar.xz\n\
        Checksums-Sha256:\n aa 1 xen_4.20.4-1.dsc\n bb 2 xen_4.20.4.orig.tar.xz\n cc 3 xen_4.20.4.orig.tar.xz.asc\n\
        Directory: pool/main/x/xen\n\n\
        Package: xen-doc\nVersion: 2\nFilename: ./pool/doc.deb\nSize: 7\nSHA256: dd\n";

    #[test]
    fn a_source_package_gives_its_upstream_tarball_alone() {
        let found = read(INDEX.as_bytes(), |name| name == "xen").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field("Version"), "4.20.4-1");
        assert_eq!(found[0].field("Binary"), "a,\n b");
        let tarball = RemoteFile {
            name: "xen_4.20.4.orig.tar.xz".to_owned(),
            size: 2,
            sha256: "bb".to_owned(),
            uri: "http://a.example/debian/pool/main/x/xen/xen_4.20.4.orig.tar.xz".to_owned(),
        };
        assert_eq!(found[0].tarballs("http://a.example/debian/"), [tarball]);
    }

    #[test]
    fn the_last_package_counts_without_an_empty_line_behind_it() {
        let found = read(INDEX.as_bytes(), |name| name == "xen-doc").unwrap();
        let file = found[0].package_file("http://a.example/debian").unwrap();
        assert_eq!((file.name.as_str(), file.size), ("doc.deb", 7));
        assert_eq!(file.sha256, "dd");
    }
}
