//! A symbol server on the loopback interface, by hand: what it says can be as wrong as a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Status, further header lines, body, with the right length.
    Answer(u16, Vec<String>, Vec<u8>),
    /// Announces more than it sends, and closes.
    Truncated(Vec<u8>, usize),
    /// Sends the first bytes and then nothing for a while.
    Silent(Vec<u8>, Duration),
    /// Sends a body without an end, without announcing a length.
    Endless,
    /// These bytes and no more.
    Raw(Vec<u8>),
}

impl Reply {
    pub(crate) fn ok(body: Vec<u8>) -> Self {
        Self::Answer(200, Vec::new(), body)
    }

    pub(crate) fn absent() -> Self {
        Self::Answer(
            404,
            vec!["Content-Type: text/html".into()],
            b"<html>404</html>".to_vec(),
        )
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::Answer(302, vec![format!("Location: {to}")], Vec::new())
    }
}

/// A connection, encrypted or not.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A running server. Stops when dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts one that answers a path (and the how-manieth request this is, from 0 on) as `reply` says.
    pub(crate) fn start(reply: impl Fn(&str, usize) -> Reply + Send + 'static) -> Self {
        Self::start_with("http", |stream| Box::new(stream), reply)
    }

    /// The same with https, by the certificate in `config`.
    pub(crate) fn start_tls(
        config: Arc<ServerConfig>,
        reply: impl Fn(&str, usize) -> Reply + Send + 'static,
    ) -> Self {
        let encrypt = move |stream| -> Box<dyn Stream> {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            Box::new(StreamOwned::new(connection, stream))
        };
        Self::start_with("https", encrypt, reply)
    }

    fn start_with(
        scheme: &str,
        open: impl Fn(TcpStream) -> Box<dyn Stream> + Send + 'static,
        reply: impl Fn(&str, usize) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopping) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let mut stream = open(stream.unwrap());
                let Some((mut method, mut path)) = request(&mut *stream) else {
                    continue;
                };
                // As a proxy it is every other server, too.
                if method == "CONNECT" {
                    log.lock().unwrap().push(format!("CONNECT {path}"));
                    if path.starts_with("forbidden") {
                        let _ = send(
                            &mut *stream,
                            Reply::Answer(403, Vec::new(), Vec::new()),
                            &stopping,
                        );
                        continue;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                    let Some(inner) = request(&mut *stream) else {
                        continue;
                    };
                    (method, path) = inner;
                }
                assert_eq!(method, "GET");
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(path.clone());
                    log.len() - 1
                };
                // A client that hangs up early is what some tests are about.
                let _ = send(&mut *stream, reply(&path, number), &stopping);
            }
        });
        Self {
            address,
            asked,
            stop,
            thread: Some(thread),
        }
    }

    /// The paths asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread up.
        let _ = TcpStream::connect(self.address.split("://").nth(1).unwrap());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// The method and the path of a request.
fn request(stream: &mut dyn Stream) -> Option<(String, String)> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    while !lines.next()?.ok()?.is_empty() {}
    let mut words = first.split(' ').map(str::to_owned);
    Some((words.next()?, words.next()?))
}

fn send(stream: &mut dyn Stream, reply: Reply, stopping: &AtomicBool) -> std::io::Result<()> {
    let head = |status: u16, length: usize, more: &[String]| {
        let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n");
        for line in more {
            head += line;
            head += "\r\n";
        }
        head + "\r\n"
    };
    match reply {
        Reply::Answer(status, more, body) => {
            stream.write_all(head(status, body.len(), &more).as_bytes())?;
            stream.write_all(&body)
        }
        Reply::Truncated(body, announced) => {
            stream.write_all(head(200, announced, &[]).as_bytes())?;
            stream.write_all(&body)
        }
        Reply::Silent(body, time) => {
            stream.write_all(head(200, body.len() + 1, &[]).as_bytes())?;
            stream.write_all(&body)?;
            stream.flush()?;
            std::thread::sleep(time);
            Ok(())
        }
        Reply::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            while !stopping.load(Ordering::Relaxed) {
                stream.write_all(&[0; 16_384])?;
            }
            Ok(())
        }
        Reply::Raw(bytes) => stream.write_all(&bytes),
    }
}
