//! Real servers for tests: redis-server, and MongoDB's stand-in where it has been built.
//!
//! `redis-server` is Debian's package of that name. The stand-in is what `tests/cluster/images` builds and keeps; without
//! it (or `DOORMAN_TEST_MONGO`, the path of such a program) the tests that need it say so and pass.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
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
        let port = free_port();
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
        Self::redis_with(|_| more.iter().map(|argument| (*argument).to_owned()).collect())
    }

    /// More arguments, some of which need the port.
    pub(crate) fn redis_with(more: impl FnOnce(u16) -> Vec<String>) -> Self {
        Self::start("redis-server".into(), |port, folder| {
            let number = port.to_string();
            let usual = ["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder];
            usual.iter().map(|argument| (*argument).to_owned()).chain(more(port)).collect()
        })
    }

    /// A Redis that speaks TLS only, with these files.
    pub(crate) fn redis_tls(files: &Certificates, asks_for_certificates: bool) -> Self {
        let clients = if asks_for_certificates { "yes" } else { "no" };
        Self::redis_with(|port| {
            let arguments = [
                ("--port", "0"),
                ("--tls-port", &port.to_string()),
                ("--tls-cert-file", &files.path("server.pem")),
                ("--tls-key-file", &files.path("server.key")),
                ("--tls-ca-cert-file", &files.path("ca.pem")),
                ("--tls-auth-clients", clients),
            ];
            arguments.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]).collect()
        })
    }

    /// A Sentinel that watches the master `main` on this port and needs so many of its kind to agree.
    pub(crate) fn sentinel(master: u16, quorum: u8, more: &str) -> Self {
        Self::start("redis-server".into(), |port, folder| {
            let file = format!("{folder}/sentinel.conf");
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {master} {quorum}\n\
                 sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n{more}\n"
            );
            fs::write(&file, text).unwrap();
            vec![file, "--sentinel".to_owned()]
        })
    }

    pub(crate) fn mongo() -> Self {
        Self::mongo_with(|port| vec![format!("-listen=127.0.0.1:{port}")])
    }

    /// A MongoDB that speaks TLS only and asks for a certificate, with these files.
    pub(crate) fn mongo_tls(files: &Certificates) -> Self {
        Self::mongo_with(|port| {
            let (certificate, key, ca) = (files.path("server.pem"), files.path("server.key"), files.path("ca.pem"));
            vec![
                "-listen=".to_owned(),
                format!("-tls-listen=127.0.0.1:{port}"),
                format!("-tls-cert={certificate}"),
                format!("-tls-key={key}"),
                format!("-tls-ca={ca}"),
            ]
        })
    }

    fn mongo_with(arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let program = doorman_tests::mongo::program();
        let program = program.expect("no server of MongoDB's protocol here; tests/cluster/mongo-wire/build makes one");
        Self::start(program, |port, folder| {
            let mut all = arguments(port);
            all.push(format!("-data={folder}"));
            all
        })
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
        self.signal("-STOP");
        let threads = || fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let is_stopped = |thread: fs::DirEntry| {
            // A thread that has ended meanwhile answers nothing either.
            let text = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            text.rsplit_once(')').is_none_or(|(_, state)| state.starts_with(" T"))
        };
        let start = Instant::now();
        while !threads().all(is_stopped) {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not stop");
            sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT: it goes on where it hung.
    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

/// A port that nobody uses at this moment.
pub(crate) fn free_port() -> u16 {
    doorman_tests::gateway::free_address().unwrap().port()
}

/// A connection of the test's own to a Redis on this port.
pub(crate) fn redis_client(port: u16) -> ::redis::Connection {
    ::redis::Client::open(("127.0.0.1", port)).unwrap().get_connection().unwrap()
}

/// An authority, and what it signed for servers on this machine and for a client: `ca.pem`, `server.pem`, `server.key`,
/// `client.pem`, `client.key` and both in `client-both.pem`. Nobody here trusts `other-ca.pem`.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let authority = || {
            let mut parameters = CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
        };
        let ca = authority();
        write("ca.pem", &ca.pem());
        write("other-ca.pem", &authority().pem());
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        for who in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let mut parameters = CertificateParams::new(names.to_vec()).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, who);
            let certificate = parameters.signed_by(&key, &ca).unwrap().pem();
            write(&format!("{who}.pem"), &certificate);
            write(&format!("{who}.key"), &key.serialize_pem());
            write(&format!("{who}-both.pem"), &(certificate + &key.serialize_pem()));
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
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
