//! Calling upstreams: pooled connections per address, timeouts, and the rules on which addresses may be called.
//!
//! In: a request whose body is a [`RequestBody`]. Out: a response whose body gives its connection back when read to
//! the end, or an [`UpstreamError`]. A request that was never written may go to another connection; one that was is
//! never repeated here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use doorman_crds::api::UpstreamAddress;

mod body;
mod breaker;
mod connect;
mod pool;

pub use body::{Progress, RequestBody, ResponseBody};
pub use breaker::{Breaker, BreakerRules, Leave};
pub use pool::Pool;

/// Why there is no upstream answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A time limit passed.
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
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
    /// The connection failed after it was opened.
    #[error("connection failed: {0}")]
    Connection(#[from] hyper::Error),
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

/// All pools, one per address, shared by the APIs that call it.
#[derive(Clone, Debug)]
pub struct Pools {
    options: Arc<PoolOptions>,
    pools: Arc<Mutex<HashMap<UpstreamAddress, Weak<Pool>>>>,
}

impl Pools {
    /// No pools yet.
    pub fn new(options: PoolOptions) -> Self {
        Self { options: Arc::new(options), pools: Arc::default() }
    }

    /// The pool of an address; only host, port and TLS count.
    pub fn get(&self, address: &UpstreamAddress) -> Arc<Pool> {
        let key = UpstreamAddress { base_path: String::new(), query: None, ..address.clone() };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key).and_then(Weak::upgrade) {
            return pool;
        }
        let pool = Arc::new(Pool::new(&key, self.options.clone()));
        pools.insert(key, Arc::downgrade(&pool));
        pool
    }

    /// Forgets pools no API refers to any more; their idle connections close with them.
    pub fn forget_unused(&self) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.strong_count() > 0);
    }
}
