//! How much: tiers, quotas, rules, rates, throttles and bytes.

use std::cmp::Reverse;
use std::net::IpAddr;

use jiff::{SignedDuration, tz::TimeZone};

use super::super::cases::{Assignment, Limits, Person, Rule};
use super::super::stage::Seen;
use super::access::within;
use super::{Model, No};

/// How far a request is let in.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    NoCall,
    Refused,
    Guest,
    User,
}

/// What limits look at.
pub(super) struct Facts<'a> {
    pub way: Way,
    pub person: Option<&'a Person>,
    /// What the person's tier is when the request comes.
    pub tier: Option<HeldTier>,
    pub client: IpAddr,
    pub api: Option<String>,
    /// Method, and path with the API's name.
    pub endpoint: Option<String>,
    /// Bytes of the body.
    pub length: u64,
}

impl<'a> Facts<'a> {
    pub(super) fn of_no_call(person: Option<&'a Person>, tier: Option<HeldTier>, client: IpAddr) -> Self {
        Self { way: Way::NoCall, person, tier, client, api: None, endpoint: None, length: 0 }
    }
}

/// A tier's limits, and for how many milliseconds a request may wait for its turn.
#[derive(Clone)]
pub(super) struct HeldTier {
    limits: Limits,
    queue: Option<u64>,
}

/// Bytes that a user may use up in a stretch of the calendar.
pub(super) struct Allowance {
    what: &'static str,
    whose: String,
    /// Milliseconds from multiples of them since 1970; none: a month.
    window: Option<u64>,
    most: u64,
}

/// What bytes of a call are booked on, and how many there are so far.
pub(super) struct Booking {
    pub allowances: Vec<Allowance>,
    pub bytes: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Tier,
    Quota,
    Rule,
    Rate,
    Throttle,
    Bytes,
}

enum Window {
    /// Any stretch of so many milliseconds.
    Sliding(u64),
    /// Until this second.
    Until(i64),
}

struct Limit {
    kind: Kind,
    what: &'static str,
    /// What is counted together has one name.
    name: String,
    window: Window,
    most: u64,
    /// So much must be left,
    need: u64,
    /// and so much is counted then.
    add: u64,
}

impl Limit {
    fn of_requests(kind: Kind, what: &'static str, whose: &str, window: Window, most: u64) -> Self {
        let length = if let Window::Sliding(length) = window { length } else { 0 };
        Self { kind, what, name: format!("{what} {whose} {length}"), window, most, need: 1, add: 1 }
    }
}

/// A throttle: requests beyond `at_once` in a window wait `each` for every one before them, and beyond `most` are refused.
struct Throttle {
    window: u64,
    most: u64,
    at_once: u64,
    each: u64,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Who waits for a tier's window asks no sooner again.
const SHORTEST_WAIT: u64 = 10;
/// Numbers of a tier's windows from here on are none.
const NO_LIMIT: u64 = 999_999;

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

/// What a rule counts as one client: an address, of IPv6 a network of 64 bits.
fn client(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("{:?}", &v6.segments()[..4]),
    }
}

/// Whose requests a rule counts together, if it applies at all. Who is not let in uses up what addresses may send, and
/// nothing that is there for others too.
fn counts(rule: &Rule, facts: &Facts<'_>) -> Option<String> {
    let is_let_in = matches!(facts.way, Way::Guest | Way::User);
    let user = facts.person.map(|person| person.user.username.to_string());
    let (api, endpoint) = (facts.api.as_ref(), facts.endpoint.as_ref());
    // `get /a/v1/items/` is `GET a/v1/items`; without a method it is about all of them.
    let plain = |text: &str| match text.split_once(' ') {
        Some((method, path)) => (Some(method.to_uppercase()), path.trim_matches('/').to_owned()),
        None => (None, text.strip_prefix("/api/rest").unwrap_or(text).trim_matches('/').to_owned()),
    };
    let is_api = api.is_some_and(|api| rule.target == Some(api) || rule.target == api.split('/').next());
    let is_endpoint = endpoint.zip(rule.target).is_some_and(|(own, target)| {
        let ((own_method, own_path), (method, path)) = (plain(own), plain(target));
        own_path == path && (method.is_none() || own_method == method)
    });
    let is_any = rule.target.is_none();
    match rule.kind {
        "per_ip" => {
            (facts.way != Way::NoCall && within(rule.target.as_slice(), facts.client)).then(|| client(facts.client))
        }
        _ if !is_let_in => None,
        "per_user" => user.filter(|user| rule.target == Some(user)),
        "per_api" => api.filter(|_| is_api).cloned(),
        "per_endpoint" => endpoint.filter(|_| is_endpoint).cloned(),
        "per_user_api" => Some(format!("{} {}", user?, api.filter(|_| is_api || is_any)?)),
        "per_user_endpoint" => Some(format!("{} {}", user?, endpoint.filter(|_| is_endpoint || is_any)?)),
        _ => Some(String::new()),
    }
}

impl Model<'_> {
    /// The answer to the last request was this long.
    pub fn answered(&mut self, length: u64) {
        let Some(Booking { allowances, bytes }) = self.booking.take() else { return };
        for allowance in allowances {
            self.totals.push((self.bytes(&allowance, 0).name, bytes + length));
        }
    }

    /// The tier that a user has now.
    pub(super) fn tier(&self, person: &Person) -> Option<HeldTier> {
        if self.world.options.skips_tiers {
            return None;
        }
        let elapsed = self.elapsed();
        let has_begun = |part: &Assignment| part.from.is_none_or(|from| from * 1_000 <= elapsed);
        let held = person.assignment.as_ref().map(|first| match &first.next {
            Some(next) if has_begun(next) => next,
            _ => first,
        });
        let held = held.filter(|part| has_begun(part) && part.until.is_none_or(|until| elapsed < until * 1_000));
        if let Some(own) = held.and_then(|part| part.overrides.clone()) {
            self.hit("limits of an assignment's own");
            return Some(HeldTier { limits: own, queue: None });
        }
        let tiers = &self.world.tiers;
        let assigned = tiers.iter().find(|tier| held.is_some_and(|part| part.tier == tier.id));
        let defaults = || tiers.iter().filter(|tier| tier.is_default);
        let usual = defaults().filter(|tier| tier.enabled != Some(false)).min_by_key(|tier| tier.id);
        if assigned.is_none() && defaults().any(|tier| tier.enabled == Some(false)) {
            self.hit("a default tier that is off");
        }
        if assigned.is_some_and(|tier| tier.enabled == Some(false)) {
            self.hit("a tier that is assigned and off");
        }
        self.hit(match (assigned, usual, &person.assignment) {
            (Some(_), ..) => "a tier that is assigned",
            (None, Some(_), None) => "the default tier",
            (None, Some(_), Some(_)) => "the default tier while no assignment holds",
            (None, None, _) => "no tier",
        });
        let tier = assigned.or(usual)?;
        Some(HeldTier { limits: tier.limits.clone(), queue: positive(tier.queue) })
    }

    /// The number of a stretch of so many milliseconds since 1970, and the first second after it.
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

    /// What a user may use of bytes: by the user's own limit where that counts, by the tier.
    pub(super) fn allowances(person: &Person, tier: Option<&HeldTier>, is_own: bool) -> Vec<Allowance> {
        let user = &person.user;
        let allowance = |what, window, most| Allowance { what, whose: user.username.to_string(), window, most };
        let own =
            positive(user.bandwidth_limit_bytes).filter(|_| is_own && user.bandwidth_limit_enabled != Some(false));
        let window = unit(user.bandwidth_limit_window.as_deref(), DAY);
        let own = own.map(|most| allowance("a user's bytes", Some(window), most));
        let tier = tier.and_then(|tier| member(&tier.limits, "monthly_bandwidth_quota"));
        own.into_iter().chain(tier.map(|most| allowance("a tier's bytes", None, most))).collect()
    }

    /// An allowance as it is now. Bytes are counted with the answer.
    fn bytes(&self, allowance: &Allowance, need: u64) -> Limit {
        let Allowance { what, whose, window, most } = allowance;
        let (stretch, end) = window.map_or_else(|| self.month(), |window| self.stretch(window));
        let name = format!("{what} {whose} {window:?} {stretch}");
        Limit { kind: Kind::Bytes, what, name, window: Window::Until(end), most: *most, need, add: 0 }
    }

    fn throttle(person: &Person) -> Option<Throttle> {
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
        Some(Throttle { window: unit(user.throttle_duration_type.as_deref(), SECOND), most, at_once, each })
    }

    /// Whatever limits a request, in the order of refusals.
    fn limits(&self, facts: &Facts<'_>) -> Vec<Limit> {
        let mut limits = Vec::new();
        let name = facts.person.map(|person| person.user.username.to_string()).unwrap_or_default();
        if let Some(HeldTier { limits: tier, .. }) = &facts.tier {
            for (what, window) in [
                ("requests_per_second", SECOND),
                ("requests_per_minute", MINUTE),
                ("requests_per_hour", HOUR),
                ("requests_per_day", DAY),
            ] {
                if let Some(most) = member(tier, what).filter(|most| *most < NO_LIMIT) {
                    limits.push(Limit::of_requests(Kind::Tier, what, &name, Window::Sliding(window), most));
                }
            }
            let daily = member(tier, "daily_request_quota");
            let monthly = member(tier, "requests_per_month").filter(|most| *most < NO_LIMIT);
            let monthly = monthly.into_iter().chain(member(tier, "monthly_request_quota")).min();
            for (what, (stretch, end), most) in
                [("requests of a day", self.stretch(DAY), daily), ("requests of a month", self.month(), monthly)]
            {
                let whose = format!("{name} {stretch}");
                limits.extend(most.map(|most| Limit::of_requests(Kind::Quota, what, &whose, Window::Until(end), most)));
            }
        }
        let mut rules: Vec<_> = self.world.rules.iter().filter(|rule| rule.enabled).collect();
        rules.sort_by_key(|rule| (Reverse(rule.priority), &rule.id));
        for rule in rules {
            if let Some(whose) = counts(rule, facts) {
                let (whose, window) = (format!("{} {whose}", rule.id), Window::Sliding(unit(Some(rule.window), 0)));
                let most = positive(Some(rule.limit)).unwrap_or_default();
                let is_network = rule.kind == "per_ip" && facts.client.is_ipv6();
                let what = if is_network { "per_ip of a network" } else { rule.kind };
                limits.push(Limit::of_requests(Kind::Rule, what, &whose, window, most));
            }
        }
        let Some(person) = facts.person.filter(|_| matches!(facts.way, Way::Guest | Way::User)) else { return limits };
        if facts.way == Way::User {
            let user = &person.user;
            let rate = positive(user.rate_limit_duration);
            if user.rate_limit_enabled == Some(true) || rate.is_some() {
                let window = Window::Sliding(unit(user.rate_limit_duration_type.as_deref(), MINUTE));
                limits.push(Limit::of_requests(Kind::Rate, "a user's rate", &name, window, rate.unwrap_or(60)));
            }
            if let Some(Throttle { window, most, .. }) = Self::throttle(person) {
                let window = Window::Sliding(window);
                limits.push(Limit::of_requests(Kind::Throttle, "a user's throttle", &name, window, most));
            }
        }
        let allowances = Self::allowances(person, facts.tier.as_ref(), facts.way == Way::User);
        limits.extend(allowances.iter().map(|allowance| self.bytes(allowance, facts.length.max(1))));
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
        let ends =
            self.taken.iter().filter(|(name, _)| *name == limit.name).map(|(_, at)| (at / part + parts + 1) * part);
        let mut ends: Vec<u64> = ends.filter(|end| *end > self.now).collect();
        ends.sort_unstable();
        let used = ends.len() as u64;
        let left_at = |end: u64| ends.iter().filter(|other| **other > end).count() as u64;
        let enough = ends.iter().find(|end| left_at(**end) + limit.need <= limit.most);
        (used, enough.map_or((parts + 1) * part, |end| end - self.now))
    }

    /// Counts a request everywhere, or nowhere when a limit is reached, and lets it wait.
    pub(super) fn count(&mut self, facts: &Facts<'_>, seen: &mut Seen) -> Result<(), No> {
        let queue = facts.tier.as_ref().and_then(|tier| tier.queue);
        let patience = self.now + queue.unwrap_or_default();
        loop {
            let limits = self.limits(facts);
            let standings: Vec<_> = limits.iter().map(|limit| self.standing(limit)).collect();
            let now = self.clock();
            let reset = |frees_in: u64| {
                let at = now + SignedDuration::from_millis(i64::try_from(frees_in).unwrap());
                u64::try_from(at.as_millisecond()).unwrap().div_ceil(1_000)
            };
            let mut all = limits.iter().zip(&standings);
            if let Some((limit, (_, frees_in))) = all.clone().find(|(limit, (used, _))| used + limit.need > limit.most)
            {
                // Windows of a tier may let a request wait for its turn.
                let wait = *frees_in.max(&SHORTEST_WAIT);
                if limit.kind == Kind::Tier && queue.is_some() && self.now + wait <= patience {
                    self.now += wait;
                    self.hit("a wait for a tier's window");
                    continue;
                }
                self.hit(format!("used up: {}", limit.what));
                seen.retry_after = Some(frees_in.div_ceil(1_000).max(1));
                let told = Some([limit.most, 0, reset(*frees_in)]);
                let (limit, code) = match limit.kind {
                    Kind::Tier | Kind::Quota | Kind::Rule => (told, "RATE_LIMIT_EXCEEDED"),
                    Kind::Rate => (told, "Rate limit exceeded"),
                    // A full queue and bytes say nothing about how many requests are left.
                    Kind::Throttle => (None, "Throttle queue limit exceeded"),
                    Kind::Bytes => (None, "Bandwidth limit exceeded"),
                };
                seen.limit = limit;
                return Err(No(429, code));
            }
            // What is told is how the shortest window of the tier stands, else the tightest that nobody else uses.
            let own = all.clone().filter(|(limit, _)| match limit.kind {
                Kind::Rule => limit.what.starts_with("per_user") || limit.what.starts_with("per_ip"),
                kind => [Kind::Quota, Kind::Rate].contains(&kind),
            });
            let of_tier = all.clone().next().filter(|(limit, _)| limit.kind == Kind::Tier);
            let own = own.min_by_key(|(limit, (used, _))| limit.most - used);
            if let Some((limit, (used, frees_in))) = of_tier.or(own) {
                self.hit(format!("told: {}", limit.what));
                seen.limit = Some([limit.most, limit.most - used - 1, reset(*frees_in)]);
            }
            let before = all.find(|(limit, _)| limit.kind == Kind::Throttle).map(|(_, (used, _))| *used);
            for limit in limits.iter().filter(|limit| limit.add > 0) {
                match limit.window {
                    Window::Sliding(_) => self.taken.push((limit.name.clone(), self.now)),
                    Window::Until(_) => self.totals.push((limit.name.clone(), limit.add)),
                }
            }
            if let (Some(before), Some(throttle)) = (before, facts.person.and_then(Self::throttle)) {
                let wait = throttle.each * (before + 1).saturating_sub(throttle.at_once);
                if wait > 0 {
                    self.hit("a wait for the throttle");
                }
                self.now += wait;
            }
            return Ok(());
        }
    }
}
