//! Servers by client key: `/platform/routing` (reference: platform API 12).
//!
//! What always holds: a key that is stored can be sent in a header and stand in a path, and every server can be called.

use axum::extract::State;
use doorman_crds::{api::UpstreamAddress, role::Permission};
use mongodb::bson::Bson;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad, bad_because},
    definitions::must_weigh,
    request::{Asked, At, Caller, PAGE_SIZE, PageQuery, Sent, invalid},
    wire::{AnyText, Int, Text, given},
};
use crate::{
    definitions::{documents::server_url, fields::Members},
    store::{Collection, StoreError, plain_document},
};

const NO_CREATE: (&str, &str) = ("RTG009", "You do not have permission to create routings");
const NO_UPDATE: (&str, &str) = ("RTG010", "You do not have permission to update routings");
const NO_DELETE: (&str, &str) = ("RTG011", "You do not have permission to delete routings");
const NO_LIST: (&str, &str) = ("RTG012", "You do not have permission to get routings");
const NO_READ: (&str, &str) = ("RTG013", "You do not have permission to get routings");
/// Weights that don't fit the servers.
const WEIGHTS: (Collection, &str) = (Collection::Routings, "RTG014");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(create)).routes(routes!(list)).routes(routes!(read, update, delete))
}

/// A routing to add: calls whose header `client-key` names it go to its servers.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct NewRouting {
    routing_name: Text<1, 50>,
    /// Base URLs in place of those of APIs and endpoints, taken in turn.
    #[schema(min_items = 1)]
    routing_servers: Vec<AnyText>,
    /// How often each of them is called beside the others, one weight for each, 0 to 100; 0: no new calls. Absent or
    /// empty: all alike.
    routing_server_weights: Option<Vec<Int<{ i64::MIN }>>>,
    routing_description: Option<Text<0, 255>>,
    /// Absent: a new one, which the message tells.
    client_key: Option<Text<1, 50>>,
    /// Kept; nothing depends on it.
    #[serde(default = "first")]
    server_index: Int<0>,
}

fn first() -> Int<0> {
    Int(0)
}

/// What to change of a routing; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct RoutingUpdate {
    routing_name: Option<Text<1, 50>>,
    #[schema(min_items = 1)]
    routing_servers: Option<Vec<AnyText>>,
    routing_server_weights: Option<Vec<Int<{ i64::MIN }>>>,
    routing_description: Option<Text<0, 255>>,
    /// Can't be changed.
    client_key: Option<Text<1, 50>>,
}

/// A page of routings.
#[derive(Debug, Serialize, ToSchema)]
struct Routings {
    routings: Vec<Map<String, Value>>,
    page: u64,
    page_size: u32,
    has_next: bool,
    total: u64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ClientKey {
    /// The key that clients send.
    client_key: String,
}

fn unknown() -> Refusal {
    bad("RTG004", "Routing does not exist")
}

/// Why nobody could send this key, or nobody manage the routing.
pub(super) fn unusable_key(key: &str) -> Option<&'static str> {
    if !key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || key.trim() != key {
        return Some("can't be sent in a header: it may have printable ASCII characters only, no blanks at its ends");
    }
    if key.contains('/') || key == "all" {
        return Some("can't stand in a path of the platform API: it may not have slashes, nor be `all`");
    }
    None
}

/// Why a server could not be called. A routing serves APIs of every protocol, so addresses of gRPC servers are fine.
pub(super) fn unusable_server(server: &str) -> Option<String> {
    server_url(server).parse::<UpstreamAddress>().err()
}

/// The servers can be called, or the refusal tells which one can't.
fn check_servers(servers: &[AnyText], code: &'static str) -> Result<(), Refusal> {
    if servers.is_empty() {
        return Err(invalid().into());
    }
    let problem = |(place, server): (usize, &AnyText)| unusable_server(&server.0).map(|why| (place, why));
    match servers.iter().enumerate().find_map(problem) {
        Some((place, why)) => Err(bad_because(code, format!("routing_servers[{place}]: {why}"))),
        None => Ok(()),
    }
}

/// Adds a routing.
#[utoipa::path(post, path = "/platform/routing", tag = "Routings", request_body = NewRouting,
    responses((status = 201, description = "The routing was added; the message ends with its key.", body = Message)),
    security(("token" = ["manage_routings"])),
    extensions(("x-error-codes" = json!(["400 RTG001", "400 RTG002", "400 RTG014", "403 RTG009"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewRouting>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageRoutings, NO_CREATE).await?;
    check_servers(&new.routing_servers, "RTG002")?;
    let mut document = given(&new)?;
    must_weigh(WEIGHTS, &Members::new(), &plain_document(&document))?;
    let key = new.client_key.map_or_else(|| Uuid::new_v4().to_string(), |key| key.0);
    if let Some(why) = unusable_key(&key) {
        return Err(bad_because("RTG002", format!("client_key {why}")));
    }
    document.insert("client_key", &key);
    document.entry("routing_description").or_insert(Bson::Null);
    match platform.identity.store().insert(Collection::Routings, document).await {
        Ok(()) => Ok(Answer::created(format!("Routing created successfully with key: {key}"))),
        Err(StoreError::Taken) => Err(bad("RTG001", "Routing already exists")),
        Err(error) => Err(error.into()),
    }
}

/// Lists routings.
#[utoipa::path(get, path = "/platform/routing/all", tag = "Routings", params(PageQuery),
    responses((status = 200, description = "A page of routings.", body = Routings)),
    security(("token" = ["manage_routings"])), extensions(("x-error-codes" = json!(["400 PAG001", "403 RTG012"]))))]
async fn list(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoutings, NO_LIST).await?;
    let page = query.page(&platform, PAGE_SIZE)?;
    let (found, total) = platform.identity.store().list(Collection::Routings, &page.listing()).await?;
    Ok(Answer::data(page.of("routings", found.iter().map(|routing| plain_document(routing).into()).collect(), total)))
}

/// Reads a routing.
#[utoipa::path(get, path = "/platform/routing/{client_key}", tag = "Routings", params(ClientKey),
    responses((status = 200, description = "The routing.", body = Value)), security(("token" = ["manage_routings"])),
    extensions(("x-error-codes" = json!(["400 RTG004", "403 RTG013"]))))]
async fn read(
    State(platform): State<Platform>,
    At(ClientKey { client_key }): At<ClientKey>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoutings, NO_READ).await?;
    let found = platform.identity.store().find(Collection::Routings, &[&client_key]).await?;
    Ok(Answer::data(plain_document(&*found.ok_or_else(unknown)?)))
}

/// Changes a routing.
#[utoipa::path(put, path = "/platform/routing/{client_key}", tag = "Routings", params(ClientKey),
    request_body = RoutingUpdate, responses((status = 200, description = "The routing was changed.", body = Message)),
    security(("token" = ["manage_routings"])),
    extensions(("x-error-codes" = json!(["400 RTG004", "400 RTG005", "400 RTG006", "400 RTG007", "400 RTG014", "403 RTG010"]))))]
async fn update(
    State(platform): State<Platform>,
    At(ClientKey { client_key }): At<ClientKey>,
    sent: Sent<RoutingUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageRoutings, NO_UPDATE).await?;
    let store = platform.identity.store();
    let stored = store.find(Collection::Routings, &[&client_key]).await?.ok_or_else(unknown)?;
    if update.client_key.as_ref().is_some_and(|key| key.0 != client_key) {
        return Err(bad("RTG005", "Routing key cannot be changed"));
    }
    if let Some(servers) = &update.routing_servers {
        check_servers(servers, "RTG006")?;
    }
    let members = given(&update)?;
    must_weigh(WEIGHTS, &plain_document(&stored), &plain_document(&members))?;
    if members.is_empty() {
        return Err(bad("RTG007", "No data to update"));
    }
    if !store.set(Collection::Routings, &[&client_key], members).await? {
        return Err(unknown());
    }
    Ok(Answer::message("Routing updated successfully"))
}

/// Deletes a routing; calls with its key go where they would without.
#[utoipa::path(delete, path = "/platform/routing/{client_key}", tag = "Routings", params(ClientKey),
    responses((status = 200, description = "The routing was deleted.", body = Message)),
    security(("token" = ["manage_routings"])), extensions(("x-error-codes" = json!(["400 RTG004", "403 RTG011"]))))]
async fn delete(
    State(platform): State<Platform>,
    At(ClientKey { client_key }): At<ClientKey>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageRoutings, NO_DELETE).await?;
    if !platform.identity.store().remove(Collection::Routings, &[&client_key]).await? {
        return Err(unknown());
    }
    Ok(Answer::message("Routing deleted successfully"))
}
