//! What goes where, as what, and who pays for it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use doorman_crds::DoormanApiSpec;
use doorman_crds::api::EndpointSpec;
use regex::Regex;

use super::super::cases::Person;
use super::super::stage::{Ask, Seen, Sent};
use super::access::{client_uri, label, parts};
use super::{Model, No};

/// Header names that clients never send upstream, beside those of a connection.
const NEVER: [&str; 14] = [
    "authorization",
    "proxy-authorization",
    "www-authenticate",
    "x-api-key",
    "api-key",
    "cookie",
    "set-cookie",
    "x-csrf-token",
    "csrf-token",
    "x-user-email",
    "x-doorman-user",
    "x-request-id",
    "host",
    "te",
];

/// Do bodies of this call go upstream?
fn takes_body(ask: &Ask) -> bool {
    !["GET", "HEAD"].contains(&ask.method.as_str())
}

fn has_rules(endpoint: &EndpointSpec) -> bool {
    endpoint.validation.as_ref().is_some_and(|validation| validation.enabled != Some(false))
}

fn is_json(ask: &Ask) -> bool {
    ask.get("content-type").is_some_and(|media| media.starts_with("application/json"))
}

/// Is it what the one rule of [`super::super::cases`] asks for: a member `name`, a text of two characters or more?
fn is_valid(ask: &Ask) -> bool {
    let body =
        if is_json(ask) { serde_json::from_slice(&ask.body).unwrap_or_default() } else { serde_json::Value::Null };
    body["name"].as_str().is_some_and(|name| name.len() >= 2)
}

impl Model<'_> {
    /// A call that is let in: what may still refuse it, and what is sent then.
    pub(super) fn send(
        &mut self,
        ask: &Ask,
        api: &DoormanApiSpec,
        endpoint: &EndpointSpec,
        path: &[&str],
        person: Option<&Person>,
        seen: &mut Seen,
    ) -> Result<(), No> {
        let mut reasons = Vec::new();
        let servers = self.servers(ask, api, endpoint);
        let is_checked = has_rules(endpoint) && takes_body(ask);
        if is_checked && is_json(ask) {
            self.read(ask);
        }
        let is_valid = !is_checked || is_valid(ask);
        if !is_valid {
            reasons.push(No(400, "GTW011"));
        }
        if servers.is_none() {
            reasons.push(No(404, "GTW001"));
        }
        let credits = api.credits.as_ref().filter(|credits| credits.enabled);
        let group = credits.and_then(|credits| credits.group.as_deref());
        let definition = self.world.groups.iter().find(|own| Some(own.name) == group);
        if definition.is_some_and(|own| ["Connection", "no header"].contains(&own.header)) {
            reasons.push(No(500, "CRD500"));
        }
        // Only who is known pays.
        let payer = credits.and(person);
        let balance = payer.and_then(|person| {
            let is_theirs = |(user, of, left): &&(String, String, i64)| {
                **user == *person.user.username && Some(of.as_str()) == group && *left > 0
            };
            self.balances.iter().position(|balance| is_theirs(&balance))
        });
        if payer.is_some() && balance.is_none() {
            reasons.push(No(401, "GTW008"));
        }
        // A call that can't be paid has had its server's turn, one that is not valid has not.
        let server = servers.filter(|_| is_valid).map(|(whose, servers)| self.turn(whose, &servers));
        self.none_of(&reasons)?;
        let server = server.unwrap();

        let mut key = definition.map(|own| (own.header.to_lowercase(), own.new_key.unwrap_or(own.key).to_owned()));
        if let (Some(balance), Some(person)) = (balance, payer) {
            self.hit("a credit is taken");
            self.balances[balance].2 -= 1;
            let own = person.balances.iter().find(|(of, ..)| Some(*of) == group).and_then(|(.., key)| *key);
            if let (Some(own), Some((_, key))) = (own, &mut key) {
                self.hit("a key of the user's own");
                own.clone_into(key);
            }
        } else if key.is_some() {
            self.hit("a key that nobody pays for");
        }
        if !is_checked && takes_body(ask) {
            self.read(ask);
        }
        // Whoever sets a routing need not be who may see an API's secrets.
        let is_trusted =
            api.servers.iter().chain(&endpoint.servers).flatten().any(|own| origin(own) == origin(&server));
        if !is_trusted && key.is_some() {
            self.hit("a key that a routing's servers don't see");
        }
        let key = key.filter(|_| is_trusted);
        let left = self.balances.iter().filter(|(user, ..)| Some(user) == seen.user.as_ref()).map(|(.., left)| *left);
        let credits = left.collect();
        let target = target(ask, endpoint, path, &server);
        let headers = self.headers(ask, api, &server, person, key, is_trusted);
        seen.sent = Some(Sent { target, headers, credits });
        seen.status = 200;
        self.hit(format!("sent: {}", ask.method));
        Ok(())
    }

    /// The servers of a call, and whose they are: those that a client key names, else the endpoint's, else the API's.
    fn servers(&self, ask: &Ask, api: &DoormanApiSpec, endpoint: &EndpointSpec) -> Option<(String, Vec<String>)> {
        let key = ask.get("client-key").unwrap_or_default();
        let routing = self.world.routings.iter().find(|(own, _)| *own == key).map(|(_, servers)| servers);
        let routed = routing.into_iter().flatten().filter(|server| server.contains("://")).map(|own| (*own).to_owned());
        let own = format!("{} {} {}", label(api), endpoint.method.as_str(), endpoint.uri);
        let lists = [
            ("servers of a client key", key.to_owned(), routed.collect()),
            ("servers of an endpoint", own, endpoint.servers.clone().unwrap_or_default()),
            ("servers of an API", label(api), api.servers.clone().unwrap_or_default()),
        ];
        let (what, whose, servers) = lists.into_iter().find(|(.., servers)| !servers.is_empty())?;
        self.hit(what);
        Some((whose, servers))
    }

    /// The body is read, and its bytes count.
    fn read(&mut self, ask: &Ask) {
        if let Some(booking) = &mut self.booking {
            booking.bytes += ask.body.len() as u64;
        }
    }

    /// The server whose turn it is.
    fn turn(&mut self, whose: String, servers: &[String]) -> String {
        let turns = self.turns.iter().filter(|of| **of == whose).count();
        self.turns.push(whose);
        servers[turns % servers.len()].clone()
    }

    /// The headers that go upstream, sorted.
    fn headers(
        &self,
        ask: &Ask,
        api: &DoormanApiSpec,
        server: &str,
        person: Option<&Person>,
        key: Option<(String, String)>,
        is_trusted: bool,
    ) -> Vec<(String, String)> {
        let spec = api.headers.clone().unwrap_or_default();
        let usual = ["soapaction", "content-type", "accept", "user-agent", "accept-encoding"].map(str::to_owned);
        let listed = spec.allowed.iter().flatten().map(|name| name.to_lowercase());
        let connection: Vec<String> =
            ask.get("connection").unwrap_or_default().split(',').map(|name| name.trim().to_lowercase()).collect();
        let passes = |name: &String| {
            // Many servers read `_` as `-`.
            let is_never_sent = NEVER.contains(&name.replace('_', "-").as_str());
            let is_of_connection = connection.contains(name);
            // An answer that is changed must come as it is.
            let is_for_us = name == "accept-encoding" && api.envelope == Some(true);
            if ask.get(name).is_some() {
                for (is_kept, what) in [
                    (is_never_sent, "a listed header that is never sent"),
                    (is_of_connection, "a header of the connection"),
                    (is_for_us, "no encoding of what is changed"),
                ] {
                    if is_kept {
                        self.hit(what);
                    }
                }
            }
            !is_never_sent && !is_of_connection && !is_for_us
        };
        let passing: Vec<String> = usual.into_iter().chain(listed).filter(passes).collect();
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for name in &passing {
            headers.extend(ask.get(name).map(|value| (name.clone(), self.clean(value))));
        }
        let swap = spec.authorization_field_swap.map(|name| name.to_lowercase()).filter(|name| passing.contains(name));
        if let Some(name) = swap.as_ref().filter(|_| !is_trusted) {
            self.hit("a swap that a routing's servers don't see");
            headers.remove(name);
        } else if let Some(value) = swap.and_then(|name| ask.get(&name)).filter(|value| !value.is_empty()) {
            self.hit("a swapped authorization");
            headers.insert("authorization".to_owned(), value.to_owned());
        }
        if ask.body.is_empty() && ["POST", "PUT", "PATCH"].contains(&ask.method.as_str()) {
            self.hit("nothing where there could be a body");
            headers.insert("content-length".to_owned(), "0".to_owned());
        }
        headers.insert("host".to_owned(), origin(server).1.to_owned());
        headers.insert("x-request-id".to_owned(), "id".to_owned());
        for name in ["x-user-email", "x-doorman-user"] {
            headers.extend(person.map(|person| (name.to_owned(), person.user.username.to_string())));
        }
        headers.extend(key);
        headers.into_iter().collect()
    }
}

impl Model<'_> {
    /// A value as it is sent: without tags, and only so much of it.
    fn clean(&self, value: &str) -> String {
        static TAGS: LazyLock<Regex> = LazyLock::new(|| Regex::new("<[^>]+>").unwrap());
        let untagged = TAGS.replace_all(value, "");
        let kept: String = untagged.chars().take(8_192).collect();
        for (is_so, what) in
            [(untagged != value, "a value without its tags"), (kept != untagged, "a value that is cut")]
        {
            if is_so {
                self.hit(what);
            }
        }
        kept.trim().to_owned()
    }
}

/// Scheme and authority of a server.
fn origin(server: &str) -> (&str, &str) {
    let (scheme, rest) = server.split_once("://").unwrap();
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let usual_port = if scheme == "http" { ":80" } else { ":443" };
    (scheme, authority.strip_suffix(usual_port).unwrap_or(authority))
}

fn encoded(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    segment.bytes().map(one).collect()
}

/// The path and query upstream.
fn target(ask: &Ask, endpoint: &EndpointSpec, called: &[&str], server: &str) -> String {
    let (server, own_query) = server.split_once('?').unwrap_or((server, ""));
    let base = server.split_once("://").unwrap().1.split_once('/').map_or("", |(_, base)| base.trim_end_matches('/'));
    let own = parts(client_uri(endpoint));
    let captured = |name: &str| own.iter().position(|part| *part == name).map(|at| called[at]);
    let fill = |part| encoded(captured(part).filter(|_| part.starts_with('{')).unwrap_or(part));
    let mut path: Vec<String> = parts(base).into_iter().map(str::to_owned).collect();
    path.extend(parts(&endpoint.uri).into_iter().map(fill));
    if parts(&endpoint.uri).is_empty() {
        path.push(String::new());
    }
    let mut target = format!("/{}", path.join("/"));
    let query = [own_query, ask.target.split_once('?').map_or("", |(_, query)| query)];
    let query: Vec<&str> = query.into_iter().filter(|query| !query.is_empty()).collect();
    if !query.is_empty() {
        target = format!("{target}?{}", query.join("&"));
    }
    target
}
