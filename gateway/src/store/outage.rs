//! Outages of the stores that are only played, to see what clients make of them.
//!
//! Off, they cost one look at a number for each access. A played outage ends by itself, after [`LONGEST`] at the latest, and
//! what is done inside [`undisturbed`] never notices it. The stores themselves, their health and news between processes
//! are not part of the play.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::StoreError;

/// The longest that an outage is played, also when no end was given.
pub const LONGEST: Duration = Duration::from_secs(600);

tokio::task_local! {
    static UNDISTURBED: ();
}

/// Does this as if no outage were played.
pub async fn undisturbed<F: Future>(work: F) -> F::Output {
    UNDISTURBED.scope((), work).await
}

/// Which of the stores is played to be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The store of documents.
    Documents,
    /// The store of counters, revocations and CSRF tokens.
    Shared,
}

/// What a played outage fails with.
#[derive(Debug, thiserror::Error)]
#[error("an outage is played")]
pub(super) struct Played;

/// Outages of one process.
#[derive(Debug)]
pub struct Outages {
    start: Instant,
    /// Milliseconds after `start` at which the outage ends; 0: there is none.
    documents: AtomicU64,
    shared: AtomicU64,
    failures: AtomicU64,
}

impl Default for Outages {
    fn default() -> Self {
        Self { start: Instant::now(), documents: 0.into(), shared: 0.into(), failures: 0.into() }
    }
}

impl Outages {
    fn end(&self, backend: Backend) -> &AtomicU64 {
        match backend {
            Backend::Documents => &self.documents,
            Backend::Shared => &self.shared,
        }
    }

    fn since_start(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lets this store be away from now on, for so long and no longer than [`LONGEST`].
    pub fn begin(&self, backend: Backend, length: Duration) {
        let length = u64::try_from(length.min(LONGEST).as_millis()).unwrap_or(u64::MAX);
        self.end(backend).store(self.since_start().saturating_add(length), Relaxed);
    }

    /// Ends it.
    pub fn stop(&self, backend: Backend) {
        self.end(backend).store(0, Relaxed);
    }

    /// Is one being played?
    pub fn is_on(&self, backend: Backend) -> bool {
        match self.end(backend).load(Relaxed) {
            0 => false,
            end => self.since_start() < end,
        }
    }

    /// How often something failed that would not have, since the start of the process.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Fails while this store is played to be away.
    pub(super) fn check(&self, backend: Backend) -> Result<(), StoreError> {
        if !self.is_on(backend) || UNDISTURBED.try_with(|()| ()).is_ok() {
            return Ok(());
        }
        self.failures.fetch_add(1, Relaxed);
        Err(match backend {
            Backend::Documents => StoreError::documents(Played),
            Backend::Shared => StoreError::shared(Played),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_by_itself_and_is_never_endless() {
        let outages = Outages::default();
        outages.begin(Backend::Shared, Duration::from_millis(1_500));
        outages.begin(Backend::Documents, Duration::MAX);
        tokio::time::advance(Duration::from_millis(1_499)).await;
        assert!(outages.check(Backend::Shared).is_err() && outages.check(Backend::Documents).is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(outages.check(Backend::Shared).is_ok() && outages.is_on(Backend::Documents));
        tokio::time::advance(LONGEST).await;
        assert!(outages.check(Backend::Documents).is_ok());
        assert_eq!(outages.failures(), 2);
    }

    #[tokio::test]
    async fn what_is_undisturbed_notices_nothing() {
        let outages = Outages::default();
        outages.begin(Backend::Documents, LONGEST);
        undisturbed(async { assert!(outages.check(Backend::Documents).is_ok()) }).await;
        assert!(outages.check(Backend::Documents).is_err());
        outages.stop(Backend::Documents);
        assert!(outages.check(Backend::Documents).is_ok());
        assert_eq!(outages.failures(), 1);
    }
}
