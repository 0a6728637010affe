//! What people see of the traffic: the monitor's numbers, the report and the dashboard.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::Serialize;
use utoipa::ToSchema;

use super::count::{ApiNumbers, Detail, Numbers, OTHER, Protocol};
use super::history::{self, DAY};
use super::{Traffic, now};
use crate::telemetry::csv_row;

/// Entries of the monitor's lists.
const TOP: usize = 10;

/// The time up to now that a question is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Range {
    /// `1h`.
    Hour,
    /// `24h`, and anything that is none of the others.
    #[default]
    Day,
    /// `7d`.
    Week,
    /// `30d`.
    Month,
}

impl Range {
    /// Reads a query's value.
    pub fn parse(text: &str) -> Self {
        match text {
            "1h" => Self::Hour,
            "7d" => Self::Week,
            "30d" => Self::Month,
            _ => Self::Day,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    pub(super) fn minutes(self) -> u64 {
        match self {
            Self::Hour => 60,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Month => history::KEPT,
        }
    }
}

/// What a point of the series is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grouping {
    /// A minute.
    #[default]
    Minute,
    /// A day (UTC).
    Day,
}

/// The order of the series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sorting {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

/// The object of `/platform/monitor/metrics`: the members of the operations guide and those of the reference.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the guide's and the reference's")]
pub struct Monitor {
    pub period: &'static str,
    pub total_requests: u64,
    pub total_errors: u64,
    pub error_rate: f64,
    pub avg_response_time_ms: f64,
    pub p50_response_time_ms: f64,
    pub p95_response_time_ms: f64,
    pub p99_response_time_ms: f64,
    pub apis: BTreeMap<String, ApiUse>,
    pub total_test_requests: u64,
    pub avg_response_ms: f64,
    pub total_bytes_in: u64,
    pub total_bytes_out: u64,
    pub total_upstream_timeouts: u64,
    pub total_retries: u64,
    pub unique_users: usize,
    pub status_counts: BTreeMap<String, u64>,
    pub series: Vec<Point>,
    pub top_users: Vec<(String, u64)>,
    pub top_apis: Vec<(String, u64)>,
}

/// How one version of an API was used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the guide's")]
pub struct ApiUse {
    pub requests: u64,
    pub errors: u64,
    pub avg_response_time_ms: f64,
}

/// A minute or a day.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = TrafficPoint)]
pub struct Point {
    timestamp: u64,
    count: u64,
    error_count: u64,
    avg_ms: f64,
    bytes_in: u64,
    bytes_out: u64,
    error_rate: f64,
    #[serde(flatten)]
    of_minute: Option<OfMinute>,
}

/// What only minutes have.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct OfMinute {
    test_count: u64,
    p95_ms: f64,
    upstream_timeouts: u64,
    retries: u64,
}

/// The object of `/platform/dashboard`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are the reference's")]
pub struct Dashboard {
    pub total_requests: u64,
    pub active_users: usize,
    pub new_apis: usize,
    pub monthly_usage: BTreeMap<String, u64>,
    pub active_users_list: Vec<ActiveUser>,
    pub popular_apis: Vec<Popular>,
}

/// A user of the dashboard.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ActiveUser {
    /// The name.
    pub username: String,
    /// With separators of thousands.
    pub requests: String,
    /// APIs the user has subscribed to.
    pub subscribers: usize,
}

/// An API of the dashboard.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Popular {
    /// Such as `rest:orders`.
    pub name: String,
    /// With separators of thousands.
    pub requests: String,
    /// Users who have subscribed to it.
    pub subscribers: usize,
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

pub(super) fn millis(micros: u64) -> f64 {
    rounded(micros as f64 / 1_000.0)
}

pub(super) fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { some as f64 / all as f64 }
}

pub(super) fn average(micros: u64, count: u64) -> f64 {
    rounded(part(micros, count) / 1_000.0)
}

fn percent(some: u64, all: u64) -> String {
    format!("{:.2}%", part(some, all) * 100.0)
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The most frequent first; of two equally frequent, by name.
pub(super) fn top(entries: impl IntoIterator<Item = (String, u64)>, most: usize) -> Vec<(String, u64)> {
    let mut all: Vec<_> = entries.into_iter().collect();
    all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(most);
    all
}

impl Detail {
    /// By the keys of the reference: `rest:orders`, all versions together; `rest:unknown` where no API was found.
    fn by_key(&self) -> BTreeMap<String, ApiNumbers> {
        let mut keys: BTreeMap<String, ApiNumbers> = BTreeMap::new();
        for protocol in Protocol::ALL {
            for (label, numbers) in &self.apis[protocol as usize] {
                let name = label.split('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown");
                keys.entry(format!("{}:{name}", protocol.as_str())).or_default().add(numbers);
            }
        }
        keys
    }

    /// By name and version, all protocols together.
    pub(super) fn by_label(&self) -> BTreeMap<String, ApiNumbers> {
        let mut labels: BTreeMap<String, ApiNumbers> = BTreeMap::new();
        for (label, numbers) in self.apis.iter().flatten().filter(|(label, _)| !label.is_empty()) {
            labels.entry(label.to_string()).or_default().add(numbers);
        }
        labels
    }

    pub(super) fn top_users(&self, most: usize) -> Vec<(String, u64)> {
        let named = self.users.iter().filter(|(name, _)| &***name != OTHER);
        top(named.map(|(name, count)| (name.to_string(), *count)), most)
    }
}

impl Traffic {
    /// The numbers of the monitor. Goes through up to thirty days: not for a thread that serves requests.
    pub fn monitor(&self, range: Range, grouping: Grouping, sorting: Sorting) -> Monitor {
        self.monitor_at(now(), range, grouping, sorting)
    }

    pub(super) fn monitor_at(&self, now: u64, range: Range, grouping: Grouping, sorting: Sorting) -> Monitor {
        let history = self.history(now);
        // This minute, not yet over, and the ones before it.
        let sum = history.sum(now.saturating_sub(range.minutes() - 1), now);
        let minutes = history.series.range(sum.from..=now);
        let point = |timestamp: u64, numbers: &Numbers, of_minute| Point {
            timestamp,
            count: numbers.count,
            error_count: numbers.errors,
            avg_ms: average(numbers.micros, numbers.count),
            bytes_in: numbers.bytes_in,
            bytes_out: numbers.bytes_out,
            error_rate: part(numbers.errors, numbers.count),
            of_minute,
        };
        let mut series: Vec<Point> = match grouping {
            Grouping::Minute => minutes
                .map(|(minute, numbers)| {
                    let more = OfMinute {
                        test_count: numbers.tests,
                        p95_ms: millis(history.p95(*minute)),
                        upstream_timeouts: numbers.timeouts,
                        retries: numbers.retries,
                    };
                    point(minute * 60, numbers, Some(more))
                })
                .collect(),
            Grouping::Day => {
                let mut days: BTreeMap<u64, Numbers> = BTreeMap::new();
                minutes.for_each(|(minute, numbers)| days.entry(minute / DAY).or_default().add(numbers));
                days.iter().map(|(day, numbers)| point(day * DAY * 60, numbers, None)).collect()
            }
        };
        if sorting == Sorting::Descending {
            series.reverse();
        }
        let (all, detail) = (sum.detail.all(), &sum.detail);
        let numbers = &all.numbers;
        let avg = average(numbers.micros, numbers.count);
        let [p50, p95, p99] = all.latencies.percentiles([0.5, 0.95, 0.99]).map(millis);
        let api_use = |(label, api): (String, ApiNumbers)| {
            let avg_response_time_ms = average(api.micros, api.count);
            (label, ApiUse { requests: api.count, errors: api.errors, avg_response_time_ms })
        };
        Monitor {
            period: range.as_str(),
            total_requests: numbers.count,
            total_errors: numbers.errors,
            error_rate: part(numbers.errors, numbers.count),
            avg_response_time_ms: avg,
            p50_response_time_ms: p50,
            p95_response_time_ms: p95,
            p99_response_time_ms: p99,
            apis: detail.by_label().into_iter().map(api_use).collect(),
            total_test_requests: numbers.tests,
            avg_response_ms: avg,
            total_bytes_in: numbers.bytes_in,
            total_bytes_out: numbers.bytes_out,
            total_upstream_timeouts: numbers.timeouts,
            total_retries: numbers.retries,
            unique_users: Self::users(detail).len(),
            status_counts: all.statuses.iter().map(|(status, count)| (status.to_string(), *count)).collect(),
            series,
            top_users: detail.top_users(TOP),
            top_apis: top(detail.by_key().into_iter().map(|(key, api)| (key, api.count)), TOP),
        }
    }

    /// The dashboard of the last thirty days, without synthetic traffic and with nobody's subscriptions counted yet.
    pub fn dashboard(&self, new_apis: usize) -> Dashboard {
        self.dashboard_at(now(), new_apis)
    }

    pub(super) fn dashboard_at(&self, now: u64, new_apis: usize) -> Dashboard {
        let history = self.history(now);
        let sum = history.sum(now.saturating_sub(history::KEPT - 1), now);
        let mut monthly_usage = BTreeMap::new();
        for (minute, numbers) in &history.series {
            *monthly_usage.entry(at(*minute).strftime("%b").to_string()).or_default() += numbers.count - numbers.tests;
        }
        monthly_usage.retain(|_, count| *count > 0);
        let popular = top(sum.detail.by_key().into_iter().map(|(key, api)| (key, api.count)), 10);
        Dashboard {
            total_requests: sum.detail.calls.numbers.count,
            active_users: Self::users(&sum.detail).len(),
            new_apis,
            monthly_usage,
            active_users_list: (sum.detail.top_users(5).into_iter())
                .map(|(username, count)| ActiveUser { username, requests: thousands(count), subscribers: 0 })
                .collect(),
            popular_apis: (popular.into_iter())
                .map(|(name, count)| Popular { name, requests: thousands(count), subscribers: 0 })
                .collect(),
        }
    }

    /// The report from one time to another, as CSV. Both as the client wrote them: `YYYY-MM-DD` (all of the day) or
    /// `YYYY-MM-DDTHH:MM`.
    ///
    /// # Errors
    /// What is wrong with the times, for the client.
    pub fn report(&self, start: &str, end: &str) -> Result<String, &'static str> {
        self.report_at(now(), start, end)
    }

    pub(super) fn report_at(&self, now: u64, start: &str, end: &str) -> Result<String, &'static str> {
        let unread = "Invalid date format. Use YYYY-MM-DD or YYYY-MM-DDTHH:MM";
        let (from, until) = (minute(start, false).ok_or(unread)?, minute(end, true).ok_or(unread)?);
        if until < from {
            return Err("End date must be after start date");
        }
        let history = self.history(now);
        let sum = history.sum(from, until);
        let (all, detail) = (sum.detail.all(), &sum.detail);
        let (all, statuses) = (&all.numbers, &all.statuses);
        let mut text = csv_row(["Report", "From", start, "To", end]);
        let mut row = |cells: &[&str]| text.push_str(&csv_row(cells.iter().copied()));
        let pairs = |row: &mut dyn FnMut(&[&str]), pairs: &[(&str, String)]| {
            for (name, value) in pairs {
                row(&[name, value]);
            }
            row(&[]);
        };
        row(&[]);
        row(&["Overview"]);
        pairs(
            &mut row,
            &[
                ("total_requests", all.count.to_string()),
                ("total_errors", all.errors.to_string()),
                ("successes", (all.count - all.errors).to_string()),
                ("success_rate", percent(all.count - all.errors, all.count)),
                ("avg_response_ms", format!("{:.2}", average(all.micros, all.count))),
            ],
        );
        row(&["Bandwidth Overview"]);
        pairs(
            &mut row,
            &[
                ("total_bytes_in", all.bytes_in.to_string()),
                ("total_bytes_out", all.bytes_out.to_string()),
                ("total_bytes", (all.bytes_in + all.bytes_out).to_string()),
            ],
        );
        row(&["Status Codes"]);
        row(&["status", "count"]);
        for (status, count) in statuses {
            row(&[&status.to_string(), &count.to_string()]);
        }
        row(&[]);
        row(&["API Usage"]);
        row(&["api", "total", "errors", "successes", "success_rate"]);
        for (label, api) in detail.by_label() {
            let successes = api.count - api.errors;
            let cells = [api.count, api.errors, successes].map(|number| number.to_string());
            row(&[&label, &cells[0], &cells[1], &cells[2], &percent(successes, api.count)]);
        }
        row(&[]);
        row(&["User Usage"]);
        row(&["username", "requests"]);
        for (user, count) in detail.top_users(usize::MAX) {
            row(&[&user, &count.to_string()]);
        }
        row(&[]);
        row(&["Bandwidth (per day, UTC)"]);
        row(&["date", "bytes_in", "bytes_out", "total"]);
        let mut days: BTreeMap<u64, Numbers> = BTreeMap::new();
        for (at, detail) in history.times(from, until) {
            days.entry(at / DAY).or_default().add(&detail.all().numbers);
        }
        for (day, numbers) in days {
            let mut date = String::new();
            let _ = write!(date, "{}", at(day * DAY).strftime("%Y-%m-%d"));
            let cells = [numbers.bytes_in, numbers.bytes_out, numbers.bytes_in + numbers.bytes_out];
            let cells = cells.map(|number| number.to_string());
            row(&[&date, &cells[0], &cells[1], &cells[2]]);
        }
        Ok(text)
    }
}

fn at(minute: u64) -> Zoned {
    Timestamp::from_second((minute * 60).cast_signed()).unwrap_or_default().to_zoned(TimeZone::UTC)
}

/// The minute a client wrote; a day alone is its first or its last one.
fn minute(text: &str, is_last: bool) -> Option<u64> {
    let seconds = |time: DateTime| TimeZone::UTC.to_timestamp(time).ok().map(Timestamp::as_second);
    let seconds = if let Ok(day) = Date::strptime("%Y-%m-%d", text) {
        seconds(day.at(0, 0, 0, 0))? + if is_last { 86_399 } else { 0 }
    } else {
        seconds(DateTime::strptime("%Y-%m-%dT%H:%M", text).ok()?)?
    };
    u64::try_from(seconds).ok().map(|seconds| seconds / 60)
}
