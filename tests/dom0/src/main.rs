//! The first process of the lab's dom0: brings Xen's services up, runs the scenarios that the lab orders, and
//! reports the results to the lab. On a host of Debian's it is a service like others, and brings nothing up.

mod account;
mod alloc_failure;
mod baseline;
mod channel;
mod daemon;
mod debian;
mod engine;
mod failure;
mod guest;
mod host;
mod migration;
mod peer;
mod scenario;
mod services;
mod stream;
mod tool;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use lacuna_scenarios::wire::{Event, Order, TRIAL};
use rustix::system::RebootCommand;

use crate::channel::Channel;
use crate::host::Host;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let as_host = match &*arguments {
        [_, task, folder] if task == "host" => Some(folder.as_str()),
        _ => None,
    };
    if let ([_, task, operand], None) = (&*arguments, as_host) {
        let ended = match task.as_str() {
            "tap" => stream::tap::run(Path::new(operand)),
            "dial" => peer::dial(operand),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        return match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("lab-dom0 {task}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let ended = match as_host {
        Some(folder) => debian::live(Path::new(folder)),
        None => live(),
    };
    if let Err(failure) = ended {
        eprintln!("lab-dom0: {failure}");
    }
    rustix::fs::sync();
    // Ends the emulation: QEMU runs with -no-reboot and leaves when the machine goes off.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    // The kernel panics when its first process ends, so this one does not, should the machine stay on.
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn live() -> failure::Result<()> {
    services::mount_all()?;
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    let mut channel = Channel::open()?;
    let started = services::start(&command_line)
        .and_then(|()| peer::start(&command_line))
        .and_then(|()| host::xen_version());
    match started {
        Err(failure) => {
            channel.send(&Event::Broken {
                why: failure.to_string(),
            })?;
            return Err(failure);
        }
        Ok(xen) => {
            let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
            channel.send(&Event::Ready { xen, kernel })?;
        }
    }
    if command_line.split_whitespace().any(|word| word == "lab.shell") {
        // A login shell would set a path of its own, without Xen's tools.
        Command::new("/bin/busybox")
            .arg("sh")
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LD_LIBRARY_PATH", "/usr/local/lib")
            .status()?;
        return Ok(());
    }
    loop {
        match channel.next_order()? {
            Order::PowerOff => return Ok(()),
            Order::Run { scenario } => {
                carry_out(&mut channel, &scenario, |host| scenario::run(&scenario, host))?;
            }
            Order::Try { trial } => {
                carry_out(&mut channel, TRIAL, |host| scenario::trial::run(&trial, host))?;
            }
        }
    }
}

/// Runs `body`, cleans up what it left behind, and reports the result to the lab.
fn carry_out(
    channel: &mut Channel,
    name: &str,
    body: impl FnOnce(&mut Host) -> failure::Result<()>,
) -> failure::Result<()> {
    let mut host = Host::new(channel);
    let outcome = body(&mut host);
    host.clean_up()?;
    channel.send(&end_of(name, outcome))
}

/// How the scenario called `name` ended, as the lab is told.
fn end_of(name: &str, outcome: failure::Result<()>) -> Event {
    let scenario = name.to_owned();
    match outcome {
        Ok(()) => Event::Passed { scenario },
        Err(failure) => {
            let (what, expected, seen) = failure.into_parts();
            Event::Failed {
                scenario,
                what,
                expected,
                seen,
            }
        }
    }
}
