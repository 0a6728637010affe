//! What endpoints demand of bodies: `/platform/endpoint/endpoint/validation` and its shorter form (reference: platform
//! API 9).

use std::collections::BTreeMap;

use axum::extract::State;
use doorman_crds::{DoormanApiSpec, api::ValidationSpec, role::Permission};
use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Message, Refusal, bad},
    definitions::{Place, must_fit, read_only},
    known::{self, Located, is_at},
    request::{At, Caller, Sent, invalid, invalid_as},
    wire::{AnyText, Flag},
};
use crate::{
    definitions::{
        documents::check_validation,
        fields,
        writer::{Writer, Writing},
    },
    store::{Collection, StoreError, plain_document},
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
    #[serde(serialize_with = "whole_if_it_is")]
    min: Option<f64>,
    /// Largest value, length or number of items.
    #[serde(serialize_with = "whole_if_it_is")]
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

/// Clients that send a whole number read one.
#[expect(clippy::ref_option, reason = "serde calls it so")]
fn whole_if_it_is<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    // Beyond these, not every whole number is one that a float can be.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match *number {
        #[expect(clippy::cast_possible_truncation, reason = "it was looked at")]
        Some(number) if number.fract() == 0.0 && number.abs() <= EXACT => serializer.serialize_i64(number as i64),
        _ => number.serialize(serializer),
    }
}

/// Which endpoint.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Key {
    /// The endpoint's id.
    endpoint_id: String,
}

fn unknown() -> Refusal {
    bad("END018", "Endpoint validation does not exist")
}

/// The schema to store; refused when it can't be applied.
fn stored(schema: &Schema) -> Result<Document, Refusal> {
    let document = mongodb::bson::serialize_to_document(schema).map_err(|_| invalid())?;
    check_validation(&doc! { "validation_schema": document.clone() }).map_err(invalid_as)?;
    Ok(document)
}

/// Where what an endpoint demands is written; an endpoint that nobody knows is looked for among the stored.
fn place<'a>(platform: &'a Platform, located: Option<&Located>) -> Result<Place<'a>, Refusal> {
    match (located, &platform.writing) {
        (Some(located), _) => known::place(platform, &located.api),
        (None, Writing::ReadOnly) => Err(read_only("Endpoint validations")),
        (None, Writing::Documents | Writing::Cluster(_)) => Ok(Place::Documents),
    }
}

/// Changes what the object of an API says of an endpoint's bodies. `change` tells whether it changed anything.
async fn change_object(
    platform: &Platform,
    object: (&Writer, &str),
    located: &Located,
    missing: impl Fn() -> Refusal,
    change: impl Fn(&mut Option<ValidationSpec>) -> Result<bool, Refusal>,
) -> Result<(), Refusal> {
    let change = |spec: &mut DoormanApiSpec| {
        let mut endpoints = spec.endpoints.iter_mut().flatten();
        let endpoint = endpoints.find(|one| is_at(one, &located.method, &located.uri)).ok_or_else(&missing)?;
        change(&mut endpoint.validation)
    };
    known::change(platform, object, &located.api, &missing, change).await
}

/// The same as an object has it.
fn spec_of(document: &fields::Members) -> Result<Option<ValidationSpec>, Refusal> {
    let (spec, misfits) = fields::validation_spec(document);
    must_fit(&misfits).map(|()| spec)
}

/// Adds what an endpoint demands of bodies.
#[utoipa::path(post, path = "/platform/endpoint/endpoint/validation", tag = "Endpoint validations",
    request_body = NewValidation, responses((status = 201, description = "It was added.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END013", "400 END014", "400 END015", "400 END017", "403 END013", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn create_long(State(platform): State<Platform>, sent: Sent<NewValidation>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_CREATE).await?;
    let located = Located::find(&platform, &new.endpoint_id.0).await?;
    let place = place(&platform, located.as_ref())?;
    if new.endpoint_id.0.is_empty() {
        return Err(bad("END013", "Endpoint ID is required"));
    }
    if new.validation_schema.validation_schema.is_empty() {
        return Err(bad("END014", "Validation schema is required"));
    }
    let no_endpoint = || bad("END015", "Endpoint does not exist");
    let located = located.ok_or_else(no_endpoint)?;
    let exists = || bad("END017", "Endpoint validation already exists");
    let created = || Answer::created("Endpoint validation created successfully");
    let document = doc! {
        "endpoint_id": new.endpoint_id.0,
        "validation_enabled": new.validation_enabled.0,
        "validation_schema": stored(&new.validation_schema)?,
    };
    if let Place::Cluster(writer, object) = place {
        let spec = spec_of(&plain_document(&document))?;
        let change = |validation: &mut Option<ValidationSpec>| {
            if validation.is_some() {
                return Err(exists());
            }
            validation.clone_from(&spec);
            Ok(true)
        };
        change_object(&platform, (writer, &object), &located, no_endpoint, change).await?;
        return Ok(created());
    }
    match platform.identity.store().insert(Collection::EndpointValidations, document).await {
        Ok(()) => {}
        Err(StoreError::Taken) => return Err(exists()),
        Err(error) => return Err(error.into()),
    }
    platform.until_served().await;
    Ok(created())
}

/// The same as `/platform/endpoint/endpoint/validation`.
#[utoipa::path(post, path = "/platform/endpoint/validation", tag = "Endpoint validations",
    request_body = NewValidation, responses((status = 201, description = "It was added.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END013", "400 END014", "400 END015", "400 END017", "403 END013", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn create(state: State<Platform>, sent: Sent<NewValidation>) -> Result<Answer, Refusal> {
    create_long(state, sent).await
}

/// Reads what an endpoint demands of bodies.
#[utoipa::path(get, path = "/platform/endpoint/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), responses((status = 200, description = "What it demands.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 END018"]))))]
async fn read_long(State(platform): State<Platform>, At(key): At<Key>, _caller: Caller) -> Result<Answer, Refusal> {
    let located = Located::find(&platform, &key.endpoint_id).await?;
    if let Some((_, endpoint)) = located.and_then(|located| located.defined) {
        let demanded = endpoint.validation.ok_or_else(unknown)?;
        return Ok(Answer::data(fields::validation(&key.endpoint_id, &demanded)));
    }
    let found = platform.identity.store().find(Collection::EndpointValidations, &[&key.endpoint_id]).await?;
    Ok(Answer::data(plain_document(&*found.ok_or_else(unknown)?)))
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
    extensions(("x-error-codes" = json!(["400 END018", "400 END021", "400 END022", "403 END014", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn update_long(
    State(platform): State<Platform>,
    At(key): At<Key>,
    sent: Sent<ValidationUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageEndpoints, NO_UPDATE).await?;
    let located = Located::find(&platform, &key.endpoint_id).await?;
    let place = place(&platform, located.as_ref())?;
    let no_endpoint = || bad("END022", "Endpoint does not exist");
    let located = located.ok_or_else(no_endpoint)?;
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
    let updated = || Answer::message("Endpoint validation updated successfully");
    if let Place::Cluster(writer, object) = place {
        let members = plain_document(&members);
        let change = |validation: &mut Option<ValidationSpec>| {
            if members.is_empty() {
                return Ok(false);
            }
            let mut document = fields::validation(&key.endpoint_id, validation.as_ref().ok_or_else(unknown)?);
            document.extend(members.clone());
            *validation = spec_of(&document)?;
            Ok(true)
        };
        change_object(&platform, (writer, &object), &located, no_endpoint, change).await?;
        return Ok(updated());
    }
    let store = platform.identity.store();
    if !members.is_empty() && !store.set(Collection::EndpointValidations, &[&key.endpoint_id], members).await? {
        return Err(unknown());
    }
    platform.until_served().await;
    Ok(updated())
}

/// The same as `/platform/endpoint/endpoint/validation/{endpoint_id}`.
#[utoipa::path(put, path = "/platform/endpoint/validation/{endpoint_id}", tag = "Endpoint validations", params(Key),
    request_body = ValidationUpdate, responses((status = 200, description = "It was changed.", body = Message)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["400 END018", "400 END021", "400 END022", "403 END014", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn update(state: State<Platform>, at: At<Key>, sent: Sent<ValidationUpdate>) -> Result<Answer, Refusal> {
    update_long(state, at, sent).await
}

/// Deletes what an endpoint demands of bodies, if it does.
#[utoipa::path(delete, path = "/platform/endpoint/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), responses((status = 200, description = "It demands nothing now.", body = Message)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["403 END015", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn delete_long(State(platform): State<Platform>, At(key): At<Key>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageEndpoints, NO_DELETE).await?;
    let located = Located::find(&platform, &key.endpoint_id).await?;
    if let (Place::Cluster(writer, object), Some(located)) = (place(&platform, located.as_ref())?, &located) {
        let change = |validation: &mut Option<ValidationSpec>| Ok(validation.take().is_some());
        let no_endpoint = || bad("END018", "Endpoint does not exist");
        change_object(&platform, (writer, &object), located, no_endpoint, change).await?;
    }
    platform.identity.store().remove(Collection::EndpointValidations, &[&key.endpoint_id]).await?;
    platform.until_served().await;
    Ok(Answer::message("Endpoint validation deleted successfully"))
}

/// The same as `/platform/endpoint/endpoint/validation/{endpoint_id}`.
#[utoipa::path(delete, path = "/platform/endpoint/validation/{endpoint_id}", tag = "Endpoint validations",
    params(Key), responses((status = 200, description = "It demands nothing now.", body = Message)),
    security(("token" = ["manage_endpoints"])), extensions(("x-error-codes" = json!(["403 END015", "409 DEF409", "503 DEF503",
        "504 DEF504"]))))]
async fn delete(state: State<Platform>, at: At<Key>, caller: Caller) -> Result<Answer, Refusal> {
    delete_long(state, at, caller).await
}
