//! The traffic of all processes on one Redis, known to each of them.
//!
//! Each tells the others every few seconds what it has counted since, and adds what they tell to its own history, so all
//! answer questions alike and at once. Now and then one of them keeps its history in Redis, which says up to which entry
//! all is in it: a process that starts, or was away for long, begins there. What always holds: what was told counts once
//! for everybody, also when the teller got no answer, or ends; what nobody was told yet, a few seconds', is lost with a
//! process that is killed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use uuid::Uuid;

use super::count::{Detail, MOST_NAMES};
use super::history::History;
use super::{Traffic, lock, now};
use crate::store::{Store, StoreError, TrafficPlace};

/// How often each tells and listens.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// How often one of them keeps the history.
const KEEP_EVERY: Duration = Duration::from_secs(300);
/// Entries that are kept beyond those that are in the history, for who reads late.
const LATE: Duration = Duration::from_secs(600);
/// After so long without reading, entries may be gone.
const AWAY: Duration = Duration::from_secs(300);
/// Minutes that are kept for others while Redis is away.
const MOST_MINUTES: usize = 60;
/// Most bytes that anything unpacks to: more than a history takes.
const MOST_BYTES: u64 = 512 << 20;
/// Of entries and of the history; others are not for this version.
const VERSION: u32 = 1;

/// By minutes since 1970.
pub(super) type Counts = BTreeMap<u64, Detail>;

#[derive(Serialize, Deserialize)]
struct Told<C> {
    version: u32,
    counts: C,
}

#[derive(Serialize, Deserialize)]
struct Kept<H> {
    version: u32,
    /// All up to here is in it.
    until: String,
    history: H,
}

/// Done where it keeps no calls waiting.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    spawn_blocking(work).await.map_err(StoreError::shared)
}

fn pack(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(&serde_json::to_vec(value)?)?;
    packer.finish()
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut text = Vec::new();
    GzDecoder::new(bytes).take(MOST_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// What was counted here and others were not told yet.
#[derive(Debug, Default)]
pub(super) struct Untold(Counts);

impl Untold {
    pub(super) fn add(&mut self, minute: u64, detail: &Detail) {
        self.0.entry(minute).or_default().merge(detail, MOST_NAMES);
        while self.0.len() > MOST_MINUTES {
            self.0.pop_first();
        }
    }
}

/// What is being told, until it is certain that it was.
#[derive(Debug)]
struct Telling {
    number: u64,
    counts: Vec<u8>,
}

/// How far a process is with the others.
#[derive(Debug)]
pub(super) struct Sharing {
    store: Arc<Store>,
    /// Tells this process from all others, and from those before it.
    own: String,
    /// All up to here is in the history.
    read: TrafficPlace,
    /// When it was; never: nothing was read yet.
    read_at: Option<Instant>,
    /// The last entry of this process.
    told: TrafficPlace,
    telling: Option<Telling>,
    /// The number of the next one.
    next: u64,
    /// Own entries from this number on are in the history, since they were counted here after it was taken over.
    since: u64,
}

impl Sharing {
    pub(super) fn new(store: Arc<Store>) -> Self {
        let (read, told) = (TrafficPlace::default(), TrafficPlace::default());
        Self { store, own: Uuid::new_v4().to_string(), read, read_at: None, told, telling: None, next: 1, since: 1 }
    }

    /// Listens and tells; once in a while keeps the history.
    pub(super) async fn exchange(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        if self.read_at.is_none_or(|read| read.elapsed() > AWAY) {
            self.take_over(traffic).await?;
        }
        self.listen(traffic).await?;
        self.tell(traffic).await?;
        if self.store.take_traffic_turn(&self.own, KEEP_EVERY).await? {
            self.keep(traffic).await?;
        }
        Ok(())
    }

    /// Begins with the history that was kept, and what was counted here meanwhile.
    async fn take_over(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        let kept = self.store.traffic_history().await?;
        let unpacked = aside(move || unpack::<Kept<History>>(&kept?)).await?;
        let kept = unpacked.filter(|kept| kept.version == VERSION);
        let (until, mut history) = match kept.map(|kept| (kept.until.parse(), kept.history)) {
            Some((Ok(until), history)) => (until, history),
            _ => (TrafficPlace::default(), History::default()),
        };
        history.weigh();
        traffic.count();
        let mut known = lock(&traffic.history);
        for (minute, detail) in &lock(&traffic.untold).0 {
            history.add(*minute, detail);
        }
        *known = history;
        (self.read, self.since) = (until, self.next);
        Ok(())
    }

    /// Adds what others have told.
    async fn listen(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        loop {
            let entries = self.store.traffic_after(self.read).await?;
            self.read_at = Some(Instant::now());
            let Some(last) = entries.last().map(|entry| entry.place) else { return Ok(()) };
            let mut others = Vec::new();
            for entry in entries {
                let is_own = entry.by == self.own;
                if is_own && self.telling.as_ref().is_some_and(|telling| telling.number == entry.number) {
                    (self.telling, self.told) = (None, entry.place);
                }
                if !is_own || entry.number < self.since {
                    others.push(entry.counts);
                }
            }
            let traffic = traffic.clone();
            let add = move || {
                let told = others.iter().filter_map(|counts| unpack::<Told<Counts>>(counts));
                let told: Vec<_> = told.filter(|told| told.version == VERSION).collect();
                let mut history = lock(&traffic.history);
                for (minute, detail) in told.iter().flat_map(|told| &told.counts) {
                    history.add(*minute, detail);
                }
            };
            aside(add).await?;
            self.read = last;
        }
    }

    /// Tells what was counted here. Without an answer, the same is told again unless it turns up.
    async fn tell(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        if self.telling.is_none() {
            traffic.count();
            let counts = std::mem::take(&mut *lock(&traffic.untold)).0;
            if counts.is_empty() {
                return Ok(());
            }
            let packed = aside(move || pack(&Told { version: VERSION, counts })).await?;
            let counts = packed.map_err(StoreError::shared)?;
            self.telling = Some(Telling { number: self.next, counts });
            self.next += 1;
        }
        if let Some(Telling { number, counts }) = &self.telling {
            self.told = self.store.tell_traffic(&self.own, *number, counts).await?;
            self.telling = None;
        }
        Ok(())
    }

    /// Keeps the history for others, if just what was told is in it: what only this process knows would count again.
    async fn keep(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        self.listen(traffic).await?;
        let history = {
            let history = lock(&traffic.history);
            let is_told = lock(&traffic.untold).0.is_empty() && self.telling.is_none() && self.told <= self.read;
            is_told.then(|| history.clone())
        };
        // Someone has just asked, and that has counted some more: the next turn will do.
        let Some(mut history) = history else { return Ok(()) };
        let until = self.read;
        let kept = aside(move || {
            history.tidy(now());
            pack(&Kept { version: VERSION, until: until.to_string(), history })
        });
        let kept = kept.await?.map_err(StoreError::shared)?;
        self.store.keep_traffic(&kept, until.before(LATE)).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Grouping, Range, Sorting};
    use super::*;
    use crate::store::servers::{Server, external, with_redis};

    async fn process(server: &Server) -> Arc<Traffic> {
        Arc::new(Traffic::shared(Arc::new(with_redis(&external(server.port, 1, &[])).await)))
    }

    fn record(traffic: &Traffic, user: &str, times: usize) {
        let call = Call { status: 200, user: Some(user), api: Some("orders/v1"), ..Call::default() };
        (0..times).for_each(|_| traffic.record(&call));
    }

    /// All requests and those of each user, as the monitor of this process tells.
    fn told(traffic: &Traffic) -> (u64, Vec<(String, u64)>) {
        let monitor = traffic.monitor(Range::Day, Grouping::Minute, Sorting::Ascending);
        (monitor.total_requests, monitor.top_users)
    }

    async fn keep(processes: &[&Arc<Traffic>]) {
        for traffic in processes {
            traffic.keep().await.unwrap();
        }
    }

    fn command(server: &Server, command: &[&str]) {
        let client = redis::Client::open(("127.0.0.1", server.port)).unwrap();
        let mut question = redis::cmd(command[0]);
        command[1..].iter().for_each(|argument| {
            question.arg(argument);
        });
        question.query::<redis::Value>(&mut client.get_connection().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn processes_on_one_redis_tell_the_same_however_they_come_and_go() {
        let server = Server::redis(&[]);
        let (a, b) = (process(&server).await, process(&server).await);
        record(&a, "amy", 3);
        keep(&[&a, &b]).await;
        record(&b, "bob", 2);
        record(&a, "amy", 1);
        assert_eq!(told(&a).0, 4, "what it counted itself is told at once");
        let all = (6, vec![("amy".to_owned(), 4), ("bob".to_owned(), 2)]);
        for _ in 0..3 {
            keep(&[&a, &b, &a]).await;
            assert_eq!((told(&a), told(&b)), (all.clone(), all.clone()));
        }
        drop(a);
        // Another process takes over what was kept; without entries, from the history alone.
        for commands in [&[][..], &["DEL", "doorman:traffic:history"], &["DEL", "doorman:traffic:counts"]] {
            if !commands.is_empty() {
                command(&server, &["DEL", "doorman:traffic:turn"]);
                keep(&[&b]).await;
                command(&server, commands);
            }
            let c = process(&server).await;
            keep(&[&c]).await;
            assert_eq!(told(&c), all, "{commands:?}");
        }
        record(&b, "bob", 1);
        let c = process(&server).await;
        keep(&[&b, &c]).await;
        assert_eq!((told(&b).0, told(&c).0), (7, 7));
    }

    #[tokio::test]
    async fn what_only_one_process_knows_is_not_kept_for_others() {
        let server = Server::redis(&[]);
        let a = process(&server).await;
        keep(&[&a]).await;
        record(&a, "amy", 1);
        assert_eq!(told(&a).0, 1);
        command(&server, &["DEL", "doorman:traffic:turn"]);
        a.sharing.as_ref().unwrap().lock().await.keep(&a).await.unwrap();
        let b = process(&server).await;
        keep(&[&b, &a, &b]).await;
        assert_eq!((told(&a).0, told(&b).0), (1, 1));
    }

    #[tokio::test]
    async fn an_outage_loses_nothing_and_an_answer_that_is_lost_doubles_nothing() {
        let mut server = Server::redis(&["--appendonly", "yes", "--appendfsync", "always"]);
        let (a, b) = (process(&server).await, process(&server).await);
        record(&a, "amy", 1);
        keep(&[&a, &b]).await;
        server.stop();
        record(&a, "amy", 1);
        assert!(a.keep().await.is_err());
        record(&a, "amy", 1);
        assert!(a.keep().await.is_err());
        assert_eq!(told(&a).0, 3);
        server.restart();
        let start = Instant::now();
        while a.keep().await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while told(&b).0 < 3 {
            assert!(start.elapsed() < Duration::from_secs(20));
            let _ = a.keep().await;
            let _ = b.keep().await;
        }
        assert_eq!((told(&a).0, told(&b).0), (3, 3));

        // It was told, and the answer got lost.
        record(&a, "amy", 1);
        let sharing = a.sharing.as_ref().unwrap();
        {
            let mut sharing = sharing.lock().await;
            sharing.tell(&a).await.unwrap();
            let number = sharing.next - 1;
            sharing.telling = Some(Telling { number, counts: Vec::new() });
        }
        keep(&[&a, &b]).await;
        assert_eq!((told(&a).0, told(&b).0), (4, 4));

        // It was away for so long that it begins anew, with something untold and something being told.
        record(&a, "amy", 1);
        {
            let mut sharing = sharing.lock().await;
            a.count();
            let counts = std::mem::take(&mut *lock(&a.untold)).0;
            sharing.telling =
                Some(Telling { number: sharing.next, counts: pack(&Told { version: VERSION, counts }).unwrap() });
            sharing.next += 1;
            sharing.read_at = None;
        }
        record(&a, "amy", 1);
        keep(&[&a, &a, &b]).await;
        assert_eq!((told(&a).0, told(&b).0), (6, 6));
    }
}
