//! TLS towards upstreams: the system's roots and the server's own name, or what an API says.
//!
//! In: what an API asks for and the Secrets it names. Out: a [`Tls`] that connections are opened with, or every reason
//! why not. It is made when an API is compiled, so that what is wrong with a Secret is known before the first call.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use doorman_crds::api::{AUTHORITIES_FIELD, CERTIFICATE_FIELD, NoSecret, TLS_CERTIFICATE, TLS_KEY, UpstreamTls};
use doorman_crds::{DoormanApiSpec, FieldError};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, crypto};
use sha2::{Digest, Sha256};

use crate::definitions::Secret;

/// Tells one way of TLS from another by all that it is made of.
pub(super) type Fingerprint = [u8; 32];

/// How an API's servers are called over TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(super) fingerprint: Fingerprint,
    /// Whom the certificate must be for, instead of the server's host.
    pub(super) name: Option<ServerName<'static>>,
    config: Arc<ClientConfig>,
}

impl Tls {
    /// As an API says that was read as `tls`; `secret` finds a Secret of the API's namespace.
    ///
    /// # Errors
    /// Each Secret that is missing or can't be used, with the field that names it.
    pub fn new<'a>(
        spec: &DoormanApiSpec,
        tls: &UpstreamTls,
        secret: impl Fn(&str) -> Result<&'a Secret, &'a NoSecret>,
    ) -> Result<Self, Vec<FieldError>> {
        let mut material = Material { hasher: Sha256::new(), errors: Vec::new() };
        let mut found = BTreeMap::new();
        for (field, name) in spec.secrets() {
            match secret(name) {
                Ok(secret) => drop(found.insert(field, secret)),
                Err(missing) => material.errors.push(missing.error(field, name)),
            }
        }
        let roots = match (&tls.authorities, found.get(AUTHORITIES_FIELD)) {
            (Some((name, key)), Some(secret)) => Some(material.authorities(name, key, secret)),
            _ => None,
        };
        let shown = match (&tls.certificate, found.get(CERTIFICATE_FIELD)) {
            (Some(name), Some(secret)) => material.certificate(name, secret),
            _ => None,
        };
        let name = tls.server_name.as_ref().and_then(|name| {
            material.add(b"name", name.as_bytes());
            let parsed = ServerName::try_from(name.clone());
            let field = "spec.upstream.tls.serverName";
            parsed.map_err(|error| material.errors.push(FieldError::invalid(field, error.to_string()))).ok()
        });
        if !material.errors.is_empty() {
            return Err(material.errors);
        }
        let roots = roots.map_or_else(system_roots, Arc::new);
        let builder = trusting(roots).map_err(|error| invalid(AUTHORITIES_FIELD, &error))?;
        let config = match shown {
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain, key).map_err(|error| invalid(CERTIFICATE_FIELD, &error))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self { fingerprint: material.hasher.finalize().into(), name, config: Arc::new(config) })
    }

    /// What to open connections with, when HTTP/2 is offered or not.
    pub(super) fn config(&self, http2: bool) -> Arc<ClientConfig> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = protocols(http2);
        Arc::new(config)
    }
}

/// The client side of TLS for everybody else, made once.
pub(super) fn usual_config(http2: bool) -> Result<Arc<ClientConfig>, rustls::Error> {
    static CONFIGS: [OnceLock<Arc<ClientConfig>>; 2] = [OnceLock::new(), OnceLock::new()];
    let slot = &CONFIGS[usize::from(http2)];
    if let Some(config) = slot.get() {
        return Ok(config.clone());
    }
    let mut config = trusting(system_roots())?.with_no_client_auth();
    config.alpn_protocols = protocols(http2);
    Ok(slot.get_or_init(|| Arc::new(config)).clone())
}

fn protocols(http2: bool) -> Vec<Vec<u8>> {
    let all = [b"h2".to_vec(), b"http/1.1".to_vec()];
    all[usize::from(!http2)..].to_vec()
}

fn trusting(roots: Arc<RootCertStore>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots))
}

/// The same for all: they are many, and an API's own way of TLS often needs nothing else of them.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a system root certificate can't be read");
        }
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    });
    roots.clone()
}

fn invalid(field: &str, error: &rustls::Error) -> Vec<FieldError> {
    vec![FieldError::invalid_secret(field, format!("can't be used: {error}"))]
}

/// What a way of TLS is made of, and what is wrong with it. Messages name places, never contents.
struct Material {
    hasher: Sha256,
    errors: Vec<FieldError>,
}

impl Material {
    fn add(&mut self, what: &[u8], bytes: &[u8]) {
        for part in [what, bytes] {
            self.hasher.update((part.len() as u64).to_be_bytes());
            self.hasher.update(part);
        }
    }

    fn say(&mut self, field: &str, message: String) {
        self.errors.push(FieldError::invalid_secret(field, message));
    }

    fn part<'a>(&mut self, field: &str, name: &str, key: &str, secret: &'a Secret) -> Option<&'a [u8]> {
        let bytes = secret.get(key);
        match bytes {
            Some(bytes) => self.add(key.as_bytes(), bytes),
            None => self.say(field, format!("the Secret `{name}` has no key `{key}`")),
        }
        bytes
    }

    fn chain(&mut self, field: &str, name: &str, key: &str, secret: &Secret) -> Vec<CertificateDer<'static>> {
        let Some(bytes) = self.part(field, name, key, secret) else { return Vec::new() };
        let chain = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        if chain.is_empty() {
            self.say(field, format!("`{key}` of the Secret `{name}` must hold certificates in PEM"));
        }
        chain
    }

    fn authorities(&mut self, name: &str, key: &str, secret: &Secret) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for certificate in self.chain(AUTHORITIES_FIELD, name, key, secret) {
            if roots.add(certificate).is_err() {
                self.say(AUTHORITIES_FIELD, format!("`{key}` of the Secret `{name}` holds a malformed certificate"));
            }
        }
        roots
    }

    fn certificate(
        &mut self,
        name: &str,
        secret: &Secret,
    ) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = self.chain(CERTIFICATE_FIELD, name, TLS_CERTIFICATE, secret);
        let key = self.part(CERTIFICATE_FIELD, name, TLS_KEY, secret)?;
        let Ok(key) = PrivateKeyDer::from_pem_slice(key) else {
            self.say(CERTIFICATE_FIELD, format!("`{TLS_KEY}` of the Secret `{name}` must hold a private key in PEM"));
            return None;
        };
        Some((chain, key))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ways_of_tls_share_the_roots_of_the_system() {
        let spec: DoormanApiSpec =
            serde_json::from_value(json!({"name": "a", "version": "v1", "protocol": "REST"})).unwrap();
        let own = UpstreamTls { authorities: None, certificate: None, server_name: Some("a.example".to_owned()) };
        let all = [(); 8].map(|()| Tls::new(&spec, &own, |_| unreachable!()).unwrap());
        // Each of them, and the one that all are made of.
        assert!(Arc::strong_count(&system_roots()) > all.len());
    }
}
