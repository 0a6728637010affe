//! What the gateway should do with requests: its policy once more, in the plainest form.
//!
//! Written from what is promised (reference: gateway behaviour 2 to 11 and 18; docs/operations.md) and not from the
//! gateway's code, of which it shares only the forms that configuration is stored in. Its state is lists of what was
//! counted.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use doorman_crds::DoormanApiSpec;
use doorman_crds::api::{EndpointSpec, IpMode};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::cases::{Assignment, Limits, Person, ROLES, Standing, World};
use super::stage::{Ask, Seen, Sent};

/// A refusal: status and code.
#[derive(Clone)]
struct No(u16, &'static str);

fn no<T>(status: u16, code: &'static str) -> Result<T, No> {
    Err(No(status, code))
}

/// How far a request is let in.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    NoCall,
    Refused,
    Guest,
    User,
}

enum Window {
    /// Any stretch of so many milliseconds.
    Sliding(u64),
    /// Until this second.
    Until(i64),
}

struct Limit {
    kind: &'static str,
    name: String,
    window: Window,
    most: u64,
    need: u64,
    add: u64,
}

/// What limits look at.
struct Facts<'a> {
    way: Way,
    person: Option<&'a Person>,
    client: IpAddr,
    api: Option<String>,
    /// Method, and path with the API's name.
    endpoint: Option<String>,
    length: u64,
}

pub struct Model<'a> {
    world: &'a World,
    tokens: &'a [String],
    start: Timestamp,
    /// Milliseconds since the start.
    now: u64,
    /// Seconds that the clock of the day was set forward.
    set: i64,
    /// What was counted in sliding windows, and when.
    taken: Vec<(String, u64)>,
    /// What was counted in stretches of the calendar.
    totals: Vec<(String, u64)>,
    turns: Vec<(String, usize)>,
    /// User, group, credits.
    balances: Vec<(String, String, i64)>,
    /// Whose bytes are booked with the answer, whether on the user's own limit, and how many are known.
    booking: Option<(&'a Person, bool, u64)>,
    /// How often each rule mattered.
    pub hits: BTreeMap<&'static str, u64>,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The unit that a word stands for; no word: the usual one.
fn unit(word: Option<&str>, usual: u64) -> u64 {
    match word.map(|word| word.trim_end_matches('s')) {
        None => usual,
        Some("second") => SECOND,
        Some("hour") => HOUR,
        Some("day") => DAY,
        Some("week") => 7 * DAY,
        Some("month") => 30 * DAY,
        Some("year") => 365 * DAY,
        Some(_) => MINUTE,
    }
}

fn positive(number: Option<i64>) -> Option<u64> {
    number.filter(|number| *number > 0).map(i64::unsigned_abs)
}

fn member(limits: &Limits, name: &str) -> Option<u64> {
    positive(limits.iter().find(|(member, _)| *member == name).map(|(_, number)| *number))
}

/// An address as one number, and of how many bits.
fn bits(address: IpAddr) -> (u128, u32) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

fn within(networks: &[impl AsRef<str>], address: IpAddr) -> bool {
    networks.iter().any(|network| {
        let (net, length) = network.as_ref().split_once('/').unwrap_or((network.as_ref(), "128"));
        let (Ok(net), Ok(length)) = (net.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
        let ((net, bits_of_net), (address, bits_of_address)) = (bits(net), bits(address));
        // Of an IPv4 network in IPv6 clothes the first 96 bits say only that.
        let length = if network.as_ref().contains("::ffff:") { length.saturating_sub(96) } else { length };
        let rest = bits_of_net.saturating_sub(length);
        bits_of_net == bits_of_address && net.checked_shr(rest) == address.checked_shr(rest)
    })
}

/// Decoded segments of a path that has one reading.
fn segments(path: &str) -> Result<Vec<String>, No> {
    let mut segments = Vec::new();
    for raw in path.split('/').filter(|raw| !raw.is_empty()) {
        let mut parts = raw.split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let byte = part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match byte {
                None | Some(b'/' | b'\\' | b';' | b'#' | ..=31 | 127) => return no(400, "GTW011"),
                Some(byte) => bytes.push(byte),
            }
            bytes.extend(&part.as_bytes()[2..]);
        }
        let segment = String::from_utf8(bytes).or(no(400, "GTW011"))?;
        if [".", ".."].contains(&segment.split(';').next().unwrap_or_default()) {
            return no(400, "GTW011");
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn encoded(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    segment.bytes().map(one).collect()
}

fn client_uri(endpoint: &EndpointSpec) -> &str {
    endpoint.client_uri.as_deref().unwrap_or(&endpoint.uri)
}

fn parts(uri: &str) -> Vec<&str> {
    uri.split('/').filter(|part| !part.is_empty()).collect()
}

fn label(api: &DoormanApiSpec) -> String {
    format!("{}/{}", api.name, api.version)
}

/// The endpoint of a call; where several match, the one that is literal where they first differ.
fn endpoint<'a>(api: &'a DoormanApiSpec, method: &str, path: &[String]) -> Option<&'a EndpointSpec> {
    let matches = |endpoint: &&EndpointSpec| {
        let parts = parts(client_uri(endpoint));
        endpoint.method.as_str() == method
            && parts.len() == path.len()
            && parts.iter().zip(path).all(|(part, segment)| part.starts_with('{') || part == segment)
    };
    let parameters =
        |endpoint: &&EndpointSpec| parts(client_uri(endpoint)).iter().map(|part| part.starts_with('{')).collect::<Vec<_>>();
    api.endpoints.iter().flatten().filter(matches).min_by_key(parameters)
}

fn needs_user(api: &DoormanApiSpec) -> bool {
    api.public != Some(true) && api.auth_required != Some(false)
}

fn is_admin(role: &str) -> bool {
    role == "admin" || ROLES.contains(&(role, true))
}

impl<'a> Model<'a> {
    pub fn new(world: &'a World, tokens: &'a [String]) -> Self {
        let balances = world.people.iter().flat_map(|person| {
            let of = |(group, credits, _): &(&str, i64, _)| (person.user.username.to_string(), (*group).to_owned(), *credits);
            person.balances.iter().map(of)
        });
        Self {
            world,
            tokens,
            start: world.start.parse().unwrap(),
            now: 0,
            set: 0,
            taken: Vec::new(),
            totals: Vec::new(),
            turns: Vec::new(),
            balances: balances.collect(),
            booking: None,
            hits: BTreeMap::new(),
        }
    }

    pub fn pass(&mut self, millis: u64) {
        self.now += millis;
    }

    pub fn set_forward(&mut self, seconds: i64) {
        self.set += seconds;
    }

    fn hit(&mut self, what: &'static str) {
        *self.hits.entry(what).or_default() += 1;
    }

    /// Milliseconds of the day's clock since the start.
    fn elapsed(&self) -> i64 {
        i64::try_from(self.now).unwrap() + 1_000 * self.set
    }

    fn clock(&self) -> Timestamp {
        self.start + SignedDuration::from_millis(self.elapsed())
    }

    /// What should come of a request.
    pub fn ask(&mut self, ask: &Ask) -> Seen {
        let (began, mut seen) = (self.now, Seen::default());
        self.booking = None;
        if let Err(No(status, code)) = self.decide(ask, &mut seen) {
            (seen.status, seen.code) = (status, code.to_owned());
            self.hit(code);
        }
        if let Some(api) = seen.api.as_ref().and_then(|name| self.world.apis.iter().find(|api| label(api) == *name)) {
            seen.cors = cors(api, ask);
        }
        seen.wait = self.now - began;
        seen
    }

    /// The answer to it was this long.
    pub fn answered(&mut self, length: u64) {
        let Some((person, is_own, known)) = self.booking.take() else { return };
        for limit in self.bytes(person, is_own, true) {
            self.totals.push((limit.name, known + length));
        }
    }

    fn decide(&mut self, ask: &Ask, seen: &mut Seen) -> Result<(), No> {
        let world = self.world;
        let client = self.client(ask, world.filter.trusts);
        if client != ask.peer.to_canonical() {
            self.hit("who a proxy says");
        }
        if self.is_local(ask) {
            self.hit("a local caller skips the filter");
        } else if !world.filter.allow.is_empty() && !within(&world.filter.allow, client) {
            return no(403, "SEC010");
        } else if within(&world.filter.deny, client) {
            return no(403, "SEC011");
        }
        let segments = segments(ask.path())?;
        let says = |name, word: &str| ask.get(name).is_some_and(|value: &str| value.to_lowercase().contains(word));
        if says("upgrade", "websocket") && says("connection", "upgrade") {
            return no(403, "GTW015");
        }
        let person = self.caller(ask);
        let no_call =
            || Facts { way: Way::NoCall, person, client, api: None, endpoint: None, length: 0 };
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let path = match words[..] {
            ["api", "rest", ..] => &segments[2..],
            ["api", "health"] => {
                self.count(&no_call(), seen)?;
                seen.status = if ask.method == "GET" { 200 } else { 405 };
                return Ok(());
            }
            _ => {
                self.count(&no_call(), seen)?;
                seen.status = 404;
                return Ok(());
            }
        };
        let method = match ask.method.as_str() {
            "HEAD" => "GET",
            "OPTIONS" => {
                self.count(&no_call(), seen)?;
                self.preflight(ask, path, seen);
                return Ok(());
            }
            method @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE") => method,
            _ => {
                self.count(&no_call(), seen)?;
                seen.status = 405;
                return Ok(());
            }
        };
        seen.user = person.map(|person| person.user.username.to_string());
        let api = self.find(path);
        let endpoint = api.as_ref().ok().and_then(|api| endpoint(api, method, &path[2..]));
        seen.api = api.as_ref().ok().map(|api| label(api));
        let name = |api: &DoormanApiSpec, own: &EndpointSpec| {
            let path = client_uri(own);
            format!("{} {}{path}", own.method.as_str(), label(api))
        };
        seen.endpoint = api.as_ref().ok().zip(endpoint).map(|(api, own)| name(api, own));
        let length = ask.body.len() as u64;
        let is_own = api.as_ref().is_ok_and(|api| needs_user(api));
        self.booking = person.map(|person| (person, is_own, ask.size() + length));
        let let_in = self.let_in(ask, &api, endpoint, person);
        let way = match &let_in {
            Err(_) => Way::Refused,
            Ok((api, _)) if needs_user(api) => Way::User,
            Ok(_) => Way::Guest,
        };
        let (api, endpoint) = (seen.api.clone(), seen.endpoint.clone());
        self.count(&Facts { way, person, client, api, endpoint, length }, seen)?;
        let (api, endpoint) = let_in?;
        if way == Way::Guest && person.is_some() {
            self.hit("a guest with a token");
        }
        let person = person.filter(|_| way == Way::User);
        self.validate(ask, endpoint)?;
        let server = self.server(ask, api, endpoint)?;
        let key = self.charge(api, person)?;
        let credits = self.balances.iter().filter(|(user, ..)| Some(user) == seen.user.as_ref()).map(|(.., left)| *left);
        seen.sent = Some(sent(ask, api, endpoint, &path[2..], server, person, key, credits.collect()));
        seen.status = 200;
        self.hit(if ask.method == "HEAD" { "sent for HEAD" } else { "sent" });
        Ok(())
    }

    /// Who calls: the user of a token that counts. The cookie's wins.
    fn caller(&self, ask: &Ask) -> Option<&'a Person> {
        let cookies = ask.get("cookie").unwrap_or_default().split(';');
        let cookie = cookies.filter_map(|pair| pair.trim().strip_prefix("access_token_cookie=")).next();
        let cookie = cookie.map(|value| value.trim_matches('"')).filter(|value| !value.is_empty());
        let words: Vec<&str> = ask.get("authorization").unwrap_or_default().split_whitespace().collect();
        let header = match words[..] {
            [word] => Some(word),
            [scheme, word] if scheme.eq_ignore_ascii_case("bearer") => Some(word),
            _ => None,
        };
        let text = cookie.or(header)?;
        let token = &self.world.tokens[self.tokens.iter().position(|known| known == text)?];
        let is_valid = token.standing == Standing::Good && self.elapsed() < i64::try_from(token.life).unwrap() * 1_000;
        let person = self.world.people.iter().find(|person| *person.user.username == *token.user)?;
        (is_valid && person.user.active && !person.is_revoked).then_some(person)
    }

    /// The client: the peer, or who a believed proxy says it is; of several, the last that is no proxy.
    fn client(&self, ask: &Ask, trusts: bool) -> IpAddr {
        let peer = ask.peer.to_canonical();
        let World { filter, options, .. } = self.world;
        let is_proxy = |address| match filter.proxies.is_empty() {
            true => trusts && !options.is_production,
            false => trusts && within(&filter.proxies, address),
        };
        let read = |text: &str| {
            let bare = text.trim().trim_start_matches('[').trim_end_matches(']');
            let address = bare.parse().or_else(|_| text.trim().parse::<SocketAddr>().map(|socket| socket.ip()));
            address.ok().map(|address: IpAddr| address.to_canonical())
        };
        if !is_proxy(peer) {
            return peer;
        }
        if let Some(list) = ask.get("x-forwarded-for") {
            let mut client = peer;
            for entry in list.rsplit(',') {
                let Some(address) = read(entry) else { break };
                client = address;
                if !is_proxy(client) {
                    break;
                }
            }
            return client;
        }
        let others = ["x-real-ip", "cf-connecting-ip"];
        others.into_iter().find_map(|name| read(ask.get(name)?)).unwrap_or(peer)
    }

    fn bypasses(&self, ask: &Ask) -> bool {
        let forwarding = ["x-forwarded-for", "x-real-ip", "cf-connecting-ip", "forwarded"];
        let is_on = self.world.filter.bypass.unwrap_or(!self.world.options.is_production);
        is_on && !forwarding.into_iter().any(|name| ask.get(name).is_some())
    }

    fn is_local(&self, ask: &Ask) -> bool {
        let docker = ["172.17.0.1", "192.168.65.1"];
        let in_docker = self.world.options.in_docker && within(&docker, ask.peer);
        self.bypasses(ask) && (ask.peer.to_canonical().is_loopback() || in_docker)
    }

    fn find(&self, path: &[String]) -> Result<&'a DoormanApiSpec, No> {
        let [name, version, ..] = path else { return no(404, "GTW001") };
        let api = self.world.apis.iter().find(|api| api.name == *name && api.version == *version);
        let Some(api) = api else { return no(404, "GTW001") };
        let is_defined = |role: &String| role == "admin" || ROLES.iter().any(|(name, _)| name == role);
        let roles = api.access.iter().flat_map(|access| access.roles.iter().flatten());
        if roles.into_iter().all(is_defined) { Ok(api) } else { no(503, "GTW503") }
    }

    /// All that may refuse a call before it is counted.
    fn let_in<'b>(
        &mut self,
        ask: &Ask,
        api: &Result<&'b DoormanApiSpec, No>,
        endpoint: Option<&'b EndpointSpec>,
        person: Option<&Person>,
    ) -> Result<(&'b DoormanApiSpec, &'b EndpointSpec), No> {
        let options = &self.world.options;
        if ask.body.len() as u64 > options.rest_body.unwrap_or(options.body) {
            return no(413, "REQ001");
        }
        let api = api.clone()?;
        let access = api.access.clone().unwrap_or_default();
        if let Some(ip) = &access.ip {
            let client = self.client(ask, ip.trust_forwarded_for.unwrap_or(self.world.filter.trusts));
            if within(ip.deny.as_deref().unwrap_or_default(), client) {
                return no(403, "API011");
            }
            let host = ask.get("host").unwrap_or_default().split(':').next().unwrap_or_default();
            let names_here = ["localhost", "127.0.0.1"].contains(&host) && !self.world.options.is_production;
            if self.is_local(ask) || self.bypasses(ask) && names_here {
                self.hit("a local caller skips an API's list");
            } else if ip.mode == IpMode::Whitelist && !within(ip.allow.as_deref().unwrap_or_default(), client) {
                return no(403, "API010");
            }
        }
        let Some(endpoint) = endpoint else { return no(404, "GTW003") };
        if needs_user(api) {
            let Some(Person { user, apis, .. }) = person else { return no(401, "Unauthorized") };
            if !apis.iter().any(|subscribed| *subscribed == label(api)) {
                if self.world.options.admins_subscribe || !is_admin(&user.role) {
                    return no(403, "You are not subscribed to this resource");
                }
                self.hit("an administrator needs no subscription");
            }
            let groups = access.groups.as_ref();
            if groups.is_some_and(|asked| !asked.iter().any(|group| user.groups.iter().any(|own| **own == **group))) {
                return no(401, "You do not have the correct group for this");
            }
            let roles = access.roles.unwrap_or_default();
            if !roles.is_empty() && !roles.iter().any(|role| **role == *user.role) {
                return no(403, "GTW014");
            }
        }
        if api.active == Some(false) { no(403, "GTW012") } else { Ok((api, endpoint)) }
    }

    /// The limits of the tier that a user has now, and for how long a request may wait for its turn.
    fn tier(&self, person: &Person) -> Option<(Limits, Option<u64>)> {
        let elapsed = self.elapsed();
        let has_begun = |part: &Assignment| part.from.is_none_or(|from| from * 1_000 <= elapsed);
        let held = person.assignment.as_ref().map(|first| match &first.next {
            Some(next) if has_begun(next) => next,
            _ => first,
        });
        let held = held.filter(|part| has_begun(part) && part.until.is_none_or(|until| elapsed < until * 1_000));
        if let Some(own) = held.and_then(|part| part.overrides.clone()) {
            return Some((own, None));
        }
        let tiers = &self.world.tiers;
        let assigned = tiers.iter().find(|tier| held.is_some_and(|part| part.tier == tier.id));
        let tier = assigned.or(tiers.iter().filter(|tier| tier.is_default).min_by_key(|tier| tier.id))?;
        Some((tier.limits.clone(), positive(tier.queue)))
    }

    /// The number of a stretch of so many milliseconds since 1970, as a name, and the first second after it.
    fn stretch(&self, length: u64) -> (String, i64) {
        let length = i64::try_from(length / 1_000).unwrap();
        let number = self.clock().as_second().div_euclid(length);
        (number.to_string(), (number + 1) * length)
    }

    /// The name of this month, and the first second after it.
    fn month(&self) -> (String, i64) {
        let today = self.clock().to_zoned(TimeZone::UTC).date();
        let next = today.last_of_month().tomorrow().unwrap().to_zoned(TimeZone::UTC).unwrap();
        (today.strftime("%Y-%m").to_string(), next.timestamp().as_second())
    }

    /// What a user may use of bytes: by own limit, by tier.
    fn bytes(&self, person: &Person, is_own: bool, is_tiers: bool) -> Vec<Limit> {
        let name = &person.user.username;
        let limit = |name: String, end, most| {
            Limit { kind: "bytes", name, window: Window::Until(end), most, need: 0, add: 0 }
        };
        let own = positive(person.user.bandwidth_limit_bytes);
        let own = own.filter(|_| is_own && person.user.bandwidth_limit_enabled != Some(false)).map(|most| {
            let (stretch, end) = self.stretch(unit(person.user.bandwidth_limit_window.as_deref(), DAY));
            limit(format!("bytes of {name} in {stretch}"), end, most)
        });
        let tier = self.tier(person).filter(|_| is_tiers && !self.world.options.skips_tiers);
        let tier = tier.and_then(|(limits, _)| member(&limits, "monthly_bandwidth_quota")).map(|most| {
            let (month, end) = self.month();
            limit(format!("tier bytes of {name} in {month}"), end, most)
        });
        own.into_iter().chain(tier).collect()
    }

    /// How many may be there in the window of the throttle, how many go on at once, and how long each of the others waits
    /// for every one before it.
    fn throttle(person: &Person) -> Option<(u64, u64, u64, u64)> {
        let user = &person.user;
        let (at_once, queue) = (positive(user.throttle_duration), positive(user.throttle_queue_limit));
        if user.throttle_enabled != Some(true) && at_once.is_none() && queue.is_none() {
            return None;
        }
        let each = positive(user.throttle_wait_duration)
            .map_or(500, |number| number * unit(user.throttle_wait_duration_type.as_deref(), SECOND));
        let at_once = at_once.unwrap_or(10);
        // Nobody waits longer than a minute.
        let most = queue.unwrap_or(10).min(at_once + MINUTE / each);
        Some((unit(user.throttle_duration_type.as_deref(), SECOND), most, at_once, each))
    }

    /// Whatever limits a request, in the order of refusals.
    fn limits(&self, facts: &Facts<'_>) -> Vec<Limit> {
        let mut limits = Vec::new();
        let mut sliding = |kind, name, window, most| {
            limits.push(Limit { kind, name, window: Window::Sliding(window), most, need: 1, add: 1 });
        };
        let user = facts.person.map(|person| person.user.username.to_string());
        let of_tier = facts.person.filter(|_| !self.world.options.skips_tiers).and_then(|person| self.tier(person));
        let name = user.clone().unwrap_or_default();
        for (what, window) in [
            ("requests_per_second", SECOND),
            ("requests_per_minute", MINUTE),
            ("requests_per_hour", HOUR),
            ("requests_per_day", DAY),
        ] {
            let most = of_tier.as_ref().and_then(|(limits, _)| member(limits, what)).filter(|most| *most < 999_999);
            if let Some(most) = most {
                sliding("tier", format!("{what} of {name}"), window, most);
            }
        }
        if let Some((tier, _)) = &of_tier {
            let monthly = member(tier, "requests_per_month").filter(|most| *most < 999_999);
            let monthly = monthly.into_iter().chain(member(tier, "monthly_request_quota")).min();
            let daily = member(tier, "daily_request_quota").map(|most| (self.stretch(DAY), most));
            for ((stretch, end), most) in daily.into_iter().chain(monthly.map(|most| (self.month(), most))) {
                let name = format!("requests of {name} in {stretch}");
                limits.push(Limit { kind: "quota", name, window: Window::Until(end), most, need: 1, add: 1 });
            }
        }
        let mut rules: Vec<_> = self.world.rules.iter().filter(|rule| rule.enabled).collect();
        rules.sort_by_key(|rule| (Reverse(rule.priority), &rule.id));
        for rule in rules.into_iter().filter(|_| facts.way != Way::NoCall) {
            let is = |what: &Option<String>| what.as_deref().is_some_and(|what| rule.target == Some(what));
            let is_or_any = |what: &Option<String>| what.is_some() && rule.target.is_none() || is(what);
            let target = rule.target.and_then(|target| target.split_once(' '));
            let target = target.map(|(method, path)| format!("{} {}", method.to_uppercase(), path.trim_matches('/')));
            let own = facts.endpoint.as_ref().map(|own| own.trim_matches('/').to_owned());
            let is_endpoint = own.is_some() && own == target;
            let (applies, whose) = match rule.kind {
                "per_user" => (is(&user), String::new()),
                "per_api" => (is(&facts.api), String::new()),
                "per_endpoint" => (is_endpoint, String::new()),
                "per_ip" => (within(rule.target.as_slice(), facts.client), facts.client.to_string()),
                "per_user_api" => (user.is_some() && is_or_any(&facts.api), format!("{user:?} {:?}", facts.api)),
                "per_user_endpoint" => {
                    let applies = is_endpoint || own.is_some() && rule.target.is_none();
                    (user.is_some() && applies, format!("{user:?} {own:?}"))
                }
                _ => (rule.target.is_none(), String::new()),
            };
            if applies {
                let name = format!("rule {} {whose}", rule.id);
                let (window, most) = (unit(Some(rule.window), 0), positive(Some(rule.limit)).unwrap_or_default());
                limits.push(Limit { kind: "rule", name, window: Window::Sliding(window), most, need: 1, add: 1 });
            }
        }
        let Some(person) = facts.person else { return limits };
        if facts.way == Way::User {
            let user = &person.user;
            let rate = positive(user.rate_limit_duration);
            if user.rate_limit_enabled == Some(true) || rate.is_some() {
                let window = Window::Sliding(unit(user.rate_limit_duration_type.as_deref(), MINUTE));
                let most = rate.unwrap_or(60);
                limits.push(Limit { kind: "rate", name: format!("rate of {name}"), window, most, need: 1, add: 1 });
            }
            if let Some((window, most, ..)) = Self::throttle(person) {
                let (name, window) = (format!("throttle of {name}"), Window::Sliding(window));
                limits.push(Limit { kind: "throttle", name, window, most, need: 1, add: 1 });
            }
        }
        if matches!(facts.way, Way::User | Way::Guest) {
            let bytes = self.bytes(person, facts.way == Way::User, true);
            limits.extend(bytes.into_iter().map(|limit| Limit { need: facts.length.max(1), ..limit }));
        }
        limits
    }

    /// How much of a limit is used, and in how many milliseconds enough is free again. A sliding window is kept in parts:
    /// what is counted in one is free again when the window that begins at its end is over.
    fn standing(&self, limit: &Limit) -> (u64, u64) {
        let window = match limit.window {
            Window::Sliding(window) => window,
            Window::Until(end) => {
                let used = self.totals.iter().filter(|(name, _)| *name == limit.name).map(|(_, number)| number).sum();
                let left = end - self.clock().as_second();
                return (used, u64::try_from(left).unwrap_or_default() * 1_000);
            }
        };
        let parts = if window < 30 * SECOND { 20 } else { 60 };
        let part = window.div_ceil(parts);
        let ends = self.taken.iter().filter(|(name, _)| *name == limit.name).map(|(_, at)| (at / part + parts + 1) * part);
        let mut ends: Vec<u64> = ends.filter(|end| *end > self.now).collect();
        ends.sort_unstable();
        let used = ends.len() as u64;
        let left_at = |end: u64| ends.iter().filter(|other| **other > end).count() as u64;
        let enough = ends.iter().find(|end| left_at(**end) + limit.need <= limit.most);
        (used, enough.map_or((parts + 1) * part, |end| end - self.now))
    }

    /// Counts a request everywhere, or nowhere when a limit is reached, and lets it wait.
    fn count(&mut self, facts: &Facts<'_>, seen: &mut Seen) -> Result<(), No> {
        let began = self.now;
        loop {
            let limits = self.limits(facts);
            let standings: Vec<_> = limits.iter().map(|limit| self.standing(limit)).collect();
            let clock = self.clock();
            let reset = |frees_in: u64| {
                let at = clock + SignedDuration::from_millis(i64::try_from(frees_in).unwrap());
                u64::try_from(at.as_millisecond()).unwrap().div_ceil(1_000)
            };
            let all = limits.iter().zip(&standings);
            if let Some((limit, (_, frees_in))) = all.clone().find(|(limit, (used, _))| used + limit.need > limit.most) {
                let queue = facts.person.and_then(|person| self.tier(person)).and_then(|(_, queue)| queue);
                if limit.kind == "tier" && queue.is_some_and(|queue| self.now + frees_in <= began + queue) {
                    self.now += frees_in;
                    self.hit("a wait for the tier's turn");
                    continue;
                }
                seen.retry_after = Some(frees_in.div_ceil(1_000).max(1));
                let told = Some([limit.most, 0, reset(*frees_in)]);
                let (shown, code, what) = match limit.kind {
                    "tier" => (told, "RATE_LIMIT_EXCEEDED", "a tier's window is used up"),
                    "quota" => (told, "RATE_LIMIT_EXCEEDED", "a tier's quota is used up"),
                    "rule" => (told, "RATE_LIMIT_EXCEEDED", "a rule refuses"),
                    "rate" => (told, "Rate limit exceeded", "a user's rate is used up"),
                    "throttle" => (None, "Throttle queue limit exceeded", "a queue is full"),
                    _ => (None, "Bandwidth limit exceeded", "bytes are used up"),
                };
                seen.limit = shown;
                self.hit(what);
                return no(429, code);
            }
            if let Some((limit, (used, frees_in))) = all.clone().next().filter(|(limit, _)| limit.kind == "tier") {
                seen.limit = Some([limit.most, limit.most - used - 1, reset(*frees_in)]);
            }
            let before = all.clone().find(|(limit, _)| limit.kind == "throttle").map(|(_, (used, _))| *used);
            for limit in limits.iter().filter(|limit| limit.add > 0) {
                match limit.window {
                    Window::Sliding(_) => self.taken.push((limit.name.clone(), self.now)),
                    Window::Until(_) => self.totals.push((limit.name.clone(), limit.add)),
                }
            }
            if let (Some(before), Some((.., at_once, each))) = (before, facts.person.and_then(Self::throttle)) {
                let wait = each * (before + 1).saturating_sub(at_once);
                if wait > 0 {
                    self.hit("a throttled call waits");
                }
                self.now += wait;
            }
            return Ok(());
        }
    }

    /// The one rule of [`super::cases`]: a member `name`, a text of two characters or more.
    fn validate(&mut self, ask: &Ask, endpoint: &EndpointSpec) -> Result<(), No> {
        let has_rules = endpoint.validation.as_ref().is_some_and(|validation| validation.enabled != Some(false));
        if !has_rules || ["GET", "HEAD"].contains(&ask.method.as_str()) {
            return Ok(());
        }
        let is_json = ask.get("content-type").is_some_and(|media| media.starts_with("application/json"));
        let body = if is_json { serde_json::from_slice(&ask.body).unwrap_or_default() } else { serde_json::Value::Null };
        if body["name"].as_str().is_none_or(|name| name.len() < 2) {
            return no(400, "GTW011");
        }
        self.hit("a body is as it should be");
        Ok(())
    }

    /// The server whose turn it is.
    fn server(&mut self, ask: &Ask, api: &'a DoormanApiSpec, endpoint: &'a EndpointSpec) -> Result<String, No> {
        let is_url = |server: &String| server.contains("://");
        let routing = self.world.routings.iter().find(|(key, _)| ask.get("client-key") == Some(*key));
        let routed = routing.map(|(key, servers)| ((*key).to_owned(), servers.iter().map(|own| (*own).to_owned()).collect()));
        let own = |name, servers: &Option<Vec<String>>| (name, servers.clone().unwrap_or_default());
        let lists: [(String, Vec<String>); 3] = [
            routed.unwrap_or_default(),
            own(format!("{} {} {}", label(api), endpoint.method.as_str(), endpoint.uri), &endpoint.servers),
            own(label(api), &api.servers),
        ];
        let usable = lists.into_iter().map(|(name, servers)| (name, servers.into_iter().filter(is_url).collect::<Vec<_>>()));
        let Some((index, (name, servers))) = usable.enumerate().find(|(_, (_, servers))| !servers.is_empty()) else {
            self.hit("no server");
            return no(404, "GTW001");
        };
        self.hit(["sent by client key", "sent to an endpoint's servers", "sent to an API's servers"][index]);
        if !self.turns.iter().any(|(of, _)| *of == name) {
            self.turns.push((name.clone(), 0));
        }
        let (_, turn) = self.turns.iter_mut().find(|(of, _)| *of == name).unwrap();
        *turn += 1;
        Ok(servers[(*turn - 1) % servers.len()].clone())
    }

    /// Takes a credit where one is due; tells what the upstream is paid with.
    fn charge(&mut self, api: &DoormanApiSpec, person: Option<&Person>) -> Result<Option<(String, String)>, No> {
        let Some(credits) = api.credits.as_ref().filter(|credits| credits.enabled) else { return Ok(None) };
        let group = self.world.groups.iter().find(|group| credits.group.as_deref() == Some(group.name));
        if group.is_some_and(|group| ["Connection", "no header"].contains(&group.header)) {
            return no(500, "CRD500");
        }
        let key = group.map(|group| (group.header.to_lowercase(), group.new_key.unwrap_or(group.key).to_owned()));
        let Some(person) = person else { return Ok(key) };
        let balance = self.balances.iter_mut().find(|(user, name, left)| {
            **user == *person.user.username && credits.group.as_ref() == Some(name) && *left > 0
        });
        let Some((_, name, left)) = balance else { return no(401, "GTW008") };
        *left -= 1;
        let own = person.balances.iter().find(|(group, ..)| group == name).and_then(|(.., key)| *key);
        self.hit("a credit is taken");
        Ok(key.map(|(header, key)| (header, own.map_or(key, str::to_owned))))
    }

    /// What a browser may do.
    fn preflight(&mut self, ask: &Ask, path: &[String], seen: &mut Seen) {
        seen.status = 204;
        let Ok(api) = self.find(path) else { return };
        let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
        if self.world.options.strict_options && !methods.into_iter().any(|method| endpoint(api, method, &path[2..]).is_some()) {
            seen.status = 405;
            return self.hit("a strict preflight");
        }
        self.hit("a preflight");
        seen.cors = cors(api, ask);
        let spec = api.cors.clone().unwrap_or_default();
        let all = "GET, POST, PUT, DELETE, PATCH, HEAD, OPTIONS";
        if ask.get("access-control-request-method").is_some() {
            let mut methods: Vec<String> = Vec::new();
            for method in spec.allow_methods.iter().flatten().map(|method| method.to_uppercase()).chain(["OPTIONS".to_owned()]) {
                if !methods.contains(&method) {
                    methods.push(method);
                }
            }
            let is_any = spec.allow_methods.as_ref().is_none_or(|methods| methods.iter().any(|method| method == "*"));
            let methods = if is_any { all.to_owned() } else { methods.join(", ") };
            seen.cors.push(("access-control-allow-methods".to_owned(), methods));
        }
        if let Some(asked) = ask.get("access-control-request-headers") {
            let any = if spec.allow_credentials == Some(true) { asked } else { "*" };
            let listed = spec.allow_headers.filter(|names| !names.iter().any(|name| name == "*"));
            let headers = listed.map_or(any.to_owned(), |names| names.join(", "));
            seen.cors.push(("access-control-allow-headers".to_owned(), headers));
        }
        seen.cors.sort();
    }
}

/// What an answer says to a browser, sorted.
fn cors(api: &DoormanApiSpec, ask: &Ask) -> Vec<(String, String)> {
    let Some(origin) = ask.get("origin") else { return Vec::new() };
    let spec = api.cors.clone().unwrap_or_default();
    let mut told = vec![("vary".to_owned(), "Origin".to_owned())];
    let is_allowed = spec.allow_origins.is_none_or(|origins| {
        origins.iter().any(|allowed| match allowed.split_once("*.") {
            Some((scheme, domain)) => origin.starts_with(scheme) && origin.ends_with(&format!(".{domain}")),
            None => allowed == "*" || allowed == origin,
        })
    });
    if is_allowed {
        told.push(("access-control-allow-origin".to_owned(), origin.to_owned()));
        if spec.allow_credentials == Some(true) {
            told.push(("access-control-allow-credentials".to_owned(), "true".to_owned()));
        }
        if let Some(exposed) = spec.expose_headers.filter(|names| !names.is_empty()) {
            told.push(("access-control-expose-headers".to_owned(), exposed.join(", ")));
        }
    }
    told.sort();
    told
}

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

/// What the upstream is sent.
fn sent(
    ask: &Ask,
    api: &DoormanApiSpec,
    endpoint: &EndpointSpec,
    path: &[String],
    server: String,
    person: Option<&Person>,
    key: Option<(String, String)>,
    credits: Vec<i64>,
) -> Sent {
    let (server, own_query) = server.split_once('?').unwrap_or((&server, ""));
    let (scheme, rest) = server.split_once("://").unwrap();
    let (authority, base) = rest.split_once('/').unwrap_or((rest, ""));
    let usual_port = if scheme == "http" { ":80" } else { ":443" };
    let authority = authority.strip_suffix(usual_port).unwrap_or(authority);
    let captured = |part: &str| parts(client_uri(endpoint)).iter().position(|own| *own == part).map(|at| path[at].as_str());
    let upstream = parts(&endpoint.uri).into_iter().map(|part| {
        let value = if part.starts_with('{') { captured(part).unwrap() } else { part };
        format!("/{}", encoded(value))
    });
    let upstream: String = upstream.collect();
    let base = base.trim_end_matches('/');
    let mut target = if base.is_empty() { String::new() } else { format!("/{base}") };
    target.push_str(if upstream.is_empty() { "/" } else { &upstream });
    let query = [own_query, ask.target.split_once('?').map_or("", |(_, query)| query)];
    let query: Vec<&str> = query.into_iter().filter(|query| !query.is_empty()).collect();
    if !query.is_empty() {
        target = format!("{target}?{}", query.join("&"));
    }

    let spec = api.headers.clone().unwrap_or_default();
    let usual = ["soapaction", "content-type", "accept", "user-agent", "accept-encoding"].map(str::to_owned);
    let allowed = spec.allowed.iter().flatten().map(|name| name.to_lowercase());
    let connection: Vec<String> =
        ask.get("connection").unwrap_or_default().split(',').map(|name| name.trim().to_lowercase()).collect();
    let passes = |name: &String| {
        // Many servers read `_` as `-`.
        !NEVER.contains(&name.replace('_', "-").as_str())
            && !connection.contains(name)
            // An answer that is changed must come as it is.
            && (name != "accept-encoding" || api.envelope != Some(true))
    };
    let passing: Vec<String> = usual.into_iter().chain(allowed).filter(passes).collect();
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for name in &passing {
        headers.extend(ask.get(name).map(|value| (name.clone(), value.to_owned())));
    }
    let swap = spec.authorization_field_swap.map(|name| name.to_lowercase()).filter(|name| passing.contains(name));
    let swapped = swap.and_then(|name| ask.get(&name)).filter(|value| !value.is_empty());
    headers.extend(swapped.map(|value| ("authorization".to_owned(), value.to_owned())));
    headers.insert("host".to_owned(), authority.to_owned());
    headers.insert("x-request-id".to_owned(), "id".to_owned());
    for name in ["x-user-email", "x-doorman-user"] {
        headers.extend(person.map(|person| (name.to_owned(), person.user.username.to_string())));
    }
    headers.extend(key);
    Sent { target, headers: headers.into_iter().collect(), credits }
}
