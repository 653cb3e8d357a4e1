//! Symbol stores that are servers: plain GET requests, with bounds on time, size and redirections. Through a
//! proxy where the environment names one, as other programs do: `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`,
//! except for the hosts in `NO_PROXY`. Whom https trusts is for the system to say, too.

use std::io::{Read, Write};
use std::time::Duration;

use ureq::http::Uri;
use ureq::http::{HeaderMap, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy, ProxyProtocol};

use super::local::printable;

/// Bounds of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time to find and reach the server.
    pub connect: Duration,
    /// Longest silence.
    pub silence: Duration,
    /// Time for one whole download.
    pub total: Duration,
    /// Most bytes.
    pub bytes: u64,
    /// How often a request is tried that fails for reasons that pass.
    pub tries: u32,
    /// Pause before the second try; doubled before each further one.
    pub pause: Duration,
    /// Most redirections.
    pub redirections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            total: Duration::from_secs(1800),
            // What the reader of PDBs accepts.
            bytes: crate::os::windows::pdb::container::MAX_FILE,
            tries: 3,
            pause: Duration::from_secs(1),
            redirections: 5,
        }
    }
}

/// Why a request failed.
#[derive(Debug)]
struct Trouble {
    why: String,
    /// Whether trying again can help.
    passes: bool,
}

impl Trouble {
    fn lasting(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            passes: false,
        }
    }
}

/// Fetches files from servers.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    limits: Limits,
    proxy: Option<Proxy>,
    trust: Trust,
}

/// Who may sign the certificate of a server.
#[derive(Debug)]
struct Trust {
    /// How many authorities the system names: in its own store, or in those that `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR` put in its place.
    system: usize,
    roots: RootCerts,
}

impl Trust {
    /// Whom the system trusts; where it names nobody, Mozilla's list, which is built in.
    fn of_system() -> Self {
        // What cannot be read is left out, as other programs do; an error tells how many are left.
        let found = rustls_native_certs::load_native_certs().certs;
        let roots = if found.is_empty() {
            RootCerts::WebPki
        } else {
            found
                .iter()
                .map(|certificate| Certificate::from_der(certificate).to_owned())
                .into()
        };
        Self {
            system: found.len(),
            roots,
        }
    }

    /// For an error.
    fn describe(&self) -> String {
        if self.system == 0 {
            "; held against Mozilla's list, as the system names no authority: SSL_CERT_FILE can".to_owned()
        } else {
            format!(
                "; held against those whom the system trusts (certificates: {}): SSL_CERT_FILE names others",
                self.system
            )
        }
    }
}

/// Told how many bytes are there, and how many there will be, if known.
pub type Progress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

impl Client {
    pub(super) fn new(limits: Limits) -> Self {
        let proxy = Proxy::try_from_env();
        let trust = Trust::of_system();
        let config = Agent::config_builder()
            .proxy(proxy.clone())
            .tls_config(TlsConfig::builder().root_certs(trust.roots.clone()).build())
            .http_status_as_error(false)
            // Followed here, where each target is looked at first.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(limits.connect))
            .timeout_resolve(Some(limits.connect))
            .timeout_send_request(Some(limits.silence))
            .timeout_recv_response(Some(limits.silence))
            .timeout_per_read(Some(limits.silence))
            .timeout_global(Some(limits.total))
            .max_response_header_size(64 << 10)
            .user_agent(concat!("lacuna/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            limits,
            proxy,
            trust,
        }
    }

    /// What a proxy has to do with how `address` was asked, for an error.
    fn way(&self, address: &str) -> String {
        let goes_by = |proxy: &&Proxy| {
            address
                .parse::<Uri>()
                .is_ok_and(|address| !proxy.is_no_proxy(&address))
        };
        let Some(proxy) = self.proxy.as_ref().filter(goes_by) else {
            return String::new();
        };
        let (host, port) = (proxy.host(), proxy.port());
        if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
            format!(" (through the proxy {host}:{port})")
        } else {
            format!(" (past the proxy {host}:{port}, which is none of HTTP: no other kind is spoken to)")
        }
    }

    /// Fetches `address`, at most `most` bytes. `begin` gives the place to write to, anew for each try.
    /// `None` when the server does not have it: 404, 410, and 403, which stores in the cloud say for the
    /// same.
    ///
    /// # Errors
    /// What went wrong in the last try, in words.
    pub(super) fn get<W: Write>(
        &self,
        address: &str,
        most: u64,
        begin: &mut dyn FnMut() -> std::io::Result<W>,
        progress: Progress<'_>,
    ) -> Result<Option<W>, String> {
        let most = most.min(self.limits.bytes);
        let mut pause = self.limits.pause;
        let mut tries = 1;
        loop {
            match self.once(address, most, begin, progress) {
                Ok(answer) => return Ok(answer),
                Err(trouble) if trouble.passes && tries < self.limits.tries => {
                    std::thread::sleep(pause);
                    pause *= 2;
                    tries += 1;
                }
                Err(trouble) if tries > 1 => return Err(format!("{} ({tries} tries)", trouble.why)),
                Err(trouble) => return Err(trouble.why),
            }
        }
    }

    fn once<W: Write>(
        &self,
        address: &str,
        most: u64,
        begin: &mut dyn FnMut() -> std::io::Result<W>,
        progress: Progress<'_>,
    ) -> Result<Option<W>, Trouble> {
        let mut address = address.to_owned();
        for _ in 0..=self.limits.redirections {
            let mut response = self.agent.get(&address).call().map_err(|error| {
                let mut trouble = trouble(&error);
                if is_of_certificate(&error) {
                    trouble.why += &self.trust.describe();
                }
                trouble.why += &self.way(&address);
                trouble
            })?;
            let status = response.status().as_u16();
            match status {
                200 => {
                    refuse_page(response.headers())?;
                    let length = response.body().content_length();
                    if let Some(announced) = length.filter(|length| *length > most) {
                        return Err(Trouble::lasting(format!(
                            "it announces {announced} bytes; at most {most} are taken"
                        )));
                    }
                    let mut file = begin().map_err(|error| Trouble::lasting(error.to_string()))?;
                    copy(
                        response.body_mut().with_config().limit(u64::MAX).reader(),
                        most,
                        length,
                        &mut file,
                        progress,
                    )?;
                    return Ok(Some(file));
                }
                301 | 302 | 303 | 307 | 308 => {
                    let target = response
                        .headers()
                        .get(header::LOCATION)
                        .and_then(|target| target.to_str().ok())
                        .ok_or_else(|| Trouble::lasting(format!("status {status} without a target")))?;
                    address = redirected(&address, target)?;
                }
                403 | 404 | 410 => return Ok(None),
                408 | 429 | 500..=599 => {
                    return Err(Trouble {
                        why: format!("the server answers with status {status}"),
                        passes: true,
                    });
                }
                _ => {
                    return Err(Trouble::lasting(format!(
                        "the server answers with status {status}"
                    )));
                }
            }
        }
        Err(Trouble::lasting(format!(
            "it redirects more than {} times",
            self.limits.redirections
        )))
    }
}

fn copy(
    mut body: impl Read,
    most: u64,
    length: Option<u64>,
    file: &mut impl Write,
    progress: Progress<'_>,
) -> Result<(), Trouble> {
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    loop {
        let read = body.read(&mut buffer).map_err(|error| Trouble {
            why: format!("the download broke off after {done} bytes: {error}"),
            passes: true,
        })?;
        if read == 0 {
            break;
        }
        done += read as u64;
        if done > most {
            return Err(Trouble::lasting(format!("it sends more than {most} bytes")));
        }
        file.write_all(&buffer[..read])
            .map_err(|error| Trouble::lasting(error.to_string()))?;
        progress(done, length);
    }
    match length {
        Some(length) if length != done => Err(Trouble {
            why: format!("the download broke off after {done} of {length} bytes"),
            passes: true,
        }),
        _ => Ok(()),
    }
}

/// A page for people where a file should be: a portal's log-in, or an error under status 200; or a file that
/// is packed.
fn refuse_page(headers: &HeaderMap) -> Result<(), Trouble> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    if kind.starts_with("text/html") || kind.starts_with("application/xhtml") {
        return Err(Trouble::lasting(format!(
            "it serves a web page ({}) instead of a file",
            printable(&kind)
        )));
    }
    // Nothing but the file itself was asked for.
    let packed = headers
        .get(header::CONTENT_ENCODING)
        .and_then(|kind| kind.to_str().ok())
        .filter(|kind| !kind.eq_ignore_ascii_case("identity"));
    if let Some(packed) = packed {
        return Err(Trouble::lasting(format!(
            "it serves the file packed ({}), which was not asked for",
            printable(packed)
        )));
    }
    Ok(())
}

/// Where a redirection leads. Only http and https are followed, and never from the second to the first.
fn redirected(from: &str, target: &str) -> Result<String, Trouble> {
    let (scheme, rest) = from.split_once("://").unwrap_or(("http", from));
    let address = if target.contains("://") {
        target.to_owned()
    } else if let Some(host) = target.strip_prefix("//") {
        format!("{scheme}://{host}")
    } else if target.starts_with('/') {
        let host = rest.split('/').next().unwrap_or_default();
        format!("{scheme}://{host}{target}")
    } else {
        let folder = from.rsplit_once('/').map_or(from, |(folder, _)| folder);
        format!("{folder}/{target}")
    };
    let to = address
        .split("://")
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match (scheme, to.as_str()) {
        ("https", "https") | ("http", "http" | "https") => Ok(address),
        _ => Err(Trouble::lasting(format!(
            "it redirects from {scheme} to {}, which is not followed",
            printable(target)
        ))),
    }
}

/// Whether the server's certificate, or how it speaks TLS, is what is wrong.
fn is_of_certificate(error: &ureq::Error) -> bool {
    match error {
        // What rustls finds wrong comes as invalid data.
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        _ => false,
    }
}

fn trouble(error: &ureq::Error) -> Trouble {
    let passes = !is_of_certificate(error)
        && matches!(
            error,
            ureq::Error::Timeout(_) | ureq::Error::Io(_) | ureq::Error::ConnectionFailed
        );
    Trouble {
        why: printable(&error.to_string()),
        passes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_stay_on_the_web_and_keep_their_secrecy() {
        let from = "https://h:8/symbols/a.pdb/1/a.pdb";
        let follow = |target| redirected(from, target).map_err(|trouble| trouble.why);
        assert_eq!(follow("https://other/x").as_deref(), Ok("https://other/x"));
        assert_eq!(follow("/x").as_deref(), Ok("https://h:8/x"));
        assert_eq!(follow("//other/x").as_deref(), Ok("https://other/x"));
        assert_eq!(
            follow("b.pdb").as_deref(),
            Ok("https://h:8/symbols/a.pdb/1/b.pdb")
        );
        for target in ["http://h/x", "file:///etc/passwd", "ftp://h/x"] {
            assert!(follow(target).is_err(), "{target}");
        }
    }
}
