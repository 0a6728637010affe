//! A gateway in memory, and what it would do with a request: everything but sockets and the upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt as _;
use jiff::{SignedDuration, Timestamp};
use mongodb::bson::{Bson, Document, doc};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::cases::{Assignment, Limits, ROLES, Standing, World};
use crate::accounting::Accounts;
use crate::client::Scheme;
use crate::clock;
use crate::definitions::Definitions;
use crate::identity::{Accesses, Identity};
use crate::pipeline::call::Decided;
use crate::pipeline::validate::Reading;
use crate::pipeline::{Arrival, Body, Gateway, Gzip, Observed, Peer, respond, validate};
use crate::problem::Problem;
use crate::protocols::rest;
use crate::routings::Routings;
use crate::security::{Security, SecuritySettings};
use crate::settings::{Settings, Source};
use crate::snapshot::Compiler;
use crate::store::{BALANCES, Collection, Store, User};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::Traffic;
use crate::upstream::{PoolOptions, Pools, RequestBody};

/// Everything that is configured.
#[derive(Debug, Default)]
pub struct Setup {
    /// Names and texts.
    pub settings: Vec<(&'static str, String)>,
    pub security: SecuritySettings,
    /// The `spec` of each API.
    pub apis: Vec<Value>,
    pub users: Vec<User>,
    /// Whatever else is stored.
    pub documents: Vec<(Collection, Document)>,
}

/// A request. It has no header twice.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: Method,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub peer: IpAddr,
    pub body: Bytes,
}

impl Ask {
    pub fn new(method: &str, target: &str) -> Self {
        let (headers, peer) = (Vec::new(), IpAddr::from([203, 0, 113, 1]));
        Self { method: method.parse().unwrap(), target: target.to_owned(), headers, peer, body: Bytes::new() }
    }

    /// A usual one.
    pub fn getting(target: &str) -> Self {
        Self::new("GET", target).header("host", "gateway.example")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn from(self, peer: &str) -> Self {
        Self { peer: peer.parse().unwrap(), ..self }
    }

    pub fn body(self, body: &str) -> Self {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let this = if body.is_empty() { self } else { self.header("content-length", &body.len().to_string()) };
        Self { body, ..this }
    }

    /// The same with the token of a number for each number in braces.
    pub fn with(&self, tokens: &[String]) -> Self {
        let mut ask = self.clone();
        for (_, value) in &mut ask.headers {
            for (number, token) in tokens.iter().enumerate() {
                *value = value.replace(&format!("{{{number}}}"), token);
            }
        }
        ask
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Bytes of its headers.
    pub fn size(&self) -> u64 {
        self.headers.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
    }
}

/// What comes of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub status: u16,
    /// The error code of a refusal.
    pub code: String,
    /// How long it waited, in milliseconds.
    pub wait: u64,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`.
    pub limit: Option<[u64; 3]>,
    pub retry_after: Option<u64>,
    /// What a browser is told, sorted.
    pub cors: Vec<(String, String)>,
    /// Who is counted as the caller.
    pub user: Option<String>,
    pub api: Option<String>,
    pub endpoint: Option<String>,
    pub sent: Option<Sent>,
}

/// What would go upstream; the host tells to which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// What the caller has left of each group of credits.
    pub credits: Vec<i64>,
}

pub struct Stage {
    gateway: Gateway,
    compiler: Compiler,
    definitions: Definitions,
    /// Of APIs, and their generations.
    specs: BTreeMap<String, (Value, i64)>,
    /// All that is stored, as it was stored.
    stored: BTreeMap<(Collection, Vec<String>), Document>,
    revoked: BTreeSet<String>,
    start: Timestamp,
}

impl Stage {
    pub async fn new(setup: Setup) -> Self {
        let base = [
            ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
            ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
            ("CACHE_MAX_SIZE", "100"),
        ];
        let own = setup.settings.iter().map(|(name, text)| (*name, text.as_str()));
        let settings = Settings::load(Source::from_pairs(base.into_iter().chain(own)));
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}")).0;
        let store = Arc::new(Store::in_memory());
        let pools = Pools::new(PoolOptions::local());
        let mut compiler = Compiler::new(pools.clone());
        compiler.set_stored_roles(ROLES.map(|(name, _)| name.to_owned()).into());
        let identity = Arc::new(Identity::new(&settings, store.clone()).unwrap());
        let sealer = Arc::new(settings.keys.sealer().unwrap());
        let gzip = Gzip::new(&settings.features);
        let security = Security::new(&settings);
        let gateway = Gateway {
            accounts: Arc::new(Accounts::new(&settings, identity.clone(), sealer)),
            security: Arc::new(security),
            routings: Arc::new(Routings::new(&store, pools)),
            identity,
            platform: axum::Router::new(),
            settings: Arc::new(settings),
            snapshot: Arc::default(),
            metrics: Metrics::default(),
            traffic: Arc::new(Traffic::open(None)),
            draining: AtomicBool::new(false),
            gzip,
        };
        let mut stage = Self {
            gateway,
            compiler,
            definitions: Definitions::default(),
            specs: BTreeMap::new(),
            stored: BTreeMap::new(),
            revoked: BTreeSet::new(),
            start: clock::now(),
        };
        stage.configure(setup).await;
        stage
    }

    /// From now on this is what is configured, but for the settings.
    async fn configure(&mut self, setup: Setup) {
        let store = self.gateway.identity.store();
        let users = setup.users.iter().map(|user| (Collection::Users, user.to_document().unwrap()));
        let key = |collection: Collection, document: &Document| (collection, collection.key_of(document).unwrap());
        let documents =
            users.chain(setup.documents).map(|(collection, document)| (key(collection, &document), document));
        let documents: BTreeMap<_, _> = documents.collect();
        for ((collection, key), _) in self.stored.iter().filter(|(key, stored)| documents.get(*key) != Some(*stored)) {
            store.remove(*collection, &key.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
        }
        for (key, document) in documents.iter().filter(|(key, document)| self.stored.get(*key) != Some(*document)) {
            store.save(key.0, document.clone()).await.unwrap();
        }
        self.stored = documents;
        self.gateway.security.replace(store, setup.security).await.unwrap();
        let mut is_same = true;
        for spec in setup.apis {
            let id = format!("{}-{}", spec["name"].as_str().unwrap(), spec["version"].as_str().unwrap());
            let (before, generation) = self.specs.remove(&id).unwrap_or_default();
            let generation = generation + i64::from(before != spec);
            if before != spec {
                let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "spec": &spec,
                    "metadata": { "name": id, "namespace": "edge", "uid": id, "generation": generation } });
                let object = Arc::new(serde_json::from_value(object).unwrap());
                self.definitions.apis.insert(("edge".to_owned(), id.clone()), object);
                is_same = false;
            }
            self.specs.insert(id, (spec, generation));
        }
        if is_same {
            return;
        }
        let snapshot = self.compiler.compile(&self.definitions);
        let is_about_roles = |reason: &str| reason == "RefNotFound";
        assert!(snapshot.rejected.iter().all(|rejected| is_about_roles(&rejected.reason)), "{:?}", snapshot.rejected);
        self.gateway.snapshot.store(Arc::new(snapshot));
    }

    /// A gateway with this configuration, and the texts of its tokens.
    pub async fn of(world: &World) -> (Self, Vec<String>) {
        let start: Timestamp = world.start.parse().unwrap();
        clock::moved::set(start);
        let mut stage = Self::new(setup(world, start)).await;
        let mut tokens = Vec::new();
        for token in &world.tokens {
            let mut text = stage.token(token.user, token.life);
            match token.standing {
                Standing::Good => {}
                Standing::Revoked => {
                    let claims = stage.gateway.identity.keys().verify(&text).unwrap();
                    stage.gateway.identity.revoke_token(&claims).await.unwrap();
                }
                Standing::Forged => {
                    let at = text.rfind('.').unwrap() + 1;
                    let other = if &text[at..=at] == "A" { "B" } else { "A" };
                    text.replace_range(at..=at, other);
                }
            }
            tokens.push(text);
        }
        stage.revoke(world).await;
        (stage, tokens)
    }

    /// From now on this is the configuration, but for the settings.
    pub async fn change(&mut self, world: &World) {
        self.configure(setup(world, self.start)).await;
        self.revoke(world).await;
    }

    async fn revoke(&mut self, world: &World) {
        for person in &world.people {
            let name = person.user.username.to_string();
            if person.is_revoked != self.revoked.contains(&name) {
                self.gateway.identity.store().set_user_revoked(&name, person.is_revoked).await.unwrap();
                if person.is_revoked {
                    self.revoked.insert(name)
                } else {
                    self.revoked.remove(&name)
                };
            }
        }
    }

    /// Sets the clock of the day forward.
    pub fn set_forward(seconds: i64) {
        clock::moved::set(clock::now() + SignedDuration::from_secs(seconds));
    }

    /// A token of this user, valid for so many seconds.
    pub fn token(&self, username: &str, seconds: u64) -> String {
        let user = User::new(username, "", "user");
        let keys = self.gateway.identity.keys();
        keys.issue((&user, crate::store::now()), Accesses::default(), Duration::from_secs(seconds)).unwrap()
    }

    pub async fn save(&self, collection: Collection, document: Document) {
        self.gateway.identity.store().save(collection, document).await.unwrap();
    }

    /// What comes of a request.
    pub async fn ask(&self, ask: &Ask) -> Seen {
        self.answer(ask, 0).await.0
    }

    /// What [`Gateway::handle`] does, with an answer of so many bytes for what would go upstream. Tells how long the answer
    /// to the client is, headers included.
    pub async fn answer(&self, ask: &Ask, answer: usize) -> (Seen, u64) {
        let mut request = Request::builder().method(&ask.method).uri(&ask.target);
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let (gateway, began) = (&self.gateway, Instant::now());
        let id = respond::request_id(&parts.headers);
        let mut observed = Observed { is_data_plane: true, ..Observed::default() };
        let peer = Peer { address: ask.peer, scheme: Scheme::Http };
        let client = gateway.security.active().client(&parts.headers, peer.address);
        let arrival = Arrival { parts: &parts, peer, client, id: &id, at: std::time::Instant::now() };
        let mut seen = Seen::default();
        let outcome = match gateway.admit_to_the_gateway(arrival) {
            Ok(()) => self.route(arrival, &ask.body, answer, &mut observed, &mut seen).await,
            Err(problem) => Err(problem),
        };
        seen.code = outcome.as_ref().err().and_then(|problem| problem.code).unwrap_or_default().to_owned();
        let response = outcome.unwrap_or_else(|problem| self.gateway.refuse(&problem, arrival, &observed, false));
        let response = gateway.answered(arrival, response, &observed);
        let response = gateway.metered(response, &observed).await;
        let number = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok());
        let of_limit = |name: &str| number(&format!("x-ratelimit-{name}"));
        seen.status = response.status().as_u16();
        seen.wait = u64::try_from(began.elapsed().as_millis()).unwrap();
        seen.limit = of_limit("limit").zip(of_limit("remaining")).zip(of_limit("reset")).map(|((a, b), c)| [a, b, c]);
        seen.retry_after = number("retry-after");
        seen.cors = pairs(response.headers());
        seen.cors.retain(|(name, _)| name.starts_with("access-control-") || name == "vary");
        seen.user = observed.username.as_deref().map(str::to_owned);
        seen.api = observed.api.as_ref().map(|api| api.label.to_string());
        seen.endpoint = observed.endpoint.as_deref().map(str::to_owned);
        let headers = response.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let length = headers.sum::<usize>() + response.into_body().collect().await.unwrap().to_bytes().len();
        (seen, length as u64)
    }

    /// What [`Gateway::route`] does, up to the upstream.
    async fn route(
        &self,
        arrival: Arrival<'_>,
        body: &Bytes,
        answer: usize,
        observed: &mut Observed,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Problem> {
        let (gateway, parts) = (&self.gateway, arrival.parts);
        let segments = gateway.parsed(parts)?;
        if segments.len() < 2 || segments[0] != "api" || segments[1] != "rest" {
            observed.is_data_plane = false;
            gateway.account_for_no_call(arrival, observed).await?;
            let is_health = segments.as_slice() == ["api", "health"];
            let found = respond::only(parts, &Method::GET, || respond::json("{}"));
            return Ok(if is_health { found } else { respond::empty(http::StatusCode::NOT_FOUND) });
        }
        let asked = match gateway.asked(arrival, &segments, observed).await {
            Ok(asked) => asked,
            Err(answer) => {
                gateway.account_for_no_call(arrival, observed).await?;
                return Ok(answer);
            }
        };
        let call = gateway.admitted(&asked, observed).await?;
        let carries_body = rest::takes_body(&parts.method) && !body.is_empty();
        let reading = validate::reading(&call, carries_body)?;
        let read = || {
            if let Some(meter) = observed.meter.as_ref().filter(|_| carries_body) {
                meter.add(body.len() as u64);
            }
        };
        let is_whole = reading != Reading::Unread;
        if is_whole {
            read();
        }
        let mut checked = body.clone();
        let routed = gateway.routed(parts).await;
        let whole = carries_body.then_some(&mut checked);
        let Decided { server, is_trusted, mut charged, .. } =
            gateway.decided(&call, reading, whole, routed.as_deref()).await?;
        let told = rest::Caller { key: charged.key.as_ref(), is_trusted, ..call.told };
        let body = if carries_body { RequestBody::Whole(Some(checked)) } else { RequestBody::Empty };
        let request = rest::upstream_request(parts, call.api, call.endpoint, call.path, server, told, body)?;
        charged.is_sent = true;
        if !is_whole {
            read();
        }
        charged.settle().await;
        let credits = self.credits(observed.username.as_deref()).await;
        seen.sent = Some(Sent { target: request.uri().to_string(), headers: pairs(request.headers()), credits });
        Ok(Response::new(Body::Own(Some(Bytes::from(vec![b'-'; answer])))))
    }

    /// What a user has of each group of credits.
    async fn credits(&self, username: Option<&str>) -> Vec<i64> {
        let Some(username) = username else { return Vec::new() };
        let store = self.gateway.identity.store();
        let Some(found) = store.find(Collection::UserCredits, &[username]).await.unwrap() else { return Vec::new() };
        let of = |balance: &Bson| balance.as_document().unwrap().get_i64("available_credits").unwrap();
        found.get_document(BALANCES).unwrap().values().map(of).collect()
    }
}

/// Names and values, sorted.
fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let pair =
        |(name, value): (&http::HeaderName, &http::HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
    let mut pairs: Vec<_> = headers.iter().map(pair).collect();
    pairs.sort();
    pairs
}

fn setup(world: &World, start: Timestamp) -> Setup {
    let World { options, filter, .. } = world;
    let mut settings = vec![
        ("MAX_BODY_SIZE_BYTES", options.body.to_string()),
        ("ENFORCE_ADMIN_SUBSCRIPTION", options.admins_subscribe.to_string()),
        ("SKIP_TIER_RATE_LIMIT", options.skips_tiers.to_string()),
        ("STRICT_OPTIONS_405", options.strict_options.to_string()),
        ("DOORMAN_IN_DOCKER", options.in_docker.to_string()),
    ];
    settings.extend(options.rest_body.map(|bytes| ("MAX_BODY_SIZE_BYTES_REST", bytes.to_string())));
    if options.is_production {
        let key = "0123456789abcdef0123456789abcdef";
        let demanded = [
            ("ENV", "production"),
            ("HTTPS_ENABLED", "true"),
            ("TOKEN_ENCRYPTION_KEY", key),
            ("MEM_ENCRYPTION_KEY", key),
        ];
        settings.extend(demanded.map(|(name, text)| (name, text.to_owned())));
    }
    let listed = |list: &[&str]| Some(list.iter().map(|entry| (*entry).to_owned()).collect());
    let security = SecuritySettings {
        ip_whitelist: listed(&filter.allow),
        ip_blacklist: listed(&filter.deny),
        trust_x_forwarded_for: Some(filter.trusts),
        xff_trusted_proxies: listed(&filter.proxies),
        allow_localhost_bypass: filter.bypass,
        ..SecuritySettings::default()
    };
    let mut documents = Vec::new();
    for (name, platform_admin) in ROLES {
        documents.push((Collection::Roles, doc! { "role_name": name, "platform_admin": platform_admin }));
    }
    for person in &world.people {
        let name = &*person.user.username;
        documents.push((Collection::Subscriptions, doc! { "username": name, "apis": &person.apis }));
        if let Some(own) = &person.assignment {
            let mut assignment = assignment(own, start);
            assignment.insert("user_id", name);
            documents.push((Collection::TierAssignments, assignment));
        }
        let mut balances = Document::new();
        for (group, credits, key) in &person.balances {
            balances.insert(*group, doc! { "available_credits": *credits, "user_api_key": *key });
        }
        documents.push((Collection::UserCredits, doc! { "username": name, BALANCES: balances }));
    }
    for tier in &world.tiers {
        let mut limits = limits(&tier.limits);
        limits.insert("enable_throttling", tier.queue.is_some());
        limits.insert("max_queue_time_ms", tier.queue);
        let mut document = doc! { "tier_id": tier.id, "is_default": tier.is_default, "limits": limits };
        document.extend(tier.enabled.map(|enabled| ("enabled".to_owned(), enabled.into())));
        documents.push((Collection::Tiers, document));
    }
    for rule in &world.rules {
        let document = doc! { "rule_id": &rule.id, "rule_type": rule.kind, "target_identifier": rule.target,
        "time_window": rule.window, "limit": rule.limit, "priority": rule.priority, "enabled": rule.enabled };
        documents.push((Collection::RateLimitRules, document));
    }
    for group in &world.groups {
        let document = doc! { "api_credit_group": group.name, "api_key_header": group.header, "api_key": group.key,
        "api_key_new": group.new_key };
        documents.push((Collection::CreditDefs, document));
    }
    for (key, servers) in &world.routings {
        documents.push((Collection::Routings, doc! { "client_key": *key, "routing_servers": servers }));
    }
    let apis = world.apis.iter().map(|spec| serde_json::to_value(spec).unwrap()).collect();
    let users = world.people.iter().map(|person| person.user.clone()).collect();
    Setup { settings, security, apis, users, documents }
}

fn limits(limits: &Limits) -> Document {
    limits.iter().map(|(member, number)| ((*member).to_owned(), Bson::from(*number))).collect()
}

fn assignment(own: &Assignment, start: Timestamp) -> Document {
    let at = |seconds: i64| (start + SignedDuration::from_secs(seconds)).to_string();
    doc! { "tier_id": own.tier, "override_limits": own.overrides.as_ref().map(limits),
    "effective_from": own.from.map(at), "effective_until": own.until.map(at),
    "next": own.next.as_ref().map(|next| assignment(next, start)) }
}
