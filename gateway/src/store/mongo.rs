//! Users, roles and groups in MongoDB, in the collections and fields of existing Doorman databases.

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt;
use mongodb::{
    Client, Collection, Database, IndexModel,
    bson::{Document, doc},
    error::{ErrorKind, WriteFailure},
    options::IndexOptions,
};

use super::{
    StoreError,
    advice::Advised,
    documents::{Group, Role, User},
};
use crate::settings::Storage;

mod connect;
#[cfg(test)]
mod tests;

/// Longest wait for MongoDB, whatever it is asked.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Name of the database unless a connection string says otherwise.
const DATABASE: &str = "doorman";
/// Collections and the members that are unique in them.
const UNIQUE: [(&str, &str); 4] =
    [("users", "username"), ("users", "email"), ("roles", "role_name"), ("groups", "group_name")];

/// Users, roles and groups.
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

    /// Makes the unique indexes; without effect where they are. Existing duplicates prevent an index, not the start.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        for (collection, member) in UNIQUE {
            let unique = IndexOptions::builder().unique(true).build();
            let index = IndexModel::builder().keys(doc! { member: 1 }).options(unique).build();
            match within(async { self.collection(collection).create_index(index).await }).await {
                Err(StoreError::Taken) => {
                    tracing::warn!(collection, member, "has duplicates: remove them and restart to have it unique");
                }
                other => {
                    other?;
                }
            }
        }
        Ok(())
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    async fn find(&self, collection: &str, filter: Document) -> Result<Option<Document>, StoreError> {
        within(async { self.collection(collection).find_one(filter).await }).await
    }

    /// Changes or adds the document this filter finds; its other members stay as they are.
    async fn save(&self, collection: &str, filter: Document, document: Document) -> Result<(), StoreError> {
        let update = doc! { "$set": document };
        within(async { self.collection(collection).update_one(filter, update).upsert(true).await.map(|_| ()) }).await
    }

    async fn insert(&self, collection: &str, document: Document) -> Result<(), StoreError> {
        within(async { self.collection(collection).insert_one(document).await.map(|_| ()) }).await
    }

    pub(super) async fn user(&self, username: &str) -> Result<Option<Arc<User>>, StoreError> {
        self.find("users", doc! { "username": username }).await?.map(read_user).transpose()
    }

    /// One round trip, whether there is such a user or not.
    pub(super) async fn user_for_login(&self, login: &str) -> Result<Option<Arc<User>>, StoreError> {
        let filter = doc! { "$or": [{ "email": login }, { "username": login }] };
        let found: Vec<Document> =
            within(async { self.collection("users").find(filter).limit(2).await?.try_collect().await }).await?;
        let by_email =
            found.iter().position(|user| user.get_str("email").is_ok_and(|email| email == login)).unwrap_or(0);
        found.into_iter().nth(by_email).map(read_user).transpose()
    }

    pub(super) async fn save_user(&self, user: User) -> Result<(), StoreError> {
        let filter = doc! { "username": &*user.username };
        self.save("users", filter, write_user(user).await?).await
    }

    /// Fails with [`StoreError::Taken`] when name or address are in use.
    pub(super) async fn insert_user(&self, user: User) -> Result<(), StoreError> {
        self.insert("users", write_user(user).await?).await
    }

    pub(super) async fn delete_user(&self, username: &str) -> Result<bool, StoreError> {
        let filter = doc! { "username": username };
        Ok(within(async { self.collection("users").delete_one(filter).await }).await?.deleted_count > 0)
    }

    pub(super) async fn role(&self, name: &str) -> Result<Option<Arc<Role>>, StoreError> {
        let found = self.find("roles", doc! { "role_name": name }).await?;
        Ok(found.as_ref().and_then(Role::from_document).map(Arc::new))
    }

    pub(super) async fn save_role(&self, role: &Role) -> Result<(), StoreError> {
        self.save("roles", doc! { "role_name": &*role.name }, role.to_document()).await
    }

    /// Adds the role, or to an existing one the flags that it neither has nor lacks by its own word.
    pub(super) async fn complete_role(&self, role: &Role) -> Result<(), StoreError> {
        let filter = doc! { "role_name": &*role.name };
        let mut missing = role.to_document();
        if let Some(stored) = self.find("roles", filter.clone()).await? {
            stored.keys().for_each(|member| {
                missing.remove(member);
            });
        }
        if missing.is_empty() {
            return Ok(());
        }
        match self.save("roles", filter, missing).await {
            // Another process was faster.
            Err(StoreError::Taken) => Ok(()),
            other => other,
        }
    }

    pub(super) async fn group(&self, name: &str) -> Result<Option<Arc<Group>>, StoreError> {
        let found = self.find("groups", doc! { "group_name": name }).await?;
        let read = |document| mongodb::bson::deserialize_from_document(document).map(Arc::new);
        found.map(read).transpose().map_err(StoreError::documents)
    }

    pub(super) async fn save_group(&self, group: &Group) -> Result<(), StoreError> {
        let document = mongodb::bson::serialize_to_document(group).map_err(StoreError::documents)?;
        self.save("groups", doc! { "group_name": &*group.name }, document).await
    }
}

fn read_user(document: Document) -> Result<Arc<User>, StoreError> {
    User::from_document(document).map(Arc::new).map_err(StoreError::documents)
}

/// Hashing a password takes its time, so this is done elsewhere.
async fn write_user(user: User) -> Result<Document, StoreError> {
    let written = tokio::task::spawn_blocking(move || user.to_document()).await.map_err(StoreError::documents)?;
    written.map_err(StoreError::documents)
}
