//! What processes share, in Redis: counters, revocations, CSRF tokens and the news of changes.
//!
//! Redis is one server, a master that Sentinels name, or a Cluster; `servers` turns the settings into clients, `link` keeps
//! the one connection to a server. Every command names one key, so that the same code serves a cluster. Keys are those of
//! existing installations.

use std::time::Duration;

use futures::{Stream, StreamExt};
use prometheus_client::metrics::counter::Counter as Metric;
use redis::{
    Client, Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, aio::ConnectionLike,
    cluster_async::ClusterConnection,
};

use self::{
    link::{Link, Master},
    servers::Servers,
};
use super::{StoreError, Window, advice::Advised, memory};
use crate::settings::{FailMode, Storage};

mod limits;
mod link;
mod servers;
#[cfg(test)]
mod tests;
mod traffic;

/// Longest wait for an answer: Redis is asked while a client waits.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often a subscription shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Channel that tells all processes whose cached documents are out of date.
const CHANGES: &str = "doorman:changes";

/// One command, or several that belong together.
#[derive(Clone, Copy)]
enum Question<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
}

impl Question<'_> {
    async fn put<T: FromRedisValue>(self, connection: &mut (impl ConnectionLike + Send)) -> RedisResult<T> {
        match self {
            Self::One(command) => command.query_async(connection).await,
            Self::Several(commands) => commands.query_async(connection).await,
        }
    }
}

/// The way to one server or to a cluster.
enum Connection {
    Single(Link),
    /// The library keeps one connection to each node; a clone shares them. The nodes are those of the settings.
    Cluster(ClusterConnection, Vec<Client>),
}

/// Counters, revocations and CSRF tokens.
pub struct Shared {
    connection: Connection,
    fail_mode: FailMode,
    /// Counts while Redis is away: a limit per process is better than none.
    meanwhile: memory::Shared,
    /// How often that was so.
    fallbacks: Metric,
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
    /// Connects; an error says why not, and which settings to look at.
    pub async fn connect(storage: &Storage) -> Result<Self, StoreError> {
        let connected = Self::connected(storage).await;
        connected.map_err(|error| match &error {
            StoreError::Shared(cause) => match cause.downcast_ref::<RedisError>() {
                Some(cause) => StoreError::shared(Advised::new(cause.clone(), servers::advice(cause, storage))),
                None => error,
            },
            _ => error,
        })
    }

    async fn connected(storage: &Storage) -> Result<Self, StoreError> {
        let connection = match servers::of(storage).map_err(StoreError::shared)? {
            Servers::Standalone(client) => Link::open(Master::Fixed(client)).await.map(Connection::Single),
            Servers::Sentinel(sentinels) => Link::open(Master::Elected(sentinels)).await.map(Connection::Single),
            Servers::Cluster(client, nodes) => {
                // A cluster's first connection asks several nodes in turn.
                let connecting = tokio::time::timeout(5 * TIMEOUT, client.get_async_connection());
                let connected = connecting.await.map_err(StoreError::shared)?;
                connected.map(|connection| Connection::Cluster(connection, nodes))
            }
        };
        let shared = Self {
            connection: connection.map_err(StoreError::shared)?,
            fail_mode: storage.limits_fail_mode,
            meanwhile: memory::Shared::default(),
            fallbacks: Metric::default(),
        };
        shared.ping().await?;
        Ok(shared)
    }

    async fn ask<T: FromRedisValue>(&self, question: Question<'_>) -> Result<T, StoreError> {
        match &self.connection {
            Connection::Single(link) => link.ask(question).await,
            Connection::Cluster(connection, _) => within(question.put(&mut connection.clone())).await,
        }
    }

    async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        self.ask(Question::One(command)).await
    }

    /// How often a limit was decided without Redis.
    pub(super) fn fallbacks(&self) -> Metric {
        self.fallbacks.clone()
    }

    /// Does the server answer?
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.run(&redis::cmd("PING")).await
    }

    /// Counts in Redis. While Redis is away: in this process, or not at all, as `DOORMAN_LIMITS_FAIL_MODE` says.
    pub(super) async fn count(&self, counter: &str, window: Window, now: u64) -> Result<u64, StoreError> {
        let key = window.key(counter);
        let mut both = redis::pipe();
        // The life is set with the first count, atomically: a counter without one would never end.
        both.atomic().cmd("SET").arg(&key).arg(0).arg("EX").arg(window.seconds()).arg("NX").ignore().incr(&key, 1);
        match self.ask::<(u64,)>(Question::Several(&both)).await {
            Ok((count,)) => Ok(count),
            Err(error) => self.count_without(error, counter, window, now),
        }
    }

    pub(super) async fn uncount(&self, counter: &str, window: Window, now: u64) {
        let key = window.key(counter);
        let mut both = redis::pipe();
        // A counter that is gone meanwhile comes out at zero, with an end.
        both.atomic().cmd("SET").arg(&key).arg(1).arg("EX").arg(window.seconds()).arg("NX").ignore().decr(&key, 1);
        if let Err(error) = self.ask::<(i64,)>(Question::Several(&both)).await {
            tracing::warn!(%error, counter, "counting in this process while Redis is away");
            self.meanwhile.uncount(counter, window, now);
        }
    }

    /// What a count is while Redis is away: that of this process, or none, as the settings say.
    pub(super) fn count_without(
        &self,
        error: StoreError,
        counter: &str,
        window: Window,
        now: u64,
    ) -> Result<u64, StoreError> {
        self.fallbacks.inc();
        match self.fail_mode {
            FailMode::Open => {
                tracing::warn!(%error, counter, "counting in this process while Redis is away");
                Ok(self.meanwhile.count(counter, window, now))
            }
            FailMode::Closed => Err(error),
        }
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

    /// What other processes announce, from now until the subscription can't be relied on any more: it breaks, shows no
    /// life, or another server has become the master. A cluster passes news on between its nodes.
    pub(super) async fn changes(&self) -> Result<impl Stream<Item = String> + use<>, StoreError> {
        match &self.connection {
            Connection::Single(link) => {
                let up = link.up().await?;
                Ok(subscribe(&up.client).await?.take_until(link.end(&up)).left_stream())
            }
            Connection::Cluster(_, nodes) => {
                let mut failure = StoreError::shared(std::io::Error::other("no node is known"));
                for node in nodes {
                    match subscribe(node).await {
                        Ok(changes) => return Ok(changes.right_stream()),
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }

    pub(super) fn sweep(&self, now: u64) {
        self.meanwhile.sweep(now);
    }
}

/// News by a connection of its own; ends with it, or when the server shows no life.
async fn subscribe(server: &Client) -> Result<impl Stream<Item = String> + Send + use<>, StoreError> {
    let subscribing = async {
        let mut subscription = server.get_async_pubsub().await?;
        subscription.subscribe(CHANGES).await?;
        Ok::<_, RedisError>(subscription.split())
    };
    let (mut control, messages) = within(subscribing).await?;
    let silence = async move {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            if within(control.ping::<redis::Value>()).await.is_err() {
                break;
            }
        }
    };
    Ok(messages.filter_map(async |message| message.get_payload::<String>().ok()).take_until(Box::pin(silence)))
}
