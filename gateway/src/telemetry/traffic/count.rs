//! What is counted, and how counts come together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Call;
use super::latencies::Latencies;

/// Names of one kind that a minute tells apart while it is filled; further ones share [`OTHER`].
pub(super) const MOST_NAMES: usize = 1_000;
/// Where the rest is counted.
pub(super) const OTHER: &str = "other";

/// The four ways to call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "they are protocols")]
pub enum Protocol {
    #[default]
    Rest,
    Soap,
    Graphql,
    Grpc,
}

impl Protocol {
    pub(super) const ALL: [Self; 4] = [Self::Rest, Self::Soap, Self::Graphql, Self::Grpc];

    /// As paths and keys have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Soap => "soap",
            Self::Graphql => "graphql",
            Self::Grpc => "grpc",
        }
    }
}

/// Numbers of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub(super) struct Numbers {
    pub(super) count: u64,
    /// Of them, marked as tests.
    pub(super) tests: u64,
    pub(super) errors: u64,
    pub(super) micros: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) timeouts: u64,
    pub(super) retries: u64,
    /// In microseconds, of a minute whose details are gone; zero before.
    pub(super) p95: u64,
}

/// In the order of the fields.
pub(super) type Row = [u64; 9];

impl From<Numbers> for Row {
    fn from(numbers: Numbers) -> Self {
        let Numbers { count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95 } = numbers;
        [count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95]
    }
}

impl From<Row> for Numbers {
    fn from(row: Row) -> Self {
        let [count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95] = row;
        Self { count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95 }
    }
}

impl Numbers {
    pub(super) fn add(&mut self, other: &Self) {
        let (mut sum, more) = (Row::from(*self), Row::from(*other));
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        let p95 = self.p95.max(other.p95);
        *self = Self { p95, ..sum.into() };
    }
}

/// Numbers of one API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApiNumbers {
    #[serde(rename = "n")]
    pub(super) count: u64,
    #[serde(rename = "e")]
    pub(super) errors: u64,
    #[serde(rename = "us")]
    pub(super) micros: u64,
}

impl ApiNumbers {
    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.errors += other.errors;
        self.micros += other.micros;
    }
}

/// Numbers of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct EndpointNumbers {
    pub(super) numbers: ApiNumbers,
    pub(super) latencies: Latencies,
}

impl EndpointNumbers {
    fn add(&mut self, other: &Self) {
        self.numbers.add(&other.numbers);
        self.latencies.merge(&other.latencies);
    }
}

/// Requests of one sort, synthetic or not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Share {
    pub(super) numbers: Numbers,
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) latencies: Latencies,
}

impl Share {
    fn record(&mut self, call: &Call<'_>, micros: u64) {
        let numbers = &mut self.numbers;
        numbers.count += 1;
        numbers.tests += u64::from(call.is_test);
        numbers.errors += u64::from(call.is_error());
        numbers.micros += micros;
        numbers.bytes_in += call.bytes_in;
        numbers.bytes_out += call.bytes_out;
        numbers.timeouts += u64::from(call.timeouts);
        numbers.retries += u64::from(call.retries);
        *self.statuses.entry(call.status).or_default() += 1;
        self.latencies.add(capped(micros), 1);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.numbers.add(&other.numbers);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.latencies.merge(&other.latencies);
    }
}

fn capped(micros: u64) -> u32 {
    u32::try_from(micros).unwrap_or(u32::MAX)
}

type Table<T> = HashMap<Arc<str>, T>;

/// Everything of some time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Detail {
    pub(super) calls: Share,
    /// Synthetic traffic, which is in no table.
    pub(super) tests: Share,
    pub(super) apis: [Table<ApiNumbers>; 4],
    pub(super) users: Table<u64>,
    /// By [`Call::endpoint`].
    pub(super) endpoints: Table<EndpointNumbers>,
}

impl Detail {
    pub(super) fn record(&mut self, call: &Call<'_>) {
        let micros = u64::try_from(call.elapsed.as_micros()).unwrap_or(u64::MAX);
        if call.is_test {
            return self.tests.record(call, micros);
        }
        self.calls.record(call, micros);
        let one = ApiNumbers { count: 1, errors: u64::from(call.is_error()), micros };
        self.api(call.protocol, call.api.unwrap_or_default(), MOST_NAMES).add(&one);
        if let Some(user) = call.user {
            *self.user(user, MOST_NAMES) += 1;
        }
        if let Some(endpoint) = call.endpoint {
            let endpoint = named(&mut self.endpoints, endpoint, MOST_NAMES);
            endpoint.numbers.add(&one);
            endpoint.latencies.add(capped(micros), 1);
        }
    }

    pub(super) fn api(&mut self, protocol: Protocol, name: &str, most: usize) -> &mut ApiNumbers {
        named(&mut self.apis[protocol as usize], name, most)
    }

    pub(super) fn user(&mut self, name: &str, most: usize) -> &mut u64 {
        named(&mut self.users, name, most)
    }

    /// Synthetic traffic included.
    pub(super) fn all(&self) -> Share {
        let mut all = self.calls.clone();
        all.add(&self.tests);
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.numbers.count == 0 && self.tests.numbers.count == 0
    }

    /// Adds another time, whose names are told apart as long as there are no more than `most`.
    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        self.calls.add(&other.calls);
        self.tests.add(&other.tests);
        for (own, others) in self.apis.iter_mut().zip(&other.apis) {
            for (name, numbers) in others {
                named(own, name, most).add(numbers);
            }
        }
        for (name, count) in &other.users {
            *named(&mut self.users, name, most) += count;
        }
        for (name, numbers) in &other.endpoints {
            named(&mut self.endpoints, name, most).add(numbers);
        }
    }

    /// Leaves the most frequent names; the others are counted together.
    pub(super) fn shorten(&mut self, names: usize) {
        for apis in &mut self.apis {
            shorten(apis, names, |numbers| numbers.count, |rest, numbers| rest.add(&numbers));
        }
        shorten(&mut self.users, names, |count| *count, |rest, count| *rest += count);
        shorten(&mut self.endpoints, names, |one| one.numbers.count, |rest, one| rest.add(&one));
        for latencies in self.endpoints.values_mut().map(|endpoint| &mut endpoint.latencies) {
            latencies.shrink();
        }
        self.calls.latencies.shrink();
        self.tests.latencies.shrink();
    }

    /// Bytes it takes, nearly.
    pub(super) fn bytes(&self) -> usize {
        let latencies = self.endpoints.values().map(|endpoint| endpoint.latencies.heap()).sum::<usize>();
        let shares = [&self.calls, &self.tests].map(|share| share.latencies.heap() + share.statuses.len() * 32);
        let apis = self.apis.iter().map(heap).sum::<usize>();
        size_of::<Self>() + apis + heap(&self.users) + heap(&self.endpoints) + latencies + shares.iter().sum::<usize>()
    }
}

/// Bytes of the entries and their names.
fn heap<T>(table: &Table<T>) -> usize {
    /// Two counters before the text, and what the allocator adds.
    const EACH_NAME: usize = 32;
    let names = table.keys().map(|name| name.len() + EACH_NAME).sum::<usize>();
    // A table is never filled by more than seven eighths.
    table.capacity() * 8 / 7 * (size_of::<(Arc<str>, T)>() + 1) + names
}

/// The entry of a name, or of all the others when there are too many.
fn named<'a, T: Default>(entries: &'a mut Table<T>, name: &str, most: usize) -> &'a mut T {
    let is_known = entries.contains_key(name);
    let name = if is_known || entries.len() < most { name } else { OTHER };
    if !is_known && !entries.contains_key(name) {
        return entries.entry(name.into()).or_default();
    }
    entries.get_mut(name).unwrap_or_else(|| unreachable!("just looked up"))
}

fn shorten<T: Default>(entries: &mut Table<T>, most: usize, count: impl Fn(&T) -> u64, add: impl Fn(&mut T, T)) {
    if entries.len() > most {
        let mut sorted: Vec<(Arc<str>, T)> = entries.drain().collect();
        sorted.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(count(entry)));
        let rest = sorted.split_off(most);
        entries.extend(sorted);
        let other = entries.entry(OTHER.into()).or_default();
        for (_, entry) in rest {
            add(other, entry);
        }
    }
    entries.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_nothing_is_lost() {
        let mut detail = Detail::default();
        for n in 0..5_000_u64 {
            let (user, api, endpoint) = (format!("user{n}"), format!("api{n}/v1"), format!("GET api{n}/v1/x"));
            let call = Call { api: Some(&api), user: Some(&user), endpoint: Some(&endpoint), ..Call::default() };
            detail.record(&call);
        }
        (0..10).for_each(|_| detail.record(&Call { user: Some("user0"), ..Call::default() }));
        let sizes = |detail: &Detail| [detail.users.len(), detail.apis[0].len(), detail.endpoints.len()];
        assert!(sizes(&detail).iter().all(|size| *size <= MOST_NAMES + 1), "{:?}", sizes(&detail));
        let before = detail.bytes();
        detail.shorten(200);
        assert_eq!(sizes(&detail), [200; 3], "with `other`, which is one of the most frequent");
        assert!(detail.bytes() < before / 3, "{before} {}", detail.bytes());
        assert_eq!((detail.users["user0"], detail.users.values().sum::<u64>()), (11, 5_010));
        assert_eq!(detail.apis[0].values().map(|api| api.count).sum::<u64>(), 5_010);
        assert_eq!(detail.endpoints.values().map(|endpoint| endpoint.numbers.count).sum::<u64>(), 5_000);
    }
}
