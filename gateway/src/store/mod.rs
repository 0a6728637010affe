//! Where state lives: documents in memory or MongoDB; counters, revocations and CSRF tokens in memory or Redis.
//!
//! In: what callers ask, one method each. Out: values, or a [`StoreError`] that tells which of the two is away. What
//! always holds: no answer takes longer than the timeouts in `mongo.rs` and `redis.rs`; nothing is cached here (that is
//! [`crate::identity`]'s), and whoever caches learns of each write, in every process ([`Store::on_change`]); a
//! revocation that can't be read is an error and never "not revoked".

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, future::join};
use mongodb::bson::{Bson, Document};
use prometheus_client::metrics::counter::Counter as Metric;
use tokio::sync::watch;

mod advice;
mod charges;
mod collection;
mod counters;
mod credits;
pub mod documents;
pub(crate) mod fresh;
pub(crate) mod latest;
mod memory;
mod moment;
mod mongo;
pub mod outage;
mod redis;
pub mod rules;
mod seed;
#[cfg(test)]
pub(crate) mod servers;
#[cfg(test)]
mod tests;
pub mod tiers;
mod traffic;

pub use charges::{Charge, OPEN_CHARGES};
pub use collection::{Change, Collection, Listing};
pub use counters::{Counter, Family, Reading, Span, Taken, braced};
pub use credits::{BALANCES, Balance, is_group_name};
pub use documents::{Group, Password, Permissions, Role, User, plain, plain_document};
pub use moment::Moment;
pub use seed::ADMIN;
pub use traffic::{TrafficEntry, TrafficPlace};

use crate::settings::{RedisServers, Settings, Storage};
use outage::{Backend, Outages};

/// Waits between the three tries to reach a store at start.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// How often [`Store::maintain`] asks the stores whether they are there.
const HEALTH_EVERY: Duration = Duration::from_secs(2);
/// How often what has expired is removed from memory.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How long a CSRF token is remembered for clients that keep no cookies.
const CSRF_LIFE: Duration = Duration::from_secs(1_800);

/// Revocations, among exported collections.
const REVOCATIONS: &str = "revocations";

/// A failure's cause; shared, because failures are remembered for a moment.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a store gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// MongoDB is away, or what it holds can't be read.
    #[error("the document store failed: {}", chain(.0))]
    Documents(Cause),
    /// Redis is away.
    #[error("Redis failed: {}", chain(.0))]
    Shared(Cause),
    /// A name or address that must be unique is in use.
    #[error("name or e-mail address already in use")]
    Taken,
}

impl From<tokio::task::JoinError> for StoreError {
    fn from(cause: tokio::task::JoinError) -> Self {
        Self::documents(cause)
    }
}

impl StoreError {
    /// Is everything as it was before for certain?
    fn has_changed_nothing(&self) -> bool {
        matches!(self, Self::Taken) || mongo::is_never_sent(self)
    }

    fn documents(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Documents(Arc::new(cause))
    }

    pub(crate) fn shared(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Shared(Arc::new(cause))
    }

    /// Does it come of an outage that is only played?
    pub fn is_played(&self) -> bool {
        match self {
            Self::Documents(cause) | Self::Shared(cause) => cause.is::<outage::Played>(),
            Self::Taken => false,
        }
    }
}

/// A cause with its own causes, in one line.
fn chain(cause: &Cause) -> String {
    let mut text = cause.to_string();
    let mut next = cause.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// Why the stores can't be used at start, for the person who starts the gateway.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Three tries failed.
    #[error(
        "Cannot connect to {what} at {place} after 3 tries; check that it runs and that its settings are right: {cause}"
    )]
    Unreachable {
        /// `MongoDB` or `Redis`.
        what: &'static str,
        /// Its addresses; no credentials.
        place: String,
        /// What the last try said.
        cause: StoreError,
    },
    /// The store is there and refused the first documents.
    #[error("Cannot prepare the document store: {0}")]
    Prepare(#[source] StoreError),
    /// Someone else has the administrator's address.
    #[error(
        "Cannot create the user `admin`: another user has the e-mail address of DOORMAN_ADMIN_EMAIL; set another one"
    )]
    AdminEmailTaken,
}

/// A stretch of time in which something is counted; windows begin at multiples of their length since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    number: u64,
    seconds: u64,
}

impl Window {
    /// The window of this length that holds a time, given in seconds since the epoch.
    pub fn at(now: u64, length: Duration) -> Self {
        let seconds = length.as_secs().max(1);
        Self { number: now / seconds, seconds }
    }

    /// Its length.
    pub fn seconds(self) -> u64 {
        self.seconds
    }

    /// The first second after it, since the epoch.
    pub fn end(self) -> u64 {
        (self.number + 1).saturating_mul(self.seconds)
    }

    fn key(self, counter: &str) -> String {
        format!("{counter}:{}", self.number)
    }
}

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    u64::try_from(crate::clock::now().as_second()).unwrap_or_default()
}

enum Documents {
    Memory(memory::Documents),
    Mongo(mongo::Documents),
}

enum Shared {
    Memory(memory::Shared),
    Redis(redis::Shared),
}

/// Which stores answered when they were last asked. Memory always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The document store.
    pub mongodb: bool,
    /// The store of counters and revocations.
    pub redis: bool,
}

/// What a user may do at this moment, whatever a token says.
#[derive(Clone, Debug)]
pub struct Standing {
    /// `None`: there is no such user.
    pub user: Option<Arc<User>>,
    /// Are all tokens of the user revoked?
    pub is_revoked: bool,
}

type Listener = Box<dyn Fn(Change<'_>) + Send + Sync>;

/// How other processes' caches are told that an announcement could not be made.
const UNTOLD: &str = "other processes may not see a change until their caches end";

/// All state that is not configuration.
pub struct Store {
    documents: Documents,
    shared: Shared,
    health: watch::Sender<Health>,
    listeners: RwLock<Vec<Listener>>,
    /// The administrator's password by the settings, while no other has been stored (memory mode).
    admin_password: RwLock<Option<Password>>,
    outages: Outages,
}

impl fmt::Debug for Store {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Store").field("mode", &self.mode()).field("health", &self.health()).finish()
    }
}

async fn thrice<T, F: Future<Output = Result<T, StoreError>>>(
    what: &'static str,
    place: String,
    mut connect: impl FnMut() -> F,
) -> Result<T, ConnectError> {
    for pause in PAUSES {
        match connect().await {
            Ok(connected) => return Ok(connected),
            Err(error) => tracing::warn!(%error, %place, "no connection to {what} yet; trying again"),
        }
        tokio::time::sleep(pause).await;
    }
    connect().await.map_err(|cause| ConnectError::Unreachable { what, place, cause })
}

fn places(storage: &Storage) -> (String, String) {
    let list = |nodes: Vec<String>| nodes.join(",");
    let mongo = if storage.mongo_uri.is_some() {
        "MONGO_DB_URI".to_owned()
    } else {
        list(storage.mongo_hosts.iter().map(|node| format!("{}:{}", node.host, node.port.unwrap_or(27_017))).collect())
    };
    let redis = match storage.redis_servers() {
        RedisServers::Standalone(host, port) => format!("{host}:{port}"),
        RedisServers::Sentinel(nodes, _) | RedisServers::Cluster(nodes) => {
            list(nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect())
        }
    };
    (mongo, redis)
}

impl Store {
    /// An empty store in this process.
    pub fn in_memory() -> Self {
        Self::new(Documents::Memory(memory::Documents::default()), Shared::Memory(memory::Shared::default()))
    }

    fn new(documents: Documents, shared: Shared) -> Self {
        Self {
            documents,
            shared,
            health: watch::Sender::new(Health { mongodb: true, redis: true }),
            listeners: RwLock::default(),
            admin_password: RwLock::default(),
            outages: Outages::default(),
        }
    }

    /// The store of these settings, connected and seeded.
    pub async fn open(settings: &Settings) -> Result<Self, ConnectError> {
        let store =
            if settings.storage.is_memory() { Self::in_memory() } else { Self::connect(&settings.storage).await? };
        store.seed(&settings.admin).await.map_err(|error| match error {
            StoreError::Taken => ConnectError::AdminEmailTaken,
            other => ConnectError::Prepare(other),
        })?;
        Ok(store)
    }

    async fn connect(storage: &Storage) -> Result<Self, ConnectError> {
        let (mongo_place, redis_place) = places(storage);
        let mongo = thrice("MongoDB", mongo_place, || mongo::Documents::connect(storage));
        let redis = thrice("Redis", redis_place, || redis::Shared::connect(storage));
        let (documents, shared) = join(mongo, redis).await;
        let (documents, shared) = (documents?, shared?);
        documents.prepare().await.map_err(ConnectError::Prepare)?;
        Ok(Self::new(Documents::Mongo(documents), Shared::Redis(shared)))
    }

    /// `memory` or `mongodb`: where documents are.
    pub fn mode(&self) -> &'static str {
        match self.documents {
            Documents::Memory(_) => "memory",
            Documents::Mongo(_) => "mongodb",
        }
    }

    /// `memory` or `redis`: where counters and revocations are.
    pub fn cache_backend(&self) -> &'static str {
        match self.shared {
            Shared::Memory(_) => "memory",
            Shared::Redis(_) => "redis",
        }
    }

    /// Outages that are played.
    pub fn outages(&self) -> &Outages {
        &self.outages
    }

    fn documents(&self) -> Result<&Documents, StoreError> {
        self.outages.check(Backend::Documents)?;
        Ok(&self.documents)
    }

    fn shared(&self) -> Result<&Shared, StoreError> {
        self.outages.check(Backend::Shared)?;
        Ok(&self.shared)
    }

    /// What the last look of [`Self::maintain`] found; costs nothing.
    pub fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// The same, and each change of it.
    pub fn health_changes(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Looks after the stores until it is dropped: asks them whether they are there, and removes what has expired.
    pub async fn maintain(&self) {
        let health = async {
            loop {
                self.look().await;
                tokio::time::sleep(HEALTH_EVERY).await;
            }
        };
        let sweep = async {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                match &self.shared {
                    Shared::Memory(shared) => shared.sweep(now()),
                    Shared::Redis(shared) => shared.sweep(now()),
                }
            }
        };
        join(health, sweep).await;
    }

    async fn look(&self) {
        let note = |what, flag: fn(&mut Health) -> &mut bool, answer: Result<(), StoreError>| {
            let mut was_there = true;
            self.health.send_if_modified(|health| {
                was_there = std::mem::replace(flag(health), answer.is_ok());
                was_there != answer.is_ok()
            });
            match answer {
                Ok(()) if !was_there => tracing::info!("{what} is back"),
                Err(error) if was_there => tracing::error!(%error, "{what} is away"),
                _ => {}
            }
        };
        let mongodb = async {
            if let Documents::Mongo(documents) = &self.documents {
                note("MongoDB", |health| &mut health.mongodb, documents.ping().await);
            }
        };
        let redis = async {
            if let Shared::Redis(shared) = &self.shared {
                note("Redis", |health| &mut health.redis, shared.ping().await);
            }
        };
        join(mongodb, redis).await;
    }

    /// Calls this for each change, of this process before the change is answered, of others as soon as it is heard of.
    pub fn on_change(&self, listener: impl Fn(Change<'_>) + Send + Sync + 'static) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    fn hand_on(&self, change: Change<'_>) {
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(change);
        }
    }

    /// Tells this process and all others that something they may have cached has changed.
    pub async fn announce(&self, change: Change<'_>) {
        self.hand_on(change);
        if let Shared::Redis(shared) = &self.shared
            && let Err(error) = shared.announce(&change.to_string()).await
        {
            tracing::warn!(%error, %change, UNTOLD);
        }
    }

    /// Tells of a write, unless it has surely changed nothing: an answer that doesn't come in time is no proof of that.
    async fn told<T>(
        &self,
        (collection, key): (Collection, &[&str]),
        outcome: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if !outcome.as_ref().is_err_and(StoreError::has_changed_nothing) {
            self.announce(Change::Document(collection, &key.join("/"))).await;
        }
        outcome
    }

    /// The same of a write that tells whether there was something to set.
    async fn told_if_set(
        &self,
        place: (Collection, &[&str]),
        is_set: Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        match is_set {
            Ok(false) => Ok(false),
            other => self.told(place, other).await,
        }
    }

    /// The document of this key.
    pub async fn find(&self, collection: Collection, key: &[&str]) -> Result<Option<Arc<Document>>, StoreError> {
        match self.documents()? {
            Documents::Memory(documents) => Ok(documents.find(collection, key)),
            Documents::Mongo(documents) => Ok(documents.find(collection, key).await?.map(Arc::new)),
        }
    }

    /// Adds a document. Fails with [`StoreError::Taken`] when its key or another unique value is in use.
    pub async fn insert(&self, collection: Collection, document: Document) -> Result<(), StoreError> {
        let key = collection.key_of(&document).unwrap_or_default();
        let inserted = match self.documents()? {
            Documents::Memory(documents) => documents.insert(collection, document),
            Documents::Mongo(documents) => documents.insert(collection, document).await,
        };
        self.told((collection, &key.iter().map(String::as_str).collect::<Vec<_>>()), inserted).await
    }

    /// Sets members of a document; others stay. `false`: there is none of this key.
    pub async fn set(&self, collection: Collection, key: &[&str], members: Document) -> Result<bool, StoreError> {
        self.set_if(collection, key, &[], members).await
    }

    /// The same, if each of these members has one of these values; null is as good as none. `false`: there is no such
    /// document, or it is another one by now.
    pub async fn set_if(
        &self,
        collection: Collection,
        key: &[&str],
        expected: &[(&str, &[Bson])],
        members: Document,
    ) -> Result<bool, StoreError> {
        let is_set = match self.documents()? {
            Documents::Memory(documents) => documents.set_if(collection, key, expected, members),
            Documents::Mongo(documents) => documents.set_if(collection, key, expected, members).await,
        };
        self.told_if_set((collection, key), is_set).await
    }

    /// Sets a member within members of the document of this key and nothing beside it. The names have no dots, begin with
    /// no `$`. `false`: there is no such document, or no such member to set it in.
    pub async fn set_within(
        &self,
        collection: Collection,
        key: &str,
        outer: &[&str],
        (member, value): (&str, Bson),
    ) -> Result<bool, StoreError> {
        let is_there = match self.documents()? {
            Documents::Memory(documents) => documents.set_within(collection, key, outer, (member, value)),
            Documents::Mongo(documents) => documents.set_within(collection, key, outer, (member, value)).await,
        };
        self.told_if_set((collection, &[key]), is_there).await
    }

    /// Adds a document, or sets its members on the one of its key.
    pub async fn save(&self, collection: Collection, document: Document) -> Result<(), StoreError> {
        let key = collection.key_of(&document).unwrap_or_default();
        let saved = match self.documents()? {
            Documents::Memory(documents) => documents.save(collection, document),
            Documents::Mongo(documents) => documents.save(collection, document).await,
        };
        self.told((collection, &key.iter().map(String::as_str).collect::<Vec<_>>()), saved).await
    }

    /// Was there such a document?
    pub async fn remove(&self, collection: Collection, key: &[&str]) -> Result<bool, StoreError> {
        let was_there = match self.documents()? {
            Documents::Memory(documents) => Ok(documents.remove(collection, key)),
            Documents::Mongo(documents) => documents.remove(collection, key).await,
        };
        self.told((collection, key), was_there).await
    }

    /// Adds a text to a list that holds each once, of the document of this key, which is made if need be. `false`: it was
    /// there.
    pub async fn add_to_set(
        &self,
        collection: Collection,
        key: &str,
        member: &str,
        value: &str,
    ) -> Result<bool, StoreError> {
        self.change_set(collection, key, member, value, true).await
    }

    /// Takes a text from such a list. `false`: it wasn't there.
    pub async fn take_from_set(
        &self,
        collection: Collection,
        key: &str,
        member: &str,
        value: &str,
    ) -> Result<bool, StoreError> {
        self.change_set(collection, key, member, value, false).await
    }

    /// Makes the text be in the list, or not. `false`: nothing had to change.
    async fn change_set(
        &self,
        collection: Collection,
        key: &str,
        member: &str,
        value: &str,
        is_in: bool,
    ) -> Result<bool, StoreError> {
        let has_changed = match self.documents()? {
            Documents::Memory(documents) => Ok(documents.change_set(collection, key, member, value, is_in)),
            Documents::Mongo(documents) => documents.change_set(collection, key, member, value, is_in).await,
        };
        self.told((collection, &[key]), has_changed).await
    }

    /// The documents asked for, sorted by key, and how many there are without `skip` and `limit`.
    pub async fn list(
        &self,
        collection: Collection,
        listing: &Listing,
    ) -> Result<(Vec<Arc<Document>>, u64), StoreError> {
        match self.documents()? {
            Documents::Memory(documents) => Ok(documents.list(collection, listing)),
            Documents::Mongo(documents) => {
                let (found, total) = documents.list(collection, listing).await?;
                Ok((found.into_iter().map(Arc::new).collect(), total))
            }
        }
    }

    /// All documents of a collection, sorted by key.
    pub async fn all(&self, collection: Collection) -> Result<Vec<Arc<Document>>, StoreError> {
        self.list(collection, &Listing::default()).await.map(|(found, _)| found)
    }

    /// Everything in memory, revocations included, by collection name. `None`: documents are elsewhere.
    pub fn export(&self) -> Option<BTreeMap<String, Vec<Arc<Document>>>> {
        let Documents::Memory(documents) = &self.documents else { return None };
        let exported = documents.export().into_iter();
        let mut all: BTreeMap<_, _> =
            exported.map(|(collection, documents)| (collection.name().to_owned(), documents)).collect();
        if let Shared::Memory(shared) = &self.shared {
            let revocations = shared.export(now()).into_iter().map(Arc::new).collect();
            all.insert(REVOCATIONS.to_owned(), revocations);
        }
        Some(all)
    }

    /// Replaces everything in memory at once, revocations excepted, which are added; then the administrator is set again
    /// from the settings. Tells how many documents could not be kept. `None`: documents are elsewhere.
    pub async fn import(
        &self,
        mut all: BTreeMap<String, Vec<Document>>,
        admin: &crate::settings::Admin,
    ) -> Result<Option<usize>, StoreError> {
        let Documents::Memory(documents) = &self.documents else { return Ok(None) };
        let revocations = all.remove(REVOCATIONS).unwrap_or_default();
        let known = all.into_iter().filter_map(|(name, documents)| {
            let collection = Collection::named(&name);
            if collection.is_none() {
                tracing::warn!(name, "a collection that this version doesn't know is not restored");
            }
            Some((collection?, documents))
        });
        let left_out = documents.import(known.collect());
        if let Shared::Memory(shared) = &self.shared {
            shared.import(&revocations, now());
        }
        self.seed(admin).await?;
        self.announce(Change::Everything).await;
        Ok(Some(left_out))
    }

    /// The APIs a user has subscribed to, as `name/version`.
    pub async fn subscriptions(&self, username: &str) -> Result<Arc<[Box<str>]>, StoreError> {
        let found = self.find(Collection::Subscriptions, &[username]).await?;
        let apis = found.as_ref().and_then(|found| found.get_array("apis").ok());
        Ok(apis.into_iter().flatten().filter_map(|api| api.as_str()).map(Box::from).collect())
    }

    /// A user's standing.
    pub async fn standing(&self, username: &str) -> Result<Standing, StoreError> {
        let (user, is_revoked) = join(self.user(username), self.is_user_revoked(username)).await;
        Ok(Standing { user: user?, is_revoked: is_revoked? })
    }

    fn read_user(&self, document: &Document) -> Result<Arc<User>, StoreError> {
        let mut user = User::from_document(document.clone()).map_err(StoreError::documents)?;
        if user.password.is_none() && &*user.username == ADMIN {
            user.password.clone_from(&self.admin_password.read().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(Arc::new(user))
    }

    /// The user of this name.
    pub async fn user(&self, username: &str) -> Result<Option<Arc<User>>, StoreError> {
        self.find(Collection::Users, &[username]).await?.map(|user| self.read_user(&user)).transpose()
    }

    /// The user with this e-mail address.
    pub async fn user_by_email(&self, email: &str) -> Result<Option<Arc<User>>, StoreError> {
        let found = match self.documents()? {
            Documents::Memory(documents) => documents.find_unique(Collection::Users, "email", email),
            Documents::Mongo(documents) => {
                documents.find_any(Collection::Users, &["email"], email).await?.pop().map(Arc::new)
            }
        };
        found.map(|user| self.read_user(&user)).transpose()
    }

    /// The user with this e-mail address, else the one of this name. One round trip, whether there is one or not.
    pub async fn user_for_login(&self, login: &str) -> Result<Option<Arc<User>>, StoreError> {
        let found = match self.documents()? {
            Documents::Memory(documents) => documents
                .find_unique(Collection::Users, "email", login)
                .or_else(|| documents.find(Collection::Users, &[login])),
            Documents::Mongo(documents) => {
                let found = documents.find_any(Collection::Users, &["email", "username"], login).await?;
                let is_by_email = |user: &Document| user.get_str("email").is_ok_and(|email| email == login);
                let by_email = found.iter().position(is_by_email).unwrap_or(0);
                found.into_iter().nth(by_email).map(Arc::new)
            }
        };
        found.map(|user| self.read_user(&user)).transpose()
    }

    /// Users, as [`Self::list`] lists documents. What can't be read as a user is left out, and said.
    pub async fn users(&self, listing: &Listing) -> Result<(Vec<Arc<User>>, u64), StoreError> {
        let (found, total) = self.list(Collection::Users, listing).await?;
        let read = |document: &Arc<Document>| {
            self.read_user(document).inspect_err(|error| tracing::warn!(%error, "a user can't be read")).ok()
        };
        Ok((found.iter().filter_map(read).collect(), total))
    }

    /// Adds a user, or changes the one of this name. Fails with [`StoreError::Taken`] when the address is another's.
    pub async fn save_user(&self, user: User) -> Result<(), StoreError> {
        self.save(Collection::Users, write_user(user).await?).await
    }

    /// Adds a user. Fails with [`StoreError::Taken`] when name or address are in use.
    pub async fn insert_user(&self, user: User) -> Result<(), StoreError> {
        self.insert(Collection::Users, write_user(user).await?).await
    }

    /// Was there such a user?
    pub async fn delete_user(&self, username: &str) -> Result<bool, StoreError> {
        self.remove(Collection::Users, &[username]).await
    }

    /// The role of this name.
    pub async fn role(&self, name: &str) -> Result<Option<Arc<Role>>, StoreError> {
        let found = self.find(Collection::Roles, &[name]).await?;
        Ok(found.as_deref().and_then(Role::from_document).map(Arc::new))
    }

    /// Adds or replaces a role.
    pub async fn save_role(&self, role: Role) -> Result<(), StoreError> {
        self.save(Collection::Roles, role.to_document()).await
    }

    /// Adds one to a counter and tells how many there are in this window now. While Redis is away, each process counts
    /// for itself, or it is an error, as `DOORMAN_LIMITS_FAIL_MODE` says.
    pub async fn count(&self, counter: &str, window: Window, now: u64) -> Result<u64, StoreError> {
        match &self.shared {
            Shared::Memory(shared) => Ok(shared.count(counter, window, now)),
            Shared::Redis(shared) if let Err(played) = self.shared() => {
                shared.count_without(played, counter, window, now)
            }
            Shared::Redis(shared) => shared.count(counter, window, now).await,
        }
    }

    /// Takes one from a counter of a window: it should not have been counted.
    pub async fn uncount(&self, counter: &str, window: Window, now: u64) {
        match &self.shared {
            Shared::Memory(shared) => shared.uncount(counter, window, now),
            Shared::Redis(shared) => shared.uncount(counter, window, now).await,
        }
    }

    /// Measures a request by these counters, in one round trip: all are counted, or none when one refuses. While Redis is
    /// away, each process counts for itself, or it is an error, as `DOORMAN_LIMITS_FAIL_MODE` says.
    pub async fn take(&self, counters: &[Counter]) -> Result<Taken, StoreError> {
        match &self.shared {
            Shared::Memory(shared) => Ok(shared.take(counters, now())),
            Shared::Redis(shared) if let Err(played) = self.shared() => shared.take_without(played, counters, now()),
            Shared::Redis(shared) => shared.take(counters, now()).await,
        }
    }

    /// Counts this on calendar counters, each kept until its second, whatever their limits are.
    pub async fn book(&self, booked: &[(Arc<str>, u64)], add: u64) {
        match &self.shared {
            Shared::Memory(shared) => shared.book(booked, add, now()),
            Shared::Redis(shared) => shared.book(booked, add, now()).await,
        }
    }

    /// What calendar counters hold.
    pub async fn totals(&self, keys: &[Arc<str>]) -> Result<Vec<u64>, StoreError> {
        match self.shared()? {
            Shared::Memory(shared) => Ok(shared.totals(keys)),
            Shared::Redis(shared) => shared.totals(keys).await,
        }
    }

    /// A credit of a group that is to be taken from a user's balance.
    pub fn charge(&self, username: &Arc<str>, group: &Arc<str>) -> Charge {
        let places = match &self.documents {
            Documents::Memory(_) => None,
            Documents::Mongo(documents) => Some(documents.places()),
        };
        Charge::new(username, group, places)
    }

    /// Takes the credit. `None`: there is none left. After an error, or when nobody waits for the answer, it may have
    /// been taken, and [`Charge::is_open`] says so.
    pub async fn take_credit(&self, charge: &mut Charge) -> Result<Option<Balance>, StoreError> {
        match self.documents()? {
            // Nothing is kept under such a name.
            _ if !is_group_name(&charge.group) => Ok(None),
            Documents::Memory(documents) => Ok(documents.take_credit(charge)),
            Documents::Mongo(documents) => documents.take_credit(charge).await,
        }
    }

    /// Sees to it that a charge takes nothing, whatever became of it: what it took is given back, once. After an error
    /// it can be asked again.
    pub async fn revoke(&self, charge: &mut Charge) -> Result<(), StoreError> {
        match self.documents()? {
            Documents::Memory(documents) => documents.revoke(charge),
            Documents::Mongo(documents) => documents.revoke(charge).await?,
        }
        Ok(())
    }

    /// How often a limit was decided without Redis.
    pub(crate) fn fallbacks(&self) -> Metric {
        match &self.shared {
            Shared::Memory(_) => Metric::default(),
            Shared::Redis(shared) => shared.fallbacks(),
        }
    }

    /// Refuses one token until it expires, in seconds since the epoch.
    pub async fn revoke_token(&self, username: &str, jti: &str, until: u64) -> Result<(), StoreError> {
        let revoked = match self.shared()? {
            Shared::Memory(shared) => {
                shared.revoke_token(username, jti, until, now());
                Ok(())
            }
            Shared::Redis(shared) => shared.revoke_token(username, jti, until, now()).await,
        };
        self.announce(Change::Token(jti)).await;
        revoked
    }

    /// Whether a token is revoked, without waiting, when revocations are in this process and can be read.
    pub fn is_token_revoked_now(&self, jti: &str) -> Option<bool> {
        match &self.shared {
            Shared::Memory(shared) => self.shared().ok().map(|_| shared.is_token_revoked(jti, now())),
            Shared::Redis(_) => None,
        }
    }

    /// Whether a token is revoked.
    pub async fn is_token_revoked(&self, username: &str, jti: &str) -> Result<bool, StoreError> {
        match self.shared()? {
            Shared::Memory(shared) => Ok(shared.is_token_revoked(jti, now())),
            Shared::Redis(shared) => shared.is_token_revoked(username, jti).await,
        }
    }

    /// Refuses all tokens of a user, future ones too, until it is taken back.
    pub async fn set_user_revoked(&self, username: &str, is_revoked: bool) -> Result<(), StoreError> {
        let set = match self.shared()? {
            Shared::Memory(shared) => {
                shared.set_user_revoked(username, is_revoked);
                Ok(())
            }
            Shared::Redis(shared) => shared.set_user_revoked(username, is_revoked).await,
        };
        self.told((Collection::Users, &[username]), set).await
    }

    /// Are all tokens of this user refused?
    pub async fn is_user_revoked(&self, username: &str) -> Result<bool, StoreError> {
        match self.shared()? {
            Shared::Memory(shared) => Ok(shared.is_user_revoked(username)),
            Shared::Redis(shared) => shared.is_user_revoked(username).await,
        }
    }

    /// Starts the counters again whose families do ([`Family::starts_again`]), in all processes.
    pub async fn reset_counters(&self) -> Result<(), StoreError> {
        match self.shared()? {
            Shared::Memory(shared) => {
                shared.reset_counters();
                Ok(())
            }
            Shared::Redis(shared) => shared.reset_counters().await,
        }
    }

    /// Remembers the CSRF token of a user's latest sign-in, for half an hour.
    pub async fn remember_csrf(&self, username: &str, token: &str) -> Result<(), StoreError> {
        match self.shared()? {
            Shared::Memory(shared) => {
                shared.remember_csrf(username, token, now() + CSRF_LIFE.as_secs(), now());
                Ok(())
            }
            Shared::Redis(shared) => shared.remember_csrf(username, token, CSRF_LIFE).await,
        }
    }

    /// The CSRF token of a user's latest sign-in.
    pub async fn csrf(&self, username: &str) -> Result<Option<String>, StoreError> {
        match self.shared()? {
            Shared::Memory(shared) => Ok(shared.csrf(username, now())),
            Shared::Redis(shared) => shared.csrf(username).await,
        }
    }

    /// Hands on what other processes announce. Ends when it is dropped; without other processes, nothing ever comes.
    pub async fn follow_changes(&self) {
        let Shared::Redis(shared) = &self.shared else { return std::future::pending().await };
        loop {
            match shared.changes().await {
                Ok(changes) => {
                    self.hand_on(Change::Everything);
                    let mut changes = pin!(changes);
                    while let Some(change) = changes.next().await {
                        self.hand_on(Change::parse(&change));
                    }
                    tracing::warn!("news of changes from other processes stopped; subscribing again");
                }
                Err(error) => tracing::debug!(%error, "no news of changes from other processes"),
            }
            tokio::time::sleep(HEALTH_EVERY).await;
        }
    }
}

/// Hashing a password takes its time, so this is done elsewhere.
async fn write_user(user: User) -> Result<Document, StoreError> {
    tokio::task::spawn_blocking(move || user.to_document()).await?.map_err(StoreError::documents)
}
