//! What the load saw.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::plan::Plan;
use super::schedule::Schedule;

/// How many failures are described in words.
const SAMPLES: usize = 5;
/// Latencies above this count as this.
const LONGEST: Duration = Duration::from_secs(600);
/// Above this share of a core, or below this share of the wanted rate, the load itself may be what was measured.
const BUSY: f64 = 0.85;
const KEPT_UP: f64 = 0.99;

/// Why a request failed. Each failed request has exactly one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// It was written (at least in part) and the connection ended with no byte of an answer.
    Lost,
    /// The answer began and the connection ended before it was complete.
    Truncated,
    /// No complete answer in time.
    Timeout,
    /// What came back is not HTTP, or more than one answer.
    Malformed,
    /// A complete answer with another status than expected.
    Status,
    /// A complete answer of another length than expected.
    Length,
    /// A complete answer without the expected text.
    Body,
    /// It was due, but no connection became free until the end.
    Unsent,
}

/// What the load saw. Times in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests that became due.
    pub requests: u64,
    /// Requests with a complete, correct answer.
    pub succeeded: u64,
    /// All others.
    pub failed: u64,
    /// Requests that were written and whose connection ended without an answer; part of `failed`.
    pub lost: u64,
    /// The failed ones by reason.
    pub failures: BTreeMap<Failure, u64>,
    /// The first few failures in words.
    pub samples: Vec<String>,
    /// Complete answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Bytes of body in complete answers.
    pub body_bytes: u64,
    /// Connections made, those that replace politely closed ones included.
    pub connections_opened: u64,
    /// Connections that the server closed politely: announced, or while nothing was under way.
    pub connections_closed_politely: u64,
    /// Requests a second that were asked for; none in a closed loop.
    pub wanted_rate: Option<f64>,
    /// Requests a second that were sent.
    pub achieved_rate: f64,
    /// From the start to the last answer.
    pub seconds: f64,
    /// From the time a request was due to the last byte of its complete answer, correct or not.
    pub latency_us: Latency,
    /// CPU time of the load itself.
    pub cpu_us_per_request: f64,
    /// The same as a share of one core.
    pub cpu_share: f64,
    /// The load didn't keep its schedule or used most of a core: don't trust the numbers of what it called.
    pub saturated: bool,
}

/// Latency in microseconds; all zero when nothing was answered.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

impl Report {
    /// How many requests failed for this reason.
    pub fn failed_with(&self, reason: Failure) -> u64 {
        self.failures.get(&reason).copied().unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "requests     {} ({} succeeded, {} failed)", self.requests, self.succeeded, self.failed)?;
        for (reason, count) in &self.failures {
            writeln!(out, "  {reason:<10} {count}", reason = format!("{reason:?}").to_lowercase())?;
        }
        for sample in &self.samples {
            writeln!(out, "  e.g. {sample}")?;
        }
        let wanted = self.wanted_rate.map_or("as fast as possible".into(), |rate| format!("wanted {rate}"));
        writeln!(out, "rate         {:.1}/s ({wanted}) for {:.2} s", self.achieved_rate, self.seconds)?;
        let Latency { p50, p90, p99, p999, max, .. } = self.latency_us;
        writeln!(out, "latency us   p50 {p50:.0}  p90 {p90:.0}  p99 {p99:.0}  p99.9 {p999:.0}  max {max:.0}")?;
        writeln!(
            out,
            "connections  {} opened, {} closed politely by the server",
            self.connections_opened, self.connections_closed_politely
        )?;
        writeln!(
            out,
            "load's CPU   {:.1} us a request, {:.0} % of a core",
            self.cpu_us_per_request,
            self.cpu_share * 100.0
        )?;
        if self.saturated {
            writeln!(out, "SATURATED    the load could not keep its schedule or used most of a core")?;
        }
        Ok(())
    }
}

/// Counts while the load runs.
pub(super) struct Tally {
    latency_ns: Histogram<u64>,
    succeeded: u64,
    failures: BTreeMap<Failure, u64>,
    samples: Vec<String>,
    statuses: BTreeMap<u16, u64>,
    body_bytes: u64,
    connections_opened: u64,
    connections_closed_politely: u64,
    last_answer: Option<Instant>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        Self {
            latency_ns: Histogram::new_with_bounds(1_000, longest, 3).expect("bounds in order"),
            succeeded: 0,
            failures: BTreeMap::new(),
            samples: Vec::new(),
            statuses: BTreeMap::new(),
            body_bytes: 0,
            connections_opened: 0,
            connections_closed_politely: 0,
            last_answer: None,
        }
    }

    pub(super) fn opened(&mut self) {
        self.connections_opened += 1;
    }

    pub(super) fn closed_politely(&mut self) {
        self.connections_closed_politely += 1;
    }

    /// A complete answer, correct or not.
    pub(super) fn answered(&mut self, status: u16, body_bytes: u64, due: Instant, now: Instant) {
        self.latency_ns.saturating_record(u64::try_from((now - due).as_nanos()).unwrap_or(u64::MAX));
        *self.statuses.entry(status).or_default() += 1;
        self.body_bytes += body_bytes;
        self.last_answer = Some(now);
    }

    pub(super) fn succeeded(&mut self) {
        self.succeeded += 1;
    }

    pub(super) fn failed(&mut self, reason: Failure, words: impl FnOnce() -> String) {
        *self.failures.entry(reason).or_default() += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push(words());
        }
    }

    pub(super) fn into_report(mut self, plan: &Plan, schedule: &Schedule, cpu: Duration) -> Report {
        let (requests, unsent) = schedule.due_and_unsent();
        if unsent > 0 {
            self.failures.insert(Failure::Unsent, unsent);
        }
        let seconds = self.last_answer.map_or(0.0, |last| (last - schedule.start()).as_secs_f64());
        let achieved_rate = schedule.achieved_rate();
        let cpu_share = if seconds > 0.0 { cpu.as_secs_f64() / seconds } else { 0.0 };
        let is_behind = plan.rate.is_some_and(|rate| achieved_rate < rate * KEPT_UP);
        let micros = |quantile| self.latency_ns.value_at_quantile(quantile) as f64 / 1_000.0;
        let latency_us = if self.latency_ns.is_empty() {
            Latency::default()
        } else {
            Latency {
                p50: micros(0.5),
                p90: micros(0.9),
                p99: micros(0.99),
                p999: micros(0.999),
                max: self.latency_ns.max() as f64 / 1_000.0,
                mean: self.latency_ns.mean() / 1_000.0,
            }
        };
        Report {
            requests,
            succeeded: self.succeeded,
            failed: requests - self.succeeded,
            lost: self.failures.get(&Failure::Lost).copied().unwrap_or(0),
            failures: self.failures,
            samples: self.samples,
            statuses: self.statuses,
            body_bytes: self.body_bytes,
            connections_opened: self.connections_opened,
            connections_closed_politely: self.connections_closed_politely,
            wanted_rate: plan.rate,
            achieved_rate,
            seconds,
            latency_us,
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 / requests.max(1) as f64,
            cpu_share,
            saturated: is_behind || cpu_share > BUSY,
        }
    }
}
