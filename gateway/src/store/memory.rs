//! Everything in this process: documents, counters and revocations. No lock is held across an await.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{
    StoreError, Window,
    documents::{Group, Role, User},
};

/// Expired entries are swept when a map has grown to this, and then whenever it has doubled.
const SWEEP_AT: usize = 4_096;

/// Users, roles and groups.
#[derive(Default)]
pub struct Documents {
    tables: RwLock<Tables>,
}

/// Ordered by name, as lists are.
#[derive(Default)]
struct Tables {
    users: BTreeMap<Arc<str>, Arc<User>>,
    by_email: HashMap<String, Arc<str>>,
    roles: BTreeMap<Arc<str>, Arc<Role>>,
    groups: BTreeMap<Arc<str>, Arc<Group>>,
}

// A panic while a lock was held can't leave these maps half-changed in a way that matters more than going on.
impl Documents {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn user(&self, username: &str) -> Option<Arc<User>> {
        self.read().users.get(username).cloned()
    }

    pub(super) fn user_for_login(&self, login: &str) -> Option<Arc<User>> {
        let tables = self.read();
        let username = tables.by_email.get(login).map_or(login, |username| username);
        tables.users.get(username).cloned()
    }

    pub(super) fn save_user(&self, user: User) -> Result<(), StoreError> {
        let mut tables = self.write();
        let username = Arc::clone(&user.username);
        if tables.by_email.get(&user.email).is_some_and(|owner| *owner != username) {
            return Err(StoreError::Taken);
        }
        tables.by_email.insert(user.email.clone(), Arc::clone(&username));
        let email = user.email.clone();
        if let Some(before) = tables.users.insert(username, Arc::new(user))
            && before.email != email
        {
            tables.by_email.remove(&before.email);
        }
        Ok(())
    }

    pub(super) fn delete_user(&self, username: &str) -> bool {
        let mut tables = self.write();
        let Some(user) = tables.users.remove(username) else { return false };
        tables.by_email.remove(&user.email);
        true
    }

    pub(super) fn role(&self, name: &str) -> Option<Arc<Role>> {
        self.read().roles.get(name).cloned()
    }

    pub(super) fn save_role(&self, role: Role) {
        self.write().roles.insert(Arc::clone(&role.name), Arc::new(role));
    }

    pub(super) fn group(&self, name: &str) -> Option<Arc<Group>> {
        self.read().groups.get(name).cloned()
    }

    pub(super) fn save_group(&self, group: Group) {
        self.write().groups.insert(Arc::clone(&group.name), Arc::new(group));
    }
}

/// A map whose entries end; all times are seconds since the epoch.
struct Expiring<K, V> {
    entries: HashMap<K, (V, u64)>,
    sweep_at: usize,
}

impl<K, V> Default for Expiring<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), sweep_at: SWEEP_AT }
    }
}

impl<K: Eq + Hash, V> Expiring<K, V> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: u64) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.entries.get(key).filter(|(_, until)| *until > now).map(|(value, _)| value)
    }

    fn insert(&mut self, key: K, value: V, until: u64, now: u64) {
        self.entries.insert(key, (value, until));
        if self.entries.len() >= self.sweep_at {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: u64) {
        self.entries.retain(|_, (_, until)| *until > now);
        self.sweep_at = SWEEP_AT.max(2 * self.entries.len());
    }
}

/// What processes share when there is more than one: counters, revocations, CSRF tokens.
#[derive(Default)]
pub struct Shared {
    counters: Mutex<Expiring<String, u64>>,
    revoked_tokens: RwLock<Expiring<String, Arc<str>>>,
    revoked_users: RwLock<HashSet<String>>,
    csrf: Mutex<Expiring<String, String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn count(&self, counter: &str, window: Window, now: u64) -> u64 {
        let key = window.key(counter);
        let mut counters = locked(&self.counters);
        let count = counters.get(&key, now).copied().unwrap_or(0) + 1;
        counters.insert(key, count, window.end(), now);
        count
    }

    pub(super) fn revoke_token(&self, username: &str, jti: &str, until: u64, now: u64) {
        let mut tokens = self.revoked_tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(jti.to_owned(), username.into(), until, now);
    }

    pub(super) fn is_token_revoked(&self, jti: &str, now: u64) -> bool {
        self.revoked_tokens.read().unwrap_or_else(PoisonError::into_inner).get(jti, now).is_some()
    }

    pub(super) fn set_user_revoked(&self, username: &str, is_revoked: bool) {
        let mut users = self.revoked_users.write().unwrap_or_else(PoisonError::into_inner);
        if is_revoked {
            users.insert(username.to_owned());
        } else {
            users.remove(username);
        }
    }

    pub(super) fn is_user_revoked(&self, username: &str) -> bool {
        self.revoked_users.read().unwrap_or_else(PoisonError::into_inner).contains(username)
    }

    pub(super) fn remember_csrf(&self, username: &str, token: &str, until: u64, now: u64) {
        locked(&self.csrf).insert(username.to_owned(), token.to_owned(), until, now);
    }

    pub(super) fn csrf(&self, username: &str, now: u64) -> Option<String> {
        locked(&self.csrf).get(username, now).cloned()
    }

    pub(super) fn sweep(&self, now: u64) {
        locked(&self.counters).sweep(now);
        locked(&self.csrf).sweep(now);
        self.revoked_tokens.write().unwrap_or_else(PoisonError::into_inner).sweep(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_address_and_the_address_comes_first() {
        let documents = Documents::default();
        documents.save_user(User::new("amy", "amy@example.com", "user")).unwrap();
        documents.save_user(User::new("amy@example.com", "odd@example.com", "user")).unwrap();
        assert_eq!(&*documents.user_for_login("amy@example.com").unwrap().username, "amy");
        assert_eq!(&*documents.user_for_login("amy").unwrap().username, "amy");
        assert!(documents.user_for_login("nobody").is_none());
    }

    #[test]
    fn an_address_belongs_to_one_user_until_it_is_given_up() {
        let documents = Documents::default();
        documents.save_user(User::new("amy", "amy@example.com", "user")).unwrap();
        assert!(matches!(documents.save_user(User::new("bob", "amy@example.com", "user")), Err(StoreError::Taken)));
        documents.save_user(User::new("amy", "new@example.com", "user")).unwrap();
        documents.save_user(User::new("bob", "amy@example.com", "user")).unwrap();
        assert_eq!(&*documents.user_for_login("amy@example.com").unwrap().username, "bob");
        assert!(documents.delete_user("bob"));
        assert!(documents.user_for_login("amy@example.com").is_none());
    }

    #[test]
    fn a_counter_starts_again_with_its_window() {
        let shared = Shared::default();
        let minute = Duration::from_secs(60);
        assert_eq!(shared.count("a", Window::at(59, minute), 59), 1);
        assert_eq!(shared.count("a", Window::at(59, minute), 59), 2);
        assert_eq!(shared.count("b", Window::at(59, minute), 59), 1);
        assert_eq!(shared.count("a", Window::at(60, minute), 60), 1);
    }

    #[test]
    fn expired_entries_are_swept_while_others_come_in() {
        let shared = Shared::default();
        let second = Duration::from_secs(1);
        for now in 0..3 * SWEEP_AT as u64 {
            shared.count("flood", Window::at(now, second), now);
        }
        assert!(locked(&shared.counters).entries.len() <= SWEEP_AT);
    }

    #[test]
    fn a_token_is_revoked_until_it_would_have_expired() {
        let shared = Shared::default();
        shared.revoke_token("amy", "id", 100, 10);
        assert!(shared.is_token_revoked("id", 99));
        assert!(!shared.is_token_revoked("id", 100));
        assert!(!shared.is_token_revoked("other", 10));
    }
}
