//! The other of two hosts: the line between them, and what each can ask of the other.
//!
//! A host whose kernel was given `lab.address=A` brings up its network card and serves whoever connects, a
//! request for each connection: `receive` hands the connection to `xl migrate-receive`, `send NAME` has the
//! guest sent back to the asker, `free` tells the host's free memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::failure::{Failure, Result, differs};
use crate::host::{run, settled_free_mib, wait_until};
use crate::services::xen;

/// What a host's own address follows on its kernel's command line.
const ADDRESS: &str = "lab.address=";
/// The two hosts' addresses.
pub(crate) const FIRST: &str = "10.0.0.1";
pub(crate) const SECOND: &str = "10.0.0.2";
const PORT: u16 = 7000;
/// The network card of dom0's first driver.
const CARD: &str = "eth0";
/// How long the card and the other host may take to be there: they boot at the same time.
const LIMIT: Duration = Duration::from_secs(240);
/// Where a receiving xl writes.
pub(crate) const WORDS: &str = "/run/peer.words";

/// Brings up the network and serves, if the kernel's command line has an address for this host.
pub(crate) fn start(command_line: &str) -> Result<()> {
    let Some(address) = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(ADDRESS))
    else {
        return Ok(());
    };
    wait_until("the network card is there", LIMIT, || {
        Ok(std::path::Path::new("/sys/class/net")
            .join(CARD)
            .exists()
            .then_some(()))
    })?;
    run(Command::new("/bin/busybox").args(["ip", "addr", "add", &format!("{address}/24"), "dev", CARD]))?;
    run(Command::new("/bin/busybox").args(["ip", "link", "set", CARD, "up"]))?;
    let listener = TcpListener::bind((address, PORT))?;
    std::thread::spawn(move || {
        for asker in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if let Err(failure) = serve(asker) {
                    eprintln!("lab-dom0: a request of the other host: {failure}");
                }
            });
        }
    });
    Ok(())
}

/// Answers one request.
fn serve(mut asker: TcpStream) -> Result<()> {
    let peer = asker.peer_addr()?.ip().to_string();
    let request = read_line(&mut asker)?;
    match request.split_once(' ').unwrap_or((&request, "")) {
        ("receive", "") => {
            let words = File::create(WORDS)?;
            let mut receiver = xen("sbin/xl", &["migrate-receive"]);
            receiver.stdin(Stdio::from(OwnedFd::from(asker.try_clone()?)));
            receiver.stdout(Stdio::from(OwnedFd::from(asker))).stderr(words);
            receiver.spawn()?.wait()?;
        }
        ("send", name) => {
            let answer = match send(name, &peer) {
                Ok(words) => format!("done\n{words}"),
                Err(failure) => format!("failed\n{failure}"),
            };
            asker.write_all(answer.as_bytes())?;
        }
        ("free", "") => asker.write_all(format!("done\n{}", settled_free_mib()?).as_bytes())?,
        _ => asker.write_all(b"failed\nno such request")?,
    }
    Ok(())
}

/// Attaches the guest called `name` and sends it to the host at `to`.
fn send(name: &str, to: &str) -> Result<String> {
    run(Command::new("/usr/bin/lacuna").args(["attach", name]))?;
    let mut sender = xen(
        "sbin/xl",
        &["migrate", "-s", "", name, &format!("exec /init dial {to}")],
    );
    let ran = sender.output()?;
    let words = String::from_utf8_lossy(&ran.stderr).into_owned();
    if ran.status.success() {
        Ok(words)
    } else {
        Err(differs(
            &format!("the migration of {name} to {to}"),
            "success",
            &words,
        ))
    }
}

/// A line, byte by byte: what follows it belongs to somebody else.
fn read_line(from: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 256 && from.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Asks the host at `address` for `request` and returns its answer.
pub(crate) fn ask(address: &str, request: &str) -> Result<String> {
    let mut peer = wait_until("the other host answers", LIMIT, || {
        Ok(TcpStream::connect((address, PORT)).ok())
    })?;
    peer.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = BufReader::new(peer);
    let mut outcome = String::new();
    answer.read_line(&mut outcome)?;
    let mut rest = String::new();
    answer.read_to_string(&mut rest)?;
    if outcome.trim() == "done" {
        return Ok(rest);
    }
    Err(Failure::Differs {
        what: format!("`{request}` at the other host"),
        expected: "done".to_owned(),
        seen: format!("{outcome}{rest}"),
    })
}

/// A receiver at the host at `address`: passes standard input on to it, and its answers to standard output.
///
/// # Errors
/// The connection's.
pub(crate) fn dial(address: &str) -> io::Result<()> {
    let mut peer = TcpStream::connect((address, PORT))?;
    peer.write_all(b"receive\n")?;
    let mut answers = peer.try_clone()?;
    let mut input = io::stdin().lock();
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || {
            let mut bytes = [0; 4096];
            let mut output = io::stdout().lock();
            loop {
                let read = answers.read(&mut bytes)?;
                if read == 0 {
                    return Ok(());
                }
                output.write_all(&bytes[..read])?;
                output.flush()?;
            }
        });
        io::copy(&mut input, &mut peer)?;
        peer.shutdown(Shutdown::Write)?;
        answering.join().unwrap_or(Ok(()))
    })
}
