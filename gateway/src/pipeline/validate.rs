//! The validate stage: is the body what the endpoint demands? (reference: gateway behaviour 11 and 16)
//!
//! Bodies are read only where rules or changes ask for it; all others stream. Where there are rules no body passes that
//! they can't be applied to, so that none is a way around them.

use bytes::Bytes;
use doorman_crds::api::Validation;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};

use super::call::Call;
use crate::problem::Problem;
use crate::protocols::rest;
use crate::request::forwarded::forwarded;
use crate::request::media::{self, Media, Readable};
use crate::validation::{self, Content, json, soap};

/// As what a body is read before it goes upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// As nothing: it passes as it is.
    Unread,
    /// As a value without fields: there is none.
    Nothing,
    Body(Readable),
}

impl Reading {
    pub(super) fn is_json(self) -> bool {
        matches!(self, Self::Body(Readable { media: Media::Json, .. }))
    }
}

/// How the body of a call is to be read.
///
/// # Errors
/// `GTW011` where there are rules and a body that they can't be applied to.
pub(super) fn reading(call: &Call<'_>, carries_body: bool) -> Result<Reading, Problem> {
    let has_rules = call.endpoint.validation().is_some();
    let is_changed = call.api.api.request_transform.as_ref().is_some_and(|transform| transform.body.is_some());
    // The bodies of other methods don't go upstream.
    if !(has_rules || is_changed) || !rest::takes_body(&call.parts.method) {
        return Ok(Reading::Unread);
    }
    if !carries_body {
        return Ok(if has_rules { Reading::Nothing } else { Reading::Unread });
    }
    let headers = &call.parts.headers;
    if has_rules && rest::is_of_connection(headers, &CONTENT_TYPE) {
        return Err(unreadable("Connection names its Content-Type"));
    }
    match media::readable(&as_sent(headers)) {
        Ok(body) if has_rules || body.media == Media::Json => Ok(Reading::Body(body)),
        Err(why) if has_rules => Err(unreadable(why)),
        _ => Ok(Reading::Unread),
    }
}

/// What a body is said to be, as the upstream is told: what is taken away from a value makes no other body of it.
fn as_sent(headers: &HeaderMap) -> HeaderMap {
    let mut sent = HeaderMap::with_capacity(2);
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        for value in headers.get_all(&name) {
            sent.append(&name, forwarded(value));
        }
    }
    sent
}

/// Checks a body. One that is absent is a value without fields.
///
/// # Errors
/// `GTW011` with what is wrong.
pub(super) fn validate(call: &Call<'_>, reading: Reading, body: Option<&Bytes>) -> Result<(), Problem> {
    let value = match (reading, body.filter(|body| !body.is_empty())) {
        (Reading::Unread, _) => return Ok(()),
        (Reading::Nothing, _) | (Reading::Body(_), None) => Content::Null,
        (Reading::Body(Readable { is_ascii: true, .. }), Some(body)) if !body.is_ascii() => {
            return Err(unreadable("it has more than us-ascii"));
        }
        (Reading::Body(Readable { media: Media::Json, .. }), Some(body)) => {
            json::parse(body).map_err(|error| refused(format!("The body is not valid JSON: {error}")))?
        }
        (Reading::Body(Readable { media: Media::Xml, .. }), Some(body)) => {
            soap::payload(body).map_err(|error| refused(error.to_string()))?
        }
    };
    let rules = call.endpoint.validation().into_iter().flat_map(Validation::rules);
    validation::check(rules, &value).map_err(refused)
}

fn unreadable(why: impl std::fmt::Display) -> Problem {
    refused(format!("The body can't be validated: {why}"))
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "GTW011", message)
}
