//! What memory mode keeps over the end of its process, seen from outside: after a kill -9 at any moment one whole state,
//! never less than the last one that was acknowledged; after an orderly end, all of it. And who may reach the gateway.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use doorman_gateway::dump::{Dumps, State};
use doorman_gateway::settings::{Settings, Source};
use doorman_tests::gateway::{ADMIN_PASSWORD, GatewayProcess, PATIENCE, Start};
use mongodb::bson::doc;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Tells the killed process where to write.
const FOLDER: &str = "DOORMAN_TEST_DUMP_FOLDER";
const KILLS: u32 = 200;
/// A slow machine kills less often rather than longer.
const AT_MOST: Duration = Duration::from_secs(60);
const KEEP: usize = 3;

fn dumps() -> Dumps {
    let pairs = [
        ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
        ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
        ("MEM_ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef"),
        ("MEM_DUMP_KEEP", "3"),
    ];
    let (settings, _) = Settings::load(Source::from_pairs(pairs)).expect("the settings are right");
    Dumps::new(&settings).expect("there is a key")
}

fn hint(folder: &Path) -> PathBuf {
    folder.join("memory_dump.bin")
}

/// The n-th state: its size changes as well as its content.
fn state(n: i32) -> State {
    let documents = |count: i32| (0..count).map(|i| doc! { "i": i, "n": n, "text": "x".repeat(200) }).collect();
    State::from([("users".to_owned(), documents(n * 37 % 1_000)), ("roles".to_owned(), documents(1))])
}

/// Which state is there; `0`: none.
async fn restored(folder: &Path) -> Result<i32> {
    let Some(found) = dumps().find(vec![hint(folder)]).await? else { return Ok(0) };
    let n = found.dump.state["roles"][0].get_i32("n")?;
    ensure!(found.dump.state == state(n), "{} is not the whole of state {n}", found.file.display());
    Ok(n)
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_the_last_acknowledged_dump_or_a_later_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (start, mut last, mut kills, mut caught) = (Instant::now(), 0, 0, 0);
    while kills < KILLS && start.elapsed() < AT_MOST {
        let mut writer = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "the_process_that_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(writer.stdout.take().context("no output")?).lines();
        let mut acknowledged = None;
        // The harness prints lines of its own.
        while acknowledged.is_none() {
            acknowledged = lines.next().context("the writer ended by itself")??.parse().ok();
        }
        let moment = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 100;
        std::thread::sleep(Duration::from_micros(moment));
        writer.kill()?;
        writer.wait()?;
        let acknowledged: i32 =
            lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last().or(acknowledged).context("none")?;
        ensure!(acknowledged > last, "the writer began at {acknowledged} after {last}");
        let unfinished = names(folder.path())?.iter().filter(|name| name.starts_with('.')).count();
        caught += usize::from(unfinished > 0);

        let n = restored(folder.path()).await?;
        ensure!(n == acknowledged || n == acknowledged + 1, "{acknowledged} was acknowledged, {n} was restored");
        let left = names(folder.path())?;
        ensure!(left.iter().all(|name| !name.starts_with('.')), "unfinished files stay: {left:?}");
        ensure!(left.len() <= KEEP + 1, "old dumps stay: {left:?}");
        (last, kills) = (n, kills + 1);
    }
    println!("{kills} kills in {:?}, {caught} of them while a file was unfinished; {last} dumps", start.elapsed());
    ensure!(kills >= 20, "only {kills} kills in {AT_MOST:?}");
    ensure!(caught > 0, "no kill came while a dump was written");
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Writes one state after the other and prints the number of each that was acknowledged.
#[tokio::test]
#[ignore = "the other test runs it"]
async fn the_process_that_is_killed() -> Result<()> {
    let folder = PathBuf::from(std::env::var_os(FOLDER).context("the other test runs this one")?);
    let (dumps, mut n) = (dumps(), restored(&folder).await?);
    loop {
        n += 1;
        dumps.write(hint(&folder), move || state(n)).await?;
        let mut out = std::io::stdout();
        writeln!(out, "{n}")?;
        out.flush()?;
    }
}

/// A gateway whose dumps lie in a folder that outlives it.
fn keeping(folder: &TempDir) -> Result<Start> {
    let start = Start::new(env!("CARGO_BIN_EXE_doorman-gateway"))?;
    Ok(start
        .with("MEM_ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef")
        .with("MEM_DUMP_PATH", hint(folder.path()).to_string_lossy()))
}

struct Administrator<'a> {
    gateway: &'a GatewayProcess,
    token: String,
}

impl<'a> Administrator<'a> {
    async fn of(gateway: &'a GatewayProcess) -> Result<Self> {
        let login = json!({ "email": "admin", "password": ADMIN_PASSWORD });
        let answer = Client::new().post(gateway.url("/platform/authorization")).json(&login).send().await?;
        let answer: Value = answer.json().await?;
        let token = answer["access_token"].as_str().with_context(|| format!("no token: {answer}"))?.to_owned();
        Ok(Self { gateway, token })
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Result<(StatusCode, Value)> {
        let call = Client::new().request(method, self.gateway.url(path)).bearer_auth(&self.token);
        let answer = if body.is_null() { call.send().await? } else { call.json(&body).send().await? };
        let status = answer.status();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    async fn add_group(&self, name: &str) -> Result<()> {
        let (status, answer) = self.call(Method::POST, "/platform/group", json!({ "group_name": name })).await?;
        ensure!(status == StatusCode::CREATED, "{status} {answer}");
        Ok(())
    }

    async fn has_group(&self, name: &str) -> Result<bool> {
        Ok(self.call(Method::GET, &format!("/platform/group/{name}"), Value::Null).await?.0 == StatusCode::OK)
    }
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await? {
        ensure!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_orderly_end_loses_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut gateway = keeping(&folder)?.run()?;
    let admin = Administrator::of(&gateway).await?;
    admin.add_group("kept").await?;
    let token = admin.token.clone();
    let (status, _) = admin.call(Method::POST, "/platform/authorization/invalidate", Value::Null).await?;
    ensure!(status == StatusCode::OK, "{status}");
    gateway.terminate()?;
    ensure!(gateway.wait()?.success(), "{}", gateway.log());

    let gateway = keeping(&folder)?.run()?;
    ensure!(Administrator::of(&gateway).await?.has_group("kept").await?, "{}", gateway.log());
    let signed_out = Administrator { gateway: &gateway, token };
    let (status, _) = signed_out.call(Method::GET, "/platform/group/kept", Value::Null).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "a revoked token counts again: {status}");
    Ok(())
}

#[tokio::test]
async fn sigusr1_dumps_and_the_gateway_serves_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let gateway = keeping(&folder)?.run()?;
    let admin = Administrator::of(&gateway).await?;
    admin.add_group("kept").await?;
    gateway.ask_for_dump()?;
    eventually("a dump", async || Ok(names(folder.path())?.iter().any(|name| name.starts_with("memory_dump-"))))
        .await?;
    admin.add_group("lost").await?;
    drop(gateway);
    let gateway = keeping(&folder)?.run()?;
    let admin = Administrator::of(&gateway).await?;
    ensure!(admin.has_group("kept").await? && !admin.has_group("lost").await?, "{}", gateway.log());
    Ok(())
}

#[tokio::test]
async fn without_a_key_sigusr1_only_warns() -> Result<()> {
    let gateway = keeping(&tempfile::tempdir()?)?.with("MEM_ENCRYPTION_KEY", "").run()?;
    gateway.ask_for_dump()?;
    eventually("a warning", async || Ok(gateway.log().contains("was not written"))).await?;
    ensure!(gateway.log().contains("a restart forgets everything"), "{}", gateway.log());
    ensure!(Administrator::of(&gateway).await?.has_group("ALL").await?, "it does not serve");
    Ok(())
}

#[tokio::test]
async fn a_bad_dump_stops_the_start_unless_it_may_be_ignored() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let good = dumps()
        .write(hint(folder.path()), || State::from([("groups".to_owned(), vec![doc! { "group_name": "old" }])]))
        .await?;
    let bad = dumps().write(hint(folder.path()), || state(1)).await?;
    let mut bytes = std::fs::read(&bad)?;
    *bytes.last_mut().context("empty")? ^= 1;
    std::fs::write(&bad, &bytes)?;
    let output = keeping(&folder)?.fail()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains(&*bad.to_string_lossy()), "{said}");
    ensure!(said.contains("DOORMAN_IGNORE_BAD_DUMP") && std::fs::read(&bad)? == bytes && good.exists(), "{said}");

    let gateway = keeping(&folder)?.with("DOORMAN_IGNORE_BAD_DUMP", "true").run()?;
    ensure!(Administrator::of(&gateway).await?.has_group("old").await?, "{}", gateway.log());
    ensure!(gateway.log().contains("passed over") && bad.exists(), "{}", gateway.log());
    Ok(())
}

#[tokio::test]
async fn a_restart_keeps_process_and_state() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let gateway = keeping(&folder)?.run()?;
    let admin = Administrator::of(&gateway).await?;
    admin.add_group("kept").await?;
    std::fs::write(gateway.folder().join("doorman.pid"), gateway.id().to_string())?;
    let (status, answer) = admin.call(Method::POST, "/platform/security/restart", Value::Null).await?;
    ensure!(status == StatusCode::ACCEPTED, "{status} {answer}");
    eventually("a second start", async || Ok(gateway.log().matches("Application startup complete").count() == 2))
        .await?;
    ensure!(admin.has_group("kept").await?, "{}", gateway.log());
    Ok(())
}

#[tokio::test]
async fn the_address_filter_stands_before_everything_but_its_own_settings() -> Result<()> {
    const SETTINGS: &str = "/platform/security/settings";
    let gateway = keeping(&tempfile::tempdir()?)?.with("LOCAL_HOST_IP_BYPASS", "false").run()?;
    let admin = Administrator::of(&gateway).await?;
    for (list, code, message) in
        [("ip_whitelist", "SEC010", "IP not allowed"), ("ip_blacklist", "SEC011", "IP blocked")]
    {
        let address = if code == "SEC010" { "192.0.2.1" } else { "127.0.0.0/8" };
        let (status, answer) = admin.call(Method::PUT, SETTINGS, json!({ list: [address] })).await?;
        ensure!(status == StatusCode::OK, "{status} {answer}");
        for path in [
            "/api/health",
            "/api/rest/a/v1/b",
            "/platform/monitor/liveness",
            "/platform/authorization/status",
            "/platform/security/settings/x",
            "/platform/security/%73ettings",
            "/nothing",
        ] {
            let answer = Client::new().get(gateway.url(path)).bearer_auth(&admin.token).send().await?;
            let headers = answer.headers().clone();
            let (status, text) = (answer.status(), answer.text().await?);
            let expected = json!({ "status_code": 403, "error_code": code, "error_message": message });
            ensure!(
                status == StatusCode::FORBIDDEN && serde_json::from_str::<Value>(&text)? == expected,
                "{path}: {status} {text}"
            );
            ensure!(
                headers.contains_key("x-request-id") && headers["x-frame-options"] == "DENY",
                "{path}: {headers:?}"
            );
        }
        for path in [SETTINGS, "/platform/security/settings/"] {
            let (status, answer) = admin.call(Method::PUT, path, json!({ list: [] })).await?;
            ensure!(status == StatusCode::OK, "{path}: {status} {answer}");
        }
    }
    ensure!(Client::new().get(gateway.url("/api/health")).send().await?.status() == StatusCode::OK, "it is open again");
    Ok(())
}
