//! An archive of a test's own: packages that the test makes, their indices, and an ordinary HTTP server on
//! 127.0.0.1 that can be told how to misbehave.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a connection that stalls looks whether the test is over.
const TICK: Duration = Duration::from_millis(20);

/// What the server does when it is asked for a path.
#[derive(Clone)]
pub(super) enum Served {
    /// Sends the bytes; a request for a part gets that part.
    Whole(Vec<u8>),
    /// Promises all bytes, sends so many, and closes the connection.
    Cut(Vec<u8>, usize),
    /// Promises all bytes, sends so many, and then nothing, with the connection open.
    Stalled(Vec<u8>, usize),
    /// Promises all bytes and sends one at a time, for ever too slowly.
    Trickling(Vec<u8>),
    /// Leads to another path.
    Moved(String),
}

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) path: String,
    /// The range asked for, as it was worded.
    pub(super) range: Option<String>,
}

#[derive(Default)]
struct State {
    files: Mutex<HashMap<String, Served>>,
    requests: Mutex<Vec<Request>>,
    over: AtomicBool,
}

/// The server. It ends with the test.
pub(super) struct Server {
    address: SocketAddr,
    state: Arc<State>,
}

impl Server {
    /// Starts it with nothing to serve: every path is 404.
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&shared);
                // A client that went away is no matter of the server's.
                std::thread::spawn(move || drop(answer(stream, &state)));
            }
        });
        Self { address, state }
    }

    pub(super) fn uri(&self) -> String {
        format!("http://{}/debian/", self.address)
    }

    /// Says what is served at `path` below the archive's base from now on.
    pub(super) fn serve(&self, path: &str, served: Served) {
        let mut files = self.state.files.lock().unwrap();
        files.insert(format!("/debian/{path}"), served);
    }

    /// From now on `path` is 404.
    pub(super) fn withdraw(&self, path: &str) {
        self.state
            .files
            .lock()
            .unwrap()
            .remove(&format!("/debian/{path}"));
    }

    /// The requests so far for files named `name`.
    pub(super) fn requests(&self, name: &str) -> Vec<Request> {
        let requests = self.state.requests.lock().unwrap();
        let named = |request: &&Request| request.path.ends_with(name);
        requests.iter().filter(named).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers one request; every connection carries one.
fn answer(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .replace("%2b", "+")
        .replace("%7e", "~");
    let mut range = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.trim().to_owned());
        }
    }
    state.requests.lock().unwrap().push(Request {
        path: path.clone(),
        range: range.clone(),
    });
    let served = state.files.lock().unwrap().get(&path).cloned();
    match served {
        None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        Some(Served::Moved(to)) => write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: /debian/{to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        Some(Served::Whole(bytes)) => {
            let part = begin(&mut stream, &bytes, range.as_deref())?;
            stream.write_all(part)
        }
        Some(Served::Cut(bytes, sent)) => {
            begin(&mut stream, &bytes, None)?;
            stream.write_all(&bytes[..sent])
        }
        Some(Served::Stalled(bytes, sent)) => {
            begin(&mut stream, &bytes, None)?;
            stream.write_all(&bytes[..sent])?;
            stream.flush()?;
            while !state.over.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
            }
            Ok(())
        }
        Some(Served::Trickling(bytes)) => {
            begin(&mut stream, &bytes, None)?;
            for byte in bytes {
                if state.over.load(Ordering::Relaxed) {
                    break;
                }
                stream.write_all(&[byte])?;
                std::thread::sleep(TICK);
            }
            Ok(())
        }
    }
}

/// Sends the head of an answer and returns what is to follow it.
fn begin<'a>(stream: &mut TcpStream, bytes: &'a [u8], range: Option<&str>) -> std::io::Result<&'a [u8]> {
    let asked = range.and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let end = last.parse().map_or(bytes.len(), |last: usize| last + 1);
        (first < end && end <= bytes.len()).then_some((first, end))
    });
    let (status, part, place) = match asked {
        Some((first, end)) => (
            "206 Partial Content",
            &bytes[first..end],
            format!("Content-Range: bytes {first}-{}/{}\r\n", end - 1, bytes.len()),
        ),
        None => ("200 OK", bytes, String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{place}Accept-Ranges: bytes\r\n\
         Last-Modified: Sat, 01 Nov 2025 12:00:00 GMT\r\nConnection: close\r\n\r\n",
        part.len()
    )?;
    Ok(part)
}

/// A package in an index that a test makes: what the index says of it.
pub(super) struct Listed {
    pub(super) package: &'static str,
    pub(super) version: &'static str,
    pub(super) depends: String,
    /// The bytes that the index means.
    pub(super) content: Vec<u8>,
}

impl Listed {
    pub(super) fn new(package: &'static str, version: &'static str) -> Self {
        // Different for each, long enough to be cut, and random enough for no two parts to be alike.
        let seed = u32::from_str_radix(&sha256(version.as_bytes())[..7], 16).unwrap();
        let byte = |at: u32| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13).to_le_bytes()[0];
        let content = (0..40_000).map(byte).collect();
        Self {
            package,
            version,
            depends: String::new(),
            content,
        }
    }

    pub(super) fn depends(mut self, depends: &str) -> Self {
        depends.clone_into(&mut self.depends);
        self
    }

    /// The path of its tarball.
    pub(super) fn tarball(&self) -> String {
        let upstream = super::version::upstream(self.version);
        format!("pool/{}_{upstream}.orig.tar.xz", self.package)
    }

    /// The path of its binary package.
    pub(super) fn deb(&self) -> String {
        format!("pool/{}_{}_amd64.deb", self.package, self.version)
    }

    fn source(&self) -> String {
        let path = self.tarball();
        let name = path.trim_start_matches("pool/");
        format!(
            "Package: {}\nBinary: none\nVersion: {}\nArchitecture: any\nFormat: 3.0 (quilt)\nDirectory: pool\n\
             Files:\n 00000000000000000000000000000000 {} {name}\n\
             Checksums-Sha256:\n {} {} {name}\n\n",
            self.package,
            self.version,
            self.content.len(),
            sha256(&self.content),
            self.content.len(),
        )
    }

    fn binary(&self) -> String {
        format!(
            "Package: {}\nVersion: {}\nArchitecture: amd64\nDepends: {}\nFilename: {}\nSize: {}\nSHA256: {}\n\n",
            self.package,
            self.version,
            self.depends,
            self.deb(),
            self.content.len(),
            sha256(&self.content),
        )
    }
}

/// Serves the indices of a suite.
pub(super) fn publish(server: &Server, suite: &str, sources: &[Listed], binaries: &[Listed]) {
    let sources: String = sources.iter().map(Listed::source).collect();
    let binaries: String = binaries.iter().map(Listed::binary).collect();
    let mut release = format!(
        "Origin: test\nSuite: {suite}\nCodename: {suite}\nDate: Sat, 01 Nov 2025 12:00:00 UTC\n\
         Architectures: amd64\nComponents: main\nSHA256:\n"
    );
    for (path, index) in [
        ("main/source/Sources", sources),
        ("main/binary-amd64/Packages", binaries),
    ] {
        writeln!(release, " {} {} {path}", sha256(index.as_bytes()), index.len()).unwrap();
        server.serve(
            &format!("dists/{suite}/{path}"),
            Served::Whole(index.into_bytes()),
        );
    }
    server.serve(
        &format!("dists/{suite}/Release"),
        Served::Whole(release.into_bytes()),
    );
}

/// The digest of `bytes` as coreutils compute it.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}
