//! What the gateway should do with requests: its policy once more, in the plainest form.
//!
//! Written from what is promised (reference: gateway behaviour 2 to 11 and 18; docs/operations.md) and not from the
//! gateway's code, of which it shares only the forms that configuration is stored in. Its state is lists of what was
//! counted.
//!
//! - `access` is about who asks from where for what, `limits` about how much, `upstream` about what goes where and who
//!   pays, `browsers` about CORS.

use std::cell::RefCell;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use self::access::{is_open, label, segments};
use self::limits::{Booking, Facts, Way};
use super::cases::World;
use super::stage::{Ask, Seen};

mod access;
mod browsers;
mod limits;
mod upstream;

/// A refusal: status and code.
#[derive(Clone, Copy)]
struct No(u16, &'static str);

/// How often each rule mattered.
pub type Hits = BTreeMap<String, u64>;

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
    /// Servers, by whose they are, that had their turn.
    turns: Vec<String>,
    /// User, group, credits.
    balances: Vec<(String, String, i64)>,
    booking: Option<Booking>,
    hits: RefCell<Hits>,
}

impl<'a> Model<'a> {
    pub fn new(world: &'a World, tokens: &'a [String]) -> Self {
        let balances = world.people.iter().flat_map(|person| {
            let name = person.user.username.to_string();
            person.balances.iter().map(move |(group, credits, _)| (name.clone(), (*group).to_owned(), *credits))
        });
        let new = Self {
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
            hits: RefCell::default(),
        };
        new.hit("a configuration");
        new
    }

    pub fn pass(&mut self, millis: u64) {
        self.now += millis;
    }

    pub fn set_forward(&mut self, seconds: i64) {
        self.set += seconds;
    }

    /// From now on this is the configuration. What is set anew starts anew: balances, and whose turn it is.
    pub fn change(&mut self, world: &'a World) {
        for (before, now) in self.world.people.iter().zip(&world.people) {
            if before.balances != now.balances {
                let name = now.user.username.to_string();
                self.balances.retain(|(user, ..)| *user != name);
                self.balances
                    .extend(now.balances.iter().map(|(group, left, _)| (name.clone(), (*group).to_owned(), *left)));
            }
        }
        for (_, api) in self.world.apis.iter().zip(&world.apis).filter(|(before, now)| before != now) {
            self.turns.retain(|whose| !whose.starts_with(&label(api)));
        }
        self.world = world;
        self.hit("a configuration");
    }

    fn hit(&self, what: impl Into<String>) {
        *self.hits.borrow_mut().entry(what.into()).or_default() += 1;
    }

    pub fn hits(self) -> Hits {
        self.hits.into_inner()
    }

    /// Milliseconds of the day's clock since the start.
    fn elapsed(&self) -> i64 {
        i64::try_from(self.now).unwrap() + 1_000 * self.set
    }

    fn clock(&self) -> Timestamp {
        self.start + SignedDuration::from_millis(self.elapsed())
    }

    /// Of several reasons to refuse the first is told.
    fn none_of(&self, reasons: &[No]) -> Result<(), No> {
        let [first, others @ ..] = reasons else { return Ok(()) };
        for other in others {
            self.hit(format!("{} before {}", first.1, other.1));
        }
        Err(*first)
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
            seen.cors = browsers::cors(api, ask);
        }
        seen.wait = self.now - began;
        seen
    }

    fn decide(&mut self, ask: &Ask, seen: &mut Seen) -> Result<(), No> {
        let client = self.client(ask, self.world.filter.trusts);
        if client != ask.peer.to_canonical() {
            self.hit("a proxy says who");
        }
        let mut reasons = self.filter(ask, client);
        let segments = segments(ask.path());
        reasons.extend(segments.as_ref().err().copied());
        let says = |name, word: &str| ask.get(name).is_some_and(|value: &str| value.to_lowercase().contains(word));
        if says("upgrade", "websocket") && says("connection", "upgrade") {
            reasons.push(No(403, "GTW015"));
        }
        self.none_of(&reasons)?;
        let segments = segments?;

        let caller = self.caller(ask);
        let person = caller.ok();
        let tier = person.and_then(|person| self.tier(person));
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        match (&words[..], ask.method.as_str()) {
            (["api", "rest", ..], "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE") => {}
            (other, method) => {
                self.count(&Facts::of_no_call(person, tier, client), seen)?;
                match (other, method) {
                    (["api", "rest", path @ ..], "OPTIONS") => self.preflight(ask, path, seen),
                    (["api", "health"], "GET") => seen.status = 200,
                    (["api", "rest", ..] | ["api", "health"], _) => seen.status = 405,
                    _ => seen.status = 404,
                }
                return Ok(());
            }
        }

        let method = if ask.method == "HEAD" { "GET" } else { ask.method.as_str() };
        let path = &words[2..];
        let api = self.find(path);
        let endpoint = api.ok().and_then(|api| access::endpoint(api, method, &path[2..]));
        seen.user = person.map(|person| person.user.username.to_string());
        seen.api = api.ok().map(label);
        seen.endpoint = api.ok().zip(endpoint).map(|(api, own)| access::name(api, own));
        let reasons = self.reasons(ask, api, endpoint, caller);
        let way = match (reasons.is_empty(), api) {
            (true, Ok(api)) if is_open(api) => Way::Guest,
            (true, Ok(_)) => Way::User,
            _ => Way::Refused,
        };
        let is_own = api.is_ok_and(|api| !is_open(api));
        let allowances = person.map(|person| Self::allowances(person, tier.as_ref(), is_own));
        self.booking = allowances.map(|allowances| Booking { allowances, bytes: ask.size() });
        let length = ask.body.len() as u64;
        let facts = Facts { way, person, tier, client, api: seen.api.clone(), endpoint: seen.endpoint.clone(), length };
        let counted = self.count(&facts, seen);
        let reasons: Vec<No> = counted.err().into_iter().chain(reasons).collect();
        self.none_of(&reasons)?;
        let (Ok(api), Some(endpoint)) = (api, endpoint) else { unreachable!("that is a reason") };
        if way == Way::Guest {
            self.hit(if api.public == Some(true) { "a public API" } else { "an API that asks nobody" });
            if person.is_some() {
                self.hit("a token that nobody asks for");
            }
        }
        self.send(ask, api, endpoint, &path[2..], person.filter(|_| way == Way::User), seen)
    }
}
