//! A request's way through the gateway, in order, on one screen.
//!
//! parse -> find -> admit (address) -> identify -> admit (subscription, group, role) -> validate -> transform -> call ->
//! transform -> respond. Each stage either passes the request on or ends it with a [`Problem`]; whatever happens,
//! [`Gateway::handle`] adds the headers every answer carries and observes the outcome.

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

use crate::client::{RequestId, Scheme};
use crate::identity::{Denied, Identity, Principal};
use crate::problem::{Envelope, Problem};
use crate::protocols::rest;
use crate::request::{self, Segments};
use crate::security::Security;
use crate::settings::Settings;
use crate::snapshot::{CompiledApi, Entry, Snapshot};
use crate::telemetry::audit::{Action, Event};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::{Protocol, Traffic};

mod body;
mod call;
mod cors;
mod patience;
mod respond;
mod scrape;
mod transform;
mod validate;

pub use body::Body;
use call::Call;
pub use call::RetryBudget;

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
    /// How many failed calls may still be repeated.
    pub retries: RetryBudget,
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

/// A request as it came in, without its body.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    parts: &'a Parts,
    peer: Peer,
    id: &'a HeaderValue,
    at: Instant,
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
        let arrival = Arrival { parts: &parts, peer, id: &id, at: arrived };
        let mut response = match self.admit_to_the_gateway(&parts, peer) {
            Ok(()) => {
                let outcome = self.route(arrival, body, &mut observed).await;
                outcome.unwrap_or_else(|problem| {
                    self.audit(&problem, arrival, &observed);
                    let is_wrapped = observed.api.as_ref().is_some_and(|api| api.api.envelope);
                    respond::problem(&problem, if is_wrapped { Envelope::Strict } else { Envelope::Loose })
                })
            }
            // Always tells the status in the body (reference: platform API 1.7).
            Err(problem) => {
                self.audit(&problem, arrival, &observed);
                respond::problem(&problem, Envelope::Strict)
            }
        };
        if let Some(api) = &observed.api {
            cors::decorate(&api.api.cors, &parts.headers, response.headers_mut());
        }
        self.add_headers(&mut response, &id);
        self.observe(&parts, &response, peer, &id, arrived, &observed);
        response
    }

    /// Refusals that belong in the audit trail (reference: gateway behaviour 21.4).
    fn audit(&self, problem: &Problem, arrival: Arrival<'_>, observed: &Observed) {
        let Arrival { parts, peer, id, .. } = arrival;
        let (action, reason) = match problem.code {
            Some("SEC010") => (Action::IpGlobalDeny, "not_in_whitelist"),
            Some("SEC011") => (Action::IpGlobalDeny, "blacklisted"),
            Some("API010") => (Action::IpApiDeny, "not_in_whitelist"),
            Some("API011") => (Action::IpApiDeny, "blacklisted"),
            Some("REQ001") => (Action::RequestBodySizeExceeded, "too_large"),
            _ => return,
        };
        let client = self.security.active().client(&parts.headers, peer.address);
        let address = client.effective.to_string();
        let path = parts.uri.path();
        let target = match action {
            Action::IpApiDeny => observed.api.as_ref().map_or(path, |api| &api.label),
            Action::RequestBodySizeExceeded => path,
            _ => &address,
        };
        let forwarded = parts.headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let details = serde_json::json!({ "reason": reason, "xff": forwarded, "source_ip": client.peer });
        Event::new(action, observed.username.as_deref().unwrap_or_default(), target, "blocked")
            .details(details)
            .from(Some(client.effective), path, id.to_str().ok())
            .write();
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
        arrival: Arrival<'_>,
        body: Incoming,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        let Arrival { parts, peer, .. } = arrival;
        let segments = request::check(&parts.uri, &parts.headers)
            .and_then(|()| request::segments(parts.uri.path()))
            .map_err(|refused| Problem::new(refused.status(), "GTW011", refused.to_string()))?;
        match segments.iter().map(AsRef::as_ref).take(3).collect::<smallvec::SmallVec<[&str; 3]>>().as_slice() {
            ["api", "rest", ..] => self.rest(arrival, body, &segments, observed).await,
            ["api", "health"] => {
                observed.is_data_plane = false;
                Ok(respond::only(parts, &Method::GET, || respond::json(r#"{"status":"online"}"#)))
            }
            // The platform's, though their paths are not.
            ["api", "status" | "caches"] => {
                observed.is_data_plane = false;
                Ok(self.platform(arrival, body).await)
            }
            ["metrics"] => Ok(respond::only(parts, &Method::GET, || self.scraped(parts, peer))),
            ["platform", ..] => Ok(self.platform(arrival, body).await),
            _ => Ok(respond::detail(StatusCode::NOT_FOUND, "Not Found")),
        }
    }

    /// The management API is a web application of its own; it never fails, it answers.
    async fn platform(&self, arrival: Arrival<'_>, body: Incoming) -> Response<Body> {
        let Arrival { parts, peer, id, .. } = arrival;
        let mut request = Request::new(axum::body::Body::new(body));
        request.method_mut().clone_from(&parts.method);
        request.uri_mut().clone_from(&parts.uri);
        *request.version_mut() = parts.version;
        request.headers_mut().clone_from(&parts.headers);
        request.extensions_mut().insert(self.security.active().client(&parts.headers, peer.address));
        request.extensions_mut().insert(peer.scheme);
        request.extensions_mut().insert(RequestId(id.clone()));
        match self.platform.clone().oneshot(request).await {
            Ok(response) => response.map(Body::Platform),
            Err(never) => match never {},
        }
    }

    async fn rest(
        &self,
        arrival: Arrival<'_>,
        body: Incoming,
        segments: &Segments<'_>,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        let Arrival { parts, peer, id, at } = arrival;
        if parts.method == Method::OPTIONS {
            return Ok(self.preflight(parts, segments));
        }
        let Some(method) = rest::endpoint_method(&parts.method) else {
            return Ok(respond::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
        };
        let settings = self.settings.live();
        let limit = settings.limits.of_path(parts.uri.path(), settings.limits.rest());
        drop(settings);
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
        let told = rest::Caller { request_id: id, username: caller.as_ref().map(|principal| &*principal.username) };
        self.call(Call { parts, api: &api, endpoint, path, told, arrived: at, limit }, body, observed).await
    }

    /// What a browser may do; needs no token and tells nothing of APIs that don't exist.
    fn preflight(&self, parts: &Parts, segments: &Segments<'_>) -> Response<Body> {
        let mut answer = respond::empty(StatusCode::NO_CONTENT);
        let snapshot = self.snapshot.load();
        let [_, _, name, version, path @ ..] = segments.as_slice() else { return answer };
        let Some(Entry::Served(api)) = snapshot.find(name, version) else { return answer };
        if self.settings.network.strict_options && !api.paths.has(path) {
            return respond::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        cors::preflight(&api.api.cors, &parts.headers, answer.headers_mut());
        answer
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

/// Refuses a body that says itself that it is too large; what says nothing is counted while it is read.
fn bounded(parts: &Parts, limit: u64) -> Result<(), Problem> {
    let length =
        parts.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) { Err(Problem::too_large(limit)) } else { Ok(()) }
}
