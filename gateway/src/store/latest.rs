//! All documents of a collection as one value, for those who need it with every request.
//!
//! In: how to make the value of the documents. Out: the value as it is stored now. What always holds: a change is read before
//! the value is told again, so that who writes sees what was written; a value that is only old is told while it is read
//! again, so that nobody waits for that; while the store is away, what was known last is told, and after a change the store
//! is waited for a moment only, once in a while.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use mongodb::bson::Document;
use tokio::time::{Instant, timeout};

use super::{
    Change, Collection, Store, StoreError,
    fresh::{CACHE_LIFE, Fresh},
};

/// The one entry of the cache.
const ALL: &str = "";
/// Longest wait for what has changed, where something is known.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause before a store that gave no answer in time is asked again.
const RETRY: Duration = Duration::from_secs(5);

/// Makes the value of the documents and the value before, if there was one.
type Make<T> = dyn Fn(&[Arc<Document>], Option<&T>) -> T + Send + Sync;

/// See the module's own words.
pub struct Latest<T> {
    store: Arc<Store>,
    collection: Collection,
    make: Box<Make<T>>,
    /// One question at a time, and after a failure none for a moment.
    reading: Fresh<Arc<T>>,
    kept: ArcSwapOption<Kept<T>>,
    /// Grows with each change.
    changes: AtomicU64,
    is_refreshing: AtomicBool,
}

/// A value as of a number of changes.
struct Kept<T> {
    value: Arc<T>,
    of: u64,
    /// As good as new, for so long, as of so many changes: those after `of` could not be read.
    until: Instant,
    tried: u64,
}

impl<T: Send + Sync + 'static> Latest<T> {
    /// Of this collection of this store; nothing is read yet.
    pub fn new(
        store: &Arc<Store>,
        collection: Collection,
        make: impl Fn(&[Arc<Document>], Option<&T>) -> T + Send + Sync + 'static,
    ) -> Arc<Self> {
        let latest = Arc::new(Self {
            store: store.clone(),
            collection,
            make: Box::new(make),
            reading: Fresh::new(1, CACHE_LIFE),
            kept: ArcSwapOption::empty(),
            changes: AtomicU64::default(),
            is_refreshing: AtomicBool::default(),
        });
        let told: Weak<Self> = Arc::downgrade(&latest);
        store.on_change(move |change| {
            let is_about = match change {
                Change::Everything => true,
                Change::Document(changed, _) => changed == collection,
                Change::Token(_) | Change::Other(_) => false,
            };
            if let Some(latest) = told.upgrade().filter(|_| is_about) {
                latest.changes.fetch_add(1, Ordering::AcqRel);
                latest.reading.forget_all();
            }
        });
        latest
    }

    /// The value. Doesn't wait unless something has changed, or nothing was ever read.
    ///
    /// # Errors
    /// When nothing was ever read, and can't be now.
    pub async fn get(self: &Arc<Self>) -> Result<Arc<T>, StoreError> {
        let changes = self.changes.load(Ordering::Acquire);
        let kept = self.kept.load_full();
        let Some(kept) = kept else { return self.read().await };
        if kept.tried == changes && Instant::now() < kept.until {
            return Ok(kept.value.clone());
        }
        if kept.tried != changes {
            let read = timeout(PATIENCE, self.read()).await;
            return Ok(match read {
                Ok(Ok(value)) => value,
                Ok(Err(error)) => self.go_on(&kept, changes, &error),
                Err(_) => self.go_on(&kept, changes, &"no answer in time"),
            });
        }
        self.refresh();
        Ok(kept.value.clone())
    }

    async fn read(&self) -> Result<Arc<T>, StoreError> {
        self.reading.get_or_load(ALL, || self.load()).await
    }

    async fn load(&self) -> Result<Arc<T>, StoreError> {
        let of = self.changes.load(Ordering::Acquire);
        let documents = self.store.all(self.collection).await?;
        let last = self.kept.load_full();
        let value = Arc::new((self.make)(&documents, last.as_ref().map(|kept| &*kept.value)));
        let read = Arc::new(Kept { value: value.clone(), of, until: Instant::now() + CACHE_LIFE, tried: of });
        self.kept.rcu(|kept| match kept {
            // One that began before a change may end after the one that came of it.
            Some(newer) if newer.of > of => Some(newer.clone()),
            _ => Some(read.clone()),
        });
        Ok(value)
    }

    /// Reads it again while others go on with what is known.
    fn refresh(self: &Arc<Self>) {
        if self.is_refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let refreshing = Refreshing(self.clone());
        tokio::spawn(async move {
            let latest = &refreshing.0;
            let changes = latest.changes.load(Ordering::Acquire);
            // What was read so long ago is not worth keeping, and neither is a failure of then.
            latest.reading.forget_all();
            if let (Err(error), Some(kept)) = (latest.read().await, latest.kept.load_full()) {
                latest.go_on(&kept, changes, &error);
            }
        });
    }

    /// Goes on with what was known, for a while.
    fn go_on(&self, kept: &Arc<Kept<T>>, tried: u64, why: &dyn fmt::Display) -> Arc<T> {
        let again = Kept { value: kept.value.clone(), of: kept.of, until: Instant::now() + RETRY, tried };
        let before = self.kept.compare_and_swap(kept, Some(Arc::new(again)));
        // Else somebody has read it meanwhile, or said so.
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, kept)) {
            let collection = self.collection.name();
            tracing::warn!(collection, %why, "what is stored can't be read; what was known last goes on");
        }
        kept.value.clone()
    }
}

/// While it is there, nobody else refreshes.
struct Refreshing<T>(Arc<Latest<T>>);

impl<T> Drop for Refreshing<T> {
    fn drop(&mut self) {
        self.0.is_refreshing.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;
    use crate::store::outage::Backend;

    async fn add(store: &Store, name: &str) {
        store.insert(Collection::Groups, doc! { "group_name": name }).await.unwrap();
    }

    fn counted(store: &Arc<Store>) -> Arc<Latest<usize>> {
        Latest::new(store, Collection::Groups, |found, _| found.len())
    }

    #[tokio::test]
    async fn a_change_is_seen_at_once_and_others_cost_nothing() {
        let store = Arc::new(Store::in_memory());
        let latest = counted(&store);
        assert_eq!(*latest.get().await.unwrap(), 0);
        add(&store, "a").await;
        let seen = latest.get().await.unwrap();
        assert_eq!(*seen, 1);
        store.insert(Collection::Roles, doc! { "role_name": "x" }).await.unwrap();
        assert!(Arc::ptr_eq(&seen, &latest.get().await.unwrap()), "nothing was read again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_is_told_while_it_is_read_again() {
        let store = Arc::new(Store::in_memory());
        let latest = counted(&store);
        add(&store, "a").await;
        let old = latest.get().await.unwrap();
        tokio::time::advance(CACHE_LIFE).await;
        assert!(Arc::ptr_eq(&old, &latest.get().await.unwrap()));
        let is_read_again = async {
            while Arc::ptr_eq(&old, &latest.get().await.unwrap()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(CACHE_LIFE, is_read_again).await.expect("it is never read again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_asked_once_in_a_while() {
        let store = Arc::new(Store::in_memory());
        let latest = counted(&store);
        latest.get().await.unwrap();
        store.outages().begin(Backend::Documents, Duration::from_secs(300));
        store.announce(Change::Everything).await;
        let until = |latest: &Latest<usize>| latest.kept.load_full().unwrap().until;
        latest.get().await.unwrap();
        let first = until(&latest);
        for _ in 0..4 {
            tokio::time::advance(Duration::from_secs(1)).await;
            latest.get().await.unwrap();
            assert_eq!(until(&latest), first, "it was not asked");
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        let is_asked = async {
            while until(&latest) == first {
                latest.get().await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        timeout(RETRY, is_asked).await.expect("it is never asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_store_is_away_what_was_known_goes_on() {
        let store = Arc::new(Store::in_memory());
        let latest = counted(&store);
        store.outages().begin(Backend::Documents, Duration::from_secs(300));
        assert!(latest.get().await.is_err(), "nothing was ever known");
        store.outages().begin(Backend::Documents, Duration::ZERO);
        add(&store, "a").await;
        assert_eq!(*latest.get().await.unwrap(), 1);
        store.outages().begin(Backend::Documents, Duration::from_secs(300));
        store.announce(Change::Everything).await;
        for _ in 0..100 {
            assert_eq!(*latest.get().await.unwrap(), 1);
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
        store.outages().begin(Backend::Documents, Duration::ZERO);
        add(&store, "b").await;
        assert_eq!(*latest.get().await.unwrap(), 2);
    }
}
