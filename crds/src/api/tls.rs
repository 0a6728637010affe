//! TLS towards an API's servers: whom to trust, what to show, and for which name.

use std::net::IpAddr;

use super::UpstreamTlsSpec;
use crate::FieldError;

/// How the servers of an API are called over TLS, where that differs from the system's roots and the server's own name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Secret and key with the authorities to trust; `None` trusts the system's.
    pub authorities: Option<(String, String)>,
    /// Secret with the certificate and key to show; `None` shows none.
    pub certificate: Option<String>,
    /// Name or address that the server's certificate must be for; `None` is the server's host.
    pub server_name: Option<String>,
}

/// Where a certificate and the chain above it are in a Secret of type `kubernetes.io/tls`.
pub const TLS_CERTIFICATE: &str = "tls.crt";
/// Where its key is.
pub const TLS_KEY: &str = "tls.key";
/// Where authorities are, unless the API says otherwise.
pub const TLS_AUTHORITIES: &str = "ca.crt";

impl UpstreamTls {
    pub(super) fn parse(spec: &UpstreamTlsSpec, errors: &mut Vec<FieldError>) -> Self {
        let name = spec.server_name.clone();
        if name.as_deref().is_some_and(|name| !is_server_name(name)) {
            let message = "must be a host name or an address, without a port";
            errors.push(FieldError::invalid("spec.upstream.tls.serverName", message));
        }
        let authorities = spec.ca_secret_ref.as_ref();
        Self {
            authorities: authorities
                .map(|secret| (secret.name.clone(), secret.key.clone().unwrap_or_else(|| TLS_AUTHORITIES.to_owned()))),
            certificate: spec.client_certificate_secret_ref.as_ref().map(|secret| secret.name.clone()),
            server_name: name,
        }
    }
}

/// The field that names the Secret with the authorities.
pub const AUTHORITIES_FIELD: &str = "spec.upstream.tls.caSecretRef";
/// The field that names the Secret with the certificate to show.
pub const CERTIFICATE_FIELD: &str = "spec.upstream.tls.clientCertificateSecretRef";

fn is_server_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(is_label))
}
