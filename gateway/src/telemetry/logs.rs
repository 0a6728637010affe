//! Log lines in the two forms of the operations guide, on standard output.

use std::fmt::{self, Write as _};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

use crate::settings::{LogFormat, LogLevel};

/// Changes the level of the log that was started; before that there is none to change.
static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging; the second call in one process changes nothing.
pub fn start(format: LogFormat, level: LogLevel) {
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = tracing_subscriber::fmt::layer().event_format(GuideFormat { json: matches!(format, LogFormat::Json) });
    // Only fails when a subscriber is set already.
    if tracing::subscriber::set_global_default(Registry::default().with(filter).with(lines)).is_ok() {
        // Nobody else can have set it.
        let _ = LEVEL.set(handle);
    }
}

/// Writes records of this level and above from now on.
pub fn set_level(level: LogLevel) {
    if let Some(Err(error)) = LEVEL.get().map(|handle| handle.reload(filter(level))) {
        tracing::error!(%error, "the log level can't be changed");
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
    }
}

struct GuideFormat {
    json: bool,
}

#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.named.push((field.name(), text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.named.push((field.name(), value.to_owned()));
        }
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

impl<S, N> FormatEvent<S, N> for GuideFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = jiff::Timestamp::now();
        let level = level_name(*event.metadata().level());
        if self.json {
            let mut record = serde_json::Map::new();
            record.insert("timestamp".into(), now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string().into());
            record.insert("level".into(), level.into());
            record.insert("name".into(), "doorman.gateway".into());
            record.insert("message".into(), fields.message.into());
            for (name, value) in fields.named {
                record.insert(name.into(), value.into());
            }
            let line = serde_json::to_string(&record).map_err(|_| fmt::Error)?;
            return writeln!(out, "{line}");
        }
        let mut line = format!("{} {level}", now.strftime("%Y-%m-%d %H:%M:%S"));
        if let Some((_, id)) = fields.named.iter().find(|(name, _)| *name == "request_id") {
            write!(line, " [request_id={id}]")?;
        }
        write!(line, " {}", fields.message)?;
        for (name, value) in fields.named.iter().filter(|(name, _)| *name != "request_id") {
            write!(line, " {name}={value}")?;
        }
        // One event is one line, whatever a client put into it.
        writeln!(out, "{}", line.replace(['\n', '\r'], " "))
    }
}
