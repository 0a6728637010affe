//! Where state lives: documents in memory or MongoDB; counters, revocations and CSRF tokens in memory or Redis.
//!
//! In: what callers ask, one method each. Out: values, or a [`StoreError`] that tells which of the two is away. What
//! always holds: no answer takes longer than the timeouts in `mongo.rs` and `redis.rs`; nothing is cached here (that is
//! [`crate::identity`]'s); a revocation that can't be read is an error and never "not revoked".

use std::{
    error::Error,
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt, future::join};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

mod advice;
pub mod documents;
mod memory;
mod mongo;
mod redis;
mod seed;
#[cfg(test)]
pub(crate) mod servers;
#[cfg(test)]
mod tests;

pub use documents::{Group, Password, Permissions, Role, User};
pub use seed::ADMIN;

use crate::settings::{RedisServers, Settings, Storage};

/// Waits between the three tries to reach a store at start.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// How often [`Store::maintain`] asks the stores whether they are there.
const HEALTH_EVERY: Duration = Duration::from_secs(2);
/// How often what has expired is removed from memory.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How long a CSRF token is remembered for clients that keep no cookies.
const CSRF_LIFE: Duration = Duration::from_secs(1_800);

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

impl StoreError {
    fn documents(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Documents(Arc::new(cause))
    }

    fn shared(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Shared(Arc::new(cause))
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
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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

/// All state that is not configuration.
pub struct Store {
    documents: Documents,
    shared: Shared,
    health: watch::Sender<Health>,
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
        Self { documents, shared, health: watch::Sender::new(Health { mongodb: true, redis: true }) }
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

    /// A user's standing without waiting, when everything is in this process.
    pub fn standing_now(&self, username: &str) -> Option<Standing> {
        match (&self.documents, &self.shared) {
            (Documents::Memory(documents), Shared::Memory(shared)) => {
                Some(Standing { user: documents.user(username), is_revoked: shared.is_user_revoked(username) })
            }
            _ => None,
        }
    }

    /// A user's standing.
    pub async fn standing(&self, username: &str) -> Result<Standing, StoreError> {
        let (user, is_revoked) = join(self.user(username), self.is_user_revoked(username)).await;
        Ok(Standing { user: user?, is_revoked: is_revoked? })
    }

    /// The user of this name.
    pub async fn user(&self, username: &str) -> Result<Option<Arc<User>>, StoreError> {
        match &self.documents {
            Documents::Memory(documents) => Ok(documents.user(username)),
            Documents::Mongo(documents) => documents.user(username).await,
        }
    }

    /// The user with this e-mail address, else the one of this name.
    pub async fn user_for_login(&self, login: &str) -> Result<Option<Arc<User>>, StoreError> {
        match &self.documents {
            Documents::Memory(documents) => Ok(documents.user_for_login(login)),
            Documents::Mongo(documents) => documents.user_for_login(login).await,
        }
    }

    /// Adds or replaces a user. Fails with [`StoreError::Taken`] when the address is another's. Other processes learn of
    /// it from [`crate::identity::Identity::forget_user`].
    pub async fn save_user(&self, user: User) -> Result<(), StoreError> {
        match &self.documents {
            Documents::Memory(documents) => documents.save_user(user),
            Documents::Mongo(documents) => documents.save_user(user).await,
        }
    }

    /// Was there such a user?
    pub async fn delete_user(&self, username: &str) -> Result<bool, StoreError> {
        match &self.documents {
            Documents::Memory(documents) => Ok(documents.delete_user(username)),
            Documents::Mongo(documents) => documents.delete_user(username).await,
        }
    }

    /// A role without waiting, when documents are in this process.
    pub fn role_now(&self, name: &str) -> Option<Option<Arc<Role>>> {
        match &self.documents {
            Documents::Memory(documents) => Some(documents.role(name)),
            Documents::Mongo(_) => None,
        }
    }

    /// The role of this name.
    pub async fn role(&self, name: &str) -> Result<Option<Arc<Role>>, StoreError> {
        match &self.documents {
            Documents::Memory(documents) => Ok(documents.role(name)),
            Documents::Mongo(documents) => documents.role(name).await,
        }
    }

    /// Adds or replaces a role.
    pub async fn save_role(&self, role: Role) -> Result<(), StoreError> {
        match &self.documents {
            Documents::Memory(documents) => {
                documents.save_role(role);
                Ok(())
            }
            Documents::Mongo(documents) => documents.save_role(&role).await,
        }
    }

    /// The group of this name.
    pub async fn group(&self, name: &str) -> Result<Option<Arc<Group>>, StoreError> {
        match &self.documents {
            Documents::Memory(documents) => Ok(documents.group(name)),
            Documents::Mongo(documents) => documents.group(name).await,
        }
    }

    /// Adds or replaces a group.
    pub async fn save_group(&self, group: Group) -> Result<(), StoreError> {
        match &self.documents {
            Documents::Memory(documents) => {
                documents.save_group(group);
                Ok(())
            }
            Documents::Mongo(documents) => documents.save_group(&group).await,
        }
    }

    /// Adds one to a counter and tells how many there are in this window now. While Redis is away, each process counts
    /// for itself, or it is an error, as `DOORMAN_LIMITS_FAIL_MODE` says.
    pub async fn count(&self, counter: &str, window: Window, now: u64) -> Result<u64, StoreError> {
        match &self.shared {
            Shared::Memory(shared) => Ok(shared.count(counter, window, now)),
            Shared::Redis(shared) => shared.count(counter, window, now).await,
        }
    }

    /// How often a limit was decided without Redis.
    pub(crate) fn fallbacks(&self) -> Counter {
        match &self.shared {
            Shared::Memory(_) => Counter::default(),
            Shared::Redis(shared) => shared.fallbacks(),
        }
    }

    /// Refuses one token until it expires, in seconds since the epoch.
    pub async fn revoke_token(&self, username: &str, jti: &str, until: u64) -> Result<(), StoreError> {
        match &self.shared {
            Shared::Memory(shared) => {
                shared.revoke_token(username, jti, until, now());
                Ok(())
            }
            Shared::Redis(shared) => shared.revoke_token(username, jti, until, now()).await,
        }
    }

    /// Whether a token is revoked, without waiting, when revocations are in this process.
    pub fn is_token_revoked_now(&self, jti: &str) -> Option<bool> {
        match &self.shared {
            Shared::Memory(shared) => Some(shared.is_token_revoked(jti, now())),
            Shared::Redis(_) => None,
        }
    }

    /// Whether a token is revoked.
    pub async fn is_token_revoked(&self, username: &str, jti: &str) -> Result<bool, StoreError> {
        match &self.shared {
            Shared::Memory(shared) => Ok(shared.is_token_revoked(jti, now())),
            Shared::Redis(shared) => shared.is_token_revoked(username, jti).await,
        }
    }

    /// Refuses all tokens of a user, future ones too, until it is taken back.
    pub async fn set_user_revoked(&self, username: &str, is_revoked: bool) -> Result<(), StoreError> {
        match &self.shared {
            Shared::Memory(shared) => {
                shared.set_user_revoked(username, is_revoked);
                Ok(())
            }
            Shared::Redis(shared) => shared.set_user_revoked(username, is_revoked).await,
        }
    }

    /// Are all tokens of this user refused?
    pub async fn is_user_revoked(&self, username: &str) -> Result<bool, StoreError> {
        match &self.shared {
            Shared::Memory(shared) => Ok(shared.is_user_revoked(username)),
            Shared::Redis(shared) => shared.is_user_revoked(username).await,
        }
    }

    /// Remembers the CSRF token of a user's latest sign-in, for half an hour.
    pub async fn remember_csrf(&self, username: &str, token: &str) -> Result<(), StoreError> {
        match &self.shared {
            Shared::Memory(shared) => {
                shared.remember_csrf(username, token, now() + CSRF_LIFE.as_secs(), now());
                Ok(())
            }
            Shared::Redis(shared) => shared.remember_csrf(username, token, CSRF_LIFE).await,
        }
    }

    /// The CSRF token of a user's latest sign-in.
    pub async fn csrf(&self, username: &str) -> Result<Option<String>, StoreError> {
        match &self.shared {
            Shared::Memory(shared) => Ok(shared.csrf(username, now())),
            Shared::Redis(shared) => shared.csrf(username).await,
        }
    }

    /// Tells all other processes that something they may have cached has changed.
    pub(crate) async fn announce(&self, change: &str) -> Result<(), StoreError> {
        match &self.shared {
            Shared::Memory(_) => Ok(()),
            Shared::Redis(shared) => shared.announce(change).await,
        }
    }

    /// Hands on what other processes announce. `None` comes first and after each interruption: anything may have changed
    /// unnoticed. Ends when it is dropped; without other processes, nothing ever comes.
    pub(crate) async fn follow_changes(&self, mut hand_on: impl FnMut(Option<&str>)) {
        let Shared::Redis(shared) = &self.shared else { return std::future::pending().await };
        loop {
            match shared.changes().await {
                Ok(changes) => {
                    hand_on(None);
                    let mut changes = pin!(changes);
                    while let Some(change) = changes.next().await {
                        hand_on(Some(&change));
                    }
                    tracing::warn!("news of changes from other processes stopped; subscribing again");
                }
                Err(error) => tracing::debug!(%error, "no news of changes from other processes"),
            }
            tokio::time::sleep(HEALTH_EVERY).await;
        }
    }
}
