//! Real servers for tests: redis-server, and MongoDB's stand-in where it has been built.
//!
//! `redis-server` is Debian's package of that name. The stand-in is what `tests/cluster/images` builds and keeps; without
//! it (or `DOORMAN_TEST_MONGO`, the path of such a program) the tests that need it say so and pass.

use std::{
    env, fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Documents, Shared, Store, memory, redis};
use crate::settings::{Settings, Source};

/// A process on a free port; ends with its owner.
pub(crate) struct Server {
    pub(crate) port: u16,
    command: Command,
    child: Child,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    fn start(program: PathBuf, arguments: impl FnOnce(u16, &str) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(&program);
        command.args(arguments(port, folder.path().to_str().unwrap())).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let server = Self { port, command, child, _folder: folder };
        server.wait();
        server
    }

    fn wait(&self) {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "no server on port {}", self.port);
            sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn redis(more: &[&str]) -> Self {
        Self::start("redis-server".into(), |port, folder| {
            let port = port.to_string();
            let usual = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder];
            usual.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
        })
    }

    pub(crate) fn mongo() -> Self {
        let program = env::var_os("DOORMAN_TEST_MONGO").map(PathBuf::from).or_else(built_mongo);
        let program = program.expect("no server of MongoDB's protocol here; tests/cluster/mongo-wire/build makes one");
        Self::start(program, |port, folder| vec![format!("-listen=127.0.0.1:{port}"), format!("-data={folder}")])
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.child = self.command.spawn().unwrap();
        self.wait();
    }

    /// SIGSTOP: it takes connections and answers nothing.
    pub(crate) fn hang(&self) {
        let status = Command::new("kill").args(["-STOP", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

fn built_mongo() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let built = fs::read_dir(cache.join("doorman-cluster")).ok()?.flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("mongo-wire-") && !name.contains('.')
    };
    built.filter(is_ours).max_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

/// Settings of external mode with these servers. A port that nobody listens on stands for a server that isn't there.
pub(crate) fn external(redis: u16, mongo: u16, changes: &[(&str, &str)]) -> Settings {
    let (redis, mongo) = (format!("127.0.0.1:{redis}"), format!("127.0.0.1:{mongo}"));
    let base = [
        ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
        ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
        ("MEM_OR_EXTERNAL", "REDIS"),
        ("REDIS_HOST", &redis),
        ("MONGO_DB_HOSTS", &mongo),
    ];
    let settings = Settings::load(Source::from_pairs(base.iter().chain(changes).copied()));
    settings.unwrap_or_else(|errors| panic!("{errors}")).0
}

/// Seeded documents in this process, everything else in Redis.
pub(crate) async fn with_redis(settings: &Settings) -> Store {
    let shared = redis::Shared::connect(&settings.storage).await.unwrap();
    let store = Store::new(Documents::Memory(memory::Documents::default()), Shared::Redis(shared));
    store.seed(&settings.admin).await.unwrap();
    store
}
