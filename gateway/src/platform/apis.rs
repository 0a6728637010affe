//! APIs: `/platform/api` (reference: platform API 8).

use std::time::Duration;

use axum::extract::State;
use doorman_crds::{DoormanApi, DoormanApiSpec, api::ApiKey, role::Permission};
use http::StatusCode;
use mongodb::bson::{Bson, Document, doc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Platform,
    answer::{Answer, Message, Refusal, refused},
    definitions::{
        Adoption, Place, adopt as adopt_object, must_be_servable, must_fit, must_weigh, not_written,
        release as release_object, until_served,
    },
    known::{self, Known, called},
    request::{ApiPath, Asked, At, Caller, MaybeSent, PAGE_SIZE, PageQuery, Sent, invalid_as},
    wire::{AnyText, Flag, Int, Text, given},
};
use crate::{
    definitions::{
        documents::{check_transforms, problems},
        fields::{self, Members},
        writer::WriteError,
    },
    identity::Denied,
    problem::Problem,
    store::{Collection, StoreError, plain_document},
};

/// Nobody is signed in (list).
const NOT_SIGNED_IN: &str = "API_AUTH";
const NO_CREATE: (&str, &str) = ("API007", "You do not have permission to create APIs");
const NO_UPDATE: (&str, &str) = ("API008", "You do not have permission to update APIs");
const NO_DELETE: (&str, &str) = ("API008", "You do not have permission to delete APIs");
/// How often a change is made anew because somebody else was faster, and the pause before that.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// Members whose values must go together.
const TOGETHER: [&str; 4] = ["api_public", "api_credits_enabled", "api_servers", "api_server_weights"];
/// Weights that don't fit the servers.
const WEIGHTS: (Collection, &str) = (Collection::Apis, "API014");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(list_all))
        .routes(routes!(read, update, delete))
        .routes(routes!(adopt))
        .routes(routes!(release))
}

/// An API to add.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct NewApi {
    /// First part of the path that clients call.
    api_name: Text<1, 64>,
    /// Second part of the path that clients call, e.g. `v1`.
    api_version: Text<1, 8>,
    #[serde(flatten)]
    fields: Fields,
}

/// What to change of an API; what is absent or null stays.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct ApiUpdate {
    /// Can't be changed.
    api_name: Option<Text<1, 64>>,
    /// Can't be changed.
    api_version: Option<Text<1, 8>>,
    /// Can't be changed.
    api_path: Option<AnyText>,
    #[serde(flatten)]
    fields: Fields,
}

/// What an API is and does.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
struct Fields {
    /// What the API is for.
    api_description: Option<Text<0, 127>>,
    /// Roles that may call it; none: any.
    api_allowed_roles: Option<Vec<AnyText>>,
    /// Groups of which callers need one.
    api_allowed_groups: Option<Vec<AnyText>>,
    /// Base URLs of upstreams.
    api_servers: Option<Vec<AnyText>>,
    /// How often each of `api_servers` is called beside the others, one weight for each, 0 to 100; 0: no new calls. Absent
    /// or empty: all alike.
    api_server_weights: Option<Vec<Int<{ i64::MIN }>>>,
    /// `REST`, `SOAP`, `GRAPHQL`, `GRPC`; a label.
    api_type: Option<AnyText>,
    /// How often a call that failed upstream is tried again, whatever the method; 0: never.
    api_allowed_retry_count: Option<Int<{ i64::MIN }>>,
    /// Kept and shown; nothing depends on it.
    api_grpc_package: Option<AnyText>,
    /// Kept and shown; nothing depends on it.
    api_grpc_allowed_packages: Option<Vec<AnyText>>,
    /// Services that `GET /platform/api/{api_name}/{api_version}/grpc/services` lists.
    api_grpc_allowed_services: Option<Vec<AnyText>>,
    /// Kept and shown; nothing depends on it.
    api_grpc_allowed_methods: Option<Vec<AnyText>>,
    /// Client header that becomes the upstream's `Authorization`.
    api_authorization_field_swap: Option<AnyText>,
    /// Headers that pass both ways beside the usual ones.
    api_allowed_headers: Option<Vec<AnyText>>,
    /// A call takes a credit of `api_credit_group` from the caller; not for public APIs.
    api_credits_enabled: Option<Flag>,
    /// The credit definition whose credits are taken and whose key is sent upstream.
    api_credit_group: Option<AnyText>,
    /// `false`: calls are refused with 403 `GTW012`.
    active: Option<Flag>,
    /// Origins whose pages may call it; absent: any.
    api_cors_allow_origins: Option<Vec<AnyText>>,
    /// Methods that a preflight allows; absent: the usual ones.
    api_cors_allow_methods: Option<Vec<AnyText>>,
    /// Request headers that a preflight allows; absent: any.
    api_cors_allow_headers: Option<Vec<AnyText>>,
    /// Pages may send cookies and other credentials.
    api_cors_allow_credentials: Option<Flag>,
    /// Answer headers that pages may read.
    api_cors_expose_headers: Option<Vec<AnyText>>,
    /// Anyone may call it.
    api_public: Option<Flag>,
    /// `false`: no token is needed.
    api_auth_required: Option<Flag>,
    /// `allow_all` or `whitelist`.
    api_ip_mode: Option<AnyText>,
    /// Addresses and networks (CIDR) that are let in under `whitelist`.
    api_ip_whitelist: Option<Vec<AnyText>>,
    /// Addresses and networks (CIDR) that are never let in.
    api_ip_blacklist: Option<Vec<AnyText>>,
    /// Whether the client is told by `X-Forwarded-For` of a trusted proxy; absent: as the gateway is set.
    api_trust_x_forwarded_for: Option<Flag>,
    /// `headers`, `query` (`remove`, `rename`, `add`) and `body` (`wrap`, `remove`, `rename`, `set`), under `request` or
    /// not.
    api_request_transform: Option<Map<String, Value>>,
    /// `headers`, `body` and `status_map`, under `response` or not.
    api_response_transform: Option<Map<String, Value>>,
    /// Wraps JSON answers as `{"status_code": .., "response": ..}`; absent: they pass as they are.
    api_response_envelope: Option<Flag>,
    /// Path of the OpenAPI document on the upstream.
    api_openapi_url: Option<AnyText>,
    /// Kept and shown; nothing depends on it.
    api_openapi_auto_discover: Option<Flag>,
    /// Path, tried on each server in turn, or URL, of the WSDL.
    api_wsdl_url: Option<AnyText>,
    /// Kept and shown; nothing depends on it.
    api_soap_version: Option<AnyText>,
    /// Kept, shown to holders of `manage_apis` only; nothing depends on it.
    api_ws_security: Option<Map<String, Value>>,
    /// Kept and shown; nothing depends on it.
    api_graphql_max_depth: Option<Int<{ i64::MIN }>>,
    /// Path where the schema is asked for, on each server in turn; absent: `/graphql`.
    api_graphql_schema_url: Option<AnyText>,
    /// Kept and shown; nothing depends on it.
    api_graphql_subscriptions: Option<Flag>,
    /// Kept and shown; nothing depends on it.
    api_grpc_web_enabled: Option<Flag>,
    /// Its presence is told as `reflection_enabled` by `GET /platform/api/{api_name}/{api_version}/grpc/services`.
    api_grpc_reflection_url: Option<AnyText>,
    /// Kept and shown; nothing depends on it.
    api_is_crud: Option<Flag>,
    /// Kept and shown; nothing depends on it.
    api_crud_collection: Option<AnyText>,
    /// Kept and shown; nothing depends on it.
    api_crud_schema: Option<Map<String, Value>>,
    /// Seconds to open a connection to the upstream; absent: as the gateway is set.
    api_connect_timeout: Option<f64>,
    /// Seconds of silence of the upstream; absent: as the gateway is set.
    api_read_timeout: Option<f64>,
    /// Seconds a write to the upstream may stall; absent: as the gateway is set.
    api_write_timeout: Option<f64>,
    /// Seconds to wait for a connection of the pool; absent: as the gateway is set.
    api_pool_timeout: Option<f64>,
}

/// What a new API has unless its body says otherwise.
fn defaults() -> Document {
    let null = [
        "api_description",
        "api_type",
        "api_grpc_package",
        "api_grpc_allowed_packages",
        "api_grpc_allowed_services",
        "api_grpc_allowed_methods",
        "api_authorization_field_swap",
        "api_allowed_headers",
        "api_credit_group",
        "api_cors_allow_origins",
        "api_cors_allow_methods",
        "api_cors_allow_headers",
        "api_cors_expose_headers",
        "api_ip_whitelist",
        "api_ip_blacklist",
        "api_trust_x_forwarded_for",
        "api_request_transform",
        "api_response_transform",
        "api_openapi_url",
        "api_wsdl_url",
        "api_soap_version",
        "api_ws_security",
        "api_graphql_max_depth",
        "api_graphql_schema_url",
        "api_grpc_reflection_url",
        "api_crud_collection",
        "api_crud_schema",
    ];
    let mut defaults: Document = null.into_iter().map(|member| (member.to_owned(), Bson::Null)).collect();
    defaults.extend(doc! {
        "api_allowed_roles": [],
        "api_allowed_groups": [],
        "api_servers": [],
        "api_allowed_retry_count": 0,
        "api_credits_enabled": false,
        "active": true,
        "api_cors_allow_credentials": false,
        "api_public": false,
        "api_auth_required": true,
        "api_ip_mode": "allow_all",
        "api_openapi_auto_discover": false,
        "api_graphql_subscriptions": false,
        "api_grpc_web_enabled": false,
        "api_is_crud": false,
        "api_response_envelope": false,
    });
    defaults
}

/// The API that was added.
#[derive(Debug, Serialize, ToSchema)]
struct Created {
    api: Map<String, Value>,
}

/// A page of APIs.
#[derive(Debug, Serialize, ToSchema)]
struct Apis {
    apis: Vec<Map<String, Value>>,
    page: u64,
    page_size: u32,
    has_next: bool,
    total: u64,
}

/// There is no such API.
fn unknown() -> Refusal {
    refused(StatusCode::BAD_REQUEST, "API003", "API does not exist for the requested name and version")
}

/// A public API has nobody to charge.
fn charged_to_nobody() -> Refusal {
    refused(StatusCode::BAD_REQUEST, "API013", "Public API cannot have credits enabled")
}

/// Refuses an API that is for all and charges its callers.
fn must_have_payers(spec: &DoormanApiSpec) -> Result<(), Refusal> {
    let is_charged = spec.public == Some(true) && spec.credits.as_ref().is_some_and(|credits| credits.enabled);
    if is_charged { Err(charged_to_nobody()) } else { Ok(()) }
}

/// Adds an API. One of this name and version that exists is left as it is, which is no failure.
#[utoipa::path(post, path = "/platform/api", tag = "APIs", request_body = NewApi,
    responses((status = 201, description = "The API was added.", body = Created),
        (status = 200, description = "It exists; nothing was changed.", body = Message)),
    security(("token" = ["manage_apis"])), extensions(("x-error-codes" = json!(["400 API013", "400 API014", "400 API015", "403 API007", "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn create(State(platform): State<Platform>, sent: Sent<NewApi>) -> Result<Answer, Refusal> {
    let Sent { caller, body: new } = sent;
    caller?.must(&platform, Permission::ManageApis, NO_CREATE).await?;
    let is = |flag: Option<Flag>| flag.is_some_and(|flag| flag.0);
    if is(new.fields.api_public) && is(new.fields.api_credits_enabled) {
        return Err(charged_to_nobody());
    }
    let members = given(&new)?;
    check_transforms(&members).map_err(invalid_as)?;
    must_weigh(WEIGHTS, &Members::new(), &plain_document(&members))?;
    let exists = || Answer::message("API already exists");
    let key = ApiKey { name: new.api_name.0.clone(), version: new.api_version.0.clone() };
    let place = known::place(&platform, &key)?;
    let store = platform.identity.store();
    if let Place::Cluster(writer, object) = place {
        if Known::find(&platform, &key).await?.is_some() {
            return Ok(exists());
        }
        let mut spec = fields::blank(&key.name, &key.version);
        must_fit(&fields::set(&mut spec, &plain_document(&members)))?;
        let make = |found: Option<&DoormanApiSpec>| Ok(found.is_none().then(|| spec.clone()));
        if !known::write(&platform, (writer, &object), &key, make).await? {
            return Ok(exists());
        }
        // Somebody else's may have come first.
        known::place(&platform, &key)?;
        let api = Known::find(&platform, &key).await?.ok_or_else(unknown)?.shown();
        return Ok(Answer::data(json!({ "api": api })).with(StatusCode::CREATED));
    }
    let mut document = defaults();
    document.extend(members);
    document.insert("api_id", Uuid::new_v4().to_string());
    document.insert("api_path", format!("/{}/{}", key.name, key.version));
    must_be_servable(Vec::new, problems(&document, &[]))?;
    match store.insert(Collection::Apis, document.clone()).await {
        Ok(()) => {}
        Err(StoreError::Taken) => return Ok(exists()),
        Err(error) => return Err(error.into()),
    }
    platform.until_served().await;
    Ok(Answer::data(json!({ "api": plain_document(&document) })).with(StatusCode::CREATED))
}

/// Lists APIs, whoever may call them.
#[utoipa::path(get, path = "/platform/api/all", tag = "APIs", params(PageQuery),
    responses((status = 200, description = "A page of APIs.", body = Apis)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001", "401 API_AUTH"]))))]
async fn list_all(
    State(platform): State<Platform>,
    Asked(query): Asked<PageQuery>,
    caller: Result<Caller, Denied>,
) -> Result<Answer, Refusal> {
    let caller = caller.map_err(|denied| Problem::new(denied.status(), NOT_SIGNED_IN, denied.reason()))?;
    let page = query.page(&platform, PAGE_SIZE)?;
    let (found, total) = Known::page(&platform, page).await?;
    let mut apis: Vec<_> = found.iter().map(Known::shown).collect();
    keep_credentials(&platform, &caller, &mut apis).await?;
    Ok(Answer::data(page.of("apis", apis.into_iter().map(Value::from).collect(), total)))
}

/// The same as `/platform/api/all`.
#[utoipa::path(get, path = "/platform/api", tag = "APIs", params(PageQuery),
    responses((status = 200, description = "A page of APIs.", body = Apis)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 PAG001", "401 API_AUTH"]))))]
async fn list(
    state: State<Platform>,
    query: Asked<PageQuery>,
    caller: Result<Caller, Denied>,
) -> Result<Answer, Refusal> {
    list_all(state, query, caller).await
}

/// Reads an API.
#[utoipa::path(get, path = "/platform/api/{api_name}/{api_version}", tag = "APIs", params(ApiPath),
    responses((status = 200, description = "The API.", body = Value)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 API003"]))))]
async fn read(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    let found = Known::find(&platform, &key.into()).await?;
    let mut api = found.ok_or_else(unknown)?.shown();
    keep_credentials(&platform, &caller, std::slice::from_mut(&mut api)).await?;
    Ok(Answer::data(api))
}

/// Shows how a gateway signs in to upstreams only to those who may change it; others find `null`.
async fn keep_credentials(platform: &Platform, caller: &Caller, apis: &mut [Members]) -> Result<(), Refusal> {
    let mut credentials =
        apis.iter_mut().filter_map(|api| api.get_mut("api_ws_security")).filter(|value| !value.is_null());
    let Some(first) = credentials.next() else { return Ok(()) };
    if !caller.may(platform, Permission::ManageApis).await? {
        std::iter::once(first).chain(credentials).for_each(|value| *value = Value::Null);
    }
    Ok(())
}

/// Changes an API; the next call sees it.
#[utoipa::path(put, path = "/platform/api/{api_name}/{api_version}", tag = "APIs", params(ApiPath),
    request_body = ApiUpdate, responses((status = 200, description = "The API was changed.", body = Message)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 API003", "400 API005", "400 API006", "400 API013", "400 API014", "400 API015", "403 API008",
        "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn update(
    State(platform): State<Platform>,
    At(key): At<ApiPath>,
    sent: Sent<ApiUpdate>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: update } = sent;
    caller?.must(&platform, Permission::ManageApis, NO_UPDATE).await?;
    let key = ApiKey::from(key);
    let path = format!("/{}/{}", key.name, key.version);
    let place = known::place(&platform, &key)?;
    if update.api_name.as_ref().is_some_and(|name| name.0 != key.name)
        || update.api_version.as_ref().is_some_and(|version| version.0 != key.version)
        || update.api_path.as_ref().is_some_and(|given| given.0 != path)
    {
        return Err(refused(StatusCode::BAD_REQUEST, "API005", "API name and version cannot be updated"));
    }
    let updated = || Answer::message("API updated successfully");
    let (members, no_data) = (given(&update)?, || refused(StatusCode::BAD_REQUEST, "API006", "No data to update"));
    check_transforms(&members).map_err(invalid_as)?;
    if let Place::Cluster(writer, object) = place {
        let members = plain_document(&members);
        let change = |spec: &mut DoormanApiSpec| {
            must_weigh(WEIGHTS, &fields::api(spec, ""), &members)?;
            must_fit(&fields::set(spec, &members))?;
            must_have_payers(spec)?;
            if members.is_empty() { Err(no_data()) } else { Ok(true) }
        };
        known::change(&platform, (writer, &object), &key, unknown, change).await?;
        return Ok(updated());
    }
    let (store, key) = (platform.identity.store(), [key.name.as_str(), key.version.as_str()]);
    for _ in 0..TRIES {
        let stored = store.find(Collection::Apis, &key).await?.ok_or_else(unknown)?;
        let was = |member| stored.get_bool(member).unwrap_or(false);
        let will_be = |given: Option<Flag>, member| given.map_or(was(member), |flag| flag.0);
        let fields = &update.fields;
        if will_be(fields.api_public, "api_public") && will_be(fields.api_credits_enabled, "api_credits_enabled") {
            return Err(charged_to_nobody());
        }
        must_weigh(WEIGHTS, &plain_document(&stored), &plain_document(&members))?;
        if members.is_empty() {
            return Err(no_data());
        }
        let mut changed = (*stored).clone();
        changed.extend(members.clone());
        must_be_servable(|| problems(&stored, &[]), problems(&changed, &[]))?;
        // What was looked at together must not have changed apart.
        let seen = TOGETHER.map(|member| [stored.get(member).cloned().unwrap_or(Bson::Null)]);
        let expected: Vec<(&str, &[Bson])> = TOGETHER.into_iter().zip(seen.iter().map(<[Bson; 1]>::as_slice)).collect();
        if store.set_if(Collection::Apis, &key, &expected, members.clone()).await? {
            platform.until_served().await;
            return Ok(updated());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(not_written(&format!("API {}/{}", key[0], key[1]), WriteError::Changed))
}

/// Deletes an API; subscriptions stay for one of the same name and version, and so do stored endpoints.
#[utoipa::path(delete, path = "/platform/api/{api_name}/{api_version}", tag = "APIs", params(ApiPath),
    responses((status = 200, description = "The API was deleted.", body = Message)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 API003", "403 API008", "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn delete(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DELETE).await?;
    let key = ApiKey::from(key);
    let mut was_there = false;
    if let Place::Cluster(writer, object) = known::place(&platform, &key)? {
        let deleted = writer.delete::<DoormanApi>(&object).await;
        let deleted = deleted.map_err(|error| not_written(&called(&key), error))?;
        if let Some(deleted) = &deleted {
            let is_gone = || known::origin(&platform, &key).is_none_or(|served| served.uid != deleted.uid);
            until_served(writer, &called(&key), is_gone).await?;
        }
        was_there = deleted.is_some();
    }
    // What an older database holds goes with it.
    was_there |= platform.identity.store().remove(Collection::Apis, &[&key.name, &key.version]).await?;
    if !was_there {
        return Err(unknown());
    }
    platform.until_served().await;
    Ok(Answer::message("API deleted successfully"))
}

/// Takes over an API that somebody else defines in the cluster: from then on it is changed here.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/adopt", tag = "APIs", params(ApiPath),
    request_body = Option<Adoption>, responses((status = 200, description = "It is the platform's.", body = Message)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 API003", "403 API008", "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn adopt(
    State(platform): State<Platform>,
    At(key): At<ApiPath>,
    MaybeSent(sent): MaybeSent<Adoption>,
) -> Result<Answer, Refusal> {
    let Sent { caller, body: adoption } = sent;
    caller?.must(&platform, Permission::ManageApis, NO_UPDATE).await?;
    let key = ApiKey::from(key);
    Known::find(&platform, &key).await?.ok_or_else(unknown)?;
    let served = || known::origin(&platform, &key);
    adopt_object::<DoormanApi>(&platform, &called(&key), &adoption, served).await?;
    Ok(Answer::message("API adopted successfully"))
}

/// Gives an API of the platform away: from then on it is whose manifest is applied next, and not changed here.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/release", tag = "APIs", params(ApiPath),
    responses((status = 200, description = "It is not the platform's any more.", body = Message)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 API003", "403 API008", "409 DEF409", "503 DEF503", "504 DEF504"]))))]
async fn release(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_UPDATE).await?;
    let key = ApiKey::from(key);
    Known::find(&platform, &key).await?.ok_or_else(unknown)?;
    let served = || known::origin(&platform, &key);
    release_object::<DoormanApi>(&platform, &called(&key), served).await?;
    Ok(Answer::message("API released successfully"))
}
