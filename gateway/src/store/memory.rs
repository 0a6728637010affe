//! Everything in this process: documents, counters and revocations. No lock is held across an await.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use mongodb::bson::{Bson, Document, doc};

use super::{
    StoreError, Window,
    charges::Charge,
    collection::{Collection, Key, Listing},
    counters::{Counter, Counters, Family, Taken, lightest},
    credits::{self, Balance},
};

/// Expired entries are swept when a map has grown to this, and then whenever it has doubled.
const SWEEP_AT: usize = 4_096;

/// Documents of every collection.
#[derive(Default)]
pub struct Documents {
    tables: RwLock<BTreeMap<Collection, Table>>,
}

/// The documents of one collection, ordered by key, as lists are.
#[derive(Default)]
struct Table {
    documents: BTreeMap<Key, Arc<Document>>,
    /// For each member that is unique by itself: whose value it is.
    owners: BTreeMap<&'static str, HashMap<String, Key>>,
}

impl Table {
    /// Puts a document in its place, unless a value that must be unique is another's.
    fn put(&mut self, collection: Collection, key: Key, document: Document) -> Result<(), StoreError> {
        for member in collection.unique() {
            let owner = document.get_str(member).ok().and_then(|value| self.owners.get(member)?.get(value));
            if owner.is_some_and(|owner| *owner != key) {
                return Err(StoreError::Taken);
            }
        }
        self.take(collection, &key);
        for member in collection.unique() {
            if let Ok(value) = document.get_str(member) {
                self.owners.entry(member).or_default().insert(value.to_owned(), key.clone());
            }
        }
        self.documents.insert(key, Arc::new(document));
        Ok(())
    }

    fn take(&mut self, collection: Collection, key: &Key) -> Option<Arc<Document>> {
        let document = self.documents.remove(key)?;
        for member in collection.unique() {
            if let (Ok(value), Some(owners)) = (document.get_str(member), self.owners.get_mut(member)) {
                owners.remove(value);
            }
        }
        Some(document)
    }
}

fn owned(key: &[&str]) -> Key {
    key.iter().map(|member| (*member).to_owned()).collect()
}

fn keyed(collection: Collection, document: &Document) -> Result<Key, StoreError> {
    let missing =
        || StoreError::documents(std::io::Error::other(format!("a document of {} has no key", collection.name())));
    collection.key_of(document).ok_or_else(missing)
}

// A panic while a lock was held can't leave these maps half-changed in a way that matters more than going on.
impl Documents {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Collection, Table>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Collection, Table>> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, collection: Collection, key: &[&str]) -> Option<Arc<Document>> {
        self.read().get(&collection)?.documents.get(&owned(key)).cloned()
    }

    /// The document with this value of a member that is unique by itself.
    pub(super) fn find_unique(&self, collection: Collection, member: &str, value: &str) -> Option<Arc<Document>> {
        let tables = self.read();
        let table = tables.get(&collection)?;
        table.documents.get(table.owners.get(member)?.get(value)?).cloned()
    }

    /// Adds a document. Fails with [`StoreError::Taken`] when there is one of its key.
    pub(super) fn insert(&self, collection: Collection, document: Document) -> Result<(), StoreError> {
        let key = keyed(collection, &document)?;
        let mut tables = self.write();
        let table = tables.entry(collection).or_default();
        if table.documents.contains_key(&key) {
            return Err(StoreError::Taken);
        }
        table.put(collection, key, document)
    }

    /// Sets members of a document, if each of these members has one of these values; null is as good as none. `false`:
    /// there is none of this key, or it is another one by now.
    pub(super) fn set_if(
        &self,
        collection: Collection,
        key: &[&str],
        expected: &[(&str, &[Bson])],
        members: Document,
    ) -> Result<bool, StoreError> {
        let key = owned(key);
        let mut tables = self.write();
        let table = tables.entry(collection).or_default();
        let Some(stored) = table.documents.get(&key) else { return Ok(false) };
        if !expected.iter().all(|(member, any)| any.contains(stored.get(member).unwrap_or(&Bson::Null))) {
            return Ok(false);
        }
        let mut document = Document::clone(stored);
        document.extend(members);
        let renamed = keyed(collection, &document)?;
        if renamed != key && table.documents.contains_key(&renamed) {
            return Err(StoreError::Taken);
        }
        if renamed != key {
            table.take(collection, &key);
        }
        table.put(collection, renamed, document).map(|()| true)
    }

    /// Adds a document, or sets its members on the one of its key.
    pub(super) fn save(&self, collection: Collection, document: Document) -> Result<(), StoreError> {
        let key = keyed(collection, &document)?;
        let mut tables = self.write();
        let table = tables.entry(collection).or_default();
        let merged = match table.documents.get(&key) {
            Some(stored) => stored.iter().map(|(name, value)| (name.clone(), value.clone())).chain(document).collect(),
            None => document,
        };
        table.put(collection, key, merged)
    }

    /// Sets a member within members of a document. `false`: there is nothing to set it in.
    pub(super) fn set_within(
        &self,
        collection: Collection,
        key: &str,
        outer: &[&str],
        (member, value): (&str, Bson),
    ) -> Result<bool, StoreError> {
        let key = vec![key.to_owned()];
        let mut tables = self.write();
        let table = tables.entry(collection).or_default();
        let Some(mut document) = table.documents.get(&key).map(|stored| Document::clone(stored)) else {
            return Ok(false);
        };
        let place = outer.iter().try_fold(&mut document, |place, name| place.get_document_mut(name).ok());
        let Some(place) = place else { return Ok(false) };
        place.insert(member, value);
        table.put(collection, key, document)?;
        Ok(true)
    }

    /// Adds or takes a text of a list that holds each once. Did that change it?
    pub(super) fn change_set(&self, collection: Collection, key: &str, member: &str, value: &str, is_in: bool) -> bool {
        let mut tables = self.write();
        let table = tables.entry(collection).or_default();
        let key = vec![key.to_owned()];
        let mut document = table.documents.get(&key).map_or_else(Document::new, |stored| Document::clone(stored));
        let mut list = document.get_array(member).cloned().unwrap_or_default();
        let before = list.len();
        let has = list.iter().any(|item| item.as_str() == Some(value));
        if is_in && !has {
            list.push(value.into());
        } else if !is_in {
            list.retain(|item| item.as_str() != Some(value));
        }
        let is_changed = list.len() != before;
        if is_changed {
            for (name, value) in collection.key().iter().zip(&key) {
                document.insert(*name, value.as_str());
            }
            document.insert(member, list);
            // The members that must be unique are not touched.
            let _ = table.put(collection, key, document);
        }
        is_changed
    }

    /// Takes one credit of a group from a balance, if there is one.
    pub(super) fn take_credit(&self, charge: &mut Charge) -> Option<Balance> {
        let take = |available| (available > 0).then(|| available - 1);
        let balance = self.change_credits(&charge.username, &charge.group, take);
        charge.set_taken(balance.is_some());
        balance
    }

    /// Gives back what a charge took.
    pub(super) fn revoke(&self, charge: &mut Charge) {
        if charge.is_open() {
            self.change_credits(&charge.username, &charge.group, |available| available.checked_add(1));
        }
        charge.set_revoked();
    }

    fn change_credits(&self, username: &str, group: &str, change: impl Fn(i64) -> Option<i64>) -> Option<Balance> {
        let key = vec![username.to_owned()];
        let mut tables = self.write();
        let table = tables.get_mut(&Collection::UserCredits)?;
        let mut document = Document::clone(table.documents.get(&key)?);
        let balance = credits::in_document_mut(&mut document, group)?;
        balance.insert(credits::AVAILABLE, change(credits::available(balance)?)?);
        let balance = Balance::of(balance);
        table.documents.insert(key, Arc::new(document));
        Some(balance)
    }

    /// Was there such a document?
    pub(super) fn remove(&self, collection: Collection, key: &[&str]) -> bool {
        self.write().get_mut(&collection).and_then(|table| table.take(collection, &owned(key))).is_some()
    }

    /// The documents asked for, and how many there are without `skip` and `limit`.
    pub(super) fn list(&self, collection: Collection, listing: &Listing) -> (Vec<Arc<Document>>, u64) {
        let tables = self.read();
        let Some(table) = tables.get(&collection) else { return (Vec::new(), 0) };
        let is_asked = |document: &&Arc<Document>| {
            listing.equal.iter().all(|(member, value)| document.get(member).unwrap_or(&Bson::Null) == value)
        };
        let asked = || table.documents.values().filter(is_asked);
        let skip = usize::try_from(listing.skip).unwrap_or(usize::MAX);
        let limit = listing.limit.map_or(usize::MAX, |limit| limit as usize);
        let told = |document: &Arc<Document>| {
            let Some(members) = listing.members else { return document.clone() };
            let told = members.iter().filter_map(|member| Some(((*member).to_owned(), document.get(member)?.clone())));
            Arc::new(told.collect::<Document>())
        };
        (asked().skip(skip).take(limit).map(told).collect(), asked().count() as u64)
    }

    /// Everything there is; costs one pointer a document.
    pub(super) fn export(&self) -> BTreeMap<Collection, Vec<Arc<Document>>> {
        let tables = self.read();
        tables.iter().map(|(collection, table)| (*collection, table.documents.values().cloned().collect())).collect()
    }

    /// Replaces everything at once. What has no key or repeats a unique value is left out and counted.
    pub(super) fn import(&self, documents: BTreeMap<Collection, Vec<Document>>) -> usize {
        let (mut tables, mut left_out) = (BTreeMap::<Collection, Table>::new(), 0);
        for (collection, documents) in documents {
            let table = tables.entry(collection).or_default();
            for mut document in documents {
                document.remove("_id");
                let put = keyed(collection, &document).and_then(|key| table.put(collection, key, document));
                left_out += usize::from(put.is_err());
            }
        }
        *self.write() = tables;
        left_out
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

/// So many counters of windows are kept: clients bring them about, by addresses and names.
const MOST_COUNTED: usize = 65_536;

impl<K> Expiring<K, u64> {
    /// Removes what has ended, and of too many those that count the least: whoever comes with ever new names must not
    /// start again with the one that has reached its limit.
    fn make_room(&mut self, now: u64)
    where
        K: Eq + Hash,
    {
        if self.entries.len() < MOST_COUNTED {
            return;
        }
        self.sweep(now);
        let mut left = self.entries.len().saturating_sub(MOST_COUNTED / 8 * 7);
        let limit = lightest(self.entries.values().copied().collect(), left);
        self.entries.retain(|_, entry| {
            let goes = left > 0 && *entry <= limit;
            left -= usize::from(goes);
            !goes
        });
    }
}

/// What processes share when there is more than one: counters, revocations, CSRF tokens.
#[derive(Default)]
pub struct Shared {
    counters: Mutex<Expiring<String, u64>>,
    limits: Counters,
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
        if count == 1 {
            counters.make_room(now);
        }
        counters.insert(key, count, window.end(), now);
        count
    }

    pub(super) fn uncount(&self, counter: &str, window: Window, now: u64) {
        let key = window.key(counter);
        let mut counters = locked(&self.counters);
        if let Some(count) = counters.get(&key, now).copied() {
            counters.insert(key, count.saturating_sub(1), window.end(), now);
        }
    }

    pub(super) fn take(&self, counters: &[Counter], now: u64) -> Taken {
        self.limits.take(counters, now)
    }

    pub(super) fn book(&self, booked: &[(Arc<str>, u64)], add: u64, now: u64) {
        for (key, kept) in booked {
            self.limits.book(key, *kept, add, now);
        }
    }

    pub(super) fn totals(&self, keys: &[Arc<str>]) -> Vec<u64> {
        self.limits.totals(keys)
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

    /// What is revoked, as documents (reference: configuration 13.1).
    pub(super) fn export(&self, now: u64) -> Vec<Document> {
        let users = self.revoked_users.read().unwrap_or_else(PoisonError::into_inner);
        let tokens = self.revoked_tokens.read().unwrap_or_else(PoisonError::into_inner);
        let users = users.iter().map(|name| doc! { "type": "revoke_all", "username": name, "revoke_all": true });
        let tokens = tokens.entries.iter().filter(|(_, (_, until))| *until > now).map(|(jti, (name, until))| {
            let until = i64::try_from(*until).unwrap_or(i64::MAX);
            doc! { "type": "jti", "username": &**name, "jti": jti, "expires_at": until }
        });
        users.chain(tokens).collect()
    }

    /// Adds revocations; none is ever taken back by an import, which would let tokens in again.
    pub(super) fn import(&self, revocations: &[Document], now: u64) {
        for document in revocations {
            let Ok(username) = document.get_str("username") else { continue };
            if document.get_bool("revoke_all").unwrap_or(false) {
                self.set_user_revoked(username, true);
            } else if let Ok(jti) = document.get_str("jti") {
                let until = match document.get("expires_at") {
                    Some(Bson::Int32(until)) => u64::try_from(*until).unwrap_or(0),
                    Some(Bson::Int64(until)) => u64::try_from(*until).unwrap_or(0),
                    Some(Bson::Double(until)) => u64::try_from(until.ceil() as i64).unwrap_or(0),
                    // Without an end it is kept as long as the longest token might live.
                    _ => now + 366 * 86_400,
                };
                if until > now {
                    self.revoke_token(username, jti, until, now);
                }
            }
        }
    }

    /// Starts the counters again whose families do.
    pub(super) fn reset_counters(&self) {
        locked(&self.counters).entries.retain(|name, _| !Family::has_one_that_starts_again(name));
        self.limits.reset();
    }

    pub(super) fn remember_csrf(&self, username: &str, token: &str, until: u64, now: u64) {
        locked(&self.csrf).insert(username.to_owned(), token.to_owned(), until, now);
    }

    pub(super) fn csrf(&self, username: &str, now: u64) -> Option<String> {
        locked(&self.csrf).get(username, now).cloned()
    }

    pub(super) fn sweep(&self, now: u64) {
        locked(&self.counters).sweep(now);
        self.limits.sweep();
        locked(&self.csrf).sweep(now);
        self.revoked_tokens.write().unwrap_or_else(PoisonError::into_inner).sweep(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn user(name: &str, email: &str) -> Document {
        doc! { "username": name, "email": email }
    }

    #[test]
    fn a_unique_value_belongs_to_one_document_until_it_is_given_up() {
        let documents = Documents::default();
        let owner = |email: &str| documents.find_unique(Collection::Users, "email", email);
        documents.insert(Collection::Users, user("amy", "amy@example.com")).unwrap();
        for taken in [user("bob", "amy@example.com"), user("amy", "other@example.com")] {
            assert!(matches!(documents.insert(Collection::Users, taken), Err(StoreError::Taken)));
        }
        assert!(
            documents.set_if(Collection::Users, &["amy"], &[], doc! { "email": "new@example.com", "x": 1 }).unwrap()
        );
        documents.insert(Collection::Users, user("bob", "amy@example.com")).unwrap();
        assert_eq!(owner("amy@example.com").unwrap().get_str("username").unwrap(), "bob");
        assert_eq!(owner("new@example.com").unwrap().get_i32("x").unwrap(), 1);
        assert!(documents.remove(Collection::Users, &["bob"]));
        assert!(!documents.remove(Collection::Users, &["bob"]));
        assert!(owner("amy@example.com").is_none());
        assert!(!documents.set_if(Collection::Users, &["bob"], &[], doc! { "x": 1 }).unwrap());
    }

    #[test]
    fn saving_keeps_what_it_does_not_name() {
        let documents = Documents::default();
        documents.save(Collection::Users, doc! { "username": "amy", "email": "a@b.c", "x": 1 }).unwrap();
        documents.save(Collection::Users, doc! { "username": "amy", "x": 2 }).unwrap();
        let stored = documents.find(Collection::Users, &["amy"]).unwrap();
        assert_eq!((stored.get_str("email").unwrap(), stored.get_i32("x").unwrap()), ("a@b.c", 2));
    }

    #[test]
    fn a_list_is_sorted_by_key_and_counts_all() {
        let documents = Documents::default();
        for name in ["c", "a", "b"] {
            documents.insert(Collection::Groups, doc! { "group_name": name, "odd": name != "b" }).unwrap();
        }
        let names = |listing: &Listing| {
            let (found, total) = documents.list(Collection::Groups, listing);
            (found.iter().map(|group| group.get_str("group_name").unwrap().to_owned()).collect::<String>(), total)
        };
        assert_eq!(names(&Listing::default()), ("abc".into(), 3));
        assert_eq!(names(&Listing { skip: 1, limit: Some(1), ..Listing::default() }), ("b".into(), 3));
        assert_eq!(names(&Listing { skip: 9, ..Listing::default() }), (String::new(), 3));
        assert_eq!(names(&Listing::with("odd", true)), ("ac".into(), 2));
    }

    #[test]
    fn a_list_of_some_members_has_no_others() {
        let documents = Documents::default();
        documents.insert(Collection::Groups, doc! { "group_name": "a", "large": "x" }).unwrap();
        let listing = Listing { members: Some(&["group_name", "none"]), ..Listing::with("large", "x") };
        let (found, total) = documents.list(Collection::Groups, &listing);
        assert_eq!((&*found[0], found.len(), total), (&doc! { "group_name": "a" }, 1, 1));
    }

    #[test]
    fn an_import_replaces_everything_and_leaves_out_what_can_not_be_kept() {
        let documents = Documents::default();
        documents.insert(Collection::Users, user("old", "old@example.com")).unwrap();
        documents.insert(Collection::Groups, doc! { "group_name": "old" }).unwrap();
        let users = vec![user("amy", "a@b.c"), doc! { "email": "x@y.z" }, user("bob", "a@b.c")];
        assert_eq!(documents.import(BTreeMap::from([(Collection::Users, users)])), 2);
        let all = documents.export();
        assert_eq!(all.keys().collect::<Vec<_>>(), [&Collection::Users]);
        assert_eq!(*all[&Collection::Users][0], user("amy", "a@b.c"));
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
    fn ever_new_names_take_no_more_room_and_free_nobody_who_has_reached_a_limit() {
        let (shared, minute) = (Shared::default(), Window::at(0, Duration::from_secs(60)));
        (1..=5).for_each(|count| assert_eq!(shared.count("attacker", minute, 0), count));
        for name in 0..2 * MOST_COUNTED {
            shared.count(&name.to_string(), minute, 0);
        }
        assert!(locked(&shared.counters).entries.len() <= MOST_COUNTED);
        assert_eq!(shared.count("attacker", minute, 0), 6);
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
