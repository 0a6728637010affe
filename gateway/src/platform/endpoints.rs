//! Endpoints of APIs: `/platform/endpoint` (reference: platform API 9).

use std::{slice, sync::Arc};

use axum::extract::State;
use doorman_crds::{DoormanApiSpec, api::ApiKey, role::Permission};
use mongodb::bson::Bson;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad, bad_because},
    definitions::{Place, must_be_servable, must_fit, must_weigh},
    known::{self, is_at},
    request::{ApiPath, At, Caller, Sent},
    wire::{AnyText, Int, Text, given},
};
use crate::{
    definitions::{
        documents::problems,
        fields::{self, Members},
    },
    store::{Collection, StoreError, plain_document},
};

mod add;

pub(super) use add::{Clash, add_all};
use add::{Paths, Taken, of_document, of_object};

const NO_CREATE: (&str, &str) = ("END010", "You do not have permission to create endpoints");
const NO_UPDATE: (&str, &str) = ("END011", "You do not have permission to update endpoints");
const NO_DELETE: (&str, &str) = ("END012", "You do not have permission to delete endpoints");
const CLIENT_URI_TAKEN: &str = "Client URI conflicts with an existing endpoint";
/// Weights that don't fit the servers.
const WEIGHTS: (Collection, &str) = (Collection::Endpoints, "END024");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create))
        .routes(routes!(list))
        .routes(routes!(read, update, delete))
        .routes(routes!(read_root, update_root, delete_root))
}

/// An endpoint to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct NewEndpoint {
    pub(super) api_name: Text<1, 64>,
    pub(super) api_version: Text<1, 10>,
    pub(super) endpoint_method: Text<1, 10>,
    /// Path on the upstream; `{name}` stands for one segment.
    pub(super) endpoint_uri: Text<1, 255>,
    pub(super) endpoint_description: Text<1, 255>,
    /// Base URLs in place of the API's.
    pub(super) endpoint_servers: Option<Vec<AnyText>>,
    /// How often each of `endpoint_servers` is called beside the others, one weight for each, 0 to 100; 0: no new calls.
    /// Absent or empty: all alike.
    pub(super) endpoint_server_weights: Option<Vec<Int<{ i64::MIN }>>>,
    /// Path that clients call, when it is another one.
    pub(super) client_uri: Option<Text<1, 255>>,
}

/// What to change of an endpoint; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct EndpointUpdate {
    /// Can't be changed; nor can the next three.
    endpoint_method: Option<Text<1, 10>>,
    api_name: Option<Text<1, 64>>,
    api_version: Option<Text<1, 10>>,
    endpoint_uri: Option<Text<1, 255>>,
    endpoint_description: Option<Text<1, 255>>,
    endpoint_servers: Option<Vec<AnyText>>,
    endpoint_server_weights: Option<Vec<Int<{ i64::MIN }>>>,
    client_uri: Option<Text<1, 255>>,
}

/// The endpoints of an API.
#[derive(Debug, Serialize, ToSchema)]
struct Endpoints {
    endpoints: Vec<Map<String, Value>>,
}

/// Which endpoint.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Key {
    /// The method, as it was given.
    method: String,
    /// The API's name.
    api_name: String,
    /// Its version.
    api_version: String,
    /// The path without its first slash.
    #[serde(default)]
    uri: String,
}

/// Which endpoint at an API's root.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct RootKey {
    /// The method, as it was given.
    method: String,
    /// The API's name.
    api_name: String,
    /// Its version.
    api_version: String,
}

impl From<RootKey> for Key {
    fn from(RootKey { method, api_name, api_version }: RootKey) -> Self {
        Self { method, api_name, api_version, uri: String::new() }
    }
}

fn unknown(code: &'static str) -> Refusal {
    bad(code, "Endpoint does not exist for the requested API name, version and URI")
}

impl Key {
    fn api(&self) -> ApiKey {
        ApiKey { name: self.api_name.clone(), version: self.api_version.clone() }
    }

    fn uri(&self) -> String {
        format!("/{}", self.uri)
    }
}

/// Refuses a path for clients that the endpoint can't have beside the others of its API.
fn must_be_free<'a>(
    (method, uri, client_uri): (&str, &str, &str),
    all: impl Iterator<Item = Paths<'a>>,
) -> Result<(), Refusal> {
    let mut taken = Taken::by(all.filter(|one| (one.0, one.1) != (method, uri)));
    taken.take((method, uri, Some(client_uri))).map_err(|clash| match clash {
        Clash::Exists | Clash::ClientUri => bad("END006", CLIENT_URI_TAKEN),
        Clash::Unusable(why) => bad_because("END003", format!("Unable to update endpoint: {why}")),
    })
}

/// Adds an endpoint to an API.
#[utoipa::path(post, path = "/platform/endpoint", tag = "Endpoints", request_body = NewEndpoint,
    responses((status = 201, description = "The endpoint was added.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END001", "400 END002", "400 END003", "400 END024", "400 API015", "403 END010", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewEndpoint>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_CREATE).await?;
    must_weigh(WEIGHTS, &Members::new(), &plain_document(&given(&new)?))?;
    let api = ApiKey { name: new.api_name.0.clone(), version: new.api_version.0.clone() };
    let missing = || bad("END002", "API does not exist for the requested name and version");
    let refuse = |clash: &Clash| {
        Err(match clash {
            Clash::Exists => bad("END001", "Endpoint already exists for the requested API name, version and URI"),
            Clash::ClientUri => bad("END001", CLIENT_URI_TAKEN),
            Clash::Unusable(why) => bad_because("END003", format!("Unable to insert endpoint: {why}")),
        })
    };
    add_all(&platform, &api, &[new], missing, refuse).await?;
    Ok(Answer::created("Endpoint created successfully"))
}

/// Lists the endpoints of an API.
#[utoipa::path(get, path = "/platform/endpoint/{api_name}/{api_version}", tag = "Endpoints", params(ApiPath),
    responses((status = 200, description = "The endpoints.", body = Endpoints)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END005"]))))]
async fn list(State(platform): State<Platform>, At(api): At<ApiPath>, _caller: Caller) -> Result<Answer, Refusal> {
    let found = known::endpoints(&platform, &api.into()).await?;
    if found.is_empty() {
        return Err(bad("END005", "No endpoints found for the requested API name and version"));
    }
    Ok(Answer::data(json!({ "endpoints": found })))
}

/// Reads an endpoint.
#[utoipa::path(get, path = "/platform/endpoint/{method}/{api_name}/{api_version}/{*uri}", tag = "Endpoints",
    params(Key), responses((status = 200, description = "The endpoint.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END004"]))))]
async fn read(State(platform): State<Platform>, At(key): At<Key>, _caller: Caller) -> Result<Answer, Refusal> {
    let found = known::endpoint(&platform, &key.api(), (&key.method, &key.uri())).await?;
    Ok(Answer::data(found.ok_or_else(|| unknown("END004"))?))
}

/// Reads the endpoint at an API's root.
#[utoipa::path(get, path = "/platform/endpoint/{method}/{api_name}/{api_version}", tag = "Endpoints", params(RootKey),
    responses((status = 200, description = "The endpoint.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END004"]))))]
async fn read_root(state: State<Platform>, At(key): At<RootKey>, caller: Caller) -> Result<Answer, Refusal> {
    read(state, At(key.into()), caller).await
}

/// Changes an endpoint; the next call sees it.
#[utoipa::path(put, path = "/platform/endpoint/{method}/{api_name}/{api_version}/{*uri}", tag = "Endpoints",
    params(Key), request_body = EndpointUpdate,
    responses((status = 200, description = "The endpoint was changed.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END003", "400 END006", "400 END007", "400 END008", "400 END024", "400 API015", "403 END011", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn update(
    State(platform): State<Platform>,
    At(key): At<Key>,
    sent: Sent<EndpointUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_UPDATE).await?;
    let (api, uri) = (key.api(), key.uri());
    let key = [key.method.as_str(), &key.api_name, &key.api_version, &uri];
    let place = known::place(&platform, &api)?;
    let named = [
        update.endpoint_method.as_ref().map(|text| &text.0),
        update.api_name.as_ref().map(|text| &text.0),
        update.api_version.as_ref().map(|text| &text.0),
        update.endpoint_uri.as_ref().map(|text| &text.0),
    ];
    // Slashes at the ends of a path are no other name.
    let is_same = |(place, named): (usize, &str)| match place {
        3 => named.trim_matches('/') == key[3].trim_matches('/'),
        _ => named == key[place],
    };
    let mut given_names = named.into_iter().enumerate().filter_map(|(place, named)| Some((place, named?.as_str())));
    let is_renamed = !given_names.all(is_same);
    let renamed = || bad("END006", "API method, name, version and URI cannot be updated");
    let (mut members, no_data) = (given(&update)?, || bad("END007", "No data to update"));
    let is_empty = members.is_empty();
    // By these it is found; they stay as they are.
    for name in Collection::Endpoints.key() {
        members.remove(name);
    }
    let updated = || Answer::message("Endpoint updated successfully");
    if let Place::Cluster(writer, object) = place {
        let members = plain_document(&members);
        let change = |spec: &mut DoormanApiSpec| {
            let find =
                |spec: &DoormanApiSpec| spec.endpoints.iter().flatten().position(|one| is_at(one, key[0], key[3]));
            let place = find(spec).ok_or_else(|| unknown("END008"))?;
            if is_renamed {
                return Err(renamed());
            }
            if let Some(client_uri) = &update.client_uri {
                must_be_free((key[0], key[3], &client_uri.0), spec.endpoints.iter().flatten().map(of_object))?;
            }
            if is_empty {
                return Err(no_data());
            }
            let shown = spec.endpoints.iter().flatten().nth(place).map(|one| fields::endpoint(spec, "", one));
            must_weigh(WEIGHTS, &shown.unwrap_or_default(), &members)?;
            if let Some(endpoint) = spec.endpoints.iter_mut().flatten().nth(place) {
                must_fit(&fields::set_endpoint(endpoint, &members))?;
            }
            Ok(true)
        };
        known::change(&platform, (writer, &object), &api, || unknown("END008"), change).await?;
        return Ok(updated());
    }
    let store = platform.identity.store();
    let stored = known::stored_endpoint(&platform, &api, (key[0], key[3])).await?.ok_or_else(|| unknown("END008"))?;
    let key = [key[0], key[1], key[2], stored.get_str("endpoint_uri").unwrap_or(key[3])];
    if is_renamed {
        return Err(renamed());
    }
    let is_free = async || {
        let Some(client_uri) = &update.client_uri else { return Ok(Ok(())) };
        let beside = known::endpoints(&platform, &api).await?;
        let is_free = must_be_free((key[0], key[3], &client_uri.0), beside.iter().filter_map(of_document));
        Ok::<_, StoreError>(is_free)
    };
    is_free().await??;
    must_weigh(WEIGHTS, &plain_document(&stored), &plain_document(&members))?;
    if is_empty {
        return Err(no_data());
    }
    if let Some(api) = store.find(Collection::Apis, &[key[1], key[2]]).await? {
        let mut changed = (*stored).clone();
        changed.extend(members.clone());
        must_be_servable(|| problems(&api, slice::from_ref(&stored)), problems(&api, &[Arc::new(changed)]))?;
    }
    let was = |name: &String| (name.clone(), stored.get(name).cloned().unwrap_or(Bson::Null));
    let before = members.keys().map(was).collect();
    if !store.set(Collection::Endpoints, &key, members).await? {
        return Err(unknown("END008"));
    }
    if let Err(refusal) = is_free().await? {
        // Somebody else was faster: of both only one would be called.
        store.set(Collection::Endpoints, &key, before).await?;
        return Err(refusal);
    }
    platform.until_served().await;
    Ok(updated())
}

/// Changes the endpoint at an API's root.
#[utoipa::path(put, path = "/platform/endpoint/{method}/{api_name}/{api_version}", tag = "Endpoints", params(RootKey),
    request_body = EndpointUpdate, responses((status = 200, description = "The endpoint was changed.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END003", "400 END006", "400 END007", "400 END008", "400 END024", "400 API015", "403 END011", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn update_root(
    state: State<Platform>,
    At(key): At<RootKey>,
    sent: Sent<EndpointUpdate>,
) -> Result<Answer, Refusal> {
    update(state, At(key.into()), sent).await
}

/// Deletes an endpoint; in a cluster with what it demands of bodies.
#[utoipa::path(delete, path = "/platform/endpoint/{method}/{api_name}/{api_version}/{*uri}", tag = "Endpoints",
    params(Key), responses((status = 200, description = "The endpoint was deleted.", body = Message)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["400 END004", "403 END012", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn delete(State(platform): State<Platform>, At(key): At<Key>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageEndpoints, NO_DELETE).await?;
    let (api, uri) = (key.api(), key.uri());
    let key = [key.method.as_str(), &key.api_name, &key.api_version, &uri];
    let deleted = || Answer::message("Endpoint deleted successfully");
    if let Place::Cluster(writer, object) = known::place(&platform, &api)? {
        let change = |spec: &mut DoormanApiSpec| {
            let mut endpoints = spec.endpoints.take().unwrap_or_default();
            let before = endpoints.len();
            endpoints.retain(|one| !is_at(one, key[0], key[3]));
            if endpoints.len() == before {
                return Err(unknown("END004"));
            }
            spec.endpoints = Some(endpoints).filter(|endpoints| !endpoints.is_empty());
            Ok(true)
        };
        known::change(&platform, (writer, &object), &api, || unknown("END004"), change).await?;
        return Ok(deleted());
    }
    let stored = known::stored_endpoint(&platform, &api, (key[0], key[3])).await?;
    let key =
        [key[0], key[1], key[2], stored.as_ref().and_then(|one| one.get_str("endpoint_uri").ok()).unwrap_or(key[3])];
    if !platform.identity.store().remove(Collection::Endpoints, &key).await? {
        return Err(unknown("END004"));
    }
    platform.until_served().await;
    Ok(deleted())
}

/// Deletes the endpoint at an API's root.
#[utoipa::path(delete, path = "/platform/endpoint/{method}/{api_name}/{api_version}", tag = "Endpoints",
    params(RootKey), responses((status = 200, description = "The endpoint was deleted.", body = Message)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["400 END004", "403 END012", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn delete_root(state: State<Platform>, At(key): At<RootKey>, caller: Caller) -> Result<Answer, Refusal> {
    delete(state, At(key.into()), caller).await
}
