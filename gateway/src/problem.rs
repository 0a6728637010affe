//! A refused request, in the one form that every part of the gateway refuses with.
//!
//! In: status, code and message of the reference. Out: a response. The cause of a problem goes to the log of whoever
//! found it; a problem holds only what the client may see.

use std::{borrow::Cow, fmt};

use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use serde_json::Value;

/// Byte length of an enveloped body, before compression.
pub const X_BODY_LENGTH: HeaderName = HeaderName::from_static("x-body-length");

/// Whether platform answers are wrapped (`STRICT_RESPONSE_ENVELOPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// Data as it is, errors as `error_code` and `error_message`.
    Loose,
    /// The status too, as `status_code`; data under `response`.
    Strict,
}

/// Why a request was refused: status, code and message as clients see them.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The status of the response.
    pub status: StatusCode,
    /// The code of the reference; a few answers have none.
    pub code: Option<&'static str>,
    /// What the client reads.
    pub message: Cow<'static, str>,
    /// Headers that belong to the refusal, such as `Retry-After`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// A body of its own, which no envelope changes.
    body: Option<Box<Value>>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    error_message: &'a str,
}

impl Problem {
    /// A refusal with a code.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code: Some(code), message: message.into(), headers: Vec::new(), body: None }
    }

    /// A refusal that the reference gives no code.
    pub fn without_code(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code: None, message: message.into(), headers: Vec::new(), body: None }
    }

    /// A body of more than `limit` bytes (RFC 9110 15.5.14).
    pub fn too_large(limit: u64) -> Self {
        let message = format!("Request entity too large (max: {limit} bytes)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "REQ001", message)
    }

    /// A body that stopped coming (RFC 9110 15.5.9).
    pub fn stalled() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "REQ005", "The request body stopped coming")
            .header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// A body that ended early or is malformed; nothing after it on the connection can be read.
    pub fn broken_body() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "REQ004", "The request body is incomplete")
            .header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// Adds a header to the response.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Answers with this body in place of the usual members.
    #[must_use]
    pub fn body(mut self, body: Value) -> Self {
        self.body = Some(Box::new(body));
        self
    }

    /// The response in full; its status is the problem's in either envelope.
    pub fn response(&self, envelope: Envelope) -> Response<Bytes> {
        let body = match &self.body {
            Some(own) => json(own),
            None => json(&Body {
                status_code: (envelope == Envelope::Strict).then_some(self.status.as_u16()),
                error_code: self.code,
                error_message: &self.message,
            }),
        };
        let mut response = json_response(self.status, body);
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}", self.status.as_u16(), self.code.unwrap_or("(no code)"), self.message)
    }
}

impl std::error::Error for Problem {}

/// In the loose envelope; the platform's outer layer renders it again when the strict one is asked for.
impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        let mut response = self.response(Envelope::Loose).map(|body| axum::body::Body::new(Full::new(body)));
        response.extensions_mut().insert(self);
        response
    }
}

/// Compact JSON. What is given here always has a JSON form; should one not, the body is an empty object.
pub(crate) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).map_or_else(
        |error| {
            tracing::error!(%error, "an answer has no JSON form");
            Bytes::from_static(b"{}")
        },
        Bytes::from,
    )
}

/// An enveloped JSON body, with the headers of one.
pub(crate) fn json_response(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let length = body.len();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(X_BODY_LENGTH, length.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_wrapped_only_in_the_strict_envelope() {
        let problem = Problem::new(StatusCode::FORBIDDEN, "ROLE009", "You do not have permission to create roles");
        let loose = problem.response(Envelope::Loose);
        let strict = problem.response(Envelope::Strict);
        assert_eq!(
            *loose.body(),
            r#"{"error_code":"ROLE009","error_message":"You do not have permission to create roles"}"#
        );
        assert_eq!(
            *strict.body(),
            r#"{"status_code":403,"error_code":"ROLE009","error_message":"You do not have permission to create roles"}"#
        );
        for response in [loose, strict] {
            assert_eq!(response.status(), 403);
            assert_eq!(response.headers()[X_BODY_LENGTH], response.body().len().to_string());
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        }
    }

    #[test]
    fn headers_of_a_problem_are_on_the_response() {
        let problem = Problem::without_code(StatusCode::TOO_MANY_REQUESTS, "slow down").header(header::RETRY_AFTER, 7);
        let response = problem.response(Envelope::Loose);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        assert_eq!(*response.body(), r#"{"error_message":"slow down"}"#);
    }
}
