//! An open-loop load over HTTP/1.1: requests are due at fixed times, whether or not earlier ones were answered, and
//! latency counts from the time a request was *due*. A server that stalls can't hide it by slowing the load down.
//!
//! ```text
//! Plan ── start() ──> Running ── stop() / report() ──> Report
//!                        │
//!       schedule: request n is due at start + n / rate
//!                        │ the next free connection takes the next request
//!       connection x N: connect, write, read the answer, compare it with what is expected
//! ```
//!
//! What always holds: every request that became due is in the report, once, as succeeded or as failed for one reason.
//! A connection that the server closes politely (it announced `Connection: close`, or closed while nothing was under
//! way) is replaced without counting as a failure; a request that was written and got no answer is `lost`.
//!
//! The load runs on one thread of its own, so that neither a test's runtime nor its blocking disturbs the schedule.

mod connection;
mod plan;
mod report;
mod response;
mod schedule;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::LocalOptions;
use tokio::sync::oneshot;

use connection::Worker;
pub use plan::{Expectation, Plan, PlanError, Target, header};
use report::Tally;
pub use report::{Failure, Latency, Report};
use schedule::Schedule;

/// A load under way. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    report: oneshot::Receiver<Report>,
}

impl Running {
    /// Makes no further request due. Those that are due already are still sent and counted.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until the load is over and says how it went. Doesn't end it: that takes [`Running::stop`] or the plan.
    pub async fn report(&mut self) -> Report {
        (&mut self.report).await.expect("the load's thread ends with a report")
    }

    /// [`Running::stop`], then [`Running::report`].
    pub async fn finish(mut self) -> Report {
        self.stop();
        self.report().await
    }
}

/// Starts the load on a thread of its own.
pub fn start(plan: Plan) -> std::io::Result<Running> {
    let (stop, stopped) = oneshot::channel();
    let (send_report, report) = oneshot::channel();
    std::thread::Builder::new().name("load".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let report = runtime.expect("a runtime").block_on(run(plan, stopped));
        // Nobody waits any more when the load was dropped.
        let _ = send_report.send(report);
    })?;
    Ok(Running { stop: Some(stop), report })
}

async fn run(plan: Plan, stopped: oneshot::Receiver<()>) -> Report {
    let plan = Rc::new(plan);
    let tally = Rc::new(RefCell::new(Tally::new()));

    // Connections are made before the clock starts: what the first requests measure is the server, not the handshakes.
    let mut workers = Vec::with_capacity(plan.connections);
    for number in 0..plan.connections {
        let mut worker = Worker::new(Rc::clone(&plan), Rc::clone(&tally));
        worker.connect_ahead(number).await;
        workers.push(worker);
    }

    let cpu_before = thread_cpu_time();
    let schedule = Rc::new(Schedule::new(&plan, Instant::now()));
    let tasks: Vec<_> =
        workers.into_iter().map(|worker| tokio::task::spawn_local(worker.run(Rc::clone(&schedule)))).collect();
    // A task of its own: tokio wakes the future that it blocks on by a system call, a task without one.
    let releasing = Rc::clone(&schedule);
    let released = tokio::task::spawn_local(async move { releasing.release(stopped).await });
    released.await.expect("the schedule is released");

    // Due requests still wait for a free connection. A server that hangs would keep them waiting for ever.
    let mut tasks = futures::future::join_all(tasks);
    if tokio::time::timeout(plan.timeout, &mut tasks).await.is_err() {
        schedule.abandon();
        tasks.await;
    }
    let cpu = thread_cpu_time().saturating_sub(cpu_before);
    let tally = Rc::into_inner(tally).expect("the workers are gone").into_inner();
    tally.into_report(&plan, &schedule, cpu)
}

/// CPU time of this thread, user and system.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
