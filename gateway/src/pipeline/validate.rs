//! The validate stage: is the body what the endpoint demands? (reference: gateway behaviour 11 and 16)
//!
//! Bodies are read only where rules or changes ask for it; all others stream. Where there are rules no body passes that
//! they can't be applied to, so that none is a way around them.

use bytes::Bytes;
use doorman_crds::api::Validation;
use http::StatusCode;
use serde_json::Value;

use super::call::Call;
use crate::problem::Problem;
use crate::protocols::rest;
use crate::request::json;
use crate::request::media::{self, Media};
use crate::validation::{self, soap};

/// As what a body is read before it goes upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// As nothing: it passes as it is.
    Unread,
    Json,
    Xml,
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
    let headers = &call.parts.headers;
    match media::media(headers) {
        _ if !carries_body => Ok(if has_rules { Reading::Json } else { Reading::Unread }),
        None if has_rules => Err(refused("The body can't be validated: its Content-Type must be of JSON or XML")),
        Some(_) if has_rules && !media::has_one_reading(headers) => {
            Err(refused("The body can't be validated: it needs one Content-Type, UTF-8, and no Content-Encoding"))
        }
        Some(Media::Xml) if has_rules => Ok(Reading::Xml),
        Some(Media::Json) if media::has_one_reading(headers) => Ok(Reading::Json),
        _ => Ok(Reading::Unread),
    }
}

/// Checks a body. One that is absent is a value without fields.
///
/// # Errors
/// `GTW011` with what is wrong.
pub(super) fn validate(call: &Call<'_>, reading: Reading, body: Option<&Bytes>) -> Result<(), Problem> {
    let value = match (reading, body.filter(|body| !body.is_empty())) {
        (Reading::Unread, _) => return Ok(()),
        (_, None) => Value::Null,
        (Reading::Json, Some(body)) => {
            json::parse(body).map_err(|error| refused(format!("The body is not valid JSON: {error}")))?
        }
        (Reading::Xml, Some(body)) => soap::payload(body).map_err(|error| refused(error.to_string()))?,
    };
    let rules = call.endpoint.validation().into_iter().flat_map(Validation::rules);
    validation::check(rules, &value).map_err(refused)
}

fn refused(message: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "GTW011", message)
}
