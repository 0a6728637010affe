//! What endpoints demand of bodies: `/platform/endpoint/endpoint/validation` and its shorter form (reference: platform
//! API 9).

use std::collections::BTreeMap;

use axum::extract::State;
use doorman_crds::role::Permission;
use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad},
    definitions::must_be_stored_here,
    request::{At, Caller, Sent, invalid, invalid_as},
    wire::{AnyText, Flag},
};
use crate::{
    definitions::documents::check_validation,
    store::{Collection, Listing, StoreError, plain_document},
};

const NO_CREATE: (&str, &str) = ("END013", "You do not have permission to create endpoint validations");
const NO_UPDATE: (&str, &str) = ("END014", "You do not have permission to update endpoint validations");
const NO_DELETE: (&str, &str) = ("END015", "You do not have permission to delete endpoint validations");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create_long))
        .routes(routes!(create))
        .routes(routes!(read_long, update_long, delete_long))
        .routes(routes!(read, update, delete))
}

/// What an endpoint demands of bodies.
#[derive(Debug, Deserialize, ToSchema)]
struct NewValidation {
    endpoint_id: AnyText,
    validation_enabled: Flag,
    validation_schema: Schema,
}

/// What to change.
#[derive(Debug, Deserialize, ToSchema)]
struct ValidationUpdate {
    validation_enabled: Option<Flag>,
    validation_schema: Option<Schema>,
}

/// Rules by the path of the field: names joined with dots, `[n]` for items.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct Schema {
    validation_schema: BTreeMap<String, Rule>,
}

/// What a field must be like.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct Rule {
    required: Flag,
    /// `string`, `number`, `boolean`, `array`, `object`.
    #[serde(rename = "type")]
    type_: AnyText,
    /// Least value, length or number of items.
    min: Option<f64>,
    /// Largest value, length or number of items.
    max: Option<f64>,
    /// Regular expression, from the beginning.
    pattern: Option<AnyText>,
    /// Allowed values.
    #[serde(rename = "enum")]
    enum_: Option<Vec<Value>>,
    /// `email`, `url`, `date`, `datetime`, `uuid`.
    format: Option<AnyText>,
    custom_validator: Option<AnyText>,
    /// Rules of an object's members.
    #[schema(no_recursion)]
    nested_schema: Option<BTreeMap<String, Rule>>,
    /// The rule of every item of an array.
    #[schema(no_recursion)]
    array_items: Option<Box<Rule>>,
}

/// Which endpoint.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Key {
    /// The endpoint's id.
    endpoint_id: String,
}

/// The schema to store; refused when it can't be applied.
fn stored(schema: &Schema) -> Result<Document, Refusal> {
    let document = mongodb::bson::serialize_to_document(schema).map_err(|_| invalid())?;
    check_validation(&doc! { "validation_schema": document.clone() }).map_err(invalid_as)?;
    Ok(document)
}

async fn endpoint_exists(platform: &Platform, id: &str) -> Result<bool, StoreError> {
    let listing = Listing { limit: Some(1), ..Listing::with("endpoint_id", id) };
    Ok(platform.identity.store().list(Collection::Endpoints, &listing).await?.1 > 0)
}

/// Adds what an endpoint demands of bodies.
#[utoipa::path(post, path = "/platform/endpoint/endpoint/validation", tag = "Endpoint validations",
    request_body = NewValidation, responses((status = 201, description = "It was added.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END013", "400 END014", "400 END015", "400 END017", "403 END013", "409 DEF409"]))))]
async fn create_long(State(platform): State<Platform>, sent: Sent<NewValidation>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_CREATE).await?;
    must_be_stored_here(&platform.writing, "Endpoint validations")?;
    if new.endpoint_id.0.is_empty() {
        return Err(bad("END013", "Endpoint ID is required"));
    }
    if new.validation_schema.validation_schema.is_empty() {
        return Err(bad("END014", "Validation schema is required"));
    }
    if !endpoint_exists(&platform, &new.endpoint_id.0).await? {
        return Err(bad("END015", "Endpoint does not exist"));
    }
    let document = doc! {
        "endpoint_id": new.endpoint_id.0,
        "validation_enabled": new.validation_enabled.0,
        "validation_schema": stored(&new.validation_schema)?,
    };
    match platform.identity.store().insert(Collection::EndpointValidations, document).await {
        Ok(()) => {}
        Err(StoreError::Taken) => return Err(bad("END017", "Endpoint validation already exists")),
        Err(error) => return Err(error.into()),
    }
    platform.until_served().await;
    Ok(Answer::created("Endpoint validation created successfully"))
}

/// The same as `/platform/endpoint/endpoint/validation`.
#[utoipa::path(post, path = "/platform/endpoint/validation", tag = "Endpoint validations",
    request_body = NewValidation, responses((status = 201, description = "It was added.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END013", "400 END014", "400 END015", "400 END017", "403 END013", "409 DEF409"]))))]
async fn create(state: State<Platform>, sent: Sent<NewValidation>) -> Result<Answer, Refusal> {
    create_long(state, sent).await
}

/// Reads what an endpoint demands of bodies.
#[utoipa::path(get, path = "/platform/endpoint/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), responses((status = 200, description = "What it demands.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END018"]))))]
async fn read_long(State(platform): State<Platform>, At(key): At<Key>, _caller: Caller) -> Result<Answer, Refusal> {
    let found = platform.identity.store().find(Collection::EndpointValidations, &[&key.endpoint_id]).await?;
    let found = found.ok_or_else(|| bad("END018", "Endpoint validation does not exist"))?;
    Ok(Answer::data(plain_document(&found)))
}

/// The same as `/platform/endpoint/endpoint/validation/{endpoint_id}`.
#[utoipa::path(get, path = "/platform/endpoint/validation/{endpoint_id}", tag = "Endpoint validations", params(Key),
    responses((status = 200, description = "What it demands.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END018"]))))]
async fn read(state: State<Platform>, at: At<Key>, caller: Caller) -> Result<Answer, Refusal> {
    read_long(state, at, caller).await
}

/// Changes what an endpoint demands of bodies; the next call sees it.
#[utoipa::path(put, path = "/platform/endpoint/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), request_body = ValidationUpdate,
    responses((status = 200, description = "It was changed.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END018", "400 END021", "400 END022", "403 END014", "409 DEF409"]))))]
async fn update_long(
    State(platform): State<Platform>,
    At(key): At<Key>,
    sent: Sent<ValidationUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_UPDATE).await?;
    must_be_stored_here(&platform.writing, "Endpoint validations")?;
    if !endpoint_exists(&platform, &key.endpoint_id).await? {
        return Err(bad("END022", "Endpoint does not exist"));
    }
    let mut members = Document::new();
    if let Some(enabled) = update.validation_enabled {
        members.insert("validation_enabled", enabled.0);
    }
    if let Some(schema) = &update.validation_schema {
        if schema.validation_schema.is_empty() {
            return Err(bad("END021", "Validation schema is required"));
        }
        members.insert("validation_schema", stored(schema)?);
    }
    let store = platform.identity.store();
    if !members.is_empty() && !store.set(Collection::EndpointValidations, &[&key.endpoint_id], members).await? {
        return Err(bad("END018", "Endpoint validation does not exist"));
    }
    platform.until_served().await;
    Ok(Answer::message("Endpoint validation updated successfully"))
}

/// The same as `/platform/endpoint/endpoint/validation/{endpoint_id}`.
#[utoipa::path(put, path = "/platform/endpoint/validation/{endpoint_id}", tag = "Endpoint validations", params(Key),
    request_body = ValidationUpdate, responses((status = 200, description = "It was changed.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END018", "400 END021", "400 END022", "403 END014", "409 DEF409"]))))]
async fn update(state: State<Platform>, at: At<Key>, sent: Sent<ValidationUpdate>) -> Result<Answer, Refusal> {
    update_long(state, at, sent).await
}

/// Deletes what an endpoint demands of bodies, if it does.
#[utoipa::path(delete, path = "/platform/endpoint/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), responses((status = 200, description = "It demands nothing now.", body = Message)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["403 END015", "409 DEF409"]))))]
async fn delete_long(State(platform): State<Platform>, At(key): At<Key>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageEndpoints, NO_DELETE).await?;
    must_be_stored_here(&platform.writing, "Endpoint validations")?;
    platform.identity.store().remove(Collection::EndpointValidations, &[&key.endpoint_id]).await?;
    platform.until_served().await;
    Ok(Answer::message("Endpoint validation deleted successfully"))
}

/// The same as `/platform/endpoint/endpoint/validation/{endpoint_id}`.
#[utoipa::path(delete, path = "/platform/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), responses((status = 200, description = "It demands nothing now.", body = Message)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["403 END015", "409 DEF409"]))))]
async fn delete(state: State<Platform>, at: At<Key>, caller: Caller) -> Result<Answer, Refusal> {
    delete_long(state, at, caller).await
}
