//! TLS: the certificate, and the configurations of both listeners. The ring provider is named, never looked up.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use ring::hmac;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, version};

/// A certificate chain and its private key.
#[derive(Debug)]
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{path}: {what}")]
    File { path: String, what: String },
    #[error("a development certificate cannot be made: {0}")]
    Made(String),
    #[error("the cryptography has no cipher suite to begin QUIC with")]
    NoInitialSuite,
    #[error("the certificate cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// The names that a development certificate is for.
const DEVELOPMENT_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

impl Identity {
    /// Reads PEM files.
    pub(crate) fn read(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let fault = |path: &Path, what: &dyn std::fmt::Display| TlsError::File {
            path: path.display().to_string(),
            what: what.to_string(),
        };
        let certificates = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| fault(chain, &error))?;
        if certificates.is_empty() {
            return Err(fault(chain, &"holds no certificate"));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, &error))?;
        Ok(Self { chain: certificates, key })
    }

    /// A self-signed certificate for loopback that is kept in a directory, and made if it is not there.
    pub(crate) fn development(directory: &Path) -> Result<Self, TlsError> {
        let (chain, key) = (directory.join("dev-cert.pem"), directory.join("dev-key.pem"));
        if !chain.exists() || !key.exists() {
            let (chain_pem, key_pem) = make()?;
            let fault = |path: &Path| {
                let path = path.display().to_string();
                move |error: io::Error| TlsError::File { path, what: error.to_string() }
            };
            // The key first: the certificate's file tells that both are there.
            write_new(&key, key_pem.as_bytes(), 0o600).map_err(fault(&key))?;
            write_new(&chain, chain_pem.as_bytes(), 0o644).map_err(fault(&chain))?;
        }
        Self::read(&chain, &key)
    }

    /// A self-signed certificate for loopback that is kept nowhere.
    pub(crate) fn passing() -> Result<Self, TlsError> {
        let (chain, key) = make()?;
        let made = |error: rustls::pki_types::pem::Error| TlsError::Made(error.to_string());
        let chain = CertificateDer::from_pem_slice(chain.as_bytes()).map_err(made)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(made)?;
        Ok(Self { chain: vec![chain], key })
    }

    /// For the TCP listener: HTTP/1.1, TLS 1.2 or 1.3.
    pub(crate) fn tcp(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = self.config(&[&version::TLS13, &version::TLS12])?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For the UDP listener: our own protocol, TLS 1.3, nothing before the handshake is over.
    pub(crate) fn quic(&self) -> Result<ServerConfig, TlsError> {
        let mut config = self.config(&[&version::TLS13])?;
        config.alpn_protocols = vec![b"roomlog/1".to_vec()];
        // A publish in early data could be replayed by anyone who has seen it.
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// A secret for one purpose, the same as long as the private key is.
    pub(crate) fn secret(&self, purpose: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key.secret_der());
        *hmac::sign(&key, purpose.as_bytes()).as_ref().first_chunk().expect("SHA-256 has 32 bytes")
    }

    fn config(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(self.chain.clone(), self.key.clone_key())
            })
            .map_err(TlsError::Unusable)?;
        // Clients that come back all at once need no full handshake, and the server keeps nothing for that.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TlsError::Unusable)?;
        Ok(config)
    }
}

fn make() -> Result<(String, String), TlsError> {
    let names = DEVELOPMENT_NAMES.map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| TlsError::Made(error.to_string()))?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}

/// Writes a file whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let unfinished = path.with_extension("pem.new");
    let _ = fs::remove_file(&unfinished);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_development_certificate_is_made_once_and_its_key_is_for_the_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Identity::development(directory.path()).expect("it is made");
        let again = Identity::development(directory.path()).expect("it is read");
        assert_eq!(first.chain, again.chain);
        let mode = fs::metadata(directory.path().join("dev-key.pem")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        first.tcp().expect("it serves TCP");
        assert_eq!(first.quic().expect("it serves QUIC").max_early_data_size, 0);
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cert.pem");
        fs::write(&path, "nothing").expect("it can be written");
        let error = Identity::read(&path, &path).expect_err("it is no certificate").to_string();
        assert!(error.contains("cert.pem"), "{error}");
    }
}
