//! Configurations, and what is asked under them: few names and small numbers, so that everything meets.

use std::fmt;

use doorman_crds::DoormanApiSpec;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::Union;
use serde_json::{Value, json};

use super::stage::Ask;
use crate::store::User;

/// A configuration.
#[derive(Clone)]
pub struct World {
    /// When it begins, in ISO 8601.
    pub start: &'static str,
    pub options: Options,
    pub filter: Filter,
    pub apis: Vec<DoormanApiSpec>,
    pub people: Vec<Person>,
    pub tokens: Vec<Token>,
    pub tiers: Vec<Tier>,
    pub rules: Vec<Rule>,
    pub groups: Vec<CreditGroup>,
    pub routings: Vec<(&'static str, Vec<&'static str>)>,
}

/// A line for each part.
impl fmt::Debug for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, options, filter, apis, people, tokens, tiers, rules, groups, routings } = self;
        writeln!(out, "{start} {options:?}\n{filter:?}")?;
        apis.iter().try_for_each(|api| writeln!(out, "{}", serde_json::to_string(api).unwrap()))?;
        people.iter().try_for_each(|person| writeln!(out, "{person:?}"))?;
        tokens.iter().enumerate().try_for_each(|(number, token)| writeln!(out, "{{{number}}}: {token:?}"))?;
        tiers.iter().try_for_each(|tier| writeln!(out, "{tier:?}"))?;
        rules.iter().try_for_each(|rule| writeln!(out, "{rule:?}"))?;
        write!(out, "{groups:?}\n{routings:?}")
    }
}

/// What the settings say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub is_production: bool,
    pub in_docker: bool,
    /// `MAX_BODY_SIZE_BYTES`, and that of REST.
    pub body: u64,
    pub rest_body: Option<u64>,
    pub admins_subscribe: bool,
    pub skips_tiers: bool,
    pub strict_options: bool,
}

/// What the security settings say.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub allow: Vec<&'static str>,
    pub deny: Vec<&'static str>,
    pub trusts: bool,
    pub proxies: Vec<&'static str>,
    pub bypass: Option<bool>,
}

#[derive(Clone, Debug)]
pub struct Person {
    pub user: User,
    pub is_revoked: bool,
    pub apis: Vec<&'static str>,
    pub assignment: Option<Assignment>,
    /// Group, credits, own key.
    pub balances: Vec<(&'static str, i64, Option<&'static str>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    Forged,
    Revoked,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub user: &'static str,
    /// Seconds from the start.
    pub life: u64,
    pub standing: Standing,
}

/// Members of a tier's limits.
pub type Limits = Vec<(&'static str, i64)>;

#[derive(Clone, Debug)]
pub struct Tier {
    pub id: &'static str,
    pub is_default: bool,
    /// Stored only if it is said.
    pub enabled: Option<bool>,
    pub limits: Limits,
    /// `max_queue_time_ms`, where throttling is on.
    pub queue: Option<i64>,
}

/// Seconds are from the start.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub tier: &'static str,
    pub overrides: Option<Limits>,
    pub from: Option<i64>,
    pub until: Option<i64>,
    pub next: Option<Box<Assignment>>,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub id: String,
    pub kind: &'static str,
    pub target: Option<&'static str>,
    pub window: &'static str,
    pub limit: i64,
    pub priority: i64,
    pub enabled: bool,
}

#[derive(Clone, Debug)]
pub struct CreditGroup {
    pub name: &'static str,
    pub header: &'static str,
    pub key: &'static str,
    pub new_key: Option<&'static str>,
}

/// A part of the configuration that is another one from now on. Users and APIs stay in their places.
#[derive(Clone, Debug)]
pub enum Change {
    Filter(Filter),
    Api(usize, Box<DoormanApiSpec>),
    Person(usize, Box<Person>),
    Tiers(Vec<Tier>),
    Rules(Vec<Rule>),
    Groups(Vec<CreditGroup>),
}

impl World {
    /// This configuration with a change.
    pub fn with(&self, change: &Change) -> Self {
        let mut world = self.clone();
        match change.clone() {
            Change::Filter(filter) => world.filter = filter,
            Change::Api(index, api) => world.apis[index] = *api,
            Change::Person(index, person) => world.people[index] = *person,
            Change::Tiers(tiers) => world.tiers = tiers,
            Change::Rules(rules) => world.rules = rules,
            Change::Groups(groups) => world.groups = groups,
        }
        world
    }
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// The configuration changes.
    Change(Change),
    /// So many milliseconds pass.
    Pass(u64),
    /// The clock of the day is set forward by so many seconds.
    Set(i64),
    /// A request, and how many bytes the upstream would answer with.
    Ask(Ask, usize),
}

const ADDRESSES: [&str; 14] = [
    "203.0.113.9",
    "203.0.113.9",
    "203.0.113.9",
    "203.0.113.8",
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "10.1.2.3",
    "127.0.0.1",
    "::1",
    "172.17.0.1",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:0:1::1",
    "2001:db9::1",
];
const NETWORKS: [&str; 11] = [
    "10.0.0.0/8",
    "::ffff:10.0.0.0/104",
    "10.0.0.1",
    "203.0.113.0/29",
    "203.0.113.9/32",
    "2001:db8::/64",
    "2001:db8::1",
    "127.0.0.0/8",
    "::1",
    "0.0.0.0/0",
    "::/0",
];
const PEOPLE: [(&str, &str); 4] = [("amy", "user"), ("bob", "ops"), ("root", "admin"), ("dan", "boss")];
/// Roles of the store, and which are of administrators.
pub const ROLES: [(&str, bool); 3] = [("user", false), ("ops", false), ("boss", true)];
const APIS: [&str; 3] = ["a", "b", "c"];
const LABELS: [&str; 3] = ["a/v1", "b/v1", "c/v1"];
const SERVERS: [&str; 5] =
    ["http://up1", "http://up2:80/base/", "http://up3:8080/x?k=v", "https://up4:443", "https://[2001:db8::9]:8443"];
const UNITS: [&str; 10] =
    ["second", "seconds", "minute", "minutes", "minute", "hours", "day", "week", "months", "moon"];
const GROUPS: [&str; 2] = ["ai", "maps"];

fn networks() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(&NETWORKS[..]), 1..3)
}

/// Mostly nothing.
fn rarely<T: Strategy>(strategy: T) -> impl Strategy<Value = Option<T::Value>> {
    weighted(0.15, strategy)
}

fn flag(probability: f64) -> impl Strategy<Value = bool> {
    prop::bool::weighted(probability)
}

fn options() -> impl Strategy<Value = Options> {
    (flag(0.1), flag(0.2), weighted(0.3, 20..60_u64), weighted(0.25, 12..40_u64), flag(0.7), flag(0.1), flag(0.2))
        .prop_map(|(is_production, in_docker, body, rest_body, admins_subscribe, skips_tiers, strict_options)| {
            Options {
                is_production,
                in_docker,
                body: body.unwrap_or(1 << 20),
                rest_body,
                admins_subscribe,
                skips_tiers,
                strict_options,
            }
        })
}

fn filter() -> impl Strategy<Value = Filter> {
    let bypass = weighted(0.5, any::<bool>());
    (weighted(0.06, networks()), weighted(0.09, networks()), any::<bool>(), weighted(0.5, networks()), bypass).prop_map(
        |(allow, deny, trusts, proxies, bypass)| Filter {
            allow: allow.unwrap_or_default(),
            deny: deny.unwrap_or_default(),
            trusts,
            proxies: proxies.unwrap_or_default(),
            bypass,
        },
    )
}

/// Method, path upstream, path of clients.
const ENDPOINTS: [(&str, &str, Option<&str>); 10] = [
    ("GET", "/items", None),
    ("GET", "/items/{id}", None),
    ("GET", "/items/all", None),
    ("GET", "/", None),
    ("POST", "/items", None),
    ("PUT", "/caf\u{e9}/{id}", None),
    ("GET", "/up/{b}/{a}", Some("/down/{a}/{b}")),
    ("DELETE", "/other", Some("/items/{id}")),
    ("GET", "/one", Some("/{x}/all")),
    ("HEAD", "/other", None),
];

fn endpoints() -> impl Strategy<Value = Vec<Value>> {
    let endpoint = |(method, uri, client_uri): (&str, &str, Option<&str>)| {
        let base = json!({ "method": method, "uri": uri, "clientUri": client_uri });
        (rarely(servers()), weighted(0.3, flag(0.8))).prop_map(move |(servers, validation)| {
            let mut spec = base.clone();
            spec["servers"] = json!(servers);
            if let Some(enabled) = validation {
                let rule = json!({ "required": true, "type": "string", "min": 2 });
                spec["validation"] = json!({ "enabled": enabled, "rules": { "name": rule } });
            }
            spec
        })
    };
    subsequence(&ENDPOINTS[..], 7..=ENDPOINTS.len())
        .prop_flat_map(move |chosen| chosen.into_iter().map(endpoint).collect::<Vec<_>>())
}

fn servers() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(&SERVERS[..]), 1..4)
}

fn access() -> impl Strategy<Value = Value> {
    let roles = weighted(0.3, vec(select(&["user", "user", "user", "admin", "boss", "ops", "ghost"][..]), 0..4));
    let groups = weighted(0.3, vec(select(&["ALL", "ALL", "dev"][..]), 0..3));
    let ip = (select(&["AllowAll", "Whitelist"][..]), weighted(0.7, networks()), weighted(0.5, networks()));
    let ip = weighted(0.2, (ip, weighted(0.5, any::<bool>())));
    (roles, groups, ip).prop_map(|(roles, groups, ip)| {
        let ip = ip.map(|((mode, allow, deny), trust)| {
            json!({ "mode": mode, "allow": allow, "deny": deny, "trustForwardedFor": trust })
        });
        let roles = roles.map(|mut roles| {
            roles.dedup();
            roles
        });
        json!({ "roles": roles, "groups": groups, "ip": ip })
    })
}

fn cors() -> impl Strategy<Value = Value> {
    let origins = select(&["*", "https://ok.example", "https://*.example.com"][..]);
    let methods = select(&["get", "POST", "OPTIONS", "*"][..]);
    let headers = select(&["X-One", "*", "Content-Type"][..]);
    (
        weighted(0.7, vec(origins, 0..3)),
        weighted(0.4, vec(methods, 0..3)),
        weighted(0.4, vec(headers, 1..3)),
        weighted(0.5, any::<bool>()),
        weighted(0.3, vec(select(&["X-Two", "X-Three"][..]), 0..2)),
    )
        .prop_map(|(origins, methods, headers, credentials, exposed)| {
            json!({ "allowOrigins": origins, "allowMethods": methods, "allowHeaders": headers,
                "allowCredentials": credentials, "exposeHeaders": exposed })
        })
}

fn headers() -> impl Strategy<Value = Value> {
    let listed = ["X-Custom", "x-up-auth", "Authorization", "Cookie", "x_user_email", "X-Request-ID", "Host", "Te"];
    (subsequence(listed.to_vec(), 0..listed.len()), weighted(0.3, Just("X-Up-Auth")))
        .prop_map(|(allowed, swap)| json!({ "allowed": allowed, "authorizationFieldSwap": swap }))
}

fn api(name: &'static str) -> impl Strategy<Value = DoormanApiSpec> {
    let flags = (weighted(0.9, flag(0.96)), weighted(0.4, flag(0.4)), weighted(0.3, flag(0.6)), flag(0.1));
    let credits = weighted(0.4, (flag(0.9), weighted(0.95, select(&GROUPS[..]))));
    (flags, weighted(0.92, servers()), endpoints(), access(), weighted(0.5, cors()), headers(), credits).prop_map(
        move |((active, public, auth, envelope), servers, endpoints, access, cors, headers, credits)| {
            let credits = credits.map(|(enabled, group)| json!({ "enabled": enabled, "group": group }));
            let spec = json!({ "name": name, "version": "v1", "protocol": "REST", "active": active, "public": public,
                "authRequired": auth, "envelope": envelope, "servers": servers, "endpoints": endpoints,
                "access": access, "cors": cors, "headers": headers, "credits": credits });
            serde_json::from_value(spec).unwrap()
        },
    )
}

fn unit() -> impl Strategy<Value = Option<String>> {
    weighted(0.8, select(&UNITS[..]).prop_map(str::to_owned))
}

fn user(name: &'static str, role: &'static str) -> impl Strategy<Value = User> {
    let rate = weighted(0.3, (weighted(0.8, 0..5_i64), unit(), weighted(0.5, any::<bool>())));
    let throttle = weighted(
        0.3,
        (
            (weighted(0.8, 0..4_i64), unit(), weighted(0.5, any::<bool>())),
            (weighted(0.8, 0..8_i64), weighted(0.6, 0..40_i64), unit()),
        ),
    );
    let bytes = weighted(0.25, (0..9_000_i64, unit(), weighted(0.3, any::<bool>())));
    let groups = subsequence(vec!["ALL", "dev", "none"], 1..=3);
    (rate, throttle, bytes, groups, any::<bool>()).prop_map(move |(rate, throttle, bytes, groups, active)| {
        let mut user = User::new(name, &format!("{name}@example.com"), role);
        user.groups = groups.into_iter().map(Into::into).collect();
        user.active = active || name != "dan";
        if let Some((number, unit, enabled)) = rate {
            (user.rate_limit_duration, user.rate_limit_duration_type, user.rate_limit_enabled) =
                (number, unit, enabled);
        }
        if let Some(((number, unit, enabled), (queue, wait, wait_unit))) = throttle {
            (user.throttle_duration, user.throttle_duration_type, user.throttle_enabled) = (number, unit, enabled);
            (user.throttle_queue_limit, user.throttle_wait_duration) = (queue, wait);
            user.throttle_wait_duration_type = wait_unit;
        }
        if let Some((number, unit, enabled)) = bytes {
            (user.bandwidth_limit_bytes, user.bandwidth_limit_window) = (Some(number), unit);
            user.bandwidth_limit_enabled = enabled;
        }
        user
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let number = select(&[1, 2, 3, 4, 6, 9, 0, 999_999][..]);
    let members = [
        "requests_per_second",
        "requests_per_minute",
        "requests_per_hour",
        "requests_per_day",
        "requests_per_month",
        "daily_request_quota",
        "monthly_request_quota",
        "monthly_bandwidth_quota",
    ];
    subsequence(members.to_vec(), 0..4).prop_flat_map(move |members| {
        let numbers = vec(number.clone(), members.len());
        numbers.prop_map(move |numbers| {
            let of = |(member, number): (&&'static str, i64)| {
                (*member, if member.contains("bandwidth") { 700 * number } else { number })
            };
            members.iter().zip(numbers).map(of).collect()
        })
    })
}

fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    let tier = |id: &'static str| {
        (flag(0.2), weighted(0.4, flag(0.6)), limits(), weighted(0.3, select(&[100, 1_100, 62_000][..])))
            .prop_map(move |(is_default, enabled, limits, queue)| Tier { id, is_default, enabled, limits, queue })
    };
    subsequence(vec!["free", "pro", "trial"], 0..=3)
        .prop_flat_map(move |ids| ids.into_iter().map(tier).collect::<Vec<_>>())
}

fn assignment() -> impl Strategy<Value = Assignment> {
    let bounds = [-3_600, 1, 60, 3_600, 86_400];
    let part = move || {
        (
            select(&["free", "pro", "gone"][..]),
            rarely(limits()),
            rarely(select(bounds.to_vec())),
            rarely(select(bounds.to_vec())),
        )
            .prop_map(|(tier, overrides, from, until)| Assignment { tier, overrides, from, until, next: None })
    };
    (part(), rarely(part())).prop_map(|(assignment, next)| Assignment { next: next.map(Box::new), ..assignment })
}

fn person(name: &'static str, role: &'static str) -> impl Strategy<Value = Person> {
    let balance =
        |group: &'static str| (0..7_i64, rarely(Just("own-key"))).prop_map(move |(credits, key)| (group, credits, key));
    let balances = subsequence(GROUPS.to_vec(), 1..=2)
        .prop_flat_map(move |groups| groups.into_iter().map(balance).collect::<Vec<_>>());
    let apis = subsequence(LABELS.to_vec(), 2..=3);
    (user(name, role), flag(0.05), apis, weighted(0.4, assignment()), balances).prop_map(
        |(user, is_revoked, apis, assignment, balances)| Person { user, is_revoked, apis, assignment, balances },
    )
}

/// Tokens of everyone; of the first user a good one, and others that are none.
fn tokens() -> Vec<Token> {
    let token = |user, life, standing| Token { user, life, standing };
    let good = ["amy", "bob", "root", "dan", "eve"].map(|user| token(user, 10_000_000, Standing::Good));
    let others = [
        token("amy", 30, Standing::Good),
        token("amy", 10_000_000, Standing::Forged),
        token("bob", 10_000_000, Standing::Revoked),
    ];
    good.into_iter().chain(others).collect()
}

fn rule() -> impl Strategy<Value = Rule> {
    let kind = prop_oneof![
        1 => Just(("per_user", Some("amy"))),
        1 => Just(("per_user", None)),
        1 => Just(("per_api", Some("a/v1"))),
        1 => Just(("per_api", Some("b"))),
        2 => Just(("per_endpoint", Some("GET /a/v1/items"))),
        1 => Just(("per_endpoint", Some("GET /b/v1/items/{id}/"))),
        1 => Just(("per_endpoint", Some("get /b/v1"))),
        1 => Just(("per_endpoint", Some("/b/v1/items"))),
        1 => Just(("per_endpoint", Some("/api/rest/a/v1/items"))),
        1 => Just(("per_endpoint", Some("/items"))),
        1 => Just(("per_ip", Some("203.0.113.0/24"))),
        1 => Just(("per_ip", Some("::ffff:10.0.0.0/104"))),
        1 => Just(("per_ip", Some("2001:db8::/32"))),
        1 => Just(("per_ip", Some("nowhere"))),
        1 => Just(("per_user_api", None)),
        1 => Just(("per_user_api", Some("c/v1"))),
        2 => Just(("per_user_endpoint", None)),
        1 => Just(("per_user_endpoint", Some("POST /a/v1/items"))),
        1 => Just(("per_user_endpoint", Some("GET /b/v1/items"))),
        1 => Just(("global", None)),
        1 => Just(("global", Some("all"))),
    ];
    let window = select(&["second", "minute", "hour", "day", "month"][..]);
    (kind, window, 1..5_i64, 0..3_i64, flag(0.9)).prop_map(|((kind, target), window, limit, priority, enabled)| Rule {
        id: String::new(),
        kind,
        target,
        window,
        limit,
        priority,
        enabled,
    })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let named = |(index, rule)| Rule { id: format!("r{index}"), ..rule };
    weighted(0.5, vec(rule(), 1..4)).prop_map(move |rules| rules.into_iter().flatten().enumerate().map(named).collect())
}

fn groups() -> impl Strategy<Value = Vec<CreditGroup>> {
    let headers = select(&["X-Api-Key", "x-custom", "Authorization", "Connection", "no header"][..]);
    let group = move |name: &'static str| {
        (headers.clone(), rarely(Just("new-key"))).prop_map(move |(header, new_key)| CreditGroup {
            name,
            header,
            key: "old-key",
            new_key,
        })
    };
    subsequence(GROUPS.to_vec(), 1..=2)
        .prop_flat_map(move |names| names.into_iter().map(group.clone()).collect::<Vec<_>>())
}

fn routings() -> impl Strategy<Value = Vec<(&'static str, Vec<&'static str>)>> {
    let servers = prop_oneof![3 => servers(), 1 => Just(vec![]), 1 => Just(vec!["no url"])];
    vec(servers, 0..3).prop_map(|routings| ["k1", "k2"].into_iter().zip(routings).collect())
}

/// Any configuration.
pub fn world() -> impl Strategy<Value = World> {
    let start = select(&["2026-01-31T23:59:30Z", "2028-02-29T23:30:00Z", "2026-07-15T12:00:00Z"][..]);
    let people = PEOPLE.map(|(name, role)| person(name, role));
    let apis = APIS.map(api);
    let defined = (apis, people, tiers(), rules(), groups(), routings());
    (start, options(), filter(), defined).prop_map(
        |(start, options, filter, (apis, people, tiers, rules, groups, routings))| World {
            start,
            options,
            filter,
            apis: apis.into(),
            people: people.into(),
            tokens: tokens(),
            tiers,
            rules,
            groups,
            routings,
        },
    )
}

/// Method, and path below the API's.
const CALLS: [(&str, &str); 38] = [
    ("GET", "/items"),
    ("GET", "/items"),
    ("GET", "/items/7"),
    ("GET", "/"),
    ("POST", "/items"),
    ("POST", "/items"),
    ("GET", "/items"),
    ("GET", "/items"),
    ("GET", "/items"),
    ("GET", "/items"),
    ("GET", "/items/7"),
    ("GET", "/items/7"),
    ("GET", "/items/7?a=1&a=2"),
    ("GET", "/items/all"),
    ("GET", "//items/?q"),
    ("GET", ""),
    ("GET", "/"),
    ("GET", "/down/1/x%20y"),
    ("GET", "/other/all"),
    ("HEAD", "/items"),
    ("HEAD", "/items/7"),
    ("POST", "/items"),
    ("POST", "/items"),
    ("POST", "/items"),
    ("POST", "/items"),
    ("PUT", "/caf%C3%A9/9"),
    ("PUT", "/caf%c3%a9/%E2%82%AC"),
    ("DELETE", "/items/%3Fa:b"),
    ("DELETE", "/items/7"),
    ("PATCH", "/items"),
    ("GET", "/Items"),
    ("GET", "/nothing/here"),
    ("HEAD", "/other"),
    ("OPTIONS", "/items"),
    ("OPTIONS", "/nothing"),
    ("TRACE", "/items"),
    ("GET", "/items/a%2Fb"),
    ("GET", "/items/..;/x"),
];
const CALLED: [&str; 28] = [
    "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "a/v1", "b/v1", "b/v1",
    "b/v1", "b/v1", "b/v1", "b/v1", "b/v1", "b//v1", "c/v1", "c/v1", "c/v1", "c/v1", "c/v1", "c/v1", "a/v2", "d/v1",
];
/// Targets that are no calls of an API.
const OTHER: [&str; 5] = ["/api/rest/a", "/api/rest", "/api/health", "/api/other", "/elsewhere"];
/// Numbers in braces are those of tokens.
const AUTHORIZATIONS: [&str; 32] = [
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "Bearer {0}",
    "bearer  {0}",
    "{0}",
    "Basic {0}",
    "Bearer",
    "Bearer {1}",
    "Bearer {1}",
    "Bearer {1}",
    "Bearer {1}",
    "Bearer {2}",
    "Bearer {2}",
    "Bearer {2}",
    "Bearer {3}",
    "Bearer {3}",
    "Bearer {4}",
    "Bearer {5}",
    "Bearer {5}",
    "Bearer {6}",
    "Bearer {7}",
    "",
    "",
    "",
];
/// Longer than what is sent of a value.
const LONG: &str = {
    const BYTES: [u8; 8_200] = [b'a'; 8_200];
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => unreachable!(),
    }
};
/// Further headers. Of several with one name, the first counts.
const HEADERS: [(&str, &str); 54] = [
    ("cookie", "access_token_cookie={1}"),
    ("cookie", "a=b; access_token_cookie=\"{0}\""),
    ("cookie", "access_token_cookie="),
    ("x-forwarded-for", "203.0.113.8"),
    ("x-forwarded-for", "10.1.2.3"),
    ("x-forwarded-for", "203.0.113.8, 10.0.0.1"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-for", "203.0.113.8, ?, 10.1.2.3"),
    ("x-forwarded-for", ""),
    ("x-forwarded-for", "[2001:db8::1]:99, 10.0.0.1:80"),
    ("x-real-ip", "10.1.2.3"),
    ("x-real-ip", "203.0.113.8"),
    ("x-real-ip", "2001:db8::2"),
    ("x-real-ip", ""),
    ("cf-connecting-ip", "203.0.113.8"),
    ("forwarded", "for=10.0.0.1"),
    ("origin", "https://ok.example"),
    ("origin", "https://ok.example"),
    ("origin", "https://a.example.com"),
    ("origin", "https://example.com"),
    ("origin", "null"),
    ("access-control-request-method", "GET"),
    ("access-control-request-method", "PUT"),
    ("access-control-request-headers", "x-one"),
    ("access-control-request-headers", "x-two, x-one"),
    ("client-key", "k1"),
    ("client-key", "k1"),
    ("client-key", "k2"),
    ("client-key", "k3"),
    ("x-custom", "custom"),
    ("x-custom", "other"),
    ("x-custom", "1 <b>2</b> <> < 3"),
    ("x-custom", "<b>"),
    ("x-custom", LONG),
    ("x-up-auth", "Bearer S"),
    ("x-up-auth", "Bearer T"),
    ("x-up-auth", "Bearer <S>"),
    ("x-up-auth", ""),
    ("x_user_email", "root"),
    ("x-user-email", "root"),
    ("x-doorman-user", "root"),
    ("connection", "x-custom, close"),
    ("connection", "keep-alive, User-Agent"),
    ("connection", "Upgrade"),
    ("connection", "Upgrade"),
    ("upgrade", "WebSocket"),
    ("upgrade", "WebSocket"),
    ("user-agent", "curl"),
    ("user-agent", "crawler <http://a.example/>"),
    ("accept-encoding", "gzip"),
    ("x-api-key", "guess"),
    ("te", "trailers"),
    ("host", "localhost:5001"),
    ("host", "127.0.0.1"),
];
/// Type and text.
const BODIES: [(&str, &str); 10] = [
    ("application/json", "{\"name\":\"Al\"}"),
    ("application/json", "{\"name\":\"Al\"}"),
    ("application/json; charset=utf-8", "{\"name\":\"Al\"}"),
    ("application/json", "{\"name\":\"A\"}"),
    ("application/json", "{\"name\":7}"),
    ("application/json", "[1]"),
    ("application/json", "no JSON, and too long for some"),
    ("application/json", ""),
    ("text/plain", "{\"name\":\"Al\"}"),
    ("", ""),
];

fn ask() -> impl Strategy<Value = Ask> {
    let who = (select(&AUTHORIZATIONS[..]), select(&ADDRESSES[..]));
    let what = (select(&CALLED[..]), select(&CALLS[..]), 0..100_usize);
    (who, what, vec(select(&HEADERS[..]), 0..6), select(&BODIES[..])).prop_map(
        |((authorization, peer), (name, (method, path), other), headers, (media, text))| {
            let target =
                OTHER.get(other).map_or_else(|| format!("/api/rest/{name}{path}"), |other| (*other).to_owned());
            // Most others come with no body too.
            let has_body = ["POST", "PUT"].contains(&method) || other > 90;
            let body = if has_body { [("content-type", media)].to_vec() } else { Vec::new() };
            let ask = Ask::new(method, &target).from(peer).header("x-request-id", "id");
            let ask = if has_body { ask.body(text) } else { ask };
            let usual = [("authorization", authorization), ("host", "gw.example")];
            let usual = body.into_iter().chain(usual).filter(|(_, value)| !value.is_empty());
            headers
                .into_iter()
                .chain(usual)
                .fold(ask, |ask, (name, value)| if ask.get(name).is_some() { ask } else { ask.header(name, value) })
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let people = Union::new(PEOPLE.into_iter().enumerate().map(|(index, (name, role))| {
        person(name, role).prop_map(move |person| Change::Person(index, Box::new(person))).boxed()
    }));
    let apis = Union::new(
        APIS.into_iter()
            .enumerate()
            .map(|(index, name)| api(name).prop_map(move |api| Change::Api(index, Box::new(api))).boxed()),
    );
    prop_oneof![
        1 => filter().prop_map(Change::Filter),
        3 => apis,
        4 => people,
        1 => tiers().prop_map(Change::Tiers),
        2 => rules().prop_map(Change::Rules),
        1 => groups().prop_map(Change::Groups),
    ]
}

/// Anything that may happen.
pub fn event() -> impl Strategy<Value = Event> {
    let pass = select(&[1, 49, 50, 400, 950, 999, 1_000, 1_050, 10_000, 60_000, 61_000, 3_600_000, 90_000_000][..]);
    let set = select(&[1, 60, 3_600, 86_400][..]);
    prop_oneof![
        75 => (ask(), 0..400_usize).prop_map(|(ask, bytes)| Event::Ask(ask, bytes)),
        9 => pass.prop_map(Event::Pass),
        2 => set.prop_map(Event::Set),
        14 => change().prop_map(Event::Change),
    ]
}
