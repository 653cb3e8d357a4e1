//! Asks servers for the first byte of files: an index tells what an archive once had.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::header;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::fetch::unlisted;
use super::{Archive, Candidate, Offers, PassedOver, RemoteFile};

/// How many requests are under way at a time.
const AT_A_TIME: usize = 16;

/// What came of a request for a file's first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is there, with the length that the index lists as far as the server says.
    Served,
    /// The server answered that it is not, or has another file in its place.
    Refused(String),
    /// There was no answer.
    Unreachable(String),
}

impl Answer {
    /// Why it is not served; nothing if it is.
    pub(crate) fn trouble(&self) -> Option<&str> {
        match self {
            Self::Served => None,
            Self::Refused(why) | Self::Unreachable(why) => Some(why),
        }
    }
}

/// Asks. Goes through the proxies that the environment names, and follows redirections.
pub(crate) struct Prober {
    agent: Agent,
    until: Instant,
}

impl Prober {
    /// Waits for each answer as long as `answer`, and for none beyond `until`.
    pub(crate) fn new(answer: Duration, until: Instant) -> Self {
        // Whom https trusts is for the system to say.
        let certificates = rustls_native_certs::load_native_certs().certs;
        let roots = if certificates.is_empty() {
            RootCerts::WebPki
        } else {
            let owned = certificates
                .iter()
                .map(|one| Certificate::from_der(one).to_owned());
            owned.into()
        };
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(10)
            .timeout_global(Some(answer.min(until.saturating_duration_since(Instant::now()))))
            .user_agent(concat!("lacuna-lab/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            until,
        }
    }

    /// Whether there is no time left to ask.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Asks for the first byte of a file.
    pub(crate) fn is_served(&self, file: &RemoteFile) -> Answer {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Answer::Unreachable("no time was left to ask".to_owned());
        }
        let request = self.agent.get(&file.uri).header(header::RANGE, "bytes=0-0");
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => return unreachable(error),
        };
        let status = response.status();
        if !status.is_success() {
            return Answer::Refused(status.to_string());
        }
        let text = |name| response.headers().get(name)?.to_str().ok();
        let whole: Option<u64> = if status == 206 {
            text(header::CONTENT_RANGE).and_then(|range| range.rsplit('/').next()?.parse().ok())
        } else {
            text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok())
        };
        if let Some(whole) = whole.filter(|whole| *whole != file.size) {
            return Answer::Refused(format!("{whole} bytes where the index lists {}", file.size));
        }
        match response.body_mut().as_reader().read(&mut [0]) {
            Ok(1) => Answer::Served,
            Ok(_) => Answer::Refused("no first byte".to_owned()),
            Err(error) => unreachable(error.into()),
        }
    }

    /// Asks for many files at a time and returns the answers in their order.
    pub(crate) fn survey(&self, files: &[RemoteFile]) -> Vec<Answer> {
        let next = AtomicUsize::new(0);
        let answers = Mutex::new(vec![Answer::Unreachable("not asked".to_owned()); files.len()]);
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(files.len()) {
                scope.spawn(|| {
                    while let Some((at, file)) = {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        files.get(at).map(|file| (at, file))
                    } {
                        let answer = self.is_served(file);
                        if let Ok(mut answers) = answers.lock() {
                            answers[at] = answer;
                        }
                    }
                });
            }
        });
        answers.into_inner().unwrap_or_default()
    }

    /// Finds the first candidate of which all files are served, and why those before it are not.
    pub(crate) fn first_served(&self, offers: Offers) -> (Option<Candidate>, Vec<PassedOver>) {
        let mut passed_over = offers.passed_over;
        for candidate in offers.candidates {
            if self.is_over() {
                break;
            }
            if let Some(missing) = &candidate.missing {
                passed_over.push(candidate.passed_over(unlisted(missing)));
                continue;
            }
            let answers = self.survey(&candidate.files);
            let missing = candidate
                .files
                .iter()
                .zip(&answers)
                .find_map(|(file, answer)| Some((file, answer.trouble()?)));
            let Some((file, why)) = missing else {
                return (Some(candidate), passed_over);
            };
            passed_over.push(candidate.passed_over(format!("{}: {why}", file.uri)));
        }
        (None, passed_over)
    }
}

fn unreachable(error: ureq::Error) -> Answer {
    Answer::Unreachable(match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    })
}

impl Archive<'_> {
    /// Asks for the first byte of a file, and not the index, whether it is served.
    pub(crate) fn is_served(&self, file: &RemoteFile) -> Answer {
        let answer = self.apt.limits.answer;
        Prober::new(answer, Instant::now() + answer).is_served(file)
    }
}
