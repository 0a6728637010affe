//! A bounded cache of what a store or an upstream said, believed for a limited time.
//!
//! One load at a time for each key: the others wait for it. A failure is remembered for a moment, so that whoever is
//! away isn't asked by every request in turn. What is forgotten while it is being loaded is not kept.

use std::time::Duration;

use quick_cache::{Weighter, sync::Cache};
use tokio::time::Instant;

use super::StoreError;

/// How long an answer of an external store is believed when no news comes.
pub const CACHE_LIFE: Duration = Duration::from_secs(30);
/// How long a failure stands for an answer.
const FAILURE_LIFE: Duration = Duration::from_secs(1);

/// Why there is no answer.
pub(crate) trait Failure: Clone {
    /// How long it stands for an answer.
    fn life(&self) -> Duration {
        FAILURE_LIFE
    }
}

impl Failure for StoreError {
    fn life(&self) -> Duration {
        // Whoever ends a played outage must not be held up by what it left here.
        if self.is_played() { Duration::ZERO } else { FAILURE_LIFE }
    }
}

#[derive(Clone)]
struct Entry<V, E> {
    answer: Result<V, E>,
    until: Instant,
}

/// What an answer counts for.
#[derive(Clone)]
struct Weigh<V>(fn(&V) -> u64);

impl<V, E> Weighter<String, Entry<V, E>> for Weigh<V> {
    fn weight(&self, _: &String, entry: &Entry<V, E>) -> u64 {
        entry.answer.as_ref().map_or(1, self.0)
    }
}

/// See the module's own words.
pub(crate) struct Fresh<V, E = StoreError> {
    entries: Cache<String, Entry<V, E>, Weigh<V>>,
    life: Duration,
}

impl<V: Clone, E: Failure> Fresh<V, E> {
    /// Of so many answers.
    pub(crate) fn new(capacity: usize, life: Duration) -> Self {
        Self::weighing(capacity, capacity as u64, |_| 1, life)
    }

    /// Of some so many answers that weigh no more than this together.
    pub(crate) fn weighing(capacity: usize, most: u64, weigh: fn(&V) -> u64, life: Duration) -> Self {
        Self { entries: Cache::with_weighter(capacity, most, Weigh(weigh)), life }
    }

    /// What is known and still believed; never waits.
    pub(crate) fn get(&self, key: &str) -> Option<Result<V, E>> {
        self.entries.get(key).filter(|entry| entry.until > Instant::now()).map(|entry| entry.answer)
    }

    /// What is known, else what the store says.
    pub(crate) async fn get_or_load<F: Future<Output = Result<V, E>>>(
        &self,
        key: &str,
        load: impl FnOnce() -> F,
    ) -> Result<V, E> {
        loop {
            match self.entries.get_value_or_guard_async(key).await {
                Ok(entry) if entry.until > Instant::now() => return entry.answer,
                Ok(_) => drop(self.entries.remove_if(key, |entry| entry.until <= Instant::now())),
                Err(guard) => {
                    let answer = load().await;
                    let life = answer.as_ref().err().map_or(self.life, Failure::life);
                    // Refused when the key was forgotten meanwhile, as it should be.
                    let _ = guard.insert(Entry { answer: answer.clone(), until: Instant::now() + life });
                    return answer;
                }
            }
        }
    }

    pub(crate) fn forget(&self, key: &str) {
        self.entries.remove(key);
    }

    pub(crate) fn forget_all(&self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc, sync::atomic::AtomicU32, sync::atomic::Ordering::SeqCst};

    use futures::future::{join, join_all};

    use super::*;

    const LIFE: Duration = Duration::from_secs(30);

    fn away() -> StoreError {
        StoreError::Shared(Arc::new(io::Error::other("away")))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_its_life_and_no_longer() {
        let fresh = Fresh::<_>::new(10, LIFE);
        assert_eq!(fresh.get_or_load("a", async || Ok(1)).await.unwrap(), 1);
        tokio::time::advance(LIFE.checked_sub(Duration::from_millis(1)).unwrap()).await;
        assert_eq!(fresh.get_or_load("a", async || Ok(2)).await.unwrap(), 1);
        assert_eq!(fresh.get("a").unwrap().unwrap(), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(fresh.get("a").is_none());
        assert_eq!(fresh.get_or_load("a", async || Ok(2)).await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn many_askers_load_once() {
        let (fresh, loads) = (Fresh::<_>::new(10, LIFE), AtomicU32::new(0));
        let load = async || {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(loads.fetch_add(1, SeqCst))
        };
        let answers = join_all((0..50).map(|_| fresh.get_or_load("a", load))).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap() == 0));
        assert_eq!(loads.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_store_is_asked_once_a_second() {
        let (fresh, loads) = (Fresh::<u32>::new(10, LIFE), AtomicU32::new(0));
        let load = async || {
            loads.fetch_add(1, SeqCst);
            Err(away())
        };
        for _ in 0..5 {
            assert!(fresh.get_or_load("a", load).await.is_err());
        }
        assert_eq!(loads.load(SeqCst), 1);
        tokio::time::advance(FAILURE_LIFE).await;
        assert_eq!(fresh.get_or_load("a", async || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_while_it_loads_is_not_kept() {
        let fresh = Fresh::<_>::new(10, LIFE);
        let slow = fresh.get_or_load("a", async || {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok("before")
        });
        let change = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            fresh.forget("a");
        };
        assert_eq!(join(slow, change).await.0.unwrap(), "before");
        assert!(fresh.get("a").is_none());
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let fresh = Fresh::<_>::new(100, LIFE);
        for number in 0..10_000 {
            fresh.get_or_load(&number.to_string(), async || Ok(())).await.unwrap();
        }
        assert!(fresh.entries.len() <= 100);
        fresh.forget_all();
        assert_eq!(fresh.entries.len(), 0);
    }

    #[tokio::test]
    async fn what_weighs_more_takes_more_of_it() {
        let fresh = Fresh::<u64>::weighing(10, 100, |answer| *answer, LIFE);
        for number in 0..20 {
            fresh.get_or_load(&number.to_string(), async || Ok(40)).await.unwrap();
        }
        assert!(fresh.entries.len() == 2 && fresh.entries.weight() == 80);
        assert_eq!(fresh.get_or_load("heavy", async || Ok(1_000)).await.unwrap(), 1_000);
        assert!(fresh.get("heavy").is_none());
    }
}
