//! The log viewer: records of files and memory, filtered, counted and exported (reference: platform API 23).
//!
//! In: a [`Query`]. Out: a [`Page`], [`Statistics`] or an [`Export`]. What always holds: a record counts once, though
//! memory and a file both have it; the newest comes first; memory is bounded however large the files are; and files
//! are read on threads that serve no requests, two questions at a time.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil::DateTime};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::{IntoParams, ToSchema};

use super::logs::Logs;

mod line;
mod newest;

pub use line::Entry;
use newest::Newest;

/// Records of one export.
const MOST_EXPORTED: usize = 10_000;
/// Names that statistics tell apart; further ones are not counted by name.
const MOST_NAMES: usize = 10_000;
/// Names in a list of the most frequent.
const TOP: usize = 10;

static READERS: Semaphore = Semaphore::const_new(2);

/// What records are asked for. Texts are parts of the fields they are compared with, in either case; a record without
/// the field doesn't match.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct Query {
    /// First day (`YYYY-MM-DD`).
    pub start_date: Option<String>,
    /// Last day, all of it unless a time is given.
    pub end_date: Option<String>,
    /// First minute (`HH:MM`); without a day, of every day.
    pub start_time: Option<String>,
    /// Last minute.
    pub end_time: Option<String>,
    /// Who called.
    pub user: Option<String>,
    /// The API.
    pub api: Option<String>,
    /// The path.
    pub endpoint: Option<String>,
    /// The request.
    pub request_id: Option<String>,
    /// The method.
    pub method: Option<String>,
    /// The caller's address.
    pub ip_address: Option<String>,
    /// The level.
    pub level: Option<String>,
    /// The type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// A type to leave out; `platform` leaves out all calls of the platform API.
    pub exclude_type: Option<String>,
    /// Milliseconds.
    pub min_response_time: Option<String>,
    /// Milliseconds.
    pub max_response_time: Option<String>,
}

/// A [`Query`], read.
#[derive(Debug, Default)]
struct Filter {
    /// Something of it can't be read: nothing matches.
    is_impossible: bool,
    from: Option<i64>,
    until: Option<i64>,
    daily_from: Option<Time>,
    daily_until: Option<Time>,
    texts: [Option<String>; 8],
    exclude: Option<String>,
    fastest: Option<f64>,
    slowest: Option<f64>,
}

impl Filter {
    fn new(query: &Query) -> Self {
        let mut filter = Self::default();
        let is_given = |text: &&String| !text.trim().is_empty();
        let mut impossible = false;
        let mut read = |text: &Option<String>, what: fn(&str) -> Option<Moment>| {
            let text = text.as_ref().filter(is_given)?;
            let read = what(text.trim());
            impossible |= read.is_none();
            read
        };
        let date: fn(&str) -> Option<Moment> = |text| Date::strptime("%Y-%m-%d", text).ok().map(Moment::Day);
        let time: fn(&str) -> Option<Moment> = |text| {
            let time = Time::strptime("%H:%M", text).or_else(|_| Time::strptime("%H:%M:%S", text));
            time.ok().map(Moment::Time)
        };
        let number: fn(&str) -> Option<Moment> = |text| text.parse().ok().map(Moment::Number);
        let (start_date, end_date) = (read(&query.start_date, date), read(&query.end_date, date));
        let (start_time, end_time) = (read(&query.start_time, time), read(&query.end_time, time));
        let (fastest, slowest) = (read(&query.min_response_time, number), read(&query.max_response_time, number));
        let last_of_minute = |time: Time| Time::new(time.hour(), time.minute(), 59, 999_000_000).unwrap_or(time);
        match (start_date, start_time) {
            (Some(Moment::Day(day)), Some(Moment::Time(time))) => filter.from = millis(day.to_datetime(time)),
            (Some(Moment::Day(day)), _) => filter.from = millis(day.to_datetime(Time::midnight())),
            (_, Some(Moment::Time(time))) => filter.daily_from = Some(time),
            _ => {}
        }
        match (end_date, end_time) {
            (Some(Moment::Day(day)), Some(Moment::Time(time))) => {
                filter.until = millis(day.to_datetime(last_of_minute(time)));
            }
            (Some(Moment::Day(day)), _) => {
                filter.until = millis(day.to_datetime(Time::midnight())).map(|start| start + 86_400_000 - 1);
            }
            (_, Some(Moment::Time(time))) => filter.daily_until = Some(last_of_minute(time)),
            _ => {}
        }
        if let Some(Moment::Number(number)) = fastest {
            filter.fastest = Some(number);
        }
        if let Some(Moment::Number(number)) = slowest {
            filter.slowest = Some(number);
        }
        filter.is_impossible = impossible;
        let lower = |text: &Option<String>| text.as_ref().filter(is_given).map(|text| text.trim().to_lowercase());
        filter.texts = [
            &query.user,
            &query.api,
            &query.endpoint,
            &query.request_id,
            &query.method,
            &query.ip_address,
            &query.level,
            &query.kind,
        ]
        .map(lower);
        filter.exclude = lower(&query.exclude_type);
        filter
    }

    fn is_before(&self, entry: &Entry) -> bool {
        self.from.is_some_and(|from| entry.millis < from)
    }

    fn matches(&self, entry: &Entry) -> bool {
        if self.is_impossible || self.is_before(entry) || self.until.is_some_and(|until| entry.millis > until) {
            return false;
        }
        if self.daily_from.is_some() || self.daily_until.is_some() {
            let Ok(at) = Timestamp::from_millisecond(entry.millis) else { return false };
            let time = at.to_zoned(TimeZone::UTC).time();
            if self.daily_from.is_some_and(|from| time < from) || self.daily_until.is_some_and(|until| time > until) {
                return false;
            }
        }
        let fields = [
            entry.user.as_deref(),
            entry.api.as_deref(),
            entry.endpoint.as_deref(),
            entry.request_id.as_deref(),
            entry.method.as_deref(),
            entry.ip_address.as_deref(),
            Some(&*entry.level),
            Some(entry.kind),
        ];
        let mut pairs = self.texts.iter().zip(fields);
        if !pairs.all(|(wanted, field)| {
            wanted.as_ref().is_none_or(|wanted| field.is_some_and(|field| field.to_lowercase().contains(wanted)))
        }) {
            return false;
        }
        if let Some(excluded) = &self.exclude {
            let is_of_platform = || entry.endpoint.as_deref().is_some_and(|path| path.contains("/platform/"));
            if entry.kind == excluded || excluded == "platform" && is_of_platform() {
                return false;
            }
        }
        if self.fastest.is_none() && self.slowest.is_none() {
            return true;
        }
        let time = entry.response_time.as_deref().and_then(|time| time.parse::<f64>().ok());
        time.is_some_and(|time| {
            self.fastest.is_none_or(|least| time >= least) && self.slowest.is_none_or(|most| time <= most)
        })
    }
}

enum Moment {
    Day(Date),
    Time(Time),
    Number(f64),
}

fn millis(time: DateTime) -> Option<i64> {
    TimeZone::UTC.to_timestamp(time).ok().map(Timestamp::as_millisecond)
}

/// A part of the records that match.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = LogPage)]
pub struct Page {
    /// Newest first.
    pub logs: Vec<Entry>,
    /// How many match.
    pub total: usize,
    /// Are there more after these?
    pub has_more: bool,
}

/// A name, and how often it occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Counted {
    /// The name.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// Numbers over all records.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = LogStatistics)]
#[allow(missing_docs, reason = "the names are the reference's")]
pub struct Statistics {
    pub total_logs: u64,
    pub error_count: u64,
    pub warning_count: u64,
    pub info_count: u64,
    pub debug_count: u64,
    pub avg_response_time: f64,
    pub top_apis: Vec<Counted>,
    pub top_users: Vec<Counted>,
    pub top_endpoints: Vec<Counted>,
}

/// The form of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LogFormat)]
pub enum Format {
    /// An indented array.
    #[default]
    Json,
    /// A line for each record, after one with the columns.
    Csv,
}

/// Records as a file.
#[derive(Clone, Debug)]
pub struct Export {
    /// Its form.
    pub format: Format,
    /// Its contents.
    pub data: String,
    /// Its name.
    pub filename: String,
}

/// Reads on a thread that may wait; few at a time, so that questions can't take all threads and disks.
async fn read<T: Send + 'static>(logs: &Arc<Logs>, work: impl FnOnce(&Logs) -> T + Send + 'static) -> Option<T> {
    let permit = READERS.acquire().await.ok()?;
    let logs = Arc::clone(logs);
    let work = move || {
        // What was recorded before the question is found.
        logs.flush();
        let answer = work(&logs);
        drop(permit);
        answer
    };
    tokio::task::spawn_blocking(work).await.inspect_err(|error| tracing::error!(%error, "logs can't be read")).ok()
}

fn matching(logs: &Logs, filter: Filter) -> impl Iterator<Item = Entry> {
    // Newest first: the first that is too old ends it. Clocks that were set back may hide a record or two.
    let started = if filter.is_impossible { None } else { Some(Newest::of(logs)) };
    let day_before = filter.from.map(|from| from - 60_000);
    started
        .into_iter()
        .flatten()
        .take_while(move |entry| day_before.is_none_or(|start| entry.millis >= start))
        .filter(move |entry| filter.matches(entry))
}

/// Records that match, `offset` after the newest, at most `limit`. `None`: they can't be read.
pub async fn page(logs: &Arc<Logs>, query: Query, limit: usize, offset: usize) -> Option<Page> {
    read(logs, move |logs| {
        let (mut found, mut total) = (Vec::new(), 0_usize);
        for entry in matching(logs, Filter::new(&query)) {
            if total >= offset && found.len() < limit {
                found.push(entry);
            }
            total += 1;
        }
        let has_more = offset.saturating_add(found.len()) < total;
        Page { logs: found, total, has_more }
    })
    .await
}

#[derive(Default)]
struct Tally(HashMap<String, u64>);

impl Tally {
    fn count(&mut self, name: Option<String>) {
        let Some(name) = name else { return };
        if self.0.len() < MOST_NAMES || self.0.contains_key(&name) {
            *self.0.entry(name).or_default() += 1;
        }
    }

    fn top(self) -> Vec<Counted> {
        let mut all: Vec<_> = self.0.into_iter().map(|(name, count)| Counted { name, count }).collect();
        all.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        all.truncate(TOP);
        all
    }
}

/// Numbers over all records. `None`: they can't be read.
pub async fn statistics(logs: &Arc<Logs>) -> Option<Statistics> {
    read(logs, |logs| {
        let mut all = Statistics::default();
        let (mut apis, mut users, mut endpoints) = <(Tally, Tally, Tally)>::default();
        let (mut time, mut timed) = (0.0, 0_u64);
        for entry in Newest::of(logs) {
            all.total_logs += 1;
            match &*entry.level {
                "ERROR" | "CRITICAL" => all.error_count += 1,
                "WARNING" => all.warning_count += 1,
                "DEBUG" => all.debug_count += 1,
                _ => all.info_count += 1,
            }
            if let Some(millis) = entry.response_time.as_deref().and_then(|time| time.parse::<f64>().ok()) {
                time += millis;
                timed += 1;
            }
            apis.count(entry.api);
            users.count(entry.user);
            endpoints.count(entry.endpoint);
        }
        all.avg_response_time = if timed == 0 { 0.0 } else { (time / timed as f64 * 100.0).round() / 100.0 };
        (all.top_apis, all.top_users, all.top_endpoints) = (apis.top(), users.top(), endpoints.top());
        all
    })
    .await
}

/// Records that match, as a file; at most ten thousand, the newest. `None`: they can't be read.
pub async fn export(logs: &Arc<Logs>, query: Query, format: Format) -> Option<Export> {
    read(logs, move |logs| {
        let entries: Vec<Entry> = matching(logs, Filter::new(&query)).take(MOST_EXPORTED).collect();
        let (data, ending) = match format {
            Format::Json => (serde_json::to_string_pretty(&entries).unwrap_or_default(), "json"),
            Format::Csv => (csv(&entries), "csv"),
        };
        let filename = format!("logs_export_{}.{ending}", Timestamp::now().strftime("%Y%m%d_%H%M%S"));
        Export { format, data, filename }
    })
    .await
}

fn csv(entries: &[Entry]) -> String {
    let mut text = String::from(
        "timestamp,level,message,source,user,api,endpoint,method,status_code,response_time,ip_address,protocol,request_id,group,role\n",
    );
    for entry in entries {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        let cells = [
            entry.timestamp.clone(),
            entry.level.clone(),
            // Clients split lines at commas.
            entry.message.replace(',', ";"),
            entry.source.clone(),
            or_empty(&entry.user),
            or_empty(&entry.api),
            or_empty(&entry.endpoint),
            or_empty(&entry.method),
            or_empty(&entry.status_code),
            or_empty(&entry.response_time),
            or_empty(&entry.ip_address),
            entry.protocol.unwrap_or_default().to_owned(),
            or_empty(&entry.request_id),
            String::new(),
            String::new(),
        ];
        text.push_str(&super::csv_row(cells.iter().map(String::as_str)));
    }
    text
}

/// The log files, newest first.
pub async fn log_files(logs: &Arc<Logs>) -> Option<Vec<String>> {
    read(logs, |logs| {
        let entries = logs.folder().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with("doorman") && name.contains(".log") && entry.path().is_file()
            })
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort_by(|a, b| b.cmp(a));
        files.into_iter().map(|(_, path)| path.display().to_string()).collect()
    })
    .await
}

#[cfg(test)]
mod tests;
