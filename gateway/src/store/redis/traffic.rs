//! Counts of traffic that processes tell each other: a stream of what each has counted, and now and then all of it in one.

use std::collections::HashMap;
use std::time::Duration;

use super::Shared;
use crate::store::{StoreError, TrafficEntry, TrafficPlace};

// Their last part is the form of what is in them: other versions leave them alone.
/// What was counted, told by those who counted it.
const STREAM: &str = "doorman:traffic:counts:1";
/// All that was told up to a place in the stream, which need not be read from its beginning then.
const HISTORY: &str = "doorman:traffic:history:1";
/// Who brings that up to date.
const TURN: &str = "doorman:traffic:turn:1";
/// Most entries, about; far fewer are left where histories are kept.
const MOST: usize = 10_000;
/// As many are left where Redis (before 6.2) can't say which are old.
const LEFT: usize = 2_000;
/// Entries that are read at a time.
const BATCH: usize = 10;
/// How long nobody may count until all is forgotten: as long as traffic is told of.
const LIFE: Duration = Duration::from_secs(90 * 24 * 3_600);

impl Shared {
    pub(in crate::store) async fn tell_traffic(
        &self,
        by: &str,
        number: u64,
        counts: &[u8],
    ) -> Result<TrafficPlace, StoreError> {
        let mut add = redis::cmd("XADD");
        add.arg(STREAM).arg("MAXLEN").arg("~").arg(MOST).arg("*");
        add.arg("by").arg(by).arg("number").arg(number).arg("counts").arg(counts);
        let place: String = self.run(&add).await?;
        place.parse().map_err(StoreError::shared)
    }

    pub(in crate::store) async fn traffic_after(&self, place: TrafficPlace) -> Result<Vec<TrafficEntry>, StoreError> {
        let mut range = redis::cmd("XRANGE");
        range.arg(STREAM).arg(place.next().to_string()).arg("+").arg("COUNT").arg(BATCH);
        let entries: Vec<(String, HashMap<String, Vec<u8>>)> = self.run(&range).await?;
        let entries = entries.into_iter().map(|(place, mut fields)| {
            let mut field = |name: &str| fields.remove(name).unwrap_or_default();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_default();
            Ok(TrafficEntry {
                place: place.parse().map_err(StoreError::shared)?,
                by: text(field("by")),
                number: text(field("number")).parse().unwrap_or_default(),
                counts: field("counts"),
            })
        });
        entries.collect()
    }

    pub(in crate::store) async fn traffic_history(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.run(redis::cmd("GET").arg(HISTORY)).await
    }

    pub(in crate::store) async fn take_traffic_turn(&self, by: &str, life: Duration) -> Result<bool, StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(TURN).arg(by).arg("NX").arg("PX").arg(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        Ok(self.run::<Option<String>>(&set).await?.is_some())
    }

    pub(in crate::store) async fn leave_traffic_turn(&self) -> Result<(), StoreError> {
        self.run(redis::cmd("DEL").arg(TURN)).await
    }

    pub(in crate::store) async fn keep_traffic(&self, history: &[u8], until: TrafficPlace) -> Result<(), StoreError> {
        self.run::<()>(redis::cmd("SET").arg(HISTORY).arg(history).arg("EX").arg(LIFE.as_secs())).await?;
        self.run::<()>(redis::cmd("EXPIRE").arg(STREAM).arg(LIFE.as_secs())).await?;
        let mut trim = redis::cmd("XTRIM");
        if let Err(error) = self.run::<u64>(trim.arg(STREAM).arg("MINID").arg(until.to_string())).await {
            tracing::debug!(%error, "this Redis can't trim by time");
            self.run::<u64>(redis::cmd("XTRIM").arg(STREAM).arg("MAXLEN").arg("~").arg(LEFT)).await?;
        }
        Ok(())
    }
}
