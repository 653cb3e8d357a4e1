//! Serves the metrics over HTTP, on a Unix socket or a port of the loopback interface.
//!
//! One thread serves one connection at a time. The size of a request and the time for it are bounded, so a
//! client can do no more than keep others waiting for a few seconds. The server never waits for the
//! hypervisor: it serves the text that was published last.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::config::Listen;
use crate::daemon::exposition::{OPENMETRICS, PLAIN, plain_text};

/// Most bytes of a request that are read: a scraper's has a few hundred.
const MOST_REQUEST: usize = 8192;
/// How long a client may take for its request, and for the answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(2);

/// The text that is served, which is replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct MetricsPage(Arc<Mutex<Arc<str>>>);

impl MetricsPage {
    /// Replaces the text.
    pub fn publish(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    fn read(&self) -> Arc<str> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A server in a thread of its own. It stops listening when the process ends; the socket's file goes with
/// this value.
#[derive(Debug)]
pub struct Server {
    socket: Option<PathBuf>,
}

impl Server {
    /// Listens where `listen` says and serves `page` from there on.
    ///
    /// # Errors
    /// The place cannot be listened on.
    pub fn start(listen: &Listen, page: &MetricsPage) -> io::Result<Self> {
        let page = page.clone();
        match listen {
            Listen::Off => Ok(Self { socket: None }),
            Listen::Unix(path) => {
                let listener = bind_unix(path)?;
                thread::Builder::new().name("metrics".into()).spawn(move || {
                    for client in listener.incoming().flatten() {
                        // An error here only concerns a client that has gone away.
                        let _ = answer(client, &page);
                    }
                })?;
                Ok(Self {
                    socket: Some(path.clone()),
                })
            }
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                thread::Builder::new().name("metrics".into()).spawn(move || {
                    for client in listener.incoming().flatten() {
                        let _ = answer(client, &page);
                    }
                })?;
                Ok(Self { socket: None })
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = &self.socket {
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens on `path`. A socket there was left by a daemon that was killed, and is replaced: the caller holds
/// the daemon's lock, so nobody listens on it. A file that is no socket is left alone, and is an error.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Only the owner, and the folder's group if the operator gives it one, may read what guests use.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// A connection whose reads and writes end in time.
trait Client: Read + Write {
    fn limit(&self, limit: Duration) -> io::Result<()>;
}

impl Client for UnixStream {
    fn limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

impl Client for TcpStream {
    fn limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
}

fn answer(mut client: impl Client, page: &MetricsPage) -> io::Result<()> {
    client.limit(CLIENT_LIMIT)?;
    let request = request(&mut client)?;
    let line = request.lines().next().unwrap_or_default();
    let mut words = line.split_whitespace();
    let (method, path) = (words.next(), words.next());
    let (status, kind, body): (_, _, Arc<str>) = match (method, path) {
        (Some("GET" | "HEAD"), Some("/metrics")) if wants_openmetrics(&request) => {
            ("200 OK", OPENMETRICS, page.read())
        }
        (Some("GET" | "HEAD"), Some("/metrics")) => ("200 OK", PLAIN, plain_text(&page.read()).into()),
        (Some("GET" | "HEAD"), Some(_)) => (
            "404 Not Found",
            "text/plain",
            "the metrics are at /metrics\n".into(),
        ),
        (Some(_), Some(_)) => (
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            "text/plain",
            "only GET and HEAD\n".into(),
        ),
        _ => ("400 Bad Request", "text/plain", "not an HTTP request\n".into()),
    };
    // HEAD is answered as GET is, length and all, without the body (RFC 9110, 9.3.2).
    let sent = if method == Some("HEAD") { "" } else { &body };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{sent}",
        body.len()
    )?;
    client.flush()
}

/// Returns whether the client accepts `OpenMetrics`, as Prometheus does.
fn wants_openmetrics(request: &str) -> bool {
    request.lines().skip(1).any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("accept") && value.contains("application/openmetrics-text")
        })
    })
}

/// Reads a request up to the empty line that ends its head.
fn request(client: &mut impl Read) -> io::Result<String> {
    let started = Instant::now();
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    while bytes.len() < MOST_REQUEST && started.elapsed() < CLIENT_LIMIT {
        let read = client.read(&mut piece)?;
        bytes.extend_from_slice(&piece[..read]);
        if read == 0 || bytes.windows(4).any(|window| window == b"\r\n\r\n") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(client: &mut (impl Read + Write), request: &str) -> String {
        client.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn metrics_are_served_on_a_socket_that_a_killed_daemon_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/metrics.sock");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let page = MetricsPage::default();
        let server = Server::start(&Listen::Unix(path.clone()), &page).unwrap();
        for body in ["first\n", "second\n"] {
            page.publish(body.to_owned());
            let mut client = UnixStream::connect(&path).unwrap();
            let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
            let answer = ask(
                &mut client,
                &format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n\r\n"),
            );
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains(OPENMETRICS), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            // A client that does not say gets the older format, which every client reads.
            let mut client = UnixStream::connect(&path).unwrap();
            let answer = ask(&mut client, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(answer.contains(PLAIN), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            let mut client = UnixStream::connect(&path).unwrap();
            let head = ask(&mut client, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(format!("{head}{body}"), answer);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(server);
        assert!(!path.exists(), "the socket goes with the daemon");
    }

    #[test]
    fn what_is_no_request_for_metrics_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let _server = Server::start(&Listen::Unix(path.clone()), &MetricsPage::default()).unwrap();
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n".to_owned(), "405"),
            ("\r\n\r\n".to_owned(), "400"),
            ("x".repeat(MOST_REQUEST), "400"),
        ] {
            let mut client = UnixStream::connect(&path).unwrap();
            let answer = ask(&mut client, &request);
            assert!(answer.contains(status), "{status}: {answer}");
        }
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "x").unwrap();
        assert!(Server::start(&Listen::Unix(path.clone()), &MetricsPage::default()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }
}
