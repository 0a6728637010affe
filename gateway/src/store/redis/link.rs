//! The one connection to a server, shared by all who ask, and its replacement when it breaks.
//!
//! In: where the server is, or the Sentinels that know. Out: answers. One task owns the connection; whoever gets no
//! proper answer tells it so and waits for nobody. What always holds: no question takes longer than [`TIMEOUT`]; while
//! the server is away questions fail at once; tries to connect are at most [`LONGEST_PAUSE`] apart, with jitter, so that
//! not all processes come back in the same moment.

use std::{io, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind,
    aio::MultiplexedConnection, sentinel::SentinelClient,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Question, TIMEOUT};
use crate::store::StoreError;

/// Longest try to connect: Sentinels are asked first, and the server they name says what it is.
const CONNECT: Duration = Duration::from_secs(5);
/// Pauses between tries; jitter adds up to as much again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection that breaks sooner than this is no success: the pauses go on growing.
const STEADY: Duration = Duration::from_secs(1);

/// Who has the data.
pub(super) enum Master {
    /// Always this server.
    Fixed(Box<Client>),
    /// Whom the Sentinels name.
    Elected(Box<SentinelClient>),
}

impl Master {
    async fn connect(&mut self) -> RedisResult<(Client, MultiplexedConnection)> {
        let connecting = async {
            let client = match self {
                Self::Fixed(client) => (**client).clone(),
                Self::Elected(sentinels) => sentinels.async_get_client().await?,
            };
            let config =
                AsyncConnectionConfig::new().set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            Ok((client, connection))
        };
        match timeout(CONNECT, connecting).await {
            Ok(connected) => connected,
            Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed).into()),
        }
    }
}

/// A connection in use.
pub(super) struct Up {
    /// Tells this connection from those before it.
    number: u64,
    /// Opens further connections to the same server.
    pub(super) client: Client,
    connection: MultiplexedConnection,
}

#[derive(Clone)]
enum State {
    Up(Arc<Up>),
    /// The first try after a break; worth waiting for.
    Connecting,
    /// What the last try said.
    Away(Arc<RedisError>),
}

/// A connection that is made anew when it breaks. Ends when it is dropped.
pub(super) struct Link {
    state: watch::Receiver<State>,
    /// The last connection that gave no proper answer, by its number.
    broken: watch::Sender<u64>,
    _keeper: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects; an error says why not.
    pub(super) async fn open(mut master: Master) -> RedisResult<Self> {
        let (client, connection) = master.connect().await?;
        let (state, seen) = watch::channel(State::Up(Arc::new(Up { number: 1, client, connection })));
        let (broken, reports) = watch::channel(0);
        let keeper = tokio::spawn(keep(master, state, reports));
        Ok(Self { state: seen, broken, _keeper: AbortOnDropHandle::new(keeper) })
    }

    /// The connection in use; waits while one is being made, and not while the server is known to be away.
    pub(super) async fn up(&self) -> Result<Arc<Up>, StoreError> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| !matches!(state, State::Connecting)).await.map_err(StoreError::shared)?;
        match &*state {
            State::Up(up) => Ok(up.clone()),
            State::Away(cause) => Err(StoreError::Shared(cause.clone())),
            State::Connecting => Err(StoreError::shared(io::Error::from(io::ErrorKind::NotConnected))),
        }
    }

    /// Ends when another connection takes the place of this one, or none does.
    pub(super) fn end(&self, of: &Up) -> impl Future<Output = ()> + Send + use<> {
        let (mut state, number) = (self.state.clone(), of.number);
        async move {
            let is_other = |state: &State| !matches!(state, State::Up(up) if up.number == number);
            // An error: nobody keeps the link any more.
            let _ = state.wait_for(is_other).await.map(|_| ());
        }
    }

    /// Asks, and has the connection replaced when that is why there is no answer.
    pub(super) async fn ask<T: FromRedisValue>(&self, question: Question<'_>) -> Result<T, StoreError> {
        let deadline = Instant::now() + TIMEOUT;
        let up = timeout_at(deadline, self.up()).await.map_err(StoreError::shared)??;
        match timeout_at(deadline, question.put(&mut up.connection.clone())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if is_broken(&error) {
                    self.report(&up);
                }
                Err(StoreError::shared(error))
            }
            Err(elapsed) => {
                self.report(&up);
                Err(StoreError::shared(elapsed))
            }
        }
    }

    fn report(&self, up: &Up) {
        self.broken.send_if_modified(|broken| {
            let is_news = *broken < up.number;
            *broken = up.number.max(*broken);
            is_news
        });
    }
}

/// Would another connection answer better? So it is after a break, and when the server has become a replica.
pub(super) fn is_broken(error: &RedisError) -> bool {
    let is_no_master = |kind| matches!(kind, Some(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown));
    error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Io
        || error
            .clone()
            .into_server_errors()
            .is_some_and(|errors| errors.iter().any(|(_, one)| is_no_master(one.kind())))
}

async fn keep(mut master: Master, state: watch::Sender<State>, mut broken: watch::Receiver<u64>) {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter();
    let (mut number, mut since, mut waits) = (1, Instant::now(), pauses.build());
    while broken.wait_for(|broken| *broken >= number).await.is_ok() {
        if since.elapsed() >= STEADY {
            waits = pauses.build();
            state.send_replace(State::Connecting);
        } else {
            let cause = io::Error::other("the connection to Redis keeps breaking");
            state.send_replace(State::Away(Arc::new(cause.into())));
            tokio::time::sleep(waits.next().unwrap_or(LONGEST_PAUSE)).await;
        }
        loop {
            match master.connect().await {
                Ok((client, connection)) => {
                    number += 1;
                    since = Instant::now();
                    tracing::info!(server = %client.get_connection_info().addr(), "a new connection to Redis");
                    state.send_replace(State::Up(Arc::new(Up { number, client, connection })));
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection to Redis");
                    state.send_replace(State::Away(Arc::new(error)));
                    tokio::time::sleep(waits.next().unwrap_or(LONGEST_PAUSE)).await;
                }
            }
        }
    }
}
