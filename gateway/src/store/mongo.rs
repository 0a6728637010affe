//! Documents in MongoDB, in the collections and fields of existing Doorman databases.

use std::{sync::Arc, time::Duration};

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
    charges::{self, Charge, OPEN_CHARGES, Places},
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
    places: Arc<Places>,
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

/// Was there no server that the operation could have been sent to?
pub(super) fn is_never_sent(error: &StoreError) -> bool {
    let StoreError::Documents(cause) = error else { return false };
    cause.downcast_ref::<MongoError>().is_some_and(|error| matches!(*error.kind, ErrorKind::ServerSelection { .. }))
}

/// The path of a balance in its user's document.
fn available(group: &str) -> String {
    format!("{BALANCES}.{group}.{AVAILABLE}")
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
        Ok(Self { database: client.database(&name), places: Arc::default() })
    }

    /// Where the charges of this process leave their marks.
    pub(super) fn places(&self) -> &Arc<Places> {
        &self.places
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
                // The server goes on making it.
                Err(_) => {
                    let collection = kind.name();
                    tracing::warn!(collection, %keys, "an index takes long to be made");
                    Ok(())
                }
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

    /// Sets members of a document, if each of these members has one of these values; null is as good as none. `false`:
    /// there is none of this key, or it is another one by now.
    pub(super) async fn set_if(
        &self,
        kind: Kind,
        key: &[&str],
        expected: &[(&str, &[Bson])],
        members: Document,
    ) -> Result<bool, StoreError> {
        let mut filter = kind.filter(key);
        filter.extend(expected.iter().map(|(member, any)| ((*member).to_owned(), doc! { "$in": any.to_vec() }.into())));
        let update = doc! { "$set": members };
        let updated = within(async { self.collection(kind).update_one(filter, update).await }).await?;
        Ok(updated.matched_count > 0)
    }

    /// Sets a member within members of a document. `false`: there is nothing to set it in.
    pub(super) async fn set_within(
        &self,
        kind: Kind,
        key: &str,
        outer: &[&str],
        (member, value): (&str, Bson),
    ) -> Result<bool, StoreError> {
        let outer = outer.join(".");
        let (mut filter, update) = (kind.filter(&[key]), doc! { "$set": { format!("{outer}.{member}"): value } });
        filter.insert(outer, doc! { "$exists": true });
        let updated = within(async { self.collection(kind).update_one(filter, update).await }).await?;
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

    /// Takes one credit of a group from a balance, if there is one.
    pub(super) async fn take_credit(&self, charge: &mut Charge) -> Result<Option<Balance>, StoreError> {
        let (available, place) = (available(&charge.group), charge.path());
        let filter =
            doc! { "username": &*charge.username, &available: { "$gte": 1 }, &place: { "$ne": charge.spent() } };
        let update = doc! { "$inc": { &available: -1 }, "$set": { &place: charge.id } };
        let credits = self.collection(Kind::UserCredits);
        charge.begin();
        let found = within(async { credits.find_one_and_update(filter, update).await }).await;
        match &found {
            Ok(found) => charge.set_taken(found.is_some()),
            Err(error) if is_never_sent(error) => charge.set_taken(false),
            Err(_) => {}
        }
        let Some(document) = found? else { return Ok(None) };
        self.tidy(&charge.username, &document).await;
        let own = credits::in_document(&document, &charge.group);
        Ok(Some(own.map_or(Balance { user_key: None }, Balance::of)))
    }

    /// Gives back what a charge took, and keeps what it may still take from being taken.
    pub(super) async fn revoke(&self, charge: &mut Charge) -> Result<(), StoreError> {
        let (available, place) = (available(&charge.group), charge.path());
        let (username, id, spent) = (charge.username.clone(), charge.id, charge.spent());
        let update = async |filter, update| {
            let updated = async { self.collection(Kind::UserCredits).update_one(filter, update).await };
            within(updated).await.map(|updated| updated.matched_count > 0)
        };
        let give_back = async || {
            let filter = doc! { "username": &*username, &place: id, &available: { "$exists": true } };
            update(filter, doc! { "$inc": { &available: 1 }, "$set": { &place: &spent } }).await
        };
        let keep_from = async || {
            let filter = doc! { "username": &*username, &place: { "$ne": id } };
            update(filter, doc! { "$set": { &place: &spent } }).await
        };
        charge.begin_revoking();
        // Between the first two it may have been taken; where none of the three finds anything, the balance is gone.
        let _is_done = give_back().await? || keep_from().await? || give_back().await?;
        charge.set_revoked();
        Ok(())
    }

    /// Removes what processes have left in a document of balances that are gone. It is no harm when that fails.
    async fn tidy(&self, username: &str, document: &Document) {
        let abandoned = charges::abandoned(document);
        if abandoned.is_empty() {
            return;
        }
        let (mut filter, mut places) = (doc! { "username": username }, Document::new());
        for (place, mark) in abandoned {
            let path = format!("{OPEN_CHARGES}.{place}");
            filter.insert(path.clone(), mark);
            places.insert(path, "");
        }
        let tidied = async {
            self.collection(Kind::UserCredits).update_one(filter, doc! { "$unset": places }).await.map(|_| ())
        };
        if let Err(error) = within(tidied).await {
            tracing::debug!(%error, username, "marks of charges that are over stay with a balance");
        }
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
        let told = |members: &[&str]| -> Document {
            let told = members.iter().map(|member| ((*member).to_owned(), Bson::Int32(1)));
            told.chain([("_id".to_owned(), Bson::Int32(0))]).collect()
        };
        let collection = self.collection(kind);
        let documents = within(async {
            let mut found = collection.find(filter.clone()).sort(order).skip(listing.skip);
            if let Some(members) = listing.members {
                found = found.projection(told(members));
            }
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
