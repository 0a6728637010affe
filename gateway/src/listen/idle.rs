//! Connections on which no call runs.
//!
//! The HTTP library lets a client that connects and sends nothing stay for ever, and an HTTP/2 client between its calls
//! too. So the calls of a connection are counted here, and whoever serves it is told when none has run for too long. A call
//! over HTTP/2 runs until its answer is sent, not only given to the library.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The calls that run on one connection.
#[derive(Debug)]
pub(super) struct Calls(Mutex<Running>);

#[derive(Debug)]
struct Running {
    calls: usize,
    /// When the last call ended, or the connection began.
    idle_since: Instant,
}

impl Calls {
    /// None yet, on a connection that begins now.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Running { calls: 0, idle_since: Instant::now() })))
    }

    /// A call that runs until it is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Call {
        self.lock().calls += 1;
        Call(self.clone())
    }

    /// Returns when no call has run for so long; at the earliest that long from now.
    pub(super) async fn none_for(&self, time: Duration) {
        let mut next = Instant::now() + time;
        loop {
            sleep_until(next).await;
            let now = Instant::now();
            next = self.idle_since().unwrap_or(now) + time;
            if next <= now {
                return;
            }
        }
    }

    fn idle_since(&self) -> Option<Instant> {
        let running = self.lock();
        (running.calls == 0).then_some(running.idle_since)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that runs.
#[derive(Debug)]
pub(super) struct Call(Arc<Calls>);

impl Drop for Call {
    fn drop(&mut self) {
        let mut running = self.0.lock();
        running.calls -= 1;
        running.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_without_calls_begins_when_the_last_one_ends() {
        let (calls, time) = (Calls::new(), Duration::from_secs(100));
        let (short, long) = (calls.begin(), calls.begin());
        drop(short);
        tokio::spawn(async move {
            sleep(Duration::from_secs(250)).await;
            drop(long);
        });
        let start = Instant::now();
        calls.none_for(time).await;
        assert_eq!(start.elapsed().as_secs(), 350);
        calls.none_for(time).await;
        assert_eq!(start.elapsed().as_secs(), 450);
    }
}
