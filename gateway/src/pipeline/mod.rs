//! A request's way through the gateway, in order, on one screen.
//!
//! parse -> identify -> find -> admit (address, subscription, group, role) -> account (tier, rules, rate, throttle,
//! bandwidth) -> validate -> transform -> charge -> call -> transform -> respond -> compress. Each stage either passes the request on or
//! ends it with a [`Problem`]; whatever happens, [`Gateway::handle`] adds the headers every answer carries and observes the outcome.
//!
//! A request that is not let in is accounted for all the same: a tier counts every request of its user, and its refusal
//! comes before every other (reference: gateway behaviour 2 and 7.4).

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use doorman_crds::api::{self, IpRules};
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::accounting::{Accounts, Admission, Facts, Meter, Read};
use crate::client::{CallerName, ClientAddress, RequestId, Scheme};
use crate::identity::{self, Denied, Identity, Principal};
use crate::listen::ClientBody;
use crate::platform::SECURITY_SETTINGS;
use crate::problem::{Envelope, Problem};
use crate::protocols::rest;
use crate::request::{self, Segments};
use crate::routings::Routings;
use crate::security::Security;
use crate::settings::Settings;
use crate::snapshot::{CANNOT_BE_SERVED, CompiledApi, Entry, Match, Snapshot};
use crate::telemetry::audit::{Action, Event};
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::{Protocol, Traffic};

mod account;
mod body;
mod call;
mod compress;
mod cors;
mod decompress;
mod respond;
mod scrape;
mod transform;
mod validate;

use account::{BodyLimit, Told};
pub use body::Body;
use call::Call;
pub use compress::{Gzip, LeftAlone};

/// The status of a request whose client went away before the answer, as nginx has it.
const CLIENT_CLOSED: u16 = 499;
const INTERNAL: u16 = 500;

/// Everything requests are handled with.
pub struct Gateway {
    /// Settings of the process.
    pub settings: Arc<Settings>,
    /// What is served; replaced as a whole.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Who callers are.
    pub identity: Arc<Identity>,
    /// What requests cost.
    pub accounts: Arc<Accounts>,
    /// Servers by client key.
    pub routings: Arc<Routings>,
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
    /// Compresses answers, where the settings say so.
    pub gzip: Option<Arc<Gzip>>,
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
    client: ClientAddress,
    id: &'a HeaderValue,
    at: Instant,
}

/// What is known about a request when it is logged and counted.
#[derive(Debug, Default)]
struct Observed {
    is_data_plane: bool,
    protocol: Protocol,
    api: Option<Arc<CompiledApi>>,
    /// The endpoint that was found, as it is counted.
    endpoint: Option<Arc<str>>,
    username: Option<Arc<str>>,
    /// Time that attempts of the upstream took, each to the head of its answer; none when there was none.
    upstream: Option<Duration>,
    /// Attempts of the upstream that took too long.
    timeouts: u32,
    /// Attempts after the first.
    retries: u32,
    /// How the limit stands that the client is told of.
    limit: Option<Told>,
    /// How much of the body was read.
    read: Option<Arc<Read>>,
    /// Where its bytes are counted, if the user's are limited.
    meter: Option<Arc<Meter>>,
}

/// A request on its way. Dropped before it is answered, which is what happens when its client goes away, it is observed all
/// the same.
struct InFlight<'a> {
    gateway: &'a Gateway,
    arrival: Arrival<'a>,
    observed: Observed,
    is_answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let status = if std::thread::panicking() { INTERNAL } else { CLIENT_CLOSED };
            self.gateway.observe(self.arrival, status, 0, &self.observed);
        }
    }
}

/// What a request asks for, and who asks.
struct Asked<'a> {
    arrival: Arrival<'a>,
    /// `None`: there is no token.
    caller: Option<Result<Principal, Denied>>,
    found: Result<Arc<CompiledApi>, Problem>,
    /// The method of the endpoint.
    method: api::Method,
    /// Decoded segments behind name and version.
    path: &'a [Cow<'a, str>],
}

impl Asked<'_> {
    /// The API, if it can be called.
    fn api(&self) -> Option<&CompiledApi> {
        self.found.as_deref().ok()
    }

    fn endpoint(&self) -> Option<Match<'_>> {
        self.api()?.paths.find(self.method, self.path)
    }

    /// Whose token it is, where it counts.
    fn user(&self) -> Option<&Arc<str>> {
        self.caller.as_ref()?.as_ref().ok().map(|principal| &principal.username)
    }
}

impl Gateway {
    /// Answers one request; never fails.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let id = respond::request_id(request.headers());
        logs::about(id.clone(), pin!(self.handle_as(id, request, peer))).await
    }

    async fn handle_as(self: Arc<Self>, id: HeaderValue, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let arrived = Instant::now();
        let (parts, body) = request.into_parts();
        let mut body = ClientBody::new(body, &parts);
        let observed = Observed { is_data_plane: parts.uri.path().starts_with("/api/"), ..Observed::default() };
        let client = self.security.active().client(&parts.headers, peer.address);
        let arrival = Arrival { parts: &parts, peer, client, id: &id, at: arrived };
        let mut request = InFlight { gateway: &self, arrival, observed, is_answered: false };
        let response = match self.admit_to_the_gateway(arrival) {
            Ok(()) => self.route(arrival, body, &mut request.observed).await.unwrap_or_else(|problem| {
                let is_wrapped = request.observed.api.as_ref().is_some_and(|api| api.api.envelope);
                self.refuse(&problem, arrival, &request.observed, is_wrapped)
            }),
            // Always tells the status in the body (reference: platform API 1.7).
            Err(problem) => {
                body.take_little();
                self.refuse(&problem, arrival, &request.observed, true)
            }
        };
        let response = self.answered(arrival, response, &request.observed);
        request.is_answered = true;
        self.metered(response, &request.observed).await
    }

    /// The answer to a request that is refused.
    fn refuse(&self, problem: &Problem, arrival: Arrival<'_>, observed: &Observed, is_wrapped: bool) -> Response<Body> {
        self.audit(problem, arrival, observed);
        respond::problem(problem, if is_wrapped { Envelope::Strict } else { Envelope::Loose })
    }

    /// Gives an answer what every one has, and observes it.
    fn answered(&self, arrival: Arrival<'_>, mut response: Response<Body>, observed: &Observed) -> Response<Body> {
        if let Some(api) = &observed.api {
            cors::decorate(&api.api.cors, &arrival.parts.headers, response.headers_mut());
        }
        self.add_headers(&mut response, arrival.id);
        if let Some(limit) = &observed.limit {
            limit.show(response.headers_mut());
        }
        let length = response.body().size_hint().exact().unwrap_or_default();
        let bytes = respond::size(response.headers()) + length;
        // Nobody is there to read what a client is told that broke off its upload.
        let is_gone = observed.read.as_ref().is_some_and(|read| read.is_cut_off());
        let status = if is_gone { CLIENT_CLOSED } else { response.status().as_u16() };
        self.observe(arrival, status, bytes, observed);
        compress::compress(self.gzip.as_ref(), arrival.parts, response)
    }

    /// Refusals that belong in the audit trail (reference: gateway behaviour 21.4).
    fn audit(&self, problem: &Problem, arrival: Arrival<'_>, observed: &Observed) {
        let Arrival { parts, client, id, .. } = arrival;
        let (action, reason) = match problem.code {
            Some("SEC010") => (Action::IpGlobalDeny, "not_in_whitelist"),
            Some("SEC011") => (Action::IpGlobalDeny, "blacklisted"),
            Some("API010") => (Action::IpApiDeny, "not_in_whitelist"),
            Some("API011") => (Action::IpApiDeny, "blacklisted"),
            Some("REQ001") => (Action::RequestBodySizeExceeded, "too_large"),
            _ => return,
        };
        let rules = observed.api.as_ref().and_then(|api| api.api.access.ip.as_ref());
        let address = match (action, rules) {
            (Action::IpApiDeny, Some(rules)) => self.address_for(rules, arrival),
            _ => client.effective,
        };
        let path = parts.uri.path();
        let target = match action {
            Action::IpApiDeny => observed.api.as_ref().map_or(path, |api| &api.label),
            Action::RequestBodySizeExceeded => path,
            _ => &address.to_string(),
        };
        let forwarded = parts.headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
        let details = serde_json::json!({ "reason": reason, "xff": forwarded, "source_ip": client.peer });
        Event::new(action, observed.username.as_deref().unwrap_or_default(), target, "blocked")
            .details(details)
            .from(Some(address), path, id.to_str().ok())
            .write();
    }

    /// The global address filter. The one path it leaves open is where it can be corrected; whoever calls that must hold
    /// a permission.
    fn admit_to_the_gateway(&self, arrival: Arrival<'_>) -> Result<(), Problem> {
        let Arrival { parts, peer, client, .. } = arrival;
        if parts.uri.path().trim_end_matches('/') == SECURITY_SETTINGS {
            return Ok(());
        }
        self.security.active().admit(&parts.headers, peer.address).map_err(|refusal| {
            tracing::warn!(client_ip = %client.effective, reason = refusal.reason(), "An address was refused");
            Problem::new(StatusCode::FORBIDDEN, refusal.code(), refusal.message())
        })
    }

    async fn route(
        &self,
        arrival: Arrival<'_>,
        body: ClientBody,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        let Arrival { parts, peer, .. } = arrival;
        let segments = match self.parsed(parts) {
            Ok(segments) => segments,
            Err(problem) => {
                // Others may see another end of it.
                body.leave();
                return Err(problem);
            }
        };
        observed.is_data_plane = segments.len() > 1 && segments[0] == "api";
        match segments.iter().map(AsRef::as_ref).take(3).collect::<smallvec::SmallVec<[&str; 3]>>().as_slice() {
            ["api", "rest", ..] => self.rest(arrival, body, &segments, observed).await,
            ["api", "health"] => {
                observed.is_data_plane = false;
                self.account_for_no_call(arrival, observed).await?;
                Ok(respond::only(parts, &Method::GET, || respond::json(r#"{"status":"online"}"#)))
            }
            // The platform's, though their paths are not.
            ["api", "status" | "caches"] => {
                observed.is_data_plane = false;
                self.account_for_no_call(arrival, observed).await?;
                Ok(self.platform(arrival, body, observed).await)
            }
            ["metrics"] => Ok(respond::only(parts, &Method::GET, || self.scraped(parts, peer))),
            ["platform", ..] => Ok(self.platform(arrival, body, observed).await),
            // Pages that tiers leave alone wherever they are served.
            ["health" | "docs" | "redoc" | "openapi.json", ..] => {
                Ok(respond::detail(StatusCode::NOT_FOUND, "Not Found"))
            }
            _ => {
                self.account_for_no_call(arrival, observed).await?;
                Ok(respond::detail(StatusCode::NOT_FOUND, "Not Found"))
            }
        }
    }

    /// The path of a request that has one reading and asks for no other protocol.
    fn parsed<'a>(&self, parts: &'a Parts) -> Result<Segments<'a>, Problem> {
        let segments = request::check(parts.version, &parts.uri, &parts.headers)
            .and_then(|()| request::segments(parts.uri.path()))
            .map_err(|refused| ambiguous(refused, parts.version))?;
        if request::asks_for_websocket(parts) && !self.settings.features.websockets {
            return Err(Problem::new(StatusCode::FORBIDDEN, "GTW015", "WebSocket is not served"));
        }
        Ok(segments)
    }

    /// The management API is a web application of its own; it never fails, it answers.
    async fn platform(&self, arrival: Arrival<'_>, body: ClientBody, observed: &mut Observed) -> Response<Body> {
        let Arrival { parts, peer, client, id, .. } = arrival;
        let mut request = Request::new(axum::body::Body::new(body));
        request.method_mut().clone_from(&parts.method);
        request.uri_mut().clone_from(&parts.uri);
        *request.version_mut() = parts.version;
        request.headers_mut().clone_from(&parts.headers);
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(peer.scheme);
        request.extensions_mut().insert(RequestId(id.clone()));
        match self.platform.clone().oneshot(request).await {
            Ok(mut response) => {
                observed.username = response.extensions_mut().remove::<CallerName>().map(|CallerName(name)| name);
                response.map(Body::Platform)
            }
            Err(never) => match never {},
        }
    }

    async fn rest(
        &self,
        arrival: Arrival<'_>,
        mut body: ClientBody,
        segments: &Segments<'_>,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        match self.asked(arrival, segments, observed).await {
            Ok(asked) => match self.admitted(&asked, observed).await {
                Ok(call) => self.call(call, body, observed).await,
                Err(problem) => {
                    if problem.status == StatusCode::TOO_MANY_REQUESTS {
                        body.take_little();
                    }
                    Err(problem)
                }
            },
            Err(answer) => {
                self.account_for_no_call(arrival, observed).await?;
                Ok(answer)
            }
        }
    }

    /// Who asks, and for what, or the answer to what is no call. Refuses nothing yet: all that is known of a request is
    /// needed to account for it.
    async fn asked<'a>(
        &self,
        arrival: Arrival<'a>,
        segments: &'a Segments<'_>,
        observed: &mut Observed,
    ) -> Result<Asked<'a>, Response<Body>> {
        let parts = arrival.parts;
        if parts.method == Method::OPTIONS {
            return Err(self.preflight(parts, segments));
        }
        let Some(method) = rest::endpoint_method(&parts.method) else {
            return Err(respond::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
        };
        let caller = self.caller(&parts.headers).await;
        let known = caller.as_ref().and_then(|caller| caller.as_ref().ok());
        observed.username = known.map(|principal| principal.username.clone());
        let (found, path) = match segments.as_slice() {
            [_, _, name, version, path @ ..] => (find(&self.snapshot.load(), name, version), path),
            _ => (Err(unknown_api()), &[][..]),
        };
        observed.api = found.as_ref().ok().cloned();
        Ok(Asked { arrival, caller, found, method, path })
    }

    /// Leave to make the call; whether or not there is, it is accounted for.
    async fn admitted<'a>(&self, asked: &'a Asked<'a>, observed: &mut Observed) -> Result<Call<'a>, Problem> {
        let Arrival { parts, client, id, at, .. } = asked.arrival;
        let limit = {
            let settings = self.settings.live();
            settings.limits.of_path(parts.uri.path(), settings.limits.rest())
        };
        let (api, user, endpoint) = (asked.api(), asked.user(), asked.endpoint());
        observed.endpoint = endpoint.map(|endpoint| endpoint.label().clone());
        let limits = self.limits(user.map(AsRef::as_ref)).await;
        observed.meter = self.meter(asked.arrival, asked, limits.as_ref());
        let let_in = match bounded(parts, limit) {
            Ok(()) => self.let_in(asked, endpoint).await,
            Err(problem) => Err(problem),
        };
        let facts = Facts {
            user: user.map(AsRef::as_ref),
            api: api.map(|api| &*api.label),
            endpoint: endpoint.zip(api).map(|(own, api)| own.name(api)),
            address: client.effective,
            admission: match &let_in {
                Err(_) => Admission::Refused,
                Ok((api, _)) if api.api.needs_identity => Admission::User,
                Ok(_) => Admission::Guest,
            },
        };
        let left = self.account((&facts, limits), length(parts), observed).await?;
        let limit = BodyLimit::new(limit, left);
        let (api, endpoint) = let_in?;
        let user = user.filter(|_| api.api.needs_identity);
        let told = rest::Caller { request_id: id, username: user.map(AsRef::as_ref), key: None, is_trusted: false };
        Ok(Call { parts, api, endpoint, path: asked.path, told, user, arrived: at, limit })
    }

    /// Who calls, where the request has a token at all.
    async fn caller(&self, headers: &HeaderMap) -> Option<Result<Principal, Denied>> {
        identity::bearer(headers)?;
        Some(self.identity.identify(headers).await)
    }

    /// All that can refuse a call before it is counted (reference: gateway behaviour 5).
    async fn let_in<'a>(
        &self,
        asked: &'a Asked<'_>,
        endpoint: Option<Match<'a>>,
    ) -> Result<(&'a CompiledApi, Match<'a>), Problem> {
        let api = asked.found.as_ref().map_err(Clone::clone)?;
        if let Some(rules) = &api.api.access.ip {
            self.admit_address(rules, asked.arrival)?;
        }
        let endpoint = endpoint.ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "GTW003", "Endpoint does not exist for the requested API")
        })?;
        if api.api.needs_identity {
            self.admit(api, asked.caller.as_ref()).await?;
        }
        if !api.api.active {
            return Err(Problem::new(StatusCode::FORBIDDEN, "GTW012", "API is disabled"));
        }
        Ok((api, endpoint))
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

    /// Asks for a token, subscription, group and role (reference: gateway behaviour 5, step 6).
    async fn admit(&self, api: &CompiledApi, caller: Option<&Result<Principal, Denied>>) -> Result<(), Problem> {
        let denied = |denied: Denied| Problem::new(denied.status(), denied.reason(), denied.reason());
        let access = &api.api.access;
        let principal = match caller {
            Some(Ok(principal)) => principal,
            Some(Err(why)) => return Err(denied(*why)),
            None => return Err(denied(Denied::Unauthorized)),
        };
        if !self.identity.is_subscribed(&principal.username, &api.label).await.map_err(denied)?
            && !self.needs_no_subscription(principal).await.map_err(denied)?
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
        Ok(())
    }

    /// Administrators, where the settings say so (reference: gateway behaviour 6.5).
    async fn needs_no_subscription(&self, principal: &Principal) -> Result<bool, Denied> {
        Ok(!self.settings.limits.admin_needs_subscription && self.identity.is_admin_role(&principal.role).await?)
    }

    /// The address that these rules are about.
    fn address_for(&self, rules: &IpRules, arrival: Arrival<'_>) -> IpAddr {
        let Arrival { parts, client, .. } = arrival;
        self.security.active().address_for_api(&parts.headers, &client, rules.trust_forwarded_for)
    }

    /// Reference: gateway behaviour 6.3; the deny list is looked at first.
    fn admit_address(&self, rules: &IpRules, arrival: Arrival<'_>) -> Result<(), Problem> {
        let Arrival { parts, peer, .. } = arrival;
        let (security, address) = (self.security.active(), self.address_for(rules, arrival));
        let restricted = |code| Err(Problem::new(StatusCode::FORBIDDEN, code, "IP restricted"));
        if rules.deny.iter().any(|net| net.contains(&address)) {
            return restricted("API011");
        }
        if security.skips_rules_of_apis(&parts.headers, peer.address) {
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
        Some(Entry::Unservable(_)) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "GTW503", CANNOT_BE_SERVED)),
        None => Err(unknown_api()),
    }
}

/// What follows on the connection is not read: who sent this may be read differently elsewhere too.
fn ambiguous(refused: request::Refused, version: Version) -> Problem {
    let problem = Problem::new(refused.status(), "GTW011", refused.to_string());
    if version == Version::HTTP_2 {
        return problem;
    }
    problem.header(CONNECTION, HeaderValue::from_static("close"))
}

fn unknown_api() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "GTW001", "API does not exist for the requested name and version")
}

/// Refuses a body that says itself that it is too large; what says nothing is counted while it is read.
fn bounded(parts: &Parts, limit: u64) -> Result<(), Problem> {
    if length(parts) > limit { Err(Problem::too_large(limit)) } else { Ok(()) }
}

/// Bytes of the body, where the request tells.
fn length(parts: &Parts) -> u64 {
    let length = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.unwrap_or_default()
}

#[cfg(test)]
mod tests;
