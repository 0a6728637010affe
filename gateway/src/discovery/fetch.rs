//! One document from the servers of an API, or from a URL of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use doorman_crds::api::UpstreamAddress;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, timeout, timeout_at};

use super::Document;
use crate::request::media::is_compressed;
use crate::settings::table::Upstream;
use crate::snapshot::{CompiledApi, Server};
use crate::upstream::{CallTimeouts, Pool, Pools, RequestBody};

/// Longest wait for one server.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for all of them.
const LONGEST: Duration = Duration::from_secs(90);
/// Most bytes of a document.
const MOST_BYTES: usize = 10 << 20;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("doorman-gateway/", env!("CARGO_PKG_VERSION")));

/// Where a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On each server of the API, below its base path.
    OnServers(PathAndQuery),
    /// Somewhere of its own.
    Elsewhere(UpstreamAddress, PathAndQuery),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnServers(path) => write!(out, "{path}"),
            Self::Elsewhere(address, path) => {
                let scheme = if address.tls { "https" } else { "http" };
                write!(out, "{scheme}://{}{path}", address.authority)
            }
        }
    }
}

impl Place {
    /// A path on the servers of an API.
    ///
    /// # Errors
    /// When it is none.
    pub fn path(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err(format!("`{text}` must be a path"));
        }
        let slash = if text.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{text}").parse().map_err(|error| format!("`{text}` is not a path: {error}"))?;
        Ok(Self::OnServers(path))
    }

    /// The same, or a URL.
    ///
    /// # Errors
    /// When it is neither, or a URL that is never called.
    pub fn path_or_url(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return Self::path(text);
        }
        let address: UpstreamAddress = text.parse()?;
        let uri: Uri = text.parse().map_err(|error| format!("`{text}` is not a URL: {error}"))?;
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self::Elsewhere(UpstreamAddress { base_path: String::new(), query: None, ..address }, path))
    }
}

/// A server and what it is asked for.
struct Target {
    pool: Arc<Pool>,
    authority: HeaderValue,
    path: PathAndQuery,
}

impl Target {
    /// Below the base path of a server, and with its query.
    fn on(server: &Server, path: &PathAndQuery) -> Result<Self, String> {
        let queries = [server.query.as_deref(), path.query()].into_iter().flatten().filter(|query| !query.is_empty());
        let query = queries.collect::<Vec<_>>().join("&");
        let separator = if query.is_empty() { "" } else { "?" };
        let path = format!("{}{}{separator}{query}", server.base_path, path.path());
        let path = path.parse().map_err(|error| format!("{path}: {error}"))?;
        Ok(Self { pool: server.pool.clone(), authority: server.authority.clone(), path })
    }

    fn at(address: &UpstreamAddress, path: &PathAndQuery, api: &CompiledApi, pools: &Pools) -> Result<Self, String> {
        // What the API says of TLS, its certificate above all, is for its own servers.
        let own = api.servers.all().iter().map(|server| &server.pool).find(|pool| pool.is_of(address));
        let authority = HeaderValue::from_str(address.authority.as_str()).map_err(|error| error.to_string())?;
        Ok(Self { pool: own.cloned().unwrap_or_else(|| pools.get(address, None)), authority, path: path.clone() })
    }
}

/// What the first server answers that answers with 200; each is asked in turn.
///
/// # Errors
/// Why the last of them didn't, for the log.
pub(super) async fn fetch<D: Document>(
    pools: &Pools,
    settings: &Upstream,
    api: &CompiledApi,
    place: &Place,
) -> Result<Bytes, String> {
    let timeouts = api.timeouts(settings);
    let targets: Vec<_> = match place {
        Place::OnServers(path) => api.servers.all().iter().map(|server| Target::on(server, path)).collect(),
        Place::Elsewhere(address, path) => vec![Target::at(address, path, api, pools)],
    };
    let end = Instant::now() + LONGEST;
    let mut failure = "there is no server".to_owned();
    for target in targets {
        let target = target?;
        let asked = timeout(PATIENCE, ask::<D>(&target, &timeouts));
        let why = match timeout_at(end, asked).await {
            Ok(Ok(Ok(answer))) => return Ok(answer),
            Ok(Ok(Err(why))) => why,
            Ok(Err(_)) => format!("no whole answer within {PATIENCE:?}"),
            Err(_) => return Err(format!("no answer within {LONGEST:?}; {failure}")),
        };
        failure = format!("{}: {why}", target.authority.to_str().unwrap_or_default());
    }
    Err(failure)
}

async fn ask<D: Document>(target: &Target, timeouts: &CallTimeouts) -> Result<Bytes, String> {
    let question = D::QUESTION.map(|text| Bytes::from_static(text.as_bytes()));
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = Uri::from(target.path.clone());
    let headers = request.headers_mut();
    headers.insert(HOST, target.authority.clone());
    headers.insert(USER_AGENT, AGENT);
    headers.insert(ACCEPT, HeaderValue::from_static(D::ACCEPT));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if question.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *request.method_mut() = Method::POST;
        *request.body_mut() = RequestBody::Whole(question);
    }
    let answer =
        target.pool.send(request, timeouts, None, true, &mut false).await.map_err(|error| error.to_string())?;
    // A redirect is an answer like any other: it could lead where nothing may be called.
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered {}", answer.status()));
    }
    if is_compressed(answer.headers()) {
        return Err("its answer is compressed, which was not asked for".to_owned());
    }
    match Limited::new(answer.into_body(), MOST_BYTES).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(format!("more than {MOST_BYTES} bytes")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_on_the_servers_or_a_url_that_may_be_called() {
        for (text, shown) in [
            ("/openapi.json", "/openapi.json"),
            ("openapi.json?a=b", "/openapi.json?a=b"),
            ("//other/a", "//other/a"),
            ("", "/"),
        ] {
            for place in [Place::path(text), Place::path_or_url(text)] {
                assert!(matches!(&place, Ok(Place::OnServers(path)) if path == shown), "{text}: {place:?}");
            }
        }
        for (text, shown) in [
            ("http://a/b?wsdl", "http://a/b?wsdl"),
            ("https://a:8443/", "https://a:8443/"),
            ("https://a?wsdl", "https://a/?wsdl"),
            ("HTTP://[::1]:80/x", "http://[::1]/x"),
        ] {
            assert_eq!(Place::path_or_url(text).unwrap().to_string(), shown);
            assert!(Place::path(text).is_err());
        }
        for text in [
            "ftp://a/b",
            "file:///etc/passwd",
            "http://user:password@a/",
            "http://169.254.169.254/latest",
            "http://metadata.google.internal/",
            "http:///a",
            "/a b",
            "/a\r\nX: y",
            "http://a/b c",
        ] {
            assert!(Place::path_or_url(text).is_err(), "{text}");
        }
    }
}
