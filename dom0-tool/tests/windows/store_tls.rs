//! Symbol servers that speak https, and whom they are believed to be.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;

use crate::server::{Reply, Server};
use crate::store::{right, two_tiers};
use crate::store_oddities::fetch;

/// An authority of our own, whose certificate is in a file.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("authority.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// What a server for `name` needs.
    fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into());
        Arc::new(config.unwrap())
    }
}

/// Asks a server with this certificate, trusting `trusted`; returns the exit status, the answer as text, and
/// whether the file came.
fn ask(certificate: Arc<ServerConfig>, trusted: &str) -> (i32, String, bool) {
    let pdb = right();
    let body = pdb.clone();
    let server = Server::start_tls(certificate, move |_, _| Reply::ok(body.clone()));
    let cache = tempfile::tempdir().unwrap();
    let path = format!("srv*{}*{}", cache.path().display(), server.address);
    let (status, answer) = fetch(
        &path,
        &[("SSL_CERT_FILE", trusted), ("SSL_CERT_DIR", "/nonexistent")],
    );
    let kept = fs::read(two_tiers(cache.path())).is_ok_and(|kept| kept == pdb);
    (status, answer.to_string(), kept)
}

#[test]
fn a_server_that_the_system_trusts_is_believed() {
    let authority = Authority::new();
    let (status, answer, kept) = ask(authority.server("127.0.0.1"), authority.file().to_str().unwrap());
    assert!(status == 0 && kept, "{answer}");
}

#[test]
fn others_are_refused_at_once_with_the_reason_and_the_remedy() {
    let (ours, other) = (Authority::new(), Authority::new());
    let trusted = ours.file();
    let trusted = trusted.to_str().unwrap();
    for (certificate, trusted, why) in [
        (other.server("127.0.0.1"), trusted, "invalid peer certificate"),
        (ours.server("127.0.0.2"), trusted, "not valid for name"),
        (ours.server("127.0.0.1"), "/nonexistent", "Mozilla's list"),
    ] {
        let (status, answer, kept) = ask(certificate, trusted);
        assert!(status != 0 && !kept, "{answer}");
        assert!(answer.contains(why), "{why}: {answer}");
        assert!(
            answer.contains("SSL_CERT_FILE") && !answer.contains("tries"),
            "{answer}"
        );
    }
}
