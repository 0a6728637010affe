//! One connection with at most one request under way.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::plan::{Plan, Target};
use super::report::{Failure, Tally};
use super::response::{Answer, Progress, Reader};
use super::schedule::{Schedule, Ticket};

const BUFFER: usize = 64 << 10;
/// A closed loop against a closed port would spin.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

/// Sends one request after the other, on connections of its own: one for each server that the URLs name.
pub(super) struct Worker {
    plan: Rc<Plan>,
    tally: Rc<RefCell<Tally>>,
    streams: Vec<Option<TcpStream>>,
    reader: Reader,
    buffer: Vec<u8>,
}

/// Why a request has no complete answer.
struct Unanswered(Failure, String);

impl Worker {
    pub(super) fn new(plan: Rc<Plan>, tally: Rc<RefCell<Tally>>) -> Self {
        let streams = plan.origins.iter().map(|_| None).collect();
        let reader = Reader::new(&plan.expect);
        Self { plan, tally, streams, reader, buffer: vec![0; BUFFER] }
    }

    /// Connects to the server that the worker is likely to call first. A failure is left for the first request to meet.
    pub(super) async fn connect_ahead(&mut self, number: usize) {
        let origin = self.plan.target(number as u64).origin;
        let connecting = TcpStream::connect(&self.plan.origins[origin]);
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(1), connecting).await {
            let _ = stream.set_nodelay(true);
            self.tally.borrow_mut().opened();
            self.streams[origin] = Some(stream);
        }
    }

    pub(super) async fn run(mut self, schedule: Rc<Schedule>) {
        let plan = Rc::clone(&self.plan);
        let mut patience = Patience::new(plan.timeout);
        while let Some(ticket) = schedule.next().await {
            let target = plan.target(ticket.number);
            let outcome = tokio::select! {
                biased;
                outcome = self.exchange(target) => outcome,
                () = patience.last(plan.timeout) => {
                    Err(Unanswered(Failure::Timeout, format!("no complete answer in {:?}", plan.timeout)))
                }
            };
            match outcome {
                Ok(answer) => self.judge(target, ticket, &answer),
                Err(Unanswered(reason, words)) => {
                    // Whatever else may still arrive there belongs to this request, not to the next one.
                    self.streams[target.origin] = None;
                    self.tally.borrow_mut().failed(reason, || format!("{}: {words}", target.url));
                    if reason == Failure::Connect && plan.rate.is_none() {
                        tokio::time::sleep(AFTER_REFUSAL).await;
                    }
                }
            }
        }
    }

    async fn exchange(&mut self, target: &Target) -> Result<Answer, Unanswered> {
        let mut stream = self.connected(target.origin).await?;
        self.reader.begin(target.is_head);
        if let Err(error) = stream.write_all(&target.bytes).await {
            // The server may have answered before it closed, for instance that the body is too large.
            return self.read(&mut stream).await.map_err(|_| Unanswered(Failure::Lost, error.to_string()));
        }
        let answer = self.read(&mut stream).await?;
        if answer.closes {
            self.tally.borrow_mut().closed_politely();
        } else {
            self.streams[target.origin] = Some(stream);
        }
        Ok(answer)
    }

    /// The kept connection, unless the server closed it while nothing was under way; else a new one.
    ///
    /// It is taken out of its place: a request that is cut off leaves none behind.
    async fn connected(&mut self, origin: usize) -> Result<TcpStream, Unanswered> {
        if let Some(stream) = self.streams[origin].take() {
            if is_idle(&stream) {
                return Ok(stream);
            }
            self.tally.borrow_mut().closed_politely();
        }
        let address = &self.plan.origins[origin];
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| Unanswered(Failure::Connect, format!("cannot connect to {address}: {error}")))?;
        let _ = stream.set_nodelay(true);
        self.tally.borrow_mut().opened();
        Ok(stream)
    }

    async fn read(&mut self, stream: &mut TcpStream) -> Result<Answer, Unanswered> {
        loop {
            let count = match stream.read(&mut self.buffer).await {
                Ok(0) => return self.reader.end().ok_or_else(|| self.cut_off("the connection was closed")),
                Ok(count) => count,
                Err(error) => return Err(self.cut_off(&error.to_string())),
            };
            match self.reader.push(&self.buffer[..count]) {
                Ok(Progress::Partial) => {}
                Ok(Progress::Complete(answer)) => return Ok(answer),
                Err(error) => return Err(Unanswered(Failure::Malformed, error.to_string())),
            }
        }
    }

    fn cut_off(&self, how: &str) -> Unanswered {
        if self.reader.has_begun() {
            Unanswered(Failure::Truncated, format!("{how} within the answer"))
        } else {
            Unanswered(Failure::Lost, format!("{how} without an answer"))
        }
    }

    fn judge(&mut self, target: &Target, ticket: Ticket, answer: &Answer) {
        let expect = &self.plan.expect;
        let mut tally = self.tally.borrow_mut();
        tally.answered(answer.status, answer.length, ticket.due, Instant::now());
        let body = self.reader.kept();
        let contains = |text: &String| memchr::memmem::find(body, text.as_bytes()).is_some();
        if !expect.statuses.is_empty() && !expect.statuses.contains(&answer.status) {
            let body = String::from_utf8_lossy(&body[..body.len().min(200)]);
            tally.failed(Failure::Status, || {
                format!("{}: status {} where {:?} was expected: {body}", target.url, answer.status, expect.statuses)
            });
        } else if let Some(length) = expect.length.filter(|length| *length != answer.length) {
            tally.failed(Failure::Length, || {
                format!("{}: {} bytes where {length} were expected", target.url, answer.length)
            });
        } else if let Some(text) = expect.body_contains.as_ref().filter(|text| !contains(text)) {
            tally.failed(Failure::Body, || format!("{}: no {text:?} in the body", target.url));
        } else {
            tally.succeeded();
        }
    }
}

/// The time that a request may take, without a timer for each: that would cost a system call every time.
struct Patience {
    /// Fires no later than the request's own time, and is moved on when that turns out to be too early.
    sleep: Pin<Box<Sleep>>,
}

impl Patience {
    fn new(timeout: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(timeout)) }
    }

    /// Resolves after `timeout`.
    async fn last(&mut self, timeout: Duration) {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            self.sleep.as_mut().await;
            if tokio::time::Instant::now() >= deadline {
                return;
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

/// Whether the connection is open with nothing to read. Costs no system call unless something arrived.
fn is_idle(stream: &TcpStream) -> bool {
    let read: io::Result<usize> = stream.try_read(&mut [0]);
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}
