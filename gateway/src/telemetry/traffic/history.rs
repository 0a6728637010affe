//! Ninety days of traffic in bounded memory.
//!
//! Numbers are kept for each minute of thirty days. Everything else, above all who called what and how fast answers
//! were, gets coarser as it grows old: by the minute for a day, by five minutes for a week, by the hour for thirty
//! days, by the day for ninety ([`LEVELS`]). All of that takes no more than [`MOST_BYTES`]: where there are so many
//! names that it would, times get coarser earlier. So a question about the past begins and ends where its first and
//! its last time do, for all that it answers alike.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::count::{Detail, MOST_NAMES, Numbers};

/// Minutes of which the numbers are kept.
pub(super) const KEPT: u64 = 30 * DAY;
/// Minutes of a day.
pub(super) const DAY: u64 = 24 * 60;
/// What the details of all times may take.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// Times of one length.
pub(super) struct Level {
    pub(super) minutes: u64,
    /// Minutes after which they become part of the next level's.
    kept: u64,
    /// Names of one kind that each tells apart.
    names: usize,
}

pub(super) const LEVELS: [Level; 4] = [
    Level { minutes: 1, kept: DAY, names: MOST_NAMES },
    Level { minutes: 5, kept: 7 * DAY, names: 500 },
    Level { minutes: 60, kept: 30 * DAY, names: 200 },
    Level { minutes: DAY, kept: 90 * DAY, names: 100 },
];

/// A detail and the room it takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Weighed {
    detail: Detail,
    #[serde(skip)]
    bytes: usize,
}

impl Weighed {
    fn weigh(&mut self, names: usize) {
        self.detail.shorten(names);
        self.bytes = self.detail.bytes();
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct History {
    /// By minutes since 1970.
    pub(super) series: BTreeMap<u64, Numbers>,
    /// By their first minutes since 1970.
    levels: [BTreeMap<u64, Weighed>; 4],
}

/// Details over a time.
#[derive(Debug, Default)]
pub(super) struct Sum {
    /// The first minute that is counted.
    pub(super) from: u64,
    /// The last one.
    pub(super) until: u64,
    pub(super) detail: Detail,
}

/// The first minute of the time of this length that has this minute.
pub(super) fn floor(minute: u64, minutes: u64) -> u64 {
    minute / minutes * minutes
}

impl History {
    pub(super) fn add(&mut self, minute: u64, detail: &Detail) {
        self.series.entry(minute).or_default().add(&detail.all().numbers);
        self.put(0, minute, detail).weigh(MOST_NAMES);
    }

    fn put(&mut self, level: usize, at: u64, detail: &Detail) -> &mut Weighed {
        let into = self.levels[level].entry(at).or_default();
        into.detail.merge(detail, usize::MAX);
        into
    }

    /// Brings times that are long over together, and forgets what is too old.
    pub(super) fn tidy(&mut self, now: u64) {
        for level in 0..3 {
            let kept = now.saturating_sub(LEVELS[level].kept);
            self.fold(level, floor(kept, LEVELS[level + 1].minutes));
        }
        self.fit(now, MOST_BYTES);
        self.series = self.series.split_off(&now.saturating_sub(KEPT));
        let oldest = floor(now.saturating_sub(LEVELS[3].kept), DAY);
        self.levels[3] = self.levels[3].split_off(&oldest);
    }

    /// Brings times together until they take no more than this.
    pub(super) fn fit(&mut self, now: u64, most: usize) {
        while self.bytes() > most && self.coarsen(now) {}
    }

    /// After it was read: rooms are not saved.
    pub(super) fn weigh(&mut self) {
        for (level, times) in LEVELS.iter().zip(&mut self.levels) {
            for one in times.values_mut() {
                one.weigh(level.names);
            }
        }
    }

    /// Puts what an earlier version has saved of one time where it belongs.
    pub(super) fn restore(&mut self, minutes: u64, at: u64, detail: &Detail) {
        if let Some(level) = LEVELS.iter().position(|level| level.minutes == minutes) {
            self.put(level, at, detail);
        }
    }

    /// What the details take.
    pub(super) fn bytes(&self) -> usize {
        self.levels.iter().flat_map(BTreeMap::values).map(|one| one.bytes).sum()
    }

    /// Moves what lies before this minute, the first of one of the next level, to that level.
    fn fold(&mut self, level: usize, before: u64) {
        let later = self.levels[level].split_off(&before);
        let over = std::mem::replace(&mut self.levels[level], later);
        let (next, mut touched) = (&LEVELS[level + 1], BTreeSet::new());
        for (at, Weighed { detail, .. }) in over {
            if level == 0
                && let Some(numbers) = self.series.get_mut(&at)
            {
                [numbers.p95] = detail.all().latencies.percentiles([0.95]);
            }
            let at = floor(at, next.minutes);
            self.put(level + 1, at, &detail);
            touched.insert(at);
        }
        for at in touched {
            if let Some(into) = self.levels[level + 1].get_mut(&at) {
                into.weigh(next.names);
            }
        }
    }

    /// Moves the oldest time of the level that takes most to the next one. Not possible: every time that could be part
    /// of a coarser one is.
    fn coarsen(&mut self, now: u64) -> bool {
        let foldable = (0..3).filter_map(|level| {
            let (first, _) = self.levels[level].first_key_value()?;
            let minutes = LEVELS[level + 1].minutes;
            let end = floor(*first, minutes) + minutes;
            (end <= now).then(|| (self.levels[level].values().map(|one| one.bytes).sum::<usize>(), level, end))
        });
        let Some((_, level, end)) = foldable.max() else { return false };
        self.fold(level, end);
        true
    }

    /// The times that a question from one minute to another is about, whole.
    fn span(&self, mut from: u64, mut until: u64) -> (u64, u64) {
        for (level, times) in LEVELS.iter().zip(&self.levels) {
            let (first, last) = (floor(from, level.minutes), floor(until, level.minutes));
            if times.contains_key(&first) {
                from = first;
            }
            if times.contains_key(&last) {
                until = last + level.minutes - 1;
            }
        }
        (from, until)
    }

    /// The first minute and the details of each time in a [`Self::span`].
    pub(super) fn times(&self, from: u64, until: u64) -> impl Iterator<Item = (u64, &Detail)> {
        let (from, until) = self.span(from, until);
        let is_some = from <= until;
        let times = self.levels.iter().filter(move |_| is_some).flat_map(move |times| times.range(from..=until));
        times.map(|(at, one)| (*at, &one.detail))
    }

    pub(super) fn sum(&self, from: u64, until: u64) -> Sum {
        let mut sum = Sum::default();
        self.times(from, until).for_each(|(_, detail)| sum.detail.merge(detail, usize::MAX));
        (sum.from, sum.until) = self.span(from, until);
        sum
    }

    /// The 95th percentile of one minute, in microseconds.
    pub(super) fn p95(&self, minute: u64) -> u64 {
        match self.levels[0].get(&minute) {
            Some(one) => one.detail.all().latencies.percentiles([0.95])[0],
            None => self.series.get(&minute).map_or(0, |numbers| numbers.p95),
        }
    }
}
