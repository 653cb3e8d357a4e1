//! The driver on Debian's own host, where systemd starts it and everything else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lacuna_scenarios::wire::{Event, Order};

use crate::channel::Channel;
use crate::failure::{Failure, Result};
use crate::guest::CONSOLES;
use crate::host::{self, Host, run};
use crate::{end_of, scenario};

/// Where scenarios expect the guests' files.
const GUESTS: &str = "/guests";

/// Takes orders until the machine is to go off. `brought` is where the lab's files are.
pub(crate) fn live(brought: &Path) -> Result<()> {
    let mut channel = Channel::open()?;
    let started = prepare(brought).and_then(|()| host::xen_version());
    match started {
        Err(failure) => {
            let why = failure.to_string();
            channel.send(&Event::Broken { why })?;
            return Err(failure);
        }
        Ok(xen) => {
            let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
            channel.send(&Event::Ready { xen, kernel })?;
        }
    }
    loop {
        match channel.next_order()? {
            Order::PowerOff => return Ok(()),
            Order::Try { .. } => {
                let why = "no trials on this host".to_owned();
                channel.send(&Event::Broken { why })?;
            }
            Order::Run { scenario } => {
                let mut host = Host::new(&mut channel);
                let outcome = scenario::run(&scenario, &mut host);
                let cleaned = host.clean_up();
                if matches!(outcome, Err(Failure::Reboot)) {
                    channel.send(&Event::Rebooting)?;
                    run(Command::new("systemctl").arg("reboot"))?;
                    // systemd ends this process, which must not switch the machine off.
                    loop {
                        std::thread::sleep(Duration::from_secs(60));
                    }
                }
                // What failed first is the reason of what fails later.
                channel.send(&end_of(&scenario, outcome.and(cleaned)))?;
            }
        }
    }
}

/// Waits until systemd has started what there is, and puts the guests' files where scenarios look.
fn prepare(brought: &Path) -> Result<()> {
    // Its exit status tells how it went, which scenarios look at.
    let _ = Command::new("systemctl")
        .args(["is-system-running", "--wait"])
        .output()?;
    std::fs::create_dir_all(CONSOLES)?;
    let there = Path::new(GUESTS);
    if !there.exists() {
        std::os::unix::fs::symlink(brought.join("guests"), there)?;
    }
    Ok(())
}
