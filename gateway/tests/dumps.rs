//! Memory dumps under kill -9: whatever the moment, the next start has one whole state, and never less than the last one
//! that was acknowledged.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use doorman_gateway::dump::{Dumps, State};
use doorman_gateway::settings::{Settings, Source};
use mongodb::bson::doc;

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
