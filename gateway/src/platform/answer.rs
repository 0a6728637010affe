//! What a handler answers, and how it is rendered: once loosely, again only when the strict envelope is asked for.

use std::{borrow::Cow, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};
use utoipa::ToSchema;

use crate::{
    identity::{Busy, Denied},
    problem::{Envelope, Problem, X_BODY_LENGTH, json as to_json, json_response},
    store::StoreError,
};

/// What is answered when there is nothing else to say.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Message {
    message: String,
}

/// An answer in the envelope.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    status: StatusCode,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Message(Cow<'static, str>),
    Data(Value),
    /// JSON as it came from elsewhere.
    Raw(Arc<RawValue>),
    /// Members that the strict envelope repeats beside `response`.
    Repeated(Map<String, Value>),
}

#[derive(Serialize)]
struct Wrapped<'a, T> {
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a T>,
    #[serde(flatten)]
    repeated: Option<&'a Map<String, Value>>,
}

impl Answer {
    /// 200 with a message.
    pub(super) fn message(message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::OK, content: Content::Message(message.into()) }
    }

    /// 201 with a message.
    pub(super) fn created(message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::CREATED, ..Self::message(message) }
    }

    /// 202 with a message.
    pub(super) fn accepted(message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::ACCEPTED, ..Self::message(message) }
    }

    /// 200 with data.
    pub(super) fn data(data: impl Into<Value>) -> Self {
        Self { status: StatusCode::OK, content: Content::Data(data.into()) }
    }

    /// 200 with JSON as it came from elsewhere.
    pub(super) fn raw(data: Arc<RawValue>) -> Self {
        Self { status: StatusCode::OK, content: Content::Raw(data) }
    }

    /// The same with another status.
    pub(super) fn with(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// 200 with a token.
    pub(super) fn token(name: &str, token: String) -> Self {
        let data = Map::from_iter([(name.to_owned(), Value::from(token))]);
        Self { status: StatusCode::OK, content: Content::Repeated(data) }
    }

    fn body(&self, envelope: Envelope) -> Bytes {
        match (&self.content, envelope) {
            (Content::Message(message), Envelope::Loose) => to_json(&json!({ "message": message })),
            (Content::Message(message), Envelope::Strict) => {
                let status_code = self.status.as_u16();
                to_json(&Wrapped::<()> { status_code, message: Some(message), response: None, repeated: None })
            }
            (Content::Data(data), Envelope::Loose) => to_json(data),
            (Content::Data(data), Envelope::Strict) => self.wrapped(data, None),
            (Content::Raw(data), Envelope::Loose) => to_json(data),
            (Content::Raw(data), Envelope::Strict) => self.wrapped(data, None),
            (Content::Repeated(data), Envelope::Loose) => to_json(data),
            (Content::Repeated(data), Envelope::Strict) => self.wrapped(data, Some(data)),
        }
    }

    fn wrapped(&self, data: &impl Serialize, repeated: Option<&Map<String, Value>>) -> Bytes {
        to_json(&Wrapped { status_code: self.status.as_u16(), message: None, response: Some(data), repeated })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, self.body(Envelope::Loose)).map(Body::from);
        response.extensions_mut().insert(self);
        response
    }
}

/// Renders a response again in the strict envelope, if it is one of those that have an envelope.
pub(super) fn wrap(mut response: Response) -> Response {
    let extensions = response.extensions_mut();
    let body = if let Some(answer) = extensions.remove::<Answer>() {
        answer.body(Envelope::Strict)
    } else if let Some(problem) = extensions.remove::<Problem>() {
        problem.response(Envelope::Strict).into_body()
    } else {
        return response;
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
    response.headers_mut().insert(X_BODY_LENGTH, body.len().into());
    response.map(|_| Body::from(body))
}

/// JSON without an envelope.
pub(super) fn bare(status: StatusCode, value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(to_json(value)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `{"detail": ...}`, which has no envelope.
pub(super) fn detail(status: StatusCode, reason: &str) -> Response {
    bare(status, &json!({ "detail": reason }))
}

/// Why a handler gives no answer.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// In the envelope.
    Problem(Problem),
    /// `{"detail": ...}`, which has no envelope.
    Detail(StatusCode, Cow<'static, str>),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Detail(denied.status(), denied.reason().into())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Problem(store_failed(error))
    }
}

/// A refusal with a code.
pub(super) fn refused(status: StatusCode, code: &'static str, message: &'static str) -> Refusal {
    Problem::new(status, code, message).into()
}

/// `{"detail": ...}`, without code and envelope.
pub(super) fn plainly(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::Detail(status, reason.into())
}

/// 400 with a code.
pub(super) fn bad(code: &'static str, message: &'static str) -> Refusal {
    refused(StatusCode::BAD_REQUEST, code, message)
}

/// The same with a message of its own; what is too long for a message is cut.
pub(super) fn bad_because(code: &'static str, message: String) -> Refusal {
    const LONGEST: usize = 255;
    let message: String = message.chars().take(LONGEST).collect();
    Problem::new(StatusCode::BAD_REQUEST, code, message).into()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Detail(status, reason) => detail(status, &reason),
        }
    }
}

/// Anything that has no code of its own.
pub(super) const UNEXPECTED: &str = "GTW999";

/// What is answered when a store is away.
pub(super) fn store_failed(error: StoreError) -> Problem {
    let denied = Denied::from(error);
    Problem::new(denied.status(), UNEXPECTED, denied.reason())
}

/// What is answered when too much work on passwords is under way.
pub(super) fn busy(error: Busy) -> Problem {
    tracing::warn!(%error, "a call was turned away");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, UNEXPECTED, Denied::Unavailable.reason())
        .header(header::RETRY_AFTER, 5)
}

/// What is answered when something of our own fails; the cause is for the log.
pub(super) fn failed(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "a call of the platform API failed");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, UNEXPECTED, "An unexpected error occurred")
}

/// What routes answer that don't say it in their own words.
impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        detail(self.status(), self.reason())
    }
}
