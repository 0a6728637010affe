//! What processes on one Redis tell each other of the traffic they have counted.
//!
//! Entries are in one order for all, each at a place that only grows; what is in them is the teller's and the reader's
//! business. As news between processes, this is no part of played outages.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Shared, Store, StoreError};

/// Where an entry is: milliseconds since 1970 by the clock of Redis, and a number among those of that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrafficPlace {
    millis: u64,
    number: u64,
}

impl TrafficPlace {
    /// The first place behind it.
    pub(super) fn next(self) -> Self {
        match self.number.checked_add(1) {
            Some(number) => Self { number, ..self },
            None => Self { millis: self.millis.saturating_add(1), number: 0 },
        }
    }

    /// The first place so long before.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self { millis: self.millis.saturating_sub(millis(time)), number: 0 }
    }

    /// Is it more than so long behind another one?
    pub fn is_behind(self, other: Self, time: Duration) -> bool {
        self.millis.saturating_add(millis(time)) < other.millis
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for TrafficPlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.millis, self.number)
    }
}

impl FromStr for TrafficPlace {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (millis, number) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { millis: millis.parse()?, number: number.parse()? })
    }
}

/// What one process has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficEntry {
    /// Where it is.
    pub place: TrafficPlace,
    /// Who told it.
    pub by: String,
    /// Which of the teller's it is; one that is told again, since no answer came, has the same.
    pub number: u64,
    /// What is told.
    pub counts: Vec<u8>,
}

impl Store {
    /// Are there others to tell of traffic? Without Redis there are not.
    pub fn shares_traffic(&self) -> bool {
        matches!(self.shared, Shared::Redis(_))
    }

    /// Tells all others; where that is.
    pub async fn tell_traffic(&self, by: &str, number: u64, counts: &[u8]) -> Result<TrafficPlace, StoreError> {
        match &self.shared {
            Shared::Redis(shared) => shared.tell_traffic(by, number, counts).await,
            Shared::Memory(_) => Ok(TrafficPlace::default()),
        }
    }

    /// The next entries behind a place, in their order; none: there are no more yet.
    pub async fn traffic_after(&self, place: TrafficPlace) -> Result<Vec<TrafficEntry>, StoreError> {
        match &self.shared {
            Shared::Redis(shared) => shared.traffic_after(place).await,
            Shared::Memory(_) => Ok(Vec::new()),
        }
    }

    /// What [`Self::keep_traffic`] has kept last.
    pub async fn traffic_history(&self) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.shared {
            Shared::Redis(shared) => shared.traffic_history().await,
            Shared::Memory(_) => Ok(None),
        }
    }

    /// Is it this process that keeps the history this time? Nobody else does for as long as `life`.
    pub async fn take_traffic_turn(&self, by: &str, life: Duration) -> Result<bool, StoreError> {
        match &self.shared {
            Shared::Redis(shared) => shared.take_traffic_turn(by, life).await,
            Shared::Memory(_) => Ok(false),
        }
    }

    /// Lets another process have that turn.
    pub async fn leave_traffic_turn(&self) -> Result<(), StoreError> {
        match &self.shared {
            Shared::Redis(shared) => shared.leave_traffic_turn().await,
            Shared::Memory(_) => Ok(()),
        }
    }

    /// Keeps the history, and lets entries before this place go.
    pub async fn keep_traffic(&self, history: &[u8], until: TrafficPlace) -> Result<(), StoreError> {
        match &self.shared {
            Shared::Redis(shared) => shared.keep_traffic(history, until).await,
            Shared::Memory(_) => Ok(()),
        }
    }
}
