//! Authorities and certificates that tests make for themselves.

use std::fmt::Write as _;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

/// An authority that nobody knows.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub chain: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// With a new key.
    pub fn new() -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?))
    }

    /// Signs a certificate for this name.
    pub fn sign(&self, name: &str) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let chain = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.0)?.pem();
        Ok(Certificate { chain, key: key.serialize_pem() })
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }
}

impl Certificate {
    /// What the sample upstream calls it when it is shown it.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&CertificateDer::from_pem_slice(self.chain.as_bytes())?))
    }
}

pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let (mut text, digest) = (String::new(), Sha256::digest(certificate));
    for byte in digest {
        write!(text, "{byte:02x}").expect("a string takes any text");
    }
    text
}
