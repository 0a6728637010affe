//! When each request is due, and who sends it.
//!
//! The schedule releases one permit for each request that became due; a connection takes a permit, then the next
//! number. Waiting connections are served in turn, so that all of them stay in use. Nothing here depends on answers:
//! that is what makes the load open-loop.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::plan::Plan;

/// A request to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) number: u64,
    pub(super) due: Instant,
}

pub(super) struct Schedule {
    start: Instant,
    rate: Option<f64>,
    /// No request with this number or above becomes due.
    limit: u64,
    end: Option<Instant>,
    permits: Semaphore,
    /// Requests that became due.
    released: Cell<u64>,
    /// Requests that a connection took.
    taken: Cell<u64>,
    last_taken: Cell<Instant>,
    is_over: Cell<bool>,
    /// A closed loop came to its end.
    ended: Notify,
}

impl Schedule {
    pub(super) fn new(plan: &Plan, start: Instant) -> Self {
        let by_time = match (plan.rate, plan.duration) {
            (Some(rate), Some(duration)) => count(rate * duration.as_secs_f64()).max(1),
            _ => u64::MAX,
        };
        Self {
            start,
            rate: plan.rate,
            limit: plan.requests.unwrap_or(u64::MAX).min(by_time),
            end: plan.duration.map(|duration| start + duration),
            permits: Semaphore::new(0),
            released: Cell::new(0),
            taken: Cell::new(0),
            last_taken: Cell::new(start),
            is_over: Cell::new(false),
            ended: Notify::new(),
        }
    }

    /// The next request, as soon as it is due; `None` when there are no more.
    pub(super) async fn next(&self) -> Option<Ticket> {
        if self.rate.is_none() {
            return self.next_at_once();
        }
        self.permits.acquire().await.ok()?.forget();
        let number = self.taken.get();
        self.taken.set(number + 1);
        self.last_taken.set(Instant::now());
        self.close_when_empty();
        Some(Ticket { number, due: self.due(number) })
    }

    fn next_at_once(&self) -> Option<Ticket> {
        let now = Instant::now();
        let number = self.taken.get();
        if self.is_over.get() || number >= self.limit || self.end.is_some_and(|end| now >= end) {
            self.ended.notify_one();
            return None;
        }
        self.taken.set(number + 1);
        self.released.set(number + 1);
        self.last_taken.set(now);
        Some(Ticket { number, due: now })
    }

    /// Releases requests as they become due, until the plan's end or until `stopped` resolves.
    pub(super) async fn release(&self, stopped: oneshot::Receiver<()>) {
        let releasing = async {
            match self.rate {
                Some(rate) => self.release_at(rate).await,
                None => self.ended.notified().await,
            }
        };
        tokio::select! {
            () = releasing => {}
            // Connections that hang don't see the end themselves.
            () = self.past_the_end() => {}
            _ = stopped => {}
        }
        self.is_over.set(true);
        self.close_when_empty();
    }

    async fn past_the_end(&self) {
        match self.end {
            Some(end) if self.rate.is_none() => tokio::time::sleep_until(end.into()).await,
            _ => std::future::pending().await,
        }
    }

    async fn release_at(&self, rate: f64) {
        let mut alarm = Alarm::new().expect("the kernel has timers");
        while self.released.get() < self.limit {
            let now = Instant::now();
            let due = (count((now - self.start).as_secs_f64() * rate) + 1).min(self.limit);
            let new = due.saturating_sub(self.released.get());
            if new > 0 {
                self.released.set(due);
                self.permits.add_permits(usize::try_from(new).unwrap_or(Semaphore::MAX_PERMITS));
            }
            alarm.wait(self.due(due).saturating_duration_since(now)).await.expect("a timer can be set");
        }
    }

    /// Leaves what is due but not taken unsent.
    pub(super) fn abandon(&self) {
        self.is_over.set(true);
        self.permits.close();
    }

    fn close_when_empty(&self) {
        if self.is_over.get() && self.taken.get() == self.released.get() {
            self.permits.close();
        }
    }

    fn due(&self, number: u64) -> Instant {
        self.rate.map_or(self.start, |rate| self.start + Duration::from_secs_f64(number as f64 / rate))
    }

    /// Requests that became due, and those of them that no connection was free for.
    pub(super) fn due_and_unsent(&self) -> (u64, u64) {
        (self.released.get(), self.released.get() - self.taken.get())
    }

    /// Requests a second that were taken, up to the last one.
    pub(super) fn achieved_rate(&self) -> f64 {
        let interval = self.rate.map_or(0.0, |rate| 1.0 / rate);
        let seconds = (self.last_taken.get() - self.start).as_secs_f64() + interval;
        if seconds > 0.0 { self.taken.get() as f64 / seconds } else { 0.0 }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }
}

#[expect(clippy::cast_sign_loss, reason = "rates and durations are not negative")]
fn count(requests: f64) -> u64 {
    // A rate times a time is a hair below the whole number as often as above it.
    (requests + 1e-6) as u64
}

/// A timer with the kernel's precision: tokio's own counts whole milliseconds, which at 4,000 requests a second would
/// turn the schedule into bursts of four and be most of the latency measured.
struct Alarm {
    /// A timer is read like a pipe, and tokio's pipe is the one safe way to wait for a descriptor of another kind.
    timer: pipe::Receiver,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { timer: pipe::Receiver::from_owned_fd_unchecked(timer)? })
    }

    async fn wait(&mut self, time: Duration) -> io::Result<()> {
        // A zero would switch the timer off.
        let time = time.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(time.subsec_nanos()),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        // Room for more than the eight bytes there are: a short read tells tokio that nothing is left.
        self.timer.read(&mut [0; 16]).await.map(|_| ())
    }
}
