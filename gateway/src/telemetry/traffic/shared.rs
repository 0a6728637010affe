//! The traffic of all processes on one Redis, known to each of them.
//!
//! Each tells the others every few seconds what it has counted since, and adds what they tell to its own history, so all
//! answer questions alike and at once. Now and then one of them keeps its history in Redis, a little coarser, with the place
//! of the last entry that is in it: a process that starts, or finds that it has missed some, begins there. What always
//! holds: what is told counts once for everybody, also when it is told again because nothing was heard of it; a process
//! keeps what it knows when Redis forgets; what nobody was told yet, a few seconds', is lost with a process that is killed.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Write};
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
use crate::store::{Store, StoreError, TrafficEntry, TrafficPlace};

/// How often each tells and listens.
const EVERY: Duration = Duration::from_secs(5);
/// Where there are many, together they tell no more often than this.
const EVERY_TOGETHER: Duration = Duration::from_millis(500);
/// Minutes after which one that tells nothing is not among them.
const RECENT: u64 = 5;
/// How often one of them keeps the history.
const KEEP_EVERY: Duration = Duration::from_secs(300);
/// Entries that are left beyond those that are in the history, for who reads late.
const LATE: Duration = Duration::from_secs(300);
/// A process that found no history keeps none for so long: one that knows more may be there.
const NEW: Duration = Duration::from_secs(600);
/// Minutes that are told in one entry, and those that wait to be told.
const TOLD_MINUTES: usize = 5;
const MOST_MINUTES: usize = 60;
/// Minutes for which tellers are remembered.
const REMEMBERED: u64 = 60;
/// Most bytes that the history that is kept takes in memory; packed, it is a tenth.
const MOST_KEPT: usize = 16 << 20;
/// Most bytes that an entry, or the history, unpacks to.
const MOST_TOLD: u64 = 32 << 20;
const MOST_READ: u64 = 256 << 20;

/// By minutes since 1970.
type Counts = BTreeMap<u64, Detail>;

#[derive(Serialize, Deserialize)]
struct Kept {
    /// All up to here is in it.
    until: TrafficPlace,
    tellers: Tellers,
    history: History,
}

/// Of each process the number of its last entry, and the minute when that was seen.
type Tellers = BTreeMap<String, (u64, u64)>;

/// Done where it keeps no calls waiting.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    spawn_blocking(work).await.map_err(StoreError::shared)
}

fn pack(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut packer = BufWriter::new(GzEncoder::new(Vec::new(), Compression::fast()));
    serde_json::to_writer(&mut packer, value)?;
    packer.flush()?;
    packer.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()
}

fn unpack<T: DeserializeOwned>(bytes: &[u8], most: u64) -> serde_json::Result<T> {
    serde_json::from_reader(BufReader::new(GzDecoder::new(bytes).take(most)))
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

    /// Some of it, the oldest first.
    fn take(&mut self) -> Counts {
        let later = self.0.keys().nth(TOLD_MINUTES).copied();
        let later = later.map(|minute| self.0.split_off(&minute)).unwrap_or_default();
        std::mem::replace(&mut self.0, later)
    }
}

/// What is being told, until it was heard.
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
    is_begun: bool,
    /// When it may keep its history though it found none.
    keeps_at: Instant,
    /// All up to here is in the history.
    read: TrafficPlace,
    tellers: Tellers,
    telling: Option<Telling>,
    /// The number of the next one.
    next: u64,
    /// Own entries from this number on are in the history, since they were counted here after it was taken over.
    since: u64,
}

impl Sharing {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            own: Uuid::new_v4().to_string(),
            is_begun: false,
            keeps_at: Instant::now() + NEW,
            read: TrafficPlace::default(),
            tellers: Tellers::new(),
            telling: None,
            next: 1,
            since: 1,
        }
    }

    /// Time until the next exchange.
    pub(super) fn pause(&self) -> Duration {
        let now = now();
        let recent = self.tellers.values().filter(|(_, minute)| minute + RECENT >= now).count();
        EVERY.max(EVERY_TOGETHER * u32::try_from(recent).unwrap_or(u32::MAX))
    }

    /// Listens and tells; once in a while keeps the history.
    pub(super) async fn exchange(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        self.listen_and_tell(traffic).await?;
        if Instant::now() >= self.keeps_at && self.store.take_traffic_turn(&self.own, KEEP_EVERY).await? {
            let kept = self.keep(traffic).await;
            if !matches!(kept, Ok(true)) {
                self.store.leave_traffic_turn().await?;
            }
            kept?;
        }
        Ok(())
    }

    /// Tells all there is, and waits until it was heard.
    pub(super) async fn finish(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        loop {
            self.listen_and_tell(traffic).await?;
            if self.telling.is_none() {
                return Ok(());
            }
        }
    }

    async fn listen_and_tell(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        // First of all, and also without Redis: minutes that are over must not pile up.
        let own = traffic.clone();
        aside(move || own.count()).await?;
        if !self.is_begun {
            self.take_over(traffic).await?;
            self.is_begun = true;
        }
        self.listen(traffic).await?;
        self.tell(traffic).await
    }

    /// Goes on with the history that was kept and what was counted here meanwhile, if that is more than is known here.
    async fn take_over(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        let Some(kept) = self.store.traffic_history().await? else { return Ok(()) };
        let Kept { until, tellers, mut history } = match aside(move || unpack(&kept, MOST_READ)).await? {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "the history of traffic in Redis can't be read; a new one is kept");
                return Ok(());
            }
        };
        if until <= self.read {
            return Ok(());
        }
        let traffic = traffic.clone();
        let replace = move || {
            history.weigh();
            let mut known = lock(&traffic.history);
            for (minute, detail) in &lock(&traffic.untold).0 {
                history.add(*minute, detail);
            }
            let before = std::mem::replace(&mut *known, history);
            drop(known);
            drop(before);
        };
        aside(replace).await?;
        (self.read, self.tellers, self.since, self.keeps_at) = (until, tellers, self.next, Instant::now());
        Ok(())
    }

    /// Adds what others have told.
    async fn listen(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        loop {
            let entries = self.store.traffic_after(self.read).await?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
            let (before, last) = (self.read, last.place);
            if before != TrafficPlace::default() && before.is_behind(first.place, LATE) {
                // What lay between may be gone.
                self.take_over(traffic).await?;
                if self.read != before {
                    continue;
                }
            }
            let news: Vec<_> = entries.into_iter().filter_map(|entry| self.news(entry)).collect();
            let traffic = traffic.clone();
            let add = move || {
                let (mut all, latest) = (Counts::new(), now() + 1);
                for told in news.iter().filter_map(|counts| unpack::<Counts>(counts, MOST_TOLD).ok()) {
                    for (minute, detail) in told {
                        // A clock that is ahead fills no times that are still to come.
                        all.entry(minute.min(latest)).or_default().merge(&detail, MOST_NAMES);
                    }
                }
                let mut history = lock(&traffic.history);
                for (minute, detail) in &all {
                    history.add(*minute, detail);
                }
            };
            aside(add).await?;
            self.read = last;
        }
    }

    /// What an entry tells, unless it is known.
    fn news(&mut self, entry: TrafficEntry) -> Option<Vec<u8>> {
        let is_own = entry.by == self.own;
        if is_own && self.telling.as_ref().is_some_and(|telling| telling.number == entry.number) {
            self.telling = None;
        }
        let (last, seen) = self.tellers.entry(entry.by).or_default();
        *seen = now();
        let is_news = entry.number > *last;
        *last = entry.number.max(*last);
        (is_news && (!is_own || entry.number < self.since)).then_some(entry.counts)
    }

    /// Tells what was counted here, again if it was told and has not been heard.
    async fn tell(&mut self, traffic: &Arc<Traffic>) -> Result<(), StoreError> {
        if self.telling.is_none() {
            let traffic = traffic.clone();
            let packed = aside(move || {
                let counts = lock(&traffic.untold).take();
                (!counts.is_empty()).then(|| pack(&counts))
            });
            let Some(packed) = packed.await? else { return Ok(()) };
            self.telling = Some(Telling { number: self.next, counts: packed.map_err(StoreError::shared)? });
            self.next += 1;
        }
        if let Some(Telling { number, counts }) = &self.telling {
            let place = self.store.tell_traffic(&self.own, *number, counts).await?;
            if place <= self.read {
                // The clock of Redis went back, others may have told before: what is read twice is known by its number.
                self.read = place.before(LATE);
            }
        }
        Ok(())
    }

    /// Keeps the history for others, if just what was heard is in it: what only this process knows would count again.
    /// False: there is more, since someone has just asked.
    async fn keep(&mut self, traffic: &Arc<Traffic>) -> Result<bool, StoreError> {
        self.listen(traffic).await?;
        if self.telling.is_some() {
            return Ok(false);
        }
        let minute = now();
        self.tellers.retain(|_, (_, seen)| *seen + REMEMBERED >= minute);
        let (traffic, until, tellers) = (traffic.clone(), self.read, self.tellers.clone());
        let packed = aside(move || {
            let mut history = {
                let history = lock(&traffic.history);
                lock(&traffic.untold).0.is_empty().then(|| history.clone())?
            };
            history.tidy(minute);
            history.fit(minute, MOST_KEPT);
            Some(pack(&Kept { until, tellers, history }))
        });
        let Some(packed) = packed.await? else { return Ok(false) };
        self.store.keep_traffic(&packed.map_err(StoreError::shared)?, until.before(LATE)).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Call, Grouping, Range, SHARDS, Sorting};
    use super::*;
    use crate::store::servers::{Server, external, redis_client, with_redis};

    const COUNTS: &str = "doorman:traffic:counts:1";
    const HISTORY: &str = "doorman:traffic:history:1";
    const TURN: &str = "doorman:traffic:turn:1";

    async fn process(server: &Server) -> Arc<Traffic> {
        Arc::new(Traffic::shared(Arc::new(with_redis(&external(server.port, 1, &[])).await)))
    }

    fn record(traffic: &Traffic, user: &str, times: usize) {
        let call = Call { status: 200, user: Some(user), api: Some("orders/v1"), ..Call::default() };
        (0..times).for_each(|_| traffic.record(&call));
    }

    /// How many requests this process tells of.
    fn told(traffic: &Traffic) -> u64 {
        traffic.monitor(Range::Day, Grouping::Minute, Sorting::Ascending).total_requests
    }

    async fn exchange(processes: &[&Arc<Traffic>]) {
        for traffic in processes {
            sharing(traffic).await.exchange(traffic).await.unwrap();
        }
    }

    async fn sharing(traffic: &Traffic) -> tokio::sync::MutexGuard<'_, Sharing> {
        traffic.sharing.as_ref().unwrap().lock().await
    }

    /// Has this process keep its history.
    async fn keep(server: &Server, traffic: &Arc<Traffic>) {
        command(server, &["DEL", TURN]);
        sharing(traffic).await.keeps_at = Instant::now();
        exchange(&[traffic]).await;
        assert_eq!(command(server, &["EXISTS", HISTORY]), 1);
    }

    fn command(server: &Server, command: &[&str]) -> i64 {
        let mut question = redis::cmd(command[0]);
        question.arg(&command[1..]);
        question.query(&mut redis_client(server.port)).unwrap()
    }

    #[tokio::test]
    async fn processes_on_one_redis_tell_the_same_however_they_come_and_go() {
        let server = Server::redis(&[]);
        let (a, b) = (process(&server).await, process(&server).await);
        record(&a, "amy", 3);
        exchange(&[&a, &b]).await;
        record(&b, "bob", 2);
        record(&a, "amy", 1);
        assert_eq!(told(&a), 4, "what it counted itself is told at once");
        for _ in 0..3 {
            exchange(&[&a, &b, &a]).await;
            assert_eq!((told(&a), told(&b)), (6, 6));
        }
        let users = a.monitor(Range::Day, Grouping::Minute, Sorting::Ascending).top_users;
        assert_eq!(users, [("amy".to_owned(), 4), ("bob".to_owned(), 2)]);
        drop(a);
        // A new process reads what was told; or goes on with what was kept, where that is all there is.
        let c = process(&server).await;
        exchange(&[&c]).await;
        assert_eq!(told(&c), 6);
        keep(&server, &b).await;
        for gone in [None, Some(COUNTS)] {
            gone.map(|key| command(&server, &["DEL", key]));
            let d = process(&server).await;
            exchange(&[&d]).await;
            assert_eq!(told(&d), 6, "without {gone:?}");
        }
        record(&b, "bob", 1);
        exchange(&[&b, &c]).await;
        assert_eq!((told(&b), told(&c)), (7, 7));
    }

    #[tokio::test]
    async fn many_entries_and_many_minutes_are_told() {
        let server = Server::redis(&[]);
        let (a, b) = (process(&server).await, process(&server).await);
        for _ in 0..25 {
            record(&a, "amy", 1);
            exchange(&[&a]).await;
        }
        let call = Call { status: 200, ..Call::default() };
        (1..=30).for_each(|ago| a.record_at(now() - ago, &call));
        sharing(&a).await.finish(&a).await.unwrap();
        assert!(lock(&a.untold).0.is_empty());
        exchange(&[&b]).await;
        assert_eq!((told(&a), told(&b)), (55, 55));
        // A clock that is ahead.
        a.record_at(now() + 1_000, &call);
        exchange(&[&a, &b]).await;
        assert_eq!(lock(&b.history).series.last_key_value().map(|(minute, _)| *minute <= now() + 1), Some(true));
    }

    #[tokio::test]
    async fn what_only_one_process_knows_is_not_kept_for_others() {
        let server = Server::redis(&[]);
        let a = process(&server).await;
        exchange(&[&a]).await;
        record(&a, "amy", 1);
        assert_eq!(told(&a), 1);
        assert!(!sharing(&a).await.keep(&a).await.unwrap());
        let b = process(&server).await;
        exchange(&[&b, &a, &b]).await;
        assert_eq!((told(&a), told(&b)), (1, 1));
        // One that is new and found nothing has no say in what is kept.
        assert_eq!(command(&server, &["EXISTS", TURN, HISTORY]), 0);
    }

    #[tokio::test]
    async fn an_outage_loses_nothing_and_nothing_piles_up_in_it() {
        let mut server = Server::redis(&["--appendonly", "yes", "--appendfsync", "always"]);
        let (a, b) = (process(&server).await, process(&server).await);
        record(&a, "amy", 1);
        exchange(&[&a, &b]).await;
        server.stop();
        let call = Call { status: 200, ..Call::default() };
        for ago in (1..=40).rev() {
            a.record_at(now() - ago, &call);
            assert!(sharing(&a).await.exchange(&a).await.is_err());
            assert!(lock(&a.outbox).len() <= SHARDS);
        }
        assert_eq!(told(&a), 41);
        server.restart();
        let start = Instant::now();
        while told(&b) < 41 {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", told(&b));
            for traffic in [&a, &b] {
                // It may take a moment until there is a connection.
                let _ = sharing(traffic).await.exchange(traffic).await;
            }
        }
        assert_eq!((told(&a), told(&b)), (41, 41));
    }

    #[tokio::test]
    async fn what_is_told_again_counts_once_and_what_redis_forgets_is_known_on() {
        let server = Server::redis(&[]);
        let (a, b) = (process(&server).await, process(&server).await);
        record(&a, "amy", 1);
        exchange(&[&a]).await;
        // The answer got lost, and it is told again before the first is heard.
        sharing(&a).await.tell(&a).await.unwrap();
        assert_eq!(command(&server, &["XLEN", COUNTS]), 2);
        exchange(&[&b, &a, &b]).await;
        assert_eq!((told(&a), told(&b)), (1, 1));

        // A Redis that comes back empty: what was not heard is told again, and nothing is replaced by less.
        record(&a, "amy", 1);
        exchange(&[&a]).await;
        command(&server, &["DEL", COUNTS]);
        exchange(&[&a, &b, &a]).await;
        assert_eq!((told(&a), told(&b)), (2, 2));

        // Its clock went back: everybody knows what all had told, and hears what is told from now on.
        keep(&server, &a).await;
        for traffic in [&a, &b] {
            sharing(traffic).await.read = "99999999999999-0".parse().unwrap();
        }
        record(&a, "amy", 1);
        record(&b, "bob", 1);
        exchange(&[&a, &b, &a, &b, &a]).await;
        assert_eq!((told(&a), told(&b)), (4, 4));
    }

    #[tokio::test]
    async fn one_that_was_away_for_long_goes_on_with_what_was_kept() {
        let server = Server::redis(&[]);
        let (a, b) = (process(&server).await, process(&server).await);
        record(&a, "amy", 2);
        record(&b, "bob", 1);
        exchange(&[&a, &b, &a, &b]).await;
        // While `a` is away, entries that it has not heard are kept and go.
        record(&b, "bob", 4);
        exchange(&[&b]).await;
        keep(&server, &b).await;
        command(&server, &["DEL", COUNTS]);
        record(&a, "amy", 1);
        assert_eq!(told(&a), 4);
        sharing(&a).await.read = "1-0".parse().unwrap();
        record(&b, "bob", 1);
        exchange(&[&b, &a]).await;
        assert_eq!(told(&a), 9);
        exchange(&[&b, &a]).await;
        assert_eq!((told(&a), told(&b)), (9, 9));
    }
}
