//! What to send, how fast, for how long, and which answers are right.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use http::Uri;

/// A load to run. [`Plan::new`] has defaults for everything but the URLs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) targets: Vec<Target>,
    pub(super) origins: Vec<String>,
    /// Requests a second; `None` sends as fast as the connections allow, each as soon as its last answer came.
    pub rate: Option<f64>,
    /// How many connections, each with at most one request under way.
    pub connections: usize,
    /// Ends the load after this time.
    pub duration: Option<Duration>,
    /// Ends the load after this many requests.
    pub requests: Option<u64>,
    /// From writing a request (connecting included) to the last byte of its answer.
    pub timeout: Duration,
    /// Which answers are right.
    pub expect: Expectation,
}

/// Which answers are right.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// Any of these; an empty list takes every status.
    pub statuses: Vec<u16>,
    /// Exactly this many bytes of body.
    pub length: Option<u64>,
    /// A body with this in it.
    pub body_contains: Option<String>,
}

impl Default for Expectation {
    fn default() -> Self {
        Self { statuses: vec![200], length: None, body_contains: None }
    }
}

/// One request, ready to be written.
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) origin: usize,
    pub(super) url: String,
    pub(super) bytes: Vec<u8>,
    pub(super) is_head: bool,
}

/// Why a plan can't be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing to call.
    #[error("no URL given")]
    NoUrl,
    /// Not an absolute `http://` URL.
    #[error("{0:?} is not an absolute http:// URL")]
    Url(String),
    /// A method or header that could break the request's framing.
    #[error("{0:?} has a line break, a blank or nothing where HTTP allows none")]
    Text(String),
}

impl Plan {
    /// Calls `urls` in turn with `GET`, one connection, no pace and no end.
    pub fn new<U: AsRef<str>>(urls: &[U]) -> Result<Self, PlanError> {
        Self::with_request(urls, "GET", &[], None)
    }

    /// Calls `urls` in turn with this method, these headers and this body. An entry may have headers of its own: each
    /// stands behind a tab, as `NAME: VALUE`.
    pub fn with_request<U: AsRef<str>>(
        urls: &[U],
        method: &str,
        headers: &[(String, String)],
        body: Option<&str>,
    ) -> Result<Self, PlanError> {
        if urls.is_empty() {
            return Err(PlanError::NoUrl);
        }
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(PlanError::Text(method.into()));
        }
        let mut fields = header_fields(headers)?;
        if let Some(body) = body {
            write!(fields, "Content-Length: {}\r\n", body.len()).expect("a string takes any text");
        }
        let has_host = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let mut origins = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut targets = Vec::with_capacity(urls.len());
        for entry in urls {
            let mut words = entry.as_ref().split('\t');
            let url = words.next().unwrap_or_default();
            let own: Vec<_> = words.map(header).collect::<Result<_, _>>()?;
            let own = header_fields(&own)?;
            let (authority, path) = split(url)?;
            let host = if has_host { String::new() } else { format!("Host: {authority}\r\n") };
            let address = if authority_has_port(&authority) { authority } else { format!("{authority}:80") };
            let origin = *known.entry(address).or_insert_with_key(|address| {
                origins.push(address.clone());
                origins.len() - 1
            });
            let bytes =
                format!("{method} {path} HTTP/1.1\r\n{host}{fields}{own}\r\n{}", body.unwrap_or("")).into_bytes();
            targets.push(Target { origin, url: url.into(), bytes, is_head: method == "HEAD" });
        }
        Ok(Self {
            targets,
            origins,
            rate: None,
            connections: 1,
            duration: None,
            requests: None,
            timeout: Duration::from_secs(10),
            expect: Expectation::default(),
        })
    }

    /// At `rate` requests a second over `connections` connections.
    #[must_use]
    pub fn at(mut self, rate: f64, connections: usize) -> Self {
        self.rate = (rate > 0.0).then_some(rate);
        self.connections = connections.max(1);
        self
    }

    /// Ends after `duration`.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Ends after `requests` requests.
    #[must_use]
    pub fn counting(mut self, requests: u64) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Takes only answers with this status.
    #[must_use]
    pub fn expecting(mut self, status: u16) -> Self {
        self.expect.statuses = vec![status];
        self
    }

    pub(super) fn target(&self, request: u64) -> &Target {
        let count = self.targets.len() as u64;
        &self.targets[usize::try_from(request % count).unwrap_or(0)]
    }
}

/// A header written as `NAME: VALUE`.
///
/// # Errors
/// When there is no colon.
pub fn header(text: &str) -> Result<(String, String), PlanError> {
    let (name, value) = text.split_once(':').ok_or_else(|| PlanError::Text(text.into()))?;
    Ok((name.trim().into(), value.trim().into()))
}

fn header_fields(headers: &[(String, String)]) -> Result<String, PlanError> {
    let mut fields = String::new();
    for (name, value) in headers {
        let name_is_fine = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !name_is_fine || value.contains(['\r', '\n', '\0']) {
            return Err(PlanError::Text(format!("{name}: {value}")));
        }
        write!(fields, "{name}: {value}\r\n").expect("a string takes any text");
    }
    Ok(fields)
}

fn split(url: &str) -> Result<(String, String), PlanError> {
    let wrong = || PlanError::Url(url.into());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("http") {
        return Err(wrong());
    }
    let authority = uri.authority().ok_or_else(wrong)?.to_string();
    let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    Ok((authority, path))
}

fn authority_has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_written_once_and_in_full() {
        let headers = [("X-Key".to_owned(), "1".to_owned())];
        let plan = Plan::with_request(&["http://127.0.0.1:9/a?b=c"], "POST", &headers, Some("hi")).expect("a plan");
        let text = String::from_utf8(plan.targets[0].bytes.clone()).expect("text");
        assert_eq!(text, "POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:9\r\nX-Key: 1\r\nContent-Length: 2\r\n\r\nhi");
    }

    #[test]
    fn an_entry_may_have_headers_of_its_own() {
        let urls = ["http://a/1\tX-Key: 1\tX-More: 2", "http://a/2"];
        let plan = Plan::with_request(&urls, "GET", &[("X-All".into(), "0".into())], None).expect("a plan");
        let texts = plan.targets.iter().map(|target| String::from_utf8(target.bytes.clone()).expect("text"));
        let expected = [
            "GET /1 HTTP/1.1\r\nHost: a\r\nX-All: 0\r\nX-Key: 1\r\nX-More: 2\r\n\r\n",
            "GET /2 HTTP/1.1\r\nHost: a\r\nX-All: 0\r\n\r\n",
        ];
        assert_eq!(texts.collect::<Vec<_>>(), expected);
        assert_eq!(plan.targets[0].url, "http://a/1", "reports don't repeat tokens");
        assert!(matches!(Plan::new(&["http://a/\tno colon"]), Err(PlanError::Text(_))));
    }

    #[test]
    fn urls_of_one_server_share_an_origin() {
        let plan = Plan::new(&["http://a/1", "http://b:81/", "http://a:80/2"]).expect("a plan");
        assert_eq!(plan.origins, ["a:80", "b:81"]);
        assert_eq!(plan.targets.iter().map(|target| target.origin).collect::<Vec<_>>(), [0, 1, 0]);
    }

    #[test]
    fn what_would_break_the_framing_is_refused() {
        assert!(matches!(Plan::new::<&str>(&[]), Err(PlanError::NoUrl)));
        assert!(matches!(Plan::new(&["https://a/"]), Err(PlanError::Url(_))));
        assert!(matches!(Plan::new(&["/a"]), Err(PlanError::Url(_))));
        let split = [("X".to_owned(), "1\r\nY: 2".to_owned())];
        assert!(matches!(Plan::with_request(&["http://a/"], "GET", &split, None), Err(PlanError::Text(_))));
        assert!(matches!(Plan::with_request(&["http://a/"], "G T", &[], None), Err(PlanError::Text(_))));
    }
}
