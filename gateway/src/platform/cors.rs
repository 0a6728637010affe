//! Which origins browsers may call the platform API from: one decision, for preflights, answers and the report
//! that tells of both (`/platform/tools/cors/check`).

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::settings::{Network, Origins};

/// What `*` stands for among methods.
const USUAL_METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH, Method::HEAD];

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

/// The origins that answers can be read from, in words.
pub(super) fn effective_origins(network: &Network) -> Vec<String> {
    match &network.allowed_origins {
        Origins::Any if is_local_only(network) => ["localhost", "127.0.0.1"]
            .iter()
            .flat_map(|host| ["http", "https"].map(|scheme| format!("{scheme}://{host}")))
            .collect(),
        Origins::Any => vec!["*".to_owned()],
        Origins::Listed(list) => list.clone(),
    }
}

/// The methods that a preflight answer lists. Next to credentials, browsers take `*` for a method of that name.
pub(super) fn methods(network: &Network) -> Vec<Method> {
    let mut methods = network.allow_methods.clone();
    if methods.iter().any(|method| method == "*") {
        methods = USUAL_METHODS.to_vec();
    }
    if !methods.contains(&Method::OPTIONS) {
        methods.push(Method::OPTIONS);
    }
    methods
}

/// The header names that a preflight answer lists, as people write them.
pub(super) fn header_names(network: &Network) -> Vec<String> {
    network.allow_headers.0.iter().map(|name| canonical(name.as_str())).collect()
}

/// The origin of a request, to be echoed if it is allowed.
pub(super) fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::ORIGIN).cloned()
}

fn echoed(network: &Network, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    origin.filter(|origin| origin.to_str().is_ok_and(|origin| is_allowed(network, origin))).cloned()
}

/// What an answer to this origin carries.
pub(super) fn on_answers(network: &Network, origin: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(origin) = echoed(network, origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    if network.allow_credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    // Answers depend on who asks, which caches on the way can't see when a cookie tells it.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers
}

/// What the answer to a preflight from this origin carries.
pub(super) fn on_preflights(network: &Network, origin: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = on_answers(network, origin);
    let methods = methods(network).iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let names = header_names(network).join(", ");
    for (name, list) in [(header::ACCESS_CONTROL_ALLOW_METHODS, methods), (header::ACCESS_CONTROL_ALLOW_HEADERS, names)]
    {
        // Both lists are made of tokens, which a header can carry.
        if let Ok(list) = HeaderValue::try_from(list) {
            headers.insert(name, list);
        }
    }
    let is_refused = origin.is_some() && !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    if is_refused && is_local_only(network) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(""));
    }
    headers
}

/// The answer to any OPTIONS request.
pub(super) fn preflight(network: &Network, headers: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.headers_mut() = on_preflights(network, headers.get(header::ORIGIN));
    response
}

/// Adds to a response what browsers want to see on it.
pub(super) fn decorate(network: &Network, origin: Option<&HeaderValue>, response: &mut Response) {
    response.headers_mut().extend(on_answers(network, origin));
}

/// `x-csrf-token` as people write it: `X-CSRF-Token`.
fn canonical(name: &str) -> String {
    let word = |word: &str| match word {
        "csrf" => "CSRF".to_owned(),
        _ => word.split_at_checked(1).map_or_else(String::new, |(first, rest)| first.to_ascii_uppercase() + rest),
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}
