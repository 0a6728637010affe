//! A request's way through the gateway, in order, on one screen.
//!
//! parse -> find -> admit (address) -> identify -> admit (subscription, group, role) -> call -> respond. Each stage either passes the
//! request on or ends it with a [`Problem`]; whatever happens, [`Gateway::handle`] adds the headers every answer
//! carries and observes the outcome.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use doorman_crds::api::IpRules;
use doorman_crds::role::is_admin_role;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::client::Scheme;
use crate::identity::{Denied, Identity, Principal};
use crate::problem::{Envelope, Problem};
use crate::protocols::rest;
use crate::request::{self, Segments};
use crate::security::Security;
use crate::settings::Settings;
use crate::snapshot::{CompiledApi, Entry, Snapshot};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::{Protocol, Traffic};
use crate::upstream::{CallTimeouts, RequestBody, UpstreamError};

mod body;
mod patience;
mod respond;
mod scrape;

pub use body::Body;

/// Where the security settings are changed.
const SECURITY_SETTINGS: &str = "/platform/security/settings";

/// Everything requests are handled with.
pub struct Gateway {
    /// Settings of the process.
    pub settings: Arc<Settings>,
    /// What is served; replaced as a whole.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Who callers are.
    pub identity: Arc<Identity>,
    /// Who may reach the gateway.
    pub security: Arc<Security>,
    /// The management API.
    pub platform: axum::Router,
    /// What is counted.
    pub metrics: Metrics,
    /// What is counted by minute, API and user.
    pub traffic: Arc<Traffic>,
    /// Whether clients are asked to go elsewhere.
    pub draining: AtomicBool,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Address of the other end of the connection.
    pub address: IpAddr,
    /// Whether TLS ends here.
    pub scheme: Scheme,
}

/// What is known about a request when it is logged and counted.
#[derive(Debug, Default)]
struct Observed {
    is_data_plane: bool,
    protocol: Protocol,
    api: Option<Arc<CompiledApi>>,
    username: Option<Arc<str>>,
    /// Attempts of the upstream that took too long.
    timeouts: u32,
    /// Attempts after the first.
    retries: u32,
}

impl Gateway {
    /// Answers one request; never fails.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let arrived = Instant::now();
        let (parts, body) = request.into_parts();
        let id = respond::request_id(&parts.headers);
        let mut observed = Observed { is_data_plane: parts.uri.path().starts_with("/api/"), ..Observed::default() };
        let mut response = match self.admit_to_the_gateway(&parts, peer) {
            Ok(()) => {
                let outcome = self.route(&parts, body, peer, &id, arrived, &mut observed).await;
                outcome.unwrap_or_else(|problem| respond::problem(&problem, Envelope::Loose))
            }
            // Always tells the status in the body (reference: platform API 1.7).
            Err(problem) => respond::problem(&problem, Envelope::Strict),
        };
        self.add_headers(&mut response, &id);
        self.observe(&parts, &response, peer, &id, arrived, &observed);
        response
    }

    /// The global address filter. The one path it leaves open is where it can be corrected; whoever calls that must hold
    /// a permission.
    fn admit_to_the_gateway(&self, parts: &Parts, peer: Peer) -> Result<(), Problem> {
        if parts.uri.path().trim_end_matches('/') == SECURITY_SETTINGS {
            return Ok(());
        }
        let security = self.security.active();
        security.admit(&parts.headers, peer.address).map_err(|refusal| {
            let client = security.client(&parts.headers, peer.address);
            tracing::warn!(client_ip = %client.effective, reason = refusal.reason(), "An address was refused");
            Problem::new(StatusCode::FORBIDDEN, refusal.code(), refusal.message())
        })
    }

    async fn route(
        &self,
        parts: &Parts,
        body: Incoming,
        peer: Peer,
        id: &HeaderValue,
        arrived: Instant,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        let segments = request::check(&parts.uri, &parts.headers)
            .and_then(|()| request::segments(parts.uri.path()))
            .map_err(|refused| Problem::new(refused.status(), "GTW011", refused.to_string()))?;
        match segments.iter().map(AsRef::as_ref).take(3).collect::<smallvec::SmallVec<[&str; 3]>>().as_slice() {
            ["api", "rest", ..] => self.rest(parts, body, &segments, peer, id, arrived, observed).await,
            ["api", "health"] => {
                observed.is_data_plane = false;
                Ok(respond::only(parts, &Method::GET, || respond::json(r#"{"status":"online"}"#)))
            }
            // The platform's, though their paths are not.
            ["api", "status" | "caches"] => {
                observed.is_data_plane = false;
                Ok(self.platform(parts, body, peer).await)
            }
            ["metrics"] => Ok(respond::only(parts, &Method::GET, || self.scraped(parts, peer))),
            ["platform", ..] => Ok(self.platform(parts, body, peer).await),
            _ => Ok(respond::detail(StatusCode::NOT_FOUND, "Not Found")),
        }
    }

    /// The management API is a web application of its own; it never fails, it answers.
    async fn platform(&self, parts: &Parts, body: Incoming, peer: Peer) -> Response<Body> {
        let mut request = Request::new(axum::body::Body::new(body));
        request.method_mut().clone_from(&parts.method);
        request.uri_mut().clone_from(&parts.uri);
        *request.version_mut() = parts.version;
        request.headers_mut().clone_from(&parts.headers);
        request.extensions_mut().insert(self.security.active().client(&parts.headers, peer.address));
        request.extensions_mut().insert(peer.scheme);
        match self.platform.clone().oneshot(request).await {
            Ok(response) => response.map(Body::Platform),
            Err(never) => match never {},
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of the request, and where to note what is learned")]
    async fn rest(
        &self,
        parts: &Parts,
        body: Incoming,
        segments: &Segments<'_>,
        peer: Peer,
        id: &HeaderValue,
        arrived: Instant,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        if parts.method == Method::OPTIONS {
            return Ok(respond::empty(StatusCode::NO_CONTENT));
        }
        let Some(method) = rest::endpoint_method(&parts.method) else {
            return Ok(respond::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
        };
        let limits = &self.settings.limits;
        let limit = limits.of_path(parts.uri.path(), limits.rest());
        bounded(parts, limit)?;

        let [_, _, name, version, path @ ..] = segments.as_slice() else { return Err(unknown_api()) };
        let snapshot = self.snapshot.load();
        let api = find(&snapshot, name, version)?;
        observed.api = Some(api.clone());
        if let Some(rules) = &api.api.access.ip {
            self.admit_address(rules, parts, peer)?;
        }
        let endpoint = api.paths.find(method, path).ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "GTW003", "Endpoint does not exist for the requested API")
        })?;
        let caller = if api.api.needs_identity { Some(self.admit(&api, &parts.headers).await?) } else { None };
        observed.username = caller.as_ref().map(|principal| principal.username.clone());
        if !api.api.active {
            return Err(Problem::new(StatusCode::FORBIDDEN, "GTW012", "API is disabled"));
        }
        let server = endpoint
            .servers()
            .next()
            .or_else(|| api.servers.next())
            .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "GTW001", "No upstream servers configured"))?;

        let carries_body = rest::takes_body(&parts.method) && !http_body::Body::is_end_stream(&body);
        let (body, progress) = if carries_body {
            let (body, progress) = RequestBody::stream(body, limit);
            (body, Some(progress))
        } else {
            (RequestBody::Empty, None)
        };
        let told = rest::Caller { request_id: id, username: caller.as_ref().map(|principal| &*principal.username) };
        let request = rest::upstream_request(parts, &api, endpoint, path, server, told, body)?;
        let sent = Instant::now();
        let answer = server.pool.send(request, &self.timeouts(&api), progress.as_ref()).await;
        match answer {
            Ok(answer) => rest::client_response(parts, answer, &api, arrived, sent),
            Err(_) if progress.as_ref().is_some_and(|progress| progress.is_too_large()) => Err(too_large(limit)),
            Err(_) if progress.is_some_and(|progress| progress.is_broken()) => Err(Problem::broken_body()),
            Err(UpstreamError::ClientStalled) => Err(Problem::stalled()),
            Err(error) => {
                observed.timeouts += u32::from(matches!(error, UpstreamError::Timeout(_)));
                Err(self.upstream_failed(&api, &error))
            }
        }
    }

    /// Identifies the caller, then asks for subscription, group and role (reference: gateway behaviour 5, step 6).
    async fn admit(&self, api: &CompiledApi, headers: &HeaderMap) -> Result<Principal, Problem> {
        let denied = |denied: Denied| Problem::new(denied.status(), denied.reason(), denied.reason());
        let access = &api.api.access;
        let principal = self.identity.identify(headers).await.map_err(denied)?;
        if !self.identity.is_subscribed(&principal.username, &api.label).await.map_err(denied)?
            && !self.needs_no_subscription(&principal).await.map_err(denied)?
        {
            let text = "You are not subscribed to this resource";
            return Err(Problem::new(StatusCode::FORBIDDEN, text, text));
        }
        if !access.admits_groups(&principal.groups) {
            let text = "You do not have the correct group for this";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, text, text));
        }
        if !access.roles.is_empty() && !access.roles.iter().any(|role| **role == *principal.role) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "GTW014", "Forbidden: role not allowed for this API"));
        }
        Ok(principal)
    }

    /// Administrators, where the settings say so (reference: gateway behaviour 6.5).
    async fn needs_no_subscription(&self, principal: &Principal) -> Result<bool, Denied> {
        if self.settings.limits.admin_needs_subscription {
            return Ok(false);
        }
        let role = self.identity.role(&principal.role).await?;
        Ok(is_admin_role(&principal.role) || role.is_some_and(|role| role.is_admin()))
    }

    /// Reference: gateway behaviour 6.3; the deny list is looked at first.
    fn admit_address(&self, rules: &IpRules, parts: &Parts, peer: Peer) -> Result<(), Problem> {
        let security = self.security.active();
        let client = security.client(&parts.headers, peer.address);
        let address = if rules.trust_forwarded_for == Some(false) { client.peer } else { client.effective };
        let restricted = |code| Err(Problem::new(StatusCode::FORBIDDEN, code, "IP restricted"));
        if rules.deny.iter().any(|net| net.contains(&address)) {
            return restricted("API011");
        }
        if security.skips_address_rules(&parts.headers, peer.address) {
            return Ok(());
        }
        if rules.only_allowed && !rules.allow.iter().any(|net| net.contains(&address)) {
            return restricted("API010");
        }
        Ok(())
    }

    fn timeouts(&self, api: &CompiledApi) -> CallTimeouts {
        let (own, general) = (&api.api.timeouts, &self.settings.upstream);
        CallTimeouts {
            connect: own.connect.unwrap_or(general.connect_timeout),
            read: own.read.unwrap_or(general.read_timeout),
            write: own.write.unwrap_or(general.write_timeout),
            pool: own.pool.unwrap_or(general.pool_timeout),
        }
    }

    /// The cause goes to the log; the client learns the class only (reference: gateway behaviour 10.4).
    fn upstream_failed(&self, api: &CompiledApi, error: &UpstreamError) -> Problem {
        tracing::warn!(api = &*api.label, %error, "upstream call failed");
        if matches!(error, UpstreamError::Timeout(_)) {
            self.metrics.upstream_timeouts.inc();
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "GTW010", "Gateway timeout")
        } else {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "GTW006", "Internal server error")
        }
    }
}

fn find(snapshot: &Snapshot, name: &str, version: &str) -> Result<Arc<CompiledApi>, Problem> {
    match snapshot.find(name, version) {
        Some(Entry::Served(api)) => Ok(api.clone()),
        Some(Entry::Unservable(reason)) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "GTW503",
            format!("The API is defined but can't be served: {reason}"),
        )),
        None => Err(unknown_api()),
    }
}

fn unknown_api() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "GTW001", "API does not exist for the requested name and version")
}

fn too_large(limit: u64) -> Problem {
    let message = format!("Request entity too large (max: {limit} bytes)");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "REQ001", message)
}

/// Refuses a body that says itself that it is too large; what says nothing is counted while it is read.
fn bounded(parts: &Parts, limit: u64) -> Result<(), Problem> {
    let length =
        parts.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) { Err(too_large(limit)) } else { Ok(()) }
}
