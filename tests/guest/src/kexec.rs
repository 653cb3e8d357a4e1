//! Replaces the guest's kernel by the one that lies in its image.

use std::io;
use std::process::Command;

/// The program, from kexec-tools.
const KEXEC: &str = "/usr/sbin/kexec";

/// Loads the new kernel by `kexec_file_load`.
pub(crate) fn load() -> io::Result<()> {
    run(&[
        "--kexec-file-syscall",
        "--load",
        "/boot/vmlinuz",
        "--initrd=/boot/initrd",
        // Without KASLR, and the first kernel is to be booted without it as well: nothing but the
        // random value of the identity check then tells one kernel from the other.
        "--command-line=console=hvc0 loglevel=4 panic=1 nokaslr",
    ])
}

/// Jumps into the kernel that was loaded; returns only on failure.
pub(crate) fn jump() -> io::Result<()> {
    run(&["--exec"])
}

fn run(arguments: &[&str]) -> io::Result<()> {
    let ran = Command::new(KEXEC)
        .args(arguments)
        // Debian's kexec is linked with Xen's libraries, which the lab has from its own build of Xen.
        .env("LD_LIBRARY_PATH", "/usr/local/lib")
        .output()?;
    if ran.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    Err(io::Error::other(format!(
        "kexec {}: {}: {text}",
        arguments.join(" "),
        ran.status
    )))
}
