//! A log line read back: both forms of the guide, and both that earlier versions wrote.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::telemetry::logs::{AUDIT, COLUMN, GATEWAY, Trail};

/// One record, as the log viewer shows it. What isn't known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = LogEntry)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    #[serde(skip)]
    pub(super) millis: i64,
    /// When (ISO 8601).
    pub timestamp: String,
    /// `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.
    pub level: String,
    /// What was written.
    pub message: String,
    /// The logger's name.
    pub source: String,
    /// `gateway`, `auth` or `platform`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Who called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The API that was called, `name/version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// The path that was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<String>,
    /// Milliseconds to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_time: Option<String>,
    /// The caller's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// `rest`, `soap`, `graphql` or `grpc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<&'static str>,
}

/// The JSON forms: `timestamp` is ours, `time` (without a zone) was the earlier one.
#[derive(Deserialize)]
struct Json {
    timestamp: Option<String>,
    time: Option<String>,
    level: String,
    name: Option<String>,
    message: String,
    request_id: Option<String>,
    username: Option<String>,
    client_ip: Option<String>,
    api: Option<String>,
}

/// What an audit event says about its request.
#[derive(Deserialize)]
struct Audited {
    actor: Option<String>,
    action: String,
    status: Option<serde_json::Value>,
    ip: Option<String>,
    path: Option<String>,
}

/// Reads a line; `None`: it is none of ours.
pub(super) fn parse(line: &str, trail: Trail) -> Option<Entry> {
    let mut entry = if line.starts_with('{') { json(line)? } else { plain(line, trail)? };
    if entry.source.is_empty() {
        let name = if trail == Trail::Audit { AUDIT } else { GATEWAY };
        name.clone_into(&mut entry.source);
    }
    entry.request_id = entry.request_id.filter(|id| !id.is_empty() && id != "no-request-id");
    entry.timestamp = Timestamp::from_millisecond(entry.millis).ok()?.to_string();
    if entry.level == "WARN" {
        "WARNING".clone_into(&mut entry.level);
    }
    derive(&mut entry);
    Some(entry)
}

fn json(line: &str) -> Option<Entry> {
    let read: Json = serde_json::from_str(line).ok()?;
    let millis = match (&read.timestamp, &read.time) {
        (Some(time), _) => time.parse::<Timestamp>().ok().map(Timestamp::as_millisecond)?,
        (None, Some(time)) => without_zone(time.parse().ok()?)?,
        (None, None) => return None,
    };
    Some(Entry {
        millis,
        level: read.level,
        message: read.message,
        source: read.name.unwrap_or_default(),
        request_id: read.request_id,
        user: read.username,
        ip_address: read.client_ip,
        api: read.api,
        ..Entry::default()
    })
}

/// Times without a zone are taken for UTC, which the earlier version ran in wherever it ran in a container.
fn without_zone(time: DateTime) -> Option<i64> {
    TimeZone::UTC.to_timestamp(time).ok().map(Timestamp::as_millisecond)
}

fn plain(line: &str, trail: Trail) -> Option<Entry> {
    let seconds = without_zone(DateTime::strptime("%Y-%m-%d %H:%M:%S", line.get(..19)?).ok()?)?;
    let rest = &line[19..];
    if let Some(rest) = rest.strip_prefix(',') {
        return earlier_plain(seconds, rest);
    }
    let (level, mut rest) = rest.strip_prefix(' ')?.split_once(' ')?;
    let mut entry = Entry { millis: seconds, level: level.to_owned(), ..Entry::default() };
    if let Some((id, message)) = rest.strip_prefix("[request_id=").and_then(|rest| rest.split_once("] ")) {
        entry.request_id = Some(id.to_owned());
        rest = message;
    }
    if trail == Trail::Audit {
        // All of it is the event.
    } else if let Some(message) = rest.strip_suffix(" |") {
        rest = message;
    } else if let Some((message, tail)) = rest.rsplit_once(COLUMN)
        && let Some(fields) = fields(tail)
    {
        rest = message;
        for (name, value) in fields {
            match name {
                "username" => entry.user = Some(value),
                "client_ip" => entry.ip_address = Some(value),
                "api" => entry.api = Some(value),
                _ => {}
            }
        }
    }
    rest.clone_into(&mut entry.message);
    Some(entry)
}

/// `name=value name="a value"`; `None`: it is something else.
fn fields(mut tail: &str) -> Option<Vec<(&str, String)>> {
    let mut fields = Vec::new();
    while !tail.is_empty() {
        let (name, rest) = tail.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains(' '))?;
        if rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let value = values.next()?.ok()?;
            fields.push((name, value));
            let rest = &rest[values.byte_offset()..];
            tail = rest.strip_prefix(' ').or(rest.is_empty().then_some(""))?;
        } else {
            let (value, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            fields.push((name, value.to_owned()));
            tail = rest;
        }
    }
    (!fields.is_empty()).then_some(fields)
}

/// `{date time,ms} - {logger} - {LEVEL} - {request id} | {message}`, the audit trail without the id.
fn earlier_plain(seconds: i64, rest: &str) -> Option<Entry> {
    let mut parts = rest.splitn(4, " - ");
    let millis: i64 = parts.next()?.parse().ok()?;
    let (source, level, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (id, message) = match rest.split_once(COLUMN) {
        Some((id, message)) if !id.contains(' ') && !id.starts_with('{') => (Some(id.to_owned()), message),
        _ => (None, rest),
    };
    Some(Entry {
        millis: seconds + millis,
        level: level.to_owned(),
        message: message.to_owned(),
        source: source.to_owned(),
        request_id: id,
        ..Entry::default()
    })
}

/// Fills in what the message tells (reference: gateway behaviour 21.3).
fn derive(entry: &mut Entry) {
    let text = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let message = std::mem::take(&mut entry.message);
    let mut action = None;
    if let Some(rest) = message.strip_prefix("Endpoint: ") {
        let mut columns = rest.split(COLUMN);
        if let Some((method, path)) = columns.next().and_then(|first| first.split_once(' ')) {
            (entry.method, entry.endpoint) = (text(method), text(path));
        }
        for column in columns {
            if let Some(status) = column.strip_prefix("status_code: ") {
                entry.status_code = text(status);
            } else if let Some(time) = column.strip_prefix("Total time: ") {
                entry.response_time = text(time.trim_end_matches("ms"));
            }
        }
    } else if let Some(rest) = message.strip_prefix("Entry: ") {
        for (name, value) in rest.split(' ').filter_map(|pair| pair.split_once('=')) {
            match name {
                "client_ip" if entry.ip_address.is_none() => entry.ip_address = text(value),
                "effective_ip" => entry.ip_address = text(value),
                "method" => entry.method = text(value),
                "path" => entry.endpoint = text(value),
                _ => {}
            }
        }
    } else if let Some((user, from)) = message.strip_prefix("Username: ").and_then(|rest| rest.split_once(" | From: "))
    {
        entry.user = text(user);
        entry.ip_address = text(from.rsplit_once(':').map_or(from, |(ip, _)| ip));
    } else if let Some((protocol, status)) = message.split_once(" gateway status code: ")
        && !protocol.contains(' ')
    {
        entry.status_code = text(status);
    } else if entry.source == AUDIT
        && let Ok(event) = serde_json::from_str::<Audited>(&message)
    {
        entry.user = event.actor.filter(|actor| !actor.is_empty()).or(entry.user.take());
        entry.ip_address = event.ip.or(entry.ip_address.take());
        entry.endpoint = event.path;
        entry.status_code = event.status.filter(serde_json::Value::is_number).map(|status| status.to_string());
        action = Some(event.action);
    }
    if let Some(path) = &mut entry.endpoint
        && let Some(end) = path.find('?')
    {
        path.truncate(end);
    }
    let called = entry.endpoint.as_deref().and_then(called);
    entry.protocol = called.map(|(protocol, _)| protocol);
    if entry.api.is_none() {
        entry.api = called.and_then(|(_, api)| api).map(str::to_owned);
    }
    entry.kind = kind(entry.endpoint.as_deref(), action.as_deref().unwrap_or(&message));
    entry.message = message;
}

/// The protocol and the API of a path under `/api`.
fn called(path: &str) -> Option<(&'static str, Option<&str>)> {
    let rest = path.strip_prefix("/api/")?;
    let (protocol, rest) = rest.split_once('/')?;
    let protocol = ["rest", "soap", "graphql", "grpc"].into_iter().find(|known| *known == protocol)?;
    // REST and SOAP have the version in the path, the others in a header.
    let segments = if matches!(protocol, "rest" | "soap") { 2 } else { 1 };
    let end = rest.match_indices('/').nth(segments - 1).map_or(rest.len(), |(at, _)| at);
    let api = Some(&rest[..end]).filter(|api| !api.is_empty() && api.split('/').count() == segments);
    Some((protocol, api))
}

fn kind(endpoint: Option<&str>, message: &str) -> &'static str {
    if let Some(path) = endpoint {
        return if ["/rest", "/soap", "/graphql", "/grpc"].iter().any(|part| path.contains(part)) {
            "gateway"
        } else if path.contains("/authorization") {
            "auth"
        } else {
            "platform"
        };
    }
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has(&["auth.", "logged in", "sign-in", "Username:", "Token", "token"]) {
        "auth"
    } else if has(&["gateway", "Gateway", "upstream", "Backend", "ip.api_deny", "request.body"]) {
        "gateway"
    } else {
        "platform"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Entry) {
        let entry = parse(line, Trail::Application).unwrap_or_else(|| panic!("not read: {line}"));
        let expected = Entry {
            millis: entry.millis,
            level: "INFO".into(),
            timestamp: "2024-01-15T10:30:00Z".into(),
            source: GATEWAY.into(),
            ..expected
        };
        assert_eq!(entry, expected, "{line}");
    }

    #[expect(clippy::unnecessary_wraps, reason = "the fields are optional")]
    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    fn request(kind: &'static str) -> Entry {
        let message = "Endpoint: GET /api/rest/orders/v1/items/7?x=1 | status_code: 200 | Total time: 3ms";
        Entry {
            message: message.into(),
            kind,
            request_id: some("abc123"),
            endpoint: some("/api/rest/orders/v1/items/7"),
            method: some("GET"),
            status_code: some("200"),
            response_time: some("3"),
            api: some("orders/v1"),
            protocol: Some("rest"),
            ..Entry::default()
        }
    }

    #[test]
    fn a_request_is_read_in_all_four_forms() {
        let message = request("gateway").message;
        let full =
            Entry { user: some("bob b"), ip_address: some("192.0.2.7"), api: some("orders/v1"), ..request("gateway") };
        check(
            &format!(
                r#"2024-01-15 10:30:00 INFO [request_id=abc123] {message} | username="bob b" client_ip=192.0.2.7 api=orders/v1"#
            ),
            full.clone(),
        );
        check(
            &format!(
                r#"{{"timestamp":"2024-01-15T10:30:00Z","level":"INFO","request_id":"abc123","message":"{message}","username":"bob b","client_ip":"192.0.2.7","name":"doorman.gateway","api":"orders/v1","port":1}}"#
            ),
            full,
        );
        check(&format!("2024-01-15 10:30:00,000 - doorman.gateway - INFO - abc123 | {message}"), request("gateway"));
        check(
            &format!(
                r#"{{"time":"2024-01-15T10:30:00","name":"doorman.gateway","level":"INFO","request_id":"abc123","message":"{message}"}}"#
            ),
            request("gateway"),
        );
    }

    #[test]
    fn other_messages_tell_what_they_tell() {
        let line =
            |message: &str| format!("2024-01-15 10:30:00,000 - doorman.gateway - INFO - no-request-id | {message}");
        let text = "Entry: client_ip=10.0.0.1 effective_ip=192.0.2.7 method=POST path=/platform/authorization";
        check(
            &line(text),
            Entry {
                message: text.into(),
                kind: "auth",
                ip_address: some("192.0.2.7"),
                method: some("POST"),
                endpoint: some("/platform/authorization"),
                ..Entry::default()
            },
        );
        let text = "Username: bob | From: 192.0.2.7:4711";
        check(
            &line(text),
            Entry {
                message: text.into(),
                kind: "auth",
                user: some("bob"),
                ip_address: some("192.0.2.7"),
                ..Entry::default()
            },
        );
        let text = "REST gateway status code: 502";
        check(
            &line(text),
            Entry { message: text.into(), kind: "gateway", status_code: some("502"), ..Entry::default() },
        );
    }

    #[test]
    fn a_message_cannot_pretend_to_have_fields() {
        let text = "of a client | username=admin";
        check(
            &format!("2024-01-15 10:30:00 INFO {text} |"),
            Entry { message: text.into(), kind: "platform", ..Entry::default() },
        );
        check(
            &format!(r#"2024-01-15 10:30:00 INFO {text} | error="a \u007c username=x" username=bob"#),
            Entry { message: text.into(), kind: "platform", user: some("bob"), ..Entry::default() },
        );
    }

    #[test]
    fn audit_events_fill_the_columns_in_both_forms() {
        let event = r#"{"actor":"admin","action":"api.create","target":"a/v1","status":201,"details":null,"ip":"192.0.2.7","path":"/platform/api"}"#;
        for line in [
            format!("2024-01-15 10:30:00,000 - doorman.audit - INFO - {event}"),
            format!("2024-01-15 10:30:00 INFO {event}"),
        ] {
            let entry = parse(&line, Trail::Audit).unwrap();
            assert_eq!((&*entry.source, entry.kind, &*entry.message), (AUDIT, "platform", event));
            assert_eq!((entry.user, entry.status_code), (some("admin"), some("201")));
            assert_eq!((entry.ip_address, entry.endpoint), (some("192.0.2.7"), some("/platform/api")));
        }
    }

    #[test]
    fn what_is_no_record_is_not_read() {
        for line in [
            "",
            "{",
            "Traceback:",
            "2024-01-15",
            "2024-01-15 10:30:00",
            "2024-01-15 10:30:00,1 - x",
            "{\"a\":1}",
            "éééééééééééé",
        ] {
            assert_eq!(parse(line, Trail::Application), None, "{line}");
        }
    }

    #[test]
    fn the_api_is_read_from_the_path() {
        assert_eq!(called("/api/rest/a/v1/x"), Some(("rest", Some("a/v1"))));
        assert_eq!(called("/api/soap/a/v1"), Some(("soap", Some("a/v1"))));
        assert_eq!(called("/api/graphql/a"), Some(("graphql", Some("a"))));
        assert_eq!(called("/api/rest/a"), Some(("rest", None)));
        assert_eq!(called("/api/health"), None);
    }
}
