//! A gateway process on free ports with its own folder of manifests, stopped when dropped.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Longest wait for anything a gateway is expected to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The bootstrap administrator's password in tests.
pub const ADMIN_PASSWORD: &str = "Testing-password-1";

/// A gateway process.
#[derive(Debug)]
pub struct GatewayProcess {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
    admin: SocketAddr,
}

/// How to start a gateway.
#[derive(Debug)]
pub struct Start {
    binary: PathBuf,
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Start {
    /// A memory-mode gateway without manifests.
    ///
    /// # Errors
    /// When no temporary folder can be made.
    pub fn new(binary: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let start = Self { binary: binary.into(), folder: tempfile::tempdir()?, variables: Vec::new() };
        std::fs::create_dir(start.manifests())?;
        Ok(start
            .with("MEM_OR_EXTERNAL", "MEM")
            .with("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef")
            .with("TOKEN_ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef")
            .with("DOORMAN_ADMIN_PASSWORD", ADMIN_PASSWORD)
            .with("DOORMAN_DRAIN_SECONDS", "0")
            .with("LOGIN_IP_RATE_DISABLED", "true"))
    }

    /// Sets a variable; an earlier value is replaced, an empty one unsets it.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.retain(|(n, _)| n != name);
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// With Redis and MongoDB there instead of memory.
    #[must_use]
    pub fn stores(self, redis: SocketAddr, mongo: SocketAddr) -> Self {
        self.with("MEM_OR_EXTERNAL", "REDIS")
            .with("REDIS_HOST", redis.to_string())
            .with("MONGO_DB_HOSTS", mongo.to_string())
    }

    /// Adds a manifest.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn manifest(self, file: &str, text: &str) -> anyhow::Result<Self> {
        std::fs::write(self.manifests().join(file), text)?;
        Ok(self)
    }

    /// Without a folder of manifests.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn alone(self) -> anyhow::Result<Self> {
        std::fs::remove_dir_all(self.manifests())?;
        Ok(self)
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    fn command(&self, address: SocketAddr, admin: SocketAddr) -> Command {
        let mut command = Command::new(&self.binary);
        command.env_clear().env("PORT", address.port().to_string());
        command.env("DOORMAN_ADMIN_PORT", admin.port().to_string());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if self.manifests().exists() {
            command.arg("--manifests").arg(self.manifests());
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it accepts connections on both ports.
    ///
    /// # Errors
    /// With what it printed, when it does not come up.
    pub fn run(self) -> anyhow::Result<GatewayProcess> {
        let (address, admin) = (free_address()?, free_address()?);
        let log = std::fs::File::create(self.folder.path().join("gateway.log"))?;
        let child = self.command(address, admin).stdout(log.try_clone()?).stderr(log).spawn().context("no gateway")?;
        let mut gateway = GatewayProcess { child, folder: self.folder, address, admin };
        let deadline = Instant::now() + PATIENCE;
        while [address, admin].iter().any(|port| std::net::TcpStream::connect(port).is_err()) {
            if let Some(status) = gateway.child.try_wait()? {
                bail!("the gateway ended with {status}:\n{}", gateway.log());
            }
            ensure!(Instant::now() < deadline, "the gateway does not listen:\n{}", gateway.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(gateway)
    }

    /// Runs a gateway that is expected not to start.
    ///
    /// # Errors
    /// When it can't be executed, or keeps running.
    pub fn fail(self) -> anyhow::Result<Output> {
        let mut command = self.command(free_address()?, free_address()?);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if child.try_wait()?.is_some() {
                return Ok(child.wait_with_output()?);
            }
            if Instant::now() > deadline {
                child.kill()?;
                let mut text = String::new();
                child.stderr.take().context("no stderr")?.read_to_string(&mut text)?;
                bail!("the gateway started although it should not: {text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl GatewayProcess {
    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL on its traffic port.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A URL on its admin port.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// The folder of its manifests.
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// Its whole folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("gateway.log")).unwrap_or_default()
    }

    /// Waits until the log says so.
    ///
    /// # Errors
    /// When it does not within [`PATIENCE`], with what it says.
    pub async fn logged(&self, text: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while !self.log().contains(text) {
            ensure!(start.elapsed() < PATIENCE, "`{text}` is not in\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Writes or replaces a manifest.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_manifest(&self, file: &str, text: &str) -> std::io::Result<()> {
        std::fs::write(self.manifests().join(file), text)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// When the process is gone already.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.send(rustix::process::Signal::TERM)
    }

    /// Sends SIGUSR1, which asks for a memory dump.
    ///
    /// # Errors
    /// When the process is gone already.
    pub fn ask_for_dump(&self) -> anyhow::Result<()> {
        self.send(rustix::process::Signal::USR1)
    }

    fn send(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).context("the gateway is gone already")
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGHUP.
    ///
    /// # Errors
    /// When the process is gone already.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).context("the gateway is gone already")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the gateway does not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway ---\n{}", self.log());
        }
    }
}

/// An address nothing listens on at this moment, another one each time: of ports that the system gives to nobody who does
/// not ask for them.
///
/// # Errors
/// When no socket can be bound.
pub fn free_address() -> std::io::Result<SocketAddr> {
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut last = std::io::Error::other("there are no ports");
    for _ in PORTS {
        // Other tests run in other processes: each begins elsewhere.
        let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + number % (PORTS.end - PORTS.start)).map_err(std::io::Error::other)?;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return listener.local_addr(),
            Err(error) => last = error,
        }
    }
    Err(last)
}
