//! Cross-origin calls from browsers to APIs (Fetch standard; reference: gateway behaviour 18).
//!
//! A preflight needs no token and tells what the API allows; answers of a call say whether its origin may read them,
//! refusals of the gateway too, since a script could not tell them from a broken network otherwise.

use doorman_crds::api::Cors;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue};

/// The origin of a request, where this API lets it in.
fn allowed<'a>(cors: &Cors, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
    let origin = request.get(ORIGIN)?;
    origin.to_str().is_ok_and(|text| cors.allows_origin(text)).then_some(origin)
}

/// What a preflight is told.
pub(super) fn preflight(cors: &Cors, request: &HeaderMap, answer: &mut HeaderMap) {
    decorate(cors, request, answer);
    if request.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, cors.methods.clone());
    }
    if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        // With credentials `*` means a header of that name, so what is asked for is what is allowed.
        let any = || if cors.allow_credentials { asked.clone() } else { HeaderValue::from_static("*") };
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, cors.headers.clone().unwrap_or_else(any));
    }
}

/// What an answer says to the browser that waits for it.
pub(super) fn decorate(cors: &Cors, request: &HeaderMap, answer: &mut HeaderMap) {
    if !request.contains_key(ORIGIN) {
        return;
    }
    answer.append(VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = allowed(cors, request) else { return };
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(exposed) = &cors.exposed {
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
    }
}
