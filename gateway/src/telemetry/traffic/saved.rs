//! The form of `metrics.json`, and of what earlier versions wrote.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::count::{ApiNumbers, Detail, Numbers, Protocol};
use super::history::History;

const VERSION: u32 = 2;

/// What every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Saved<H> {
    version: u32,
    history: H,
}

pub(super) fn write(history: &History) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Saved { version: VERSION, history })
}

/// `None`: it is damaged, or of a later version.
pub(super) fn read(bytes: &[u8]) -> Option<History> {
    let Versioned { version } = serde_json::from_slice(bytes).ok()?;
    let mut history: History = match version {
        1 => serde_json::from_slice::<First>(bytes).ok()?.into(),
        VERSION => serde_json::from_slice::<Saved<History>>(bytes).ok()?.history,
        _ => return None,
    };
    history.weigh();
    Some(history)
}

/// The first version: minutes and hours, each with a choice of its latencies.
#[derive(Deserialize)]
struct First {
    series: Vec<(u64, Numbers)>,
    minutes: Vec<(u64, FirstDetail)>,
    hours: Vec<(u64, FirstDetail)>,
}

#[derive(Deserialize)]
struct FirstDetail {
    statuses: Vec<(u16, u64)>,
    apis: Vec<(Protocol, Arc<str>, ApiNumbers)>,
    users: Vec<(Arc<str>, u64)>,
    samples: Samples,
}

/// Of all requests that were seen, in microseconds.
#[derive(Deserialize)]
struct Samples {
    seen: u64,
    values: Vec<u32>,
}

impl From<First> for History {
    fn from(first: First) -> Self {
        let mut history = Self::default();
        history.series.extend(first.series);
        let minutes = first.minutes.into_iter().map(|(minute, detail)| (1, minute, detail));
        let hours = first.hours.into_iter().map(|(hour, detail)| (60, hour * 60, detail));
        for (minutes, at, detail) in minutes.chain(hours) {
            let mut numbers = Numbers::default();
            history.series.range(at..at + minutes).for_each(|(_, minute)| numbers.add(minute));
            history.restore(minutes, at, &detail.with(numbers));
        }
        history
    }
}

impl FirstDetail {
    /// Synthetic traffic was counted with the other, but for its number.
    fn with(self, numbers: Numbers) -> Detail {
        let mut detail = Detail::default();
        let (tests, calls) = (&mut detail.tests.numbers, &mut detail.calls);
        (tests.count, tests.tests) = (numbers.tests, numbers.tests);
        calls.numbers = Numbers { count: numbers.count.saturating_sub(numbers.tests), tests: 0, p95: 0, ..numbers };
        calls.statuses = self.statuses.into_iter().collect();
        let Samples { seen, values } = self.samples;
        let (each, rest) = (seen / values.len().max(1) as u64, seen % values.len().max(1) as u64);
        for (value, n) in values.into_iter().zip(0..) {
            calls.latencies.add(value, u32::try_from(each + u64::from(n < rest)).unwrap_or(u32::MAX));
        }
        for (protocol, name, numbers) in self.apis {
            detail.api(protocol, &name, usize::MAX).add(&numbers);
        }
        for (name, count) in self.users {
            *detail.user(&name, usize::MAX) += count;
        }
        detail
    }
}
