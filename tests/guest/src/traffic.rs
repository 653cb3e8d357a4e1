//! Traffic over the guest's network card, each page of which has contents of its own.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lacuna_guest::truth::PAGE_SIZE;
use lacuna_guest::{Report, TrafficSeen};

use crate::disk::{self, content};

/// Sets the card up; the image has it from the host's distribution, with its libraries.
const IP: &str = "/usr/bin/ip";
/// The card's name: nothing in the guest gives it another one.
const CARD: &str = "eth0";
/// The port at which a guest answers (RFC 862's, whose service this is nearly).
const PORT: u16 = 7;
/// Pages of a message.
const PAGES: u64 = 16;
/// Bytes before them: the seed and the message's number.
const HEAD: usize = 16;
/// How long the card, or the other guest, may take to be there.
const LIMIT: Duration = Duration::from_secs(60);

/// What messages have come to, shared by the threads.
pub(crate) type Seen = Arc<Mutex<TrafficSeen>>;

/// Gives the card an address, and answers whoever sends messages to it from now on.
pub(crate) fn serve(address: Ipv4Addr) -> io::Result<Seen> {
    disk::load()?;
    let since = Instant::now();
    while !std::path::Path::new("/sys/class/net").join(CARD).exists() {
        if since.elapsed() > LIMIT {
            return Err(io::Error::other(format!("no card {CARD} after {LIMIT:?}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let address = format!("{address}/24");
    for line in [
        ["link", "set", "lo", "up"].as_slice(),
        &["address", "add", &address, "dev", CARD],
        &["link", "set", CARD, "up"],
    ] {
        let ran = Command::new(IP).args(line).output()?;
        if !ran.status.success() {
            let text = String::from_utf8_lossy(&ran.stderr).into_owned();
            return Err(io::Error::other(format!("ip {}: {text}", line.join(" "))));
        }
    }
    listen((Ipv4Addr::UNSPECIFIED, PORT)).map(|(_, seen)| seen)
}

/// Answers messages at `at`, and returns the port.
fn listen(at: (Ipv4Addr, u16)) -> io::Result<(u16, Seen)> {
    let listener = TcpListener::bind(at)?;
    let port = listener.local_addr()?.port();
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let seen = Arc::clone(&shared);
            std::thread::spawn(move || {
                let ended = stream.and_then(|stream| answer(stream, &seen));
                count(&seen, ended, "to answer");
            });
        }
    });
    Ok((port, seen))
}

/// Answers the messages of one stream until its other end closes it.
fn answer(mut stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut head = [0; HEAD];
    loop {
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let [seed, number] = words(head);
        look(&mut stream, seed, number, seen)?;
        send(&mut stream, !seed, number)?;
    }
}

/// A stream of messages to another guest.
pub(crate) struct Messages {
    stop: Arc<AtomicBool>,
    seen: Seen,
    thread: JoinHandle<()>,
}

impl Messages {
    /// Starts sending messages to the guest at `peer`, each when the one before was answered.
    pub(crate) fn start(peer: Ipv4Addr, seed: u64, rest: Duration) -> io::Result<Self> {
        Self::start_at((peer, PORT), seed, rest)
    }

    fn start_at(peer: (Ipv4Addr, u16), seed: u64, rest: Duration) -> io::Result<Self> {
        let stream = connect(peer)?;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Seen::default());
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let ended = talk(stream, seed, rest, (&stopped, &shared));
            count(&shared, ended, "to talk");
        });
        Ok(Self { stop, seen, thread })
    }

    /// What they have come to so far.
    pub(crate) fn report(&self) -> Report {
        report(&self.seen)
    }

    /// Stops after the next answer.
    pub(crate) fn stop(self) -> Result<Report, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| "the thread with the messages panicked".to_owned())?;
        Ok(report(&self.seen))
    }
}

/// What `seen` tells.
pub(crate) fn report(seen: &Seen) -> Report {
    Report::Traffic(seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Connects to a guest that may not answer yet.
fn connect(peer: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let since = Instant::now();
    loop {
        match TcpStream::connect(peer) {
            Err(error) if since.elapsed() > LIMIT => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
            done => return done,
        }
    }
}

fn talk(
    mut stream: TcpStream,
    seed: u64,
    rest: Duration,
    (stop, seen): (&AtomicBool, &Seen),
) -> io::Result<()> {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&seed.to_le_bytes())?;
        stream.write_all(&number.to_le_bytes())?;
        send(&mut stream, seed, number)?;
        look(&mut stream, !seed, number, seen)?;
        number += 1;
        std::thread::sleep(rest);
    }
    Ok(())
}

/// Sends the pages of message `number`.
fn send(stream: &mut TcpStream, seed: u64, number: u64) -> io::Result<()> {
    let pages = number * PAGES..(number + 1) * PAGES;
    let bytes: Vec<u8> = pages.flat_map(|page| content(seed, page)).collect();
    stream.write_all(&bytes)
}

/// Receives the pages of message `number`, and looks at each.
fn look(stream: &mut TcpStream, seed: u64, number: u64, seen: &Seen) -> io::Result<()> {
    let mut bytes = vec![0; PAGE_SIZE];
    for page in number * PAGES..(number + 1) * PAGES {
        stream.read_exact(&mut bytes)?;
        let wrong = bytes != content(seed, page);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.pages += 1;
        seen.wrong += u64::from(wrong);
    }
    Ok(())
}

/// Keeps how a thread has ended.
fn count(seen: &Seen, ended: io::Result<()>, what: &str) {
    if let Err(error) = ended {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.errors += 1;
        seen.first.get_or_insert_with(|| format!("{what}: {error}"));
    }
}

fn words(head: [u8; HEAD]) -> [u64; 2] {
    let mut words = [0; 2];
    for (word, bytes) in words.iter_mut().zip(head.chunks_exact(8)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
    }
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::{HEAD, Messages, Report, TrafficSeen, connect, listen, report};
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn seen(report: Report) -> TrafficSeen {
        let Report::Traffic(seen) = report else {
            panic!("{report:?}")
        };
        seen
    }

    #[test]
    fn messages_are_answered_and_a_wrong_page_is_seen() {
        let (port, server) = listen((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = (Ipv4Addr::LOCALHOST, port);
        let messages = Messages::start_at(peer, 9, Duration::ZERO).unwrap();
        while seen(messages.report()).pages < 100 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = seen(messages.stop().unwrap());
        assert_eq!((sent.wrong, sent.errors), (0, 0), "{sent:?}");
        let got = seen(report(&server));
        assert_eq!((got.pages, got.wrong, got.errors), (sent.pages, 0, 0), "{got:?}");

        let mut stream = connect(peer).unwrap();
        stream.write_all(&[1; HEAD]).unwrap();
        stream.write_all(&[0; 4096]).unwrap();
        while seen(report(&server)).pages == got.pages {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(seen(report(&server)).wrong, 1);
    }
}
