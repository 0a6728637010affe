//! What upstreams say of themselves: OpenAPI documents, WSDLs and GraphQL schemas (reference: platform API 8.1).
//!
//! In: a served API and the place of a document. Out: the document, read. What always holds: it is asked for over the
//! API's own connections, or, where it is elsewhere, under the same egress rules; its size, depth and number of parts
//! are bounded before anything is built of it; several askers of one document cost one request; what is known is
//! believed for an hour and forgotten when the API changes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::settings::table::Upstream;
use crate::snapshot::CompiledApi;
use crate::store::fresh::{Failure, Fresh};
use crate::store::{Change, Store};
use crate::upstream::Pools;

mod fetch;
pub mod graphql;
pub mod openapi;
mod tree;
pub mod wsdl;

pub use fetch::Place;

/// How long a document is believed.
const LIFE: Duration = Duration::from_secs(3_600);
/// Documents of one kind that are kept, about.
const MOST_KNOWN: usize = 32;
/// What they may weigh together, in bytes.
const MOST_KNOWN_BYTES: u64 = 32 << 20;
/// Documents that are read at the same time; each may take ten times its size while it is.
const MOST_READ_AT_ONCE: usize = 2;

/// Why there is no document.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiscoveryError {
    /// No server gave one.
    #[error("it can't be fetched: {0}")]
    Unfetched(String),
    /// What it is, it can't be.
    #[error("it can't be read: {0}")]
    Unreadable(String),
    /// Something of our own failed.
    #[error("{0}")]
    Broken(String),
}

impl Failure for DiscoveryError {}

/// A kind of document.
pub trait Document: Sized + Send + Sync + 'static {
    /// What is asked for: the value of `Accept`.
    const ACCEPT: &'static str;
    /// The body of the request; none: it is a `GET`.
    const QUESTION: Option<&'static str>;

    /// Reads what an upstream answered.
    ///
    /// # Errors
    /// Why not.
    fn read(answer: &[u8]) -> Result<Self, String>;

    /// Bytes that it takes, about.
    fn weight(&self) -> u64;
}

/// A document, and the form of the API it was asked for.
type Known<D> = (Weak<CompiledApi>, Arc<D>);

/// The documents of one kind.
pub struct Documents<D> {
    known: Fresh<Known<D>, DiscoveryError>,
    source: Arc<Source>,
}

/// Where documents come from.
struct Source {
    pools: Pools,
    settings: Upstream,
    reading: Semaphore,
}

/// The documents of all APIs.
pub struct Discovery {
    /// OpenAPI documents.
    pub openapi: Arc<Documents<openapi::Description>>,
    /// WSDLs.
    pub wsdl: Arc<Documents<wsdl::Description>>,
    /// GraphQL schemas.
    pub graphql: Arc<Documents<graphql::Schema>>,
    source: Arc<Source>,
}

impl Discovery {
    /// Over these connections; what the store's caches forget is forgotten here too.
    pub fn new(pools: Pools, settings: Upstream, store: &Store) -> Self {
        let source = Arc::new(Source { pools, settings, reading: Semaphore::new(MOST_READ_AT_ONCE) });
        Self {
            openapi: Documents::new(&source, store),
            wsdl: Documents::new(&source, store),
            graphql: Documents::new(&source, store),
            source,
        }
    }

    /// Reads a document that came in another way.
    ///
    /// # Errors
    /// See [`DiscoveryError`].
    pub async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, DiscoveryError> {
        self.source.reading(read).await
    }
}

impl<D: Document> Documents<D> {
    fn new(source: &Arc<Source>, store: &Store) -> Arc<Self> {
        let known = Fresh::weighing(MOST_KNOWN, MOST_KNOWN_BYTES, |(_, document): &Known<D>| document.weight(), LIFE);
        let documents = Arc::new(Self { known, source: source.clone() });
        let forgetting = Arc::downgrade(&documents);
        store.on_change(move |change| {
            if let (Change::Everything, Some(documents)) = (change, forgetting.upgrade()) {
                documents.known.forget_all();
            }
        });
        documents
    }

    fn key(api: &CompiledApi, place: &Place) -> String {
        format!("{} {place}", api.label)
    }

    /// What is known of this form of the API, without asking.
    pub fn known(&self, api: &Arc<CompiledApi>, place: &Place) -> Option<Arc<D>> {
        let (of, document) = self.known.get(&Self::key(api, place))?.ok()?;
        is_of(&of, api).then_some(document)
    }

    /// What is known, else what a server says, and whether it was known.
    ///
    /// # Errors
    /// See [`DiscoveryError`].
    pub async fn get(&self, api: &Arc<CompiledApi>, place: &Place) -> Result<(Arc<D>, bool), DiscoveryError> {
        if let Some(document) = self.known(api, place) {
            return Ok((document, true));
        }
        let (of, document) = self.load(&Self::key(api, place), api, place).await?;
        if is_of(&of, api) {
            return Ok((document, false));
        }
        // Of an API that has changed since.
        self.refresh(api, place).await.map(|document| (document, false))
    }

    /// What a server says now; what was known is forgotten.
    ///
    /// # Errors
    /// See [`DiscoveryError`].
    pub async fn refresh(&self, api: &Arc<CompiledApi>, place: &Place) -> Result<Arc<D>, DiscoveryError> {
        let key = Self::key(api, place);
        self.known.forget(&key);
        self.load(&key, api, place).await.map(|(_, document)| document)
    }

    async fn load(&self, key: &str, api: &Arc<CompiledApi>, place: &Place) -> Result<Known<D>, DiscoveryError> {
        let load = || async { Ok((Arc::downgrade(api), Arc::new(self.source.document(api, place).await?))) };
        self.known.get_or_load(key, load).await
    }
}

fn is_of(known: &Weak<CompiledApi>, api: &Arc<CompiledApi>) -> bool {
    std::ptr::eq(known.as_ptr(), Arc::as_ptr(api))
}

impl Source {
    async fn document<D: Document>(&self, api: &CompiledApi, place: &Place) -> Result<D, DiscoveryError> {
        let answer = fetch::fetch::<D>(&self.pools, &self.settings, api, place).await;
        let document = match answer {
            Ok(answer) => self.reading(move || D::read(&answer)).await,
            Err(why) => Err(DiscoveryError::Unfetched(why)),
        };
        document.inspect_err(|error| tracing::warn!(api = &*api.label, %place, %error, "no document of an upstream"))
    }

    /// Reading may take a while: not where calls are served.
    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, DiscoveryError> {
        let broken = |error: &dyn std::error::Error| DiscoveryError::Broken(error.to_string());
        let _turn = self.reading.acquire().await.map_err(|error| broken(&error))?;
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| broken(&error))?;
        read.map_err(DiscoveryError::Unreadable)
    }
}
