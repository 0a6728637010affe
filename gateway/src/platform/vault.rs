//! Secrets that users keep here for themselves: `/platform/vault` (reference: platform API 17).
//!
//! A value goes in encrypted and never comes out again by this API; an entry is all that is told of it.

use axum::extract::State;
use http::StatusCode;
use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, busy, refused},
    request::{At, Caller, Sent},
    wire::Text,
};
use crate::{
    problem::Problem,
    store::{Collection, Listing, Moment, Store, StoreError},
};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(create, list)).routes(routes!(read, update, delete))
}

/// A secret to keep.
#[derive(Debug, Deserialize, ToSchema)]
struct NewEntry {
    key_name: Text<1, 255>,
    value: Text<1, { usize::MAX }>,
    description: Option<Text<0, 500>>,
}

/// What to change of an entry; the value can't be.
#[derive(Debug, Deserialize, ToSchema)]
struct EntryUpdate {
    description: Option<Text<0, 500>>,
}

/// What is told of a secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VaultEntry)]
struct Entry {
    username: String,
    key_name: String,
    description: Option<String>,
    /// ISO 8601, UTC.
    created_at: Option<String>,
    /// ISO 8601, UTC.
    updated_at: Option<String>,
}

/// The caller's entries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VaultEntries)]
struct Entries {
    #[schema(value_type = Vec<Entry>)]
    entries: Vec<Value>,
    count: usize,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct KeyName {
    /// The entry's name.
    key_name: String,
}

impl Entry {
    fn of(stored: &Document) -> Value {
        let text = |name| stored.get_str(name).ok().map(str::to_owned);
        json!(Self {
            username: text("username").unwrap_or_default(),
            key_name: text("key_name").unwrap_or_default(),
            description: text("description"),
            created_at: text("created_at"),
            updated_at: text("updated_at"),
        })
    }
}

fn unknown() -> Refusal {
    refused(StatusCode::NOT_FOUND, "VAULT007", "Vault entry not found")
}

fn taken(key_name: &str) -> Refusal {
    let message = format!("Vault entry with key_name \"{key_name}\" already exists");
    Problem::new(StatusCode::CONFLICT, "VAULT004", message).into()
}

/// Refuses what one user's entries would not all fit with.
async fn must_have_room(store: &Store, username: &str, more: usize) -> Result<(), Refusal> {
    const MOST: usize = 1_000;
    const MOST_BYTES: usize = 1 << 20;
    let listing = Listing { members: Some(&["encrypted_value"]), ..Listing::with("username", username) };
    let (kept, _) = store.list(Collection::VaultEntries, &listing).await?;
    let bytes: usize = kept.iter().filter_map(|entry| entry.get_str("encrypted_value").ok()).map(str::len).sum();
    if kept.len() < MOST && bytes.saturating_add(more) <= MOST_BYTES {
        return Ok(());
    }
    Err(refused(StatusCode::BAD_REQUEST, "VAULT009", "The vault is full: it holds 1000 entries and 1 MiB at most"))
}

/// Keeps a secret of the caller's.
#[utoipa::path(post, path = "/platform/vault", tag = "Vault", request_body = NewEntry,
    responses((status = 201, description = "It is kept.", body = Message)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 VAULT003", "400 VAULT009", "404 VAULT002", "409 VAULT004", "500 VAULT001",
        "500 VAULT005"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewEntry>) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    let Some(vault) = platform.settings.keys.vault() else {
        let message = "Vault encryption is not configured. Set VAULT_KEY in environment variables.";
        return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, "VAULT001", message));
    };
    let store = platform.identity.store();
    let user = store.user(&caller.0.principal.username).await?;
    let user = user.ok_or_else(|| refused(StatusCode::NOT_FOUND, "VAULT002", "User not found"))?;
    if user.email.is_empty() {
        return Err(refused(StatusCode::BAD_REQUEST, "VAULT003", "User email is required for vault encryption"));
    }
    let NewEntry { key_name, value, description } = body;
    if store.find(Collection::VaultEntries, &[&user.username, &key_name.0]).await?.is_some() {
        return Err(taken(&key_name.0));
    }
    must_have_room(store, &user.username, value.0.len()).await?;
    let (email, username) = (user.email.clone(), user.username.to_string());
    let sealed = platform.identity.passwords().in_turn(move || vault.seal(&email, &username, &value.0)).await;
    let sealed = sealed.map_err(busy)?.map_err(|error| {
        tracing::error!(%error, "a vault entry was not encrypted");
        refused(StatusCode::INTERNAL_SERVER_ERROR, "VAULT005", "Failed to encrypt vault value")
    })?;
    // Others of the user's may have come while this one waited.
    must_have_room(store, &user.username, sealed.len()).await?;
    let now = Moment::now();
    let entry = doc! {
        "username": &*user.username,
        "key_name": &key_name.0,
        "encrypted_value": sealed,
        "description": description.map(|text| text.0),
        "created_at": now,
        "updated_at": now,
    };
    match store.insert(Collection::VaultEntries, entry).await {
        Ok(()) => Ok(Answer::created("Vault entry created successfully")),
        // Another call was faster.
        Err(StoreError::Taken) => Err(taken(&key_name.0)),
        Err(error) => Err(error.into()),
    }
}

/// Lists the caller's entries, without their values.
#[utoipa::path(get, path = "/platform/vault", tag = "Vault",
    responses((status = 200, description = "All of them.", body = Entries)), security(("token" = [])))]
async fn list(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    let own = Listing::with("username", &*caller.0.principal.username);
    let (found, _) = platform.identity.store().list(Collection::VaultEntries, &own).await?;
    let entries: Vec<_> = found.iter().map(|stored| Entry::of(stored)).collect();
    let count = entries.len();
    Ok(Answer::data(json!(Entries { entries, count })))
}

/// Reads one of the caller's entries, without its value.
#[utoipa::path(get, path = "/platform/vault/{key_name}", tag = "Vault", params(KeyName),
    responses((status = 200, description = "The entry.", body = Entry)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["404 VAULT007"]))))]
async fn read(
    State(platform): State<Platform>,
    At(KeyName { key_name }): At<KeyName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let key = [&*caller.0.principal.username, &key_name];
    let found = platform.identity.store().find(Collection::VaultEntries, &key).await?;
    found.map(|stored| Answer::data(Entry::of(&stored))).ok_or_else(unknown)
}

/// Changes the description of one of the caller's entries.
#[utoipa::path(put, path = "/platform/vault/{key_name}", tag = "Vault", params(KeyName), request_body = EntryUpdate,
    responses((status = 200, description = "It was changed, or was so before.", body = Message)),
    security(("token" = [])), extensions(("x-error-codes" = json!(["404 VAULT007"]))))]
async fn update(
    State(platform): State<Platform>,
    At(KeyName { key_name }): At<KeyName>,
    sent: Sent<EntryUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body } = sent;
    let caller = caller?;
    let key = [&*caller.0.principal.username, &key_name];
    let store = platform.identity.store();
    let stored = store.find(Collection::VaultEntries, &key).await?.ok_or_else(unknown)?;
    let wanted = body.description.map(|text| text.0);
    let Some(description) = wanted.filter(|wanted| stored.get_str("description").ok() != Some(wanted)) else {
        return Ok(Answer::message("No changes made to vault entry"));
    };
    let members = doc! { "description": description, "updated_at": Moment::now() };
    if store.set(Collection::VaultEntries, &key, members).await? {
        Ok(Answer::message("Vault entry updated successfully"))
    } else {
        Err(unknown())
    }
}

/// Deletes one of the caller's entries.
#[utoipa::path(delete, path = "/platform/vault/{key_name}", tag = "Vault", params(KeyName),
    responses((status = 200, description = "It is gone.", body = Message)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["404 VAULT007"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(KeyName { key_name }): At<KeyName>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let key = [&*caller.0.principal.username, &key_name];
    if platform.identity.store().remove(Collection::VaultEntries, &key).await? {
        Ok(Answer::message("Vault entry deleted successfully"))
    } else {
        Err(unknown())
    }
}
