//! Servers by client key: a call that carries a known `client-key` goes to the servers of that key, whatever its API
//! (reference: gateway behaviour 9).
//!
//! In: stored routings. Out: servers for a key. What always holds: a key that isn't known costs no question to the
//! store; a routing that didn't change keeps its servers and whose turn it is.

use std::{collections::HashMap, sync::Arc};

use doorman_crds::api::WeightedServer;
use mongodb::bson::{Bson, Document};

use crate::{
    definitions::{documents::server_url, weights::stored_weights},
    snapshot::Servers,
    store::{Collection, Store, latest::Latest},
    upstream::{Pools, Targets},
};

type Table = HashMap<Box<str>, Routing>;

#[derive(Debug)]
struct Routing {
    /// Addresses and weights.
    listed: Vec<(String, u8)>,
    servers: Arc<Servers>,
}

/// All routings.
pub struct Routings(Arc<Latest<Table>>);

impl Routings {
    /// Over this store; connections are those of these pools.
    pub fn new(store: &Arc<Store>, pools: Pools) -> Self {
        let make = move |found: &[Arc<Document>], last: Option<&Table>| {
            found.iter().filter_map(|own| routing(own, last, &pools)).collect()
        };
        Self(Latest::new(store, Collection::Routings, make))
    }

    /// The servers of a key. `None`: it names no routing, or one without a server that can be called.
    pub async fn servers(&self, key: &str) -> Option<Arc<Servers>> {
        let table = self.0.get().await;
        let table = table.inspect_err(|error| tracing::warn!(%error, "routings can't be read, and were never known"));
        let table = table.ok()?;
        let servers = &table.get(key)?.servers;
        (!servers.is_empty()).then(|| servers.clone())
    }
}

fn routing(document: &Document, last: Option<&Table>, pools: &Pools) -> Option<(Box<str>, Routing)> {
    let key = document.get_str("client_key").ok().filter(|key| !key.is_empty())?;
    let servers = document.get_array("routing_servers").ok().into_iter().flatten();
    let addresses = servers.filter_map(Bson::as_str).map(str::to_owned);
    let weights = stored_weights(Collection::Routings, document).unwrap_or_else(|error| {
        tracing::warn!(key, %error, "the servers of a routing are called alike");
        None
    });
    let weights = weights.unwrap_or_default().into_iter().chain(std::iter::repeat(1));
    let listed: Vec<_> = addresses.zip(weights).collect();
    let servers = match last.and_then(|last| last.get(key)) {
        Some(before) if before.listed == listed => before.servers.clone(),
        _ => Arc::new(compile(key, &listed, pools)),
    };
    Some((key.into(), Routing { listed, servers }))
}

fn compile(key: &str, listed: &[(String, u8)], pools: &Pools) -> Servers {
    let parse = |(text, weight): &(String, u8)| {
        let parsed = server_url(text).parse();
        let parsed = parsed.inspect_err(|error| tracing::warn!(key, %error, "a server of a routing can't be called"));
        Some(WeightedServer { address: parsed.ok()?, weight: *weight })
    };
    Servers::compile(&listed.iter().filter_map(parse).collect::<Vec<_>>(), &mut Targets::new(pools, None, &[]))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;
    use crate::{
        store::{Change, outage::Backend},
        upstream::PoolOptions,
    };

    async fn save(store: &Store, key: &str, servers: &[&str]) {
        store.save(Collection::Routings, doc! { "client_key": key, "routing_servers": servers }).await.unwrap();
    }

    fn called(servers: &Servers, calls: usize) -> Vec<&str> {
        (0..calls).map(|_| servers.choose(|_| Some(())).unwrap().0.authority.to_str().unwrap()).collect()
    }

    #[tokio::test]
    async fn servers_are_called_by_their_weights_where_these_fit() {
        let store = Arc::new(Store::in_memory());
        let routings = Routings::new(&store, Pools::new(PoolOptions::local()));
        for (key, weights) in [("fits", vec![1, 100, 2]), ("too_few", vec![1, 2])] {
            let routing = doc! { "client_key": key, "routing_servers": ["http://one", "no url", "http://two"],
            "routing_server_weights": weights };
            store.save(Collection::Routings, routing).await.unwrap();
        }
        let (fits, too_few) = (routings.servers("fits").await.unwrap(), routings.servers("too_few").await.unwrap());
        assert_eq!(called(&fits, 3), ["two", "one", "two"]);
        assert_eq!(called(&too_few, 3), ["one", "two", "one"]);
    }

    #[tokio::test]
    async fn a_key_leads_to_its_servers_as_soon_as_they_are_stored() {
        let store = Arc::new(Store::in_memory());
        let routings = Routings::new(&store, Pools::new(PoolOptions::local()));
        assert!(routings.servers("beta").await.is_none());
        save(&store, "beta", &["http://one:80", "http://two:80", "no url"]).await;
        save(&store, "empty", &[]).await;
        let servers = routings.servers("beta").await.unwrap();
        assert_eq!(called(&servers, 4), ["one", "two", "one", "two"]);
        assert!(routings.servers("empty").await.is_none());
        save(&store, "other", &["http://three:80"]).await;
        assert!(Arc::ptr_eq(&servers, &routings.servers("beta").await.unwrap()), "whose turn it is stays");
        store.remove(Collection::Routings, &["beta"]).await.unwrap();
        assert!(routings.servers("beta").await.is_none());
    }

    #[tokio::test]
    async fn what_was_known_last_goes_on_while_the_store_is_away() {
        let store = Arc::new(Store::in_memory());
        let routings = Routings::new(&store, Pools::new(PoolOptions::local()));
        save(&store, "beta", &["http://one:80"]).await;
        routings.servers("beta").await.unwrap();
        store.outages().begin(Backend::Documents, std::time::Duration::from_secs(60));
        store.announce(Change::Everything).await;
        assert!(routings.servers("beta").await.is_some());
    }
}
