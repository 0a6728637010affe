//! Records to all their sinks: standard output, `doorman.log`, the audit trail, and a ring in memory.
//!
//! A record is made into its line where it happens, without its secrets, and put into a bounded queue; one thread
//! writes what has come together. So nothing that asks for a record ever waits for a disk or a pipe: when the writer
//! can't keep up, records are dropped, counted in a metric and told in the log. The audit trail has a queue of its own,
//! which no number of other records can fill.
//!
//! Levels: ours down to `LOG_LEVEL`; other libraries' never below INFO, because their finer records quote what they
//! carry. The audit trail is written at any level.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::settings::{self, LogFormat, LogLevel};

mod files;
mod record;
pub mod ring;

use files::LogFile;
pub(in crate::telemetry) use files::{COPIES, old_copy};
pub(in crate::telemetry) use record::COLUMN;
pub use record::{AUDIT, GATEWAY, about, along};
use ring::Ring;

/// Where files go that `LOGS_DIR` can't take.
const SPARE: &str = "/tmp/doorman-logs";
/// Name of the application's log file.
pub const APPLICATION_FILE: &str = "doorman.log";
/// Name of the audit trail's file.
pub const AUDIT_FILE: &str = "doorman-trail.log";
/// How long records come together before they are written: the writer wakes up fifty times a second at most.
const TOGETHER: Duration = Duration::from_millis(20);
/// Bytes of one trail that may wait.
const MOST_WAITING: usize = 8 * 1024 * 1024;
/// How often a file that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long an end waits for the last records to be written.
const FAREWELL: Duration = Duration::from_secs(3);

/// The two kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trail {
    /// What the gateway does.
    Application,
    /// Who changed what.
    Audit,
}

#[derive(Default)]
struct Waiting {
    application: Vec<u8>,
    audit: Vec<u8>,
    dropped: u64,
    /// The writer has to be woken up for the next record.
    is_asleep: bool,
    /// To be written without waiting for more.
    is_urgent: bool,
    is_reopening: bool,
    is_ending: bool,
    /// How often a flush was asked for, and up to which all is written.
    asked: u64,
    done: u64,
}

/// What producers, the writer and the readers share.
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    written: Condvar,
    format: LogFormat,
    level: AtomicU8,
    dropped: Counter,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, trail: Trail, line: &[u8]) {
        let mut guard = self.lock();
        let waiting = &mut *guard;
        let lines = match trail {
            Trail::Application => &mut waiting.application,
            Trail::Audit => &mut waiting.audit,
        };
        if lines.len() + line.len() > MOST_WAITING {
            waiting.dropped += 1;
            drop(guard);
            self.dropped.inc();
            return;
        }
        lines.extend_from_slice(line);
        let is_filling = lines.len() > MOST_WAITING / 8 && !waiting.is_urgent;
        waiting.is_urgent |= is_filling;
        let is_to_wake = std::mem::take(&mut waiting.is_asleep) || is_filling;
        drop(guard);
        if is_to_wake {
            self.changed.notify_all();
        }
    }

    fn max_level(&self) -> LevelFilter {
        match self.level.load(Ordering::Relaxed) {
            0 => LevelFilter::DEBUG,
            1 => LevelFilter::INFO,
            2 => LevelFilter::WARN,
            _ => LevelFilter::ERROR,
        }
    }

    fn is_wanted(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() {
            return false;
        }
        let target = metadata.target();
        let max = if record::is_ours(target) { self.max_level() } else { self.max_level().min(LevelFilter::INFO) };
        target == AUDIT || *metadata.level() <= max
    }
}

fn number(level: LogLevel) -> u8 {
    match level {
        LogLevel::Debug => 0,
        LogLevel::Info => 1,
        LogLevel::Warning => 2,
        LogLevel::Error | LogLevel::Critical => 3,
    }
}

/// The logs of a process; dropped, they are written to the end.
pub struct Logs {
    shared: Arc<Shared>,
    ring: Option<Arc<Ring>>,
    folder: Option<PathBuf>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

static CURRENT: OnceLock<Arc<Logs>> = OnceLock::new();

/// Starts the logs of this process; called again, it returns them as they are.
pub fn start(settings: &settings::Logs) -> Arc<Logs> {
    CURRENT
        .get_or_init(|| {
            let (logs, warning) = Logs::open(settings, Path::new(SPARE), io::stdout());
            let logs = Arc::new(logs);
            // Only fails when a subscriber is set already.
            let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(logs.layer()));
            if let Some(warning) = warning {
                tracing::warn!("{warning}");
            }
            logs
        })
        .clone()
}

/// Changes the level of this process's logs from now on.
pub fn set_level(level: LogLevel) {
    if let Some(logs) = CURRENT.get() {
        logs.set_level(level);
    }
}

impl Logs {
    /// Opens the files and starts the writer. The warning tells which folder could not be used.
    pub fn open(
        settings: &settings::Logs,
        spare: &Path,
        stdout: impl Write + Send + 'static,
    ) -> (Self, Option<String>) {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            written: Condvar::new(),
            format: settings.format,
            level: AtomicU8::new(number(settings.level)),
            dropped: Counter::default(),
        });
        let (folder, mut warning) = files::folder(&settings.folder, spare);
        let ring = settings.memory.then(Arc::<Ring>::default);
        let mut open = |name| {
            let path = folder.as_ref()?.join(name);
            Sink::open(path).inspect_err(|error| warning = Some(format!("{name} can't be opened: {error}"))).ok()
        };
        let sinks = Sinks {
            application: open(APPLICATION_FILE),
            audit: open(AUDIT_FILE),
            stdout: Box::new(stdout),
            ring: ring.clone(),
            format: settings.format,
        };
        let own = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("logs".into()).spawn(move || write_all(&own, sinks));
        let writer = writer.inspect_err(|error| warning = Some(format!("no log can be written: {error}"))).ok();
        (Self { shared, ring, folder, writer: Mutex::new(writer) }, warning)
    }

    /// What makes records of tracing's events.
    pub fn layer<S: Subscriber>(&self) -> impl Layer<S> + use<S> {
        Events(Arc::clone(&self.shared))
    }

    /// Changes the level from now on.
    pub fn set_level(&self, level: LogLevel) {
        self.shared.level.store(number(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Opens the files again under their names, after someone renamed them.
    pub fn reopen(&self) {
        self.shared.lock().is_reopening = true;
        self.flush();
    }

    /// Waits until every record so far is in its sinks; not for long, when a sink is stuck.
    pub fn flush(&self) {
        let mut waiting = self.shared.lock();
        waiting.asked += 1;
        let asked = waiting.asked;
        self.shared.changed.notify_all();
        let written = self.shared.written.wait_timeout_while(waiting, FAREWELL, |waiting| waiting.done < asked);
        drop(written);
    }

    /// Records dropped because the writer could not keep up.
    pub fn dropped(&self) -> Counter {
        self.shared.dropped.clone()
    }

    /// The last records, if they are kept.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_deref()
    }

    /// The folder of the log files; none when only the console could be used.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.flush();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // One that is stuck is left behind.
        if let Some(writer) = writer.filter(JoinHandle::is_finished) {
            let _ = writer.join();
        }
    }
}

struct Events(Arc<Shared>);

impl<S: Subscriber> Layer<S> for Events {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.is_wanted(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.max_level().max(LevelFilter::INFO))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let trail = if event.metadata().target() == AUDIT { Trail::Audit } else { Trail::Application };
        record::line(event, self.0.format, |line| self.0.push(trail, line));
    }
}

/// A file, and since when it can't be written to.
struct Sink {
    file: LogFile,
    failed: Option<Instant>,
}

impl Sink {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: LogFile::open(path)?, failed: None })
    }

    /// `Some`: what is to be said about a failure that is new.
    fn write(&mut self, lines: &[u8]) -> Result<(), Option<io::Error>> {
        if let Some(failed) = self.failed {
            if failed.elapsed() < AGAIN {
                return Err(None);
            }
            if self.file.reopen().is_err() {
                self.failed = Some(Instant::now());
                return Err(None);
            }
        }
        let was_failing = self.failed.take().is_some();
        self.file.write(lines).map_err(|error| {
            self.failed = Some(Instant::now());
            (!was_failing).then_some(error)
        })
    }
}

struct Sinks {
    stdout: Box<dyn Write + Send>,
    application: Option<Sink>,
    audit: Option<Sink>,
    ring: Option<Arc<Ring>>,
    format: LogFormat,
}

impl Sinks {
    fn write(&mut self, trail: Trail, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if let Some(ring) = &self.ring {
            ring.add(trail, lines);
        }
        let (sink, name) = match trail {
            Trail::Application => (&mut self.application, APPLICATION_FILE),
            Trail::Audit => (&mut self.audit, AUDIT_FILE),
        };
        let outcome = sink.as_mut().map_or(Err(None), |sink| sink.write(lines));
        if trail == Trail::Application || outcome.is_err() {
            // Nobody reads the standard output any more: there is nowhere to say so.
            let _ = self.stdout.write_all(lines);
        }
        if let Err(Some(error)) = outcome {
            let message = format!("{name} can't be written: {error}; it is tried again");
            let _ = self.stdout.write_all(&record::own_line(Level::ERROR, &message, self.format));
        }
        let _ = self.stdout.flush();
    }

    fn reopen(&mut self) {
        for sink in [&mut self.application, &mut self.audit].into_iter().flatten() {
            if sink.file.reopen().is_err() {
                sink.failed = Some(Instant::now());
            }
        }
    }
}

/// The writer: takes what has come together, writes it, and again, until the end.
fn write_all(shared: &Shared, mut sinks: Sinks) {
    let (mut application, mut audit) = (Vec::new(), Vec::new());
    loop {
        let has_order = |waiting: &Waiting| waiting.is_urgent || waiting.is_ending || waiting.asked > waiting.done;
        let mut waiting = shared.lock();
        while waiting.application.is_empty() && waiting.audit.is_empty() && !has_order(&waiting) {
            waiting.is_asleep = true;
            waiting = shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.is_asleep = false;
        let together = shared.changed.wait_timeout_while(waiting, TOGETHER, |waiting| !has_order(waiting));
        waiting = together.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut waiting.application, &mut application);
        std::mem::swap(&mut waiting.audit, &mut audit);
        let (asked, is_ending) = (waiting.asked, waiting.is_ending);
        let dropped = std::mem::take(&mut waiting.dropped);
        let is_reopening = std::mem::take(&mut waiting.is_reopening);
        waiting.is_urgent = false;
        drop(waiting);

        sinks.write(Trail::Application, &application);
        sinks.write(Trail::Audit, &audit);
        if dropped > 0 {
            let message = format!("{dropped} log records were dropped: the log can't be written as fast as it comes");
            sinks.write(Trail::Application, &record::own_line(Level::WARN, &message, sinks.format));
        }
        if is_reopening {
            sinks.reopen();
        }
        for buffer in [&mut application, &mut audit] {
            buffer.clear();
            // After a burst the memory goes back.
            buffer.shrink_to(MOST_WAITING / 32);
        }
        shared.lock().done = asked;
        shared.written.notify_all();
        if is_ending {
            return;
        }
    }
}

#[cfg(test)]
pub(in crate::telemetry) mod tests;
