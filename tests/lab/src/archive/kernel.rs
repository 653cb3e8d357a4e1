//! Which versions of a stock kernel the archive has together with the headers that belong to them.

use super::{Archive, Candidate, Offers, Package};
use crate::error::Result;

/// A kernel that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    /// The release series, such as `6.12`; nothing takes any.
    pub(crate) series: Option<&'a str>,
    /// What follows the version in the names of its packages: `amd64`, `rt-amd64`, `686-pae`.
    pub(crate) flavour: &'a str,
}

impl Archive<'_> {
    /// Lists the kernels `wanted`, newest first. Each candidate has the image (or, from 7.0 on, the package
    /// which the image is in), the headers and their common half, in this order, of one version, whichever
    /// suites list them. A version of which a part is not listed is passed over.
    pub(crate) fn kernels(&self, wanted: Wanted) -> Result<Offers> {
        let packages = if let Some(packages) = self.linux.get() {
            packages
        } else {
            let packages = self.packages(|name| name.starts_with("linux-"))?;
            self.linux.get_or_init(|| packages)
        };
        let mut candidates = Vec::new();
        for image in packages {
            let Some(release) = release(&image.name, wanted) else {
                continue;
            };
            let (files, missing) = match together(packages, image, release) {
                Ok(parts) => (parts.map(|part| part.file.clone()).to_vec(), None),
                Err(missing) => (Vec::new(), Some(missing)),
            };
            candidates.push(Candidate {
                package: image.name.clone(),
                version: image.version.clone(),
                suites: vec![image.suite.clone()],
                files,
                missing,
            });
        }
        Ok(self.offers(candidates))
    }
}

impl Candidate {
    /// The release of a kernel as `uname -r` tells it.
    pub(crate) fn kernel_release(&self) -> &str {
        self.package.trim_start_matches("linux-image-")
    }
}

/// The release that `package` is the image of, if it is one that is wanted: no meta-package, no other
/// flavour, no debugging symbols.
fn release<'a>(package: &'a str, wanted: Wanted) -> Option<&'a str> {
    let release = package.strip_prefix("linux-image-")?;
    let version = release.strip_suffix(wanted.flavour)?.strip_suffix('-')?;
    // `6.1.0-50`, but not `6.1.0-50-rt`.
    let is_version = version
        .split('-')
        .all(|part| part.starts_with(|first: char| first.is_ascii_digit()));
    let is_of = wanted.series.is_none_or(|series| {
        let rest = version.strip_prefix(series);
        rest.is_some_and(|rest| rest.starts_with('.'))
    });
    (is_version && is_of).then_some(release)
}

/// What is downloaded for an image, or the name of what no index lists.
fn together<'a>(
    packages: &'a [Package],
    image: &'a Package,
    release: &str,
) -> Result<[&'a Package; 3], String> {
    let of_version = |name: &str| {
        let found = packages
            .iter()
            .find(|package| package.name == name && package.version == image.version);
        found.ok_or_else(|| name.to_owned())
    };
    let names = |text: &'a str| {
        text.split([',', '|'])
            .filter_map(|one| one.split_whitespace().next())
    };
    let binary = format!("linux-binary-{release}");
    let image = if names(&image.depends).any(|name| name == binary) {
        of_version(&binary)?
    } else {
        image
    };
    let headers = of_version(&format!("linux-headers-{release}"))?;
    let common = names(&headers.depends)
        .find(|name| name.starts_with("linux-headers-") && name.contains("-common"))
        .ok_or_else(|| format!("what {} calls common", headers.name))?;
    Ok([image, headers, of_version(common)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_of_the_flavour_and_series_alone() {
        let found = |package, series, flavour| release(package, Wanted { series, flavour });
        let image = "linux-image-6.1.0-50-amd64";
        assert_eq!(found(image, Some("6.1"), "amd64"), Some("6.1.0-50-amd64"));
        assert_eq!(found(image, None, "amd64"), Some("6.1.0-50-amd64"));
        // 6.12 begins with 6.1.
        let newer = "linux-image-6.12.107+deb13-amd64";
        assert_eq!(found(newer, Some("6.1"), "amd64"), None);
        assert_eq!(found(newer, Some("6.12"), "amd64"), Some("6.12.107+deb13-amd64"));
        for other in [
            "linux-image-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-rt-amd64",
            "linux-image-6.1.0-50-amd64-dbg",
            "linux-image-6.1.0-50-amd64-unsigned",
            "linux-headers-6.1.0-50-amd64",
        ] {
            assert_eq!(found(other, None, "amd64"), None, "{other}");
        }
        assert_eq!(
            found("linux-image-6.1.0-50-686-pae", None, "686-pae"),
            Some("6.1.0-50-686-pae")
        );
        assert_eq!(found("linux-image-686-pae", None, "686-pae"), None);
    }
}
