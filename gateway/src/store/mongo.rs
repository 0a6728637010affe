//! Documents in MongoDB, in the collections and fields of existing Doorman databases.

use std::time::Duration;

use futures::{
    TryStreamExt,
    future::{try_join, try_join_all},
};
use mongodb::{
    Client, Collection, Database, IndexModel,
    bson::{Bson, Document, doc},
    error::{ErrorKind, WriteFailure},
    options::IndexOptions,
};

use super::{
    StoreError,
    advice::Advised,
    collection::{Collection as Kind, Listing},
    credits::{self, AVAILABLE, BALANCES, Balance},
};
use crate::settings::Storage;

mod connect;
#[cfg(test)]
mod tests;

/// Longest wait for MongoDB, whatever it is asked.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Name of the database unless a connection string says otherwise.
const DATABASE: &str = "doorman";

/// Documents of every collection.
pub struct Documents {
    database: Database,
}

type MongoError = mongodb::error::Error;

/// Waits for an answer, but not for ever.
async fn within<T>(answer: impl Future<Output = Result<T, MongoError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if is_duplicate(&error) => Err(StoreError::Taken),
        Ok(Err(error)) => Err(StoreError::documents(error)),
        Err(elapsed) => Err(StoreError::documents(elapsed)),
    }
}

fn is_duplicate(error: &MongoError) -> bool {
    const DUPLICATE_KEY: i32 = 11_000;
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        ErrorKind::Command(error) => error.code == DUPLICATE_KEY,
        _ => false,
    }
}

impl Documents {
    /// A client of the configured servers, which answer; an error says why not, and which settings to look at.
    pub async fn connect(storage: &Storage) -> Result<Self, StoreError> {
        let answering = async {
            let documents = Self::new(storage).await?;
            documents.ping().await.map(|()| documents)
        };
        answering.await.map_err(|error| match &error {
            StoreError::Documents(cause) => match cause.downcast_ref::<MongoError>() {
                Some(cause) => StoreError::documents(Advised::new(cause.clone(), connect::advice(cause, storage))),
                None => error,
            },
            _ => error,
        })
    }

    async fn new(storage: &Storage) -> Result<Self, StoreError> {
        let options = within(connect::options(storage, TIMEOUT, DATABASE)).await?;
        let name = options.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
        let client = Client::with_options(options).map_err(StoreError::documents)?;
        Ok(Self { database: client.database(&name) })
    }

    /// Does the server answer?
    pub async fn ping(&self) -> Result<(), StoreError> {
        within(async { self.database.run_command(doc! { "ping": 1 }).await.map(|_| ()) }).await
    }

    /// Makes the indexes; without effect where they are. What stands in the way of one prevents it, not the start.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        let mut wanted = Vec::new();
        for kind in Kind::ALL {
            let ascending = |members: &[&str]| -> Document {
                members.iter().map(|member| ((*member).to_owned(), Bson::Int32(1))).collect()
            };
            let unique = || IndexOptions::builder().unique(true).build();
            wanted.push((kind, IndexModel::builder().keys(ascending(kind.key())).options(unique()).build()));
            for member in kind.unique() {
                wanted.push((kind, IndexModel::builder().keys(ascending(&[member])).options(unique()).build()));
            }
            for member in kind.indexes() {
                wanted.push((kind, IndexModel::builder().keys(ascending(&[member])).build()));
            }
        }
        let made = wanted.into_iter().map(|(kind, index)| async move {
            let keys = index.keys.clone();
            let made = tokio::time::timeout(TIMEOUT, self.collection(kind).create_index(index)).await;
            match made {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) if is_duplicate(&error) || is_other_index(&error) => {
                    let collection = kind.name();
                    tracing::warn!(collection, %keys, %error, "no index: remove duplicates or the other index and restart");
                    Ok(())
                }
                Ok(Err(error)) => Err(StoreError::documents(error)),
                Err(elapsed) => Err(StoreError::documents(elapsed)),
            }
        });
        try_join_all(made).await.map(|_| ())
    }

    fn collection(&self, kind: Kind) -> Collection<Document> {
        self.database.collection(kind.name())
    }

    pub(super) async fn find(&self, kind: Kind, key: &[&str]) -> Result<Option<Document>, StoreError> {
        within(async { self.collection(kind).find_one(kind.filter(key)).await }).await
    }

    /// The documents with this value in any of these members, in one round trip.
    pub(super) async fn find_any(
        &self,
        kind: Kind,
        members: &[&str],
        value: &str,
    ) -> Result<Vec<Document>, StoreError> {
        let either: Vec<Document> = members.iter().map(|member| doc! { *member: value }).collect();
        within(async { self.collection(kind).find(doc! { "$or": either }).limit(2).await?.try_collect().await }).await
    }

    /// Fails with [`StoreError::Taken`] when its key or another unique value is in use.
    pub(super) async fn insert(&self, kind: Kind, document: Document) -> Result<(), StoreError> {
        within(async { self.collection(kind).insert_one(document).await.map(|_| ()) }).await
    }

    /// Sets members of a document. `false`: there is none of this key.
    pub(super) async fn set(&self, kind: Kind, key: &[&str], members: Document) -> Result<bool, StoreError> {
        let update = doc! { "$set": members };
        let updated = within(async { self.collection(kind).update_one(kind.filter(key), update).await }).await?;
        Ok(updated.matched_count > 0)
    }

    /// Adds a document, or sets its members on the one of its key; other members stay as they are.
    pub(super) async fn save(&self, kind: Kind, document: Document) -> Result<(), StoreError> {
        let filter: Document = kind
            .key()
            .iter()
            .filter_map(|member| Some(((*member).to_owned(), document.get(member)?.clone())))
            .collect();
        let update = doc! { "$set": document };
        within(async { self.collection(kind).update_one(filter, update).upsert(true).await.map(|_| ()) }).await
    }

    /// Adds or takes a text of a list that holds each once. Did that change it?
    pub(super) async fn change_set(
        &self,
        kind: Kind,
        key: &str,
        member: &str,
        value: &str,
        is_in: bool,
    ) -> Result<bool, StoreError> {
        let collection = self.collection(kind);
        let (filter, operator) = (kind.filter(&[key]), if is_in { "$addToSet" } else { "$pull" });
        let update = || collection.update_one(filter.clone(), doc! { operator: { member: value } });
        match within(async { update().upsert(is_in).await }).await {
            Ok(updated) => Ok(updated.modified_count > 0 || updated.upserted_id.is_some()),
            // Two upserts at once; one of them made the document.
            Err(StoreError::Taken) => Ok(within(async { update().await }).await?.modified_count > 0),
            Err(error) => Err(error),
        }
    }

    /// Takes one credit of a group from a balance, if there is one. After an error it may have been taken.
    pub(super) async fn take_credit(&self, username: &str, group: &str) -> Result<Option<Balance>, StoreError> {
        let available = format!("{BALANCES}.{group}.{AVAILABLE}");
        let (filter, update) =
            (doc! { "username": username, &available: { "$gte": 1 } }, doc! { "$inc": { &available: -1 } });
        let credits = self.collection(Kind::UserCredits);
        let found = within(async { credits.find_one_and_update(filter, update).await }).await?;
        Ok(found.map(|document| {
            let own = credits::in_document(&document, group);
            own.map_or(Balance { user_key: None }, Balance::of)
        }))
    }

    /// Puts a credit back.
    pub(super) async fn return_credit(&self, username: &str, group: &str) -> Result<(), StoreError> {
        let available = format!("{BALANCES}.{group}.{AVAILABLE}");
        let filter = doc! { "username": username, &available: { "$exists": true } };
        let update = doc! { "$inc": { &available: 1 } };
        within(async { self.collection(Kind::UserCredits).update_one(filter, update).await.map(|_| ()) }).await
    }

    pub(super) async fn remove(&self, kind: Kind, key: &[&str]) -> Result<bool, StoreError> {
        let removed = within(async { self.collection(kind).delete_one(kind.filter(key)).await }).await?;
        Ok(removed.deleted_count > 0)
    }

    /// The documents asked for, and how many there are without `skip` and `limit`.
    pub(super) async fn list(&self, kind: Kind, listing: &Listing) -> Result<(Vec<Document>, u64), StoreError> {
        let filter: Document =
            listing.equal.iter().map(|(member, value)| ((*member).to_owned(), value.clone())).collect();
        let order: Document = kind.key().iter().map(|member| ((*member).to_owned(), Bson::Int32(1))).collect();
        let collection = self.collection(kind);
        let documents = within(async {
            let found = collection.find(filter.clone()).sort(order).skip(listing.skip);
            match listing.limit {
                // No limit is what 0 means to MongoDB.
                Some(0) => Ok(Vec::new()),
                Some(limit) => found.limit(limit.into()).await?.try_collect().await,
                None => found.await?.try_collect().await,
            }
        });
        let total = within(async { collection.count_documents(filter.clone()).await });
        try_join(documents, total).await
    }
}

fn is_other_index(error: &MongoError) -> bool {
    const OPTIONS_CONFLICT: i32 = 85;
    const KEY_SPECS_CONFLICT: i32 = 86;
    matches!(&*error.kind, ErrorKind::Command(error) if [OPTIONS_CONFLICT, KEY_SPECS_CONFLICT].contains(&error.code))
}
