//! Answers of the gateway itself, and what every answer carries.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::REFERRER_POLICY;
use http::header::{ALLOW, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName};
use http::header::{STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::{Arrival, Body, Gateway, Observed};
use crate::problem::{Envelope, Problem};
use crate::protocols::rest::X_REQUEST_ID;
use crate::telemetry::traffic::Call;

const REQUEST_ID: HeaderName = HeaderName::from_static("request_id");
const REQUEST_ID_ALTERNATIVE: HeaderName = HeaderName::from_static("request-id");
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
/// Headers that mark synthetic traffic (reference: gateway behaviour 21.1).
const SYNTHETIC: [&str; 3] = ["x-is-test", "x-doorman-test", "x-test-request"];

/// The client's request id if it is usable, else a new one (reference: gateway behaviour 3.2).
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable =
        |value: &&HeaderValue| (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    let given = headers.get(X_REQUEST_ID).filter(usable);
    if let Some(given) = given.or_else(|| headers.get(REQUEST_ID_ALTERNATIVE).filter(usable)) {
        return given.clone();
    }
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// A JSON answer with status 200.
pub(super) fn json(text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Own(Some(text.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Own(None));
    *response.status_mut() = status;
    response
}

/// `{"detail": ...}`, the shape of answers from before any route is found.
pub(super) fn detail(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = json(format!(r#"{{"detail":"{text}"}}"#));
    *response.status_mut() = status;
    response
}

/// The one place where a problem becomes an answer.
pub(super) fn problem(problem: &Problem, envelope: Envelope) -> Response<Body> {
    problem.response(envelope).map(|bytes| Body::Own(Some(bytes)))
}

/// Answers one method, and 405 to the others.
pub(super) fn only(parts: &Parts, method: &Method, answer: impl FnOnce() -> Response<Body>) -> Response<Body> {
    if parts.method == *method {
        return answer();
    }
    let mut response = detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Ok(value) = HeaderValue::from_str(method.as_str()) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

impl Gateway {
    /// Adds what every answer carries (reference: gateway behaviour 3.1).
    pub(super) fn add_headers(&self, response: &mut Response<Body>, id: &HeaderValue) {
        // Pages of the management API may bring a policy of their own, which says who may frame them too.
        let has_own_policy =
            matches!(response.body(), Body::Platform(_)) && response.headers().contains_key(CONTENT_SECURITY_POLICY);
        let is_draining = self.draining.load(Ordering::Relaxed) && response.version() != Version::HTTP_2;
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(PERMISSIONS_POLICY, HeaderValue::from_static("geolocation=(), microphone=(), camera=()"));
        if !has_own_policy {
            headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
            headers.insert(CONTENT_SECURITY_POLICY, self.settings.network.content_security_policy.clone());
        }
        if self.settings.server.enforces_https() {
            let value = HeaderValue::from_static("max-age=15552000; includeSubDomains; preload");
            headers.insert(STRICT_TRANSPORT_SECURITY, value);
        }
        headers.insert(X_REQUEST_ID, id.clone());
        headers.insert(REQUEST_ID, id.clone());
        if is_draining {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Counts and logs a request, and an answer of so many bytes.
    pub(super) fn observe(&self, arrival: Arrival<'_>, status: u16, bytes_out: u64, observed: &Observed) {
        let Arrival { parts, client, id, at, .. } = arrival;
        let elapsed = at.elapsed();
        let is_synthetic = SYNTHETIC.iter().any(|name| {
            let value = parts.headers.get(*name).map(HeaderValue::as_bytes).unwrap_or_default();
            [&b"1"[..], b"true", b"yes", b"on"].iter().any(|on| value.eq_ignore_ascii_case(on))
        });
        let (api, username) = (observed.api.as_ref().map(|api| &*api.label), observed.username.as_deref());
        if observed.is_data_plane {
            if !is_synthetic {
                self.metrics.request(status, elapsed);
                if let Some(api) = &observed.api {
                    api.counter.add(status, elapsed);
                }
            }
            self.traffic.record(&Call {
                status,
                elapsed,
                bytes_in: size(&parts.headers) + observed.read.as_ref().map_or(0, |read| read.bytes()),
                bytes_out,
                protocol: observed.protocol,
                api,
                endpoint: observed.endpoint.as_deref(),
                user: username,
                timeouts: observed.timeouts,
                retries: observed.retries,
                is_test: is_synthetic,
            });
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // The log viewer reads the columns of this line.
        tracing::info!(
            request_id = id.to_str().unwrap_or_default(),
            username,
            client_ip = %client.effective,
            api,
            gateway_ms = observed.upstream.map(|upstream| millis(elapsed.saturating_sub(upstream))),
            backend_ms = observed.upstream.map(millis),
            "Endpoint: {} {} | status_code: {status} | Total time: {}ms",
            parts.method,
            parts.uri.path(),
            elapsed.as_millis(),
        );
    }
}

/// Bytes of names and values.
pub(super) fn size(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| name.as_str().len() as u64 + value.len() as u64).sum()
}
