//! What a request costs, and whether it may: rates, throttles, bandwidth, tiers, quotas, rules and credits.
//!
//! In: what is known of a request. Out: leave to go on (maybe after a wait), or why not. The decision about all counters
//! is one question to the store, which counts all or none; credits are a second one, asked only where they are charged,
//! right before the upstream is called. What always holds: nothing here is decided by a copy of a count or a balance.
//!
//! - `limits` and `rules` are the typed forms of what is stored, `charge` is about credits.
//!
//! Order of refusals (reference: gateway behaviour 5 and 7): the tier, rules, then (for callers who are let in) the
//! user's rate, throttle and bandwidth.

use std::{net::IpAddr, sync::Arc, time::Duration};

use smallvec::SmallVec;

mod charge;
mod limits;
mod rules;

pub use charge::{ChargeError, Charged, UpstreamKey};
pub use limits::{Allowance, Calendar, Tier, UserLimits};
pub use rules::EndpointName;

use crate::{
    crypt::{CryptError, Sealer},
    identity::Identity,
    settings::{FailMode, Settings},
    store::{
        Change, Collection, Counter, Listing, Reading, Store, StoreError, Taken,
        fresh::{CACHE_LIFE, Fresh},
    },
};
use charge::Definition;
use rules::{Rule, Rules};

/// The one entry of caches that hold all of something.
const ALL: &str = "";
/// The longest that a throttled request waits; what would wait longer is refused.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
    /// Is it a call of an API? Only such are measured by rules.
    pub is_call: bool,
}

/// Which limit it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The tier's, in a window of this name.
    Tier(&'static str),
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
    /// How the tier's shortest window stands.
    pub shown: Option<Shown>,
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

/// A counter and which limit it is.
type Measure = (Kind, Counter);

struct Known {
    users: Fresh<Arc<UserLimits>>,
    rules: Fresh<Arc<Rules>>,
    definitions: Fresh<Arc<Option<Definition>>>,
}

impl Known {
    fn forget(&self, change: Change<'_>) {
        match change {
            Change::Document(Collection::Users | Collection::TierAssignments, name) => self.users.forget(name),
            Change::Document(Collection::Tiers, _) => self.users.forget_all(),
            Change::Document(Collection::RateLimitRules, _) => self.rules.forget_all(),
            Change::Document(Collection::CreditDefs, group) => self.definitions.forget(group),
            Change::Everything => {
                self.users.forget_all();
                self.rules.forget_all();
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
    sealer: Sealer,
    skip_tiers: bool,
    fail_mode: FailMode,
}

impl Accounts {
    /// Over the store of these users.
    pub fn new(settings: &Settings, identity: Arc<Identity>) -> Result<Self, CryptError> {
        let store = identity.store().clone();
        let capacity = usize::try_from(settings.storage.cache_entries.get()).unwrap_or(usize::MAX);
        let known = Arc::new(Known {
            users: Fresh::new(capacity, CACHE_LIFE),
            rules: Fresh::new(1, CACHE_LIFE),
            definitions: Fresh::new(capacity, CACHE_LIFE),
        });
        let forgetting = known.clone();
        store.on_change(move |change| forgetting.forget(change));
        Ok(Self {
            store,
            identity,
            known,
            sealer: settings.keys.sealer()?,
            skip_tiers: settings.limits.skip_tiers,
            fail_mode: settings.storage.limits_fail_mode,
        })
    }

    /// Everything that limits a user, as it is now.
    pub async fn of_user(&self, username: &str) -> Result<Arc<UserLimits>, StoreError> {
        let now = crate::store::now();
        let is_current = |limits: &Arc<UserLimits>| limits.tier_until.is_none_or(|until| now < until);
        if let Some(known) = self.known.users.get(username) {
            match known {
                Ok(limits) if !is_current(&limits) => self.known.users.forget(username),
                known => return known,
            }
        }
        self.known.users.get_or_load(username, || self.load(username, now)).await
    }

    async fn load(&self, username: &str, now: u64) -> Result<Arc<UserLimits>, StoreError> {
        let user = self.identity.user(username).await?;
        let mut limits = user.as_deref().map(UserLimits::of).unwrap_or_default();
        if !self.skip_tiers {
            (limits.tier, limits.tier_until) = self.tier(username, now).await?;
        }
        Ok(Arc::new(limits))
    }

    /// The tier of a user at this second, and until when it is.
    async fn tier(&self, username: &str, now: u64) -> Result<(Tier, Option<u64>), StoreError> {
        let assignment = self.store.find(Collection::TierAssignments, &[username]).await?;
        let (is_in_force, until) = assignment.as_deref().map_or((false, None), |own| charge::in_force(own, now));
        let assigned = assignment.filter(|_| is_in_force);
        let limits = match &assigned {
            Some(own) if own.get_document("override_limits").is_ok() => {
                own.get_document("override_limits").ok().cloned()
            }
            Some(own) => {
                let tier = own.get_str("tier_id").unwrap_or_default();
                let found = self.store.find(Collection::Tiers, &[tier]).await?;
                found.and_then(|tier| tier.get_document("limits").ok().cloned())
            }
            None => {
                let listing = Listing { limit: Some(1), ..Listing::with("is_default", true) };
                let (found, _) = self.store.list(Collection::Tiers, &listing).await?;
                found.first().and_then(|tier| tier.get_document("limits").ok().cloned())
            }
        };
        Ok((limits.map(|limits| Tier::of(username, &limits)).unwrap_or_default(), until))
    }

    async fn rules(&self) -> Result<Arc<Rules>, StoreError> {
        if let Some(known) = self.known.rules.get(ALL) {
            return known;
        }
        let load = async || Ok(Arc::new(Rules::of(&self.store.all(Collection::RateLimitRules).await?)));
        self.known.rules.get_or_load(ALL, load).await
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

    /// Measures a request. `is_let_in`: it is a call that nothing else refuses; then the user's own limits count too, and
    /// `length` bytes of its body.
    pub async fn measure(&self, facts: &Facts<'_>, is_let_in: bool, length: u64) -> Result<Admitted, Refused> {
        let limits = match facts.user {
            Some(user) => Some(self.unless_closed(self.of_user(user).await)?),
            None => None,
        };
        let rules = self.unless_closed(self.rules().await)?;
        let asked = Asked::new(limits.as_deref(), &rules, facts, is_let_in, length);
        if asked.measures.is_empty() {
            return Ok(Admitted::default());
        }
        let queue = limits.as_ref().and_then(|limits| limits.tier.queue);
        let deadline = queue.map(|queue| tokio::time::Instant::now() + queue);
        loop {
            let taken = self.store.take(&asked.counters()).await.map_err(Refused::Away)?;
            let outcome = asked.outcome(&taken, limits.as_deref());
            // A tier may let requests wait for their turn.
            if let (Err(Refused::Limit { kind: Kind::Tier(_), shown }), Some(deadline)) = (&outcome, deadline)
                && tokio::time::Instant::now() + shown.resets_in <= deadline
            {
                tokio::time::sleep(shown.resets_in).await;
                continue;
            }
            return outcome;
        }
    }

    /// The counters that the bytes of a user's calls are booked on, with the second each ends at.
    pub async fn byte_counters(&self, username: &str) -> SmallVec<[(Arc<str>, u64); 2]> {
        let Ok(limits) = self.of_user(username).await else { return SmallVec::new() };
        let now = crate::store::now();
        limits.bandwidth.iter().chain(&limits.tier.bandwidth).map(|allowance| allowance.counter(now)).collect()
    }

    /// Where bytes and quotas are counted.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// All that is asked about one request.
struct Asked {
    measures: SmallVec<[Measure; 6]>,
    /// The tier's shortest window, if it has any, is the first.
    shows_first: bool,
}

impl Asked {
    fn new(limits: Option<&UserLimits>, rules: &Rules, facts: &Facts<'_>, is_let_in: bool, length: u64) -> Self {
        let now = crate::store::now();
        let mut measures: SmallVec<[Measure; 6]> = SmallVec::new();
        let tier = limits.map(|limits| &limits.tier);
        if let Some(tier) = tier {
            measures.extend(tier.windows.iter().map(|limit| (Kind::Tier(limit.window), limit.counter.clone())));
            measures.extend(tier.quotas.iter().map(|(quota, window)| (Kind::Tier(window), quota.asked(now, 1, 1))));
        }
        let shows_first = tier.is_some_and(|tier| !tier.windows.is_empty());
        if facts.is_call && !rules.is_empty() {
            let applying = rules.applying(facts).into_iter();
            measures.extend(applying.map(|(Rule { window, .. }, counter)| (Kind::Rule(window), counter)));
        }
        if let Some(limits) = limits.filter(|_| is_let_in) {
            measures.extend(limits.rate.clone().map(|counter| (Kind::Rate, counter)));
            measures.extend(limits.throttle.as_ref().map(|throttle| (Kind::Throttle, throttle.counter.clone())));
            let bytes = limits.bandwidth.iter().chain(&limits.tier.bandwidth);
            measures.extend(bytes.map(|bytes| (Kind::Bandwidth, bytes.asked(now, length.max(1), 0))));
        }
        Self { measures, shows_first }
    }

    fn counters(&self) -> SmallVec<[Counter; 6]> {
        self.measures.iter().map(|(_, counter)| counter.clone()).collect()
    }

    fn outcome(&self, taken: &Taken, limits: Option<&UserLimits>) -> Result<Admitted, Refused> {
        let at = |index: usize| Some((self.measures.get(index)?, taken.readings.get(index)?));
        if let Some(((kind, counter), reading)) = taken.refused.and_then(at) {
            let shown = Shown { limit: counter.limit, remaining: 0, resets_in: reading.frees_in };
            return Err(Refused::Limit { kind: kind.clone(), shown });
        }
        let shown = at(0).filter(|_| self.shows_first).map(|((_, counter), reading)| Shown {
            limit: counter.limit,
            remaining: counter.limit.saturating_sub(reading.used + counter.add),
            resets_in: reading.frees_in,
        });
        let mut admitted = Admitted { wait: Duration::ZERO, shown };
        let throttled = self.measures.iter().zip(&taken.readings).find(|((kind, _), _)| *kind == Kind::Throttle);
        if let (Some(((_, counter), Reading { used, .. })), Some(throttle)) =
            (throttled, limits.and_then(|limits| limits.throttle.as_ref()))
        {
            let beyond = (used + counter.add).saturating_sub(throttle.at_once);
            admitted.wait = throttle.wait.saturating_mul(u32::try_from(beyond).unwrap_or(u32::MAX));
            if admitted.wait > LONGEST_WAIT {
                let shown = Shown { limit: counter.limit, remaining: 0, resets_in: LONGEST_WAIT };
                return Err(Refused::Limit { kind: Kind::Throttle, shown });
            }
        }
        Ok(admitted)
    }
}
