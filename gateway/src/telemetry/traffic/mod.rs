//! Traffic under `/api`, over ninety days (reference: gateway behaviour 21.1).
//!
//! In: one [`Call`] for each answered request, which costs one short lock that threads rarely share. Out: the numbers of
//! the monitor, the report, the dashboard and the analytics. What always holds: each request counts once; memory is
//! bounded however many APIs, endpoints and users there are (the rarest count together, as `other`, and the past gets
//! coarser); what was counted up to a minute ago survives a restart, in `metrics.json` beside the logs. Processes on one
//! Redis count together ([`shared`]), and what they have counted survives them there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod analytics;
mod count;
mod history;
mod latencies;
mod saved;
mod shared;
mod shown;

pub use analytics::{
    Analysis, Granularity, OneApi, OneUser, Overview, SortBy, Timeseries, TopApis, TopEndpoints, TopUsers, When,
};
use count::Detail;
pub use count::Protocol;
use history::History;
use shared::{Sharing, Untold};
pub use shown::{ApiUse, Dashboard, Grouping, Monitor, Popular, Range, Sorting};

use crate::store::Store;

/// Name of the file in the folder of the logs.
pub const FILE: &str = "metrics.json";
/// Locks that requests are spread over.
const SHARDS: usize = 16;
/// How often it is saved.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// Longest time that sharing the last of it takes.
const FINISH: Duration = Duration::from_secs(1);

/// One answered request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call<'a> {
    /// Status of the answer.
    pub status: u16,
    /// Time to the answer.
    pub elapsed: Duration,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// Bytes of the answer.
    pub bytes_out: u64,
    /// How the API was called.
    pub protocol: Protocol,
    /// Name and version, `orders/v1`; none when there is no such API.
    pub api: Option<&'a str>,
    /// Method, API and path as defined, `GET orders/v1/items/{id}`; none when there is no such endpoint.
    pub endpoint: Option<&'a str>,
    /// Who called, if known.
    pub user: Option<&'a str>,
    /// Attempts that took too long.
    pub timeouts: u32,
    /// Attempts after the first.
    pub retries: u32,
    /// Is it synthetic traffic? That is in the totals but in no table.
    pub is_test: bool,
}

impl Call<'_> {
    fn is_error(&self) -> bool {
        self.status >= 400
    }
}

/// One minute in the making.
#[derive(Debug, Default)]
struct Bucket {
    minute: u64,
    detail: Detail,
}

/// All traffic of this process, and of those that share a Redis with it.
#[derive(Debug)]
pub struct Traffic {
    shards: [Mutex<Bucket>; SHARDS],
    /// Minutes that are over, on their way into the history: requests never wait for a reader of it.
    outbox: Mutex<Vec<Bucket>>,
    history: Mutex<History>,
    /// Part of the history; changes only while that is locked, or empties.
    untold: Mutex<Untold>,
    sharing: Option<tokio::sync::Mutex<Sharing>>,
    file: Option<PathBuf>,
    is_changed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Minutes since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60
}

thread_local! {
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

impl Traffic {
    /// With what the file in this folder has; without a folder, it lives as long as the process.
    pub fn open(folder: Option<&Path>) -> Self {
        let file = folder.map(|folder| folder.join(FILE));
        let history = file.as_deref().map(load).unwrap_or_default();
        Self {
            shards: Default::default(),
            outbox: Mutex::default(),
            history: Mutex::new(history),
            untold: Mutex::default(),
            sharing: None,
            file,
            is_changed: AtomicBool::new(false),
        }
    }

    /// With what processes on the same Redis have counted and will count.
    pub fn shared(store: Arc<Store>) -> Self {
        Self { sharing: Some(Sharing::new(store).into()), ..Self::open(None) }
    }

    /// Counts a request.
    pub fn record(&self, call: &Call<'_>) {
        self.record_at(now(), call);
    }

    fn record_at(&self, minute: u64, call: &Call<'_>) {
        let mut bucket = lock(&self.shards[SHARD.with(|shard| *shard)]);
        if bucket.minute != minute {
            let over = std::mem::replace(&mut *bucket, Bucket { minute, ..Bucket::default() });
            if !over.detail.is_empty() {
                lock(&self.outbox).push(over);
            }
        }
        bucket.detail.record(call);
    }

    /// The history with all that was counted so far.
    fn history(&self, now: u64) -> MutexGuard<'_, History> {
        let mut over = Vec::new();
        for shard in &self.shards {
            let mut bucket = lock(shard);
            if !bucket.detail.is_empty() {
                let minute = bucket.minute;
                over.push(std::mem::replace(&mut *bucket, Bucket { minute, ..Bucket::default() }));
            }
        }
        over.append(&mut lock(&self.outbox));
        let mut history = lock(&self.history);
        if !over.is_empty() {
            self.is_changed.store(true, Ordering::Relaxed);
        }
        for bucket in over {
            history.add(bucket.minute, &bucket.detail);
            if self.sharing.is_some() {
                lock(&self.untold).add(bucket.minute, &bucket.detail);
            }
        }
        history.tidy(now);
        history
    }

    /// Brings all that was counted so far into the history.
    fn count(&self) {
        drop(self.history(now()));
    }

    /// Saves what has changed since it was last saved.
    ///
    /// # Errors
    /// When the file can't be written; the earlier one stays.
    fn save(&self) -> io::Result<()> {
        // Also where nothing is saved: minutes that are over must not pile up.
        let history = self.history(now());
        let Some(file) = self.file.as_ref().filter(|_| self.is_changed.swap(false, Ordering::Relaxed)) else {
            return Ok(());
        };
        let kept = history.clone();
        drop(history);
        let written = write_whole(file, &saved::write(&kept)?);
        self.is_changed.fetch_or(written.is_err(), Ordering::Relaxed);
        written
    }

    /// Saves once a minute, or shares every few seconds, until it is dropped: one task of the process runs this.
    pub async fn maintain(self: Arc<Self>) {
        let mut is_failing = false;
        loop {
            let (kept, pause) = match &self.sharing {
                Some(sharing) => {
                    let mut sharing = sharing.lock().await;
                    (sharing.exchange(&self).await.map_err(anyhow::Error::from), sharing.pause())
                }
                None => (self.clone().saved().await, SAVE_EVERY),
            };
            match kept {
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(%error, "counts of traffic can't be kept; it is tried again every {pause:?}");
                }
                Ok(()) => is_failing = false,
                _ => {}
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn saved(self: Arc<Self>) -> anyhow::Result<()> {
        Ok(tokio::task::spawn_blocking(move || self.save()).await??)
    }

    /// Saves or shares the last of it, before the process ends.
    ///
    /// # Errors
    /// What has failed, or that it took too long.
    pub async fn finish(self: Arc<Self>) -> anyhow::Result<()> {
        match &self.sharing {
            None => self.saved().await,
            Some(sharing) => {
                let finish = async { sharing.lock().await.finish(&self).await };
                Ok(tokio::time::timeout(FINISH, finish).await??)
            }
        }
    }

    /// Everybody who called in these minutes.
    fn users(detail: &Detail) -> BTreeSet<&str> {
        detail.users.keys().map(|name| &**name).filter(|name| *name != count::OTHER).collect()
    }
}

/// The new contents or the old ones, whenever the process or the machine ends.
fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let mut file = fs::File::create(&unfinished)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

/// What cannot be read is put aside.
fn load(path: &Path) -> History {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "{FILE} can't be read; traffic is counted from zero");
            }
            return History::default();
        }
    };
    saved::read(&bytes).unwrap_or_else(|| {
        let aside = path.with_extension("json.unread");
        let outcome = fs::rename(path, &aside);
        tracing::warn!(?outcome, "{FILE} is of another version or damaged; it is now {}", aside.display());
        History::default()
    })
}

#[cfg(test)]
mod tests;
