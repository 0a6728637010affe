//! Endpoints of APIs: `/platform/endpoint` (reference: platform API 9).

use axum::extract::State;
use doorman_crds::{DoormanApiSpec, api::ApiKey as Api, role::Permission};
use mongodb::bson::{Bson, Document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad},
    definitions::{Place, must_fit, unfit},
    known::{self, is_at},
    request::{At, Caller, Sent},
    wire::{AnyText, Text, given},
};
use crate::{
    definitions::fields,
    store::{Collection, StoreError, plain_document},
};

const NO_CREATE: (&str, &str) = ("END010", "You do not have permission to create endpoints");
const NO_UPDATE: (&str, &str) = ("END011", "You do not have permission to update endpoints");
const NO_DELETE: (&str, &str) = ("END012", "You do not have permission to delete endpoints");
const CLIENT_URI_TAKEN: &str = "Client URI conflicts with an existing endpoint";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create))
        .routes(routes!(list))
        .routes(routes!(read, update, delete))
        .routes(routes!(read_root, update_root, delete_root))
}

/// An endpoint to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct NewEndpoint {
    api_name: Text<1, 64>,
    api_version: Text<1, 10>,
    endpoint_method: Text<1, 10>,
    /// Path on the upstream; `{name}` stands for one segment.
    endpoint_uri: Text<1, 255>,
    endpoint_description: Text<1, 255>,
    /// Base URLs in place of the API's.
    endpoint_servers: Option<Vec<AnyText>>,
    /// Path that clients call, when it is another one.
    client_uri: Option<Text<1, 255>>,
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
    client_uri: Option<Text<1, 255>>,
}

/// The endpoints of an API.
#[derive(Debug, Serialize, ToSchema)]
struct Endpoints {
    endpoints: Vec<Map<String, Value>>,
}

/// Which API.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ApiKey {
    /// The API's name.
    api_name: String,
    /// Its version.
    api_version: String,
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

fn text<'a>(document: &'a Document, member: &str) -> Option<&'a str> {
    document.get_str(member).ok()
}

impl Key {
    fn api(&self) -> Api {
        Api { name: self.api_name.clone(), version: self.api_version.clone() }
    }

    fn uri(&self) -> String {
        format!("/{}", self.uri)
    }
}

/// Would clients reach another stored endpoint by this path?
async fn is_taken(platform: &Platform, key: [&str; 4], client_uri: &str) -> Result<bool, StoreError> {
    let [method, name, version, uri] = key;
    let api = Api { name: name.to_owned(), version: version.to_owned() };
    Ok(known::endpoints(platform, &api).await?.iter().any(|other| {
        let text = |member: &str| other.get(member).and_then(Value::as_str);
        text("endpoint_method") == Some(method)
            && text("endpoint_uri") != Some(uri)
            && text("client_uri").or_else(|| text("endpoint_uri")) == Some(client_uri)
    }))
}

/// The same of an object.
fn is_taken_in(spec: &DoormanApiSpec, (method, uri): (&str, &str), client_uri: &str) -> bool {
    spec.endpoints.iter().flatten().any(|other| {
        other.method.as_str() == method
            && other.uri != uri
            && *other.client_uri.as_ref().unwrap_or(&other.uri) == fields::slashed(client_uri)
    })
}

/// Adds an endpoint to an API.
#[utoipa::path(post, path = "/platform/endpoint", tag = "Endpoints", request_body = NewEndpoint,
    responses((status = 201, description = "The endpoint was added.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END001", "400 END002", "403 END010", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewEndpoint>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_CREATE).await?;
    let store = platform.identity.store();
    let exists = || bad("END001", "Endpoint already exists for the requested API name, version and URI");
    let (name, version) = (new.api_name.0.as_str(), new.api_version.0.as_str());
    let key = [new.endpoint_method.0.as_str(), name, version, new.endpoint_uri.0.as_str()];
    let no_api = || bad("END002", "API does not exist for the requested name and version");
    let api = Api { name: name.to_owned(), version: version.to_owned() };
    if let Place::Cluster(writer, object) = known::place(&platform, &api)? {
        let method = fields::method(key[0]).map_err(|misfit| unfit(&misfit))?;
        let mut endpoint = fields::blank_endpoint(method, key[3]);
        must_fit(&fields::set_endpoint(&mut endpoint, &plain_document(&given(&new))))?;
        let change = |spec: &mut DoormanApiSpec| {
            if spec.endpoints.iter().flatten().any(|other| is_at(other, key[0], key[3])) {
                return Err(exists());
            }
            let client_uri = endpoint.client_uri.as_deref();
            if client_uri.is_some_and(|client_uri| is_taken_in(spec, (key[0], &endpoint.uri), client_uri)) {
                return Err(bad("END001", CLIENT_URI_TAKEN));
            }
            spec.endpoints.get_or_insert_default().push(endpoint.clone());
            Ok(true)
        };
        known::change(&platform, (writer, &object), &api, no_api, change).await?;
        return Ok(Answer::created("Endpoint created successfully"));
    }
    if store.find(Collection::Endpoints, &key).await?.is_some() {
        return Err(exists());
    }
    let api = store.find(Collection::Apis, &[name, version]).await?.ok_or_else(no_api)?;
    if let Some(client_uri) = &new.client_uri
        && is_taken(&platform, key, &client_uri.0).await?
    {
        return Err(bad("END001", CLIENT_URI_TAKEN));
    }
    let mut document = given(&new);
    for member in ["endpoint_servers", "client_uri"] {
        document.entry(member).or_insert(Bson::Null);
    }
    document.insert("api_id", text(&api, "api_id").unwrap_or_default());
    document.insert("endpoint_id", Uuid::new_v4().to_string());
    match store.insert(Collection::Endpoints, document).await {
        Ok(()) => {}
        Err(StoreError::Taken) => return Err(exists()),
        Err(error) => return Err(error.into()),
    }
    platform.until_served().await;
    Ok(Answer::created("Endpoint created successfully"))
}

/// Lists the endpoints of an API.
#[utoipa::path(get, path = "/platform/endpoint/{api_name}/{api_version}", tag = "Endpoints", params(ApiKey),
    responses((status = 200, description = "The endpoints.", body = Endpoints)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END005"]))))]
async fn list(State(platform): State<Platform>, At(api): At<ApiKey>, _caller: Caller) -> Result<Answer, Refusal> {
    let found = known::endpoints(&platform, &Api { name: api.api_name, version: api.api_version }).await?;
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
    extensions(("x-error-codes" = json!(["400 END006", "400 END007", "400 END008", "403 END011", "409 DEF409", "503 DEF503",
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
    let is_renamed = named.into_iter().zip(key).any(|(named, own)| named.is_some_and(|named| named != own));
    let renamed = || bad("END006", "API method, name, version and URI cannot be updated");
    let (members, no_data) = (given(&update), || bad("END007", "No data to update"));
    let updated = || Answer::message("Endpoint updated successfully");
    if let Place::Cluster(writer, object) = place {
        let members = plain_document(&members);
        let change = |spec: &mut DoormanApiSpec| {
            let find =
                |spec: &DoormanApiSpec| spec.endpoints.iter().flatten().position(|one| is_at(one, key[0], key[3]));
            let place = find(spec).ok_or_else(|| unknown("END008"))?;
            let client_uri = update.client_uri.as_ref();
            if is_renamed {
                return Err(renamed());
            }
            if client_uri.is_some_and(|client_uri| is_taken_in(spec, (key[0], key[3]), &client_uri.0)) {
                return Err(bad("END006", CLIENT_URI_TAKEN));
            }
            if members.is_empty() {
                return Err(no_data());
            }
            if let Some(endpoint) = spec.endpoints.iter_mut().flatten().nth(place) {
                must_fit(&fields::set_endpoint(endpoint, &members))?;
            }
            Ok(true)
        };
        known::change(&platform, (writer, &object), &api, || unknown("END008"), change).await?;
        return Ok(updated());
    }
    let store = platform.identity.store();
    if store.find(Collection::Endpoints, &key).await?.is_none() {
        return Err(unknown("END008"));
    }
    if is_renamed {
        return Err(renamed());
    }
    if let Some(client_uri) = &update.client_uri
        && is_taken(&platform, key, &client_uri.0).await?
    {
        return Err(bad("END006", CLIENT_URI_TAKEN));
    }
    if members.is_empty() {
        return Err(no_data());
    }
    if !store.set(Collection::Endpoints, &key, members).await? {
        return Err(unknown("END008"));
    }
    platform.until_served().await;
    Ok(updated())
}

/// Changes the endpoint at an API's root.
#[utoipa::path(put, path = "/platform/endpoint/{method}/{api_name}/{api_version}", tag = "Endpoints", params(RootKey),
    request_body = EndpointUpdate, responses((status = 200, description = "The endpoint was changed.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END006", "400 END007", "400 END008", "403 END011", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn update_root(
    state: State<Platform>,
    At(key): At<RootKey>,
    sent: Sent<EndpointUpdate>,
) -> Result<Answer, Refusal> {
    update(state, At(key.into()), sent).await
}

/// Deletes an endpoint and what it demands of bodies.
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
