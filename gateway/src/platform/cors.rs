//! Which origins browsers may call the platform API from: one decision, for preflights and answers alike.

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::settings::{Network, Origins};

/// May this origin read answers?
pub(super) fn is_allowed(network: &Network, origin: &str) -> bool {
    match &network.allowed_origins {
        Origins::Any => !is_local_only(network) || is_local(origin),
        Origins::Listed(list) => list.iter().any(|listed| listed.eq_ignore_ascii_case(origin)),
    }
}

/// Every origin together with credentials, under the strict rule.
fn is_local_only(network: &Network) -> bool {
    network.allowed_origins == Origins::Any && network.cors_strict && network.allow_credentials
}

fn is_local(origin: &str) -> bool {
    let Some((_, host)) = origin.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https")) else {
        return false;
    };
    let rest = host.strip_prefix("localhost").or_else(|| host.strip_prefix("127.0.0.1"));
    // A host that only begins like this one is another's.
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// The origin of a request, to be echoed if it is allowed.
pub(super) fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::ORIGIN).cloned()
}

fn echoed(network: &Network, origin: Option<HeaderValue>) -> Option<HeaderValue> {
    origin.filter(|origin| origin.to_str().is_ok_and(|origin| is_allowed(network, origin)))
}

/// The answer to any OPTIONS request.
pub(super) fn preflight(network: &Network, headers: &HeaderMap) -> Response {
    let origin = origin(headers);
    let is_refused = origin.is_some() && echoed(network, origin.clone()).is_none();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    let methods = network.allow_methods.iter().map(http::Method::as_str).collect::<Vec<_>>().join(", ");
    let names = network.allow_headers.0.iter().map(|name| canonical(name.as_str())).collect::<Vec<_>>().join(", ");
    for (name, list) in [(header::ACCESS_CONTROL_ALLOW_METHODS, methods), (header::ACCESS_CONTROL_ALLOW_HEADERS, names)]
    {
        // Both lists are made of tokens, which a header can carry.
        if let Ok(list) = HeaderValue::try_from(list) {
            answer.insert(name, list);
        }
    }
    decorate(network, origin, &mut response);
    if is_refused && is_local_only(network) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(""));
    }
    response
}

/// Adds to a response what browsers want to see on it.
pub(super) fn decorate(network: &Network, origin: Option<HeaderValue>, response: &mut Response) {
    let headers = response.headers_mut();
    if let Some(origin) = echoed(network, origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    if network.allow_credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
}

/// `x-csrf-token` as people write it: `X-CSRF-Token`.
fn canonical(name: &str) -> String {
    let word = |word: &str| match word {
        "csrf" => "CSRF".to_owned(),
        _ => word.split_at_checked(1).map_or_else(String::new, |(first, rest)| first.to_ascii_uppercase() + rest),
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}
