//! Counters of limits: what a request is measured by, and the arithmetic of its windows.
//!
//! In: the counters of one request, in the order of their precedence. Out: which of them refuses first, and how each
//! stands. What always holds: either all are counted or none; no stretch of a sliding window's length ever sees more than
//! the limit, wherever it begins. For that, a window is kept in parts, and a part counts until all of it has left the
//! window: what was taken is free again a part's length too late, never too early.

use std::{collections::HashMap, collections::VecDeque, sync::Arc, time::Duration};

use smallvec::SmallVec;

/// Parts of a window; more where they would be long.
const PARTS: u64 = 60;
const PARTS_OF_SHORT: u64 = 20;
const SHORT: Duration = Duration::from_secs(30);

/// In which stretch of time something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// In any stretch of this length.
    Sliding(Duration),
    /// In a stretch of the calendar, until this second since the epoch; the counter's key says which.
    Until(u64),
}

/// One counter that a request is measured by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its name in the store. Names with the same part in braces are kept together in a cluster.
    pub key: Arc<str>,
    /// Its window.
    pub span: Span,
    /// The most there may be in one window.
    pub limit: u64,
    /// What must still fit under the limit.
    pub need: u64,
    /// What is counted when all fits.
    pub add: u64,
}

impl Counter {
    /// One of these requests.
    pub fn of_requests(key: impl Into<Arc<str>>, span: Span, limit: u64) -> Self {
        Self { key: key.into(), span, limit, need: 1, add: 1 }
    }

    /// The part in braces, by which a cluster places the counter.
    pub(super) fn tag(&self) -> &str {
        let inner = self.key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        inner.filter(|tag| !tag.is_empty()).unwrap_or(&self.key)
    }
}

/// A name as it may stand between braces.
pub fn braced(name: &str) -> String {
    format!("{{{}}}", name.replace('%', "%25").replace('{', "%7B").replace('}', "%7D"))
}

/// How a counter stood when the request came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What was counted before.
    pub used: u64,
    /// When enough of it is free again for what was refused; else when some of it is.
    pub frees_in: Duration,
}

/// What came of measuring a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The first counter that refuses; then nothing was counted.
    pub refused: Option<usize>,
    /// One for each counter.
    pub readings: SmallVec<[Reading; 6]>,
}

/// A sliding window in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Length of a part in milliseconds.
    pub(super) millis: u64,
    /// How many make a window.
    pub(super) number: u64,
}

impl Parts {
    pub(super) fn of(window: Duration) -> Self {
        let number = if window < SHORT { PARTS_OF_SHORT } else { PARTS };
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        Self { millis: millis.div_ceil(number).max(1), number }
    }

    /// How long after its beginning a part has left the window wholly.
    fn life(self) -> u64 {
        (self.number + 1).saturating_mul(self.millis)
    }
}

/// What one counter holds.
#[derive(Debug)]
enum Held {
    /// Part numbers and what was counted in them, oldest first.
    Parts(VecDeque<(u64, u64)>, Parts),
    Total(u64),
}

#[derive(Debug)]
struct Entry {
    held: Held,
    /// When it holds nothing any more, in milliseconds of the clock below.
    until: u64,
}

/// Counters in this process. Sliding windows go by a clock that is never set, the calendar by the one that is.
#[derive(Debug)]
pub(super) struct Counters {
    origin: tokio::time::Instant,
    entries: HashMap<Arc<str>, Entry>,
    sweep_at: usize,
}

/// Entries that hold nothing are removed when there are so many, and then whenever there are twice as many.
const SWEEP_AT: usize = 4_096;

impl Default for Counters {
    fn default() -> Self {
        Self { origin: tokio::time::Instant::now(), entries: HashMap::new(), sweep_at: SWEEP_AT }
    }
}

impl Counters {
    fn millis(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn read(&mut self, counter: &Counter, millis: u64, now: u64) -> Reading {
        match counter.span {
            Span::Until(end) => {
                let used = match self.entries.get(&counter.key) {
                    Some(Entry { held: Held::Total(total), .. }) => *total,
                    _ => 0,
                };
                Reading { used, frees_in: Duration::from_secs(end.saturating_sub(now)) }
            }
            Span::Sliding(window) => {
                let parts = Parts::of(window);
                let free_later = Reading { used: 0, frees_in: Duration::from_millis(parts.life()) };
                let Some(Entry { held: Held::Parts(held, _), .. }) = self.entries.get_mut(&counter.key) else {
                    return free_later;
                };
                let oldest = (millis / parts.millis).saturating_sub(parts.number);
                while held.front().is_some_and(|(number, _)| *number < oldest) {
                    held.pop_front();
                }
                let used: u64 = held.iter().map(|(_, count)| count).sum();
                let mut reading = Reading { used, ..free_later };
                let mut left = used;
                for (number, count) in held.iter() {
                    left -= count;
                    let leaves_at = number.saturating_mul(parts.millis).saturating_add(parts.life());
                    reading.frees_in = Duration::from_millis(leaves_at.saturating_sub(millis));
                    if left.saturating_add(counter.need) <= counter.limit {
                        break;
                    }
                }
                reading
            }
        }
    }

    fn add(&mut self, key: &Arc<str>, span: Span, add: u64, millis: u64, now: u64) {
        match span {
            Span::Until(end) => {
                let until = millis.saturating_add(end.saturating_sub(now).saturating_mul(1_000));
                let entry = self.entries.entry(key.clone()).or_insert(Entry { held: Held::Total(0), until });
                match &mut entry.held {
                    Held::Total(total) => *total = total.saturating_add(add),
                    held @ Held::Parts(..) => *held = Held::Total(add),
                }
                entry.until = until;
            }
            Span::Sliding(window) => {
                let parts = Parts::of(window);
                let current = millis / parts.millis;
                let fresh = || Held::Parts(VecDeque::new(), parts);
                let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry { held: fresh(), until: 0 });
                if !matches!(&entry.held, Held::Parts(_, of) if *of == parts) {
                    entry.held = fresh();
                }
                if let Held::Parts(held, _) = &mut entry.held {
                    match held.back_mut() {
                        Some((number, count)) if *number == current => *count = count.saturating_add(add),
                        _ => held.push_back((current, add)),
                    }
                }
                entry.until = millis.saturating_add(parts.life());
            }
        }
    }

    /// Counts all, or none when one refuses. `now`: seconds since the epoch.
    pub(super) fn take(&mut self, counters: &[Counter], now: u64) -> Taken {
        let millis = self.millis();
        let mut taken = Taken::default();
        for (index, counter) in counters.iter().enumerate() {
            let reading = self.read(counter, millis, now);
            if reading.used.saturating_add(counter.need) > counter.limit && taken.refused.is_none() {
                taken.refused = Some(index);
            }
            taken.readings.push(reading);
        }
        if taken.refused.is_none() {
            for counter in counters.iter().filter(|counter| counter.add > 0) {
                self.add(&counter.key, counter.span, counter.add, millis, now);
            }
            if self.entries.len() >= self.sweep_at {
                self.sweep();
            }
        }
        taken
    }

    /// Counts this whatever the limit is.
    pub(super) fn book(&mut self, key: &Arc<str>, until: u64, add: u64, now: u64) {
        let millis = self.millis();
        self.add(key, Span::Until(until), add, millis, now);
    }

    /// What calendar counters hold.
    pub(super) fn totals(&self, keys: &[Arc<str>]) -> Vec<u64> {
        let total = |key| match self.entries.get(key) {
            Some(Entry { held: Held::Total(total), .. }) => *total,
            _ => 0,
        };
        keys.iter().map(total).collect()
    }

    /// Starts sliding windows again; what the calendar counts stays.
    pub(super) fn reset(&mut self) {
        self.entries.retain(|_, entry| matches!(entry.held, Held::Total(_)));
    }

    pub(super) fn sweep(&mut self) {
        let millis = self.millis();
        self.entries.retain(|_, entry| entry.until > millis);
        self.sweep_at = SWEEP_AT.max(2 * self.entries.len());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn requests(key: &str, window: Duration, limit: u64) -> Counter {
        Counter::of_requests(key, Span::Sliding(window), limit)
    }

    fn is_taken(counters: &mut Counters, counter: &Counter) -> bool {
        counters.take(std::slice::from_ref(counter), 0).refused.is_none()
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_frees_what_it_took_a_part_after_its_length() {
        let mut counters = Counters::default();
        let second = requests("a", Duration::from_secs(1), 1);
        assert!(is_taken(&mut counters, &second));
        let refused = counters.take(std::slice::from_ref(&second), 0);
        assert_eq!((refused.refused, refused.readings[0].used), (Some(0), 1));
        assert!(refused.readings[0].frees_in <= Duration::from_millis(1_050), "{refused:?}");
        advance(Duration::from_millis(999)).await;
        assert!(!is_taken(&mut counters, &second));
        advance(Duration::from_millis(51)).await;
        assert!(is_taken(&mut counters, &second));
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_counted_or_none() {
        let mut counters = Counters::default();
        let (wide, narrow) = (requests("wide", MINUTE, 100), requests("narrow", MINUTE, 1));
        let both = [wide.clone(), narrow];
        assert_eq!(counters.take(&both, 0).refused, None);
        assert_eq!(counters.take(&both, 0).refused, Some(1));
        assert_eq!(counters.take(&[wide], 0).readings[0].used, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_calendar_counter_is_only_looked_at_unless_it_adds() {
        let mut counters = Counters::default();
        let key: Arc<str> = "bytes".into();
        let look = |need| Counter { key: key.clone(), span: Span::Until(100), limit: 10, need, add: 0 };
        assert!(is_taken(&mut counters, &look(10)) && !is_taken(&mut counters, &look(11)));
        counters.book(&key, 100, 10, 40);
        let refused = counters.take(&[look(1)], 40);
        assert_eq!((refused.refused, refused.readings[0].frees_in), (Some(0), MINUTE));
        assert_eq!(counters.totals(&[key, "none".into()]), [10, 0]);
        advance(MINUTE).await;
        counters.sweep();
        assert!(counters.entries.is_empty());
    }

    #[test]
    fn counters_of_one_name_are_kept_together() {
        let of = |key: String| requests(&key, MINUTE, 1).tag().to_owned();
        assert_eq!(of(format!("rate_limit:{}:60", braced("amy"))), "amy");
        assert_eq!(of(format!("throttle_limit:{}:1", braced("a{b}%"))), "a%7Bb%7D%25");
        assert_eq!(of("plain".into()), "plain");
    }

    proptest! {
        /// The law of sliding windows, and that they are no stricter than they say.
        #[test]
        fn no_stretch_of_a_windows_length_sees_more_than_the_limit(
            limit in 1..8_u64, pauses in prop::collection::vec(0..400_u64, 1..200),
        ) {
            const WINDOW: u64 = 1_000;
            let mut counters = Counters::default();
            let counter = requests("a", Duration::from_millis(WINDOW), limit);
            let (mut at, mut admitted) = (0, Vec::<u64>::new());
            for pause in pauses {
                at += pause;
                counters.origin = tokio::time::Instant::now() - Duration::from_millis(at);
                let before = |length: u64| admitted.iter().filter(|one| **one + length > at).count() as u64;
                let (in_window, in_longer) = (before(WINDOW), before(WINDOW + WINDOW / 20 + 5));
                if is_taken(&mut counters, &counter) {
                    prop_assert!(in_window < limit);
                    admitted.push(at);
                } else {
                    prop_assert!(in_longer >= limit, "refused without need");
                }
            }
        }
    }
}
