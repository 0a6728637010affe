//! The server's certificate: read from files, read again when they change, never swapped for one that does not work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. Mounted Secrets change by a link swap that notices miss.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// SHA-256 of what both files held: the key's text need not be kept to see a change.
type Fingerprint = [u8; 32];

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read or holds no PEM of the right kind.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key don't belong together, or the key is of an unknown kind.
    #[error("certificate and key can't be used together: {0}")]
    Pair(#[from] rustls::Error),
}

/// Certificate and key files and what they held when they last worked.
#[derive(Debug)]
pub struct Certificate {
    chain_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<CertifiedKey>,
    /// Of what was loaded at first.
    loaded: Fingerprint,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// [`CertificateError`] naming the file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Arc<Self>, CertificateError> {
        let (current, loaded) = read(certificate, key)?;
        Ok(Arc::new(Self {
            chain_file: certificate.to_owned(),
            key_file: key.to_owned(),
            current: ArcSwap::from_pointee(current),
            loaded,
        }))
    }

    /// TLS 1.2 and 1.3 with this certificate, HTTP/2 offered first.
    ///
    /// # Errors
    /// When the cryptography library offers no usable protocol version.
    pub fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Follows the files for ever, from when they were loaded. New connections get the new certificate; open ones keep
    /// theirs.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = self.loaded;
        let mut complained = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match read(&self.chain_file, &self.key_file) {
                Ok((_, fingerprint)) if fingerprint == seen => complained = false,
                Ok((pair, fingerprint)) => {
                    self.current.store(Arc::new(pair));
                    seen = fingerprint;
                    complained = false;
                    tracing::info!(file = %self.chain_file.display(), "the new certificate is in use");
                }
                // Files are replaced one after the other; only what lasts is worth a line.
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(%error, "the changed certificate can't be used; the old one stays");
                }
                Err(_) => {}
            }
        }
    }
}

#[derive(Debug)]
struct Resolver(Arc<Certificate>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current.load_full())
    }
}

fn read(certificate: &Path, key: &Path) -> Result<(CertifiedKey, Fingerprint), CertificateError> {
    let fail = |path: &Path, reason: String| CertificateError::File { path: path.to_owned(), reason };
    let chain_text = std::fs::read(certificate).map_err(|error| fail(certificate, error.to_string()))?;
    let key_text = std::fs::read(key).map_err(|error| fail(key, error.to_string()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain_text)
        .collect::<Result<_, _>>()
        .map_err(|error| fail(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(fail(certificate, "holds no certificate".into()));
    }
    let key_der = PrivateKeyDer::from_pem_slice(&key_text).map_err(|error| fail(key, error.to_string()))?;
    let pair = CertifiedKey::from_der(chain, key_der, &crypto::aws_lc_rs::default_provider())?;
    let fingerprint = Sha256::new().chain_update(&chain_text).chain_update(&key_text).finalize().into();
    Ok((pair, fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_between_loading_and_following_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let renew = || {
            let made = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
            std::fs::write(&chain, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            made.cert.der().clone()
        };
        let first = renew();
        let certificate = Certificate::load(&chain, &key).unwrap();
        let second = renew();
        let following = tokio::spawn(certificate.clone().follow());
        assert_eq!(certificate.current.load().cert, [first]);
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert_eq!(certificate.current.load().cert, [second]);
        following.abort();
    }
}
