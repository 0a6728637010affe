//! From the wire form of an API to the typed one, collecting every error with the field it is in.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::uri::{Authority, Uri};
use ipnet::IpNet;

use super::cors::Cors;
use super::egress::forbidden_host;
use super::tls::UpstreamTls;
use super::transform::{RequestTransform, ResponseTransform};
use super::validation::Validation;
use super::weights::{WeightedServer, read_weights};
use super::{CircuitBreakerSpec, DoormanApiSpec, EndpointSpec, IpMode, IpSpec, Method, Protocol, TimeoutsSpec};
use crate::path::{PathTemplate, Shape};
use crate::{FieldError, networks};

/// Name and version: what a client calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiKey {
    /// First path segment.
    pub name: String,
    /// Second path segment.
    pub version: String,
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// A valid API: everything the gateway needs, nothing it would have to check again.
#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// Name and version.
    pub key: ApiKey,
    /// What it is for.
    pub description: Option<String>,
    /// Protocol of the upstream.
    pub protocol: Protocol,
    /// Whether calls are served at all.
    pub active: bool,
    /// Whether a token is needed: neither public nor exempt.
    pub needs_identity: bool,
    /// Where calls go unless the endpoint says otherwise; may be empty.
    pub servers: Vec<WeightedServer>,
    /// What may be called.
    pub endpoints: Vec<Endpoint>,
    /// Who may call.
    pub access: Access,
    /// Which headers pass.
    pub headers: Headers,
    /// Upper bounds that differ from the gateway's.
    pub timeouts: Timeouts,
    /// What browsers may do from elsewhere.
    pub cors: Cors,
    /// Further attempts after a failed one.
    pub retries: u32,
    /// When its upstreams are left alone, where that differs from the gateway's rules.
    pub breaker: Breaker,
    /// What calls cost; `None`: nothing.
    pub credits: Option<Credits>,
    /// How its `https` servers are called, where that differs from the usual.
    pub tls: Option<UpstreamTls>,
    /// What is changed of requests.
    pub request_transform: Option<Box<RequestTransform>>,
    /// What is changed of answers.
    pub response_transform: Option<Box<ResponseTransform>>,
    /// Whether JSON answers are wrapped.
    pub envelope: bool,
}

impl Api {
    /// Whether the bodies of JSON answers reach clients in another form.
    pub fn changes_answer_bodies(&self) -> bool {
        self.envelope || self.response_transform.as_ref().is_some_and(|transform| transform.body.is_some())
    }
}

/// What calls cost: one credit each, from callers who are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credits {
    /// The credit definition that balances are kept under; without one nobody has a balance.
    pub group: Option<Arc<str>>,
}

/// When upstreams are left alone; `None` is as the gateway is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Whether they ever are.
    pub enabled: Option<bool>,
    /// After how many failures in a row.
    pub threshold: Option<u32>,
    /// For how long.
    pub open: Option<Duration>,
}

/// One method on one path.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// HTTP method.
    pub method: Method,
    /// Path clients call.
    pub client_path: PathTemplate,
    /// Path on the upstream.
    pub upstream_path: PathTemplate,
    /// Own servers; none means the API's.
    pub servers: Option<Vec<WeightedServer>>,
    /// What bodies must be like.
    pub validation: Option<Arc<Validation>>,
}

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// Admitted roles; empty admits any.
    pub roles: Vec<String>,
    /// Groups of which the caller needs one; `None` asks for none, an empty list admits nobody.
    pub groups: Option<Vec<String>>,
    /// Rules on the client's address.
    pub ip: Option<IpRules>,
}

impl Access {
    /// Is the member of these groups let in?
    pub fn admits_groups<T: AsRef<str>>(&self, groups: &[T]) -> bool {
        let is_member = |wanted: &String| groups.iter().any(|group| group.as_ref() == wanted);
        self.groups.as_ref().is_none_or(|wanted| wanted.iter().any(is_member))
    }
}

/// Rules on the client's address.
#[derive(Clone, Debug, PartialEq)]
pub struct IpRules {
    /// Whether only `allow` is let in.
    pub only_allowed: bool,
    /// Let in under `only_allowed`.
    pub allow: Vec<IpNet>,
    /// Never let in.
    pub deny: Vec<IpNet>,
    /// Whether forwarding headers count; `None` is as the gateway is set.
    pub trust_forwarded_for: Option<bool>,
}

/// Which headers pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers {
    /// Names that pass both ways beside the defaults; never credentials.
    pub allowed: Vec<HeaderName>,
    /// Client header that becomes the upstream's `Authorization`.
    pub authorization_from: Option<HeaderName>,
}

/// Upper bounds; `None` is as the gateway is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Opening a connection.
    pub connect: Option<Duration>,
    /// Silence of the upstream.
    pub read: Option<Duration>,
    /// Stall while sending.
    pub write: Option<Duration>,
    /// Waiting for a connection.
    pub pool: Option<Duration>,
}

/// Base URL of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddress {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address literal, without brackets.
    pub host: String,
    /// Port, filled in from the scheme when absent.
    pub port: u16,
    /// `host` or `host:port` as the `Host` header shows it; the scheme's own port is left out.
    pub authority: Authority,
    /// Path put before the endpoint's, without trailing slash; often empty.
    pub base_path: String,
    /// Query put before the client's.
    pub query: Option<String>,
}

/// Headers that never pass in either direction, even when listed (reference: gateway behaviour 10.1).
pub const NEVER_FORWARDED: [&str; 9] = [
    "authorization",
    "proxy-authorization",
    "www-authenticate",
    "x-api-key",
    "api-key",
    "cookie",
    "set-cookie",
    "x-csrf-token",
    "csrf-token",
];

/// Headers that belong to one connection (RFC 9110 7.6.1) or to the framing of one message.
pub const PER_CONNECTION: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
];

/// Headers that tell the upstream who calls; a client's own are never among what it is told.
pub(super) const WHO: [&str; 3] = ["x-user-email", "x-doorman-user", "x-request-id"];

/// Many servers read `_` in a name as `-`: such twins of a name that the gateway keeps or writes don't pass either.
pub(super) fn is_never_forwarded(name: &HeaderName) -> bool {
    let is_kept = |name: &str| NEVER_FORWARDED.contains(&name) || PER_CONNECTION.contains(&name);
    let name = name.as_str();
    if !name.contains('_') {
        return is_kept(name);
    }
    let meant = name.replace('_', "-");
    is_kept(&meant) || WHO.contains(&&*meant)
}

impl FromStr for UpstreamAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("`{text}` is not a URL: {error}"))?;
        let (tls, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            Some(other) => return Err(format!("`{text}`: scheme `{other}` is not served; use http or https")),
            None => return Err(format!("`{text}` needs a scheme: write http://{text} or https://{text}")),
        };
        let authority = uri.authority().ok_or_else(|| format!("`{text}` has no host"))?;
        if authority.as_str().contains('@') {
            return Err(format!("`{text}`: credentials in a URL are not allowed; they would be readable by everyone"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(format!("`{text}` has no host"));
        }
        let port = match authority.port() {
            None => default_port,
            Some(port) => match port.as_u16() {
                0 => return Err(format!("`{text}`: port 0 can't be called")),
                port => port,
            },
        };
        if let Some(problem) = forbidden_host(&host) {
            return Err(format!("`{text}`: {problem}"));
        }
        let shown =
            if port == default_port { authority.host().to_owned() } else { format!("{}:{port}", authority.host()) };
        let authority = shown.parse().map_err(|error| format!("`{text}`: {error}"))?;
        let base_path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { tls, host, port, authority, base_path, query: uri.query().map(str::to_owned) })
    }
}

/// Parses a spec.
///
/// # Errors
/// Every problem found, each with the field it is in; never an empty list.
pub fn parse(spec: &DoormanApiSpec) -> Result<Api, Vec<FieldError>> {
    let mut errors = Vec::new();
    segment("spec.name", &spec.name, 64, &mut errors);
    segment("spec.version", &spec.version, 8, &mut errors);
    unsupported(spec, &mut errors);

    let is_public = spec.public.unwrap_or(false);
    // Of a public API nobody is charged; what pays upstream is sent all the same.
    let credits = spec.credits.as_ref().filter(|credits| credits.enabled);
    let credits = credits.map(|credits| Credits { group: credits.group.as_deref().map(Arc::from) });
    let servers = servers("spec", spec.servers.as_deref(), spec.server_weights.as_deref(), &mut errors);
    if spec.protocol == Protocol::SOAP && spec.servers.as_ref().is_none_or(Vec::is_empty) {
        errors.push(FieldError::invalid("spec.servers", "a SOAP API needs at least one server"));
    }
    let endpoints = endpoints(spec.endpoints.as_deref().unwrap_or_default(), &mut errors);
    let access = Access {
        roles: spec.access.as_ref().and_then(|access| access.roles.clone()).unwrap_or_default(),
        groups: spec.access.as_ref().and_then(|access| access.groups.clone()),
        ip: spec.access.as_ref().and_then(|access| access.ip.as_ref()).map(|ip| ip_rules(ip, &mut errors)),
    };
    let headers = headers(spec, &mut errors);
    let timeouts = timeouts(spec.upstream.as_ref().and_then(|upstream| upstream.timeouts), &mut errors);
    let cors = Cors::parse(spec.cors.as_deref(), &mut errors);
    let attempts = spec.upstream.as_ref().and_then(|upstream| upstream.retries).map_or(0, |retries| retries.attempts);
    let retries = u32::try_from(attempts).ok().filter(|attempts| *attempts <= 10).unwrap_or_else(|| {
        errors.push(FieldError::invalid("spec.upstream.retries.attempts", "must be 0 to 10"));
        0
    });
    let breaker = breaker(spec.upstream.as_ref().and_then(|upstream| upstream.circuit_breaker), &mut errors);
    let tls = spec.upstream.as_ref().and_then(|upstream| upstream.tls.as_ref());
    let tls = tls.map(|tls| UpstreamTls::parse(tls, &mut errors));
    let mut called = servers.iter().chain(endpoints.iter().flat_map(|endpoint| endpoint.servers.iter().flatten()));
    if tls.is_some() && errors.is_empty() && !called.any(|server| server.address.tls) {
        errors.push(FieldError::invalid("spec.upstream.tls", "no server is called over TLS; write https://"));
    }
    let transform = spec.request_transform.as_ref();
    let request_transform =
        part(transform.map(|spec| RequestTransform::parse("spec.requestTransform", spec)), &mut errors);
    let transform = spec.response_transform.as_ref();
    let response_transform =
        part(transform.map(|spec| ResponseTransform::parse("spec.responseTransform", spec)), &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Api {
        key: ApiKey { name: spec.name.clone(), version: spec.version.clone() },
        description: spec.description.clone(),
        protocol: spec.protocol,
        active: spec.active.unwrap_or(true),
        needs_identity: !is_public && spec.auth_required.unwrap_or(true),
        servers,
        endpoints,
        access,
        headers,
        timeouts,
        cors,
        retries,
        breaker,
        credits,
        tls,
        request_transform: request_transform.map(Box::new),
        response_transform: response_transform.map(Box::new),
        envelope: spec.envelope.unwrap_or(false),
    })
}

/// A part that reads itself; its problems are the whole's.
fn part<T>(parsed: Option<Result<Option<T>, Vec<FieldError>>>, errors: &mut Vec<FieldError>) -> Option<T> {
    parsed?.unwrap_or_else(|found| {
        errors.extend(found);
        None
    })
}

fn breaker(spec: Option<CircuitBreakerSpec>, errors: &mut Vec<FieldError>) -> Breaker {
    let Some(spec) = spec else { return Breaker::default() };
    let mut number = |member: &str, given: Option<i32>, most: u32| {
        let number = u32::try_from(given?).ok().filter(|number| (1..=most).contains(number));
        if number.is_none() {
            let field = format!("spec.upstream.circuitBreaker.{member}");
            errors.push(FieldError::invalid(field, format!("must be 1 to {most}")));
        }
        number
    };
    let threshold = number("threshold", spec.threshold, 1_000);
    let open = number("openSeconds", spec.open_seconds, 3_600).map(|seconds| Duration::from_secs(seconds.into()));
    Breaker { enabled: Some(spec.enabled), threshold, open }
}

fn segment(field: &str, text: &str, max: usize, errors: &mut Vec<FieldError>) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if text.len() > max || !starts_well || !text.chars().all(allowed) {
        let rule = "letters, digits, `.`, `_`, `~` and `-`, starting with a letter, a digit or `_`";
        errors.push(FieldError::invalid(field, format!("`{text}` must be 1 to {max} characters: {rule}")));
    }
}

/// Refuses what this version would silently leave out; status must not say more than traffic shows.
fn unsupported(spec: &DoormanApiSpec, errors: &mut Vec<FieldError>) {
    let (soap, graphql) = (spec.soap.as_ref(), spec.graphql.as_ref());
    let present = [
        (soap.is_some_and(|soap| soap.version.is_some()), "spec.soap.version"),
        (soap.is_some_and(|soap| soap.ws_security.is_some()), "spec.soap.wsSecurity"),
        (graphql.is_some_and(|graphql| graphql.max_depth.is_some()), "spec.graphql.maxDepth"),
        (spec.grpc.is_some(), "spec.grpc"),
    ];
    for (_, field) in present.iter().filter(|(is_present, _)| *is_present) {
        errors.push(FieldError::unsupported(*field, NOT_YET));
    }
}

const NOT_YET: &str = "not served by this version; remove the field";

fn servers(
    place: &str,
    texts: Option<&[String]>,
    weights: Option<&[i32]>,
    errors: &mut Vec<FieldError>,
) -> Vec<WeightedServer> {
    let texts = texts.unwrap_or_default();
    let weights = weights.map_or_else(|| Ok(vec![1; texts.len()]), |given| read_weights(given, texts.len()));
    let weights = weights.unwrap_or_else(|message| {
        errors.push(FieldError::invalid(format!("{place}.serverWeights"), message));
        Vec::new()
    });
    let mut servers = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(address) => servers.extend(weights.get(index).map(|weight| WeightedServer { address, weight: *weight })),
            Err(message) => errors.push(FieldError::invalid(format!("{place}.servers[{index}]"), message)),
        }
    }
    servers
}

fn endpoints(specs: &[EndpointSpec], errors: &mut Vec<FieldError>) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(specs.len());
    let mut seen: HashMap<(Method, Shape), usize> = HashMap::new();
    for (index, spec) in specs.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        let Some(endpoint) = endpoint(&field, spec, errors) else { continue };
        if let Some(first) = seen.insert((endpoint.method, endpoint.client_path.shape()), index) {
            let message = format!(
                "{} {} answers the same calls as spec.endpoints[{first}]; remove one",
                endpoint.method.as_str(),
                endpoint.client_path
            );
            errors.push(FieldError::invalid(field, message));
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn endpoint(field: &str, spec: &EndpointSpec, errors: &mut Vec<FieldError>) -> Option<Endpoint> {
    let mut template = |member: &str, text: &str| {
        PathTemplate::parse(text)
            .map_err(|message| errors.push(FieldError::invalid(format!("{field}.{member}"), message)))
            .ok()
    };
    let upstream_path = template("uri", &spec.uri)?;
    let client_path = match &spec.client_uri {
        Some(text) => template("clientUri", text)?,
        None => upstream_path.clone(),
    };
    if let Some(name) = upstream_path.missing_in(&client_path) {
        let message = format!("has no parameter `{{{name}}}`, which `uri` needs");
        errors.push(FieldError::invalid(format!("{field}.clientUri"), message));
    }
    let servers = servers(field, spec.servers.as_deref(), spec.server_weights.as_deref(), errors);
    let servers = (!servers.is_empty()).then_some(servers);
    let validation = spec.validation.as_ref().filter(|validation| validation.enabled != Some(false));
    let validation = validation.map(|spec| Validation::parse(&format!("{field}.validation"), spec));
    let validation = part(validation, errors);
    Some(Endpoint { method: spec.method, client_path, upstream_path, servers, validation: validation.map(Arc::new) })
}

fn headers(spec: &DoormanApiSpec, errors: &mut Vec<FieldError>) -> Headers {
    let Some(headers) = &spec.headers else { return Headers::default() };
    let mut allowed = Vec::new();
    for (index, text) in headers.allowed.iter().flatten().enumerate() {
        let field = format!("spec.headers.allowed[{index}]");
        match HeaderName::from_str(text.trim()) {
            // Listed by existing clients without effect; accepting them keeps those definitions valid.
            Ok(name) if is_never_forwarded(&name) => {}
            Ok(name) if !allowed.contains(&name) => allowed.push(name),
            Ok(_) => {}
            Err(_) => errors.push(FieldError::invalid(field, format!("`{text}` is not a header name"))),
        }
    }
    let authorization_from = headers.authorization_field_swap.as_ref().and_then(|text| {
        let field = "spec.headers.authorizationFieldSwap";
        match HeaderName::from_str(text.trim()) {
            Ok(name) if NEVER_FORWARDED.contains(&name.as_str()) => {
                let message = format!("`{name}` never passes the gateway; let clients use another header");
                errors.push(FieldError::invalid(field, message));
                None
            }
            Ok(name) => Some(name),
            Err(_) => {
                errors.push(FieldError::invalid(field, format!("`{text}` is not a header name")));
                None
            }
        }
    });
    Headers { allowed, authorization_from }
}

fn ip_rules(spec: &IpSpec, errors: &mut Vec<FieldError>) -> IpRules {
    let mut nets = |member: &str, texts: Option<&Vec<String>>| {
        let mut nets = Vec::new();
        for (index, text) in texts.into_iter().flatten().enumerate() {
            match networks::parse(text) {
                Some(net) => nets.push(net),
                None => errors.push(FieldError::invalid(
                    format!("spec.access.ip.{member}[{index}]"),
                    format!("`{text}` is neither an address nor a CIDR such as 10.0.0.0/8"),
                )),
            }
        }
        nets
    };
    let allow = nets("allow", spec.allow.as_ref());
    let deny = nets("deny", spec.deny.as_ref());
    IpRules { only_allowed: spec.mode == IpMode::Whitelist, allow, deny, trust_forwarded_for: spec.trust_forwarded_for }
}

fn timeouts(spec: Option<TimeoutsSpec>, errors: &mut Vec<FieldError>) -> Timeouts {
    let spec = spec.unwrap_or_default();
    let mut bound = |member: &str, millis: Option<i32>| {
        let millis = millis?;
        if !(1..=3_600_000).contains(&millis) {
            let field = format!("spec.upstream.timeouts.{member}");
            errors.push(FieldError::invalid(field, "must be 1 to 3600000 milliseconds"));
            return None;
        }
        u64::try_from(millis).ok().map(Duration::from_millis)
    };
    Timeouts {
        connect: bound("connectMillis", spec.connect_millis),
        read: bound("readMillis", spec.read_millis),
        write: bound("writeMillis", spec.write_millis),
        pool: bound("poolMillis", spec.pool_millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use serde_json::{Value, json};

    fn spec(changes: Value) -> DoormanApiSpec {
        let mut value = json!({
            "name": "orders", "version": "v1", "protocol": "REST", "servers": ["http://orders:8080/base/"],
            "endpoints": [{"method": "GET", "uri": "/items/{id}"}],
        });
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_plain_api_parses_into_what_it_says() {
        let api = parse(&spec(json!({}))).unwrap();
        assert_eq!(api.key.to_string(), "orders/v1");
        assert!(api.active && api.needs_identity);
        assert_eq!(api.servers[0].weight, 1);
        let server = &api.servers[0].address;
        assert_eq!((server.host.as_str(), server.port, server.base_path.as_str()), ("orders", 8080, "/base"));
        assert_eq!(server.authority.as_str(), "orders:8080");
        assert_eq!(api.access.groups, None);
    }

    #[test]
    fn weights_are_those_of_the_servers_in_their_order() {
        let api = parse(&spec(json!({
            "servers": ["http://a", "http://b"], "serverWeights": [90, 0],
            "endpoints": [{"method": "GET", "uri": "/c", "servers": ["http://c", "http://d"], "serverWeights": [1, 2]}],
        })))
        .unwrap();
        let shown = |servers: &[WeightedServer]| -> Vec<_> {
            servers.iter().map(|server| (server.address.host.clone(), server.weight)).collect()
        };
        assert_eq!(shown(&api.servers), [("a".to_owned(), 90), ("b".to_owned(), 0)]);
        let own = api.endpoints[0].servers.as_deref().unwrap();
        assert_eq!(shown(own), [("c".to_owned(), 1), ("d".to_owned(), 2)]);
    }

    #[test]
    fn public_or_auth_optional_apis_need_no_identity() {
        assert!(!parse(&spec(json!({"public": true}))).unwrap().needs_identity);
        assert!(!parse(&spec(json!({"authRequired": false}))).unwrap().needs_identity);
    }

    #[test]
    fn each_problem_names_its_field() {
        let endpoint = |extra: Value| {
            let mut value = json!({"method": "GET", "uri": "/a/{id}"});
            for (key, change) in extra.as_object().unwrap() {
                value[key] = change.clone();
            }
            json!({"endpoints": [value]})
        };
        let table = [
            (json!({"name": "a/b"}), "spec.name"),
            (json!({"name": ".."}), "spec.name"),
            (json!({"version": "version-one"}), "spec.version"),
            (json!({"servers": ["orders:8080"]}), "spec.servers[0]"),
            (json!({"servers": ["http://ok", "ftp://x"]}), "spec.servers[1]"),
            (json!({"servers": ["http://user:pw@x"]}), "spec.servers[0]"),
            (json!({"servers": ["http://169.254.169.254/latest"]}), "spec.servers[0]"),
            (json!({"servers": ["http://[64:ff9b::169.254.169.254]/"]}), "spec.servers[0]"),
            (json!({"servers": ["http://metadata.google.internal"]}), "spec.servers[0]"),
            (json!({"serverWeights": [1, 2]}), "spec.serverWeights"),
            (json!({"serverWeights": [0]}), "spec.serverWeights"),
            (json!({"serverWeights": [101]}), "spec.serverWeights"),
            (endpoint(json!({"serverWeights": [1]})), "spec.endpoints[0].serverWeights"),
            (endpoint(json!({"servers": ["http://a"], "serverWeights": [-1]})), "spec.endpoints[0].serverWeights"),
            (endpoint(json!({"uri": "/a/../b"})), "spec.endpoints[0].uri"),
            (endpoint(json!({"clientUri": "/b"})), "spec.endpoints[0].clientUri"),
            (endpoint(json!({"servers": ["nope"]})), "spec.endpoints[0].servers[0]"),
            (
                json!({"endpoints": [{"method": "GET", "uri": "/a/{x}"}, {"method": "GET", "uri": "/a/{y}"}]}),
                "spec.endpoints[1]",
            ),
            (json!({"headers": {"allowed": ["ok", "not ok"]}}), "spec.headers.allowed[1]"),
            (json!({"headers": {"authorizationFieldSwap": "Cookie"}}), "spec.headers.authorizationFieldSwap"),
            (json!({"access": {"ip": {"mode": "Whitelist", "allow": ["1.2.3"]}}}), "spec.access.ip.allow[0]"),
            (json!({"upstream": {"timeouts": {"readMillis": 0}}}), "spec.upstream.timeouts.readMillis"),
            (json!({"protocol": "SOAP", "servers": []}), "spec.servers"),
            (json!({"cors": {"allowMethods": ["G T"]}}), "spec.cors.allowMethods[0]"),
            (json!({"upstream": {"tls": {"serverName": "a:443"}}}), "spec.upstream.tls.serverName"),
            (json!({"upstream": {"tls": {"caSecretRef": {"name": "a"}}}}), "spec.upstream.tls"),
            (json!({"upstream": {"retries": {"attempts": -1}}}), "spec.upstream.retries.attempts"),
            (json!({"requestTransform": {"statusMap": {"500": 502}}}), "spec.requestTransform.statusMap"),
            (json!({"responseTransform": {"body": {"remove": ["$"]}}}), "spec.responseTransform.body.remove[0]"),
            (
                endpoint(json!({"validation": {"rules": {"a": {"required": true, "type": "string", "pattern": "("}}}})),
                "spec.endpoints[0].validation.rules[a].pattern",
            ),
            (
                json!({"upstream": {"circuitBreaker": {"enabled": true, "threshold": 0}}}),
                "spec.upstream.circuitBreaker.threshold",
            ),
        ];
        for (changes, field) in table {
            let errors = parse(&spec(changes.clone())).expect_err(&changes.to_string());
            assert!(errors.iter().any(|error| error.field == field), "{changes}: {errors:?}");
        }
    }

    #[test]
    fn what_this_version_does_not_do_is_refused_rather_than_ignored() {
        let security = json!({"wsSecurity": {"credentialsSecretRef": {"name": "s"}}});
        for changes in [
            json!({"soap": {"version": "1.1", "wsdlUrl": "/a?wsdl"}}),
            json!({"soap": security}),
            json!({"graphql": {"maxDepth": 5}}),
            json!({"grpc": {}}),
        ] {
            let errors = parse(&spec(changes.clone())).expect_err(&changes.to_string());
            assert!(errors.iter().all(|error| error.reason == Reason::UnsupportedValue), "{errors:?}");
        }
        // Where documents are is for the platform API only.
        let told = json!({"openapiUrl": "/o", "soap": {"wsdlUrl": "/a?wsdl"}, "graphql": {"schemaPath": "/g"}});
        assert!(parse(&spec(told)).is_ok());
    }

    #[test]
    fn the_protocol_is_a_label() {
        for (label, protocol) in [("SOAP", Protocol::SOAP), ("GraphQL", Protocol::GraphQL), ("GRPC", Protocol::GRPC)] {
            assert_eq!(parse(&spec(json!({"protocol": label}))).unwrap().protocol, protocol);
        }
    }

    #[test]
    fn secrets_are_named_in_the_order_of_their_fields() {
        let with = |tls: Value| spec(json!({"servers": ["https://a"], "upstream": {"tls": tls}}));
        let both = with(json!({"caSecretRef": {"name": "a"}, "clientCertificateSecretRef": {"name": "b"}}));
        let tls = parse(&both).unwrap().tls.unwrap();
        assert_eq!((tls.authorities, tls.certificate), (Some(("a".into(), "ca.crt".into())), Some("b".into())));
        assert_eq!(both.secrets().map(|(_, name)| name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(with(json!({"serverName": "a.example"})).secrets().count(), 0);
    }

    #[test]
    fn rules_that_are_switched_off_are_not_looked_at() {
        let rules = json!({"enabled": false, "rules": {"": {"required": true, "type": "string"}}});
        let api = parse(&spec(json!({"endpoints": [{"method": "POST", "uri": "/a", "validation": rules}]}))).unwrap();
        assert_eq!(api.endpoints[0].validation, None);
    }

    #[test]
    fn credentials_on_the_allow_list_stay_off_it() {
        let api = parse(&spec(json!({"headers": {"allowed": ["X-Ok", "Authorization", "x-ok", "Host"]}}))).unwrap();
        assert_eq!(api.headers.allowed, [HeaderName::from_static("x-ok")]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let errors = parse(&spec(json!({"name": "", "servers": ["x"], "grpc": {}}))).unwrap_err();
        assert_eq!(errors.len(), 3, "{errors:?}");
    }
}
