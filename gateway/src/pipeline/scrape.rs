//! `GET /metrics` of the traffic port: who may read it, and in which format (reference: gateway behaviour 21.2).

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::{Body, Gateway, Peer};
use crate::client::{self, Trust};
use crate::networks::Networks;

const X_PROMETHEUS_TOKEN: HeaderName = HeaderName::from_static("x-prometheus-token");
/// What every version of Prometheus reads.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
/// For those who ask for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Gateway {
    /// The metrics, or why they are not shown.
    pub(super) fn scraped(&self, parts: &Parts, peer: Peer) -> Response<Body> {
        let settings = &self.settings.metrics;
        if !settings.enabled {
            return text(StatusCode::SERVICE_UNAVAILABLE, CLASSIC, "prometheus_disabled 1\n");
        }
        let is_admitted = settings.public || self.has_token(parts) && self.is_listed(parts, peer);
        if !is_admitted {
            return text(StatusCode::FORBIDDEN, CLASSIC, "prometheus_forbidden 1\n");
        }
        let accepted = parts.headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accepted.contains("application/openmetrics-text") {
            return text(StatusCode::OK, OPEN_METRICS, self.metrics.render());
        }
        text(StatusCode::OK, CLASSIC, self.metrics.render_classic())
    }

    fn has_token(&self, parts: &Parts) -> bool {
        let Some(wanted) = &self.settings.metrics.token else { return true };
        let bearer = parts.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
        });
        let sent = bearer.or_else(|| parts.headers.get(X_PROMETHEUS_TOKEN).map(HeaderValue::as_bytes));
        sent.is_some_and(|sent| is_equal(sent, wanted.expose().as_bytes()))
    }

    fn is_listed(&self, parts: &Parts, peer: Peer) -> bool {
        let settings = &self.settings.metrics;
        let (address, is_forwarded) = match self.proxies().filter(|_| settings.trust_forwarded_for) {
            Some(proxies) => (client::effective(&parts.headers, &Trust::Listed(proxies), peer.address), false),
            None => (peer.address.to_canonical(), client::is_forwarded(&parts.headers)),
        };
        if settings.allow.is_empty() {
            // Behind a proxy on this machine everyone seems to be loopback.
            return address.is_loopback() && !is_forwarded;
        }
        settings.allow.iter().any(|net| net.contains(&address))
    }

    /// The proxies whose word counts. Without a list of them anyone could claim to be loopback.
    fn proxies(&self) -> Option<Networks> {
        if let Trust::Listed(proxies) = self.security.active().trust() {
            return Some(proxies.clone());
        }
        let listed = &self.settings.network.trusted_proxies;
        (!listed.is_empty()).then(|| listed.iter().copied().collect())
    }
}

/// Takes as long for the first wrong byte as for the last one.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Own(Some(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
