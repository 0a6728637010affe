//! Counters of limits: what a request is measured by, and the arithmetic of its windows.
//!
//! In: the counters of one request, in the order of their precedence. Out: which of them refuses first, and how each
//! stands. What always holds: either all are counted or none; no stretch of a sliding window's length ever sees more than
//! the limit, wherever it begins. For that, a window is kept in parts, and a part counts until all of it has left the
//! window: what was taken is free again a part's length too late, never too early.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use smallvec::SmallVec;

/// Parts of a window; more where they would be long.
const PARTS: u64 = 60;
const PARTS_OF_SHORT: u64 = 20;
const SHORT: Duration = Duration::from_secs(30);

/// What a counter counts. Its name begins with its family's, so that every store can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Requests, by a user's own rate.
    Rate,
    /// Requests, by a user's throttle.
    Throttle,
    /// Requests in windows of tiers and rules.
    Window,
    /// What a tier's quotas have used up.
    Quota,
    /// What a user's bytes have used up.
    Bytes,
    /// Sign-ins and registrations of an address.
    Address,
    /// Failed sign-ins with a name.
    Failures,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Rate, Self::Throttle, Self::Window, Self::Quota, Self::Bytes, Self::Address, Self::Failures];

    /// What names of the family begin with, up to a colon: that of existing installations, where they have it.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Rate => "rate_limit",
            Self::Throttle => "throttle_limit",
            Self::Window => "ratelimit",
            Self::Quota => "quota",
            Self::Bytes => "bandwidth_usage",
            Self::Address => "ip_rate_limit",
            Self::Failures => "login_failures",
        }
    }

    /// The name of one of its counters.
    pub fn named(self, rest: impl fmt::Display) -> String {
        format!("{}:{rest}", self.prefix())
    }

    /// Does it start again when caches are cleared? What is used up stays so, and nobody has more guesses at a password.
    pub fn starts_again(self) -> bool {
        match self {
            Self::Rate | Self::Throttle | Self::Window => true,
            Self::Quota | Self::Bytes | Self::Address | Self::Failures => false,
        }
    }

    /// Does a counter of this name start again when caches are cleared?
    pub(super) fn has_one_that_starts_again(name: &str) -> bool {
        let family = name.split_once(':').map(|(prefix, _)| prefix);
        Self::ALL.into_iter().any(|own| own.starts_again() && Some(own.prefix()) == family)
    }
}

/// In which stretch of time something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// In any stretch of this length.
    Sliding(Duration),
    /// In a stretch of the calendar; the counter's key says which.
    Until {
        /// The second since the epoch in which it ends.
        end: u64,
        /// That until which the counter is kept: clocks of processes differ, and may be set back.
        kept: u64,
    },
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
    /// Is it one of a kind that clients can bring about any number of? In memory so many are kept and no more.
    pub is_of_address: bool,
}

impl Counter {
    /// One of these requests.
    pub fn of_requests(key: impl Into<Arc<str>>, span: Span, limit: u64) -> Self {
        Self { key: key.into(), span, limit, need: 1, add: 1, is_of_address: false }
    }

    /// The part in braces, by which a cluster places the counter.
    pub(super) fn tag(&self) -> &str {
        tag(&self.key)
    }
}

fn tag(key: &str) -> &str {
    let inner = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    inner.filter(|tag| !tag.is_empty()).unwrap_or(key)
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
    /// The limit, of those that clients can bring about any number of.
    of_address: Option<u64>,
}

impl Entry {
    /// How much of its limit is used up, in 65536ths.
    fn share_used(&self) -> u64 {
        let used: u64 = match &self.held {
            Held::Parts(held, _) => held.iter().map(|(_, count)| count).sum(),
            Held::Total(total) => *total,
        };
        used.saturating_mul(1 << 16) / self.of_address.unwrap_or_default().max(1)
    }
}

/// Counters of different names don't wait for each other, mostly.
const SHARDS: usize = 16;
/// Entries that hold nothing are removed when there are so many in a shard, and then whenever there are twice as many.
const SWEEP_AT: usize = 256;
/// So many counters of addresses are kept in a shard; in all that is 65,536.
const MOST_OF_ADDRESSES: usize = 4_096;

/// Counters in this process. Sliding windows go by a clock that is never set, the calendar by the one that is.
#[derive(Debug)]
pub(super) struct Counters {
    origin: tokio::time::Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

impl Default for Counters {
    fn default() -> Self {
        let (origin, hasher) = (tokio::time::Instant::now(), RandomState::new());
        Self { origin, hasher, shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counters {
    fn millis(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where a counter is; those of one name are together.
    fn place(&self, key: &str) -> usize {
        usize::try_from(self.hasher.hash_one(tag(key))).unwrap_or_default() % SHARDS
    }

    /// Counts all, or none when one refuses. `now`: seconds since the epoch.
    pub(super) fn take(&self, counters: &[Counter], now: u64) -> Taken {
        let places: SmallVec<[usize; 8]> = counters.iter().map(|counter| self.place(&counter.key)).collect();
        let mut order = places.clone();
        order.sort_unstable();
        order.dedup();
        // All of them at once, always in the same order.
        let mut shards: SmallVec<[MutexGuard<'_, Shard>; 4]> =
            order.iter().map(|place| locked(&self.shards[*place])).collect();
        let millis = self.millis();
        let mut taken = Taken::default();
        for (index, (counter, place)) in counters.iter().zip(&places).enumerate() {
            let Ok(shard) = order.binary_search(place) else { continue };
            let reading = shards[shard].read(counter, millis, now);
            if reading.used.saturating_add(counter.need) > counter.limit && taken.refused.is_none() {
                taken.refused = Some(index);
            }
            taken.readings.push(reading);
        }
        if taken.refused.is_none() {
            for (counter, place) in counters.iter().zip(&places).filter(|(counter, _)| counter.add > 0) {
                let Ok(shard) = order.binary_search(place) else { continue };
                let of_address = counter.is_of_address.then_some(counter.limit);
                shards[shard].add(&counter.key, counter.span, counter.add, of_address, (millis, now));
            }
        }
        taken
    }

    /// Counts this whatever the limit is.
    pub(super) fn book(&self, key: &Arc<str>, kept: u64, add: u64, now: u64) {
        let (millis, span) = (self.millis(), Span::Until { end: kept, kept });
        locked(&self.shards[self.place(key)]).add(key, span, add, None, (millis, now));
    }

    /// What calendar counters hold.
    pub(super) fn totals(&self, keys: &[Arc<str>]) -> Vec<u64> {
        let total = |key: &Arc<str>| match locked(&self.shards[self.place(key)]).entries.get(key) {
            Some(Entry { held: Held::Total(total), .. }) => *total,
            _ => 0,
        };
        keys.iter().map(total).collect()
    }

    /// Starts the counters again whose families do.
    pub(super) fn reset(&self) {
        for shard in &self.shards {
            locked(shard).retain(|name, _| !Family::has_one_that_starts_again(name));
        }
    }

    pub(super) fn sweep(&self) {
        let millis = self.millis();
        for shard in &self.shards {
            locked(shard).sweep(millis);
        }
    }
}

/// A part of the counters.
#[derive(Debug)]
struct Shard {
    entries: HashMap<Arc<str>, Entry>,
    of_addresses: usize,
    sweep_at: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { entries: HashMap::new(), of_addresses: 0, sweep_at: SWEEP_AT }
    }
}

impl Shard {
    fn read(&mut self, counter: &Counter, millis: u64, now: u64) -> Reading {
        match counter.span {
            Span::Until { end, .. } => {
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

    fn add(&mut self, key: &Arc<str>, span: Span, add: u64, of_address: Option<u64>, (millis, now): (u64, u64)) {
        if !self.entries.contains_key(key) {
            self.make_room(of_address.is_some(), millis);
        }
        let (fresh, until) = match span {
            Span::Until { kept, .. } => {
                let left = kept.saturating_sub(now).saturating_mul(1_000);
                (Held::Total(0), millis.saturating_add(left))
            }
            Span::Sliding(window) => {
                let parts = Parts::of(window);
                (Held::Parts(VecDeque::new(), parts), millis.saturating_add(parts.life()))
            }
        };
        let entry = self.entries.entry(key.clone()).or_insert_with(|| {
            self.of_addresses += usize::from(of_address.is_some());
            Entry { held: Held::Total(0), until, of_address }
        });
        entry.until = until;
        match (&mut entry.held, fresh) {
            (Held::Total(total), Held::Total(_)) => *total = total.saturating_add(add),
            (Held::Parts(held, parts), Held::Parts(_, own)) if *parts == own => {
                let current = millis / own.millis;
                match held.back_mut() {
                    Some((number, count)) if *number == current => *count = count.saturating_add(add),
                    _ => held.push_back((current, add)),
                }
            }
            (held, Held::Total(_)) => *held = Held::Total(add),
            (held, Held::Parts(_, own)) => *held = Held::Parts(VecDeque::from([(millis / own.millis, add)]), own),
        }
    }

    fn retain(&mut self, mut is_kept: impl FnMut(&str, &Entry) -> bool) {
        self.entries.retain(|name, entry| is_kept(name, entry));
        self.of_addresses = self.entries.values().filter(|entry| entry.of_address.is_some()).count();
    }

    fn sweep(&mut self, millis: u64) {
        self.retain(|_, entry| entry.until > millis);
        self.sweep_at = SWEEP_AT.max(2 * self.entries.len());
    }

    /// Removes what holds nothing any more, and of too many addresses those that have used the least: whoever comes with
    /// ever new ones must not start again with the one that has reached its limit.
    fn make_room(&mut self, is_of_address: bool, millis: u64) {
        let is_full = is_of_address && self.of_addresses >= MOST_OF_ADDRESSES;
        if is_full || self.entries.len() >= self.sweep_at {
            self.sweep(millis);
        }
        if is_of_address && self.of_addresses >= MOST_OF_ADDRESSES {
            let weight = |entry: &Entry| (entry.share_used(), entry.until);
            let of_addresses = self.entries.values().filter(|entry| entry.of_address.is_some());
            let mut left = MOST_OF_ADDRESSES / 8;
            let limit = lightest(of_addresses.map(weight).collect(), left);
            self.retain(|_, entry| {
                let goes = entry.of_address.is_some() && left > 0 && weight(entry) <= limit;
                left -= usize::from(goes);
                !goes
            });
        }
    }
}

/// The heaviest of so many that weigh the least.
pub(super) fn lightest<W: Copy + Ord + Default>(mut weights: Vec<W>, number: usize) -> W {
    let last = number.saturating_sub(1);
    if last >= weights.len() {
        return weights.into_iter().max().unwrap_or_default();
    }
    *weights.select_nth_unstable(last).1
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

    fn is_taken(counters: &Counters, counter: &Counter) -> bool {
        counters.take(std::slice::from_ref(counter), 0).refused.is_none()
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_frees_what_it_took_a_part_after_its_length() {
        let counters = Counters::default();
        let second = requests("a", Duration::from_secs(1), 1);
        assert!(is_taken(&counters, &second));
        let refused = counters.take(std::slice::from_ref(&second), 0);
        assert_eq!((refused.refused, refused.readings[0].used), (Some(0), 1));
        assert!(refused.readings[0].frees_in <= Duration::from_millis(1_050), "{refused:?}");
        advance(Duration::from_millis(999)).await;
        assert!(!is_taken(&counters, &second));
        advance(Duration::from_millis(51)).await;
        assert!(is_taken(&counters, &second));
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_counted_or_none() {
        let counters = Counters::default();
        let (wide, narrow) = (requests("wide", MINUTE, 100), requests("narrow", MINUTE, 1));
        let both = [wide.clone(), narrow];
        assert_eq!(counters.take(&both, 0).refused, None);
        assert_eq!(counters.take(&both, 0).refused, Some(1));
        assert_eq!(counters.take(&[wide], 0).readings[0].used, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_calendar_counter_is_only_looked_at_unless_it_adds() {
        let counters = Counters::default();
        let key: Arc<str> = "bytes".into();
        let span = Span::Until { end: 100, kept: 130 };
        let look = |need| Counter { need, add: 0, ..Counter::of_requests(key.clone(), span, 10) };
        assert!(is_taken(&counters, &look(10)) && !is_taken(&counters, &look(11)));
        counters.book(&key, 130, 10, 40);
        let refused = counters.take(&[look(1)], 40);
        assert_eq!((refused.refused, refused.readings[0].frees_in), (Some(0), MINUTE));
        assert_eq!(counters.totals(&[key, "none".into()]), [10, 0]);
        // The clock may be set back for so long.
        for (seconds, left) in [(89, 1), (1, 0)] {
            advance(Duration::from_secs(seconds)).await;
            counters.sweep();
            assert_eq!(number(&counters), left);
        }
    }

    fn number(counters: &Counters) -> usize {
        counters.shards.iter().map(|shard| locked(shard).entries.len()).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_addresses_take_no_more_room_and_free_nobody_who_has_reached_a_limit() {
        let counters = Counters::default();
        let of_address = |address: &str| Counter { is_of_address: true, ..requests(address, MINUTE, 2) };
        let users: Vec<_> = (0..1_000).map(|user| requests(&format!("user {user}"), MINUTE, 1)).collect();
        assert!(users.iter().all(|user| is_taken(&counters, user)));
        let attacker = of_address("attacker");
        assert!(is_taken(&counters, &attacker) && is_taken(&counters, &attacker));
        for address in 0..300_000 {
            // Of a higher limit, of which little is used.
            let other = Counter { add: 5, ..requests(&address.to_string(), MINUTE, 1_000) };
            assert!(is_taken(&counters, &Counter { is_of_address: true, ..other }));
        }
        assert!(number(&counters) <= 1_000 + SHARDS * MOST_OF_ADDRESSES, "{}", number(&counters));
        assert!(!is_taken(&counters, &attacker));
        assert!(!users.iter().any(|user| is_taken(&counters, user)), "they can't be brought about at will");
        advance(2 * MINUTE).await;
        counters.sweep();
        assert_eq!(number(&counters), 0);
    }

    #[test]
    fn requests_of_many_threads_are_counted_by_all_their_counters_or_none() {
        let counters = Counters::default();
        let of = |name: u32| requests(&format!("{{{name}}}"), MINUTE, 1_000);
        let admitted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let counters = &counters;
                    scope.spawn(move || {
                        let all = [of(thread % 3), of(3 + thread % 2), of(99)];
                        (0..500).filter(|_| counters.take(&all, 0).refused.is_none()).count() as u64
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 1_000);
        let used = |name| counters.take(&[of(name)], 0).readings[0].used;
        assert_eq!((0..3).map(used).sum::<u64>(), 1_000);
        assert_eq!((3..5).map(used).sum::<u64>(), 1_000);
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
                if is_taken(&counters, &counter) {
                    prop_assert!(in_window < limit);
                    admitted.push(at);
                } else {
                    prop_assert!(in_longer >= limit, "refused without need");
                }
            }
        }
    }
}
