//! What processes share, in Redis or a Redis Cluster: counters, revocations, CSRF tokens and the news of changes.
//!
//! Every command names one key, so that the same code serves a cluster. Keys are those of existing installations.

use std::time::Duration;

use futures::{Stream, StreamExt};
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisError, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
};

use super::{StoreError, Window, memory};
use crate::settings::{RedisServers, Storage};

/// Longest wait for a connection and for an answer: Redis is asked while a client waits.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Channel that tells all processes whose cached documents are out of date.
const CHANGES: &str = "doorman:changes";

/// A connection to one server or to a cluster; a clone shares it.
#[derive(Clone)]
enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Counters, revocations and CSRF tokens.
pub struct Shared {
    connection: Connection,
    nodes: Vec<ConnectionInfo>,
    /// Counts while Redis is away: a limit per process is better than none.
    meanwhile: memory::Shared,
}

fn token_key(username: &str, jti: &str) -> String {
    format!("jwt:revoked:{username}:{jti}")
}

fn user_key(username: &str) -> String {
    format!("jwt:revoke_all:{username}")
}

fn csrf_key(username: &str) -> String {
    format!("csrf_token_map:{username}")
}

async fn within<T>(answer: impl Future<Output = RedisResult<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(StoreError::shared),
        Err(elapsed) => Err(StoreError::shared(elapsed)),
    }
}

impl Shared {
    /// Connects; an error says why not.
    pub async fn connect(storage: &Storage) -> Result<Self, StoreError> {
        let mut login = RedisConnectionInfo::default();
        if let Some(user) = &storage.redis_user {
            login = login.set_username(user);
        }
        if let Some(password) = &storage.redis_password {
            login = login.set_password(password.expose());
        }
        let node = |host: &String, port: u16, login: &RedisConnectionInfo| {
            let info = ConnectionAddr::Tcp(host.clone(), port).into_connection_info().map_err(StoreError::shared)?;
            Ok::<_, StoreError>(info.set_redis_settings(login.clone()))
        };
        let (connection, nodes) = match storage.redis_servers() {
            RedisServers::Standalone(host, port) => {
                let info = node(&host, port, &login.set_db(storage.redis_db.into()))?;
                let client = Client::open(info.clone()).map_err(StoreError::shared)?;
                let config = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(TIMEOUT))
                    .set_response_timeout(Some(TIMEOUT))
                    .set_number_of_retries(1)
                    .set_max_delay(Duration::from_millis(200));
                let manager = within(ConnectionManager::new_with_config(client, config)).await?;
                (Connection::Single(manager), vec![info])
            }
            RedisServers::Cluster(servers) => {
                let nodes =
                    servers.iter().map(|(host, port)| node(host, *port, &login)).collect::<Result<Vec<_>, _>>()?;
                let client = ClusterClientBuilder::new(nodes.clone())
                    .connection_timeout(TIMEOUT)
                    .response_timeout(TIMEOUT)
                    .build()
                    .map_err(StoreError::shared)?;
                // A cluster's first connection asks several nodes in turn.
                let connecting = tokio::time::timeout(5 * TIMEOUT, client.get_async_connection());
                let connection = connecting.await.map_err(StoreError::shared)?.map_err(StoreError::shared)?;
                (Connection::Cluster(connection), nodes)
            }
        };
        let shared = Self { connection, nodes, meanwhile: memory::Shared::default() };
        shared.ping().await?;
        Ok(shared)
    }

    async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let mut connection = self.connection.clone();
        within(command.query_async(&mut connection)).await
    }

    /// Does the server answer?
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.run(&redis::cmd("PING")).await
    }

    /// Counts in Redis; in this process while Redis is away.
    pub(super) async fn count(&self, counter: &str, window: Window, now: u64) -> u64 {
        let key = window.key(counter);
        let mut both = redis::pipe();
        // The life is set with the first count, atomically: a counter without one would never end.
        both.atomic().cmd("SET").arg(&key).arg(0).arg("EX").arg(window.seconds()).arg("NX").ignore().incr(&key, 1);
        let mut connection = self.connection.clone();
        match within(both.query_async::<(u64,)>(&mut connection)).await {
            Ok((count,)) => count,
            Err(error) => {
                tracing::warn!(%error, counter, "counting in this process while Redis is away");
                self.count_here(counter, window, now)
            }
        }
    }

    /// Counts in this process.
    pub(super) fn count_here(&self, counter: &str, window: Window, now: u64) -> u64 {
        self.meanwhile.count(counter, window, now)
    }

    pub(super) async fn revoke_token(&self, username: &str, jti: &str, until: u64, now: u64) -> Result<(), StoreError> {
        let life = until.saturating_sub(now).max(1);
        self.run(redis::cmd("SET").arg(token_key(username, jti)).arg(1).arg("EX").arg(life)).await
    }

    pub(super) async fn is_token_revoked(&self, username: &str, jti: &str) -> Result<bool, StoreError> {
        self.run(redis::cmd("EXISTS").arg(token_key(username, jti))).await
    }

    pub(super) async fn set_user_revoked(&self, username: &str, is_revoked: bool) -> Result<(), StoreError> {
        if is_revoked {
            self.run(redis::cmd("SET").arg(user_key(username)).arg(1)).await
        } else {
            self.run(redis::cmd("DEL").arg(user_key(username))).await
        }
    }

    pub(super) async fn is_user_revoked(&self, username: &str) -> Result<bool, StoreError> {
        self.run(redis::cmd("EXISTS").arg(user_key(username))).await
    }

    pub(super) async fn remember_csrf(&self, username: &str, token: &str, life: Duration) -> Result<(), StoreError> {
        self.run(redis::cmd("SET").arg(csrf_key(username)).arg(token).arg("EX").arg(life.as_secs())).await
    }

    pub(super) async fn csrf(&self, username: &str) -> Result<Option<String>, StoreError> {
        self.run(redis::cmd("GET").arg(csrf_key(username))).await
    }

    /// Tells every process, this one included.
    pub(super) async fn announce(&self, change: &str) -> Result<(), StoreError> {
        self.run(redis::cmd("PUBLISH").arg(CHANGES).arg(change)).await
    }

    /// What other processes announce, from now until the connection breaks. A cluster passes news on between its nodes.
    pub(super) async fn changes(&self) -> Result<impl Stream<Item = String> + use<>, StoreError> {
        let mut failure = StoreError::shared(std::io::Error::other("no node is known"));
        for node in &self.nodes {
            let subscribing = async {
                let mut subscription = Client::open(node.clone())?.get_async_pubsub().await?;
                subscription.subscribe(CHANGES).await?;
                Ok::<_, RedisError>(subscription.into_on_message())
            };
            match within(subscribing).await {
                Ok(messages) => {
                    return Ok(messages.filter_map(async |message| message.get_payload::<String>().ok()));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    pub(super) fn sweep(&self, now: u64) {
        self.meanwhile.sweep(now);
    }
}
