//! A gateway in memory, and what it would do with a request: everything but sockets and the upstream.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};

use crate::accounting::Accounts;
use crate::client::Scheme;
use crate::definitions::Definitions;
use crate::identity::{Accesses, Identity};
use crate::pipeline::{Arrival, Body, Gateway, Gzip, Observed, Peer, RetryBudget, call::Decided, respond, validate};
use crate::problem::Problem;
use crate::protocols::rest;
use crate::request::Segments;
use crate::routings::Routings;
use crate::security::Security;
use crate::settings::{Settings, Source};
use crate::snapshot::Compiler;
use crate::store::{Collection, Store, User};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traffic::Traffic;
use crate::upstream::{PoolOptions, Pools, RequestBody};

/// Everything that is configured.
#[derive(Debug, Default)]
pub struct Setup {
    /// Names and texts.
    pub settings: Vec<(String, String)>,
    /// The `spec` of each API.
    pub apis: Vec<Value>,
    /// The users there are beside the administrator.
    pub users: Vec<User>,
    /// Who has subscribed to what.
    pub subscriptions: Vec<(String, Vec<String>)>,
    /// Rules on rates.
    pub rules: Vec<Document>,
    /// Tiers.
    pub tiers: Vec<Document>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: Method,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub peer: IpAddr,
    pub body: Bytes,
}

impl Ask {
    pub fn get(target: &str) -> Self {
        let headers = vec![("host".to_owned(), "gateway.example".to_owned())];
        let peer = IpAddr::from([203, 0, 113, 1]);
        Self { method: Method::GET, target: target.to_owned(), headers, peer, body: Bytes::new() }
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
}

/// What came of a request.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    /// The error code of a refusal.
    pub code: Option<String>,
}

pub struct Stage {
    gateway: Gateway,
}

impl Stage {
    pub async fn new(setup: Setup) -> Self {
        let base = [
            ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
            ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
            ("CACHE_MAX_SIZE", "100"),
        ];
        let own = setup.settings.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let settings = Settings::load(Source::from_pairs(base.into_iter().chain(own)));
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}")).0;
        let store = Arc::new(Store::open(&settings).await.unwrap());
        for user in setup.users {
            store.insert_user(user).await.unwrap();
        }
        for (username, apis) in setup.subscriptions {
            store.save(Collection::Subscriptions, doc! { "username": username, "apis": apis }).await.unwrap();
        }
        for (collection, documents) in [(Collection::RateLimitRules, setup.rules), (Collection::Tiers, setup.tiers)] {
            for document in documents {
                store.save(collection, document).await.unwrap();
            }
        }
        let pools = Pools::new(PoolOptions::local());
        let mut definitions = Definitions::default();
        for spec in setup.apis {
            let id = format!("{}-{}", spec["name"].as_str().unwrap(), spec["version"].as_str().unwrap());
            let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi", "spec": spec,
                "metadata": { "name": id, "namespace": "edge", "uid": id, "generation": 1 } });
            let object = Arc::new(serde_json::from_value(object).unwrap());
            definitions.apis.insert(("edge".to_owned(), id), object);
        }
        let snapshot = Compiler::new(pools.clone()).compile(&definitions);
        assert!(snapshot.rejected.is_empty(), "{:?}", snapshot.rejected);
        let identity = Arc::new(Identity::new(&settings, store.clone()).unwrap());
        let sealer = Arc::new(settings.keys.sealer().unwrap());
        let gzip = Gzip::new(&settings.features);
        let gateway = Gateway {
            accounts: Arc::new(Accounts::new(&settings, identity.clone(), sealer)),
            security: Arc::new(Security::new(&settings)),
            routings: Arc::new(Routings::new(store, pools)),
            identity,
            platform: axum::Router::new(),
            settings: Arc::new(settings),
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            metrics: Metrics::default(),
            retries: RetryBudget::default(),
            traffic: Arc::new(Traffic::open(None)),
            draining: AtomicBool::new(false),
            gzip,
        };
        Self { gateway }
    }

    /// A token of this user, valid for so many seconds.
    pub fn token(&self, username: &str, seconds: u64) -> String {
        let user = User::new(username, "", "user");
        let keys = self.gateway.identity.keys();
        keys.issue(&user, Accesses::default(), Duration::from_secs(seconds)).unwrap()
    }

    /// What [`Gateway::handle`] does, up to the upstream.
    pub async fn ask(&self, ask: &Ask) -> Seen {
        let mut request = Request::builder().method(&ask.method).uri(&ask.target);
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if !ask.body.is_empty() {
            request = request.header("content-length", ask.body.len());
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let gateway = &self.gateway;
        let id = respond::request_id(&parts.headers);
        let mut observed = Observed { is_data_plane: true, ..Observed::default() };
        let peer = Peer { address: ask.peer, scheme: Scheme::Http };
        let client = gateway.security.active().client(&parts.headers, peer.address);
        let arrival = Arrival { parts: &parts, peer, client, id: &id, at: std::time::Instant::now() };
        let outcome = match gateway.admit_to_the_gateway(arrival).and_then(|()| gateway.parsed(&parts)) {
            Ok(segments) => self.decided(arrival, &segments, &ask.body, &mut observed).await,
            Err(problem) => Err(problem),
        };
        let code = outcome.as_ref().err().and_then(|problem| problem.code).map(str::to_owned);
        let response = outcome.unwrap_or_else(|problem| Gateway::refuse(&problem, arrival, &observed, false));
        let response = gateway.answered(arrival, response, &observed);
        let response = gateway.metered(response, &observed).await;
        Seen { status: response.status().as_u16(), code }
    }

    async fn decided(
        &self,
        arrival: Arrival<'_>,
        segments: &Segments<'_>,
        body: &Bytes,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        let asked = match self.gateway.asked(arrival, segments, observed).await {
            Ok(asked) => asked,
            Err(answer) => {
                self.gateway.account_for_no_call(arrival, observed).await?;
                return Ok(answer);
            }
        };
        let call = self.gateway.admitted(&asked, observed).await?;
        let carries_body = rest::takes_body(&call.parts.method) && !body.is_empty();
        let reading = validate::reading(&call, carries_body)?;
        let mut body = body.clone();
        let routed = self.gateway.routed(call.parts).await;
        let whole = carries_body.then_some(&mut body);
        let Decided { server, mut charged, .. } =
            self.gateway.decided(&call, reading, whole, routed.as_deref()).await?;
        let told = rest::Caller { key: charged.key.as_ref(), ..call.told };
        let body = RequestBody::Empty;
        rest::upstream_request(call.parts, call.api, call.endpoint, call.path, server, told, body)?;
        charged.is_sent = true;
        Ok(respond::empty(StatusCode::OK))
    }
}
