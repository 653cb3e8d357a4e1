//! Fetching with apt: private lists and an empty status, so that neither the machine's own lists nor what is
//! installed on it matters or changes. apt checks the archive's signature and each package's digest;
//! `dpkg-deb -x` unpacks without running anything of the package.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{At, FetchError, KernelName, Package};

/// Which archive to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    /// The archive's address; the one that this machine uses if left out.
    pub mirror: Option<String>,
    /// Its release ("suite"). If left out, first what this machine uses, then the releases that Debian's
    /// archive has under these names at any time.
    pub suite: Option<String>,
    /// The keys that its lists are signed with; Debian's and Ubuntu's, where this machine has them, if left
    /// out.
    pub keyring: Option<PathBuf>,
}

/// Debian's names for its releases, whichever they are at the time, the likeliest first.
const DEBIAN_SUITES: [&str; 5] = ["stable", "oldstable", "oldoldstable", "testing", "unstable"];
/// Where Debian and its derivatives keep the archive's keys, for lists of our own.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
];
/// Bytes of a program's last words that are shown.
const LAST_WORDS: u64 = 1500;
/// Most packages that the headers of one kernel consist of: Debian and Ubuntu have two.
const MAX_PACKAGES: usize = 6;

/// Fetches the packages of `kernel`'s headers into `staged` and unpacks them into its folder `tree`.
///
/// # Errors
/// [`FetchError`].
pub(super) fn fetch(
    kernel: &KernelName,
    archive: &Archive,
    state: &Path,
    staged: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(Vec<Package>, String), FetchError> {
    for needed in ["apt-get", "dpkg-deb"] {
        let found = Command::new(needed)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            return Err(FetchError::NoPackageManager(needed));
        }
    }
    let names = kernel.packages();
    let mut asked = Vec::new();
    let mut unchecked = Vec::new();
    let mut unread = Vec::new();
    for source in sources(kernel, archive, staged) {
        let title = source.title();
        progress(&format!("reading the package lists of {title}"));
        let apt = Apt::new(kernel, &source, state, staged)?;
        // One archive of several that does not answer is no failure as long as another has the package.
        let updated = apt.run("apt-get", &["update"], staged);
        let mut first = None;
        for name in &names {
            if first.is_none() {
                first = apt.show(name)?;
            }
        }
        let Some(first) = first else {
            if let Err(FetchError::Program { said, .. }) = &updated {
                if let Some(keys) = missing_keys(said) {
                    unchecked.push(format!("{title} ({keys})"));
                } else if let Some(line) = no_answer(said) {
                    unread.push(format!("{title} ({line})"));
                }
            }
            asked.push(match updated {
                Ok(()) => title,
                Err(error) => format!("{title}, whose lists could not be read: {error}"),
            });
            continue;
        };
        let packages = apt.with_dependencies(first)?;
        let mut line = vec!["download"];
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        progress(&format!("fetching {}", names.join(" and ")));
        line.extend(&names);
        apt.run("apt-get", &line, staged)?;
        unpack(staged, progress)?;
        return Ok((packages, title));
    }
    if !unchecked.is_empty() {
        return Err(FetchError::Unchecked {
            archives: unchecked.join("; "),
        });
    }
    if !unread.is_empty() {
        return Err(FetchError::Unread {
            archives: unread.join("; "),
        });
    }
    Err(FetchError::NotOffered {
        package: names.join(" or "),
        architecture: kernel.architecture(),
        asked: asked.join("; "),
    })
}

/// The keys that apt says it has not, or that something is wrong with; `None` where it speaks of none.
fn missing_keys(said: &str) -> Option<String> {
    let mut keys: Vec<&str> = Vec::new();
    let mut words = said.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if matches!(word, "NO_PUBKEY" | "EXPKEYSIG" | "REVKEYSIG" | "BADSIG")
            && let Some(key) = words.peek()
            && !keys.contains(key)
        {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        let unsigned = said.contains("is not signed") || said.contains("couldn't be verified");
        return unsigned.then(|| "they are signed with no key that is known".to_owned());
    }
    Some(format!("key {}", keys.join(", ")))
}

/// What apt says of an archive that gave no answer at all; `None` where each gave one, as an archive does
/// that has no such release.
fn no_answer(said: &str) -> Option<&str> {
    const SIGNS: [&str; 8] = [
        "Could not resolve",
        "Could not connect",
        "Unable to connect",
        "Temporary failure",
        "Connection failed",
        "Connection timed out",
        "Network is unreachable",
        "Certificate verification failed",
    ];
    let mut lines = said.lines().map(str::trim);
    lines.find(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

/// One list of archives to try.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// What the machine itself uses.
    Machine,
    /// A release of an archive.
    Suite {
        mirror: String,
        suite: String,
        component: &'static str,
        keyring: Option<PathBuf>,
    },
}

impl Source {
    fn title(&self) -> String {
        match self {
            Self::Machine => "this machine's archives".to_owned(),
            Self::Suite { mirror, suite, .. } => format!("{suite} at {mirror}"),
        }
    }

    /// A line of a list, and a name for a folder.
    fn line(&self) -> Option<(String, String)> {
        let Self::Suite {
            mirror,
            suite,
            component,
            keyring,
        } = self
        else {
            return None;
        };
        let keyrings = match keyring {
            Some(keyring) => vec![keyring.display().to_string()],
            None => KEYRINGS
                .iter()
                .filter(|path| Path::new(path).is_file())
                .map(|path| (*path).to_owned())
                .collect(),
        };
        let signed = if keyrings.is_empty() {
            String::new()
        } else {
            format!("[signed-by={}] ", keyrings.join(","))
        };
        Some((
            format!("deb {signed}{mirror} {suite} {component}\n"),
            suite.replace('/', "-"),
        ))
    }
}

/// What to try, in order.
fn sources(kernel: &KernelName, archive: &Archive, folder: &Path) -> Vec<Source> {
    // apt wants a path from the root.
    let keyring = archive
        .keyring
        .as_ref()
        .map(|file| fs::canonicalize(file).unwrap_or_else(|_| file.clone()));
    let mirror = archive.mirror.clone().or_else(|| machines_mirror(folder));
    let of = |suite: &str| {
        mirror.clone().map(|mirror| Source::Suite {
            mirror,
            suite: suite.to_owned(),
            component: if kernel.is_proxmox() {
                "pve-no-subscription"
            } else {
                "main"
            },
            keyring: keyring.clone(),
        })
    };
    if let Some(suite) = &archive.suite {
        return of(suite).into_iter().collect();
    }
    let own = archive.mirror.is_none().then_some(Source::Machine);
    own.into_iter()
        .chain(DEBIAN_SUITES.iter().filter_map(|suite| of(suite)))
        .collect()
}

/// The plain Debian archive among those that this machine uses.
fn machines_mirror(folder: &Path) -> Option<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(COMPONENT)"])
        .arg("Created-By: Packages")
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    listing.lines().find_map(|line| {
        let (uri, component) = line.split_once(' ')?;
        (component == "main" && uri.contains("debian") && !uri.contains("security")).then(|| uri.to_owned())
    })
}

/// apt with a configuration of its own.
struct Apt {
    options: Vec<String>,
    log: PathBuf,
}

impl Apt {
    fn new(kernel: &KernelName, source: &Source, state: &Path, staged: &Path) -> Result<Self, FetchError> {
        let line = source.line();
        let name = line.as_ref().map_or("machine", |(_, name)| name.as_str());
        let own = state.join(format!("{name}-{}", kernel.architecture()));
        for below in ["lists/partial", "cache/archives/partial"] {
            let folder = own.join(below);
            fs::create_dir_all(&folder).at(&folder)?;
        }
        let status = own.join("status");
        fs::write(&status, "").at(&status)?;
        let at = own.display();
        let mut options = vec![
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::State::status={at}/status"),
            format!("Dir::Cache={at}/cache"),
            format!("APT::Architecture={}", kernel.architecture()),
            format!("APT::Architectures::={}", kernel.architecture()),
            // An archive that does not answer is otherwise only warned of.
            "APT::Update::Error-Mode=any".to_owned(),
            // Of the lists, only those of packages are wanted.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
        ];
        if let Some((text, _)) = &line {
            let list = own.join("sources.list");
            fs::write(&list, text).at(&list)?;
            options.push(format!("Dir::Etc::sourcelist={at}/sources.list"));
            options.push("Dir::Etc::sourceparts=-".to_owned());
        }
        Ok(Self {
            options,
            log: staged.join("log"),
        })
    }

    fn command(&self, program: &'static str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn run(&self, program: &'static str, arguments: &[&str], folder: &Path) -> Result<(), FetchError> {
        let mut command = self.command(program, arguments);
        command.current_dir(folder);
        finish(program, command, &self.log)
    }

    /// What the lists say of a package: name, version and what it depends on.
    fn show(&self, package: &str) -> Result<Option<Described>, FetchError> {
        let output = self
            .command("apt-cache", &["show", "--no-all-versions", package])
            .stderr(Stdio::null())
            .output()
            .at(Path::new("apt-cache"))?;
        Ok(describe(&String::from_utf8_lossy(&output.stdout)))
    }

    /// The package and the other halves of the headers that it depends on.
    fn with_dependencies(&self, first: Described) -> Result<Vec<Package>, FetchError> {
        let mut packages = vec![first.package];
        let mut wanted = first.headers;
        while let Some(name) = wanted.pop() {
            let known = packages.iter().any(|package| package.name == name);
            if known || packages.len() >= MAX_PACKAGES {
                continue;
            }
            if let Some(next) = self.show(&name)? {
                packages.push(next.package);
                wanted.extend(next.headers);
            }
        }
        Ok(packages)
    }
}

/// A package by the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Described {
    package: Package,
    /// Those of its dependencies that hold headers, too (`linux-headers-6.1.0-50-common`,
    /// `linux-hwe-6.5-headers-6.5.0-14`).
    headers: Vec<String>,
}

fn describe(record: &str) -> Option<Described> {
    let field = |name: &str| {
        record
            .lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let depends = field("Depends").unwrap_or_default();
    let headers = depends
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next())
        .filter(|name| name.starts_with("linux-") && name.contains("headers"))
        .map(str::to_owned);
    Some(Described {
        package: Package {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
        },
        headers: headers.collect(),
    })
}

/// Unpacks every package in `staged`.
fn unpack(staged: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), FetchError> {
    let tree = staged.join("tree");
    fs::create_dir_all(&tree).at(&tree)?;
    for entry in fs::read_dir(staged).at(staged)? {
        let file = entry.at(staged)?.path();
        if file.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        progress(&format!(
            "unpacking {}",
            file.file_name().unwrap_or_default().to_string_lossy()
        ));
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(&file).arg(&tree);
        finish("dpkg-deb", command, &staged.join("log"))?;
        fs::remove_file(&file).at(&file)?;
    }
    Ok(())
}

/// Runs a program with its words in a file; its last ones are the error.
fn finish(program: &'static str, mut command: Command, log: &Path) -> Result<(), FetchError> {
    let mut words = fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .read(true)
        .open(log)
        .at(log)?;
    let both = || words.try_clone().map(Stdio::from).at(log);
    let status = command
        .stdin(Stdio::null())
        .stdout(both()?)
        .stderr(both()?)
        .status()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FetchError::NoPackageManager(program),
            _ => FetchError::Io {
                path: program.into(),
                cause: error,
            },
        })?;
    if status.success() {
        return Ok(());
    }
    let length = words.metadata().at(log)?.len();
    words
        .seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))
        .at(log)?;
    let mut said = Vec::new();
    words.read_to_end(&mut said).at(log)?;
    Err(FetchError::Program {
        program,
        status: status.to_string(),
        said: String::from_utf8_lossy(&said).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_other_half_of_the_headers_is_found_among_the_dependencies() {
        let record = "Package: linux-headers-6.1.0-50-686\nVersion: 6.1.170-1\n\
            Depends: linux-headers-6.1.0-50-common (= 6.1.170-1), linux-kbuild-6.1 (>= 6.1.170-1), linux-compiler-gcc-12-x86\n\
            Description: Headers\n\nPackage: linux-headers-6.1.0-50-686\nVersion: 0\n";
        let found = describe(record).unwrap();
        assert_eq!(found.package.version, "6.1.170-1");
        assert_eq!(found.headers, ["linux-headers-6.1.0-50-common"]);
        let ubuntu = "Package: linux-headers-6.5.0-14-generic\nVersion: 1\nDepends: linux-hwe-6.5-headers-6.5.0-14, libc6 (>= 2.34)\n";
        assert_eq!(
            describe(ubuntu).unwrap().headers,
            ["linux-hwe-6.5-headers-6.5.0-14"]
        );
        assert_eq!(describe(""), None);
    }

    #[test]
    fn a_key_that_is_missing_is_told_from_a_package_that_is() {
        let said = "W: GPG error: http://archive.example noble InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 871920D1991BC93C NO_PUBKEY 871920D1991BC93C\nE: The repository 'http://archive.example noble InRelease' is not signed.";
        assert_eq!(missing_keys(said).unwrap(), "key 871920D1991BC93C");
        assert!(missing_keys("E: The repository 'x' is not signed.").is_some());
        assert_eq!(missing_keys("E: Failed to fetch x: 404  Not Found"), None);
    }

    #[test]
    fn an_archive_that_does_not_answer_is_told_from_one_that_has_nothing() {
        let said = "Err:1 http://archive.example x InRelease\n  Could not connect to archive.example:80 (192.0.2.1). - connect (111: Connection refused)\nE: Some index files failed to download.";
        assert!(no_answer(said).unwrap().starts_with("Could not connect"));
        let said = "Err:2 http://archive.example x Release\n  404  Not Found [IP: 192.0.2.1 80]\nE: The repository 'http://archive.example x Release' does not have a Release file.";
        assert_eq!(no_answer(said), None);
    }

    #[test]
    fn a_named_release_is_the_only_one_asked() {
        let archive = Archive {
            mirror: Some("http://archive.example/debian".into()),
            suite: Some("bookworm".into()),
            keyring: Some("/keys/own.gpg".into()),
        };
        let folder = Path::new("/");
        let kernel = |release| KernelName::new(release, "amd64").unwrap();
        let one = sources(&kernel("6.1.0-50-amd64"), &archive, folder);
        let lines: Vec<String> = one.iter().filter_map(|source| Some(source.line()?.0)).collect();
        assert_eq!(
            lines,
            ["deb [signed-by=/keys/own.gpg] http://archive.example/debian bookworm main\n"]
        );
        let one = sources(&kernel("6.8.12-4-pve"), &archive, folder);
        assert!(
            one[0]
                .line()
                .unwrap()
                .0
                .ends_with("bookworm pve-no-subscription\n")
        );
        let any = Archive {
            suite: None,
            ..archive
        };
        let all = sources(&kernel("6.1.0-50-amd64"), &any, folder);
        assert_eq!(all.len(), DEBIAN_SUITES.len());
        assert_eq!(all[0].title(), "stable at http://archive.example/debian");
    }
}
