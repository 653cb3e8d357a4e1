//! Checks which libxenguest a toolstack loads, and whether it is the one that leaves free pages out of a
//! migration.
//!
//! With the distribution's library everything seems to work, but a save sends every page, and a restore takes
//! memory for every page, without a message. So this module finds out what the dynamic loader loads for each
//! program, as `ldd` does, and reads what running programs have loaded from `/proc/PID/maps`.
//!
//! Lacuna's library imports `xc_lacuna` from libxenctrl, and no other does: the name is in its string table
//! (`docs/patches.md`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Check, Verdict};

/// The name among the dynamic symbols of a libxenguest with Lacuna's save path.
const MARK: &[u8] = b"\0xc_lacuna\0";
/// The beginning of the library's name.
const LIBRARY: &str = "libxenguest.so";
/// The beginning of the name of the library above it, which knows where the save helper is.
const ABOVE: &str = "libxenlight.so";
/// The program that a toolstack runs for a save or a restore.
const HELPER: &str = "libxl-save-helper";
/// The program that waits for the end of a guest that it has started.
const WAITING: &str = "xl";
/// Largest library that is read, in bytes: libxenguest has a quarter of a MiB, libvirt's driver one.
const MOST: u64 = 64 << 20;
/// What to do about a toolstack that loads another library.
const REMEDY: &str = "have it load the libxenguest that belongs to this hypervisor: install the packages of docs/install.md, or, from the archive of Xen's tools, run `ldconfig` and see that /usr/local/lib comes before the distribution's";

/// Where to look for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPaths {
    /// `xl`, or what stands for it.
    pub xl: Vec<PathBuf>,
    /// libvirt's driver for Xen.
    pub libvirt: Vec<PathBuf>,
    /// Folders of the save helper.
    pub helpers: Vec<PathBuf>,
    /// Running processes.
    pub processes: PathBuf,
}

impl SearchPaths {
    /// Returns the paths that distributions and Xen's own `make install` use, for a Xen of `release`.
    pub fn usual(release: Option<&str>) -> Self {
        let series = release.and_then(|release| {
            let mut parts = release.splitn(3, '.');
            Some(format!("{}.{}", parts.next()?, parts.next()?))
        });
        let series = series.unwrap_or_default();
        // Debian's `xl` is a script that runs the one in the folder of the Xen that is running.
        let of_series = [
            format!("/usr/lib/lacuna-xen-{series}/bin"),
            format!("/usr/lib/xen-{series}/bin"),
        ]
        .map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let xl = std::env::split_paths(&path)
            .map(|folder| folder.join("xl"))
            .chain(of_series.iter().map(|folder| folder.join("xl")))
            .collect();
        let drivers = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/local/lib",
        ];
        Self {
            xl,
            libvirt: drivers
                .map(|folder| Path::new(folder).join("libvirt/connection-driver/libvirt_driver_libxl.so"))
                .into(),
            helpers: [
                "/usr/local/lib/xen/bin",
                "/usr/lib/xen/bin",
                "/usr/libexec/xen/bin",
            ]
            .map(PathBuf::from)
            .into_iter()
            .chain(of_series)
            .collect(),
            processes: "/proc".into(),
        }
    }
}

/// Checks what `xl`, the save helper and libvirt load, and what running processes have loaded.
pub fn check_libraries(paths: &SearchPaths) -> Vec<Check> {
    let mut checks = Vec::new();
    let is_program = |path: &&PathBuf| is_elf(path);
    match paths.xl.iter().find(is_program) {
        Some(xl) => checks.extend(program("xl", xl, paths)),
        None => checks.push(Check::wrong(
            "xl",
            Verdict::Warning,
            "there is no xl here",
            "install Xen's tools that belong to the hypervisor (docs/install.md); with another toolstack there is nothing to do",
        )),
    }
    if let Some(driver) = paths.libvirt.iter().find(is_program) {
        checks.extend(program("libvirt", driver, paths));
    }
    checks.extend(running(&paths.processes));
    checks
}

/// Checks what a toolstack's program or driver loads, and what the helper that it runs loads.
fn program(subject: &str, file: &Path, paths: &SearchPaths) -> Vec<Check> {
    let loaded = loads(file);
    let mut checks = vec![judge(subject, file, find(&loaded, LIBRARY))];
    // The toolstack's library has the helper's folder in it.
    let above = find(&loaded, ABOVE).and_then(read);
    let helper = above.and_then(|bytes| {
        // Debian has the helper beside its `xl`.
        let beside = file.parent().map(Path::to_owned);
        paths
            .helpers
            .iter()
            .chain(&beside)
            .filter(|folder| has_string(&bytes, &folder.to_string_lossy()))
            .map(|folder| folder.join(HELPER))
            .find(|file| is_elf(file))
    });
    if let Some(helper) = helper {
        let loaded = loads(&helper);
        checks.push(judge(
            &format!("{subject} (save and restore)"),
            &helper,
            find(&loaded, LIBRARY),
        ));
    }
    checks
}

/// Checks the library that a program loads.
fn judge(subject: &str, program: &Path, library: Option<&Path>) -> Check {
    let Some(library) = library else {
        return Check::wrong(
            subject,
            Verdict::Warning,
            format!("the loader finds no {LIBRARY} for {}", program.display()),
            REMEDY,
        );
    };
    let what = format!("{} loads {}", program.display(), library.display());
    match read(library) {
        Some(bytes) if contains(&bytes, MARK) => Check::good(subject, what),
        Some(_) => Check::wrong(
            subject,
            Verdict::Warning,
            format!("{what}, which knows nothing of free pages: saves and migrations send all of them"),
            REMEDY,
        ),
        None => Check::wrong(
            subject,
            Verdict::Warning,
            format!("{what}, which cannot be read"),
            REMEDY,
        ),
    }
}

/// Returns the processes that run with another library than ours, or with one that was replaced since.
fn running(processes: &Path) -> Vec<Check> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(processes).into_iter().flatten().flatten() {
        let folder = entry.path();
        // Skip processes that have ended by now, and entries that are no process.
        let Ok(maps) = fs::read_to_string(folder.join("maps")) else {
            continue;
        };
        let Some(library) = mapped(&maps, LIBRARY) else {
            continue;
        };
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let name = name.trim();
        // Others have it loaded and move no guests: Debian's oxenstored, for one.
        let moves_guests = mapped(&maps, ABOVE).is_some() || (!name.is_empty() && HELPER.starts_with(name));
        if moves_guests {
            found.insert((name.to_owned(), library));
        }
    }
    found
        .into_iter()
        .map(|(name, library)| {
            let subject = format!("running {name}");
            if let Some(library) = library.strip_suffix(" (deleted)") {
                // `xl create` stays until its guest ends, and starts it again when it reboots.
                if name == WAITING {
                    let what =
                        format!("waits for a guest, with {library} of before; a save starts a new one");
                    return Check::good(subject, what);
                }
                return Check::wrong(
                    subject,
                    Verdict::Warning,
                    format!("it has {library} loaded as it was before it was replaced"),
                    format!("restart {name}"),
                );
            }
            let mut check = judge(&subject, Path::new(&name), Some(Path::new(&library)));
            // It may have begun before the right one was there.
            check.remedy = check
                .remedy
                .map(|remedy| format!("restart {name}; if that does not help, {remedy}"));
            check
        })
        .collect()
}

/// Returns the library whose name begins with `library` among the mappings of a process.
fn mapped(maps: &str, library: &str) -> Option<String> {
    maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        let name = path.rsplit('/').next()?;
        name.starts_with(library).then(|| path.to_owned())
    })
}

/// Returns the files that the dynamic loader finds for `file`, by the loader's `--list`, as `ldd` does. The
/// program itself is not run.
fn loads(file: &Path) -> Vec<PathBuf> {
    for loader in ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-x86-64.so.2"] {
        let output = Command::new(loader)
            .arg("--list")
            .arg(file)
            .stdin(Stdio::null())
            .output();
        if let Ok(output) = output {
            return listed(&String::from_utf8_lossy(&output.stdout));
        }
    }
    Vec::new()
}

/// Returns the files in the loader's list, `NAME => FILE (ADDRESS)` a line.
fn listed(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(" => ")?;
            let file = rest.rsplit_once(" (0x").map_or(rest, |(file, _)| file);
            file.starts_with('/').then(|| PathBuf::from(file))
        })
        .collect()
}

fn find<'f>(files: &'f [PathBuf], name: &str) -> Option<&'f Path> {
    let is_it = |file: &&PathBuf| {
        file.file_name()
            .is_some_and(|found| found.to_string_lossy().starts_with(name))
    };
    files.iter().find(is_it).map(PathBuf::as_path)
}

fn is_elf(file: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    fs::File::open(file).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"\x7fELF"
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let is_small = fs::metadata(file).ok()?.len() <= MOST;
    is_small.then(|| fs::read(file).ok())?
}

/// Returns whether `bytes` contain exactly `text` as a C string.
fn has_string(bytes: &[u8], text: &str) -> bool {
    contains(bytes, &[b"\0", text.as_bytes(), b"\0"].concat())
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_ours_by_what_it_imports() {
        let place = tempfile::tempdir().expect("a folder");
        let at = |name: &str, bytes: &[u8]| {
            let file = place.path().join(name);
            fs::write(&file, bytes).expect("written");
            file
        };
        let ours = at("libxenguest.so.4.20", b"\x7fELF..\0xc_lacuna\0..");
        let stock = at("libxenguest.so.4.17", b"\x7fELF..\0xc_lacuna_more\0..");
        let verdict = |library: Option<&Path>| judge("xl", Path::new("/xl"), library);
        assert_eq!(verdict(Some(&ours)).verdict, Verdict::Good);
        let told = verdict(Some(&stock));
        assert_eq!(told.verdict, Verdict::Warning);
        assert!(
            told.what.contains("send all of them") && told.remedy.is_some(),
            "{told:?}"
        );
        assert_eq!(verdict(None).verdict, Verdict::Warning);
        assert_eq!(
            verdict(Some(Path::new("/nowhere/at/all"))).verdict,
            Verdict::Warning
        );
    }

    #[test]
    fn the_loaders_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibxenguest.so.4.20 => /usr/local/lib/libxenguest.so.4.20 (0x00007f)\n\tlibgone.so => not found\n";
        let files = listed(text);
        assert_eq!(
            find(&files, LIBRARY),
            Some(Path::new("/usr/local/lib/libxenguest.so.4.20"))
        );
        assert_eq!(files.len(), 1);
    }

    /// Uses a program of this machine, so that the test fails if the loader is not called.
    #[test]
    fn the_loader_is_asked() {
        let own = std::env::current_exe().expect("this program");
        assert!(find(&loads(&own), "libc.so").is_some());
    }

    #[test]
    fn what_runs_with_a_library_that_is_gone_is_to_be_restarted() {
        let place = tempfile::tempdir().expect("a folder");
        for (number, name, line) in [
            (
                "17",
                "libvirtd",
                "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/libxenguest.so.4.20.0 (deleted)\n\
                 7f02-7f03 r-xp 0000 08:01 13   /usr/lib/libxenlight.so.4.20.0\n",
            ),
            (
                "19",
                "oxenstored",
                "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/libxenguest.so.4.20.0\n",
            ),
            (
                "20",
                // As the kernel cuts it.
                "libxl-save-help",
                "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/libxenguest.so.4.20.0\n",
            ),
            (
                "21",
                "xl",
                "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/libxenguest.so.4.20.0 (deleted)\n\
                 7f02-7f03 r-xp 0000 08:01 13   /usr/lib/libxenlight.so.4.20.0\n",
            ),
            (
                "18",
                "bash",
                "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/libc.so.6\n",
            ),
        ] {
            let folder = place.path().join(number);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("maps"), line).expect("written");
            fs::write(folder.join("comm"), format!("{name}\n")).expect("written");
        }
        let checks = running(place.path());
        assert_eq!(checks.len(), 3, "{checks:?}");
        assert_eq!(checks[0].subject, "running libvirtd");
        assert_eq!(checks[0].remedy.as_deref(), Some("restart libvirtd"));
        let remedy = checks[1].remedy.as_deref().unwrap_or_default();
        assert!(remedy.starts_with("restart libxl-save-help;"), "{remedy}");
        // It waits for its guest: nobody can start it again.
        assert_eq!(
            (checks[2].subject.as_str(), checks[2].verdict),
            ("running xl", Verdict::Good)
        );
    }

    #[test]
    fn a_host_without_tools_is_told_so() {
        let nowhere = || vec![PathBuf::from("/nowhere/at/all")];
        let checks = check_libraries(&SearchPaths {
            xl: nowhere(),
            libvirt: nowhere(),
            helpers: nowhere(),
            processes: "/nowhere/at/all".into(),
        });
        assert_eq!(checks.len(), 1);
        assert_eq!(
            (checks[0].subject.as_str(), checks[0].verdict),
            ("xl", Verdict::Warning)
        );
    }
}
