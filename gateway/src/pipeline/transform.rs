//! The transform stage, both ways, and the envelope around answers (reference: gateway behaviour 3.4 and 17).
//!
//! Bodies are changed when they are JSON and there is a change for them. A request's body was read for it before; an
//! answer's is read here, up to a bound, and passes unchanged when it is larger. The envelope reads nothing.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use doorman_crds::api::BodyEdits;
use http::header::{CONTENT_LENGTH, HeaderName};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::body::Framed;
use super::call::{Call, upstream_failed};
use super::validate::Reading;
use super::{Body, decompress};
use crate::problem::{Problem, X_BODY_LENGTH};
use crate::protocols::rest;
use crate::request::media::{self, Media};
use crate::transform;
use crate::upstream::{ResponseBody, UpstreamError};

/// Largest answer that is changed. Answers are held whole for it, so this times the calls in flight is memory; it is
/// eight times what a request may hold unless that was raised.
const MAX_CHANGED: usize = 8 << 20;
/// Fields that are about the bytes of a body.
pub(super) const OF_BYTES: [HeaderName; 4] = [
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// The body to send upstream instead of the client's. A change that fails is left out.
pub(super) fn request_body(call: &Call<'_>, reading: Reading, body: &mut Bytes) {
    let edits = call.api.api.request_transform.as_ref().and_then(|transform| transform.body.as_ref());
    let Some(edits) = edits.filter(|_| reading.is_json() && !body.is_empty()) else { return };
    match transform::change_body(edits, body) {
        Ok(changed) => *body = changed.into(),
        Err(error) => tracing::warn!(api = &*call.api.label, %error, "a request is not transformed"),
    }
}

/// Makes the client's answer of the upstream's.
///
/// # Errors
/// Those of [`rest::client_response`], and what comes of an upstream that breaks off while its answer is read.
pub(super) async fn respond(
    call: &Call<'_>,
    answer: Response<ResponseBody>,
    sent: Instant,
) -> Result<Response<Body>, Problem> {
    let is_changed = is_changed(call, answer.status(), answer.headers());
    let response = rest::client_response(call.parts, answer, call.api, call.arrived, sent)?;
    let mut response = decompress::decompress(call.parts, is_changed, response);
    if !is_changed {
        return Ok(response);
    }
    if media::is_compressed(response.headers()) {
        tracing::warn!(api = &*call.api.label, "an answer is compressed, unasked for, and passes unchanged");
        return Ok(response);
    }
    let (api, is_head) = (&call.api.api, call.parts.method == Method::HEAD);
    if let Some(edits) = api.response_transform.as_ref().and_then(|transform| transform.body.as_ref()) {
        if is_head {
            // How long the answer would be is only known when there is one.
            response.headers_mut().remove(CONTENT_LENGTH);
        } else {
            response = changed(call, edits, response).await?;
        }
    }
    if api.envelope {
        response = wrapped(response, is_head);
    }
    let length = response.body().size_hint().exact();
    let headers = response.headers_mut();
    for name in &OF_BYTES {
        headers.remove(name);
    }
    match length {
        Some(length) => drop(headers.insert(X_BODY_LENGTH, length.into())),
        None => drop(headers.remove(X_BODY_LENGTH)),
    }
    Ok(response)
}

/// Is there something to do about the body of an answer?
fn is_changed(call: &Call<'_>, status: StatusCode, headers: &HeaderMap) -> bool {
    // Answers without a body, and parts of one.
    const UNCHANGED: [StatusCode; 4] =
        [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED];
    call.api.api.changes_answer_bodies() && !UNCHANGED.contains(&status) && media::media(headers) == Some(Media::Json)
}

/// Reads the answer and changes it. One that is too large, or can't be changed, passes as it is.
async fn changed(call: &Call<'_>, edits: &BodyEdits, response: Response<Body>) -> Result<Response<Body>, Problem> {
    let (parts, mut body) = response.into_parts();
    let is_too_large = |size: usize| {
        let is_too_large = size > MAX_CHANGED;
        if is_too_large {
            tracing::warn!(api = &*call.api.label, "an answer is larger than {MAX_CHANGED} bytes and passes unchanged");
        }
        is_too_large
    };
    let expected = body.size_hint().lower();
    if is_too_large(usize::try_from(expected).unwrap_or(usize::MAX)) {
        return Ok(Response::from_parts(parts, body));
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| upstream_failed(call.api, &UpstreamError::of_body(error)))?;
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data);
        }
        if is_too_large(read.len()) {
            let body = Framed::after(read.freeze(), body);
            return Ok(Response::from_parts(parts, Body::Framed(Box::new(body))));
        }
    }
    let read = read.freeze();
    let body = match transform::change_body(edits, &read) {
        _ if read.is_empty() => read,
        Ok(changed) => changed.into(),
        Err(error) => {
            tracing::warn!(api = &*call.api.label, %error, "an answer is not transformed");
            read
        }
    };
    Ok(Response::from_parts(parts, Body::Own(Some(body))))
}

/// Puts the status and the payload into an object, without looking at the payload.
fn wrapped(mut response: Response<Body>, is_head: bool) -> Response<Body> {
    let status = response.status().as_u16();
    let before = format!(r#"{{"status_code":{status},"response":"#);
    let (empty, after) = (format!(r#"{{"status_code":{status}}}"#), Bytes::from_static(b"}"));
    if !is_head {
        return response.map(|body| Body::Framed(Box::new(Framed::around(before.into(), body, after, empty.into()))));
    }
    let headers = response.headers_mut();
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length {
        let longer = if length == 0 { empty.len() } else { before.len() + after.len() };
        headers.insert(CONTENT_LENGTH, (length + longer as u64).into());
    }
    response
}
