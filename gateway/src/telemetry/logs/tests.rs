//! The logs as their readers find them: files, console and ring of a folder of their own.

use std::fs;
use std::pin::pin;
use std::sync::atomic::AtomicBool;

use http::HeaderValue;
use proptest::prelude::*;
use serde_json::Value;
use tracing::subscriber::with_default;

use super::*;
use crate::settings::{Settings, Source};
use crate::telemetry::redaction::REDACTED;

/// What a console received.
#[derive(Clone, Default)]
struct Console {
    text: Arc<Mutex<Vec<u8>>>,
    is_stuck: Arc<AtomicBool>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.is_stuck.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        self.text.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs in a folder of their own, for a test.
pub(in crate::telemetry) struct Sandbox {
    pub(in crate::telemetry) logs: Logs,
    pub(in crate::telemetry) folder: tempfile::TempDir,
    console: Console,
}

pub(in crate::telemetry) fn settings(folder: &Path, format: LogFormat, level: LogLevel) -> settings::Logs {
    let pairs =
        [("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"), ("DOORMAN_ADMIN_PASSWORD", "long-enough-password")];
    let logs = Settings::load(Source::from_pairs(pairs)).unwrap().0.logs;
    settings::Logs { folder: folder.to_owned(), format, level, ..logs }
}

impl Sandbox {
    pub(in crate::telemetry) fn new(format: LogFormat) -> Self {
        Self::with(format, LogLevel::Info)
    }

    pub(in crate::telemetry) fn with(format: LogFormat, level: LogLevel) -> Self {
        let (folder, console) = (tempfile::tempdir().unwrap(), Console::default());
        let settings = settings(folder.path(), format, level);
        let (logs, warning) = Logs::open(&settings, Path::new("/nowhere"), console.clone());
        assert_eq!(warning, None);
        Self { logs, folder, console }
    }

    /// Records what this does.
    pub(in crate::telemetry) fn during(&self, act: impl FnOnce()) {
        with_default(tracing_subscriber::registry().with(self.logs.layer()), act);
        self.logs.flush();
    }

    pub(in crate::telemetry) fn application(&self) -> String {
        fs::read_to_string(self.folder.path().join(APPLICATION_FILE)).unwrap()
    }

    pub(in crate::telemetry) fn trail(&self) -> String {
        fs::read_to_string(self.folder.path().join(AUDIT_FILE)).unwrap()
    }

    fn console(&self) -> String {
        String::from_utf8(self.console.text.lock().unwrap().clone()).unwrap()
    }

    fn ring(&self) -> String {
        let pieces = self.logs.ring().unwrap().pieces();
        String::from_utf8(pieces.iter().flat_map(|piece| piece.lines.to_vec()).collect()).unwrap()
    }
}

/// A line with its time replaced.
fn timeless(line: &str, format: LogFormat) -> String {
    match format {
        LogFormat::Plain => format!("TIME{}", &line[19..]),
        LogFormat::Json => line.replacen(&line[14..34], "TIME", 1),
    }
}

#[test]
fn what_is_said_about_a_request_carries_its_id_in_each_turn_and_nothing_else_does() {
    let sandbox = Sandbox::new(LogFormat::Plain);
    sandbox.during(|| {
        let handling = async |name: &str| {
            tracing::info!("{name} begins");
            tokio::task::yield_now().await;
            tracing::info!("{name} ends");
            tracing::info!(request_id = "own", "{name} says another");
        };
        let of = async |name| about(HeaderValue::from_static(name), pin!(handling(name))).await;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            tokio::join!(biased; of("a"), of("b"), async { tracing::info!("nobody") });
        });
    });
    let text = sandbox.application();
    let lines: Vec<&str> = text.lines().map(|line| line[19..].trim_start_matches(" INFO ")).collect();
    assert_eq!(
        lines,
        [
            "[request_id=a] a begins",
            "[request_id=b] b begins",
            "nobody",
            "[request_id=a] a ends",
            "[request_id=own] a says another",
            "[request_id=b] b ends",
            "[request_id=own] b says another",
        ]
    );
}

#[test]
fn a_plain_record_is_the_line_of_the_guide() {
    let sandbox = Sandbox::new(LogFormat::Plain);
    sandbox.during(|| {
        tracing::info!(request_id = "abc123", "User admin logged in");
        tracing::warn!(request_id = "abc123", username = "admin", client_ip = "192.0.2.1", port = 5001, "a\nb");
        tracing::error!(error = "a | b=c", "x | y=z");
        tracing::info!("ends | like=fields");
        tracing::debug!("unseen");
    });
    let text = sandbox.application();
    let lines: Vec<String> = text.lines().map(|line| timeless(line, LogFormat::Plain)).collect();
    assert_eq!(
        lines,
        [
            "TIME INFO [request_id=abc123] User admin logged in",
            "TIME WARNING [request_id=abc123] a b | username=admin client_ip=192.0.2.1 port=5001",
            r#"TIME ERROR x | y=z | error="a \u007c b=c""#,
            "TIME INFO ends | like=fields |",
        ]
    );
    jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", &text[..19]).unwrap();
    assert_eq!((sandbox.console(), sandbox.ring(), sandbox.trail()), (text.clone(), text, String::new()));
}

#[test]
fn a_json_record_has_the_members_of_the_guide() {
    let sandbox = Sandbox::new(LogFormat::Json);
    sandbox.during(|| {
        tracing::info!(
            request_id = "abc123",
            username = "admin",
            client_ip = "192.168.1.100",
            api = "orders/v1",
            port = 5001,
            name = "a\"b",
            "User admin logged in"
        );
        tracing::info!("nothing else");
    });
    let text = sandbox.application();
    let lines: Vec<String> = text.lines().map(|line| timeless(line, LogFormat::Json)).collect();
    assert_eq!(
        lines,
        [
            r#"{"timestamp":"TIME","level":"INFO","request_id":"abc123","message":"User admin logged in","username":"admin","client_ip":"192.168.1.100","name":"doorman.gateway","api":"orders/v1","port":5001,"name_":"a\"b"}"#,
            r#"{"timestamp":"TIME","level":"INFO","request_id":null,"message":"nothing else","username":null,"client_ip":null,"name":"doorman.gateway"}"#,
        ]
    );
    // The form that the guide gives log shippers.
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    jiff::civil::DateTime::strptime("%Y-%m-%dT%H:%M:%SZ", first["timestamp"].as_str().unwrap()).unwrap();
}

#[test]
fn the_level_changes_while_it_runs() {
    let sandbox = Sandbox::with(LogFormat::Plain, LogLevel::Error);
    sandbox.during(|| {
        let say = |text| tracing::debug!("{text}");
        say("first");
        tracing::info!(target: AUDIT, "always");
        sandbox.logs.set_level(LogLevel::Debug);
        say("second");
        tracing::debug!(target: "hyper::proto", "header bytes of someone");
        sandbox.logs.set_level(LogLevel::Info);
        say("third");
    });
    let text = sandbox.application();
    assert!(text.ends_with("DEBUG second\n") && text.lines().count() == 1, "{text}");
    assert!(sandbox.trail().ends_with("INFO always\n"));
}

#[test]
fn files_are_opened_again_after_someone_renamed_them() {
    let sandbox = Sandbox::new(LogFormat::Plain);
    sandbox.during(|| tracing::info!("before"));
    let (path, moved) = (sandbox.folder.path().join(APPLICATION_FILE), sandbox.folder.path().join("moved"));
    fs::rename(&path, &moved).unwrap();
    sandbox.logs.reopen();
    sandbox.during(|| tracing::info!("after"));
    assert!(fs::read_to_string(moved).unwrap().ends_with("INFO before\n"));
    assert!(sandbox.application().ends_with("INFO after\n"));
}

#[test]
fn a_stuck_console_delays_nobody_and_what_is_dropped_is_counted_and_told() {
    let sandbox = Sandbox::new(LogFormat::Plain);
    sandbox.console.is_stuck.store(true, Ordering::Relaxed);
    let subscriber = tracing_subscriber::registry().with(sandbox.logs.layer());
    with_default(subscriber, || {
        let text = "x".repeat(8_000);
        let started = Instant::now();
        // Two queues' worth: one may be with the writer already.
        for _ in 0..3 * MOST_WAITING / text.len() {
            tracing::info!("{text}");
        }
        tracing::info!(target: AUDIT, "kept");
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    });
    let dropped = sandbox.logs.dropped().get();
    assert!(dropped > 0);
    sandbox.console.is_stuck.store(false, Ordering::Relaxed);
    sandbox.logs.flush();
    sandbox.logs.flush();
    let told =
        sandbox.console().lines().rev().any(|line| line.contains(&format!("{dropped} log records were dropped")));
    assert!(told && sandbox.trail().ends_with("INFO kept\n"));
}

#[test]
fn without_a_trail_file_the_console_gets_the_trail() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(AUDIT_FILE)).unwrap();
    let console = Console::default();
    let settings = settings(folder.path(), LogFormat::Plain, LogLevel::Info);
    let (logs, warning) = Logs::open(&settings, Path::new("/nowhere"), console.clone());
    assert!(warning.unwrap().contains(AUDIT_FILE));
    with_default(tracing_subscriber::registry().with(logs.layer()), || tracing::info!(target: AUDIT, "event"));
    drop(logs);
    let text = String::from_utf8(console.text.lock().unwrap().clone()).unwrap();
    assert!(text.ends_with("INFO event\n"), "what is left is written at the end: {text}");
}

#[test]
fn a_disk_that_fails_is_told_once_and_the_console_goes_on() {
    let (folder, console) = (tempfile::tempdir().unwrap(), Console::default());
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", folder.path().join(APPLICATION_FILE)).unwrap();
    let settings = settings(folder.path(), LogFormat::Plain, LogLevel::Info);
    let (logs, _) = Logs::open(&settings, Path::new("/nowhere"), console.clone());
    for text in ["first", "second"] {
        with_default(tracing_subscriber::registry().with(logs.layer()), || tracing::info!("{text}"));
        logs.flush();
    }
    let text = String::from_utf8(console.text.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| &line[20..]).collect();
    assert!(lines[1].starts_with("ERROR doorman.log can't be written"), "{text}");
    assert_eq!((lines.len(), lines[0], lines[2]), (3, "INFO first", "INFO second"));
}

#[test]
fn a_usual_line_costs_next_to_nothing() {
    let sandbox = Sandbox::new(LogFormat::Json);
    let subscriber = tracing_subscriber::registry().with(sandbox.logs.layer());
    let (path, status, millis) = ("/api/rest/orders/v1/items/12345", 200_u16, 3_u32);
    let lines = 20_000;
    let started = Instant::now();
    with_default(subscriber, || {
        for _ in 0..lines {
            tracing::info!(
                request_id = "0b9a1c1e-6a57-4b4e-9d0a-3a1f0c7a2b11",
                username = "alice",
                client_ip = %std::net::Ipv4Addr::LOCALHOST,
                api = "orders/v1",
                "Endpoint: GET {path} | status_code: {status} | Total time: {millis}ms"
            );
        }
    });
    let each = started.elapsed() / lines;
    let line = "Endpoint: GET /api/rest/orders/v1/items/12345 | status_code: 200 | Total time: 3ms\n0b9a1c1e-6a57-4b4e-9d0a-3a1f0c7a2b11\nalice\n127.0.0.1\napi=orders/v1\n";
    let started = Instant::now();
    for _ in 0..lines {
        assert!(crate::telemetry::redaction::is_clean(std::hint::black_box(line)));
    }
    println!("{each:?} a record, of which {:?} to see that nothing is to be taken out", started.elapsed() / lines);
    assert!(each < Duration::from_micros(500), "{each:?} a record");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a client or an upstream sent, and whoever logs it how: no sink has it.
    #[test]
    fn no_secret_is_in_any_sink(
        secret in "QZ[A-Za-z0-9+/=._~-]{20,40}QZ",
        upper in any::<bool>(),
        is_json in any::<bool>(),
        path in "/[a-z/]{0,20}",
    ) {
        let format = if is_json { LogFormat::Json } else { LogFormat::Plain };
        let sandbox = Sandbox::new(format);
        let name = |name: &str| if upper { name.to_ascii_uppercase() } else { name.to_owned() };
        let mut headers = http::HeaderMap::new();
        for (name, value) in [
            ("authorization", format!("Bearer {secret}")),
            ("proxy-authorization", format!("Basic {secret}")),
            ("x-api-key", secret.clone()),
            ("cookie", format!("a=b; access_token_cookie={secret}; c={secret}")),
            ("set-cookie", format!("session={secret}; Path=/; HttpOnly")),
            ("x-csrf-token", secret.clone()),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let body = serde_json::json!({
            name("email"): "a@b.c", name("password"): &secret, "nested": {name("client_secret"): [&secret], name("refreshToken"): &secret},
        });
        let query = format!("{path}?{}={secret}&page=1&{}={secret}", name("access_token"), name("api_key"));
        let uri = format!("mongodb://root:{secret}@db/x");
        sandbox.during(|| {
            tracing::info!(?headers, "request with {headers:?}");
            tracing::info!(%body, body_again = ?body.to_string(), "body: {body}");
            tracing::info!("GET {query} | status_code: 200");
            tracing::info!(password = %secret, api_key = secret, "fields");
            tracing::warn!(error = ?Err::<(), _>(format!("{headers:?} {body}")), "nested");
            tracing::error!(%uri, "{:?}", Some(&uri));
            tracing::info!(target: AUDIT, "{body}");
            crate::telemetry::audit::Event::new(crate::telemetry::audit::Action::UserPassword, "a", &query, "success")
                .details(body.clone())
                .from(None, &query, None)
                .write();
        });
        for (sink, text) in [
            ("file", sandbox.application()),
            ("trail", sandbox.trail()),
            ("console", sandbox.console()),
            ("ring", sandbox.ring()),
        ] {
            prop_assert!(!text.contains("QZ"), "{sink}: {text}");
            prop_assert!(text.contains(REDACTED), "{sink}");
            if is_json {
                for line in text.lines() {
                    prop_assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
                }
            }
        }
        prop_assert_eq!(sandbox.application().lines().count(), 6);
        prop_assert_eq!(sandbox.trail().lines().count(), 2);
    }
}
