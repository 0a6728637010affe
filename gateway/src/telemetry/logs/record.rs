//! One record and the line it becomes, in the two forms of the operations guide.
//!
//! Plain: `2024-01-15 10:30:00 INFO [request_id=abc123] User admin logged in`, and, when a record has more fields,
//! ` | username=admin api=orders/v1` after it, but for audit events, whose message tells all. JSON: the members of the
//! guide, always all of them, then `name` (the logger) and the other fields. A line is one line, whatever a client put
//! into it, and what stands after its last ` | ` was put there by us: a message can't pretend to have fields.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use smallvec::SmallVec;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

use crate::settings::LogFormat;
use crate::telemetry::redaction::{self, REDACTED};

/// The audit trail's logger.
pub const AUDIT: &str = "doorman.audit";
/// Everything else of ours.
pub const GATEWAY: &str = "doorman.gateway";
/// What stands between a plain message and its fields.
pub(in crate::telemetry) const COLUMN: &str = " | ";
/// Bytes of one text above which it is cut.
const LONGEST: usize = 16 * 1024;
/// Members of the JSON form that fields may not take.
const TAKEN: [&str; 4] = ["timestamp", "level", "name", "message"];

/// The level's name, as the guide has it.
pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

/// The logger's name.
pub(super) fn logger(metadata: &'static Metadata<'static>) -> &'static str {
    match metadata.target() {
        AUDIT => AUDIT,
        target if is_ours(target) => GATEWAY,
        library => library,
    }
}

pub(super) fn is_ours(target: &str) -> bool {
    target.starts_with("doorman")
}

#[derive(Default)]
struct Scratch {
    text: String,
    message: Range<usize>,
    request_id: Option<Range<usize>>,
    username: Option<Range<usize>>,
    client_ip: Option<Range<usize>>,
    others: SmallVec<[Other; 8]>,
}

struct Other {
    name: &'static str,
    value: Range<usize>,
    /// A number or a truth value, which JSON writes without quotes.
    is_bare: bool,
}

impl Scratch {
    fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(LONGEST);
        (self.message, self.request_id, self.username, self.client_ip) = (0..0, None, None, None);
        self.others.clear();
    }

    fn put(&mut self, field: &Field, is_bare: bool, write: impl FnOnce(&mut String) -> fmt::Result) {
        let name = field.name();
        let is_known = matches!(name, "message" | "request_id" | "username" | "client_ip");
        if !is_known {
            // With its name before it, so that one look at the whole text also finds fields that are named as secrets.
            self.text.push_str(name);
            self.text.push('=');
        }
        let start = self.text.len();
        // A value that fails to show itself is shown as far as it came.
        let _ = write(&mut self.text);
        if self.text.len() - start > LONGEST {
            let end = (start..=start + LONGEST).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(start);
            self.text.truncate(end);
            self.text.push_str("...");
        }
        let value = start..self.text.len();
        self.text.push('\n');
        match name {
            "message" => self.message = value,
            "request_id" => self.request_id = Some(value),
            "username" => self.username = Some(value),
            "client_ip" => self.client_ip = Some(value),
            _ => self.others.push(Other { name, value, is_bare }),
        }
    }

    fn about(&mut self, request: &HeaderValue) {
        let start = self.text.len();
        self.text.push_str(request.to_str().unwrap_or_default());
        self.request_id = Some(start..self.text.len());
        self.text.push('\n');
    }
}

impl Visit for Scratch {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, false, |text| write!(text, "{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, false, |text| text.write_str(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, true, |text| write!(text, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, true, |text| write!(text, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, true, |text| write!(text, "{value}"));
    }
}

tokio::task_local! {
    /// The id of the request that is handled.
    static REQUEST: HeaderValue;
}

/// Lets the records of a request that don't name it carry its id. Takes the future where it is: that of a request is large, and
/// moving it costs more than all that is done with the id.
pub async fn about<F: Future>(request: HeaderValue, mut handling: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| REQUEST.sync_scope(request.clone(), || handling.as_mut().poll(cx))).await
}

/// Goes on with the request of the caller in a task of its own: what its records say is said about the same request.
pub fn along<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let request = REQUEST.try_with(HeaderValue::clone).ok();
    async {
        match request {
            Some(id) => REQUEST.scope(id, work).await,
            None => work.await,
        }
    }
}

thread_local! {
    static BUFFERS: RefCell<(Scratch, Vec<u8>)> = RefCell::default();
    static SECOND: RefCell<(u64, String)> = RefCell::default();
}

/// Makes the line of an event and hands it on. Allocates nothing once a thread's buffers have grown.
pub(super) fn line(event: &Event<'_>, format: LogFormat, take: impl FnOnce(&[u8])) {
    let write = |scratch: &mut Scratch, line: &mut Vec<u8>| {
        scratch.clear();
        line.clear();
        event.record(scratch);
        if scratch.request_id.is_none() {
            let _ = REQUEST.try_with(|id| scratch.about(id));
        }
        let metadata = event.metadata();
        write_line(scratch, level_name(*metadata.level()), logger(metadata), format, line);
    };
    BUFFERS.with(|buffers| {
        if let Ok(mut buffers) = buffers.try_borrow_mut() {
            let (scratch, line) = &mut *buffers;
            write(scratch, line);
            take(line);
        } else {
            // A value logs while it is being logged.
            let (mut scratch, mut line) = Default::default();
            write(&mut scratch, &mut line);
            take(&line);
        }
    });
}

/// A line of the logs about themselves.
pub(super) fn own_line(level: Level, message: &str, format: LogFormat) -> Vec<u8> {
    let scratch = Scratch { text: message.to_owned(), message: 0..message.len(), ..Scratch::default() };
    let mut line = Vec::new();
    write_line(&scratch, level_name(level), "doorman.logging", format, &mut line);
    line
}

fn write_line(scratch: &Scratch, level: &str, logger: &str, format: LogFormat, line: &mut Vec<u8>) {
    let is_clean = redaction::is_clean(&scratch.text);
    let shown = |range: &Range<usize>| {
        let text = &scratch.text[range.clone()];
        if is_clean { Cow::Borrowed(text) } else { redaction::redact(text) }
    };
    let value = |other: &Other| {
        if !is_clean && redaction::is_secret_name(other.name) { Cow::Borrowed(REDACTED) } else { shown(&other.value) }
    };
    let message = shown(&scratch.message);
    let known =
        [("request_id", &scratch.request_id), ("username", &scratch.username), ("client_ip", &scratch.client_ip)];
    let known = known.map(|(name, range)| (name, range.as_ref().map(shown)));
    let mut out = Line(line);
    with_second(|time| match format {
        LogFormat::Json => {
            let [request_id, username, client_ip] = known;
            out.text("{\"timestamp\":\"");
            out.text(time);
            out.text("\",\"level\":\"");
            out.text(level);
            out.text("\"");
            out.member(request_id.0, request_id.1.as_deref());
            out.member("message", Some(&message));
            out.member(username.0, username.1.as_deref());
            out.member(client_ip.0, client_ip.1.as_deref());
            out.member("name", Some(logger));
            for other in &scratch.others {
                let value = value(other);
                let suffix = if TAKEN.contains(&other.name) { "_" } else { "" };
                if other.is_bare && value != REDACTED {
                    out.text(",\"");
                    out.text(other.name);
                    out.text(suffix);
                    out.text("\":");
                    out.text(&value);
                } else {
                    out.member(&[other.name, suffix].concat(), Some(&value));
                }
            }
            out.text("}\n");
        }
        LogFormat::Plain => {
            let [(_, request_id), username, client_ip] = known;
            out.text(&time[..10]);
            out.text(" ");
            out.text(&time[11..19]);
            out.text(" ");
            out.text(level);
            if let Some(id) = request_id {
                out.text(" [request_id=");
                out.one_line(&id);
                out.text("]");
            }
            out.text(" ");
            out.one_line(&message);
            // What an audit event has to say, it says in its message.
            if logger != AUDIT {
                let mut before = COLUMN;
                for (name, value) in [username, client_ip] {
                    if let Some(value) = value {
                        out.field(&mut before, name, &value);
                    }
                }
                for other in &scratch.others {
                    out.field(&mut before, other.name, &value(other));
                }
                if before == COLUMN && message.rsplit_once(COLUMN).is_some_and(|(_, tail)| tail.contains('=')) {
                    out.text(" |");
                }
            }
            out.text("\n");
        }
    });
}

/// The current second, as the JSON form has it: written once a second and thread.
fn with_second(use_it: impl FnOnce(&str)) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    SECOND.with(|second| {
        let Ok(mut second) = second.try_borrow_mut() else { return };
        if second.0 != now || second.1.is_empty() {
            let time = jiff::Timestamp::from_second(now.cast_signed()).unwrap_or_default();
            *second = (now, time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        use_it(&second.1);
    });
}

struct Line<'a>(&'a mut Vec<u8>);

impl Line<'_> {
    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn quoted(&mut self, text: &str) {
        // Writing a text into memory can't fail.
        let _ = serde_json::to_writer(&mut *self.0, text);
    }

    fn member(&mut self, name: &str, value: Option<&str>) {
        self.text(",\"");
        self.text(name);
        self.text("\":");
        match value {
            Some(value) => self.quoted(value),
            None => self.text("null"),
        }
    }

    /// Without line breaks and what else steers a terminal.
    fn one_line(&mut self, text: &str) {
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            self.text(&text.replace(|c: char| c.is_ascii_control(), " "));
        } else {
            self.text(text);
        }
    }

    fn field(&mut self, before: &mut &str, name: &str, value: &str) {
        self.text(before);
        *before = " ";
        self.text(name);
        self.text("=");
        let is_simple = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'|' | b'\\');
        if !value.is_empty() && value.bytes().all(is_simple) {
            self.text(value);
        } else {
            let start = self.0.len();
            self.quoted(value);
            // A column inside of a value is not the one before the fields.
            if self.0[start..].contains(&b'|') {
                let quoted = String::from_utf8_lossy(&self.0[start..]).replace('|', "\\u007c");
                self.0.truncate(start);
                self.text(&quoted);
            }
        }
    }
}
