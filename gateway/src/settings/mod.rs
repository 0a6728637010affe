//! The settings of the gateway: one typed tree, read from the environment and a configuration file.
//!
//! In: a [`Source`] of names and texts. Out: [`Settings`] and warnings, or every reason not to start.
//!
//! - [`table`] holds the one table of variables; it makes the tree, the reading and `docs/settings.md`.
//! - `value` holds the types and how each is read, `source` where the texts come from, `file` how a configuration file is
//!   read, `guards` what start-up refuses, `live` what changes while the process runs.
//!
//! What always holds: all errors are reported at once; no secret appears in a message; the process environment is
//! only read. Where definitions come from (cluster or folder) is chosen on the command line and not here.

use std::{fmt, path::Path, time::Duration};

use crate::crypt::{CryptError, Sealer, Vault};

mod docs;
mod file;
mod guards;
mod live;
mod source;
pub mod table;
#[cfg(test)]
mod tests;
mod token_keys;
mod value;

pub use docs::render_markdown;
pub use live::{Reloadable, Reloaded};
pub use source::Source;
pub use table::{
    Admin, Definitions, Features, Keys, Limits, Logs, Metrics, Network, Now, Server, Sessions, Settings, Storage,
    Upstream,
};
pub use token_keys::{NamedKey, TokenKeys};
pub use value::{
    ApiNamespaces, ByteCount, Environment, FailMode, HeaderNames, HostPort, LogFormat, LogLevel, Origins,
    PlatformDefinitions, SameSite, Secret, StorageMode, TimeUnit,
};

/// Port of Sentinels that are listed without one.
const SENTINEL_PORT: u16 = 26_379;

/// Something about one variable that a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The variable's name.
    pub variable: String,
    /// What is wrong; reads on from the name.
    pub problem: String,
    /// What to do about it, or what happens now.
    pub remedy: String,
}

/// A [`Finding`] that doesn't prevent a start.
pub type Warning = Finding;

impl Finding {
    fn new(variable: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { variable: variable.to_owned(), problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = format!("{} {}; {}", self.variable, self.problem, self.remedy).replace(['\n', '\r'], " ");
        out.write_str(&one_line)
    }
}

/// Every reason not to start; displayed one to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsErrors {
    /// The reasons, at least one.
    pub errors: Vec<Finding>,
    /// What else was noticed.
    pub warnings: Vec<Warning>,
}

impl fmt::Display for SettingsErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the settings don't allow a start:")?;
        self.errors.iter().try_for_each(|error| write!(out, "\n  {error}"))
    }
}

impl std::error::Error for SettingsErrors {}

/// The certificate and key of a listener that terminates TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFiles<'a> {
    /// PEM, leaf first.
    pub certificate: &'a Path,
    /// PEM.
    pub key: &'a Path,
}

/// How Redis is reached. Every address has its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServers {
    /// One server: host and port.
    Standalone(String, u16),
    /// Nodes of a cluster, from which the others are learned.
    Cluster(Vec<(String, u16)>),
    /// Sentinels, and the name of the master they watch.
    Sentinel(Vec<(String, u16)>, String),
}

impl Settings {
    /// Reads, checks and guards everything. Certificate files are opened, nothing else is touched.
    pub fn load(source: Source) -> Result<(Self, Vec<Warning>), SettingsErrors> {
        let environment = source.clone();
        let mut reader = source::Reader::new(source.or_configuration());
        let start = Now::read(&mut reader);
        let (mut errors, mut warnings) = (std::mem::take(&mut reader.errors), std::mem::take(&mut reader.warnings));
        let settings = Self::new(start.clone(), live::Live::new(environment, start, reader));
        guards::apply(&settings, &mut errors, &mut warnings);
        if errors.is_empty() { Ok((settings, warnings)) } else { Err(SettingsErrors { errors, warnings }) }
    }

    /// Are the production guards on?
    pub fn is_production(&self) -> bool {
        self.server.environment == Environment::Production
    }

    /// Worker processes: `THREADS`, else 4 with external storage and 1 in memory mode.
    pub fn threads(&self) -> u16 {
        let default = if self.storage.is_memory() { 1 } else { 4 };
        self.server.threads.map_or(default, std::num::NonZeroU16::get)
    }
}

impl Server {
    /// Secure cookies, the CSRF check and HSTS: on when clients reach the gateway over TLS, whoever terminates it.
    pub fn enforces_https(&self) -> bool {
        self.https_only || self.https_enabled
    }

    /// The files of a listener that terminates TLS; `None`: the listener is plain.
    pub fn tls_files(&self) -> Option<TlsFiles<'_>> {
        let (certificate, key) = (self.certificate_file.as_deref()?, self.key_file.as_deref()?);
        self.https_only.then_some(TlsFiles { certificate, key })
    }
}

impl Storage {
    /// Does everything live in this process?
    pub fn is_memory(&self) -> bool {
        self.mode == StorageMode::Memory
    }

    /// How Redis is reached in external mode.
    pub fn redis_servers(&self) -> RedisServers {
        let with = |nodes: &[HostPort], port| -> Vec<_> {
            nodes.iter().map(|node| (node.host.clone(), node.port.unwrap_or(port))).collect()
        };
        if !self.redis_sentinels.is_empty() {
            let master = self.redis_sentinel_master.clone().unwrap_or_default();
            return RedisServers::Sentinel(with(&self.redis_sentinels, SENTINEL_PORT), master);
        }
        let nodes = with(&self.redis_hosts, self.redis_port);
        match nodes.as_slice() {
            [] => RedisServers::Standalone("localhost".to_owned(), self.redis_port),
            [(host, port)] if !self.redis_cluster => RedisServers::Standalone(host.clone(), *port),
            _ => RedisServers::Cluster(nodes),
        }
    }
}

impl Keys {
    /// The key of stored upstream keys: `TOKEN_ENCRYPTION_KEY`, else `MEM_ENCRYPTION_KEY`, else none.
    pub fn stored_keys(&self) -> Option<&Secret> {
        self.token_encryption.as_ref().or(self.memory_encryption.as_ref())
    }

    /// Encrypts and decrypts stored upstream keys. What was encrypted while `MEM_ENCRYPTION_KEY` stood in is still read.
    pub fn sealer(&self) -> Result<Sealer, CryptError> {
        let earlier = self.token_encryption_previous.iter().chain(&self.memory_encryption);
        Sealer::new(self.stored_keys().map(Secret::expose), earlier.map(Secret::expose))
    }

    /// Encrypts and decrypts vault entries; `None`: there is no key for them.
    pub fn vault(&self) -> Option<Vault> {
        self.vault.as_ref().map(|key| Vault::new(key.expose()))
    }

    /// Is `JWT_SECRET_KEY` the key of tokens, or do others take its place?
    pub fn has_only_the_secret_key(&self) -> bool {
        self.jwt_folder.is_none() && self.jwt_keys.0.is_empty()
    }
}

impl Sessions {
    /// Life of an access token.
    pub fn access_token_life(&self) -> Duration {
        self.access_life_unit.times(self.access_life)
    }

    /// Life of a refresh token.
    pub fn refresh_token_life(&self) -> Duration {
        self.refresh_life_unit.times(self.refresh_life)
    }
}

impl Limits {
    /// Most bytes of a body sent to this path, where `limit` would count without exceptions.
    pub fn of_path(&self, path: &str, limit: ByteCount) -> u64 {
        let is_exempt = |exempt: &String| match exempt.strip_suffix('*') {
            Some(begin) => path.starts_with(begin),
            None => path == exempt,
        };
        let is_unlimited = self.body_unlimited || self.body_exempt_paths.iter().any(is_exempt);
        if is_unlimited { u64::MAX } else { limit.0 }
    }

    /// Largest body of a `/api/rest` request.
    pub fn rest(&self) -> ByteCount {
        self.rest_body.unwrap_or(self.body)
    }

    /// Largest body of a `/api/soap` request.
    pub fn soap(&self) -> ByteCount {
        self.soap_body.unwrap_or(self.body)
    }

    /// Largest body of a `/api/graphql` request.
    pub fn graphql(&self) -> ByteCount {
        self.graphql_body.unwrap_or(self.body)
    }

    /// Largest body of a `/api/grpc` request.
    pub fn grpc(&self) -> ByteCount {
        self.grpc_body.unwrap_or(self.body)
    }
}
