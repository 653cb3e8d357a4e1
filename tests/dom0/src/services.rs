//! Brings dom0 up: file systems, Xen's drivers, and the daemons that xl needs.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use crate::failure::Result;
use crate::host::{run, wait_until};

/// What comes before the processors that guests may run on, on the kernel's command line; without it, all.
const GUEST_CPUS: &str = "lab.guest_cpus=";
/// How long a daemon may take to be there.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// Mounts what programs expect to find.
pub(crate) fn mount_all() -> Result<()> {
    let none: &CStr = c"";
    for (kind, at, data) in [
        ("proc", "/proc", none),
        ("sysfs", "/sys", none),
        ("devtmpfs", "/dev", none),
        // xenconsoled opens a pseudo-terminal for each guest.
        ("devpts", "/dev/pts", c"ptmxmode=0666"),
    ] {
        fs::create_dir_all(at)?;
        match mount(kind, at, kind, MountFlags::empty(), data) {
            Err(rustix::io::Errno::BUSY) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Loads the drivers and starts the daemons, in the order in which each needs the one before. `command_line`
/// is the kernel's.
pub(crate) fn start(command_line: &str) -> Result<()> {
    // This process was started without a search path; set for the programs run from here on.
    run(Command::new("/bin/busybox").args(["--install", "-s", "/bin"]))?;
    let mut modules: Vec<_> = fs::read_dir("/modules")?.collect::<std::io::Result<_>>()?;
    modules.sort_by_key(fs::DirEntry::file_name);
    for module in modules {
        match rustix::system::finit_module(File::open(module.path())?, c"", 0) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    mount("xenfs", "/proc/xen", "xenfs", MountFlags::empty(), c"")?;
    run(&mut xen(
        "sbin/xenstored",
        &["--pid-file", "/run/xen/xenstored.pid"],
    ))?;
    wait_until("xenstored listens", DAEMON_LIMIT, || {
        Ok(Path::new("/run/xenstored/socket").exists().then_some(()))
    })?;
    run(&mut xen("lib/xen/bin/xen-init-dom0", &[]))?;
    if let Some(cpus) = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(GUEST_CPUS))
    {
        let mut settings = File::options().append(true).open("/etc/xen/xl.conf")?;
        writeln!(settings, "vm.cpumask=\"{cpus}\"")?;
    }
    let log = [
        "--log=all",
        "--log-dir=/var/log/xen/console",
        "--pid-file=/run/xen/xenconsoled.pid",
    ];
    run(&mut xen("sbin/xenconsoled", &log))?;
    Ok(())
}

/// One of Xen's programs, with its libraries: the lab's, or on Debian's host Debian's, which is on the search
/// path.
pub(crate) fn xen(program: &str, arguments: &[&str]) -> Command {
    let program = Path::new("/usr/local").join(program);
    if !program.exists() {
        let mut command = Command::new(program.file_name().unwrap_or_default());
        command.args(arguments);
        return command;
    }
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", "/usr/local/lib");
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/bin:/bin");
    command
}
