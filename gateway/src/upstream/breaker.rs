//! Leaves an upstream alone that keeps failing (reference: gateway behaviour 10.3).
//!
//! One breaker per address and API. Failures in a row open it; while it is open nothing is sent; afterwards a single call
//! probes, and its outcome closes it or opens it again. Costs a load and, after failures, a store per call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures in a row that open it.
    pub threshold: u32,
    /// How long it stays open.
    pub open: Duration,
}

/// The breaker of one address, as one API calls it.
#[derive(Debug)]
pub struct Breaker {
    origin: Instant,
    failures: AtomicU32,
    /// Milliseconds after `origin` until which it is open; 0: closed.
    open_until: AtomicU64,
    is_probed: AtomicBool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            failures: AtomicU32::new(0),
            open_until: AtomicU64::new(0),
            is_probed: AtomicBool::new(false),
        }
    }
}

/// Leave to call once. Dropped without a verdict, as when the client goes away, it says nothing about the upstream.
#[derive(Debug)]
pub struct Leave {
    breaker: Arc<Breaker>,
    is_probe: bool,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.is_probed.store(false, Relaxed);
        }
    }
}

impl Breaker {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Has it opened, and no probe closed it again?
    pub fn is_open(&self) -> bool {
        self.open_until.load(Relaxed) != 0
    }

    /// Leave to call; `None` while the upstream is left alone.
    pub fn admit(self: &Arc<Self>) -> Option<Leave> {
        let open_until = self.open_until.load(Relaxed);
        if open_until == 0 {
            return Some(Leave { breaker: self.clone(), is_probe: false });
        }
        if self.now() < open_until || self.is_probed.swap(true, Relaxed) {
            return None;
        }
        Some(Leave { breaker: self.clone(), is_probe: true })
    }
}

impl Leave {
    /// The upstream answered as one that is well.
    pub fn succeeded(self) {
        let breaker = &self.breaker;
        if breaker.failures.load(Relaxed) != 0 {
            breaker.failures.store(0, Relaxed);
        }
        if self.is_probe {
            breaker.open_until.store(0, Relaxed);
        }
    }

    /// The attempt failed.
    pub fn failed(self, rules: BreakerRules) {
        let breaker = &self.breaker;
        let failures = breaker.failures.fetch_add(1, Relaxed).saturating_add(1);
        if self.is_probe || failures >= rules.threshold {
            let open = u64::try_from(rules.open.as_millis()).unwrap_or(u64::MAX);
            breaker.failures.store(0, Relaxed);
            breaker.open_until.store(breaker.now().saturating_add(open).max(1), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: BreakerRules = BreakerRules { threshold: 3, open: Duration::from_secs(30) };

    fn fail(breaker: &Arc<Breaker>, times: u32) {
        for _ in 0..times {
            breaker.admit().unwrap().failed(RULES);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_one_success_starts_the_count_again() {
        let breaker = Arc::new(Breaker::default());
        fail(&breaker, 2);
        breaker.admit().unwrap().succeeded();
        fail(&breaker, 2);
        assert!(breaker.admit().is_some());
        fail(&breaker, 1);
        assert!(breaker.admit().is_none());
        tokio::time::advance(RULES.open.checked_sub(Duration::from_millis(1)).unwrap()).await;
        assert!(breaker.admit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_probes_and_its_outcome_decides() {
        let breaker = Arc::new(Breaker::default());
        fail(&breaker, 3);
        tokio::time::advance(RULES.open).await;
        let probe = breaker.admit().unwrap();
        assert!(breaker.admit().is_none(), "one probe at a time");
        probe.failed(RULES);
        assert!(breaker.admit().is_none());
        tokio::time::advance(RULES.open).await;
        breaker.admit().unwrap().succeeded();
        assert!(breaker.admit().is_some() && breaker.admit().is_some());
        fail(&breaker, 2);
        assert!(breaker.admit().is_some(), "the count starts again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_client_goes_away_leaves_the_next_one_the_chance() {
        let breaker = Arc::new(Breaker::default());
        fail(&breaker, 3);
        tokio::time::advance(RULES.open).await;
        drop(breaker.admit().unwrap());
        assert!(breaker.admit().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_from_before_does_not_close_it() {
        let breaker = Arc::new(Breaker::default());
        let slow = breaker.admit().unwrap();
        fail(&breaker, 3);
        slow.succeeded();
        assert!(breaker.admit().is_none());
    }
}
