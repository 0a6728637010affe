//! Who is calling.
//!
//! In: a request's headers. Out: a [`Principal`], or the one reason it was [`Denied`]. What always holds: a token counts
//! only while its signature, its expiry, its revocation and its user's standing all say so; what can't be known denies.
//!
//! Answers of the store are kept for [`CACHE_LIFE`] and dropped at once when this or another process changes them, so that
//! a warm request waits for nobody.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use doorman_crds::role::{Permission, is_admin_role};
use futures::future::{join3, try_join};
use http::{HeaderMap, StatusCode};

mod bearer;
mod key_folder;
mod keys;
mod passwords;

pub(crate) use bearer::cookie;
pub use bearer::{ACCESS_COOKIE, CSRF_COOKIE, bearer};
pub use keys::{Accesses, Claims, KeyError, KeyRing};
pub use passwords::{Busy, Passwords, is_strong, needs_upgrade};

use crate::{
    definitions::Origin,
    settings::Settings,
    store::{
        Change, Collection, Role, Standing, Store, StoreError, User,
        fresh::{CACHE_LIFE, Fresh},
    },
};
use key_folder::KeyFolder;

/// A signed-in user. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The user's name.
    pub username: Arc<str>,
    /// The name of the user's role; there may be no such role.
    pub role: Arc<str>,
    /// The names of the user's groups.
    pub groups: Arc<[Arc<str>]>,
}

impl From<&User> for Principal {
    fn from(user: &User) -> Self {
        Self { username: Arc::clone(&user.username), role: Arc::clone(&user.role), groups: Arc::clone(&user.groups) }
    }
}

/// A principal and the token it came with.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// Who.
    pub principal: Principal,
    /// What the token says.
    pub token: Arc<Claims>,
}

/// A role that is defined outside of the store, and by what.
#[derive(Clone, Debug, PartialEq)]
pub struct DefinedRole {
    /// The role.
    pub role: Arc<Role>,
    /// The object that defines it.
    pub origin: Origin,
}

/// Defined roles by name.
pub type DefinedRoles = BTreeMap<Arc<str>, DefinedRole>;

/// Why nobody is signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token, or one that doesn't count, for whatever reason: clients are not told which.
    #[error("Unauthorized")]
    Unauthorized,
    /// The double submit failed.
    #[error("Invalid CSRF token")]
    Csrf,
    /// The document store is away.
    #[error("Database unavailable")]
    Documents,
    /// The store of revocations is away.
    #[error("Service temporarily unavailable")]
    Unavailable,
}

impl Denied {
    /// The status that goes with the reason.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthorized | Self::Csrf => StatusCode::UNAUTHORIZED,
            Self::Documents => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The reason, as clients read it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::Csrf => "Invalid CSRF token",
            Self::Documents => "Database unavailable",
            Self::Unavailable => "Service temporarily unavailable",
        }
    }
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a caller can't be identified");
        match error {
            StoreError::Documents(_) | StoreError::Taken => Self::Documents,
            StoreError::Shared(_) => Self::Unavailable,
        }
    }
}

/// Tells who is calling, and what they may do.
pub struct Identity {
    keys: ArcSwap<KeyRing>,
    /// Where keys come from while the process runs, until it is followed.
    key_folder: Mutex<Option<KeyFolder>>,
    store: Arc<Store>,
    passwords: Passwords,
    known: Arc<Known>,
    defined: ArcSwap<DefinedRoles>,
}

/// What the store said.
struct Known {
    standings: Fresh<Standing>,
    roles: Fresh<Option<Arc<Role>>>,
    /// Is the token of this id revoked?
    tokens: Fresh<bool>,
    subscriptions: Fresh<Arc<[Box<str>]>>,
}

impl Known {
    fn forget(&self, change: Change<'_>) {
        match change {
            Change::Document(Collection::Users, name) => self.standings.forget(name),
            Change::Document(Collection::Roles, name) => self.roles.forget(name),
            Change::Document(Collection::Subscriptions, name) => self.subscriptions.forget(name),
            Change::Token(jti) => self.tokens.forget(jti),
            Change::Everything => {
                self.standings.forget_all();
                self.roles.forget_all();
                self.tokens.forget_all();
                self.subscriptions.forget_all();
            }
            Change::Document(..) | Change::Other(_) => {}
        }
    }
}

impl Identity {
    /// With the keys of these settings, over this store.
    pub fn new(settings: &Settings, store: Arc<Store>) -> Result<Self, KeyError> {
        let capacity = usize::try_from(settings.storage.cache_entries.get()).unwrap_or(usize::MAX);
        let (key_folder, keys) = match &settings.keys.jwt_folder {
            Some(path) => {
                let (folder, keys) = KeyFolder::open(path, settings.is_production())?;
                (Some(folder), keys)
            }
            None => (None, KeyRing::new(&settings.keys)?),
        };
        let known = Arc::new(Known {
            standings: Fresh::new(capacity, CACHE_LIFE),
            roles: Fresh::new(capacity, CACHE_LIFE),
            tokens: Fresh::new(capacity, CACHE_LIFE),
            subscriptions: Fresh::new(capacity, CACHE_LIFE),
        });
        let (keys, key_folder) = (ArcSwap::from_pointee(keys), Mutex::new(key_folder));
        let forgetting = Arc::clone(&known);
        store.on_change(move |change| forgetting.forget(change));
        let passwords = Passwords::default();
        Ok(Self { keys, key_folder, store, passwords, known, defined: ArcSwap::default() })
    }

    /// The keys in use.
    pub fn keys(&self) -> Arc<KeyRing> {
        self.keys.load_full()
    }

    /// Uses other keys from now on.
    pub fn replace_keys(&self, keys: KeyRing) {
        self.keys.store(Arc::new(keys));
    }

    /// Checks passwords.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// Where users, roles and revocations are.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Who is calling. Doesn't wait when all that must be known is in this process.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        self.sign_in(headers).await.map(|signed_in| signed_in.principal)
    }

    /// Who is calling, and with which token.
    pub async fn sign_in(&self, headers: &HeaderMap) -> Result<SignedIn, Denied> {
        let token = self.keys.load().verify(bearer(headers).ok_or(Denied::Unauthorized)?)?;
        let known = self.known.standings.get(&token.sub).zip(self.known_revocation(&token.jti));
        let (standing, is_revoked) = match known {
            Some((standing, is_revoked)) => (standing?, is_revoked?),
            None => try_join(self.standing(&token.sub), self.is_revoked(&token)).await?,
        };
        match standing.user {
            Some(user) if user.active && user.accepts(token.iat) && !standing.is_revoked && !is_revoked => {
                Ok(SignedIn { principal: Principal::from(&*user), token })
            }
            _ => Err(Denied::Unauthorized),
        }
    }

    fn known_revocation(&self, jti: &str) -> Option<Result<bool, StoreError>> {
        self.store.is_token_revoked_now(jti).map(Ok).or_else(|| self.known.tokens.get(jti))
    }

    async fn standing(&self, username: &str) -> Result<Standing, StoreError> {
        self.known.standings.get_or_load(username, || self.store.standing(username)).await
    }

    /// The user of this name.
    pub async fn user(&self, username: &str) -> Result<Option<Arc<User>>, StoreError> {
        Ok(self.standing(username).await?.user)
    }

    async fn is_revoked(&self, token: &Claims) -> Result<bool, StoreError> {
        if let Some(is_revoked) = self.store.is_token_revoked_now(&token.jti) {
            return Ok(is_revoked);
        }
        self.known.tokens.get_or_load(&token.jti, || self.store.is_token_revoked(&token.sub, &token.jti)).await
    }

    /// The roles that are defined, which count before those of the store.
    pub fn defined_roles(&self) -> Arc<DefinedRoles> {
        self.defined.load_full()
    }

    /// Lets these count from now on.
    pub fn define_roles(&self, roles: Arc<DefinedRoles>) {
        self.defined.store(roles);
    }

    /// The role of this name, as it is now: the defined one, else the store's.
    pub async fn role(&self, name: &str) -> Result<Option<Arc<Role>>, StoreError> {
        if let Some(defined) = self.defined.load().get(name) {
            return Ok(Some(Arc::clone(&defined.role)));
        }
        self.known.roles.get_or_load(name, || self.store.role(name)).await
    }

    /// Does the principal's role give this permission now? A role that doesn't exist gives none.
    pub async fn may(&self, principal: &Principal, permission: Permission) -> Result<bool, Denied> {
        let role = self.role(&principal.role).await?;
        Ok(role.is_some_and(|role| role.permissions.contains(permission)))
    }

    /// Is this the name of an administrators' role?
    pub async fn is_admin_role(&self, name: &str) -> Result<bool, StoreError> {
        Ok(is_admin_role(name) || self.role(name).await?.is_some_and(|role| role.is_admin()))
    }

    /// Has the user subscribed to this API (`name/version`)?
    pub async fn is_subscribed(&self, username: &str, api: &str) -> Result<bool, Denied> {
        let subscriptions = &self.known.subscriptions;
        let known = match subscriptions.get(username) {
            Some(known) => known,
            None => subscriptions.get_or_load(username, || self.store.subscriptions(username)).await,
        };
        Ok(known?.iter().any(|subscribed| **subscribed == *api))
    }

    /// The permissions that a new token of this user carries.
    pub async fn accesses(&self, user: &User) -> Result<Accesses, StoreError> {
        let role = self.role(&user.role).await?;
        Ok(Accesses(role.map(|role| role.permissions).unwrap_or_default()))
    }

    /// Refuses a token from now on, in every process.
    pub async fn revoke_token(&self, token: &Claims) -> Result<(), StoreError> {
        self.store.revoke_token(&token.sub, &token.jti, token.exp).await
    }

    /// Looks after the caches, the store and the keys until it is dropped: one task of the process runs this.
    pub async fn maintain(&self) {
        let folder = self.key_folder.lock().ok().and_then(|mut folder| folder.take());
        let keys = async {
            if let Some(folder) = folder {
                folder.follow(|keys| self.replace_keys(keys)).await;
            }
        };
        join3(self.store.follow_changes(), self.store.maintain(), keys).await;
    }
}

#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod tests;
