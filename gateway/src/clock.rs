//! The time of day, which tests can move.

use std::time::Duration;

use jiff::Timestamp;

/// This moment.
pub(crate) fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(moved) = moved::now() {
        return moved;
    }
    Timestamp::now()
}

/// The first second since the epoch that begins when so much time has passed, or after that.
pub(crate) fn second_in(time: Duration) -> u64 {
    let now = Duration::try_from(now().as_duration()).unwrap_or_default();
    let then = now.saturating_add(time);
    then.as_secs().saturating_add(u64::from(then.subsec_nanos() > 0))
}

/// Lets the time of day of this thread go with Tokio's, which tests can pause.
#[cfg(test)]
pub(crate) mod moved {
    use std::cell::Cell;

    use jiff::{SignedDuration, Timestamp};
    use tokio::time::Instant;

    thread_local! {
        /// A moment of Tokio's clock, and the time of day then.
        static SET: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
    }

    pub(super) fn now() -> Option<Timestamp> {
        let (at, was) = SET.get()?;
        SignedDuration::try_from(at.elapsed()).ok().and_then(|since| was.checked_add(since).ok())
    }

    /// From now on it is this time of day.
    pub(crate) fn set(now: Timestamp) {
        SET.set(Some((Instant::now(), now)));
    }
}
