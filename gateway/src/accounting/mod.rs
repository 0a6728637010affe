//! What a request costs, and whether it may: rates, throttles, bandwidth, tiers, quotas, rules and credits.
//!
//! In: what is known of a request. Out: leave to go on (maybe after a wait), or why not. The decision about all counters
//! is one question to the store, which counts all or none; credits are a second one, asked only where they are charged,
//! right before the upstream is called. What always holds: nothing here is decided by a copy of a count or a balance.
//!
//! - `limits` and `rules` are the typed forms of what is stored, `bytes` counts those of calls, `charge` is about credits,
//!   `waiting` is the line of those who wait for a turn, `afterwards` does what a request leaves to be done.
//!
//! Order of refusals (reference: gateway behaviour 5 and 7): the tier, rules, then (for callers who are let in) the
//! user's rate, throttle and bandwidth.

use std::{net::IpAddr, sync::Arc, time::Duration};

use mongodb::bson::Document;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until, timeout_at};

mod afterwards;
mod bytes;
mod charge;
mod limits;
mod rules;
mod waiting;

pub use bytes::{Meter, Read, Received, length};
pub use charge::{ChargeError, Charged, UpstreamKey};
pub use limits::{Allowance, Calendar, Tier, UserLimits};
pub use rules::EndpointName;

use crate::{
    crypt::Sealer,
    identity::Identity,
    settings::{FailMode, Settings},
    store::{
        Change, Collection, Counter, Moment, Reading, Store, StoreError, Taken,
        fresh::{CACHE_LIFE, Fresh},
        latest::Latest,
        rules::Rule,
        tiers::{in_force, next_change},
    },
};
use afterwards::Afterwards;
use charge::Definition;
use rules::Rules;
use waiting::Waiting;

/// Who waits for a turn asks no sooner than this whether it has come.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The user, where a token says so.
    pub user: Option<&'a str>,
    /// `name/version`.
    pub api: Option<&'a str>,
    /// The endpoint.
    pub endpoint: Option<EndpointName<'a>>,
    /// The client's address.
    pub address: IpAddr,
    /// How far it has come.
    pub admission: Admission,
}

/// How far a request has come before it is measured; what measures it depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It calls no API: only its user's tier counts it.
    NoCall,
    /// A call that something else refuses.
    Refused,
    /// A call of an API that asks nobody who calls: no limit of the user's own counts it.
    Guest,
    /// A call of its user.
    User,
}

/// Which limit it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The tier's, in a window of this name.
    Tier(&'static str),
    /// The tier's, in a stretch of the calendar of this name.
    Quota(&'static str),
    /// That of a rule, in a window of this name.
    Rule(&'static str),
    /// The user's rate.
    Rate,
    /// The user's throttle.
    Throttle,
    /// The user's bytes.
    Bandwidth,
}

/// How a limit stands after a request was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The most in one window.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// When some of it is free again.
    pub resets_in: Duration,
}

/// Leave to go on.
#[derive(Debug, Default)]
pub struct Admitted {
    /// After this wait.
    pub wait: Duration,
    /// How the tier's shortest window stands; without one, whatever else counts requests of this caller alone, of several
    /// that of which the least is left.
    pub shown: Option<Shown>,
    /// How the bytes stand of which the least is left, where they are limited.
    pub bytes: Option<Shown>,
}

/// Why a request may not go on.
#[derive(Debug)]
pub enum Refused {
    /// A limit is reached.
    Limit {
        /// Which.
        kind: Kind,
        /// How it stands.
        shown: Shown,
    },
    /// The limits can't be checked.
    Away(StoreError),
}

/// A tier as a user has it.
#[derive(Clone, Debug)]
pub struct HeldTier {
    /// The tier, as it is stored.
    pub tier: Arc<Document>,
    /// What it allows: the tier's own limits, or those that the assignment sets in their place.
    pub limits: Document,
}

/// One of the limits that a request is measured by.
#[derive(Clone, Debug)]
struct Measure {
    kind: Kind,
    counter: Counter,
    /// Does it count requests, and of this caller alone? What others do is nobody's business.
    is_own: bool,
}

impl Measure {
    /// How it stands if `used` is used up of it.
    fn shown(&self, used: u64, reading: &Reading) -> Shown {
        let limit = self.counter.limit;
        Shown { limit, remaining: limit.saturating_sub(used), resets_in: reading.frees_in }
    }
}

struct Known {
    users: Fresh<Arc<UserLimits>>,
    definitions: Fresh<Arc<Option<Definition>>>,
}

impl Known {
    fn forget(&self, change: Change<'_>) {
        match change {
            Change::Document(Collection::Users | Collection::TierAssignments, name) => self.users.forget(name),
            Change::Document(Collection::Tiers, _) => self.users.forget_all(),
            Change::Document(Collection::CreditDefs, group) => self.definitions.forget(group),
            Change::Everything => {
                self.users.forget_all();
                self.definitions.forget_all();
            }
            Change::Document(..) | Change::Token(_) | Change::Other(_) => {}
        }
    }
}

/// Measures and charges requests.
pub struct Accounts {
    store: Arc<Store>,
    identity: Arc<Identity>,
    known: Arc<Known>,
    rules: Arc<Latest<Rules>>,
    sealer: Arc<Sealer>,
    skip_tiers: bool,
    fail_mode: FailMode,
    afterwards: Afterwards,
    waiting: Waiting,
}

impl Accounts {
    /// Over the store of these users.
    pub fn new(settings: &Settings, identity: Arc<Identity>, sealer: Arc<Sealer>) -> Self {
        let store = identity.store().clone();
        let capacity = usize::try_from(settings.storage.cache_entries.get()).unwrap_or(usize::MAX);
        let known =
            Arc::new(Known { users: Fresh::new(capacity, CACHE_LIFE), definitions: Fresh::new(capacity, CACHE_LIFE) });
        let forgetting = known.clone();
        store.on_change(move |change| forgetting.forget(change));
        let rules = Latest::new(&store, Collection::RateLimitRules, |found, _| Rules::of(found));
        Self {
            store,
            identity,
            known,
            rules,
            sealer,
            skip_tiers: settings.limits.skip_tiers,
            fail_mode: settings.storage.limits_fail_mode,
            afterwards: Afterwards::default(),
            waiting: Waiting::default(),
        }
    }

    /// Everything that limits a user, as it is now.
    pub async fn of_user(&self, username: &str) -> Result<Arc<UserLimits>, StoreError> {
        let is_current = |limits: &Arc<UserLimits>| limits.tier_until.is_none_or(|until| Moment::now() < until);
        if let Some(known) = self.known.users.get(username) {
            match known {
                Ok(limits) if !is_current(&limits) => self.known.users.forget(username),
                known => return known,
            }
        }
        self.known.users.get_or_load(username, || self.load(username, Moment::now())).await
    }

    async fn load(&self, username: &str, now: Moment) -> Result<Arc<UserLimits>, StoreError> {
        let user = self.identity.user(username).await?;
        let mut limits = user.as_deref().map(UserLimits::of).unwrap_or_default();
        if !self.skip_tiers {
            let (held, until) = self.tier(username, now).await?;
            limits.tier = held.map(|held| Tier::of(username, &held.limits)).unwrap_or_default();
            limits.tier_until = until;
        }
        Ok(Arc::new(limits))
    }

    /// The tier of a user at this moment, and until when it is.
    async fn tier(&self, username: &str, now: Moment) -> Result<(Option<HeldTier>, Option<Moment>), StoreError> {
        let assignment = self.store.find(Collection::TierAssignments, &[username]).await?;
        let held = assignment.as_deref().and_then(|assignment| in_force(assignment, now));
        let until = assignment.as_deref().and_then(|assignment| next_change(assignment, now));
        let assigned = match held.and_then(|held| held.get_str("tier_id").ok()) {
            Some(id) => self.store.find(Collection::Tiers, &[id]).await?,
            None => None,
        };
        let own = held.and_then(|held| held.get_document("override_limits").ok()).cloned();
        let tier = match (assigned, &own) {
            (Some(tier), _) => Some(tier),
            // Its limits are the user's, wherever the tier has gone.
            (None, Some(_)) => Some(Arc::default()),
            (None, None) => self.store.default_tier().await?,
        };
        let limits = |tier: &Document| tier.get_document("limits").cloned().unwrap_or_default();
        Ok((tier.map(|tier| HeldTier { limits: own.unwrap_or_else(|| limits(&tier)), tier }), until))
    }

    /// The tier that a user has now.
    pub async fn held_tier(&self, username: &str) -> Result<Option<HeldTier>, StoreError> {
        self.tier(username, Moment::now()).await.map(|(held, _)| held)
    }

    /// What is used of an allowance in its present stretch, and when that ends.
    pub async fn used(&self, allowance: &Allowance) -> Result<(u64, Moment), StoreError> {
        let (counter, end) = allowance.counter(crate::store::now());
        let totals = self.store.totals(&[counter]).await?;
        Ok((totals.first().copied().unwrap_or_default(), Moment::at_second(end)))
    }

    /// What is unknown because a store is away limits nobody, unless the settings say that it refuses.
    fn unless_closed<T: Default>(&self, found: Result<T, StoreError>) -> Result<T, Refused> {
        match (found, self.fail_mode) {
            (Ok(found), _) => Ok(found),
            (Err(error), FailMode::Open) => {
                tracing::warn!(%error, "limits are unknown while the document store is away and limit nobody");
                Ok(T::default())
            }
            (Err(error), FailMode::Closed) => Err(Refused::Away(error)),
        }
    }

    /// Measures a request with a body of so many bytes, by what limits its user, where it has one.
    pub async fn measure(
        &self,
        facts: &Facts<'_>,
        limits: Option<Result<Arc<UserLimits>, StoreError>>,
        length: u64,
    ) -> Result<Admitted, Refused> {
        let limits = limits.map(|limits| self.unless_closed(limits)).transpose()?;
        let rules = self.unless_closed(self.rules.get().await)?;
        let queue = limits.as_ref().and_then(|limits| limits.tier.queue);
        let deadline = queue.map(|queue| Instant::now() + queue);
        let mut place = None;
        loop {
            // After a wait it may be another day.
            let asked = Asked::new(limits.as_deref(), &rules, facts, length);
            if asked.measures.is_empty() {
                return Ok(Admitted::default());
            }
            let taken = self.store.take(&asked.counters()).await.map_err(Refused::Away)?;
            let outcome = asked.outcome(&taken, limits.as_deref());
            // The windows of a tier may let requests wait for their turn.
            let (Err(Refused::Limit { kind: Kind::Tier(_), shown }), Some(user), Some(deadline)) =
                (&outcome, facts.user, deadline)
            else {
                return outcome;
            };
            let opens = Instant::now() + shown.resets_in.max(SHORTEST_WAIT);
            if opens > deadline {
                return outcome;
            }
            if place.is_none() {
                place = match timeout_at(deadline, self.waiting.enter(user)).await {
                    Ok(None) => return outcome,
                    Ok(entered) => entered,
                    // It may ask a last time.
                    Err(_) => None,
                };
            }
            sleep_until(opens).await;
        }
    }

    /// Waits until what is left of calls that are over is stored. For the end of the process.
    pub async fn finish(&self) {
        self.afterwards.finish().await;
    }
}

/// All that is asked about one request. The tier's shortest window, if it has any, is the first.
struct Asked {
    measures: SmallVec<[Measure; 6]>,
}

impl Asked {
    fn new(limits: Option<&UserLimits>, rules: &Rules, facts: &Facts<'_>, length: u64) -> Self {
        let now = crate::store::now();
        let mut measures: SmallVec<[Measure; 6]> = SmallVec::new();
        let own = |kind, counter| Measure { kind, counter, is_own: true };
        let tier = limits.map(|limits| &limits.tier);
        if let Some(tier) = tier {
            measures.extend(tier.windows.iter().map(|limit| own(Kind::Tier(limit.window), limit.counter.clone())));
            measures.extend(tier.quotas.iter().map(|(quota, window)| own(Kind::Quota(window), quota.asked(now, 1, 1))));
        }
        if facts.admission != Admission::NoCall && !rules.is_empty() {
            let measure = |(rule, counter): (&Rule, Counter)| {
                let kind = Kind::Rule(rule.window.name());
                Measure { kind, counter, is_own: rule.rule_type.counts_one_caller() }
            };
            measures.extend(rules.applying(facts).into_iter().map(measure));
        }
        let no_requests = |kind, counter| Measure { kind, counter, is_own: false };
        let bytes = |allowance: &Allowance| no_requests(Kind::Bandwidth, allowance.asked(now, length.max(1), 0));
        if let Some(limits) = limits.filter(|_| facts.admission == Admission::User) {
            measures.extend(limits.rate.clone().map(|counter| own(Kind::Rate, counter)));
            // How long its queue may become doesn't tell how many requests are left.
            let throttle = limits.throttle.as_ref();
            measures.extend(throttle.map(|throttle| no_requests(Kind::Throttle, throttle.counter.clone())));
            measures.extend(limits.bandwidth.as_ref().map(bytes));
        }
        if let Some(tier) = tier.filter(|_| matches!(facts.admission, Admission::Guest | Admission::User)) {
            measures.extend(tier.bandwidth.as_ref().map(bytes));
        }
        Self { measures }
    }

    fn counters(&self) -> SmallVec<[Counter; 6]> {
        self.measures.iter().map(|measure| measure.counter.clone()).collect()
    }

    fn outcome(&self, taken: &Taken, limits: Option<&UserLimits>) -> Result<Admitted, Refused> {
        let at = |index: usize| Some((self.measures.get(index)?, taken.readings.get(index)?));
        if let Some((measure, reading)) = taken.refused.and_then(at) {
            let shown = measure.shown(measure.counter.limit, reading);
            return Err(Refused::Limit { kind: measure.kind.clone(), shown });
        }
        let measured = || self.measures.iter().zip(&taken.readings);
        let counted =
            |(measure, reading): (&Measure, &Reading)| measure.shown(reading.used + measure.counter.add, reading);
        let of_tier = at(0).filter(|(measure, _)| matches!(measure.kind, Kind::Tier(_))).map(counted);
        let own = || measured().filter(|(measure, _)| measure.is_own).map(counted).min_by_key(|shown| shown.remaining);
        let bytes = measured().filter(|(measure, _)| measure.kind == Kind::Bandwidth);
        let bytes = bytes.map(|(measure, reading)| measure.shown(reading.used, reading));
        let bytes = bytes.min_by_key(|shown| shown.remaining);
        let mut admitted = Admitted { wait: Duration::ZERO, shown: of_tier.or_else(own), bytes };
        let throttled = measured().find(|(measure, _)| measure.kind == Kind::Throttle);
        if let (Some((Measure { counter, .. }, Reading { used, .. })), Some(throttle)) =
            (throttled, limits.and_then(|limits| limits.throttle.as_ref()))
        {
            let beyond = (used + counter.add).saturating_sub(throttle.at_once);
            admitted.wait = throttle.wait.saturating_mul(u32::try_from(beyond).unwrap_or(u32::MAX));
        }
        Ok(admitted)
    }
}
