//! Bounds the retries of an API: beyond a reserve they add a tenth to its load on an upstream that is down, and no more.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Retries that the calls of one API may still make: each call earns a tenth of one, up to a hundred.
#[derive(Debug)]
pub struct RetryBudget(AtomicI64);

impl RetryBudget {
    const RETRY: i64 = 10;
    const MOST: i64 = 100 * Self::RETRY;

    /// A call is made that may be repeated.
    pub fn earn(&self) {
        if self.0.load(Relaxed) < Self::MOST {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// Takes one retry, if there is one.
    pub fn spend(&self) -> bool {
        let enough = |left: i64| (left >= Self::RETRY).then_some(left - Self::RETRY);
        self.0.fetch_update(Relaxed, Relaxed, enough).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(Self::MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_the_calls_once_the_reserve_is_spent() {
        let budget = RetryBudget::default();
        assert!((0..100).all(|_| budget.spend()));
        assert!(!budget.spend());
        (0..9).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }
}
