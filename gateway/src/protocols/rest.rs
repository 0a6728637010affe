//! REST: `/api/rest/{name}/{version}/{path}` to the same method on the endpoint's upstream path.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use doorman_crds::api::Method;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    HeaderName, USER_AGENT,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use smallvec::SmallVec;
use tokio::time::timeout;

use crate::accounting::UpstreamKey;
use crate::pipeline::{Body, LeftAlone};
use crate::problem::{Problem, X_BODY_LENGTH};
use crate::request::forwarded::forwarded;
use crate::request::media::{self, Media, media};
use crate::snapshot::{CompiledApi, Match, Server};
use crate::transform::{change_headers, change_query};
use crate::upstream::{RequestBody, ResponseBody};

/// Header with the id of a request, towards upstream and client.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_USER_EMAIL: HeaderName = HeaderName::from_static("x-user-email");
const X_DOORMAN_USER: HeaderName = HeaderName::from_static("x-doorman-user");
const X_GATEWAY_TIME: HeaderName = HeaderName::from_static("x-gateway-time");
const X_BACKEND_TIME: HeaderName = HeaderName::from_static("x-backend-time");
const SOAP_ACTION: HeaderName = HeaderName::from_static("soapaction");

/// Client headers that pass without being listed (reference: gateway behaviour 10.1).
const FORWARDED: [HeaderName; 5] = [SOAP_ACTION, CONTENT_TYPE, ACCEPT, USER_AGENT, ACCEPT_ENCODING];

/// The endpoint method a call asks for; `None` when the protocol has no such method. `HEAD` asks for the `GET` endpoint.
pub fn endpoint_method(method: &http::Method) -> Option<Method> {
    Some(match *method {
        http::Method::GET | http::Method::HEAD => Method::Get,
        http::Method::POST => Method::Post,
        http::Method::PUT => Method::Put,
        http::Method::PATCH => Method::Patch,
        http::Method::DELETE => Method::Delete,
        _ => return None,
    })
}

/// Whether a call of this method may carry a body upstream.
pub fn takes_body(method: &http::Method) -> bool {
    !matches!(*method, http::Method::GET | http::Method::HEAD)
}

/// What the upstream is told about a call.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Id of the request.
    pub request_id: &'a HeaderValue,
    /// Name of the signed-in user.
    pub username: Option<&'a str>,
    /// What the upstream is paid with.
    pub key: Option<&'a UpstreamKey>,
    /// Is the server one that the API trusts with its credentials?
    pub is_trusted: bool,
}

/// Builds the upstream request from the parsed form of the call.
///
/// # Errors
/// `GTW011` when the query can't be forwarded as it is.
pub fn upstream_request(
    parts: &Parts,
    api: &CompiledApi,
    endpoint: Match<'_>,
    segments: &[Cow<'_, str>],
    server: &Server,
    caller: Caller<'_>,
    body: RequestBody,
) -> Result<Request<RequestBody>, Problem> {
    let mut target = String::with_capacity(server.base_path.len() + parts.uri.path().len() + 64);
    target.push_str(&server.base_path);
    endpoint.write_path(segments, &mut target);
    let transform = api.api.request_transform.as_ref();
    let query = parts.uri.query().unwrap_or_default();
    let query = match transform.map(|transform| &transform.query).filter(|edits| !edits.is_empty()) {
        Some(edits) => Cow::Owned(change_query(edits, query)),
        None => Cow::Borrowed(query),
    };
    let queries = [server.query.as_deref(), Some(&*query).filter(|query| !query.is_empty())];
    for (query, separator) in queries.into_iter().flatten().zip(['?', '&']) {
        target.push(separator);
        target.push_str(query);
    }
    let target = PathAndQuery::try_from(target)
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "GTW011", "The path or query can't be forwarded"))?;

    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(HOST, server.authority.clone());
    let of_connection = of_connection(&parts.headers);
    // Listed or not, a header passes once.
    let listed = api.api.headers.allowed.iter().filter(|name| !FORWARDED.contains(name));
    for name in FORWARDED.iter().chain(listed) {
        if of_connection.iter().any(|other| name.as_str().eq_ignore_ascii_case(other)) {
            continue;
        }
        // What is compressed can't be changed.
        if *name == ACCEPT_ENCODING && api.api.changes_answer_bodies() {
            continue;
        }
        for value in parts.headers.get_all(name) {
            headers.append(name, forwarded(value));
        }
    }
    // Only of what passes, but as the client sent it.
    let passes = |name: &&HeaderName| headers.contains_key(*name);
    let swapped = api.api.headers.authorization_from.as_ref().filter(passes);
    let swapped = swapped.and_then(|name| parts.headers.get(name)).cloned();
    // No change may take it elsewhere under another name.
    if let Some(name) = api.api.headers.authorization_from.as_ref().filter(|_| !caller.is_trusted) {
        headers.remove(name);
    }
    if let Some(transform) = transform {
        change_headers(&transform.headers, &mut headers);
    }
    if let Some(name) = &api.api.headers.authorization_from {
        match swapped.filter(|value| !value.is_empty()) {
            _ if !caller.is_trusted => drop(headers.remove(name)),
            Some(value) => drop(headers.insert(AUTHORIZATION, value)),
            None => {}
        }
    }
    headers.insert(X_REQUEST_ID, caller.request_id.clone());
    // Whatever the client sent under these names is not ours to vouch for.
    headers.remove(X_USER_EMAIL);
    headers.remove(X_DOORMAN_USER);
    if let Some(user) = caller.username.and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert(X_USER_EMAIL, user.clone());
        headers.insert(X_DOORMAN_USER, user);
    }
    if let Some((name, value)) = caller.key.filter(|_| caller.is_trusted) {
        headers.insert(name, value.clone());
    }

    // Many a server waits for the body of a method that has one unless it is told that there is none (RFC 9110, 8.6).
    let may_carry = matches!(parts.method, http::Method::POST | http::Method::PUT | http::Method::PATCH);
    if may_carry && body.is_end_stream() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from(target);
    *request.headers_mut() = headers;
    Ok(request)
}

/// Whether a client says that a field is for its connection only, so that the upstream doesn't get it.
pub fn is_of_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    of_connection(headers).iter().any(|other| name.as_str().eq_ignore_ascii_case(other))
}

/// Names of fields that are for this connection only, as its client says (RFC 9110 7.6.1).
fn of_connection(headers: &HeaderMap) -> SmallVec<[&str; 4]> {
    let lists = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = lists.flat_map(|list| list.split(',')).map(str::trim);
    names.filter(|name| !["keep-alive", "close", ""].iter().any(|option| name.eq_ignore_ascii_case(option))).collect()
}

/// Reads an answer that nobody gets to its end, if that is near, so that its connection can be used again.
fn read_out(body: ResponseBody) {
    const MOST: usize = 64 << 10;
    const LONGEST: Duration = Duration::from_millis(100);
    if body.is_end_stream() || body.size_hint().lower() > MOST as u64 {
        return;
    }
    tokio::spawn(timeout(LONGEST, Limited::new(body, MOST).collect()));
}

/// Turns the upstream's answer into the client's.
///
/// # Errors
/// `GTW005` when the upstream answers 404, `GTW006` when it changes to a protocol nobody asked for.
pub fn client_response(
    request: &Parts,
    answer: Response<ResponseBody>,
    api: &CompiledApi,
    arrived: Instant,
    sent: Instant,
) -> Result<Response<Body>, Problem> {
    let (mut parts, body) = answer.into_parts();
    let transform = api.api.response_transform.as_ref();
    let statuses = transform.map_or(&[][..], |transform| &transform.statuses);
    let other = statuses.iter().find(|(from, _)| *from == parts.status && media(&parts.headers) == Some(Media::Json));
    if let Some((_, other)) = other {
        parts.status = *other;
    } else if parts.status == StatusCode::NOT_FOUND {
        read_out(body);
        return Err(Problem::new(StatusCode::NOT_FOUND, "GTW005", "Endpoint does not exist in backend service"));
    }
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        tracing::warn!(api = &*api.label, "the upstream answers 101, which was not asked for");
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "GTW006", "Internal server error"));
    }
    let mut headers = HeaderMap::with_capacity(24);
    for name in [&CONTENT_TYPE, &CONTENT_ENCODING].into_iter().chain(&api.api.headers.allowed) {
        if headers.contains_key(name) {
            continue;
        }
        for value in parts.headers.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    if let Some(transform) = transform {
        change_headers(&transform.headers, &mut headers);
    }
    if request.method == http::Method::HEAD
        && let Some(length) = parts.headers.get(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, length.clone());
    }
    let millis = |from: Instant, to: Instant| to.saturating_duration_since(from).as_millis();
    headers.insert(X_GATEWAY_TIME, number(millis(arrived, sent)));
    headers.insert(X_BACKEND_TIME, number(millis(sent, Instant::now())));
    // It is the length of what was compressed.
    if let Some(length) = body.size_hint().exact().filter(|_| !media::is_compressed(&headers)) {
        headers.insert(X_BODY_LENGTH, number(u128::from(length)));
    }
    let mut response = Response::new(Body::Upstream(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    // The field itself may not be for the client.
    if media::forbids_changes(&parts.headers) {
        response.extensions_mut().insert(LeftAlone);
    }
    Ok(response)
}

fn number(value: u128) -> HeaderValue {
    HeaderValue::from(u64::try_from(value).unwrap_or(u64::MAX))
}
