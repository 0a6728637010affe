//! Limits in their typed form: those of a user, of a tier, and the rules that an operator of the gateway sets.
//!
//! In: stored documents. Out: counters that are ready to be asked, with what a refusal says. What can't be read limits
//! nobody else; a member that is absent, zero or out of reach (999999 and more in a tier) is no limit.

use std::{sync::Arc, time::Duration};

use jiff::{Timestamp, ToSpan, civil, tz::TimeZone};
use mongodb::bson::{Bson, Document};
use smallvec::SmallVec;

use crate::store::{Counter, Family, Moment, Span, User, braced};

/// Tiers of existing installations write this and more where they mean "no limit".
const OUT_OF_REACH: u64 = 999_999;
/// Requests in a window where a limit is on without a number (reference: gateway behaviour 7.1, 7.2).
const USUAL_RATE: u64 = 60;
const USUAL_THROTTLE: u64 = 10;
/// How long a throttled request waits for each one before it, where no time is set.
const USUAL_WAIT: Duration = Duration::from_millis(500);
/// The longest that a throttled request waits; what would wait longer is refused.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// The unit that a word stands for, in singular or plural.
fn unit(word: &str) -> Option<Duration> {
    let singular = word.trim().to_ascii_lowercase();
    Some(match singular.strip_suffix('s').unwrap_or(&singular) {
        "second" => SECOND,
        "minute" => MINUTE,
        "hour" => HOUR,
        "day" => DAY,
        "week" => 7 * DAY,
        "month" => 30 * DAY,
        "year" => 365 * DAY,
        _ => return None,
    })
}

/// The unit of a user's member; a word that is none is a minute, no word the usual one.
fn unit_or(word: Option<&str>, usual: Duration) -> Duration {
    word.filter(|word| !word.is_empty()).map_or(usual, |word| unit(word).unwrap_or(MINUTE))
}

fn positive(number: Option<i64>) -> Option<u64> {
    u64::try_from(number?).ok().filter(|number| *number > 0)
}

/// A whole number of a stored document, however it is stored.
fn number(document: &Document, member: &str) -> Option<u64> {
    positive(match document.get(member)? {
        Bson::Int32(number) => Some((*number).into()),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(number.trunc() as i64),
        _ => None,
    })
}

/// A stretch of the calendar (UTC) in which something is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calendar {
    /// From midnight.
    Day,
    /// From the first of the month.
    Month,
    /// From multiples of this many seconds since the epoch.
    Epoch(u64),
}

impl Calendar {
    /// What the stretch that holds this second is called, and the first second after it.
    pub fn at(self, now: u64) -> (String, u64) {
        if let Self::Epoch(seconds) = self {
            let start = now - now % seconds;
            return (start.to_string(), start.saturating_add(seconds));
        }
        let second = i64::try_from(now).unwrap_or(i64::MAX);
        let today = Timestamp::from_second(second).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC).date();
        let (name, end) = match self {
            Self::Month => {
                let next = today.first_of_month().checked_add(1.month());
                (format!("{:04}-{:02}", today.year(), today.month()), next)
            }
            _ => (today.to_string(), today.checked_add(1.day())),
        };
        let end = end.unwrap_or(civil::Date::MAX).to_zoned(TimeZone::UTC).map(|end| end.timestamp().as_second());
        (name, end.ok().and_then(|end| u64::try_from(end).ok()).unwrap_or(u64::MAX))
    }
}

impl Calendar {
    /// Until which second the counter of a stretch is kept that ends in this one: clocks of processes differ, and may be set
    /// back. Of short stretches there are many.
    fn kept(self, end: u64) -> u64 {
        const DAY: u64 = 86_400;
        const MINUTE: u64 = 60;
        let longer = match self {
            Self::Epoch(seconds) => seconds.clamp(MINUTE, DAY),
            Self::Day | Self::Month => DAY,
        };
        end.saturating_add(longer)
    }
}

/// Something that is used up in a stretch of the calendar: bytes, or requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// What its counters' names begin with.
    key: Arc<str>,
    /// What they end with.
    suffix: &'static str,
    /// How long it lasts.
    pub calendar: Calendar,
    /// How much there is.
    pub limit: u64,
}

impl Allowance {
    fn quota(username: &str, what: &str, calendar: Calendar, limit: u64) -> Self {
        let key = Family::Quota.named(format_args!("user:{}:{what}:month:", braced(username))).into();
        Self { key, suffix: ":usage", calendar, limit }
    }

    /// The counter of the stretch that holds this second, and the first second after it.
    pub fn counter(&self, now: u64) -> (Arc<str>, u64) {
        let (stretch, end) = self.calendar.at(now);
        (format!("{}{stretch}{}", self.key, self.suffix).into(), end)
    }

    /// The counter, and until which second it is kept.
    pub(super) fn booked(&self, now: u64) -> (Arc<str>, u64) {
        let (key, end) = self.counter(now);
        (key, self.calendar.kept(end))
    }

    /// The same, to be asked whether so much is left; `add` is what is counted then.
    pub(super) fn asked(&self, now: u64, need: u64, add: u64) -> Counter {
        let (key, end) = self.counter(now);
        let span = Span::Until { end, kept: self.calendar.kept(end) };
        Counter { need, add, ..Counter::of_requests(key, span, self.limit) }
    }
}

/// How long requests beyond a number wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Its limit is that of the queue, or less: so many that none waits too long.
    pub counter: Counter,
    /// So many go on at once.
    pub at_once: u64,
    /// Each of the others waits so long for every one before it.
    pub wait: Duration,
}

/// A limit of a tier on requests in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierLimit {
    /// The counter.
    pub counter: Counter,
    /// What the window is called.
    pub window: &'static str,
}

/// What a user's tier allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Requests in windows, the shortest first.
    pub windows: SmallVec<[TierLimit; 3]>,
    /// Requests in a day or month.
    pub quotas: SmallVec<[(Allowance, &'static str); 2]>,
    /// Bytes in a month.
    pub bandwidth: Option<Allowance>,
    /// How long a request may wait for its turn instead of being refused.
    pub queue: Option<Duration>,
}

/// A member of a tier's limits, the window, what that is called, and what it is called in counters.
const WINDOWS: [(&str, Duration, &str); 4] = [
    ("requests_per_second", SECOND, "second"),
    ("requests_per_minute", MINUTE, "minute"),
    ("requests_per_hour", HOUR, "hour"),
    ("requests_per_day", DAY, "day"),
];

impl Tier {
    /// Of the `limits` of a tier, or those that an assignment sets in their place.
    pub fn of(username: &str, limits: &Document) -> Self {
        let user = braced(username);
        let within_reach = |member: &str| number(limits, member).filter(|limit| *limit < OUT_OF_REACH);
        let window = |(member, length, window): (&str, Duration, &'static str)| {
            let key = Family::Window.named(format_args!("user:{user}:{window}"));
            let counter = Counter::of_requests(key, Span::Sliding(length), within_reach(member)?);
            Some(TierLimit { counter, window })
        };
        let monthly = within_reach("requests_per_month").into_iter().chain(number(limits, "monthly_request_quota"));
        let quota = |limit, calendar, window| (Allowance::quota(username, "requests", calendar, limit), window);
        let daily = number(limits, "daily_request_quota").map(|limit| quota(limit, Calendar::Day, "day"));
        let monthly = monthly.min().map(|limit| quota(limit, Calendar::Month, "month"));
        let queue = limits.get_bool("enable_throttling").unwrap_or(false);
        let queue = number(limits, "max_queue_time_ms").filter(|_| queue).map(Duration::from_millis);
        Self {
            windows: WINDOWS.into_iter().filter_map(window).collect(),
            quotas: daily.into_iter().chain(monthly).collect(),
            bandwidth: number(limits, "monthly_bandwidth_quota")
                .map(|limit| Allowance::quota(username, "bandwidth", Calendar::Month, limit)),
            queue,
        }
    }
}

/// Everything that limits one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserLimits {
    /// What the user's tier allows.
    pub tier: Tier,
    /// Until when that is the tier; `None`: no end is known.
    pub tier_until: Option<Moment>,
    /// Requests in a window.
    pub rate: Option<Counter>,
    /// When requests begin to wait.
    pub throttle: Option<Throttle>,
    /// Bytes in a stretch of time.
    pub bandwidth: Option<Allowance>,
}

impl UserLimits {
    /// What the user's own members say.
    pub fn of(user: &User) -> Self {
        let name = braced(&user.username);
        let rate = positive(user.rate_limit_duration);
        let rate = (user.rate_limit_enabled == Some(true) || rate.is_some()).then(|| {
            let window = unit_or(user.rate_limit_duration_type.as_deref(), MINUTE);
            let key = Family::Rate.named(format_args!("{name}:{}", window.as_secs()));
            Counter::of_requests(key, Span::Sliding(window), rate.unwrap_or(USUAL_RATE))
        });
        let (at_once, queue) = (positive(user.throttle_duration), positive(user.throttle_queue_limit));
        let throttles = user.throttle_enabled == Some(true) || at_once.is_some() || queue.is_some();
        let throttle = throttles.then(|| {
            let window = unit_or(user.throttle_duration_type.as_deref(), SECOND);
            let key = Family::Throttle.named(format_args!("{name}:{}", window.as_secs()));
            let wait = positive(user.throttle_wait_duration).and_then(|number| u32::try_from(number).ok());
            let each = unit_or(user.throttle_wait_duration_type.as_deref(), SECOND);
            let wait = wait.map_or(USUAL_WAIT, |number| each.saturating_mul(number));
            let at_once = at_once.unwrap_or(USUAL_THROTTLE);
            let waiting = u64::try_from(LONGEST_WAIT.as_millis() / wait.as_millis()).unwrap_or(u64::MAX);
            let limit = queue.unwrap_or(USUAL_THROTTLE).min(at_once.saturating_add(waiting));
            Throttle { counter: Counter::of_requests(key, Span::Sliding(window), limit), at_once, wait }
        });
        let bytes = positive(user.bandwidth_limit_bytes).filter(|_| user.bandwidth_limit_enabled != Some(false));
        let bandwidth = bytes.map(|limit| {
            let seconds = unit_or(user.bandwidth_limit_window.as_deref(), DAY).as_secs();
            let key = Family::Bytes.named(format_args!("{name}:{seconds}:")).into();
            Allowance { key, suffix: "", calendar: Calendar::Epoch(seconds), limit }
        });
        Self { tier: Tier::default(), tier_until: None, rate, throttle, bandwidth }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn user() -> User {
        User { bandwidth_limit_window: None, ..User::new("amy", "amy@example.com", "user") }
    }

    fn at(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_second()).unwrap()
    }

    #[test]
    fn a_user_without_limits_has_none() {
        assert_eq!(UserLimits::of(&user()), UserLimits::default());
        let off = User { bandwidth_limit_bytes: Some(9), bandwidth_limit_enabled: Some(false), ..user() };
        assert_eq!(UserLimits::of(&off), UserLimits::default());
    }

    #[test]
    fn members_that_are_not_said_are_the_usual_ones() {
        let on = User { rate_limit_enabled: Some(true), throttle_enabled: Some(true), ..user() };
        let limits = UserLimits::of(&on);
        let (rate, throttle) = (limits.rate.unwrap(), limits.throttle.unwrap());
        assert_eq!((rate.limit, rate.span, &*rate.key), (60, Span::Sliding(MINUTE), "rate_limit:{amy}:60"));
        assert_eq!((throttle.counter.limit, throttle.at_once, throttle.wait), (10, 10, USUAL_WAIT));
        assert_eq!(throttle.counter.span, Span::Sliding(SECOND));
    }

    #[test]
    fn units_may_be_plural_and_a_number_alone_switches_a_limit_on() {
        let limited = User {
            rate_limit_duration: Some(5),
            rate_limit_duration_type: Some("Hours".into()),
            throttle_queue_limit: Some(3),
            throttle_wait_duration: Some(2),
            throttle_wait_duration_type: Some("minutes".into()),
            ..user()
        };
        let limits = UserLimits::of(&limited);
        assert_eq!(limits.rate.unwrap().span, Span::Sliding(HOUR));
        let throttle = limits.throttle.unwrap();
        assert_eq!((throttle.counter.limit, throttle.wait), (3, 2 * MINUTE));
    }

    #[test]
    fn nobody_is_let_into_a_queue_to_wait_more_than_a_minute() {
        for (at_once, each, queue, limit) in [(1, 7, 100, 9), (1, 60, 100, 2), (1, 61, 100, 1), (5, 61, 3, 3)] {
            let limited = User {
                throttle_duration: Some(at_once),
                throttle_wait_duration: Some(each),
                throttle_queue_limit: Some(queue),
                ..user()
            };
            let throttle = UserLimits::of(&limited).throttle.unwrap();
            assert_eq!(throttle.counter.limit, limit, "{at_once} at once, {each} s each, {queue} in all");
        }
    }

    #[test]
    fn a_tier_limits_what_it_names_within_reach() {
        let limits = doc! { "requests_per_second": 0, "requests_per_minute": 2, "requests_per_hour": 999_999,
        "requests_per_day": Bson::Null, "requests_per_month": 500_i64, "monthly_request_quota": 400,
        "daily_request_quota": 2_000_000, "enable_throttling": true, "max_queue_time_ms": 250 };
        let tier = Tier::of("amy", &limits);
        let windows: Vec<_> = tier.windows.iter().map(|limit| (limit.window, limit.counter.limit)).collect();
        assert_eq!(windows, [("minute", 2)]);
        let quotas: Vec<_> = tier.quotas.iter().map(|(quota, window)| (*window, quota.limit)).collect();
        assert_eq!(quotas, [("day", 2_000_000), ("month", 400)]);
        assert_eq!((tier.bandwidth, tier.queue), (None, Some(Duration::from_millis(250))));
    }

    #[test]
    fn stretches_of_the_calendar_meet_without_gap_or_overlap() {
        for (calendar, text, name, end) in [
            (Calendar::Month, "2024-02-29T23:59:59Z", "2024-02", "2024-03-01T00:00:00Z"),
            (Calendar::Month, "2024-03-01T00:00:00Z", "2024-03", "2024-04-01T00:00:00Z"),
            (Calendar::Month, "2025-12-31T23:59:59Z", "2025-12", "2026-01-01T00:00:00Z"),
            (Calendar::Day, "2024-02-28T23:59:59Z", "2024-02-28", "2024-02-29T00:00:00Z"),
            (Calendar::Day, "2024-02-29T00:00:00Z", "2024-02-29", "2024-03-01T00:00:00Z"),
            (Calendar::Epoch(60), "1970-01-01T00:01:59Z", "60", "1970-01-01T00:02:00Z"),
        ] {
            assert_eq!(calendar.at(at(text)), (name.to_owned(), at(end)), "{calendar:?} {text}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_finds_the_counter_of_then() {
        let quota = Allowance::quota("amy", "requests", Calendar::Month, 10);
        let (january, february) = (at("2026-01-31T23:59:59Z"), at("2026-02-01T00:00:00Z"));
        assert_ne!(quota.counter(january).0, quota.counter(february).0);
        assert_eq!(quota.counter(january).0, quota.counter(january - 86_400).0);
        assert_eq!(&*quota.counter(february).0, "quota:user:{amy}:requests:month:2026-02:usage");
    }
}
