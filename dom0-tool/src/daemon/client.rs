//! Asks the running daemon for what it alone knows: how much free memory its policy leaves to each guest.
//!
//! The daemon's metrics are read as any scraper reads them. Without a daemon there is no answer, and whoever
//! asks goes on without it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::daemon::config::Listen;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Most bytes of an answer: about 4 KiB for each guest, and 65,536 guests do not fit on a host.
const MOST_ANSWER: u64 = 16 << 20;
/// How long the daemon may take. It serves what it has at hand.
const LIMIT: Duration = Duration::from_millis(500);
/// The metric, up to its labels.
const HEADROOM: &str = "lacuna_guest_headroom_bytes{";

/// Returns the pages that the daemon leaves free to each guest, by domain number; `None` if no daemon answers
/// at `listen`.
pub fn headrooms(listen: &Listen) -> Option<BTreeMap<u16, u64>> {
    match listen {
        Listen::Off => None,
        Listen::Unix(path) => {
            let client = UnixStream::connect(path).ok()?;
            client.set_read_timeout(Some(LIMIT)).ok()?;
            client.set_write_timeout(Some(LIMIT)).ok()?;
            ask(client)
        }
        Listen::Tcp(address) => {
            let client = TcpStream::connect_timeout(address, LIMIT).ok()?;
            client.set_read_timeout(Some(LIMIT)).ok()?;
            client.set_write_timeout(Some(LIMIT)).ok()?;
            ask(client)
        }
    }
}

fn ask(mut client: impl Read + Write) -> Option<BTreeMap<u16, u64>> {
    client
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    client.take(MOST_ANSWER).read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| parse(body))
}

/// Reads the headrooms out of the daemon's metrics.
fn parse(metrics: &str) -> BTreeMap<u16, u64> {
    metrics
        .lines()
        .filter_map(|line| {
            // The domain is the first label, so a guest's name cannot be taken for it.
            let labels = line.strip_prefix(HEADROOM)?.strip_prefix("domain=\"")?;
            let domain = labels.split('"').next()?.parse().ok()?;
            let bytes: u64 = line.rsplit(' ').next()?.parse().ok()?;
            Some((domain, bytes / PAGE))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::server::{MetricsPage, Server};

    const METRICS: &str = "# TYPE lacuna_guest_headroom_bytes gauge\n\
        lacuna_guest_headroom_bytes{domain=\"3\",name=\"web\"} 8192\n\
        lacuna_guest_headroom_bytes{domain=\"4\",name=\"a\\\"} 1 domain=\\\"9\\\"\"} 4096\n\
        lacuna_guest_headroom_bytes{domain=\"many\",name=\"x\"} 4096\n\
        lacuna_guest_held_bytes{domain=\"5\",name=\"web\"} 8192\n# EOF\n";

    #[test]
    fn a_daemon_that_runs_is_asked_and_one_that_does_not_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(folder.path().join("metrics.sock"));
        assert_eq!(headrooms(&listen), None);
        let page = MetricsPage::default();
        page.publish(METRICS.to_owned());
        let _server = Server::start(&listen, &page).unwrap();
        assert_eq!(headrooms(&listen), Some(BTreeMap::from([(3, 2), (4, 1)])));
        assert_eq!(headrooms(&Listen::Off), None);
    }
}
