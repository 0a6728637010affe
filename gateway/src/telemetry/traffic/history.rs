//! Thirty days of traffic in bounded memory.
//!
//! Numbers are kept for each minute. Who called what, and how fast answers were, is kept by minute for the last hour
//! and by the hour before that; so a question that goes further back than an hour begins at a full hour, for all that
//! it answers alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::count::{ApiNumbers, Detail, Numbers, Protocol, Row, Samples, percentiles};

/// Minutes that are kept.
pub(super) const KEPT: u64 = 30 * 24 * 60;
/// Minutes whose details are kept apart, at least.
const DETAILED: u64 = 61;

#[derive(Debug, Default)]
pub(super) struct History {
    /// By minutes since 1970.
    pub(super) series: BTreeMap<u64, Numbers>,
    /// By minutes since 1970, the newest.
    minutes: BTreeMap<u64, Detail>,
    /// By hours since 1970.
    hours: BTreeMap<u64, Detail>,
}

/// Details over a time.
#[derive(Debug, Default)]
pub(super) struct Sum {
    /// The first minute that is counted.
    pub(super) from: u64,
    pub(super) numbers: Numbers,
    pub(super) detail: Detail,
    /// p50, p95 and p99, in microseconds.
    pub(super) percentiles: [u64; 3],
}

impl History {
    pub(super) fn add(&mut self, minute: u64, numbers: &Numbers, detail: Detail, most_samples: usize) {
        self.series.entry(minute).or_default().add(numbers);
        self.minutes.entry(minute).or_default().merge(detail, most_samples);
    }

    /// Brings minutes that are long over together, and forgets what is too old.
    pub(super) fn tidy(&mut self, now: u64, most_samples: usize) {
        let first_detailed = now.saturating_sub(DETAILED) / 60 * 60;
        while let Some(entry) = self.minutes.first_entry()
            && *entry.key() < first_detailed
        {
            let (minute, detail) = entry.remove_entry();
            if let Some(numbers) = self.series.get_mut(&minute) {
                [numbers.p95] = percentiles([&detail.samples], [0.95]);
            }
            let hour = self.hours.entry(minute / 60).or_default();
            hour.merge(detail, most_samples);
            // The last of its hours is the one after which nothing comes.
            hour.shorten();
        }
        let oldest = now.saturating_sub(KEPT);
        self.series = self.series.split_off(&oldest);
        self.hours = self.hours.split_off(&(oldest / 60));
    }

    /// The first minute of a question that wants to begin here.
    pub(super) fn begin(&self, from: u64) -> u64 {
        // Folded hours all lie before the first minute with details.
        let is_folded = self.hours.last_key_value().is_some_and(|(hour, _)| from / 60 <= *hour);
        if is_folded { from / 60 * 60 } else { from }
    }

    pub(super) fn sum(&self, from: u64, until: u64) -> Sum {
        let from = self.begin(from);
        let mut sum = Sum { from, ..Sum::default() };
        if from > until {
            return sum;
        }
        self.series.range(from..=until).for_each(|(_, numbers)| sum.numbers.add(numbers));
        let hours = self.hours.range(from / 60..=until / 60).map(|(_, detail)| detail);
        let details: Vec<&Detail> = hours.chain(self.minutes.range(from..=until).map(|(_, detail)| detail)).collect();
        sum.percentiles = percentiles(details.iter().map(|detail| &detail.samples), [0.5, 0.95, 0.99]);
        for detail in details {
            sum.detail.count_in(detail);
        }
        sum
    }

    /// The 95th percentile of one minute, in microseconds.
    pub(super) fn p95(&self, minute: u64) -> u64 {
        match self.minutes.get(&minute) {
            Some(detail) => percentiles([&detail.samples], [0.95])[0],
            None => self.series.get(&minute).map_or(0, |numbers| numbers.p95),
        }
    }
}

/// The form of `metrics.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    version: u32,
    series: Vec<(u64, Row)>,
    minutes: Vec<(u64, SavedDetail)>,
    hours: Vec<(u64, SavedDetail)>,
}

const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct SavedDetail {
    statuses: Vec<(u16, u64)>,
    apis: Vec<(Protocol, Arc<str>, ApiNumbers)>,
    users: Vec<(Arc<str>, u64)>,
    samples: Samples,
}

impl From<&Detail> for SavedDetail {
    fn from(detail: &Detail) -> Self {
        let of_protocol = |protocol: Protocol| {
            let apis = &detail.apis[protocol as usize];
            apis.iter().map(move |(name, numbers)| (protocol, Arc::clone(name), *numbers))
        };
        Self {
            statuses: detail.statuses.iter().map(|(status, count)| (*status, *count)).collect(),
            apis: Protocol::ALL.into_iter().flat_map(of_protocol).collect(),
            users: detail.users.iter().map(|(name, count)| (Arc::clone(name), *count)).collect(),
            samples: detail.samples.clone(),
        }
    }
}

impl From<SavedDetail> for Detail {
    fn from(saved: SavedDetail) -> Self {
        let mut detail =
            Self { statuses: saved.statuses.into_iter().collect(), samples: saved.samples, ..Self::default() };
        for (protocol, name, numbers) in saved.apis {
            *detail.api(protocol, &name) = numbers;
        }
        for (name, count) in saved.users {
            *detail.user(&name) = count;
        }
        detail
    }
}

impl History {
    pub(super) fn save(&self) -> Saved {
        let details = |of: &BTreeMap<u64, Detail>| of.iter().map(|(at, detail)| (*at, detail.into())).collect();
        Saved {
            version: VERSION,
            series: self.series.iter().map(|(minute, numbers)| (*minute, numbers.row())).collect(),
            minutes: details(&self.minutes),
            hours: details(&self.hours),
        }
    }

    /// `None`: it is of another version.
    pub(super) fn restore(saved: Saved) -> Option<Self> {
        let details = |of: Vec<(u64, SavedDetail)>| of.into_iter().map(|(at, detail)| (at, detail.into())).collect();
        (saved.version == VERSION).then(|| Self {
            series: saved.series.into_iter().map(|(minute, row)| (minute, Numbers::of_row(row))).collect(),
            minutes: details(saved.minutes),
            hours: details(saved.hours),
        })
    }
}
