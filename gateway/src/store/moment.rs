//! Moments as clients and documents write them: ISO 8601. One without an offset is UTC.

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use mongodb::bson::{Bson, DateTime};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, format = DateTime)]
pub struct Moment(Timestamp);

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self(crate::clock::now())
    }

    /// This second since the epoch; one beyond every calendar is its end.
    pub fn at_second(second: u64) -> Self {
        let timestamp = i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok());
        Self(timestamp.unwrap_or(Timestamp::MAX))
    }

    /// What a member of a stored document says; `None`: it says no moment.
    pub fn of(stored: &Bson) -> Option<Self> {
        match stored {
            Bson::String(text) => text.parse().ok(),
            Bson::DateTime(time) => Timestamp::from_millisecond(time.timestamp_millis()).ok().map(Self),
            _ => None,
        }
    }

    /// Seconds since the epoch.
    pub fn second(self) -> i64 {
        self.0.as_second()
    }

    /// So many days later; `None`: no calendar goes that far.
    pub fn after_days(self, days: i64) -> Option<Self> {
        let hours = days.checked_mul(24).and_then(|hours| hours.checked_mul(3_600)).map(SignedDuration::from_secs);
        self.0.checked_add(hours?).ok().map(Self)
    }

    /// As a date of the database, to the millisecond.
    pub fn to_date(self) -> Bson {
        DateTime::from_millis(self.0.as_millisecond()).into()
    }
}

impl FromStr for Moment {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        let timestamp = text.parse().or_else(|_| {
            let local: civil::DateTime = text.parse()?;
            local.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp())
        });
        timestamp.map(Self)
    }
}

impl TryFrom<String> for Moment {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<Self, jiff::Error> {
        text.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

impl From<Moment> for Bson {
    fn from(moment: Moment) -> Self {
        moment.to_string().into()
    }
}

/// Texts of moments sort as the moments do.
impl fmt::Display for Moment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.6}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        text.parse::<Moment>().ok().map(String::from)
    }

    #[test]
    fn a_moment_is_read_with_and_without_an_offset() {
        let noon = Some("2026-03-01T12:00:00.000000Z".to_owned());
        for text in
            ["2026-03-01T12:00:00Z", "2026-03-01T13:00:00+01:00", "2026-03-01T12:00:00", "2026-03-01 12:00:00.0"]
        {
            assert_eq!(read(text), noon, "{text}");
        }
        assert_eq!(read("2026-03-01"), Some("2026-03-01T00:00:00.000000Z".to_owned()));
        for text in ["", "soon", "2026-02-30T00:00:00Z", "1767225600", "2026-03-01T25:00:00Z"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_moment_comes_back_from_documents() {
        let moment: Moment = "2026-03-01T12:00:00.123Z".parse().unwrap();
        assert_eq!(Moment::of(&moment.into()), Some(moment));
        assert_eq!(Moment::of(&moment.to_date()), Some(moment));
        assert_eq!(Moment::of(&Bson::Null), None);
        assert_eq!(moment.after_days(2).unwrap().to_string(), "2026-03-03T12:00:00.123000Z");
        assert_eq!(moment.after_days(i64::MAX), None);
    }
}
