//! Calling upstreams: pooled connections per address and way of TLS, timeouts, and the rules on which addresses may be called.
//!
//! In: a request whose body is a [`RequestBody`]. Out: a response whose body gives its connection back when read to
//! the end, or an [`UpstreamError`]. A request that was never written may go to another connection; one that was is
//! never repeated here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use doorman_crds::api::UpstreamAddress;

mod attentive;
mod body;
mod breaker;
mod budget;
mod connect;
mod pool;
mod tls;
mod usage;

pub use body::{Progress, RequestBody, ResponseBody};
pub use breaker::{Breaker, BreakerRules, Leave};
pub use budget::RetryBudget;
pub use pool::Pool;
pub use tls::Tls;

use tls::Fingerprint;

/// Why there is no upstream answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A time limit passed.
    #[error("no answer in time: {0}")]
    Timeout(Phase),
    /// The name did not resolve or no connection could be opened.
    #[error("can't connect: {0}")]
    Connect(String),
    /// The address is one no call may reach.
    #[error("{0} may not be called")]
    Forbidden(std::net::IpAddr),
    /// The request can't be put into the form the connection needs.
    #[error("the target can't be sent: {0}")]
    Target(String),
    /// The client stopped sending its body.
    #[error("the client stopped sending")]
    ClientStalled,
    /// A connection that had been kept ended without an answer: the server may have closed it before it saw the request.
    #[error("a kept connection ended: {0}")]
    Stale(#[source] hyper::Error),
    /// The connection failed after it was opened.
    #[error("connection failed: {0}")]
    Connection(#[from] hyper::Error),
}

/// What a call was at when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for one of the connections there may be.
    Connection,
    /// Opening a connection.
    Connecting,
    /// Sending the request.
    Sending,
    /// Waiting for the answer.
    Answer,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Connection => "waiting for a free connection",
            Self::Connecting => "connecting",
            Self::Sending => "sending the request",
            Self::Answer => "waiting for the answer",
        })
    }
}

impl UpstreamError {
    /// Why the body of an answer broke off.
    pub fn of_body(error: body::BodyError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return *own,
            Err(error) => error,
        };
        match error.downcast::<hyper::Error>() {
            Ok(error) => Self::Connection(*error),
            Err(error) => Self::Connect(error.to_string()),
        }
    }
}

/// What pools need to know of the settings.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Most connections to one address.
    pub max_connections: usize,
    /// Most idle connections to one address.
    pub max_idle: usize,
    /// How long a connection may be idle.
    pub idle_life: Duration,
    /// Whether HTTP/2 is offered to `https` upstreams.
    pub http2: bool,
    /// Whether loopback addresses may be called; not in a cluster, where loopback is the pod itself.
    pub allow_loopback: bool,
}

#[cfg(test)]
impl PoolOptions {
    /// For tests, whose upstreams are on this machine.
    pub(crate) fn local() -> Self {
        let idle_life = Duration::from_secs(10);
        Self { max_connections: 10, max_idle: 10, idle_life, http2: false, allow_loopback: true }
    }
}

/// Upper bounds of one call.
#[derive(Clone, Copy, Debug)]
pub struct CallTimeouts {
    /// Opening a connection, TLS included.
    pub connect: Duration,
    /// Silence of the upstream.
    pub read: Duration,
    /// Stall while the request body is sent.
    pub write: Duration,
    /// Waiting for a pooled connection.
    pub pool: Duration,
}

/// Host, port and scheme, and what an API says of TLS to them.
type PoolKey = (UpstreamAddress, Option<Fingerprint>);

/// What one API, or one routing, calls. It shares connections with others, and no breaker: what its calls meet at an address
/// says little of what those of another meet there.
#[derive(Debug)]
pub struct Targets<'a> {
    pools: &'a Pools,
    tls: Option<&'a Arc<Tls>>,
    known: Vec<Target>,
    before: &'a [Target],
}

/// Connections to an address, and what keeps calls from it.
pub type Target = (Arc<Pool>, Arc<Breaker>);

impl<'a> Targets<'a> {
    /// Out of these pools, with this way of TLS. Those of `before`, which are of the same API, go on.
    pub fn new(pools: &'a Pools, tls: Option<&'a Arc<Tls>>, before: &'a [Target]) -> Self {
        Self { pools, tls, known: Vec::new(), before }
    }

    /// All that were asked for.
    pub fn into_all(self) -> Box<[Target]> {
        self.known.into()
    }

    /// The connections to an address, and its breaker.
    pub fn of(&mut self, address: &UpstreamAddress) -> Target {
        let pool = self.pools.get(address, self.tls);
        let is_it = |known: &&Target| Arc::ptr_eq(&known.0, &pool);
        if let Some(known) = self.known.iter().find(is_it) {
            return known.clone();
        }
        let target = self.before.iter().find(is_it).cloned().unwrap_or_else(|| (pool.clone(), pool.new_breaker()));
        self.known.push(target.clone());
        target
    }
}

/// All pools, one per address and way of TLS, shared by the APIs that call it so.
#[derive(Clone, Debug)]
pub struct Pools {
    options: Arc<PoolOptions>,
    pools: Arc<Mutex<HashMap<PoolKey, Weak<Pool>>>>,
}

impl Pools {
    /// No pools yet.
    pub fn new(options: PoolOptions) -> Self {
        Self { options: Arc::new(options), pools: Arc::default() }
    }

    /// The pool of an address; only host, port and TLS count. No connection is shared by APIs that trust others or show
    /// another certificate.
    pub fn get(&self, address: &UpstreamAddress, tls: Option<&Arc<Tls>>) -> Arc<Pool> {
        let address = UpstreamAddress { base_path: String::new(), query: None, ..address.clone() };
        let tls = tls.filter(|_| address.tls);
        let key = (address, tls.map(|tls| tls.fingerprint));
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key).and_then(Weak::upgrade) {
            return pool;
        }
        let pool = Arc::new(Pool::new(&key.0, tls.cloned(), self.options.clone()));
        pools.insert(key, Arc::downgrade(&pool));
        pool
    }

    /// Forgets pools no API refers to any more; their idle connections close with them.
    pub fn forget_unused(&self) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.strong_count() > 0);
    }
}
