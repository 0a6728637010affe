//! Real stores beside a gateway: redis-server, and the server of MongoDB's wire protocol.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::gateway::free_address;

/// A process beside the gateway; ends with its owner.
#[derive(Debug)]
pub struct Neighbour {
    command: Command,
    child: Child,
    address: SocketAddr,
}

impl Neighbour {
    fn start(mut command: Command, address: SocketAddr) -> Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self { command, child, address })
    }

    /// A Redis that keeps nothing on disk, with further arguments.
    ///
    /// # Errors
    /// When `redis-server` can't be started.
    pub fn redis(more: &[&str]) -> Result<Self> {
        let address = free_address()?;
        let mut redis = Command::new("redis-server");
        redis.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--dir", "/"]);
        redis.args(more);
        Self::start(redis, address)
    }

    /// A Redis that writes each change to this folder before it answers.
    ///
    /// # Errors
    /// When `redis-server` can't be started.
    pub fn durable_redis(folder: &Path) -> Result<Self> {
        let folder = folder.to_string_lossy();
        Self::redis(&["--appendonly", "yes", "--appendfsync", "always", "--dir", &folder])
    }

    /// A server of MongoDB's wire protocol that keeps its documents in this folder.
    ///
    /// # Errors
    /// When there is no such program, or it can't be started.
    pub fn mongo(folder: &Path) -> Result<Self> {
        let address = free_address()?;
        let program = crate::mongo::program().context("tests/cluster/mongo-wire/build makes the server")?;
        let mut mongo = Command::new(program);
        mongo.arg(format!("-listen={address}")).arg(format!("-data={}", folder.display()));
        Self::start(mongo, address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it can't be killed.
    pub fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGSTOP: it takes connections and answers nothing, until it goes on.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn hang(&self) -> Result<()> {
        self.send(rustix::process::Signal::STOP)
    }

    /// SIGCONT: it does all that it was asked meanwhile.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn go_on(&self) -> Result<()> {
        self.send(rustix::process::Signal::CONT)
    }

    fn send(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).context("it is gone already")
    }

    /// Starts it anew with what it has kept.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = self.command.spawn()?;
        Ok(())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
