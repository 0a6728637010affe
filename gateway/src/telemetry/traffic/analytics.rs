//! What `/platform/analytics` tells: whose traffic, of what, how fast, without what is synthetic (reference: platform
//! API 27).
//!
//! APIs are named as they are called, `orders/v1`, over all protocols together; endpoints as they are defined. What was
//! counted as `other` is in the sums and in no list.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::count::{ApiNumbers, Detail, EndpointNumbers, OTHER, Share};
use super::history::{DAY, floor};
use super::latencies::Latencies;
use super::shown::{average, millis, part, top};
use super::{Range, Traffic, now};

/// Entries of the overview's lists.
const TOP: usize = 10;

/// The time that a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Up to now.
    Last(Range),
    /// From one second since 1970 to another.
    Between(u64, u64),
}

impl When {
    /// In seconds.
    fn bounds(self, now: u64) -> TimeRange {
        let (start_ts, end_ts) = match self {
            // With this minute, which is not yet over.
            Self::Last(range) => ((now + 1).saturating_sub(range.minutes()) * 60, now * 60 + 59),
            Self::Between(start, end) => (start, end),
        };
        TimeRange { start_ts, end_ts, duration_seconds: end_ts.saturating_sub(start_ts) }
    }
}

/// The time that was asked for, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TimeRange {
    pub start_ts: u64,
    pub end_ts: u64,
    pub duration_seconds: u64,
}

/// How long requests took, in milliseconds, no more than 6.25 % off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "they are percentiles")]
pub struct Percentiles {
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub min: f64,
    pub max: f64,
}

impl From<&Latencies> for Percentiles {
    fn from(latencies: &Latencies) -> Self {
        let [p50, p75, p90, p95, p99] = latencies.percentiles([0.5, 0.75, 0.9, 0.95, 0.99]).map(millis);
        let [min, max] = latencies.range().map(millis);
        Self { p50, p75, p90, p95, p99, min, max }
    }
}

/// An API and how often it was called.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ApiCount {
    /// Name and version.
    pub api: String,
    /// Requests.
    pub count: u64,
}

/// A user and how often the user called.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct UserCount {
    /// The name.
    pub user: String,
    /// Requests.
    pub count: u64,
}

/// How an endpoint was used.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EndpointUse {
    /// Name and version of the API and the path as it is defined: `/orders/v1/items/{id}`.
    pub endpoint_uri: String,
    /// The method.
    pub method: String,
    /// Requests.
    pub count: u64,
    /// Of them, answered with 400 and above.
    pub error_count: u64,
    /// Their part of all, 0 to 1.
    pub error_rate: f64,
    /// Mean time in milliseconds.
    pub avg_ms: f64,
    /// Times.
    pub percentiles: Percentiles,
}

impl EndpointUse {
    /// Of an entry that [`super::Call::endpoint`] names.
    fn new(name: &str, EndpointNumbers { numbers, latencies }: &EndpointNumbers) -> Option<Self> {
        let (method, path) = name.split_once(' ')?;
        let ApiNumbers { count, errors, micros } = *numbers;
        Some(Self {
            endpoint_uri: format!("/{path}"),
            method: method.to_owned(),
            count,
            error_count: errors,
            error_rate: part(errors, count),
            avg_ms: average(micros, count),
            percentiles: latencies.into(),
        })
    }
}

/// What the list of endpoints is sorted by, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// Requests.
    #[default]
    Count,
    /// Mean time.
    AvgMs,
    /// Part of errors.
    ErrorRate,
}

/// The length of a point of the series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// The one that fits: a minute up to an hour, five up to a day, an hour up to a week, then a day.
    #[default]
    Auto,
    /// A minute.
    Minute,
    /// Five minutes.
    #[serde(rename = "5minute")]
    FiveMinutes,
    /// An hour.
    Hour,
    /// A day (UTC).
    Day,
}

impl Granularity {
    fn or_fitting(self, time: &TimeRange) -> Self {
        match (self, time.duration_seconds / 60) {
            (Self::Auto, 0..=60) => Self::Minute,
            (Self::Auto, 61..=DAY) => Self::FiveMinutes,
            (Self::Auto, minutes) if minutes <= 7 * DAY => Self::Hour,
            (Self::Auto, _) => Self::Day,
            (chosen, _) => chosen,
        }
    }

    fn minutes(self) -> u64 {
        match self {
            Self::Auto | Self::Minute => 1,
            Self::FiveMinutes => 5,
            Self::Hour => 60,
            Self::Day => DAY,
        }
    }
}

/// All in short.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Overview {
    time_range: TimeRange,
    summary: Summary,
    percentiles: Percentiles,
    top_apis: Vec<ApiCount>,
    top_users: Vec<UserCount>,
    /// How many answers had which status.
    status_distribution: BTreeMap<String, u64>,
}

/// Sums.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Summary {
    total_requests: u64,
    total_errors: u64,
    error_rate: f64,
    avg_response_ms: f64,
    unique_users: usize,
    /// Bytes, both ways.
    total_bandwidth: u64,
    bandwidth_in: u64,
    bandwidth_out: u64,
}

/// The busiest APIs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopApis {
    time_range: TimeRange,
    top_apis: Vec<ApiCount>,
    total_apis: usize,
}

/// The busiest users.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopUsers {
    time_range: TimeRange,
    top_users: Vec<UserCount>,
    total_users: usize,
}

/// The first endpoints in some order.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopEndpoints {
    time_range: TimeRange,
    sort_by: SortBy,
    top_endpoints: Vec<EndpointUse>,
    total_endpoints: usize,
}

/// One version of an API.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OneApi {
    api_name: String,
    version: String,
    time_range: TimeRange,
    summary: ApiCount,
    /// The busiest first.
    endpoints: Vec<EndpointUse>,
}

/// One user.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OneUser {
    username: String,
    time_range: TimeRange,
    summary: UserCount,
}

/// Points in the order of time.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Timeseries {
    time_range: TimeRange,
    /// The one that was chosen where none was asked for.
    granularity: Granularity,
    series: Vec<Point>,
    data_points: usize,
}

/// One point; of the members beside the time only those of the metric that was asked for.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = AnalyticsPoint)]
struct Point {
    /// When it begins, in seconds since 1970.
    timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percentiles: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_users: Option<usize>,
}

impl Point {
    /// `metric`: the one that was asked for, if any.
    fn new(timestamp: u64, share: &Share, unique_users: usize, metric: Option<&str>) -> Self {
        let numbers = &share.numbers;
        let is_shown = |name: &str| metric.is_none_or(|metric| metric == name);
        Self {
            timestamp,
            count: is_shown("request_count").then_some(numbers.count),
            error_count: is_shown("error_rate").then_some(numbers.errors),
            error_rate: is_shown("error_rate").then(|| part(numbers.errors, numbers.count)),
            avg_ms: is_shown("latency").then(|| average(numbers.micros, numbers.count)),
            percentiles: is_shown("latency").then(|| (&share.latencies).into()),
            bytes_in: is_shown("bandwidth").then_some(numbers.bytes_in),
            bytes_out: is_shown("bandwidth").then_some(numbers.bytes_out),
            unique_users: metric.is_none().then_some(unique_users),
        }
    }
}

/// The traffic of some time, ready for questions.
#[derive(Debug)]
pub struct Analysis {
    time: TimeRange,
    detail: Detail,
}

impl Analysis {
    /// All in short.
    pub fn overview(&self) -> Overview {
        let Share { numbers, statuses, latencies } = &self.detail.calls;
        Overview {
            time_range: self.time,
            summary: Summary {
                total_requests: numbers.count,
                total_errors: numbers.errors,
                error_rate: part(numbers.errors, numbers.count),
                avg_response_ms: average(numbers.micros, numbers.count),
                unique_users: Traffic::users(&self.detail).len(),
                total_bandwidth: numbers.bytes_in + numbers.bytes_out,
                bandwidth_in: numbers.bytes_in,
                bandwidth_out: numbers.bytes_out,
            },
            percentiles: latencies.into(),
            top_apis: self.top_apis(TOP).top_apis,
            top_users: self.top_users(TOP).top_users,
            status_distribution: statuses.iter().map(|(status, count)| (status.to_string(), *count)).collect(),
        }
    }

    /// The busiest APIs.
    pub fn top_apis(&self, limit: usize) -> TopApis {
        let mut apis = self.detail.by_label();
        apis.remove(OTHER);
        let total_apis = apis.len();
        let top_apis = top(apis.into_iter().map(|(label, numbers)| (label, numbers.count)), limit);
        let top_apis = top_apis.into_iter().map(|(api, count)| ApiCount { api, count }).collect();
        TopApis { time_range: self.time, top_apis, total_apis }
    }

    /// The busiest users.
    pub fn top_users(&self, limit: usize) -> TopUsers {
        let top_users = self.detail.top_users(limit);
        let top_users = top_users.into_iter().map(|(user, count)| UserCount { user, count }).collect();
        TopUsers { time_range: self.time, top_users, total_users: Traffic::users(&self.detail).len() }
    }

    /// The first endpoints in this order.
    pub fn top_endpoints(&self, sort_by: SortBy, limit: usize) -> TopEndpoints {
        let mut endpoints = self.endpoints(|_| true, sort_by);
        let total_endpoints = endpoints.len();
        endpoints.truncate(limit);
        TopEndpoints { time_range: self.time, sort_by, top_endpoints: endpoints, total_endpoints }
    }

    fn endpoints(&self, is_wanted: impl Fn(&str) -> bool, sort_by: SortBy) -> Vec<EndpointUse> {
        let wanted = self.detail.endpoints.iter().filter(|(name, _)| is_wanted(name));
        let mut endpoints: Vec<_> = wanted.filter_map(|(name, numbers)| EndpointUse::new(name, numbers)).collect();
        let first = |one: &EndpointUse| match sort_by {
            SortBy::Count => 0.0,
            SortBy::AvgMs => one.avg_ms,
            SortBy::ErrorRate => one.error_rate,
        };
        endpoints.sort_unstable_by(|a, b| {
            let by_count = || b.count.cmp(&a.count);
            let by_name = || (&a.endpoint_uri, &a.method).cmp(&(&b.endpoint_uri, &b.method));
            first(b).total_cmp(&first(a)).then_with(by_count).then_with(by_name)
        });
        endpoints
    }

    /// One version of an API; `None`: it was not called.
    pub fn api(&self, name: &str, version: &str) -> Option<OneApi> {
        let api = format!("{name}/{version}");
        let count = self.detail.by_label().get(&api)?.count;
        let start = format!("{api}/");
        let is_its_own = |endpoint: &str| endpoint.split_once(' ').is_some_and(|(_, path)| path.starts_with(&start));
        Some(OneApi {
            api_name: name.to_owned(),
            version: version.to_owned(),
            time_range: self.time,
            endpoints: self.endpoints(is_its_own, SortBy::Count),
            summary: ApiCount { api, count },
        })
    }

    /// One user; `None`: the user did not call.
    pub fn user(&self, username: &str) -> Option<OneUser> {
        let count = *self.detail.users.get(username).filter(|_| username != OTHER)?;
        let (username, user) = (username.to_owned(), username.to_owned());
        Some(OneUser { username, time_range: self.time, summary: UserCount { user, count } })
    }
}

impl Traffic {
    /// The traffic of some time. Goes through up to ninety days: not for a thread that serves requests.
    pub fn analysis(&self, when: When) -> Analysis {
        self.analysis_at(now(), when)
    }

    pub(super) fn analysis_at(&self, now: u64, when: When) -> Analysis {
        let time = when.bounds(now);
        let detail = self.history(now).sum(time.start_ts / 60, time.end_ts / 60).detail;
        Analysis { time, detail }
    }

    /// Its course. Where the past is kept in longer times than asked for, points are as far apart as those. `metric`:
    /// the one that points are reduced to.
    pub fn timeseries(&self, when: When, granularity: Granularity, metric: Option<&str>) -> Timeseries {
        self.timeseries_at(now(), when, granularity, metric)
    }

    pub(super) fn timeseries_at(
        &self,
        now: u64,
        when: When,
        granularity: Granularity,
        metric: Option<&str>,
    ) -> Timeseries {
        let time_range = when.bounds(now);
        let granularity = granularity.or_fitting(&time_range);
        let history = self.history(now);
        let mut points: BTreeMap<u64, (Share, BTreeSet<&str>)> = BTreeMap::new();
        for (at, detail) in history.times(time_range.start_ts / 60, time_range.end_ts / 60) {
            let (share, users) = points.entry(floor(at, granularity.minutes())).or_default();
            share.add(&detail.calls);
            users.extend(Self::users(detail));
        }
        let points = points.iter().filter(|(_, (share, _))| share.numbers.count > 0);
        let series: Vec<Point> =
            points.map(|(at, (share, users))| Point::new(at * 60, share, users.len(), metric)).collect();
        Timeseries { time_range, granularity, data_points: series.len(), series }
    }
}
