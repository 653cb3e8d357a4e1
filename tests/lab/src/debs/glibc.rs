//! The oldest glibc with which a program runs: what a package has to depend on.

use std::fs;
use std::path::Path;

use object::elf::FileHeader64;
use object::read::elf::FileHeader;
use object::{Endianness, read};

use crate::error::{Error, IoContext, Result};
use crate::xen::series::Series;

/// A version of glibc, such as 2.36.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32);

impl Version {
    /// What packages depend on at least, whatever the programs need.
    pub(super) const LEAST: Self = Self(2, 34);

    /// What the Debian has that packages of a series of Xen are for.
    pub(super) const fn of_debian(series: Series) -> Self {
        match series {
            // Debian 12.
            Series::V4_17 => Self(2, 36),
            // Debian 13.
            Series::V4_20 => Self(2, 41),
        }
    }

    /// The version in a symbol's, such as `GLIBC_2.36`; of `GLIBC_2.2.5` and its like the first two numbers.
    fn of_symbol(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix("GLIBC_")?.split('.').map(str::parse);
        match (numbers.next()?, numbers.next()?) {
            (Ok(major), Ok(minor)) => Some(Self(major, minor)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.0, self.1)
    }
}

/// The oldest glibc with which all of `files` run, which must not be newer than that of the Debian that
/// packages of `series` are for.
pub(super) fn needed(files: &[&Path], series: Series) -> Result<Version> {
    let mut most = Version::LEAST;
    for file in files {
        let bytes = fs::read(file).on("read", file)?;
        let version = of_program(&bytes).map_err(|error| Error::Unexpected {
            what: file.display().to_string(),
            expected: "a 64-bit ELF file".to_owned(),
            seen: error.to_string(),
        })?;
        let debian = Version::of_debian(series);
        if version > debian {
            return Err(Error::Unexpected {
                what: format!("the C library that {} needs", file.display()),
                expected: format!(
                    "glibc {debian} or older, as the Debian with Xen {} has",
                    series.name()
                ),
                seen: format!("{version}: build on a machine that has no newer glibc than {debian}"),
            });
        }
        most = most.max(version);
    }
    Ok(most)
}

/// The newest version of glibc's symbols that a program wants.
fn of_program(bytes: &[u8]) -> read::Result<Version> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    let mut most = Version::LEAST;
    let Some((mut libraries, names)) = sections.gnu_verneed(endian, bytes)? else {
        return Ok(most);
    };
    let names = sections.strings(endian, bytes, names)?;
    while let Some((_, mut versions)) = libraries.next()? {
        while let Some(version) = versions.next()? {
            let name = String::from_utf8_lossy(version.name(endian, names)?);
            most = Version::of_symbol(&name).map_or(most, |version| most.max(version));
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(Version::of_symbol("GLIBC_2.2.5"), Some(Version(2, 2)));
        assert_eq!(Version::of_symbol("GLIBC_PRIVATE"), None);
        assert_eq!(Version::of_symbol("GCC_3.0"), None);
        assert!(Version::of_symbol("GLIBC_2.4").unwrap() < Version::LEAST);
        assert!(Version::of_symbol("GLIBC_2.38").unwrap() > Version::of_debian(Series::V4_17));
    }

    /// A library of the test's own that names a version of glibc; binutils says of this test's program what
    /// it needs.
    #[test]
    fn a_program_that_needs_a_newer_glibc_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let this = std::env::current_exe().unwrap();
        let told = Command::new("objdump").arg("-T").arg(&this).output().unwrap();
        let text = String::from_utf8_lossy(&told.stdout);
        let symbols = text.split(['(', ')', ' ']).filter_map(Version::of_symbol);
        let expected = symbols.max().unwrap().max(Version::LEAST);
        assert_eq!(of_program(&fs::read(&this).unwrap()).unwrap(), expected);

        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let library = file("new.c", "int of_tomorrow(void) { return 0; }");
        let script = file("new.map", "GLIBC_2.38 { of_tomorrow; };");
        let user = file(
            "user.c",
            "int of_tomorrow(void); int use(void) { return of_tomorrow(); }",
        );
        let (shared, program) = (folder.path().join("libnew.so"), folder.path().join("libuser.so"));
        let compile = |arguments: &[&std::ffi::OsStr]| {
            assert!(Command::new("cc").args(arguments).status().unwrap().success());
        };
        let mut map = std::ffi::OsString::from("-Wl,--version-script=");
        map.push(&script);
        let shape: [&std::ffi::OsStr; 3] = ["-shared".as_ref(), "-fPIC".as_ref(), "-o".as_ref()];
        compile(&[&shape[..], &[shared.as_ref(), library.as_ref(), &map]].concat());
        compile(&[&shape[..], &[program.as_ref(), user.as_ref(), shared.as_ref()]].concat());
        assert_eq!(needed(&[&program], Series::V4_20).unwrap(), Version(2, 38));
        let told = needed(&[&program], Series::V4_17).unwrap_err().to_string();
        assert!(told.contains("2.38") && told.contains("2.36"), "{told}");
        let told = needed(&[&library], Series::V4_20).unwrap_err().to_string();
        assert!(told.contains("new.c"), "{told}");
    }
}
