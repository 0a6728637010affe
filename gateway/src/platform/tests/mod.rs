//! The platform API as a client sees it, in memory mode.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use axum::routing::get;
use doorman_crds::role::Permission;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};

use super::{request::Caller, *};
use crate::{
    accounting::Accounts,
    client::{ClientAddress, Scheme},
    identity::Denied,
    security::Security,
    settings::Source,
    store::{
        Password, Role, Store, User,
        servers::{Server, external, with_redis},
    },
    telemetry::{logs::Logs, traffic::Traffic},
    upstream::{PoolOptions, Pools},
};

mod cluster;
mod config;
mod credits;
mod defined_apis;
mod defined_roles;
mod discovered;
mod governing;
mod hostile_clients;
mod hostile_tokens;
mod matrix;
mod quota;
mod rate_limits;
mod reload;
mod roles_and_groups;
mod routings;
mod security;
mod servable;
mod telemetry;
mod tiers;
mod tools;
mod users;
mod vault;
mod weights;

const PASSWORD: &str = "long-enough-password";

/// A platform API, and what a test may want to turn.
struct Fixture {
    router: Router,
    identity: Arc<Identity>,
    persistence: Arc<Persistence>,
    restart: Arc<Notify>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    ready: watch::Sender<bool>,
    telemetry: Telemetry,
    _folder: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
struct Seen {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Seen {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn is(&self, status: u16, body: Value) -> &Self {
        assert_eq!((self.status, self.json()), (status, body), "{self:?}");
        self
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn cookies(&self) -> Vec<&str> {
        self.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect()
    }

    fn cookie(&self, name: &str) -> String {
        let start = format!("{name}=");
        let last = self.cookies().into_iter().rfind(|cookie| cookie.starts_with(&start));
        last.and_then(|cookie| cookie[start.len()..].split(';').next()).unwrap_or_default().to_owned()
    }
}

/// A request in the making.
struct Call<'a> {
    fixture: &'a Fixture,
    builder: http::request::Builder,
    body: Body,
}

impl Call<'_> {
    fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn over(mut self, scheme: Scheme) -> Self {
        self.builder = self.builder.extension(scheme);
        self
    }

    fn from(mut self, address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        self.builder = self.builder.extension(ClientAddress { peer: address, effective: address });
        self
    }

    fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    async fn send(self) -> Seen {
        let request = self.builder.body(self.body).unwrap();
        let response = self.fixture.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Seen { status: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.into()).unwrap() }
    }
}

impl Fixture {
    /// Memory mode, with these settings changed. The last one of a name wins.
    async fn with(changes: &[(&str, &str)]) -> Self {
        let base = [
            ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
            ("DOORMAN_ADMIN_PASSWORD", PASSWORD),
            ("LOGIN_IP_RATE_LIMIT", "1000"),
            // Nobody can write there: tests that want the file name their own.
            ("SECURITY_SETTINGS_FILE", "/dev/null/none"),
        ];
        let settings = Settings::load(Source::from_pairs(base.iter().chain(changes).copied()));
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}")).0;
        let store = Store::open(&settings).await.unwrap();
        Self::over(settings, store)
    }

    fn over(settings: Settings, store: Store) -> Self {
        Self::writing(settings, store, Writing::Documents)
    }

    fn writing(settings: Settings, store: Store, writing: Writing) -> Self {
        let sealer = Arc::new(settings.keys.sealer().unwrap());
        let (settings, store) = (Arc::new(settings), Arc::new(store));
        let security = Arc::new(Security::new(&settings));
        let persistence = Arc::new(Persistence::new(Arc::clone(&settings), Arc::clone(&store), security));
        let identity = Arc::new(Identity::new(&settings, store).unwrap());
        let (ready, is_ready) = watch::channel(true);
        let (restart, snapshot) = (Arc::new(Notify::new()), Arc::default());
        let folder = tempfile::tempdir().unwrap();
        let logs = crate::settings::Logs { folder: folder.path().to_owned(), ..settings.logs.clone() };
        let (logs, _) = Logs::open(&logs, folder.path(), std::io::sink());
        let telemetry = Telemetry {
            logs: Arc::new(logs),
            traffic: Arc::new(Traffic::open(None)),
            connections: Gauge::default(),
            started: Instant::now(),
        };
        let accounts = Arc::new(Accounts::new(&settings, Arc::clone(&identity), Arc::clone(&sealer)));
        let discovery =
            Arc::new(Discovery::new(Pools::new(PoolOptions::local()), settings.upstream.clone(), identity.store()));
        let platform = Platform {
            settings,
            discovery,
            identity: Arc::clone(&identity),
            accounts,
            sealer,
            persistence: Arc::clone(&persistence),
            ready: is_ready,
            snapshot: Arc::clone(&snapshot),
            progress: None,
            writing,
            restart: Arc::clone(&restart),
            telemetry: telemetry.clone(),
            changes: TaskTracker::new(),
        };
        let whoami = async |Caller(caller): Caller| caller.principal.username.to_string();
        let areas = Router::from(areas()).route("/platform/test/whoami", get(whoami).post(whoami));
        let router = entrance(platform, areas);
        Self { router, identity, persistence, restart, snapshot, ready, telemetry, _folder: folder }
    }

    async fn usual() -> Self {
        Self::with(&[]).await
    }

    async fn add(&self, user: User) {
        self.identity.store().save_user(user).await.unwrap();
    }

    fn call(&self, method: &str, path: &str) -> Call<'_> {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let builder = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "api.example.com")
            .extension(ClientAddress { peer: address, effective: address })
            .extension(Scheme::Http);
        Call { fixture: self, builder, body: Body::empty() }
    }

    fn sign_in(&self, login: &str, password: &str) -> Call<'_> {
        let body = json!({ "email": login, "password": password }).to_string();
        self.call("POST", "/platform/authorization").body(body)
    }

    async fn token(&self) -> String {
        let seen = self.sign_in("admin", PASSWORD).send().await;
        seen.json()["access_token"].as_str().unwrap_or_else(|| panic!("{seen:?}")).to_owned()
    }

    /// A user with a role of just these permissions, signed in: the token.
    async fn with_role(&self, name: &str, permissions: &[Permission]) -> String {
        let role = Role {
            name: name.into(),
            description: None,
            permissions: permissions.iter().copied().collect(),
            ui_access: None,
            platform_admin: false,
        };
        self.identity.store().save_role(role).await.unwrap();
        let user = User::new(name, &format!("{name}@example.com"), name);
        self.add(user.clone()).await;
        let accesses = self.identity.accesses(&user).await.unwrap();
        self.identity.keys().issue((&user, crate::store::now()), accesses, Duration::from_secs(600)).unwrap()
    }

    /// A call with a token and a JSON body.
    async fn send(&self, method: &str, path: &str, token: &str, body: Value) -> Seen {
        let call = self.call(method, path).bearer(token).header("content-type", "application/json");
        if body.is_null() { call.send().await } else { call.body(body.to_string()).send().await }
    }

    async fn status_with(&self, token: &str) -> u16 {
        self.call("GET", "/platform/authorization/status").bearer(token).send().await.status
    }
}

fn refusal(code: &str, message: &str) -> Value {
    json!({ "error_code": code, "error_message": message })
}

/// A platform API over each kind of document store, with these settings changed.
async fn in_either_store(changes: &[(&str, &str)]) -> Vec<(Fixture, Option<(Server, Server)>)> {
    let servers = (Server::mongo(), Server::redis(&[]));
    let unlimited = [("LOGIN_IP_RATE_LIMIT", "1000")];
    let all: Vec<_> = unlimited.iter().chain(changes).copied().collect();
    let settings = external(servers.1.port, servers.0.port, &all);
    let store = Store::open(&settings).await.unwrap();
    vec![(Fixture::with(changes).await, None), (Fixture::over(settings, store), Some(servers))]
}

fn amy() -> User {
    User { password: Some(Password::from_text("Amy's password")), ..User::new("amy", "amy@example.com", "user") }
}

mod signing_in {
    use super::*;

    #[tokio::test]
    async fn works_with_address_or_name_and_gives_token_and_cookies() {
        let fixture = Fixture::usual().await;
        for login in ["admin@doorman.dev", "admin"] {
            let seen = fixture.sign_in(login, PASSWORD).send().await;
            let token = seen.json()["access_token"].as_str().unwrap().to_owned();
            seen.is(200, json!({ "access_token": token }));
            assert_eq!(fixture.status_with(&token).await, 200);
            assert_eq!(seen.cookie("access_token_cookie"), token);
            let csrf = seen.cookie("csrf_token");
            assert!(uuid::Uuid::parse_str(&csrf).is_ok());
            assert_eq!(
                seen.cookies(),
                [
                    "access_token_cookie=; Max-Age=0; Path=/; SameSite=lax; HttpOnly".to_owned(),
                    format!("access_token_cookie={token}; Max-Age=1800; Path=/; SameSite=strict; HttpOnly"),
                    format!("csrf_token={csrf}; Max-Age=1800; Path=/; SameSite=strict"),
                ]
            );
        }
    }

    #[tokio::test]
    async fn with_what_is_missing_or_wrong_is_refused() {
        let fixture = Fixture::usual().await;
        let missing = json!({ "error_code": "AUTH001", "error_message": "Missing email or password" });
        let invalid = json!({ "error_code": "AUTH002", "error_message": "Invalid email or password" });
        let not_json = json!({ "error_code": "AUTH004", "error_message": "Invalid JSON payload" });
        for (body, expected) in [
            (r#"{"email":"admin"}"#, &missing),
            (r#"{"email":"","password":"x"}"#, &missing),
            (r#"{"email":7,"password":"x"}"#, &missing),
            ("{}", &missing),
            (r#"{"email":"admin","password":"wrong"}"#, &invalid),
            (r#"{"email":"nobody","password":"wrong"}"#, &invalid),
            ("", &not_json),
            ("email=admin", &not_json),
            (r#"["admin"]"#, &not_json),
        ] {
            let seen = fixture.call("POST", "/platform/authorization").body(body).send().await;
            seen.is(400, expected.clone());
            assert!(seen.cookies().is_empty());
        }
    }

    #[tokio::test]
    async fn takes_json_of_any_content_type() {
        let fixture = Fixture::usual().await;
        assert_eq!(fixture.sign_in("admin", PASSWORD).header("content-type", "text/plain").send().await.status, 200);
    }

    #[tokio::test]
    async fn is_refused_to_the_inactive_and_to_those_who_must_change_their_password() {
        let fixture = Fixture::usual().await;
        fixture.add(User { active: false, ..amy() }).await;
        let inactive = json!({ "error_code": "AUTH007", "error_message": "User is not active" });
        fixture.sign_in("amy", "Amy's password").send().await.is(400, inactive);
        assert_eq!(
            fixture.sign_in("amy", "wrong").send().await.json()["error_code"],
            "AUTH002",
            "nothing is given away"
        );

        fixture.add(User { force_password_reset: true, ..amy() }).await;
        let seen = fixture.sign_in("amy", "Amy's password").send().await;
        assert_eq!((seen.status, &seen.json()["error_code"]), (403, &json!("AUTH008")));
    }

    #[tokio::test]
    async fn is_limited_by_client_address() {
        let fixture = Fixture::with(&[("LOGIN_IP_RATE_LIMIT", "2"), ("LOGIN_IP_RATE_WINDOW", "3600")]).await;
        let first = fixture.sign_in("admin", PASSWORD).send().await;
        assert_eq!((first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")), ("2", "1"));
        let reset: u64 = first.header("x-ratelimit-reset").parse().unwrap();
        assert_eq!(reset % 3600, 0);
        assert_eq!(fixture.call("POST", "/platform/authorization").send().await.status, 400, "every attempt counts");

        let third = fixture.sign_in("admin", PASSWORD).send().await;
        let wait = third.header("retry-after").to_owned();
        let message = format!(
            "Too many requests from your IP address. Please wait {wait} seconds before trying again. Limit: 2 requests per 3600 seconds."
        );
        third.is(429, json!({ "error_code": "IP_RATE_LIMIT", "error_message": message }));
        assert_eq!((third.header("x-ratelimit-limit"), third.header("x-ratelimit-remaining")), ("2", "0"));
        assert_eq!(third.header("x-ratelimit-reset"), reset.to_string());
        assert!((1..=3600).contains(&wait.parse::<u64>().unwrap()));

        assert_eq!(fixture.sign_in("admin", PASSWORD).from("192.0.2.2").send().await.status, 200);
    }

    #[tokio::test]
    async fn limits_an_ipv6_client_by_its_network() {
        let fixture = Fixture::with(&[("LOGIN_IP_RATE_LIMIT", "1"), ("LOGIN_IP_RATE_WINDOW", "3600")]).await;
        assert_eq!(fixture.sign_in("admin", PASSWORD).from("2001:db8:0:1::1").send().await.status, 200);
        assert_eq!(fixture.sign_in("admin", PASSWORD).from("2001:db8:0:1:ffff::2").send().await.status, 429);
        assert_eq!(fixture.sign_in("admin", PASSWORD).from("2001:db8:0:2::1").send().await.status, 200);
    }

    #[tokio::test]
    async fn is_unlimited_when_the_limit_is_off() {
        let fixture = Fixture::with(&[("LOGIN_IP_RATE_LIMIT", "1"), ("LOGIN_IP_RATE_DISABLED", "True")]).await;
        for _ in 0..3 {
            let seen = fixture.sign_in("admin", PASSWORD).send().await;
            assert_eq!((seen.status, seen.header("x-ratelimit-limit")), (200, ""));
        }
    }

    #[tokio::test]
    async fn leaves_earlier_tokens_valid() {
        let fixture = Fixture::usual().await;
        let (first, second) = (fixture.token().await, fixture.token().await);
        assert_ne!(first, second);
        assert_eq!((fixture.status_with(&first).await, fixture.status_with(&second).await), (200, 200));
    }
}

mod sessions {
    use super::*;

    #[tokio::test]
    async fn status_tells_whether_a_token_is_valid() {
        let fixture = Fixture::usual().await;
        let token = fixture.token().await;
        let seen = fixture.call("GET", "/platform/authorization/status").bearer(&token).send().await;
        seen.is(200, json!({ "message": "Token is valid" }));
        let refused = json!({ "error_code": "AUTH005", "error_message": "Unauthorized" });
        fixture.call("GET", "/platform/authorization/status").send().await.is(401, refused.clone());
        fixture.call("GET", "/platform/authorization/status").bearer("bad").send().await.is(401, refused);
    }

    #[tokio::test]
    async fn refresh_gives_a_longer_token_and_keeps_the_old_one() {
        let fixture = Fixture::usual().await;
        let token = fixture.token().await;
        let seen = fixture.call("POST", "/platform/authorization/refresh").bearer(&token).send().await;
        let longer = seen.json()["refresh_token"].as_str().unwrap().to_owned();
        seen.is(200, json!({ "refresh_token": longer }));
        assert!(seen.cookies()[0].contains("Max-Age=604800;"), "{seen:?}");
        assert_eq!(seen.cookie("access_token_cookie"), longer);
        assert_eq!((fixture.status_with(&token).await, fixture.status_with(&longer).await), (200, 200));
    }

    #[tokio::test]
    async fn refresh_without_a_valid_token_is_refused_whatever_the_reason() {
        let fixture = Fixture::usual().await;
        let refused = json!({ "error_code": "AUTH003", "error_message": "Unable to validate credentials" });
        fixture.call("POST", "/platform/authorization/refresh").send().await.is(401, refused.clone());
        fixture.add(amy()).await;
        let token = fixture.sign_in("amy", "Amy's password").send().await.cookie("access_token_cookie");
        fixture.add(User { active: false, ..amy() }).await;
        fixture.call("POST", "/platform/authorization/refresh").bearer(&token).send().await.is(401, refused);
    }

    #[tokio::test]
    async fn signing_out_revokes_the_token_that_was_used() {
        let fixture = Fixture::usual().await;
        let (token, other) = (fixture.token().await, fixture.token().await);
        let seen = fixture
            .call("POST", "/platform/authorization/invalidate")
            .header("cookie", &format!("access_token_cookie={token}"))
            .bearer(&other)
            .send()
            .await;
        seen.is(200, json!({ "message": "Your token has been invalidated" }));
        assert_eq!(
            seen.cookies(),
            [
                "access_token_cookie=; Max-Age=0; Path=/; SameSite=lax; HttpOnly",
                "access_token_cookie_dev=; Max-Age=0; Path=/; SameSite=lax; HttpOnly",
            ]
        );
        assert_eq!((fixture.status_with(&token).await, fixture.status_with(&other).await), (401, 200));
        let again = fixture.call("POST", "/platform/authorization/invalidate").bearer(&token).send().await;
        again.is(401, json!({ "error_code": "AUTH005", "error_message": "Unauthorized" }));
    }

    #[tokio::test]
    async fn signing_out_another_user_needs_permission_and_revokes_all_its_tokens() {
        let fixture = Fixture::usual().await;
        fixture.add(amy()).await;
        let admins = fixture.token().await;
        let amys = fixture.sign_in("amy", "Amy's password").send().await.cookie("access_token_cookie");
        let sign_out = |token: &str, body: &str| {
            fixture.call("POST", "/platform/authorization/invalidate").bearer(token).body(body.to_owned()).send()
        };

        let forbidden =
            json!({ "error_code": "AUTH900", "error_message": "You do not have permission to manage auth" });
        sign_out(&amys, r#"{"username":"admin"}"#).await.is(403, forbidden);
        let invalid = json!({ "error_code": "VAL001", "error_message": "Validation Error" });
        sign_out(&admins, "username=amy").await.is(422, invalid.clone());
        sign_out(&admins, r#"{"username":["amy"]}"#).await.is(422, invalid);
        assert_eq!((fixture.status_with(&admins).await, fixture.status_with(&amys).await), (200, 200));

        let revoked = json!({ "message": "All tokens revoked for amy" });
        sign_out(&admins, r#"{"username":"amy"}"#).await.is(200, revoked);
        assert_eq!((fixture.status_with(&admins).await, fixture.status_with(&amys).await), (200, 401));
        let later = fixture.sign_in("amy", "Amy's password").send().await;
        assert_eq!((later.status, fixture.status_with(&later.cookie("access_token_cookie")).await), (200, 401));
    }

    #[tokio::test]
    async fn signing_oneself_out_by_name_revokes_one_token() {
        let fixture = Fixture::usual().await;
        let (token, other) = (fixture.token().await, fixture.token().await);
        let call = fixture.call("POST", "/platform/authorization/invalidate").bearer(&token);
        assert_eq!(call.body(r#"{"username":"admin"}"#).send().await.status, 200);
        assert_eq!((fixture.status_with(&token).await, fixture.status_with(&other).await), (401, 200));
    }

    #[tokio::test]
    async fn other_routes_say_it_in_detail() {
        let fixture = Fixture::usual().await;
        fixture.call("GET", "/platform/test/whoami").send().await.is(401, json!({ "detail": "Unauthorized" }));
        let token = fixture.token().await;
        assert_eq!(fixture.call("GET", "/platform/test/whoami").bearer(&token).send().await.text, "admin");
    }

    #[tokio::test]
    async fn a_token_lives_as_long_as_the_settings_say() {
        let fixture = Fixture::with(&[("AUTH_EXPIRE_TIME", "2"), ("AUTH_EXPIRE_TIME_FREQ", "h")]).await;
        let seen = fixture.sign_in("admin", PASSWORD).send().await;
        assert!(seen.cookies()[1].contains("Max-Age=7200;"));
        let claims = fixture.identity.keys().verify(&seen.cookie("access_token_cookie")).unwrap();
        let left = Duration::from_secs(claims.exp - crate::store::now());
        assert!((7190..=7200).contains(&left.as_secs()));
        assert_eq!(fixture.identity.keys().verify("x.y.z"), Err(Denied::Unauthorized));
    }
}

mod cookies {
    use super::*;

    async fn attributes(changes: &[(&str, &str)], sent: &[(&str, &str)], scheme: Scheme) -> String {
        let fixture = Fixture::with(changes).await;
        let call = fixture.sign_in("admin", PASSWORD).over(scheme);
        // `host` is replaced rather than repeated.
        let call = sent.iter().fold(call, |mut call, (name, value)| {
            if let Some(headers) = call.builder.headers_mut() {
                headers.remove(*name);
            }
            call.header(name, value)
        });
        let seen = call.send().await;
        let cookie = seen.cookies()[2].to_owned();
        cookie.split_once("Path=/; ").unwrap_or_else(|| panic!("{cookie}")).1.to_owned()
    }

    #[tokio::test]
    async fn are_secure_where_https_is_enforced_or_used() {
        let proxied = [("x-forwarded-proto", "https")];
        assert_eq!(attributes(&[], &[], Scheme::Http).await, "SameSite=strict");
        assert_eq!(attributes(&[], &[], Scheme::Https).await, "SameSite=strict; Secure");
        assert_eq!(attributes(&[], &proxied, Scheme::Http).await, "SameSite=strict; Secure");
        assert_eq!(attributes(&[("HTTPS_ENABLED", "true")], &[], Scheme::Http).await, "SameSite=strict; Secure");
        assert_eq!(attributes(&[("COOKIE_SECURE", "true")], &[], Scheme::Http).await, "SameSite=strict; Secure");
        assert_eq!(attributes(&[("COOKIE_SECURE", "false")], &[], Scheme::Https).await, "SameSite=strict");
    }

    #[tokio::test]
    async fn are_not_secure_on_a_plain_local_gateway() {
        let secure = [("COOKIE_SECURE", "true")];
        let local = [("host", "localhost:5001")];
        assert_eq!(attributes(&secure, &local, Scheme::Http).await, "SameSite=strict");
        assert_eq!(attributes(&secure, &local, Scheme::Https).await, "SameSite=strict; Secure");
        let enforced = [("COOKIE_SECURE", "true"), ("HTTPS_ENABLED", "true")];
        assert_eq!(attributes(&enforced, &local, Scheme::Http).await, "SameSite=strict; Secure");
    }

    #[tokio::test]
    async fn without_same_site_need_secure() {
        let none = [("COOKIE_SAMESITE", "None")];
        assert_eq!(attributes(&none, &[], Scheme::Http).await, "SameSite=lax");
        assert_eq!(attributes(&none, &[], Scheme::Https).await, "SameSite=none; Secure");
    }

    #[tokio::test]
    async fn have_a_domain_only_if_the_host_is_of_it() {
        let domain = [("COOKIE_DOMAIN", "Example.com")];
        let of = async |host| attributes(&domain, &[("host", host)], Scheme::Http).await;
        assert_eq!(of("api.example.com:8443").await, "SameSite=strict; Domain=example.com");
        assert_eq!(of("EXAMPLE.com").await, "SameSite=strict; Domain=example.com");
        assert_eq!(of("badexample.com").await, "SameSite=strict");
        assert_eq!(of("localhost").await, "SameSite=strict");
        let proxied = [("host", "10.0.0.1:5001"), ("x-forwarded-host", "api.example.com")];
        assert_eq!(attributes(&domain, &proxied, Scheme::Http).await, "SameSite=strict; Domain=example.com");
        assert_eq!(attributes(&[("COOKIE_DOMAIN", "com")], &[], Scheme::Http).await, "SameSite=strict");
    }
}

mod csrf {
    use super::*;

    const ENFORCED: &[(&str, &str)] = &[("HTTPS_ENABLED", "true")];

    /// Status and text of a call whose header and cookie hold these.
    async fn whoami(fixture: &Fixture, token: &str, header: Option<&str>, cookie: Option<&str>) -> (u16, String) {
        let call = fixture.call("GET", "/platform/test/whoami").header("x-forwarded-proto", "https").bearer(token);
        let call = header.into_iter().fold(call, |call, value| call.header("x-csrf-token", value));
        let call = cookie.into_iter().fold(call, |call, value| call.header("cookie", &format!("csrf_token={value}")));
        let seen = call.send().await;
        (seen.status, seen.text)
    }

    #[tokio::test]
    async fn header_must_repeat_the_cookie_over_https() {
        let fixture = Fixture::with(ENFORCED).await;
        let token = fixture.token().await;
        let refused = (401, r#"{"detail":"Invalid CSRF token"}"#.to_owned());
        let admitted = (200, "admin".to_owned());
        assert_eq!(whoami(&fixture, &token, Some("a"), Some("a")).await, admitted);
        assert_eq!(whoami(&fixture, &token, Some("a"), Some("b")).await, refused);
        assert_eq!(whoami(&fixture, &token, None, Some("a")).await, refused);
        assert_eq!(whoami(&fixture, &token, Some(""), Some("")).await, refused);
        assert_eq!(whoami(&fixture, &token, None, None).await, refused);
    }

    #[tokio::test]
    async fn a_client_without_cookies_repeats_what_its_sign_in_told() {
        let fixture = Fixture::with(ENFORCED).await;
        let seen = fixture.sign_in("admin", PASSWORD).send().await;
        let (token, csrf) = (seen.cookie("access_token_cookie"), seen.cookie("csrf_token"));
        assert_eq!(whoami(&fixture, &token, Some(&csrf), None).await.0, 200);
        assert_eq!(whoami(&fixture, &token, Some("other"), None).await.0, 401);
    }

    #[tokio::test]
    async fn is_not_asked_for_without_https_nor_of_sessions() {
        let fixture = Fixture::with(ENFORCED).await;
        let token = fixture.token().await;
        assert_eq!(fixture.call("GET", "/platform/test/whoami").bearer(&token).send().await.status, 200);
        let status = fixture.call("GET", "/platform/authorization/status").over(Scheme::Https).bearer(&token);
        assert_eq!(status.send().await.status, 200);
        let unenforced = Fixture::usual().await;
        let call = unenforced.call("GET", "/platform/test/whoami").over(Scheme::Https);
        assert_eq!(call.bearer(&unenforced.token().await).send().await.status, 200);
    }
}

mod cors {
    use super::*;

    async fn preflight(changes: &[(&str, &str)], path: &str, origin: &str) -> Seen {
        let fixture = Fixture::with(changes).await;
        fixture.call("OPTIONS", path).header("origin", origin).send().await
    }

    #[tokio::test]
    async fn every_preflight_below_platform_is_answered() {
        for path in ["/platform/api", "/platform/no/such/path", "/platform/authorization", "/platform"] {
            let seen = preflight(&[], path, "https://app.example.com").await;
            assert_eq!((seen.status, seen.text.as_str()), (204, ""));
            assert_eq!(seen.header("access-control-allow-origin"), "https://app.example.com");
            assert_eq!(seen.header("access-control-allow-methods"), "GET, POST, PUT, DELETE, OPTIONS, PATCH, HEAD");
            assert_eq!(
                seen.header("access-control-allow-headers"),
                "Accept, Content-Type, X-CSRF-Token, Authorization, X-Requested-With"
            );
            assert_eq!(seen.header("access-control-allow-credentials"), "true");
            assert_eq!(seen.header("vary"), "Origin");
        }
    }

    #[tokio::test]
    async fn origins_are_allowed_as_the_settings_say() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<&'a str>, Option<&'a str>);
        let listed = ("ALLOWED_ORIGINS", "https://a.example.com,https://b.example.com");
        let strict = ("CORS_STRICT", "true");
        let uncredentialed = ("ALLOW_CREDENTIALS", "false");
        // Settings, origin, allow-origin of the preflight (None: no such header) and of an answer.
        let cases: &[Case] = &[
            (&[], "https://x.com", Some("https://x.com"), Some("https://x.com")),
            (&[listed], "https://b.example.com", Some("https://b.example.com"), Some("https://b.example.com")),
            (&[listed], "https://x.com", None, None),
            (&[listed, strict], "http://localhost:3000", None, None),
            (&[strict], "https://x.com", Some(""), None),
            (&[strict], "http://localhost:3000", Some("http://localhost:3000"), Some("http://localhost:3000")),
            (&[strict], "https://127.0.0.1", Some("https://127.0.0.1"), Some("https://127.0.0.1")),
            (&[strict], "http://localhost.evil.com", Some(""), None),
            (&[strict, uncredentialed], "https://x.com", Some("https://x.com"), Some("https://x.com")),
        ];
        for (changes, origin, on_preflight, on_answer) in cases {
            let fixture = Fixture::with(changes).await;
            let allowed = async |method| {
                let seen = fixture.call(method, "/platform/monitor/liveness").header("origin", origin).send().await;
                seen.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned())
            };
            assert_eq!(allowed("OPTIONS").await.as_deref(), *on_preflight, "{changes:?} {origin}");
            assert_eq!(allowed("GET").await.as_deref(), *on_answer, "{changes:?} {origin}");
        }
    }

    #[tokio::test]
    async fn answers_and_refusals_alike_carry_the_headers() {
        let fixture = Fixture::usual().await;
        for path in ["/platform/monitor/liveness", "/platform/none", "/platform/authorization/status"] {
            let seen = fixture.call("GET", path).send().await;
            assert_eq!(seen.header("access-control-allow-credentials"), "true");
            assert_eq!(seen.header("vary"), "Origin");
            assert_eq!(seen.headers.get("access-control-allow-origin"), None);
        }
        let without = Fixture::with(&[("ALLOW_CREDENTIALS", "False")]).await;
        let seen = without.call("GET", "/platform/none").send().await;
        assert_eq!(seen.headers.get("access-control-allow-credentials"), None);
    }
}

mod routing {
    use super::*;

    #[tokio::test]
    async fn unknown_paths_and_methods_are_told_apart() {
        let fixture = Fixture::usual().await;
        let not_found = json!({ "detail": "Not Found" });
        fixture.call("GET", "/platform/none").send().await.is(404, not_found.clone());
        fixture.call("POST", "/platform/none").send().await.is(404, not_found.clone());
        fixture.call("GET", "/platform").send().await.is(404, not_found.clone());
        fixture.call("GET", "//").send().await.is(404, not_found);
        let not_allowed = json!({ "detail": "Method Not Allowed" });
        for (method, path, allow) in [
            ("GET", "/platform/authorization", "POST"),
            ("DELETE", "/platform/authorization/status", "GET"),
            ("POST", "/platform/monitor/liveness", "GET"),
            ("TRACE", "/platform/monitor/liveness", "GET"),
        ] {
            let seen = fixture.call(method, path).send().await;
            assert_eq!(seen.is(405, not_allowed.clone()).header("allow"), allow, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn head_is_not_answered_by_routes_for_get() {
        let fixture = Fixture::usual().await;
        assert_eq!(fixture.call("HEAD", "/platform/monitor/liveness").send().await.status, 405);
        assert_eq!(fixture.call("HEAD", "/platform/none").send().await.status, 404);
    }

    #[tokio::test]
    async fn a_trailing_slash_makes_no_difference() {
        let fixture = Fixture::usual().await;
        assert_eq!(fixture.call("GET", "/platform/monitor/liveness/?x=1").send().await.status, 200);
        assert_eq!(fixture.call("GET", "/platform/monitor/liveness//").send().await.status, 404);
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused_before_sign_in() {
        let fixture = Fixture::with(&[("MAX_BODY_SIZE_BYTES", "100")]).await;
        let refused = json!({ "error_code": "REQ001", "error_message": "Request entity too large (max: 100 bytes)" });
        let body = "x".repeat(101);
        let told = fixture.call("POST", "/platform/authorization/invalidate").header("content-length", "101");
        told.body(body.clone()).send().await.is(413, refused.clone());
        let untold = Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(body)]));
        fixture.call("POST", "/platform/authorization/invalidate").body(untold).send().await.is(413, refused);
    }
}

mod envelope {
    use super::*;

    const STRICT: &[(&str, &str)] = &[("STRICT_RESPONSE_ENVELOPE", "true")];

    #[tokio::test]
    async fn strict_wraps_data_messages_and_errors_with_their_true_status() {
        let fixture = Fixture::with(STRICT).await;
        let seen = fixture.sign_in("admin", PASSWORD).send().await;
        let token = seen.json()["access_token"].clone();
        seen.is(200, json!({ "status_code": 200, "response": { "access_token": token }, "access_token": token }));
        assert_eq!(seen.header("x-ratelimit-limit"), "1000", "headers stay");
        let status = fixture.call("GET", "/platform/authorization/status").bearer(token.as_str().unwrap()).send().await;
        status.is(200, json!({ "status_code": 200, "message": "Token is valid" }));
        let refused = fixture.call("GET", "/platform/authorization/status").send().await;
        let expected = json!({ "status_code": 401, "error_code": "AUTH005", "error_message": "Unauthorized" });
        refused.is(401, expected);
        for seen in [seen, status, refused] {
            let length = seen.text.len().to_string();
            assert_eq!((seen.header("x-body-length"), seen.header("content-length")), (&*length, &*length));
            assert_eq!(seen.header("content-type"), "application/json");
        }
    }

    #[tokio::test]
    async fn some_answers_are_never_wrapped() {
        let fixture = Fixture::with(STRICT).await;
        fixture.call("GET", "/platform/none").send().await.is(404, json!({ "detail": "Not Found" }));
        let seen = fixture.call("GET", "/platform/monitor/liveness").send().await;
        seen.is(200, json!({ "status": "alive" }));
        assert_eq!(seen.headers.get("x-body-length"), None);
    }
}

mod probes {
    use super::*;

    #[tokio::test]
    async fn readiness_follows_the_process() {
        let fixture = Fixture::usual().await;
        let ready = json!({ "status": "ready", "mongodb": "connected", "redis": "connected" });
        let degraded = json!({ "status": "degraded", "mongodb": "connected", "redis": "connected" });
        fixture.call("GET", "/platform/monitor/readiness").send().await.is(200, ready.clone());
        fixture.ready.send_replace(false);
        fixture.call("GET", "/platform/monitor/readiness").send().await.is(503, degraded);
        assert_eq!(fixture.call("GET", "/platform/monitor/liveness").send().await.status, 200);
        fixture.ready.send_replace(true);
        fixture.call("GET", "/platform/monitor/readiness").bearer("bad").send().await.is(200, ready);
    }

    #[tokio::test]
    async fn readiness_is_off_while_a_store_is_away() {
        let mut redis = Server::redis(&[]);
        let settings = external(redis.port, 1, &[]);
        let store = with_redis(&settings).await;
        let fixture = Fixture::over(settings, store);
        let becomes = async |status, body: Value| {
            let start = Instant::now();
            loop {
                let seen = fixture.call("GET", "/platform/monitor/readiness").send().await;
                if seen.status == status {
                    seen.is(status, body);
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(10), "{seen:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let test = async {
            redis.stop();
            let away = json!({ "status": "degraded", "mongodb": "connected", "redis": "disconnected" });
            becomes(503, away).await;
            redis.restart();
            becomes(200, json!({ "status": "ready", "mongodb": "connected", "redis": "connected" })).await;
        };
        tokio::select! { () = test => {}, () = fixture.identity.maintain() => {} }
    }

    #[tokio::test]
    async fn sign_ins_that_can_not_be_counted_are_refused_when_limits_fail_closed() {
        for (mode, expected) in [("Closed", 503), ("Open", 200)] {
            let mut redis = Server::redis(&[]);
            let settings = external(redis.port, 1, &[("DOORMAN_LIMITS_FAIL_MODE", mode)]);
            let store = with_redis(&settings).await;
            let fixture = Fixture::over(settings, store);
            assert_eq!(fixture.sign_in("admin", PASSWORD).send().await.status, 200);
            redis.stop();
            let seen = fixture.sign_in("admin", PASSWORD).send().await;
            assert_eq!(seen.status, expected, "{mode}: {seen:?}");
            if mode == "Closed" {
                let message = "Service temporarily unavailable";
                seen.is(503, json!({ "error_code": "LIM503", "error_message": message }));
                assert_eq!(seen.header("retry-after"), "5");
            } else {
                // Nobody knows whether it has been revoked.
                assert_eq!(fixture.status_with(seen.json()["access_token"].as_str().unwrap()).await, 503);
            }
        }
    }

    #[tokio::test]
    async fn nobody_signs_in_while_mongodb_is_away_and_all_can_when_it_is_back() {
        let (redis, mut mongo) = (Server::redis(&[]), Server::mongo());
        let settings = external(redis.port, mongo.port, &[("LOGIN_IP_RATE_LIMIT", "1000")]);
        let store = Store::open(&settings).await.unwrap();
        let fixture = Fixture::over(settings, store);
        mongo.stop();
        let start = Instant::now();
        let seen = fixture.sign_in("admin", PASSWORD).send().await;
        seen.is(500, json!({ "error_code": "GTW999", "error_message": "Database unavailable" }));
        assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
        mongo.restart();
        while fixture.sign_in("admin", PASSWORD).send().await.status != 200 {
            assert!(start.elapsed() < Duration::from_secs(30), "MongoDB is back and nobody noticed");
        }
    }

    #[tokio::test]
    async fn readiness_shows_more_to_those_who_manage_the_gateway() {
        let fixture = Fixture::usual().await;
        fixture.add(amy()).await;
        let amys = fixture.sign_in("amy", "Amy's password").send().await.cookie("access_token_cookie");
        let seen = fixture.call("GET", "/platform/monitor/readiness").bearer(&amys).send().await;
        assert_eq!(seen.json().get("mode"), None);
        let seen = fixture.call("GET", "/platform/monitor/readiness").bearer(&fixture.token().await).send().await;
        assert_eq!((&seen.json()["mode"], &seen.json()["cache_backend"]), (&json!("memory"), &json!("memory")));
    }
}
