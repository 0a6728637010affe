//! What is counted, and how counts come together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Names of one kind that a bucket tells apart while it is filled; further ones share [`OTHER`].
const MOST_NAMES: usize = 1_000;
/// Names that a bucket keeps once it is an hour.
pub(super) const KEPT_NAMES: usize = 200;
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

/// Numbers of one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// In microseconds; known once the minute is over.
    pub(super) p95: u64,
}

/// In the order of the fields.
pub(super) type Row = [u64; 9];

impl Numbers {
    pub(super) fn row(&self) -> Row {
        let Self { count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95 } = *self;
        [count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95]
    }

    pub(super) fn of_row(row: Row) -> Self {
        let [count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95] = row;
        Self { count, tests, errors, micros, bytes_in, bytes_out, timeouts, retries, p95 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let (mut sum, more) = (self.row(), other.row());
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        let p95 = self.p95.max(other.p95);
        *self = Self { p95, ..Self::of_row(sum) };
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

/// Latencies, all of them or an even choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Samples {
    /// How many were seen.
    pub(super) seen: u64,
    /// In microseconds.
    pub(super) values: Vec<u32>,
    #[serde(skip)]
    chance: u64,
}

impl Samples {
    /// Keeps a latency, with the chance that leaves an even choice (reservoir sampling).
    pub(super) fn add(&mut self, micros: u32, most: usize) {
        self.seen += 1;
        if self.values.len() < most {
            return self.values.push(micros);
        }
        // SplitMix64: even enough to choose samples, and two lines.
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let at = usize::try_from(mixed % self.seen).unwrap_or(usize::MAX);
        if let Some(value) = self.values.get_mut(at) {
            *value = micros;
        }
    }

    /// Joins two choices in proportion to what they stand for.
    pub(super) fn merge(&mut self, other: Self, most: usize) {
        let is_whole = |samples: &Self| samples.seen == samples.values.len() as u64;
        if is_whole(self) && is_whole(&other) && self.values.len() + other.values.len() <= most {
            self.seen += other.seen;
            self.values.extend(other.values);
            return;
        }
        let seen = self.seen + other.seen;
        let sorted = weighted([&*self, &other]);
        let all: f64 = sorted.iter().map(|(_, weight)| weight).sum();
        let wanted = most.min(sorted.len());
        let (mut values, mut passed, mut each) = (Vec::with_capacity(wanted), 0.0, sorted.iter());
        let mut current = each.next();
        for n in 0..wanted {
            let aim = (n as f64 + 0.5) / wanted as f64 * all;
            while let Some((_, weight)) = current
                && passed + weight < aim
                && let Some(next) = each.next()
            {
                passed += weight;
                current = Some(next);
            }
            values.extend(current.map(|(value, _)| *value));
        }
        *self = Self { seen, values, chance: self.chance };
    }
}

/// Values with how many requests each stands for, in order.
fn weighted<'a>(samples: impl IntoIterator<Item = &'a Samples>) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = samples
        .into_iter()
        .flat_map(|samples| {
            let weight = samples.seen as f64 / samples.values.len().max(1) as f64;
            samples.values.iter().map(move |value| (*value, weight))
        })
        .collect();
    all.sort_unstable_by_key(|(value, _)| *value);
    all
}

/// The latencies, in microseconds, that these parts of the requests don't exceed (nearest rank).
pub(super) fn percentiles<'a, const N: usize>(
    samples: impl IntoIterator<Item = &'a Samples>,
    parts: [f64; N],
) -> [u64; N] {
    let all = weighted(samples);
    let total: f64 = all.iter().map(|(_, weight)| weight).sum();
    parts.map(|part| {
        let mut passed = 0.0;
        let reached = all.iter().find(|(_, weight)| {
            passed += weight;
            // What is lost in adding fractions must not cost a rank.
            passed >= part * total - 1e-6
        });
        reached.or(all.last()).map_or(0, |(value, _)| u64::from(*value))
    })
}

/// Everything of one minute or hour but the [`Numbers`].
#[derive(Clone, Debug, Default)]
pub(super) struct Detail {
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) apis: [HashMap<Arc<str>, ApiNumbers>; 4],
    pub(super) users: HashMap<Arc<str>, u64>,
    pub(super) samples: Samples,
}

impl Detail {
    pub(super) fn api(&mut self, protocol: Protocol, name: &str) -> &mut ApiNumbers {
        named(&mut self.apis[protocol as usize], name)
    }

    pub(super) fn user(&mut self, name: &str) -> &mut u64 {
        named(&mut self.users, name)
    }

    pub(super) fn merge(&mut self, other: Self, most_samples: usize) {
        self.count_in(&other);
        self.samples.merge(other.samples, most_samples);
    }

    /// All but the samples.
    pub(super) fn count_in(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (own, others) in self.apis.iter_mut().zip(&other.apis) {
            for (name, numbers) in others {
                named(own, name).add(numbers);
            }
        }
        for (name, count) in &other.users {
            *named(&mut self.users, name) += count;
        }
    }

    /// Leaves the most frequent names; the others are counted together.
    pub(super) fn shorten(&mut self) {
        for apis in &mut self.apis {
            shorten(apis, |numbers| numbers.count, |rest, numbers| rest.add(&numbers));
        }
        shorten(&mut self.users, |count| *count, |rest, count| *rest += count);
    }
}

/// The entry of a name, or of all the others when there are too many.
fn named<'a, T: Default>(entries: &'a mut HashMap<Arc<str>, T>, name: &str) -> &'a mut T {
    let is_known = entries.contains_key(name);
    let name = if is_known || entries.len() < MOST_NAMES { name } else { OTHER };
    if !is_known && !entries.contains_key(name) {
        return entries.entry(name.into()).or_default();
    }
    entries.get_mut(name).unwrap_or_else(|| unreachable!("just looked up"))
}

fn shorten<T: Default>(entries: &mut HashMap<Arc<str>, T>, count: impl Fn(&T) -> u64, add: impl Fn(&mut T, T)) {
    if entries.len() > KEPT_NAMES {
        let mut sorted: Vec<(Arc<str>, T)> = entries.drain().collect();
        sorted.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(count(entry)));
        let rest = sorted.split_off(KEPT_NAMES);
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

    fn samples(values: impl IntoIterator<Item = u32>, most: usize) -> Samples {
        let mut samples = Samples::default();
        values.into_iter().for_each(|value| samples.add(value, most));
        samples
    }

    #[test]
    fn percentiles_are_exact_as_long_as_all_are_kept() {
        let all = samples((1..=100).rev(), 500);
        assert_eq!(percentiles([&all], [0.5, 0.95, 0.99, 1.0]), [50, 95, 99, 100]);
        assert_eq!(percentiles([&samples([7], 500)], [0.5, 0.99]), [7, 7]);
        assert_eq!(percentiles([], [0.5]), [0]);
    }

    #[test]
    fn a_choice_stands_for_what_it_was_chosen_from() {
        let many = samples((0..100_000).map(|n| n % 1_000), 500);
        let [median, high] = percentiles([&many], [0.5, 0.95]);
        assert!((400..600).contains(&median) && (900..1_000).contains(&high), "{median} {high}");
    }

    #[test]
    fn merged_choices_keep_their_weight() {
        let mut busy = samples((0..9_000).map(|_| 10), 100);
        busy.merge(samples((0..1_000).map(|_| 1_000), 100), 100);
        assert_eq!((busy.seen, busy.values.len()), (10_000, 100));
        assert_eq!(percentiles([&busy], [0.5, 0.89, 0.95]), [10, 10, 1_000]);
        let mut few = samples([1, 2], 100);
        few.merge(samples([3], 100), 100);
        assert_eq!((few.seen, few.values), (3, vec![1, 2, 3]));
    }

    #[test]
    fn names_are_bounded_and_nothing_is_lost() {
        let mut detail = Detail::default();
        for n in 0..5_000_u64 {
            *detail.user(&format!("user{n}")) += 1;
            detail.api(Protocol::Rest, &format!("api{n}/v1")).count += 1;
        }
        *detail.user("user0") += 10;
        assert!(detail.users.len() <= MOST_NAMES + 1, "{}", detail.users.len());
        detail.shorten();
        assert!(detail.users.len() <= KEPT_NAMES + 1 && detail.apis[0].len() <= KEPT_NAMES + 1);
        assert_eq!((detail.users["user0"], detail.users.values().sum::<u64>()), (11, 5_010));
        assert_eq!(detail.apis[0].values().map(|api| api.count).sum::<u64>(), 5_000);
    }
}
